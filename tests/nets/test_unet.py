"""U-Net: sizes as published, numbers as PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets.layers import Features
from jaxseg.nets.unet import UNet


def images(*shape, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, size=shape)
  return np.asarray(x, np.float32)


@functools.cache
def shapes_of(net, shape):
  init = functools.partial(jax.eval_shape, net.init_with_output)
  return init(jax.random.key(0), jnp.zeros(shape))


# Input and output channels of the two convolutions of each block, at width 64.
DOWN = {
  'down0': (1, 64, 64), 'down1': (64, 128, 128), 'down2': (128, 256, 256),
  'down3': (256, 512, 512),
}  # fmt: skip
BLOCKS = {
  # Figure 1 of the paper: up-convolutions halve, concatenation doubles.
  'transposed': DOWN
  | {
    'bottom': (512, 1024, 1024), 'up3': (1024, 512, 512),
    'up2': (512, 256, 256), 'up1': (256, 128, 128), 'up0': (128, 64, 64),
  },
  # Interpolation keeps the channels, so the convolutions before it halve.
  'bilinear': DOWN
  | {
    'bottom': (512, 512, 512), 'up3': (1024, 512, 256), 'up2': (512, 256, 128),
    'up1': (256, 128, 64), 'up0': (128, 64, 64),
  },
}  # fmt: skip


@pytest.mark.parametrize(
  'up, total', (('transposed', 31_036_676), ('bilinear', 17_262_020))
)
def test_parameters_layer_by_layer(up, total):
  """Convolutions without bias, scale and bias of norms, 1x1 with bias."""
  net = UNet(4, up=up, norm='batch')
  logits, variables = shapes_of(net, (2, 32, 48, 1))
  assert (logits.shape, logits.dtype) == ((2, 32, 48, 4), jnp.float32)
  params = variables['params']
  assert set(params) == {'encoder', 'decoder'}
  layers = {**params['encoder'], **params['decoder']}
  wanted = {
    name: 9 * (a * b + b * c) + 2 * (b + c)
    for name, (a, b, c) in BLOCKS[up].items()
  }
  wanted['out'] = 64 * 4 + 4
  if up == 'transposed':
    for i, width in enumerate((64, 128, 256, 512)):
      wanted[f'upsample{i}'] = 4 * 2 * width * width + width
  assert {name: t.count(layer) for name, layer in layers.items()} == wanted
  assert t.count(params) == sum(wanted.values()) == total


@pytest.mark.parametrize(
  'up, bottom', (('transposed', 1024), ('bilinear', 512))
)
def test_maps_of_the_encoder(up, bottom):
  net = UNet(4, up=up)
  init = functools.partial(net.init, method=net.encode, train=False)
  x = jnp.zeros((1, 32, 64, 3))
  variables = jax.eval_shape(init, jax.random.key(0), x)
  features = jax.eval_shape(
    lambda v: net.apply(v, x, method=net.encode, train=False), variables
  )
  assert [m.shape[1:] for m in features.maps] == [
    (32, 64, 64), (16, 32, 128), (8, 16, 256), (4, 8, 512), (2, 4, bottom)
  ]  # fmt: skip


def by_torch(variables, x, depth, up, train):
  """Batch norm is the same in either mode but for its statistics."""
  params = variables['params']['encoder'] | variables['params']['decoder']
  stats = variables['batch_stats']
  stats = stats['encoder'] | stats['decoder']

  def block(x, name):
    for i in range(2):
      x = t.conv(params[name][f'conv{i}'], x, padding=1)
      norm = f'norm{i}'
      x = t.batch_norm(params[name][norm], stats[name][norm], x, train)
      x = t.F.relu(x)
    return x

  x, skips = t.to_torch(x), []
  for i in range(depth):
    skips.append(block(x, f'down{i}'))
    x = t.F.max_pool2d(skips[-1], 2)
  x = block(x, 'bottom')
  for i in reversed(range(depth)):
    if up == 'transposed':
      x = t.conv_transpose(params[f'upsample{i}'], x, 2)
    else:
      x = t.F.interpolate(x, scale_factor=2, mode='bilinear')
    x = block(t.torch.cat([skips[i], x], 1), f'up{i}')
  return t.from_torch(t.conv(params['out'], x))


@t.needed
@pytest.mark.parametrize(
  'up, train', (('transposed', True), ('bilinear', True), ('bilinear', False))
)
def test_as_torch(up, train):
  net = UNet(3, width=4, depth=2, up=up, norm='batch')
  x = images(2, 8, 12, 2)
  variables = t.random_variables(net, x)
  apply = jax.jit(
    functools.partial(net.apply, train=train, mutable='batch_stats')
  )
  logits, updated = apply(variables, x)
  assert_allclose(
    logits, by_torch(variables, x, 2, up, train), atol=1e-4, rtol=1e-4
  )
  before = jax.tree.leaves(variables['batch_stats'])
  after = jax.tree.leaves(updated['batch_stats'])
  assert len(before) == 2 * 2 * 5
  assert all(
    (a != b).any() == train for a, b in zip(before, after, strict=True)
  )


@pytest.mark.parametrize('norm', ('group', 'frozen'))
def test_norms_that_training_leaves_alone(norm):
  net = UNet(2, width=4, depth=1, norm=norm)
  x = images(2, 4, 4, 1)
  variables = t.random_variables(net, x)
  assert ('batch_stats' in variables) == (norm == 'frozen')
  apply = jax.jit(
    functools.partial(net.apply, mutable='batch_stats'),
    static_argnames='train',
  )
  used, _ = apply(variables, x, train=False)
  trained, updated = apply(variables, x, train=True)
  assert_array_equal(used, trained)
  jax.tree.map(
    assert_array_equal,
    updated.get('batch_stats', {}),
    variables.get('batch_stats', {}),
  )


def test_dropout_at_the_lowest_level_in_training_alone():
  net = UNet(2, width=8, depth=1, dropout=0.5)
  x = images(1, 16, 16, 1)
  variables = jax.jit(net.init)(jax.random.key(0), x)

  @functools.partial(jax.jit, static_argnums=1)
  def encode(key, train):
    rngs = {'dropout': key}
    return net.apply(variables, x, train, method='encode', rngs=rngs)

  used = encode(jax.random.key(1), False)
  one = encode(jax.random.key(1), True)
  other = encode(jax.random.key(2), True)
  assert_array_equal(used.maps[0], one.maps[0])
  kept = np.asarray(one.maps[1]) != 0
  assert_array_equal(np.asarray(one.maps[1])[kept], 2 * used.maps[1][kept])
  share = kept.sum() / (np.asarray(used.maps[1]) != 0).sum()
  assert 0.4 < share < 0.6
  assert (one.maps[1] != other.maps[1]).any()


def test_halves_make_the_whole_and_bfloat16_returns_float32():
  net = UNet(2, width=4, depth=2, dtype='bfloat16')
  x = images(1, 8, 8, 1)
  variables = t.random_variables(net, x)
  assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype('float32')}

  @jax.jit
  def both(v, x):
    features = net.apply(v, x, False, method='encode')
    assert isinstance(features, Features)
    assert {m.dtype for m in features.maps} == {jnp.dtype('bfloat16')}
    halves = net.apply(v, features, (8, 8), False, method='decode')
    return halves, net.apply(v, x)

  halves, whole = both(variables, x)
  assert whole.dtype == halves.dtype == jnp.float32
  assert_array_equal(halves, whole)
  exact = jax.jit(UNet(2, width=4, depth=2).apply)(variables, x)
  assert_allclose(whole, exact, atol=0.1)
  assert np.abs(whole - exact).max() > 1e-4


def test_refuses_sizes_and_settings():
  x = jnp.zeros((1, 8, 12, 1))
  with pytest.raises(ValueError, match='8 x 12 pixels must be multiples of 8'):
    UNet(2, width=4, depth=3).init(jax.random.key(0), x)
  with pytest.raises(ValueError, match="'cubic', must be one of bilinear"):
    UNet(2, up='cubic').init(jax.random.key(0), x)
