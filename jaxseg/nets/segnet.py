"""SegNet (Badrinarayanan, Kendall, Cipolla; PAMI 2017), section 3.

VGG16's convolutions, each with normalisation, and their mirror image, which
puts values back where the maxima were instead of learning to upsample.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import Conv, Dtype, Features, remat_if
from jaxseg.nets.upsampling import max_unpool
from jaxseg.nets.vgg import GROUPS, conv_norm_relu, he_normal, vgg16


class Encoder(nn.Module):
  """VGG16 without its dense layers; attributes as of `SegNet`."""

  width: int
  norm: str
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] -> the map of stride 32, the indices of 5 poolings."""
    maps, indices = vgg16(
      x, self.width, self.norm, train, self.dtype,
      remat=self if self.remat else None,
    )  # fmt: skip
    return Features(maps[-1:], indices)


class Decoder(nn.Module):
  """The mirror image: 'conv{i}' undoes the channels of the encoder's."""

  num_classes: int
  width: int
  norm: str
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(
    self, features: Features, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """Map, indices, the image's (H, W) -> float32 logits [N, H, W, K]."""
    sizes = [tuple(size)]
    for _ in GROUPS[1:]:
      sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
    widths = [self.width * factor for group in GROUPS for factor in group]

    def convolved(module, x, indices, level, last):
      del module
      x = max_unpool(x, indices, sizes[level])
      for i in range(last, last - len(GROUPS[level]), -1):
        if i:
          x = conv_norm_relu(
            x, widths[i - 1], i, self.norm, train, self.dtype
          )  # fmt: skip
      return x

    convolved = remat_if(self.remat, convolved, (3, 4))
    x = features.maps[-1]
    i = len(widths) - 1
    for level in reversed(range(len(GROUPS))):
      x = convolved(self, x, features.indices[level], level, i)
      i -= len(GROUPS[level])
    conv = Conv(
      self.num_classes, dtype=self.dtype, kernel_init=he_normal, name='out'
    )
    return conv(x).astype(jnp.float32)


class SegNet(nn.Module):
  """Encoder and decoder joined by the places of pooled maxima.

  Attributes:
    num_classes: label logits K.
    width: channels of the first convolution; 64 as published.
    norm: 'batch' as published, 'group' or 'frozen', see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    remat: compute what lies between poolings anew for the gradient, see
      `layers.remat_if`.
  """

  num_classes: int
  width: int = 64
  norm: str = 'batch'
  dtype: Dtype = None
  remat: bool = False

  def setup(self) -> None:
    self.encoder = Encoder(self.width, self.norm, self.dtype, self.remat)
    self.decoder = Decoder(
      self.num_classes, self.width, self.norm, self.dtype, self.remat
    )

  def encode(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] in [-1, 1] -> the map of stride 32 and 5 index maps."""
    return self.encoder(x, train)

  def decode(
    self, features: Features, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """Features, their image's (H, W) -> float32 logits [N, H, W, K]."""
    return self.decoder(features, size, train)

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1], any size -> float32 logits [N, H, W, K]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)
