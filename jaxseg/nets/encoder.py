"""E: a feature pyramid network from an image to a W+ code.

Sources: Lin et al., Feature Pyramid Networks (CVPR 2017); Richardson et al.,
Encoding in Style (pSp, CVPR 2021), section 3; Li et al. (CVPR 2021), 3.2;
Karras et al., StyleGAN2 (CVPR 2020), appendix B, for `ResidualEncoder`.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  EqualConv,
  EqualDense,
  normalize,
  remat_if,
)
from jaxseg.nets.stylegan2 import (
  ResidualBlock,
  minibatch_stddev,
  num_latents,
  widths_of,
)

# Of the maps that the coarse, medium and fine styles are read from.
STRIDES = (16, 8, 4)


class Bottleneck(nn.Module):
  """Residual block 1x1, 3x3, 1x1 (He et al. 2016); stride in the 3x3."""

  width: int
  stride: int = 1
  norm: str = 'group'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, H / stride, W / stride, 4 width]."""

    def conv(x, features, k, stride, i):
      x = Conv(
        features, k, stride, use_bias=False, dtype=self.dtype, name=f'conv{i}'
      )(x)
      return normalize(x, self.norm, train, f'norm{i}')

    out = 4 * self.width
    y = nn.relu(conv(x, self.width, 1, 1, 1))
    y = nn.relu(conv(y, self.width, 3, self.stride, 2))
    y = conv(y, out, 1, 1, 3)
    if x.shape[-1] != out or self.stride != 1:
      x = conv(x, out, 1, self.stride, 0)
    return nn.relu(x + y)


class FeaturePyramid(nn.Module):
  """ResNet bottom-up, then sums top-down: strides 4, 8 and 16.

  Attributes:
    width: channels of the stem; 64 is ResNet-50 with depths (3, 4, 6, 3).
    depths: bottleneck blocks of each of the four stages.
    features: channels of the pyramid.
    norm: 'group' or 'batch'.
    dtype: dtype of the convolutions; None: float32.
    remat: as of `Encoder`.
  """

  width: int = 64
  depths: Sequence[int] = (3, 4, 6, 3)
  features: int = 512
  norm: str = 'group'
  dtype: Dtype = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
    """[N, R, R, C] -> [p2, p3, p4], float32 [N, R / s, R / s, features]."""
    x = Conv(self.width, 7, 2, use_bias=False, dtype=self.dtype, name='stem')(x)
    x = nn.relu(normalize(x, self.norm, train, 'norm_stem'))
    x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    bottom_up, block = [], remat_if(self.remat, Bottleneck, (2,))
    for i, depth in enumerate(self.depths):
      for j in range(depth):
        stride = 2 if i > 0 and j == 0 else 1
        x = block(
          self.width * 2**i,
          stride,
          self.norm,
          self.dtype,
          name=f'stage{i}_block{j}',
        )(x, train)
      bottom_up.append(x)
    top_down = Conv(self.features, 1, dtype=self.dtype, name='top')(x)
    pyramid = []
    for i in (2, 1, 0):
      lateral = Conv(
        self.features, 1, dtype=self.dtype, name=f'lateral{i + 2}'
      )(bottom_up[i])
      n, height, width, channels = lateral.shape
      top_down = lateral + jax.image.resize(
        top_down, (n, height, width, channels), 'bilinear'
      )
      smooth = Conv(self.features, 3, dtype=self.dtype, name=f'smooth{i + 2}')
      pyramid.append(smooth(top_down).astype(jnp.float32))
    return pyramid[::-1]


class StyleHead(nn.Module):
  """One style vector out of a feature map, by strided convolutions.

  Attributes:
    w_dim: width of the style.
    depth: convolutions.
    dtype: dtype of the convolutions; None: that of the map.
    width: channels of the convolutions; None: those of the map.
  """

  w_dim: int
  depth: int
  dtype: Dtype = None
  width: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, S, S, F] -> [N, w_dim]; S must not exceed 2**depth."""
    width = self.width or x.shape[-1]
    for i in range(self.depth):
      x = Conv(width, 3, 2, dtype=self.dtype, name=f'conv{i}')(x)
      x = nn.leaky_relu(x, 0.01)
    x = x.astype(jnp.float32).reshape(x.shape[0], -1)
    return EqualDense(self.w_dim, name='dense')(x)


class Encoder(nn.Module):
  """E: image -> W+, coarse styles from the top of the pyramid.

  Attributes:
    resolution: side of the input, a power of two >= 32.
    w_dim: width of each style.
    width: channels of the stem (64 for ResNet-50).
    depths: blocks of each stage.
    features: channels of the pyramid.
    head_depths: convolutions of the heads on p4, p3, p2; None: as many as
      bring the map to one pixel. The published choice is (4, 5, 6), which
      fits up to resolution 256.
    norm: 'group' or 'batch'; batch statistics live in 'batch_stats'.
    dtype: dtype of the convolutions; None: float32.
    remat: compute blocks and heads anew for the gradient, see
      `layers.remat_if`.
    head_width: channels of the heads; None: those of the pyramid.
  """

  resolution: int
  w_dim: int = 512
  width: int = 64
  depths: Sequence[int] = (3, 4, 6, 3)
  features: int = 512
  head_depths: Sequence[int] | None = None
  norm: str = 'group'
  dtype: Dtype = None
  remat: bool = False
  head_width: int | None = None

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Encodes images.

    Args:
      image: float32 [N, R, R, C] in [-1, 1].
      train: whether batch statistics are used (norm 'batch' only).

    Returns:
      float32 [N, L, w_dim], to which the caller adds the mean w.

    Raises:
      ValueError: R is larger than heads of `head_depths` take.
    """
    if self.head_depths:
      check_size(image.shape[1:3], self.head_depths)
    p2, p3, p4 = FeaturePyramid(
      self.width,
      self.depths,
      self.features,
      self.norm,
      self.dtype,
      self.remat,
      name='pyramid',
    )(image, train)
    depths = self.head_depths or [
      num_convs_to_pixel(p.shape[1]) for p in (p4, p3, p2)
    ]
    styles, style_head = [], remat_if(self.remat, StyleHead)
    for i in range(num_latents(self.resolution)):
      level = head_level(i)
      head = style_head(
        self.w_dim, depths[level], self.dtype, self.head_width, name=f'style{i}'
      )
      styles.append(head((p4, p3, p2)[level]))
    return jnp.stack(styles, axis=1)


class ResidualEncoder(nn.Module):
  """E with the body of D_r: image -> W+, every style from the same 4x4 map.

  Attributes:
    resolution: side of the input, a power of two >= 8.
    w_dim: width of each style.
    channel_multiplier: as in `stylegan2.Generator`.
    channel_max: as in `stylegan2.Generator`.
    stddev_group: images that share one minibatch standard deviation.
    dtype: dtype of the convolutions; None: float32.
    remat: compute blocks anew for the gradient, see `layers.remat_if`.
    widths: as in `stylegan2.Generator`.
  """

  resolution: int
  w_dim: int = 512
  channel_multiplier: float = 2.0
  channel_max: int = 512
  stddev_group: int = 4
  dtype: Dtype = None
  remat: bool = False
  widths: Sequence[int] = ()

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Encodes images.

    Args:
      image: float32 [N, R, R, C] in [-1, 1]; N must be divisible by
        min(N, stddev_group), and a code depends on its group.
      train: unused, as every encoder is called alike.

    Returns:
      float32 [N, L, w_dim], to which the caller adds the mean w.
    """
    *inner, last = widths_of(self)
    x = EqualConv(last, kernel_size=1, dtype=self.dtype, name='from_rgb')(image)
    block = remat_if(self.remat, ResidualBlock)
    for i, width in reversed(list(enumerate(inner))):
      x = block(width, self.dtype, name=f'block_{4 * 2**i}')(x)
    x = minibatch_stddev(x.astype(jnp.float32), self.stddev_group)
    x = EqualConv(inner[0], dtype=self.dtype, name='conv_last')(x)
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    length = num_latents(self.resolution)
    x = EqualDense(length * self.w_dim, name='dense')(x)
    return x.reshape(x.shape[0], length, self.w_dim)


def head_level(style: int) -> int:
  """Which of STRIDES a style is read from: 3 coarse, 4 medium, fine ones."""
  return 0 if style < 3 else 1 if style < 7 else 2


def num_convs_to_pixel(size: int) -> int:
  """Stride-2 convolutions that bring a feature map down to one pixel."""
  return max(1, math.ceil(math.log2(size)))


def check_size(size: Sequence[int], head_depths: Sequence[int]) -> None:
  """Refuses images whose maps the heads do not bring down to one pixel.

  Args:
    size: height and width of the images.
    head_depths: convolutions of the heads at each of STRIDES.

  Raises:
    ValueError: too large.
  """
  limit = min(s * 2**d for s, d in zip(STRIDES, head_depths, strict=True))
  if max(size) > limit:
    depths = ', '.join(map(str, head_depths))
    raise ValueError(
      f'images of {size[0]}x{size[1]} pixels are too large for style heads of '
      f'{depths} convolutions, which take up to {limit}x{limit}: resize the '
      'images, or train with more head_depths'
    )
