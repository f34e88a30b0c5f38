"""Fully convolutional networks (Long, Shelhamer, Darrell; CVPR 2015).

VGG16 with its dense layers as convolutions scores each class at stride 32;
scores of finer maps are added after upsampling (sections 3.3, 4.2). Score
layers start at zero. The upsamplings by 2 in between start as bilinear
interpolation and learn; the last one stays bilinear (the released definitions
keep all of them fixed).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import Conv, Dtype, Features
from jaxseg.nets.upsampling import (
  ConvTranspose,
  interpolate_transposed,
  resize,
)
from jaxseg.nets.vgg import he_normal, vgg16

STRIDES = (32, 16, 8)
# Where the input begins in the last upsampled map if 100 zeros surround it, and
# an upsampled score in the map of stride 16 and 8 to which it is added.
LAST_CROP = {32: 19, 16: 27, 8: 31}
SKIP_CROP = {16: 5, 8: 9}
# The layers that bring a score to stride 16 and 8, and what is added to it.
NAMES = {16: ('upscore2', 'score_pool4'), 8: ('upscore_pool4', 'score_pool3')}


class Encoder(nn.Module):
  """VGG16 with 'fc6' and 'fc7'; attributes as of `FCN`."""

  stride: int
  width: int
  norm: str
  dropout: float
  faithful_padding: bool
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] -> those of pool3 and pool4 that are scored, and fc7."""
    first, last = (100, 0) if self.faithful_padding else (1, 3)
    maps, _ = vgg16(
      x, self.width, self.norm, train, self.dtype, first,
      self if self.remat else None,
    )  # fmt: skip
    x = maps[-1]
    for name, k, padding in (('fc6', 7, last), ('fc7', 1, 0)):
      x = Conv(
        64 * self.width, k, padding=padding, dtype=self.dtype,
        kernel_init=he_normal, name=name,
      )(x)  # fmt: skip
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    skips = {32: (), 16: maps[3:4], 8: maps[2:4]}[self.stride]
    return Features((*skips, x))


class Decoder(nn.Module):
  """Sums of upsampled scores; attributes as of `FCN`."""

  num_classes: int
  stride: int
  faithful_padding: bool
  dtype: Dtype

  @nn.compact
  def __call__(self, features: Features, size: tuple[int, int]) -> jax.Array:
    """Maps, the image's (H, W) -> float32 logits [N, H, W, K]."""

    def score(x, name):
      zeros = nn.initializers.zeros
      return Conv(
        self.num_classes, 1, dtype=self.dtype, kernel_init=zeros, name=name
      )(x)

    *skips, x = features.maps
    x = score(x, 'score_fr')
    for stride, skip in zip((16, 8), reversed(skips), strict=False):
      name, pool = NAMES[stride]
      x = ConvTranspose(
        self.num_classes, 4, 2, use_bias=False, dtype=self.dtype,
        padding=0 if self.faithful_padding else 1, name=name,
      )(x)  # fmt: skip
      skip = score(skip, pool)
      if self.faithful_padding:
        skip = _crop(skip, SKIP_CROP[stride], x.shape[1:3])
      else:  # ceiled sizes: one row may be too many
        x = _crop(x, 0, skip.shape[1:3])
      x = x + skip
    x = x.astype(jnp.float32)
    if self.faithful_padding:
      x = interpolate_transposed(x, self.stride)
      return _crop(x, LAST_CROP[self.stride], size)
    x = resize(x, (x.shape[1] * self.stride, x.shape[2] * self.stride))
    return _crop(x, 0, size)


def _crop(x, start, size):
  """Rows and columns [start, start + size)."""
  return x[:, start : start + size[0], start : start + size[1]]


class FCN(nn.Module):
  """FCN-32s, -16s or -8s.

  Attributes:
    num_classes: label logits K.
    stride: 32: fc7 alone is scored; 16: pool4 as well; 8: pool3, too.
    width: channels of the first convolution; 64 as published.
    norm: 'none' as published, or as of `layers.normalize`, in VGG16.
    dropout: rate after fc6 and fc7; 0.5 as published.
    faithful_padding: 100 zeros around the image, no padding later, and crops,
      as released; otherwise convolutions keep the size and copies of the border
      pixels surround the last scores.
    dtype: dtype of the convolutions; None: that of the input.
    remat: compute VGG16 anew for the gradient, see `layers.remat_if`.
  """

  num_classes: int
  stride: int = 8
  width: int = 64
  norm: str = 'none'
  dropout: float = 0.0
  faithful_padding: bool = False
  dtype: Dtype = None
  remat: bool = False

  def setup(self) -> None:
    if self.stride not in STRIDES:
      raise ValueError(f'stride is {self.stride}, must be 32, 16 or 8')
    self.encoder = Encoder(
      self.stride, self.width, self.norm, self.dropout, self.faithful_padding,
      self.dtype, self.remat,
    )  # fmt: skip
    self.decoder = Decoder(
      self.num_classes, self.stride, self.faithful_padding, self.dtype
    )

  def encode(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] in [-1, 1] -> maps of strides (8, 16,) 32."""
    return self.encoder(x, train)

  def decode(
    self, features: Features, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """Features, their image's (H, W) -> float32 logits [N, H, W, K]."""
    del train  # nothing here differs
    return self.decoder(features, size)

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1], any size -> float32 logits [N, H, W, K]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)
