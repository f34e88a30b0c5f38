"""Low-pass filters against SciPy's, written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from numpy.testing import assert_allclose

from jaxseg import ops
from jaxseg.ops.upfirdn2d import blur, upsample2d

KERNEL = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64


def image(height=5, width=6):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3))
  return jnp.asarray(x, jnp.float32)


def filtered(x, padding, gain):
  """Zero padding, then 'valid' convolution, channel by channel."""
  x = np.pad(np.float64(x), ((0, 0), padding, padding, (0, 0)))
  convolve = lambda c: scipy.signal.convolve2d(c, gain * KERNEL, 'valid')
  return np.stack(
    [np.stack([convolve(n[..., c]) for c in range(n.shape[-1])], -1) for n in x]
  )


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('padding, gain', (
  ((1, 1), 4.0), ((2, 2), 1.0), ((2, 1), 1.0), ((0, 3), 1.0),
))  # fmt: skip
def test_blur(name, padding, gain):
  with ops.implementation(name):
    y = blur(image(), padding, gain)
  assert_allclose(y, filtered(image(), padding, gain), atol=1e-5)


def test_blur_is_differentiated_twice():
  def derivatives(x):
    loss = lambda x: jnp.sin(blur(jnp.tanh(x), (2, 1), 4.0)).sum()
    r1 = lambda x: jnp.square(jax.grad(loss)(x)).sum()
    return jax.grad(loss)(x), jax.grad(r1)(x)

  results = []
  for name in ('fast', 'lax'):
    with ops.implementation(name):
      results.append(jax.jit(lambda x: derivatives(x))(image()))
  for fast, plain in zip(*results, strict=True):
    assert_allclose(fast, plain, atol=2e-5)


def test_upsample2d():
  """Zeros between the pixels, then the filter with gain 4, padding (2, 1)."""
  x = image()
  n, height, width, channels = x.shape
  sparse = np.zeros((n, 2 * height, 2 * width, channels))
  sparse[:, ::2, ::2] = x
  assert_allclose(upsample2d(x), filtered(sparse, (2, 1), 4.0), atol=1e-5)


def test_constants_keep_their_value_away_from_the_border():
  ones = jnp.ones((1, 6, 6, 1))
  assert_allclose(upsample2d(ones)[:, 1:-1, 1:-1], 1.0, rtol=1e-6)
  assert_allclose(blur(ones, (2, 1))[:, 2:-2, 2:-2], 1.0, rtol=1e-6)


@pytest.mark.parametrize('name', ('fast', 'lax'))
def test_bfloat16(name):
  x = image()
  with ops.implementation(name):
    for fn in (upsample2d, lambda x: blur(x, (2, 1))):
      y = fn(x.astype(jnp.bfloat16))
      assert y.dtype == jnp.bfloat16
      assert_allclose(y.astype(jnp.float32), fn(x), atol=0.05)
