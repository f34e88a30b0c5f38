"""Depthwise convolution: XLA's and NumPy's numbers, both derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_conv import assert_same_derivatives

from jaxseg import ops
from jaxseg.ops.depthwise import depthwise_conv2d


def arrays(height, width, k, channels=5):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, height, width, channels))
  kernel = rng.normal(size=(k, k, 1, channels))
  return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


@pytest.mark.parametrize('k, stride, dilation, height, width', (
  (3, 2, 1, 7, 6), (3, 1, 2, 5, 4), (5, 1, 1, 2, 3),
))  # fmt: skip
def test_derivatives(k, stride, dilation, height, width):
  fn = functools.partial(depthwise_conv2d, stride=stride, dilation=dilation)
  assert_same_derivatives(fn, *arrays(height, width, k))


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('stride, dilation', ((1, 1), (2, 1), (1, 3)))
def test_against_numpy(name, stride, dilation):
  x, kernel = arrays(6, 7, 3)
  padded = np.pad(x, ((0, 0), *[(dilation, dilation)] * 2, (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(
    padded, (2 * dilation + 1,) * 2, axis=(1, 2)
  )[:, ::stride, ::stride, :, ::dilation, ::dilation]
  wanted = np.einsum('nhwcab,abc->nhwc', windows, kernel[:, :, 0])
  with ops.implementation(name):
    got = depthwise_conv2d(x, kernel, stride=stride, dilation=dilation)
  assert_allclose(got, wanted, atol=1e-5)


def test_bfloat16():
  x, kernel = arrays(6, 6, 3)
  low = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  loss = lambda *a: depthwise_conv2d(*a).sum()
  run = lambda *a: (depthwise_conv2d(*a), *jax.grad(loss, (0, 1))(*a))
  with ops.implementation('fast'):
    results = jax.jit(lambda *a: (run(*a), run(x, kernel)))(*low)
  for got, wanted in zip(*results, strict=True):
    assert got.dtype == jnp.bfloat16
    scale = np.abs(wanted).max()
    assert_allclose(np.float32(got) / scale, wanted / scale, atol=0.02)
