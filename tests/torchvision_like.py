"""Classifiers with torchvision's structure and key names, of any width.

They return the maps that segmenters read. Weights and running statistics are
random, so that no two layers could be exchanged unnoticed.
"""

import torch
import torch.nn.functional as F
from torch import nn


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
  """Draws every weight and statistic; in evaluation mode."""
  generator = torch.Generator().manual_seed(seed)
  draw = lambda x: torch.randn(x.shape, generator=generator)
  for name, x in module.state_dict().items():
    if name.endswith('num_batches_tracked'):
      x += 7
    elif name.endswith('running_var'):
      x.copy_(1 + 0.3 * draw(x).abs())
    elif x.ndim == 1:  # scales around 1 keep deep networks in range
      is_scale = name.endswith('weight')
      x.copy_(0.2 * draw(x) + is_scale)
    else:
      x.copy_(draw(x) * (2 / x[0].numel()) ** 0.5)
  return module.eval()


class VGG(nn.Module):
  """vgg16 and vgg16_bn; returns the maps after each pooling."""

  def __init__(self, width: int, norm: bool, hidden: int):
    super().__init__()
    layers, inputs = [], 3
    for factors in ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8)):
      for factor in factors:
        layers.append(nn.Conv2d(inputs, factor * width, 3, padding=1))
        inputs = factor * width
        layers += [nn.BatchNorm2d(inputs)] if norm else []
        layers.append(nn.ReLU())
      layers.append(nn.MaxPool2d(2, 2))
    self.features = nn.Sequential(*layers)
    dense = [nn.Linear(inputs * 49, hidden), nn.ReLU(), nn.Dropout()]
    dense += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()]
    self.classifier = nn.Sequential(*dense, nn.Linear(hidden, 10))

  def forward(self, x):
    maps = []
    for layer in self.features:
      x = layer(x)
      if isinstance(layer, nn.MaxPool2d):
        maps.append(x)
    return maps


class Block(nn.Module):
  """Basic or bottleneck residual block."""

  def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
    super().__init__()
    out = width * 4 if bottleneck else width
    sides = (1, 3, 1) if bottleneck else (3, 3)
    strides = (1, stride, 1) if bottleneck else (stride, 1)
    channels = (inputs, width, width, out) if bottleneck else (inputs, out, out)
    self.count = len(sides)
    for i, (k, s) in enumerate(zip(sides, strides, strict=True)):
      conv = nn.Conv2d(channels[i], channels[i + 1], k, s, k // 2, bias=False)
      setattr(self, f'conv{i + 1}', conv)
      setattr(self, f'bn{i + 1}', nn.BatchNorm2d(channels[i + 1]))
    self.downsample = None
    if stride > 1 or inputs != out:
      conv = nn.Conv2d(inputs, out, 1, stride, bias=False)
      self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

  def forward(self, x):
    y = x
    for i in range(1, self.count + 1):
      y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
      y = F.relu(y) if i < self.count else y
    return F.relu(y + (self.downsample(x) if self.downsample else x))


class ResNet(nn.Module):
  """resnet18 to resnet101; returns the maps after each stage."""

  def __init__(self, width: int, depths: tuple[int, ...], bottleneck: bool):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    inputs = width
    for i, depth in enumerate(depths):
      blocks = []
      for j in range(depth):
        stride = 2 if i and not j else 1
        blocks.append(Block(inputs, width * 2**i, stride, bottleneck))
        inputs = width * 2**i * (4 if bottleneck else 1)
      setattr(self, f'layer{i + 1}', nn.Sequential(*blocks))
    self.fc = nn.Linear(inputs, 10)

  def forward(self, x):
    x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
    maps = []
    for i in range(1, 5):
      x = getattr(self, f'layer{i}')(x)
      maps.append(x)
    return maps


def conv_norm(inputs, out, k=1, stride=1, groups=1):
  """Convolution, normalisation, ReLU6."""
  conv = nn.Conv2d(inputs, out, k, stride, k // 2, groups=groups, bias=False)
  return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


class InvertedResidual(nn.Module):
  """MobileNetV2's block."""

  def __init__(
    self, inputs: int, out: int, stride: int, expand: int, residual: bool
  ):
    super().__init__()
    hidden = inputs * expand
    layers = [conv_norm(inputs, hidden)] if expand > 1 else []
    layers.append(conv_norm(hidden, hidden, 3, stride, groups=hidden))
    layers += [nn.Conv2d(hidden, out, 1, bias=False), nn.BatchNorm2d(out)]
    self.conv = nn.Sequential(*layers)
    # In a narrow network the first of a stage may keep its channels, too.
    self.residual = residual

  def forward(self, x):
    return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
  """mobilenet_v2; returns the maps after every block, then the head's."""

  # Expansion, channels, blocks, stride of the first (Sandler et al., table 2).
  TABLE = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
    (6, 160, 3, 2), (6, 320, 1, 1),
  )  # fmt: skip

  def __init__(self, channels):
    """channels: of a published number of channels, those to use."""
    super().__init__()
    inputs = channels(32)
    layers = [conv_norm(3, inputs, 3, 2)]
    for expand, out, blocks, stride in self.TABLE:
      for i in range(blocks):
        layers.append(
          InvertedResidual(
            inputs, channels(out), 1 if i else stride, expand, i > 0
          )
        )
        inputs = channels(out)
    layers.append(conv_norm(inputs, channels(1280)))
    self.features = nn.Sequential(*layers)
    self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(channels(1280), 10))

  def forward(self, x):
    maps = []
    for layer in self.features:
      x = layer(x)
      maps.append(x)
    return maps
