"""StyleGAN2 once more: PyTorch's functions on arrays by StyleGAN2-ADA's keys.

Written from the papers (Karras et al. 2020, appendix B; Li et al. 2021, section
3.1), so that it shares nothing with the networks under test but the layout of
the files. `as_ada` gives arrays of rosinality's layout the same keys.
"""

import math
import re

import numpy as np
from torch_functions import F, tensor, torch

BINOMIAL = np.outer((1, 3, 3, 1), (1, 3, 3, 1)).astype(np.float32) / 64


class Layers:
  """Layers by name, their weights scaled as they are used."""

  def __init__(self, arrays, clamp=0.0):
    self.arrays, self.limit = arrays, clamp

  def __contains__(self, key):
    return key in self.arrays

  def get(self, key):
    return tensor(self.arrays[key])

  def clamp(self, x):
    return x.clamp(-self.limit, self.limit) if self.limit else x

  def weight(self, name, factor=1.0):
    weight = self.get(f'{name}.weight')
    return weight * (factor / math.sqrt(weight[0].numel()))

  def linear(self, name, x, factor=1.0):
    bias = self.get(f'{name}.bias') * factor
    return F.linear(x, self.weight(name, factor), bias)

  def act(self, name, x):
    """Bias, leaky ReLU of unit variance, clamp."""
    bias = self.get(f'{name}.bias')
    x = F.leaky_relu(x + bias.reshape(1, -1, 1, 1), 0.2) * math.sqrt(2)
    return self.clamp(x)

  def modulated(self, name, x, w, demodulate, up=False):
    """Each image with a kernel of its own, as the paper has it."""
    style = self.linear(f'{name}.affine', w)
    kernels = self.weight(name)[None] * style[:, None, :, None, None]
    if demodulate:
      power = kernels.square().sum((2, 3, 4), keepdim=True)
      kernels = kernels * (power + 1e-8).rsqrt()
    pad = kernels.shape[-1] // 2
    images = []
    for image, kernel in zip(x, kernels, strict=True):
      if up:
        y = F.conv_transpose2d(image[None], kernel.transpose(0, 1), stride=2)
        images.append(filtered(y, (1, 1), 4))
      else:
        images.append(F.conv2d(image[None], kernel, padding=pad))
    return torch.cat(images)


def filtered(x, pad, gain=1.0):
  """Every channel by the filter of both axes; `pad` before and after."""
  kernel = gain * tensor(BINOMIAL).expand(x.shape[1], 1, 4, 4)
  return F.conv2d(F.pad(x, pad * 2), kernel, groups=x.shape[1])


def doubled(x):
  """Zeros between the pixels, then the filter."""
  n, channels, height, width = x.shape
  y = x.new_zeros(n, channels, 2 * height, 2 * width)
  y[:, :, ::2, ::2] = x
  return filtered(y, (2, 1), 4)


def mapping(arrays, z):
  """[N, D] -> w [N, D]."""
  net, i = Layers(arrays), 0
  x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
  while f'mapping.fc{i}.weight' in net:
    x = F.leaky_relu(net.linear(f'mapping.fc{i}', x, 0.01), 0.2)
    x, i = x * math.sqrt(2), i + 1
  return x


def generator(arrays, w_plus, clamp=0.0):
  """[N, L, D] -> (image [N, C, R, R], logits or None), with stored noise."""
  net = Layers(arrays, clamp)
  x = net.get('synthesis.b4.const').expand(len(w_plus), -1, -1, -1)
  side, place, outputs = 4, 0, {'torgb': 0.0, 'toseg': 0.0}
  while f'synthesis.b{side}.conv1.weight' in net:
    block = f'synthesis.b{side}'
    for part in ('conv0', 'conv1')[side == 4 :]:
      name, up = f'{block}.{part}', part == 'conv0'
      x = net.modulated(name, x, w_plus[:, place], True, up)
      if f'{name}.noise_const' in net:
        strength = net.get(f'{name}.noise_strength')
        x = x + strength * net.get(f'{name}.noise_const')
      x, place = net.act(name, x), place + 1
    for part in outputs:
      name = f'{block}.{part}'
      if f'{name}.weight' in net:
        y = net.modulated(name, x, w_plus[:, place], False)
        y = y + net.get(f'{name}.bias')[:, None, None]
        y = net.clamp(y) if part == 'torgb' else y
        outputs[part] = y + (doubled(outputs[part]) if side > 4 else 0)
    side *= 2
  logits = outputs['toseg']
  return outputs['torgb'], None if isinstance(logits, float) else logits


def discriminator(arrays, x, clamp=0.0, group=4):
  """[N, C, R, R] -> [N]."""
  net, side = Layers(arrays, clamp), x.shape[-1]
  x = net.act(f'b{side}.fromrgb', F.conv2d(x, net.weight(f'b{side}.fromrgb')))
  while side > 4:
    name = f'b{side}'
    y = F.conv2d(x, net.weight(f'{name}.conv0'), padding=1)
    y = filtered(net.act(f'{name}.conv0', y), (2, 2))
    y = F.conv2d(y, net.weight(f'{name}.conv1'), stride=2)
    y = net.act(f'{name}.conv1', y)
    x = F.conv2d(filtered(x, (1, 1)), net.weight(f'{name}.skip'), stride=2)
    x, side = (y + x) / math.sqrt(2), side // 2
  # Image i is of group i modulo their number.
  n, features = len(x), []
  count = n // min(n, group)
  for i in range(n):
    deviation = (x[i % count :: count].var(0, unbiased=False) + 1e-8).sqrt()
    features.append(deviation.mean().expand(1, 1, 4, 4))
  x = F.conv2d(
    torch.cat([x, torch.cat(features)], 1), net.weight('b4.conv'), padding=1
  )
  x = net.linear('b4.fc', net.act('b4.conv', x).flatten(1))
  return net.linear('b4.out', F.leaky_relu(x, 0.2) * math.sqrt(2))[:, 0]


def as_ada(arrays):
  """A generator or D_r of rosinality's layout under StyleGAN2-ADA's keys."""
  found = {}
  blocks = 1 + sum(key.endswith('conv1.0.weight') for key in arrays)
  for key, x in arrays.items():
    name = key
    for pattern, new in RENAMED:
      place = lambda m, new=new: new(m, 4 * 2 ** (blocks - 1))
      name, count = re.subn(pattern, place, name)
      if count:
        break
    for old, new in LAYERS:
      name = re.sub(old, new, name)
    if key == 'input.input' or key.endswith('.conv.weight'):
      x = x[0]
    elif key.endswith('noise.weight') or re.match('to_.*bias$', key):
      x = x.reshape(-1) if key.endswith('bias') else x[0]
    elif key.startswith('noises'):
      x = x[0, 0]
    found[name] = x
  return found


def _side(i):
  return 4 * 2 ** ((i + 1) // 2)


RENAMED = (
  (r'^style\.(\d+)', lambda m, _: f'mapping.fc{int(m[1]) - 1}'),
  (r'^input\.input$', lambda *_: 'synthesis.b4.const'),
  (r'^noises\.noise_(\d+)$', lambda m, _: (
    f'synthesis.b{_side(int(m[1]))}.conv{int(m[1]) % 2 ^ 1}.noise_const')),
  (r'^conv1\.', lambda *_: 'synthesis.b4.conv1.'),
  (r'^convs\.(\d+)\.(?=conv\.|noise|activate)', lambda m, _: (
    f'synthesis.b{_side(int(m[1]) + 1)}.conv{int(m[1]) % 2}.')),
  (r'^to_(rgb|seg)1\.', lambda m, _: f'synthesis.b4.to{m[1]}.'),
  (r'^to_(rgb|seg)s\.(\d+)\.', lambda m, _: (
    f'synthesis.b{8 * 2 ** int(m[2])}.to{m[1]}.')),
  (r'^convs\.0\.\d', lambda m, side: f'b{side}.fromrgb'),
  (r'^convs\.(\d+)\.conv1\.\d', lambda m, side: (
    f'b{side * 2 // 2 ** int(m[1])}.conv0')),
  (r'^convs\.(\d+)\.conv2\.\d', lambda m, side: (
    f'b{side * 2 // 2 ** int(m[1])}.conv1')),
  (r'^convs\.(\d+)\.skip\.\d', lambda m, side: (
    f'b{side * 2 // 2 ** int(m[1])}.skip')),
  (r'^final_conv\.\d', lambda *_: 'b4.conv'),
  (r'^final_linear\.0', lambda *_: 'b4.fc'),
  (r'^final_linear\.1', lambda *_: 'b4.out'),
)  # fmt: skip
LAYERS = (
  (r'\.conv\.modulation\.', '.affine.'),
  (r'\.noise\.weight$', '.noise_strength'),
  (r'\.activate\.bias$', '.bias'),
  (r'^(synthesis.*)\.conv\.weight$', r'\1.weight'),
)
