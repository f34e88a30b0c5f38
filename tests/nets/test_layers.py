"""Layers with an equalised learning rate, and the modulated convolution."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets import layers
from jaxseg.ops.conv import conv2d_transpose
from jaxseg.ops.upfirdn2d import blur


def normal(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, jnp.float32)


def correlate(x, kernel):
  """One image [H, W, I] with [k, k, I, O], zeros around, in NumPy."""
  k = len(kernel)
  height, width, _ = x.shape
  x = np.pad(x, ((k // 2, k // 2), (k // 2, k // 2), (0, 0)))
  return sum(
    x[i : i + height, j : j + width] @ kernel[i, j]
    for i in range(k)
    for j in range(k)
  )


@pytest.mark.parametrize('k, demodulate', ((3, True), (3, False), (1, False)))
def test_modulated_conv_is_a_kernel_per_image(k, demodulate):
  """Karras et al. 2020, equations 1 and 3, image by image."""
  x, w = normal(3, 5, 6, 4), normal(3, 7, seed=1)
  conv = layers.ModulatedConv(2, k, demodulate)
  params = jax.jit(conv.init)(jax.random.key(0), x, w)['params']
  assert_allclose(params['affine']['bias'], 1.0)
  affine = np.asarray(params['affine']['kernel']) / math.sqrt(7)
  kernel = np.asarray(params['kernel']) / math.sqrt(k * k * 4)
  y = jax.jit(conv.apply)({'params': params}, x, w)
  for i in range(3):
    style = np.asarray(w[i]) @ affine + 1
    own = kernel * style[:, None]
    if demodulate:
      own = own / np.sqrt(np.square(own).sum((0, 1, 2)) + 1e-8)
    assert_allclose(y[i], correlate(np.asarray(x[i]), own), atol=1e-5)


def test_modulated_conv_upsamples():
  x, w = normal(2, 4, 4, 3), normal(2, 5, seed=1)
  conv = layers.ModulatedConv(2, upsample=True)
  params = jax.jit(conv.init)(jax.random.key(0), x, w)['params']
  y = jax.jit(conv.apply)({'params': params}, x, w)
  up = jax.jit(lambda x, k: blur(conv2d_transpose(x, k), (1, 1), 4.0))
  params = jax.device_get(params)
  for i in range(2):
    style = np.asarray(w[i]) @ params['affine']['kernel'] / math.sqrt(5) + 1
    own = params['kernel'] / math.sqrt(27) * style[:, None]
    own = own / np.sqrt(np.square(own).sum((0, 1, 2)) + 1e-8)
    wanted = up(x[i : i + 1], own)
    assert wanted.shape == (1, 8, 8, 2)
    assert_allclose(y[i], wanted[0], atol=1e-5)


def test_equal_dense():
  x = normal(2, 5)
  dense = layers.EqualDense(3, lr_mul=0.01, bias_init=2.0, activate=True)
  params = dense.init(jax.random.key(0), x)['params']
  # Weights are 1 / lr_mul as large, and used lr_mul / sqrt(5) as large.
  assert 30 < np.std(params['kernel']) < 300
  y = np.asarray(x) @ np.asarray(params['kernel']) * 0.01 / math.sqrt(5) + 0.02
  wanted = np.where(y > 0, y, 0.2 * y) * math.sqrt(2)
  assert_allclose(dense.apply({'params': params}, x), wanted, rtol=1e-5)


def test_equal_conv():
  x = normal(2, 6, 6, 3)
  conv = layers.EqualConv(4)
  params = conv.init(jax.random.key(0), x)['params']
  params['bias'] = normal(4, seed=2)
  y = jax.jit(conv.apply)({'params': params}, x)
  kernel = np.asarray(params['kernel']) / math.sqrt(27)
  for i in range(2):
    wanted = correlate(np.asarray(x[i]), kernel) + params['bias']
    wanted = np.where(wanted > 0, wanted, 0.2 * wanted) * math.sqrt(2)
    assert_allclose(y[i], wanted, atol=1e-5)


@pytest.mark.parametrize('k', (1, 3))
def test_equal_conv_halves_what_it_filtered(k):
  x = jnp.ones((1, 16, 16, 1))
  conv = layers.EqualConv(1, k, downsample=True, use_bias=False, activate=False)
  y = conv.apply({'params': {'kernel': jnp.ones((k, k, 1, 1))}}, x)
  assert y.shape == (1, 8, 8, 1)
  # A constant stays what the kernel makes of it: k k / sqrt(k k).
  assert_allclose(y[0, 2:-2, 2:-2], k, rtol=1e-6)


def test_conv_starts_as_pytorch_does():
  """Uniform within 1 / sqrt(fan in): standard deviation 1 / sqrt(3 fan in)."""
  conv = layers.Conv(64, 4)
  kernel = conv.init(jax.random.key(0), jnp.ones((1, 8, 8, 32)))
  kernel = np.asarray(kernel['params']['kernel'])
  bound = 1 / math.sqrt(4 * 4 * 32)
  assert 0.99 * bound < np.abs(kernel).max() <= bound
  assert_allclose(kernel.std(), bound / math.sqrt(3), rtol=0.02)


@pytest.mark.parametrize('axes', ((1, 2), (0, 1, 2)))
def test_standardize_valid_pixels(axes):
  x = 3 + 2 * normal(2, 4, 5, 3)
  valid = np.random.default_rng(0).uniform(size=(2, 4, 5)) < 0.5
  whole, masked = jax.jit(
    lambda x: (layers.standardize(x, axes), layers.standardize(x, axes, valid))
  )(x)
  x = np.asarray(x, np.float64)
  parts = [slice(i, i + 1) for i in range(2)] if axes == (1, 2) else [slice(2)]
  for part in parts:
    own, mask = x[part], valid[part]
    for found, chosen in ((whole, own.reshape(-1, 3)), (masked, own[mask])):
      wanted = (own - chosen.mean(0)) / np.sqrt(chosen.var(0) + 1e-5)
      assert_allclose(found[part], wanted, atol=1e-5)


def test_instance_norm_has_no_parameters():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      return layers.normalize(x, 'instance', True, 'norm')

  x = normal(2, 4, 5, 3).astype(jnp.bfloat16)
  y, variables = Net().init_with_output(jax.random.key(0), x)
  assert not variables and y.dtype == jnp.bfloat16
  assert_array_equal(y, layers.instance_norm(x))
