"""ResNet: torchvision's structure and numbers; dilation in place of stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
import torch_layers
from numpy.testing import assert_allclose

from jaxseg.nets.resnet import BasicBlock, ResNet


def shapes_of(net, size=64, channels=3):
  """Shapes of (maps, variables), nothing computed."""
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  run = lambda x: net.init_with_output(jax.random.key(0), x, True)
  return jax.eval_shape(run, x)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(size=32, channels=3):
  x = np.random.default_rng(1).normal(size=(2, size, size, channels))
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize('depth, channels, wanted', (
  # torchvision's, less the classifier: 1000 (features + 1).
  (18, 3, 11_689_512 - 513_000),
  (34, 3, 21_797_672 - 513_000),
  (50, 3, 25_557_032 - 2_049_000),
  (101, 3, 44_549_160 - 2_049_000),
  (50, 1, 23_508_032 - 2 * 7 * 7 * 64),
))  # fmt: skip
def test_published_parameters(depth, channels, wanted):
  _, variables = shapes_of(ResNet(depth), channels=channels)
  assert count(variables['params']) == wanted


@pytest.mark.parametrize('depth, factor', ((18, 1), (50, 4)))
@pytest.mark.parametrize('output_stride, strides', (
  (32, (4, 8, 16, 32)), (16, (4, 8, 16, 16)), (8, (4, 8, 8, 8)),
))  # fmt: skip
@pytest.mark.parametrize('size', (64, 65, 40))
def test_shapes(depth, factor, output_stride, strides, size):
  """He et al., table 1, with the strides of the layers asked for."""
  net = ResNet(depth, output_stride=output_stride, depths=(1,) * 4)
  maps, _ = shapes_of(net, size)
  for stage, (x, stride) in enumerate(zip(maps, strides, strict=True)):
    side = -(-size // stride)
    assert x.shape == (2, side, side, factor * 64 * 2**stage)


def test_layers_of_one_bottleneck_stage():
  """Table 1, stage 2 of ResNet-50; names that an importer relies on."""
  _, variables = shapes_of(ResNet(50, norm='batch'))
  params = variables['params']
  sizes = lambda name: {
    k: v['kernel'].shape for k, v in params[name].items() if 'kernel' in v
  }
  assert params['stem']['kernel'].shape == (7, 7, 3, 64)
  assert sizes('layer2_block0') == {
    'conv1': (1, 1, 256, 128),
    'conv2': (3, 3, 128, 128),
    'conv3': (1, 1, 128, 512),
    'shortcut': (1, 1, 256, 512),
  }
  assert sizes('layer2_block3') == {
    'conv1': (1, 1, 512, 128),
    'conv2': (3, 3, 128, 128),
    'conv3': (1, 1, 128, 512),
  }
  statistics = variables['batch_stats']['layer2_block0']
  assert set(statistics) == {'norm1', 'norm2', 'norm3', 'norm_shortcut'}


@t.needed
@pytest.mark.parametrize(
  'depth, depths, output_stride, norm, strides, dilations, firsts', (
    (18, (1, 1, 1, 2), 32, 'group', (1, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1)),
    (18, (1, 1, 1, 2), 16, 'batch', (1, 2, 2, 1), (1, 1, 1, 2), (1, 1, 1, 1)),
    (50, (1, 1, 2, 2), 8, 'batch', (1, 2, 1, 1), (1, 1, 2, 4), (1, 1, 1, 2)),
))  # fmt: skip
def test_against_pytorch(
  depth, depths, output_stride, norm, strides, dilations, firsts
):
  net = ResNet(depth, 8, output_stride, norm=norm, depths=depths)
  x = images()
  variables = t.random_variables(net, x, False)
  maps = jax.jit(lambda *a: net.apply(*a, False))(variables, x)
  wanted = torch_layers.resnet(
    torch_layers.Net(variables['params'], variables.get('batch_stats')),
    t.to_torch(x), depths, strides, dilations, firsts,
  )  # fmt: skip
  for got, layer in zip(maps, wanted, strict=True):
    assert_allclose(got, t.from_torch(layer), atol=1e-4)


@pytest.mark.parametrize('depth', (18, 50))
def test_dilation_fills_in_between(depth):
  """Without stride, every pixel of the strided map is found again."""
  net = lambda stride: ResNet(
    depth, 8, stride, norm='frozen', depths=(1, 1, 1, 2)
  )
  x = images(64)
  variables = t.random_variables(net(8), x, False)
  run = lambda stride: jax.jit(net(stride).apply)(variables, x, False)
  dense, strided = run(8), run(32)
  for got, wanted, step in zip(dense, strided, (1, 1, 2, 4), strict=True):
    assert_allclose(got[:, ::step, ::step], wanted, atol=1e-4)


@t.needed
def test_multi_grid():
  """(1, 2, 4) times the dilation of stage 4 (Chen et al. 2017, 3.1)."""
  net = ResNet(18, 8, 16, (1, 2), 'batch', depths=(1, 1, 1, 2))
  x = images()
  variables = t.random_variables(net, x, False)
  maps = jax.jit(lambda *a: net.apply(*a, False))(variables, x)
  tree = torch_layers.Net(variables['params'], variables['batch_stats'])
  y = t.to_torch(maps[2])
  y = torch_layers.residual(tree['layer4_block0'], y, 1, 1, 2)
  y = torch_layers.residual(tree['layer4_block1'], y, 1, 4, 4)
  assert_allclose(maps[3], t.from_torch(y), atol=1e-4)


def test_batch_statistics():
  """Used and averaged in training alone; never changed when frozen."""
  x = images()
  small = dict(depth=18, width=8, depths=(1,) * 4)
  variables = t.random_variables(ResNet(norm='batch', **small), x, False)

  def run(norm, train):
    net = ResNet(norm=norm, **small)
    apply = lambda v, x: net.apply(v, x, train, mutable=['batch_stats'])
    maps, changed = jax.jit(apply)(variables, x)
    return maps[-1], changed['batch_stats']

  used, same = run('batch', False)
  frozen, frozen_stats = run('frozen', True)
  trained, averaged = run('batch', True)
  old = variables['batch_stats']
  for stats in (same, frozen_stats):
    jax.tree.map(np.testing.assert_array_equal, stats, old)
  assert_allclose(frozen, used, atol=1e-6)
  assert np.abs(trained - used).max() > 0.1
  stem = jax.lax.conv_general_dilated(
    x, variables['params']['stem']['kernel'], (2, 2), ((3, 3), (3, 3)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  for name, batch in (
    ('mean', stem.mean((0, 1, 2))),
    ('var', stem.var((0, 1, 2))),
  ):
    wanted = 0.9 * old['norm_stem'][name] + 0.1 * batch
    assert_allclose(averaged['norm_stem'][name], wanted, atol=1e-5)
  assert 'batch_stats' not in shapes_of(ResNet(norm='group', **small))[1]


def test_initial_kernels():
  """He normal over the outputs, as torchvision."""
  block = BasicBlock(32, stride=2)
  init = jax.jit(block.init, static_argnums=2)
  params = init(jax.random.key(0), images(8, 64), True)['params']
  for name, size in (('conv1', 9 * 32), ('shortcut', 32)):
    std = params[name]['kernel'].std()
    assert std == pytest.approx((2 / size) ** 0.5, rel=0.05)


@pytest.mark.parametrize('changes, message', (
  ({'depth': 20}, 'depth is 20, must be one of 18, 34, 50, 101'),
  ({'output_stride': 4}, 'output_stride is 4, must be 8, 16 or 32'),
  ({'multi_grid': (1, 2)}, 'multi_grid has 2 factors, but stage 4 has 3'),
))  # fmt: skip
def test_refuses(changes, message):
  with pytest.raises(ValueError, match=message):
    shapes_of(ResNet(**changes))
