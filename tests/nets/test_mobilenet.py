"""MobileNetV2: the paper's table, torchvision's numbers, dilation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
import torch_layers
from numpy.testing import assert_allclose

from jaxseg.nets.mobilenet import MobileNetV2, scaled


def shapes_of(net, size=64, channels=3):
  """Shapes of (maps, variables), nothing computed."""
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  run = lambda x: net.init_with_output(jax.random.key(0), x, True)
  return jax.eval_shape(run, x)


def images(size=32):
  x = np.random.default_rng(1).normal(size=(2, size, size, 1))
  return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize('norm', ('batch', 'group'))
def test_published_parameters(norm):
  _, variables = shapes_of(MobileNetV2(norm=norm))
  count = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  # torchvision's features, less its last convolution with batch norm.
  assert count == 2_223_872 - (320 * 1280 + 2 * 1280)


@pytest.mark.parametrize('output_stride, strides', (
  (32, (4, 8, 16, 32)), (16, (4, 8, 16, 16)), (8, (4, 8, 8, 8)),
))  # fmt: skip
@pytest.mark.parametrize('size', (64, 70))
def test_shapes(output_stride, strides, size):
  maps, _ = shapes_of(MobileNetV2(output_stride=output_stride), size)
  for x, stride, features in zip(maps, strides, (24, 32, 96, 320), strict=True):
    side = -(-size // stride)
    assert x.shape == (2, side, side, features)


def test_blocks():
  """Table 2: 17 blocks; the first has nothing to expand."""
  params = shapes_of(MobileNetV2())[1]['params']
  expand, project = [], []
  for i in range(1, 18):
    block = params[f'block{i}']
    kernel = block.get('expand', {}).get('kernel')
    expand.append(kernel.shape[-1] if kernel is not None else None)
    project.append(block['project']['kernel'].shape[-1])
    assert block['depthwise']['kernel'].shape[:3] == (3, 3, 1)
  assert project == [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + (
    [160] * 3 + [320]
  )
  assert expand == [None, *(6 * f for f in project[:-1])]


@t.needed
@pytest.mark.parametrize('norm', ('batch', 'group'))
def test_against_pytorch(norm):
  net = MobileNetV2(8, 8, norm)
  x = images()
  variables = t.random_variables(net, x, False)
  maps = jax.jit(lambda *a: net.apply(*a, False))(variables, x)
  tree = torch_layers.Net(variables['params'], variables.get('batch_stats'))
  y = tree.conv('stem', t.to_torch(x), stride=2, padding=1)
  y = t.F.relu6(tree.norm('norm_stem', y))
  wanted = []
  for i in range(1, 18):
    # Strides 16 and 32 would begin at blocks 7 and 14.
    stride = 2 if i in (2, 4) else 1
    dilation = 1 if i <= 7 else 2 if i <= 14 else 4
    first = i in (1, 2, 4, 7, 11, 14, 17)
    block = tree[f'block{i}']
    y = torch_layers.inverted_residual(block, y, stride, dilation, first)
    if i in (3, 6, 13, 17):
      wanted.append(t.from_torch(y))
  for got, layer in zip(maps, wanted, strict=True):
    scale = max(1, np.abs(layer).max())
    assert_allclose(got / scale, layer / scale, atol=2e-5)


def test_dilation_fills_in_between():
  """Without stride, every pixel of the strided map is found again."""
  x = images()
  net = lambda stride: MobileNetV2(8, stride, 'frozen')
  variables = t.random_variables(net(8), x, False)
  run = lambda stride: jax.jit(net(stride).apply)(variables, x, False)
  dense, strided = run(8)[-1], run(32)[-1]
  scale = np.abs(strided).max()
  assert_allclose(dense[:, ::4, ::4] / scale, strided / scale, atol=2e-5)


def test_width_keeps_multiples_of_eight():
  """Not under 90 %: a quarter of 24 is 8, of 96 24, of 160 40."""
  assert [scaled(c, 16) for c in (16, 24, 96, 160)] == [8, 8, 24, 40]
  assert scaled(24, 48) == 24 and scaled(320, 64) == 320


def test_refuses_other_strides():
  with pytest.raises(ValueError, match='output_stride is 4, must be 8, 16'):
    shapes_of(MobileNetV2(output_stride=4))
