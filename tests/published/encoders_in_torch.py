"""Published encoders once more: PyTorch's functions on arrays by their keys.

Written from the papers, so that it shares nothing with the networks under test
but the layout of the files.
"""

import math

from encoder_layouts import BINOMIAL, level
from torch_functions import F, tensor, torch


class Weights:
  """Layers by the names of a state dict."""

  def __init__(self, arrays):
    self.arrays = arrays

  def __contains__(self, key):
    return key in self.arrays

  def get(self, key):
    return tensor(self.arrays[key]) if key in self else None

  def norm(self, name, x):
    parts = ('running_mean', 'running_var', 'weight', 'bias')
    return F.batch_norm(x, *(self.get(f'{name}.{part}') for part in parts))

  def conv(self, name, x, stride=1, padding=0):
    weight, bias = self.get(f'{name}.weight'), self.get(f'{name}.bias')
    return F.conv2d(x, weight, bias, stride, padding)

  def equal_linear(self, name, x):
    weight, bias = self.get(f'{name}.weight'), self.get(f'{name}.bias')
    return F.linear(x, weight / math.sqrt(weight.shape[1]), bias)

  def equal_conv(self, name, x, stride=1, padding=0):
    weight = self.get(f'{name}.weight')
    scale = 1 / math.sqrt(weight[0].numel())
    return F.conv2d(x, weight * scale, None, stride, padding)


def unit(net, name, x, stride):
  """Residual unit of the face recogniser."""
  y = net.norm(f'{name}.res_layer.0', x)
  y = net.conv(f'{name}.res_layer.1', y, 1, 1)
  y = F.prelu(y, net.get(f'{name}.res_layer.2.weight'))
  y = net.conv(f'{name}.res_layer.3', y, stride, 1)
  y = net.norm(f'{name}.res_layer.4', y)
  if f'{name}.res_layer.5.fc1.weight' in net:
    z = F.adaptive_avg_pool2d(y, 1)
    z = F.relu(net.conv(f'{name}.res_layer.5.fc1', z))
    y = y * net.conv(f'{name}.res_layer.5.fc2', z).sigmoid()
  if f'{name}.shortcut_layer.0.weight' not in net:
    return y + F.max_pool2d(x, 1, stride)
  x = net.conv(f'{name}.shortcut_layer.0', x, stride)
  return y + net.norm(f'{name}.shortcut_layer.1', x)


def head(net, name, x):
  """One style."""
  i = 0
  while f'{name}.convs.{i}.weight' in net:
    x, i = F.leaky_relu(net.conv(f'{name}.convs.{i}', x, 2, 1), 0.01), i + 2
  assert x.shape[2:] == (1, 1)
  return net.equal_linear(f'{name}.linear', x[:, :, 0, 0])


def psp(arrays, x, units, is_e4e=False):
  """[N, C, R, R] -> [N, L, w_dim]."""
  net = Weights(arrays)
  x = net.norm('input_layer.1', net.conv('input_layer.0', x, 1, 1))
  x = F.prelu(x, net.get('input_layer.2.weight'))
  stages, n = [], 0
  for count in units:
    for j in range(count):
      x, n = unit(net, f'body.{n}', x, 1 if j else 2), n + 1
    stages.append(x)

  def add(coarse, fine):
    size = fine.shape[2:]
    return fine + F.interpolate(
      coarse, size=size, mode='bilinear', align_corners=True
    )

  medium = add(x, net.conv('latlayer1', stages[2]))
  maps = x, medium, add(medium, net.conv('latlayer2', stages[1]))
  styles = []
  while f'styles.{len(styles)}.linear.weight' in net:
    i = len(styles)
    style = head(net, f'styles.{i}', maps[level(i)])
    styles.append(style + styles[0] if is_e4e and i else style)
  return torch.stack(styles, 1)


def residual(arrays, x, w_dim, last):
  """[N, C, R, R] -> [N, L, w_dim], N up to 4."""
  net = Weights(arrays)

  def act(x, bias):
    x = x + net.get(bias)[:, None, None]
    return F.leaky_relu(x, 0.2) * math.sqrt(2)

  def blur(x, pad):
    kernel = tensor(BINOMIAL).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(F.pad(x, [pad] * 4), kernel, groups=x.shape[1])

  x, i = act(net.equal_conv('convs.0.0', x), 'convs.0.1.bias'), 1
  while f'convs.{i}.skip.1.weight' in net:
    name = f'convs.{i}'
    y = act(net.equal_conv(f'{name}.conv1.0', x, 1, 1), f'{name}.conv1.1.bias')
    y = net.equal_conv(f'{name}.conv2.1', blur(y, 2), 2)
    y = act(y, f'{name}.conv2.2.bias')
    skip = net.equal_conv(f'{name}.skip.1', blur(x, 1), 2)
    x, i = (y + skip) / math.sqrt(2), i + 1
  deviation = (x.var(0, unbiased=False) + 1e-8).sqrt().mean()
  x = torch.cat([x, deviation.expand(len(x), 1, 4, 4)], 1)
  x = act(net.equal_conv('final_conv.0', x, 1, 1), 'final_conv.1.bias')
  x = net.equal_linear(last, x.flatten(1))
  return x.reshape(len(x), -1, w_dim)
