"""Encoders of images into W+ on the body of a face recogniser: pSp and e4e.

Sources: Deng et al., ArcFace (CVPR 2019), section 3.1 (the body, IR); Hu et
al., Squeeze-and-Excitation Networks (CVPR 2018), section 3; Richardson et al.,
Encoding in Style (pSp, CVPR 2021), section 3; Tov et al., Designing an Encoder
for StyleGAN Image Manipulation (e4e, SIGGRAPH 2021), section 4.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.encoder import (
  STRIDES,
  StyleHead,
  check_size,
  head_level,
  num_convs_to_pixel,
)
from jaxseg.nets.layers import Conv, Dtype, normalize, remat_if
from jaxseg.nets.upsampling import resize


class PReLU(nn.Module):
  """Leaky ReLU whose slope is learned for each channel (He et al. 2015)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    init = nn.initializers.constant(0.25)
    slope = self.param('slope', init, (x.shape[-1],)).astype(x.dtype)
    return jnp.where(x >= 0, x, slope * x)


class SqueezeExcite(nn.Module):
  """Scales each channel by a factor that all channels' means decide.

  Attributes:
    width: channels between the two layers.
    dtype: dtype of the layers; None: that of the input.
  """

  width: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] -> [N, H, W, C]."""

    def layer(x, features, name):
      return Conv(features, 1, use_bias=False, dtype=self.dtype, name=name)(x)

    y = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(x.dtype)
    y = nn.relu(layer(y, self.width, 'squeeze'))
    return x * nn.sigmoid(layer(y, x.shape[-1], 'excite'))


class Unit(nn.Module):
  """Residual unit of ArcFace: norm, 3x3, PReLU, strided 3x3, norm (IR).

  Attributes:
    features: output channels.
    stride: of the second convolution.
    se_width: of `SqueezeExcite` at the end; 0: without.
    dtype: dtype of the convolutions; None: float32.
  """

  features: int
  stride: int = 1
  se_width: int = 0
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, ceil(H / stride), ceil(W / stride), features]."""

    def conv(x, k, stride, name):
      return Conv(
        self.features, k, stride, use_bias=False, dtype=self.dtype, name=name
      )(x)

    y = conv(normalize(x, 'batch', train, 'norm1'), 3, 1, 'conv1')
    y = conv(PReLU(name='prelu')(y), 3, self.stride, 'conv2')
    y = normalize(y, 'batch', train, 'norm2')
    if self.se_width:
      y = SqueezeExcite(self.se_width, self.dtype, name='se')(y)
    if x.shape[-1] == self.features:
      return y + x[:, :: self.stride, :: self.stride]
    x = conv(x, 1, self.stride, 'shortcut')
    return y + normalize(x, 'batch', train, 'norm_shortcut')


class Body(nn.Module):
  """Stem and four stages of units, each of which halves the size.

  Attributes: as of `PSPEncoder`.
  """

  units: Sequence[int] = (3, 4, 14, 3)
  widths: Sequence[int] = (64, 128, 256, 512)
  stem_width: int = 64
  se_widths: Sequence[int] = (4, 8, 16, 32)
  dtype: Dtype = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
    """[N, R, R, C] -> the stages' maps [N, R / s, R / s, F], s = 2, 4, 8, 16.

    F is the stage's width.
    """
    x = Conv(
      self.stem_width, use_bias=False, dtype=self.dtype, name='stem'
    )(x)  # fmt: skip
    x = PReLU(name='prelu_stem')(normalize(x, 'batch', train, 'norm_stem'))
    maps, unit = [], remat_if(self.remat, Unit, (2,))
    for i, count in enumerate(self.units):
      for j in range(count):
        x = unit(
          self.widths[i],
          1 if j else 2,
          self.se_widths[i],
          self.dtype,
          name=f'stage{i}_unit{j}',
        )(x, train)
      maps.append(x)
    return maps


class PSPEncoder(nn.Module):
  """pSp: image -> W+, each style from the map of its own scale.

  The coarsest map is the body's, the others are sums with lateral 1x1
  convolutions, without smoothing.

  Attributes:
    input_size: side of the images that it was trained on, to which callers
      resize theirs.
    w_dim: width of each style.
    num_styles: L, length of a W+ code.
    units: of each of the four stages; (3, 4, 14, 3) is IR-50.
    widths: channels of each stage; the last is the pyramid's, too.
    stem_width: channels of the first convolution.
    se_widths: of each stage, see `Unit`; zeros: a body without SE.
    head_depths: convolutions of the heads at stride 16, 8 and 4; None: as many
      as bring the maps of `input_size` to one pixel, (4, 5, 6) at 256.
    dtype: dtype of the convolutions; None: float32.
    remat: compute units and heads anew for the gradient, see `layers.remat_if`.
    head_width: channels of the heads; None: those of the pyramid.
    channels: C of the images that it was trained on: 3, 1 of sketches, or a
      class each of label maps.
  """

  input_size: int = 256
  w_dim: int = 512
  num_styles: int = 18
  units: Sequence[int] = (3, 4, 14, 3)
  widths: Sequence[int] = (64, 128, 256, 512)
  stem_width: int = 64
  se_widths: Sequence[int] = (4, 8, 16, 32)
  head_depths: Sequence[int] | None = None
  dtype: Dtype = None
  remat: bool = False
  head_width: int | None = None
  channels: int = 3

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """Encodes images.

    Args:
      image: float32 [N, R, R, C] in [-1, 1]; R may differ from `input_size`.
      train: whether batch statistics are used.

    Returns:
      float32 [N, L, w_dim], to which the caller adds the mean w.

    Raises:
      ValueError: R is larger than the heads take.
    """
    return self._styles(image, train)

  def _styles(self, image, train):
    """What the heads give, [N, L, w_dim]."""
    depths = self.head_depths or [
      num_convs_to_pixel(-(-self.input_size // s)) for s in STRIDES
    ]
    check_size(image.shape[1:3], depths)
    maps = self._pyramid(image, train)
    styles, style_head = [], remat_if(self.remat, StyleHead)
    for i in range(self.num_styles):
      level = head_level(i)
      head = style_head(
        self.w_dim, depths[level], self.dtype, self.head_width, name=f'style{i}'
      )
      styles.append(head(maps[level]))
    return jnp.stack(styles, axis=1)

  def _pyramid(self, image, train):
    """The maps of STRIDES, float32 [N, R / s, R / s, F]."""
    _, fine, medium, top = Body(
      self.units, self.widths, self.stem_width, self.se_widths, self.dtype,
      self.remat, name='body',
    )(image, train)  # fmt: skip
    pyramid = [top.astype(jnp.float32)]
    for name, x in (('lateral3', medium), ('lateral2', fine)):
      x = Conv(self.widths[-1], 1, dtype=self.dtype, name=name)(x)
      above = resize(pyramid[-1], x.shape[1:3], align_corners=True)
      pyramid.append(above + x.astype(jnp.float32))
    return pyramid


class E4EEncoder(PSPEncoder):
  """e4e: as pSp, but all styles after the first are offsets to it."""

  @nn.compact
  def __call__(self, image: jax.Array, train: bool = False) -> jax.Array:
    """As of `PSPEncoder`."""
    styles = self._styles(image, train)
    return jnp.concatenate([styles[:, :1], styles[:, :1] + styles[:, 1:]], 1)
