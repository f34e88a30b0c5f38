"""ResNet and MobileNetV2 once more, in PyTorch, on the variables of Flax.

Written from the papers' tables, one function a layer, so that it shares nothing
with the networks under test but the names of their variables.
"""

import math

from torch_functions import F as functional
from torch_functions import tensor


class Net:
  """Layers by name: a view of the variables of one module."""

  def __init__(self, params, stats=None):
    self.params, self.stats = params, stats or {}

  def __getitem__(self, name):
    return Net(self.params[name], self.stats.get(name))

  def __contains__(self, name):
    return name in self.params

  def conv(self, name, x, **kwargs):
    kernel = tensor(self.params[name]['kernel']).permute(3, 2, 0, 1)
    bias = self.params[name].get('bias')
    bias = None if bias is None else tensor(bias)
    return functional.conv2d(x, kernel, bias, **kwargs)

  def norm(self, name, x):
    """Batch norm in use; without statistics, groups of up to 8 channels."""
    own = self.params[name]
    scale, bias = tensor(own['scale']), tensor(own['bias'])
    if name not in self.stats:
      groups = x.shape[1] // math.gcd(8, x.shape[1])
      return functional.group_norm(x, groups, scale, bias, 1e-6)
    stats = self.stats[name]
    mean, var = tensor(stats['mean']), tensor(stats['var'])
    return functional.batch_norm(x, mean, var, scale, bias, eps=1e-5)


def resnet(net, x, depths, strides, dilations, first_dilations):
  """The outputs of the four stages; dilations of each stage's 3x3."""
  x = net.norm('norm_stem', net.conv('stem', x, stride=2, padding=3))
  x = functional.max_pool2d(functional.relu(x), 3, 2, 1)
  maps = []
  for s in range(4):
    for j in range(depths[s]):
      stride, before = (strides[s], first_dilations[s]) if j == 0 else (1, None)
      block = net[f'layer{s + 1}_block{j}']
      x = residual(block, x, stride, before or dilations[s], dilations[s])
    maps.append(x)
  return maps


def residual(net, x, stride, before, after):
  """Bottleneck if there is a third convolution, else a basic block."""
  relu = functional.relu
  wide = dict(stride=stride, padding=before, dilation=before)
  if 'conv3' in net:
    y = relu(net.norm('norm1', net.conv('conv1', x)))
    y = relu(net.norm('norm2', net.conv('conv2', y, **wide)))
    y = net.norm('norm3', net.conv('conv3', y))
  else:
    y = relu(net.norm('norm1', net.conv('conv1', x, **wide)))
    y = net.norm('norm2', net.conv('conv2', y, padding=after, dilation=after))
  if 'shortcut' in net:
    x = net.norm('norm_shortcut', net.conv('shortcut', x, stride=stride))
  return relu(x + y)


def inverted_residual(net, x, stride, dilation, is_first):
  """MobileNetV2's block; the first of a stage has no identity."""
  y = x
  if 'expand' in net:
    y = functional.relu6(net.norm('norm_expand', net.conv('expand', y)))
  y = net.conv(
    'depthwise', y, stride=stride, padding=dilation, dilation=dilation,
    groups=y.shape[1],
  )  # fmt: skip
  y = functional.relu6(net.norm('norm_depthwise', y))
  y = net.norm('norm_project', net.conv('project', y))
  return y if is_first else x + y
