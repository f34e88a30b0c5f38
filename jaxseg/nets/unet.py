"""U-Net (Ronneberger et al., MICCAI 2015), in its common padded form.

Against the paper, figure 1: convolutions keep the size, normalisation follows
each, and 'bilinear' replaces the 2x2 up-convolution by interpolation; then the
lowest level and the upward path have half the channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  Features,
  normalize,
  remat_if,
)
from jaxseg.nets.upsampling import (
  ConvTranspose,
  max_pool_with_indices,
  resize,
)

UPSAMPLING = ('bilinear', 'transposed')


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with normalisation and ReLU."""

  middle: int
  features: int
  norm: str = 'group'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, H, W, features]."""
    for i, features in enumerate((self.middle, self.features)):
      x = Conv(features, use_bias=False, dtype=self.dtype, name=f'conv{i}')(x)
      x = nn.relu(normalize(x, self.norm, train, f'norm{i}'))
    return x


class Encoder(nn.Module):
  """The downward path; attributes as of `UNet`."""

  width: int
  depth: int
  up: str
  norm: str
  dropout: float
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] -> maps [N, H / 2**i, W / 2**i, F_i], i = 0 to depth."""
    side = 2**self.depth
    if x.shape[1] % side or x.shape[2] % side:
      raise ValueError(
        f'U-Net of depth {self.depth} halves images {self.depth} times: their '
        f'{x.shape[1]} x {x.shape[2]} pixels must be multiples of {side}'
      )
    maps, block = [], remat_if(self.remat, DoubleConv, (2,))
    for i in range(self.depth + 1):
      features = self.width * 2**i
      if i == self.depth and self.up == 'bilinear':
        features //= 2
      name = 'bottom' if i == self.depth else f'down{i}'
      x = block(features, features, self.norm, self.dtype, name=name)(x, train)
      maps.append(x)
      if i < self.depth:
        x, _ = max_pool_with_indices(x)
    maps[-1] = nn.Dropout(self.dropout, deterministic=not train)(x)
    return Features(tuple(maps))


class Decoder(nn.Module):
  """The upward path; attributes as of `UNet`."""

  num_classes: int
  width: int
  up: str
  norm: str
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(self, features: Features, train: bool) -> jax.Array:
    """Maps, fine to coarse -> float32 logits at the size of the finest."""
    *skips, x = features.maps
    block = remat_if(self.remat, DoubleConv, (2,))
    for i in reversed(range(len(skips))):
      inner = out = self.width * 2**i
      if self.up == 'transposed':
        name = f'upsample{i}'
        x = ConvTranspose(
          inner, 2, 2, kernel_init='normal', dtype=self.dtype, name=name
        )(x)
      else:
        x = resize(x, skips[i].shape[1:3])
        out = inner // 2 if i else inner
      x = jnp.concatenate([skips[i], x], -1)
      x = block(inner, out, self.norm, self.dtype, name=f'up{i}')(x, train)
    logits = Conv(self.num_classes, 1, dtype=self.dtype, name='out')(x)
    return logits.astype(jnp.float32)


class UNet(nn.Module):
  """Encoder and decoder with skip connections.

  Attributes:
    num_classes: label logits K.
    width: channels at full resolution, doubled at each level below; even.
    depth: number of levels below.
    up: 'bilinear' (half-pixel centres) or 'transposed' (2x2 convolution).
    norm: 'group', 'batch' or 'frozen', see `layers.normalize`.
    dropout: rate at the lowest level.
    dtype: dtype of the convolutions; None: that of the input.
    remat: compute levels anew for the gradient, see `layers.remat_if`.
  """

  num_classes: int
  width: int = 64
  depth: int = 4
  up: str = 'bilinear'
  norm: str = 'group'
  dropout: float = 0.0
  dtype: Dtype = None
  remat: bool = False

  def setup(self) -> None:
    if self.up not in UPSAMPLING:
      raise ValueError(
        f'up is {self.up!r}, must be one of {", ".join(UPSAMPLING)}'
      )
    self.encoder = Encoder(
      self.width, self.depth, self.up, self.norm, self.dropout, self.dtype,
      self.remat,
    )  # fmt: skip
    self.decoder = Decoder(
      self.num_classes, self.width, self.up, self.norm, self.dtype, self.remat
    )

  def encode(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] in [-1, 1] -> maps of strides 1 to 2**depth.

    Raises:
      ValueError: a side that is not a multiple of 2**depth.
    """
    return self.encoder(x, train)

  def decode(
    self, features: Features, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """Features, their image's (H, W) -> float32 logits [N, H, W, K]."""
    del size  # that of the finest map
    return self.decoder(features, train)

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1] -> float32 logits [N, H, W, K]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)
