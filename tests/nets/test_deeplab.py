"""DeepLab: the papers' structures, against PyTorch, and on odd inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
import torch_layers
from numpy.testing import assert_allclose

from jaxseg.nets.deeplab import BACKBONES, DeepLabV2, DeepLabV3Plus
from jaxseg.nets.layers import Features

SMALL = dict(backbone='resnet18', width=8, depths=(1,) * 4)


def shapes_of(net, size=64, channels=3):
  """Shapes of (logits, variables), nothing computed."""
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  return jax.eval_shape(lambda x: net.init_with_output(jax.random.key(0), x), x)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def normal(*shape, seed=1):
  x = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(x, jnp.float32)


def decoder_of(net, *maps, seed=0):
  """Random variables of a decoder alone."""
  init = lambda *maps: net.init(
    jax.random.key(0), Features(maps), (32, 32), method=net.decode
  )
  return t.random_like(jax.eval_shape(init, *maps), seed)


def test_v2_published_parameters():
  """ResNet-101 and four 3x3 convolutions from 2048 channels to 21."""
  params = shapes_of(DeepLabV2(21, norm='frozen'))[1]['params']
  assert count(params) == 44_048_532
  assert count(params['encoder']) == 42_500_160
  for bug, branches in ((False, 4), (True, 2)):
    net = DeepLabV2(21, published_aspp_bug=bug, **SMALL)
    params = decoder_of(net, normal(1, 2, 2, 2048))['params']
    assert count(params['decoder']) == branches * (9 * 2048 * 21 + 21)


def v3plus_decoder(fine, coarse, classes, width=256):
  """Parameters of figure 2; every layer but the last has a norm."""
  layer = lambda k, i, o: k * k * i * o + 2 * o
  return (
    2 * layer(1, coarse, width)
    + 3 * layer(3, coarse, width)
    + layer(1, 5 * width, width)
    + layer(1, fine, 48)
    + layer(3, width + 48, width)
    + layer(3, width, width)
    + width * classes
    + classes
  )


@pytest.mark.parametrize('backbone, encoder, fine, coarse, total', (
  ('resnet101', 42_500_160, 256, 2048, 59_344_309),
  ('resnet50', 23_508_032, 256, 2048, 40_352_181),
  ('resnet18', 11_176_512, 64, 512, 16_608_181),
  ('mobilenet_v2', 1_811_712, 24, 320, 5_816_053),
))  # fmt: skip
def test_v3plus_parameters(backbone, encoder, fine, coarse, total):
  """59.34 M: published 59.5 M have three convolutions in the stem."""
  net = DeepLabV3Plus(21, backbone, norm='batch')
  params = shapes_of(net)[1]['params']
  assert count(params['encoder']) == encoder
  assert count(params['decoder']) == v3plus_decoder(fine, coarse, 21)
  assert count(params) == total


@pytest.mark.parametrize('make', (DeepLabV2, DeepLabV3Plus))
@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('stride, size, channels', ((16, 65, 3), (8, 40, 1)))
def test_shapes(make, backbone, stride, size, channels):
  net = make(7, backbone, 8, stride, dtype='bfloat16', depths=(1,) * 4)
  logits, variables = shapes_of(net, size, channels)
  assert logits.shape == (2, size, size, 7) and logits.dtype == jnp.float32
  leaves = jax.tree.leaves(variables)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  features = jax.eval_shape(
    lambda v, x: net.apply(v, x, method=net.encode), variables, x
  )
  sides = [-(-size // stride)]
  if make is DeepLabV3Plus:
    sides = [-(-size // 4), *sides]
  assert [f.shape[1] for f in features.maps] == sides
  assert {f.dtype for f in features.maps} == {jnp.dtype('bfloat16')}


@t.needed
@pytest.mark.parametrize('bug', (False, True))
@pytest.mark.parametrize('align_corners', (False, True))
def test_v2_decoder_against_pytorch(bug, align_corners):
  """All four branches are summed; 6 and 12 alone where published so."""
  net = DeepLabV2(
    3, published_aspp_bug=bug, align_corners=align_corners, **SMALL
  )
  coarse = normal(2, 9, 7, 5)
  variables = decoder_of(net, coarse)
  logits = jax.jit(
    lambda v, c: net.apply(v, Features((c,)), (32, 30), method=net.decode)
  )(variables, coarse)
  tree = torch_layers.Net(variables['params']['decoder'])
  x = t.to_torch(coarse)
  wanted = sum(
    tree.conv(f'branch{i}', x, padding=d, dilation=d)
    for i, d in enumerate((6, 12) if bug else (6, 12, 18, 24))
  )  # fmt: skip
  wanted = t.F.interpolate(
    wanted, (32, 30), mode='bilinear', align_corners=align_corners
  )
  assert_allclose(logits, t.from_torch(wanted), atol=1e-4)


@t.needed
@pytest.mark.parametrize('stride, norm, align_corners', (
  (16, 'batch', False), (8, 'group', True),
))  # fmt: skip
def test_v3plus_decoder_against_pytorch(stride, norm, align_corners):
  net = DeepLabV3Plus(
    3, output_stride=stride, norm=norm, align_corners=align_corners, **SMALL
  )
  # One map is smaller than two of the three dilations, the other than all.
  fine, coarse = normal(2, 16, 16, 8), normal(2, 7, 8, 64, seed=2)
  variables = decoder_of(net, fine, coarse)
  logits = jax.jit(
    lambda v, *m: net.apply(v, Features(m), (32, 30), method=net.decode)
  )(variables, fine, coarse)
  tree = torch_layers.Net(
    variables['params']['decoder'],
    variables.get('batch_stats', {}).get('decoder'),
  )
  layer = lambda name, x, **kwargs: t.F.relu(
    tree.norm(f'norm_{name}', tree.conv(name, x, **kwargs))
  )
  enlarge = functools.partial(
    t.F.interpolate, mode='bilinear', align_corners=align_corners
  )
  x = t.to_torch(coarse)
  views = [layer('aspp0', x)]
  for i in (1, 2, 3):
    d = 6 * i * 16 // stride
    views.append(layer(f'aspp{i}', x, padding=d, dilation=d))
  whole = layer('aspp_image', x.mean((2, 3), keepdim=True))
  views.append(whole.expand_as(views[0]))
  x = enlarge(layer('project', t.torch.cat(views, 1)), size=(16, 16))
  low = layer('low_level', t.to_torch(fine))
  x = layer('conv1', t.torch.cat([x, low], 1), padding=1)
  x = tree.conv('classifier', layer('conv2', x, padding=1))
  wanted = t.from_torch(enlarge(x, size=(32, 30)))
  assert_allclose(logits, wanted, atol=1e-4)


@t.needed
@pytest.mark.parametrize('make', (DeepLabV2, DeepLabV3Plus))
def test_whole_network(make):
  """The decoder reads the encoder's finest and coarsest stage; 1 channel."""
  net = make(3, norm='frozen', **SMALL)
  x = normal(2, 32, 32, 1)
  variables = t.random_variables(net, x)
  logits = jax.jit(net.apply)(variables, x)
  tree = torch_layers.Net(
    variables['params']['encoder'], variables['batch_stats']['encoder']
  )
  last = dict(
    strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), first_dilations=(1, 1, 1, 2)
  )
  if make is DeepLabV3Plus:
    last = dict(
      strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), first_dilations=(1, 1, 1, 1)
    )
  maps = torch_layers.resnet(tree, t.to_torch(x), SMALL['depths'], **last)
  maps = [t.from_torch(m) for m in maps]
  read = (maps[3],) if make is DeepLabV2 else (maps[0], maps[3])
  decode = lambda v, *m: net.apply(v, Features(m), (32, 32), method=net.decode)
  wanted = jax.jit(decode)(variables, *read)
  assert logits.shape == (2, 32, 32, 3)
  assert_allclose(logits, wanted, atol=1e-4)


def test_dropout_only_in_training():
  """Half after pyramid and first convolution, a fifth of that at the end."""
  net = DeepLabV3Plus(3, dropout=0.5, norm='frozen', **SMALL)
  maps = normal(2, 8, 8, 8), normal(2, 2, 2, 64, seed=2)
  variables = decoder_of(net, *maps)

  def run(train, key):
    return net.apply(
      variables, Features(maps), (32, 32), train, method=net.decode,
      rngs={'dropout': jax.random.key(key)},
      capture_intermediates=lambda m, _: type(m).__name__ == 'Dropout',
    )  # fmt: skip

  (still, _), (first, seen), (other, _) = jax.jit(
    lambda: (run(False, 0), run(True, 0), run(True, 1))
  )()
  (again, _) = jax.jit(lambda: run(False, 1))()
  np.testing.assert_array_equal(still, again)
  assert np.abs(first - other).max() > 0.01
  seen = seen['intermediates']['decoder']
  pyramid, first, second = (
    seen[f'Dropout_{i}']['__call__'][0] for i in range(3)
  )
  # A ReLU leaves zeros as well; only the share of zeros can tell.
  zero = lambda x: float((x == 0).mean())
  assert zero(pyramid) > 0.6 and zero(first) > 0.6
  assert zero(second) < 0.65


@pytest.mark.parametrize('make', (DeepLabV2, DeepLabV3Plus))
def test_initial_kernels(make):
  net = make(200, norm='frozen', **SMALL)
  maps = (normal(2, 8, 8, 8), normal(2, 2, 2, 64))
  maps = maps if make is DeepLabV3Plus else maps[1:]
  init = lambda *m: net.init(
    jax.random.key(0), Features(m), (8, 8), method=net.decode
  )
  params = jax.jit(init)(*maps)['params']['decoder']
  if make is DeepLabV2:
    for i in range(4):
      std = params[f'branch{i}']['kernel'].std()
      assert std == pytest.approx(0.01, rel=0.02)
  else:
    std = params['aspp1']['kernel'].std()
    assert std == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.03)


def test_refuses_other_backbones():
  with pytest.raises(ValueError, match="'vgg', must be one of resnet18"):
    shapes_of(DeepLabV2(3, 'vgg'))
