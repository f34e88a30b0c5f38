"""jaxseg's networks once more, in eager PyTorch, layer for layer.

Written from the papers that `jaxseg.nets` names, for speed comparisons only.
Arguments, parameter names and numbers are those of `jaxseg.nets`, arrays are
NCHW in channels-last memory. Where eager PyTorch can save a pass over the
activations (gains folded into kernels, a filter that only computes what stride
2 keeps), it does.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_layers import (
  SQRT2,
  Conv,
  EqualConv,
  EqualDense,
  GroupNorm,
  ModulatedConv,
  SpectralConv,
  minibatch_stddev,
  parameter,
  upsample2d,
)
from jaxseg.nets import lpips
from jaxseg.nets.encoder import num_convs_to_pixel
from jaxseg.nets.stylegan2 import channels_at, noise_shapes, num_latents


class StyledConv(nn.Module):
  """Modulated convolution, noise, bias, leaky ReLU."""

  def __init__(self, inputs: int, features: int, w_dim: int, **options: Any):
    super().__init__()
    self.conv = ModulatedConv(inputs, features, w_dim, **options)
    self.noise_strength, self.bias = parameter(), parameter(features)

  def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    x = self.conv(x, w, self.bias * SQRT2, SQRT2)
    x = x + (self.noise_strength * SQRT2 * noise).to(x.dtype)
    return F.leaky_relu(x, 0.2)


class ToOutput(nn.Module):
  """1x1 modulated convolution without demodulation."""

  def __init__(
    self, inputs: int, features: int, w_dim: int, dtype: torch.dtype
  ):
    super().__init__()
    self.conv = ModulatedConv(
      inputs, features, w_dim, 1, demodulate=False, dtype=dtype
    )
    self.bias = parameter(features)

  def forward(self, x: Tensor, w: Tensor) -> Tensor:
    return self.conv(x, w, self.bias).float()


class MappingNetwork(nn.Module):
  """z -> w."""

  def __init__(self, w_dim: int, depth: int):
    super().__init__()
    self.depth = depth
    for i in range(depth):
      setattr(self, f'dense_{i}', EqualDense(w_dim, w_dim, 0.01, True))

  def forward(self, z: Tensor) -> Tensor:
    x = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + 1e-8)
    for i in range(self.depth):
      x = getattr(self, f'dense_{i}')(x)
    return x


class Generator(nn.Module):
  """Counterpart of `jaxseg.nets.stylegan2.Generator`."""

  def __init__(
    self,
    resolution: int,
    channels: int = 3,
    num_classes: int = 0,
    w_dim: int = 512,
    mapping_depth: int = 8,
    channel_multiplier: float = 2.0,
    channel_max: int = 512,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.resolution, self.w_dim = resolution, w_dim
    self.mapping_network = MappingNetwork(w_dim, mapping_depth)
    self.sizes = [2**i for i in range(2, int(math.log2(resolution)) + 1)]
    width = [
      channels_at(s, channel_multiplier, channel_max) for s in self.sizes
    ]
    self.const = parameter(width[0], 4, 4)
    self.conv_first = StyledConv(width[0], width[0], w_dim, dtype=dtype)
    for i, (before, after) in enumerate(zip(width, width[1:], strict=False)):
      up = StyledConv(before, after, w_dim, upsample=True, dtype=dtype)
      setattr(self, f'conv_up_{i}', up)
      setattr(self, f'conv_{i}', StyledConv(after, after, w_dim, dtype=dtype))
    for i, inputs in enumerate(width):
      setattr(self, f'to_rgb_{i}', ToOutput(inputs, channels, w_dim, dtype))
      setattr(self, f'to_seg_{i}', ToOutput(inputs, num_classes, w_dim, dtype))

  def mapping(self, z: Tensor) -> Tensor:
    """[N, D] -> [N, D]."""
    return self.mapping_network(z)

  def make_noise(self, n: int) -> list[Tensor]:
    """Noise maps [n, 1, h, w] on the parameters' device."""
    shapes = noise_shapes(self.resolution)
    return [torch.randn(n, 1, *s, device=self.const.device) for s in shapes]

  def forward(
    self, w_plus: Tensor, noise: Sequence[Tensor], label: bool = True
  ) -> tuple[Tensor, Tensor | None]:
    """[N, L, D] -> image [N, C, R, R], logits [N, K, R, R].

    Without `label` the label branch is left out, as XLA does where nothing
    uses its result.
    """
    x = self.const.expand(w_plus.shape[0], -1, -1, -1)
    x = self.conv_first(x, w_plus[:, 0], noise[0])
    image = self.to_rgb_0(x, w_plus[:, 1])
    logits = self.to_seg_0(x, w_plus[:, 1]) if label else None
    for i in range(len(self.sizes) - 1):
      first = 2 * i + 1
      up, conv = getattr(self, f'conv_up_{i}'), getattr(self, f'conv_{i}')
      x = up(x, w_plus[:, first], noise[first])
      x = conv(x, w_plus[:, first + 1], noise[first + 1])
      style = w_plus[:, first + 2]
      image = upsample2d(image) + getattr(self, f'to_rgb_{i + 1}')(x, style)
      if label:
        to_seg = getattr(self, f'to_seg_{i + 1}')
        logits = upsample2d(logits) + to_seg(x, style)
    return image, logits


class ResidualBlock(nn.Module):
  """Halves the size; 1 / sqrt(2) of the sum is folded into both branches."""

  def __init__(self, inputs: int, features: int, dtype: torch.dtype):
    super().__init__()
    self.conv1 = EqualConv(inputs, inputs, dtype=dtype)
    self.conv2 = EqualConv(
      inputs, features, downsample=True, gain=1.0, dtype=dtype
    )
    self.skip = EqualConv(
      inputs,
      features,
      1,
      downsample=True,
      bias=False,
      activate=False,
      gain=1 / SQRT2,
      dtype=dtype,
    )

  def forward(self, x: Tensor) -> Tensor:
    return self.conv2(self.conv1(x)) + self.skip(x)


class Discriminator(nn.Module):
  """Counterpart of `jaxseg.nets.stylegan2.Discriminator`."""

  def __init__(
    self,
    resolution: int,
    channels: int = 3,
    channel_multiplier: float = 2.0,
    channel_max: int = 512,
    stddev_group: int = 4,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    width = lambda size: channels_at(size, channel_multiplier, channel_max)
    self.resolution, self.stddev_group = resolution, stddev_group
    self.from_rgb = EqualConv(channels, width(resolution), 1, dtype=dtype)
    size = resolution
    while size > 4:
      block = ResidualBlock(width(size), width(size // 2), dtype)
      size //= 2
      setattr(self, f'block_{size}', block)
    self.conv_last = EqualConv(width(4) + 1, width(4), dtype=dtype)
    self.dense = EqualDense(16 * width(4), width(4), activate=True)
    self.score = EqualDense(width(4), 1)

  def features(self, image: Tensor) -> list[Tensor]:
    """The output of each residual block, the first convolution's before."""
    x, size = self.from_rgb(image), self.resolution
    outputs = [x]
    while size > 4:
      size //= 2
      outputs.append(getattr(self, f'block_{size}')(outputs[-1]))
    return outputs

  def forward(self, image: Tensor) -> Tensor:
    """[N, C, R, R] -> [N]."""
    x = minibatch_stddev(self.features(image)[-1].float(), self.stddev_group)
    x = self.conv_last(x).float()
    # Rows, columns, channels: jaxseg's order, and that of the memory.
    return self.score(self.dense(x.permute(0, 2, 3, 1).flatten(1)))[:, 0]


class PatchDiscriminator(nn.Module):
  """Five layers over overlapping patches."""

  def __init__(self, inputs: int, width: int, dtype: torch.dtype):
    super().__init__()
    self.layer0 = Conv(inputs, width, 4, 2, 2, dtype=dtype)
    for i, stride in enumerate((2, 2, 1), start=1):
      layer = SpectralConv(width * 2 ** (i - 1), width * 2**i, stride, dtype)
      setattr(self, f'layer{i}', layer)
    self.layer4 = Conv(8 * width, 1, 4, 1, 2, dtype=dtype)

  def forward(self, x: Tensor, update: bool) -> list[Tensor]:
    outputs = [F.leaky_relu(self.layer0(x), 0.2)]
    for layer in (self.layer1, self.layer2, self.layer3):
      x = layer(outputs[-1], update)
      x = F.instance_norm(x.float(), eps=1e-5).to(x.dtype)
      outputs.append(F.leaky_relu(x, 0.2))
    return [*outputs, self.layer4(outputs[-1]).float()]


class MultiscaleDiscriminator(nn.Module):
  """Counterpart of `jaxseg.nets.discriminators.MultiscaleDiscriminator`."""

  def __init__(
    self,
    inputs: int,
    num_scales: int = 3,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.num_scales = num_scales
    for i in range(num_scales):
      setattr(self, f'scale_{i}', PatchDiscriminator(inputs, width, dtype))

  def forward(
    self, image: Tensor, label: Tensor, update: bool = False
  ) -> list[list[Tensor]]:
    """The outputs of 5 layers for each scale, fine to coarse."""
    x, outputs = torch.cat([image, label], 1), []
    for i in range(self.num_scales):
      outputs.append(getattr(self, f'scale_{i}')(x, update))
      x = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    return outputs


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1, beside the identity or a 1x1 convolution."""

  def __init__(self, inputs: int, width: int, stride: int, dtype: torch.dtype):
    super().__init__()
    out = 4 * width
    plan = [(inputs, width, 1, 1), (width, width, 3, stride)]
    plan.append((width, out, 1, 1))
    self.project = inputs != out or stride != 1
    if self.project:
      plan.append((inputs, out, 1, stride))
    for i, (before, after, k, s) in enumerate(plan, start=1):
      conv = Conv(before, after, k, s, bias=False, dtype=dtype)
      setattr(self, f'conv{i % 4}', conv)
      setattr(self, f'norm{i % 4}', GroupNorm(after))

  def forward(self, x: Tensor) -> Tensor:
    y = F.relu(self.norm1(self.conv1(x)))
    y = F.relu(self.norm2(self.conv2(y)))
    y = self.norm3(self.conv3(y))
    if self.project:
      x = self.norm0(self.conv0(x))
    return F.relu(x + y)


class FeaturePyramid(nn.Module):
  """ResNet bottom-up, then sums top-down."""

  def __init__(
    self,
    channels: int,
    width: int,
    depths: Sequence[int],
    features: int,
    dtype: torch.dtype,
  ):
    super().__init__()
    self.stem = Conv(channels, width, 7, 2, bias=False, dtype=dtype)
    self.norm_stem = GroupNorm(width)
    self.depths, inputs = depths, width
    for i, depth in enumerate(depths):
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        block = Bottleneck(inputs, width * 2**i, stride, dtype)
        setattr(self, f'stage{i}_block{j}', block)
        inputs = 4 * width * 2**i
    self.top = Conv(inputs, features, 1, dtype=dtype)
    for i in (0, 1, 2):
      lateral = Conv(4 * width * 2**i, features, 1, dtype=dtype)
      setattr(self, f'lateral{i + 2}', lateral)
      setattr(self, f'smooth{i + 2}', Conv(features, features, dtype=dtype))

  def forward(self, x: Tensor) -> list[Tensor]:
    x = F.relu(self.norm_stem(self.stem(x)))
    x = F.max_pool2d(x, 3, 2, 1)
    bottom_up = []
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        x = getattr(self, f'stage{i}_block{j}')(x)
      bottom_up.append(x)
    top_down, pyramid = self.top(x), []
    for i in (2, 1, 0):
      lateral = getattr(self, f'lateral{i + 2}')(bottom_up[i])
      top_down = lateral + F.interpolate(
        top_down, lateral.shape[2:], mode='bilinear'
      )
      pyramid.append(getattr(self, f'smooth{i + 2}')(top_down).float())
    return pyramid[::-1]


class StyleHead(nn.Module):
  """Strided convolutions down to one pixel, then a dense layer."""

  def __init__(self, features: int, w_dim: int, depth: int, dtype: torch.dtype):
    super().__init__()
    self.depth = depth
    for i in range(depth):
      setattr(self, f'conv{i}', Conv(features, features, 3, 2, dtype=dtype))
    self.dense = EqualDense(features, w_dim)

  def forward(self, x: Tensor) -> Tensor:
    for i in range(self.depth):
      x = F.leaky_relu(getattr(self, f'conv{i}')(x), 0.01)
    return self.dense(x.float().flatten(1))


class Encoder(nn.Module):
  """Counterpart of `jaxseg.nets.encoder.Encoder` with group norm."""

  def __init__(
    self,
    resolution: int,
    channels: int = 3,
    w_dim: int = 512,
    width: int = 64,
    depths: Sequence[int] = (3, 4, 6, 3),
    features: int = 512,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.pyramid = FeaturePyramid(channels, width, depths, features, dtype)
    self.num_latents = num_latents(resolution)
    for i in range(self.num_latents):
      depth = num_convs_to_pixel(resolution // 2 ** (4 - self.level(i)))
      setattr(self, f'style{i}', StyleHead(features, w_dim, depth, dtype))

  @staticmethod
  def level(i: int) -> int:
    """Which of p4, p3, p2 style i is read from."""
    return 0 if i < 3 else 1 if i < 7 else 2

  def forward(self, image: Tensor) -> Tensor:
    """[N, C, R, R] -> [N, L, D]."""
    maps = self.pyramid(image)[::-1]
    styles = range(self.num_latents)
    return torch.stack(
      [getattr(self, f'style{i}')(maps[self.level(i)]) for i in styles], 1
    )


class PerceptualVGG(nn.Module):
  """Counterpart of `jaxseg.nets.lpips`: features and distance."""

  def __init__(self):
    super().__init__()
    widths = sum(lpips.GROUPS, ())
    self.convs = nn.ModuleList(
      Conv(i, o) for i, o in zip((3, *widths), widths, strict=False)
    )
    self.lin = nn.ParameterList(parameter(g[-1]) for g in lpips.GROUPS)
    for name in ('shift', 'scale'):
      value = torch.tensor(getattr(lpips, name.upper()))[:, None, None]
      self.register_buffer(name, value, persistent=False)

  def features(self, image: Tensor) -> list[Tensor]:
    """[N, 3, R, R] -> 5 maps of unit vectors."""
    x = (image - self.shift) / self.scale
    convs, maps = iter(self.convs), []
    for i, group in enumerate(lpips.GROUPS):
      if i > 0 and min(x.shape[2:]) > 1:
        x = F.max_pool2d(x, 2)
      for _ in group:
        x = F.relu(next(convs)(x))
      power = x.square().sum(1, keepdim=True)
      maps.append(x * torch.rsqrt(power + 1e-20))
    return maps

  def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """[N]."""
    return sum(
      F.conv2d((x - y).square(), lin[None, :, None, None]).mean((1, 2, 3))
      for lin, x, y in zip(self.lin, a, b, strict=True)
    )


class PerceptualDiscriminator(nn.Module):
  """The distance of `jaxseg.methods.perceptual` on D_r's features."""

  def __init__(self, discriminator: Discriminator):
    super().__init__()
    self.discriminator = discriminator

  def features(self, image: Tensor) -> list[Tensor]:
    """[N, C, R, R] -> maps of unit vectors."""
    maps = [f.float() for f in self.discriminator.features(image)]
    return [f / (f.square().sum(1, keepdim=True) + 1e-10).sqrt() for f in maps]

  def distance(self, a: list[Tensor], b: list[Tensor]) -> Tensor:
    """[N]."""
    terms = [
      (x - y).square().sum(1).mean((1, 2)) for x, y in zip(a, b, strict=True)
    ]
    return sum(terms) / len(terms)
