"""Fast convolutions: equal to XLA's, in value and in both derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg import ops
from jaxseg.ops.conv import conv2d, conv2d_transpose

# kernel size, stride, padding (None: keeps the size), height, width
CASES = (
  # Up to 4 pixels a side: one matrix product.
  (3, 1, None, 4, 3),
  (3, 2, None, 2, 2),
  (4, 2, (2, 2), 4, 4),
  (1, 1, None, 5, 6),
  (1, 2, (0, 0), 6, 6),
  (3, 1, None, 6, 5),
  (3, 2, None, 7, 5),
  (3, 2, (2, 1), 6, 6),
  (4, 1, (2, 2), 5, 5),
  (4, 2, (2, 2), 7, 6),
  (7, 2, None, 9, 8),
  # More outputs than inputs.
  (2, 1, (1, 1), 6, 5),
)
# kernel size, stride, padding, dilation, height, width, channels; 64 channels
# are enough for one product a tap.
DILATED = (
  (3, 1, None, 2, 7, 6, 3),
  (3, 1, (3, 1), 2, 5, 4, 64),
  # Some taps, all but one, and all of them outside the image.
  (3, 1, None, 5, 6, 4, 3),
  (3, 1, None, 36, 4, 5, 3),
  (2, 1, (20, 0), 18, 3, 3, 3),
  (3, 2, None, 2, 7, 6, 3),
  (3, 2, None, 1, 7, 8, 64),
)


def arrays(height, width, k, channels=3, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(2, height, width, channels))
  kernel = rng.normal(size=(k, k, channels, channels + 1)) / k / channels**0.5
  return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


def derivatives(fn, x, kernel):
  """Value, gradients, second-order gradients as R1 and path length use."""

  def loss(x, kernel):
    return jnp.sin(fn(jnp.tanh(x), kernel)).sum()

  def penalty(x, kernel):
    by_x, by_kernel = jax.grad(loss, (0, 1))(x, kernel)
    return jnp.square(by_x).sum() + 3 * jnp.linalg.norm(by_kernel)

  first, second = (jax.grad(f, (0, 1))(x, kernel) for f in (loss, penalty))
  return [fn(x, kernel), *first, *second]


def assert_same_derivatives(fn, x, kernel):
  results = []
  for name in ('fast', 'lax'):
    with ops.implementation(name):
      # A new function each time: the choice is read while tracing.
      results.append(jax.jit(lambda *a: derivatives(fn, *a))(x, kernel))
  for fast, plain in zip(*results, strict=True):
    assert fast.shape == plain.shape
    scale = max(1.0, float(np.abs(plain).max()))
    assert_allclose(fast / scale, plain / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize('k, stride, padding, height, width', CASES)
def test_conv2d(k, stride, padding, height, width):
  fn = functools.partial(conv2d, stride=stride, padding=padding)
  assert_same_derivatives(fn, *arrays(height, width, k))


@pytest.mark.parametrize('channels', ((1, 4), (4, 1)))
def test_large_kernels(channels):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 9, 8, channels[0])), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=(7, 7, *channels)) / 9, jnp.float32)
  fn = functools.partial(conv2d, padding=(2, 4))
  assert_same_derivatives(fn, x, kernel)


@pytest.mark.parametrize(
  'k, stride, padding, dilation, height, width, channels', DILATED
)
def test_dilation(k, stride, padding, dilation, height, width, channels):
  fn = functools.partial(
    conv2d, stride=stride, padding=padding, dilation=dilation
  )
  assert_same_derivatives(fn, *arrays(height, width, k, channels))


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('dilation', (2, 4, 9))
def test_dilation_is_a_kernel_with_holes(name, dilation):
  x, kernel = arrays(5, 7, 3)
  holes = np.zeros((2 * dilation + 1,) * 2 + kernel.shape[2:])
  holes[::dilation, ::dilation] = kernel
  padded = np.pad(x, ((0, 0), *[(dilation, dilation)] * 2, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, holes.shape[:2], axis=(1, 2)
  )
  wanted = np.einsum('nhwcab,abco->nhwo', windows, holes)
  with ops.implementation(name):
    got = conv2d(x, kernel, dilation=dilation)
  assert_allclose(got, wanted, atol=1e-5)


def test_taps_outside_the_image_cost_nothing():
  """36 pixels from the centre of a 4x4 map: one product of nine is left."""
  x, kernel = arrays(4, 4, 3, 64)
  with ops.implementation('fast'):
    grad = jax.grad(lambda *a: conv2d(*a, dilation=36).sum(), (0, 1))
    text = str(jax.make_jaxpr(grad)(x, kernel))
  assert text.count('dot_general') == 3  # forward, and both gradients
  assert 'conv_general_dilated' not in text


@pytest.mark.parametrize('k, height, width', ((3, 4, 4), (4, 5, 3)))
def test_conv2d_transpose(k, height, width):
  assert_same_derivatives(conv2d_transpose, *arrays(height, width, k))


def test_transpose_by_hand():
  """y[2i + t] += x[i] kernel[t]; an asymmetric kernel shows a flip."""
  x, kernel = arrays(4, 3, 3)
  wanted = np.zeros((2, 9, 7, 4))
  for i in range(4):
    for j in range(3):
      stamp = np.einsum('nc,abco->nabo', x[:, i, j], kernel)
      wanted[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += stamp
  for name in ('fast', 'lax'):
    with ops.implementation(name):
      assert_allclose(conv2d_transpose(x, kernel), wanted, atol=1e-5)


def test_conv2d_by_hand():
  """Correlation (no flip), zeros around, both strides."""
  x, kernel = arrays(6, 6, 3)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  wanted = np.zeros((2, 6, 6, 4))
  for i in range(6):
    for j in range(6):
      window = padded[:, i : i + 3, j : j + 3]
      wanted[:, i, j] = np.einsum('nabc,abco->no', window, kernel)
  for name in ('fast', 'lax'):
    with ops.implementation(name):
      assert_allclose(conv2d(x, kernel), wanted, atol=1e-5)
      half = conv2d(x, kernel, stride=2)
      assert_allclose(half, wanted[:, ::2, ::2], atol=1e-5)


def test_inside_branches_and_loops():
  x, kernel = arrays(6, 6, 3)
  kernel = kernel[..., :3]
  grad = jax.grad(lambda k, x: jnp.sin(conv2d(x, k)).sum())
  step = lambda k: k - 0.01 * grad(k, x)

  @jax.jit
  def looped(k, flag):
    k = jax.lax.fori_loop(0, 3, lambda _, k: step(k), k)
    return jax.lax.cond(flag, step, lambda k: k, k)

  plain, one = kernel, jax.jit(step)
  for _ in range(4):
    plain = one(plain)
  with ops.implementation('fast'):
    assert_allclose(looped(kernel, True), plain, atol=1e-5)


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('channels, dilation', ((3, 1), (64, 3)))
def test_bfloat16(name, channels, dilation):
  x, kernel = arrays(6, 6, 3, channels)
  low = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)

  def run(x, kernel):
    half = lambda k: conv2d(x, k, stride=2, dilation=dilation)
    up = lambda k: conv2d_transpose(half(k)[..., :channels], k)
    return up(kernel), jax.grad(lambda k: up(k).sum())(kernel)

  with ops.implementation(name):
    results = jax.jit(lambda *a: (run(*a), run(x, kernel)))(*low)
  for got, wanted in zip(*results, strict=True):
    assert got.dtype == jnp.bfloat16
    scale = np.abs(wanted).max()
    assert_allclose(np.float32(got) / scale, wanted / scale, atol=0.05)


def test_implementation_is_chosen_and_given_back():
  x, kernel = arrays(6, 6, 3)
  # A new lambda each time: the choice is read while tracing.
  text = lambda: str(jax.make_jaxpr(lambda *a: conv2d(*a))(x, kernel))
  with ops.implementation('fast'):
    assert ops.is_fast() and 'custom_vjp' in text()
    with ops.implementation('lax'):
      assert not ops.is_fast() and 'custom_vjp' not in text()
    assert ops.is_fast()
  with pytest.raises(ValueError, match="'quick' is not 'auto', 'fast'"):
    with ops.implementation('quick'):
      pass
  assert ops.is_fast() == (jax.default_backend() == 'cpu')
