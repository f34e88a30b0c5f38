"""MobileNetV2 as a light encoder of segmenters.

Source: Sandler et al., MobileNetV2 (CVPR 2018), table 2 and section 3.4, in the
form of torchvision, whose ImageNet weights fit.
"""

import flax.linen as nn
import jax

from jaxseg.nets.layers import Conv, Dtype, normalize, remat_if
from jaxseg.nets.resnet import he_fan_out
from jaxseg.ops.depthwise import depthwise_conv2d

# Table 2: expansion, channels, blocks, stride of the first block.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


class MobileNetV2(nn.Module):
  """Bottom-up features at four strides, without the final 1x1 convolution.

  Attributes:
    width: 64 times the paper's width multiplier.
    output_stride: 32, 16 or 8; strides beyond become dilation, as in `resnet`.
    norm: 'group', 'batch' or 'frozen', see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    remat: compute blocks anew for the gradient, see `layers.remat_if`.
  """

  width: int = 64
  output_stride: int = 32
  norm: str = 'group'
  dtype: Dtype = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
    """Encodes images.

    Args:
      x: [N, H, W, C].
      train: whether norm 'batch' uses the statistics of the batch.

    Returns:
      the last maps of strides s = 4, 8, 16, 32 (none above `output_stride`) in
      `dtype`, [N, ceil(H / s), ceil(W / s), F]; F = 24, 32, 96, 320 at width
      64.

    Raises:
      ValueError: another output stride.
    """
    if self.output_stride not in (8, 16, 32):
      raise ValueError(
        f'output_stride is {self.output_stride}, must be 8, 16 or 32'
      )
    x = Conv(
      scaled(32, self.width), 3, 2, use_bias=False, dtype=self.dtype,
      kernel_init=he_fan_out, name='stem',
    )(x)  # fmt: skip
    x = nn.relu6(normalize(x, self.norm, train, 'norm_stem'))
    maps, reached, dilation, i = [], 2, 1, 0
    block = remat_if(self.remat, InvertedResidual, (2,))
    for expansion, channels, blocks, step in STAGES:
      if step == 2 and reached > 2:
        maps.append(x)
      stride = step if reached * step <= self.output_stride else 1
      before, dilation = dilation, dilation * step // stride
      reached *= stride
      for j in range(blocks):
        i += 1
        x = block(
          scaled(channels, self.width),
          expansion,
          stride if j == 0 else 1,
          before if j == 0 else dilation,
          j > 0,
          self.norm,
          self.dtype,
          name=f'block{i}',
        )(x, train)
    return (*maps, x)


class InvertedResidual(nn.Module):
  """1x1 to more channels, 3x3 on each of them, 1x1 to few, no ReLU (3.4).

  Attributes:
    features: output channels.
    expansion: factor of the channels in between; 1: no first convolution.
    stride: 1 or 2.
    dilation: of the 3x3 convolution.
    residual: whether the input is added.
    norm: see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
  """

  features: int
  expansion: int = 6
  stride: int = 1
  dilation: int = 1
  residual: bool = False
  norm: str = 'group'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, ceil(H / stride), ceil(W / stride), features]."""
    y = x
    if self.expansion > 1:
      y = self._point(y, self.expansion * x.shape[-1], 'expand')
      y = nn.relu6(normalize(y, self.norm, train, 'norm_expand'))
    y = DepthwiseConv(self.stride, self.dilation, self.dtype, name='depthwise')(
      y
    )
    y = nn.relu6(normalize(y, self.norm, train, 'norm_depthwise'))
    y = self._point(y, self.features, 'project')
    y = normalize(y, self.norm, train, 'norm_project')
    return x + y if self.residual else y

  def _point(self, x, features, name):
    return Conv(
      features, 1, use_bias=False, dtype=self.dtype, kernel_init=he_fan_out,
      name=name,
    )(x)  # fmt: skip


class DepthwiseConv(nn.Module):
  """3x3 convolution of each channel by itself, without bias.

  Attributes:
    stride: 1 or 2.
    dilation: distance between neighbouring taps of the kernel, in pixels.
    dtype: dtype of the computation; None: that of the input.
  """

  stride: int = 1
  dilation: int = 1
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), C]."""
    kernel = self.param('kernel', he_fan_out, (3, 3, 1, x.shape[-1]))
    dtype = self.dtype or x.dtype
    return depthwise_conv2d(
      x.astype(dtype),
      kernel.astype(dtype),
      stride=self.stride,
      dilation=self.dilation,
    )


def scaled(channels: int, width: int) -> int:
  """`channels` at another width: a multiple of 8, not under 90 % of it."""
  exact = channels * width / 64
  rounded = max(8, int(exact + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * exact else rounded + 8
