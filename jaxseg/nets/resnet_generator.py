"""The generator of CycleGAN: residual blocks between two strided convolutions.

Sources: Zhu et al., Unpaired Image-to-Image Translation using Cycle-Consistent
Adversarial Networks (ICCV 2017), section 7.1, after Johnson et al., Perceptual
Losses for Real-Time Style Transfer (ECCV 2016); for segmentation Mondal et al.,
Revisiting CycleGAN for Semi-Supervised Segmentation (2019), section 3.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  Features,
  normal_around_one,
  normalize,
  remat_if,
)
from jaxseg.ops.conv import conv2d_transpose

OUTPUTS = ('linear', 'tanh')

kernel_init = nn.initializers.normal(0.02)  # as published


def reflect(x: jax.Array, width: int) -> jax.Array:
  """Mirrors the border at its outermost pixels, which are not repeated.

  Args:
    x: [N, H, W, C], both sides above `width`.
    width: pixels added on each side.

  Returns:
    [N, H + 2 width, W + 2 width, C].

  Raises:
    ValueError: a side that is not above `width`.
  """
  if min(x.shape[1:3]) <= width:
    raise ValueError(
      f'maps of {x.shape[1]} x {x.shape[2]} pixels cannot be mirrored '
      f'{width} pixels deep: both sides must be above that'
    )
  for axis in (1, 2):
    size = x.shape[axis]
    before = lax.slice_in_dim(x, 1, width + 1, axis=axis)
    after = lax.slice_in_dim(x, size - width - 1, size - 1, axis=axis)
    x = jnp.concatenate(
      [lax.rev(before, (axis,)), x, lax.rev(after, (axis,))], axis
    )
  return x


class Layer(nn.Module):
  """Convolution and normalisation.

  As published, the convolution has a bias with instance norm alone, which takes
  it away again; other norms have one themselves.

  Attributes:
    features: output channels.
    norm: as of `ResnetGenerator`.
    kernel_size: side of the kernel in mode 'same', odd; else it is 3.
    mode: 'same' size, borders mirrored; 'down': stride 2, zeros around; 'up':
      fractional stride 1/2.
    activate: whether ReLU follows.
    dtype: dtype of the convolution.
  """

  features: int
  norm: str
  kernel_size: int = 3
  mode: str = 'same'
  activate: bool = True
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', features]; H' is H, ceil(H / 2) or 2 H."""
    common = dict(use_bias=self.norm == 'instance', dtype=self.dtype)
    if self.mode == 'up':
      x = Doubling(self.features, name='conv', **common)(x)
    elif self.mode == 'down':
      x = Conv(
        self.features, 3, 2, kernel_init=kernel_init, name='conv', **common
      )(x)
    else:
      x = mirrored_conv(self.features, self.kernel_size, 'conv', **common)(x)
    x = normalize(x, self.norm, train, 'norm', normal_around_one)
    return nn.relu(x) if self.activate else x


def mirrored_conv(
  features: int, kernel_size: int, name: str, **kwargs
) -> Callable[[jax.Array], jax.Array]:
  """Adds a convolution whose border is mirrored to the module that calls this.

  Args:
    features: output channels.
    kernel_size: side of the kernel, odd.
    name: of the layer.
    **kwargs: further attributes of `Conv`.

  Returns:
    [N, H, W, I] -> [N, H, W, features].
  """
  conv = Conv(
    features, kernel_size, padding=0, kernel_init=kernel_init, name=name,
    **kwargs,
  )  # fmt: skip

  return lambda x: conv(reflect(x, kernel_size // 2))


class Doubling(nn.Module):
  """Transposed 3x3 convolution of stride 2 to exactly twice the size."""

  features: int
  use_bias: bool = True
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, 2 H, 2 W, features]."""
    shape = (3, 3, x.shape[-1], self.features)
    kernel = self.param('kernel', kernel_init, shape)
    dtype = self.dtype or x.dtype
    # Padding 1 and output padding 1: without the first row and column.
    x = conv2d_transpose(x.astype(dtype), kernel.astype(dtype))[:, 1:, 1:]
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(dtype)
    return x


class Block(nn.Module):
  """Residual block: two 3x3 convolutions, no ReLU after the sum."""

  norm: str
  dropout: float = 0.0
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, F] -> the same shape."""
    layer = lambda name, **kwargs: Layer(
      x.shape[-1], self.norm, dtype=self.dtype, name=name, **kwargs
    )
    y = layer('first')(x, train)
    y = nn.Dropout(self.dropout, deterministic=not train)(y)
    return x + layer('second', activate=False)(y, train)


class Encoder(nn.Module):
  """Down to a quarter of the size, and the blocks; as of `ResnetGenerator`."""

  width: int
  blocks: int
  norm: str
  dropout: float
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] -> one map [N, ceil(H / 4), ceil(W / 4), 4 width]."""
    layer = lambda factor, name, **kwargs: remat_if(self.remat, Layer, (2,))(
      self.width * factor, self.norm, dtype=self.dtype, name=name, **kwargs
    )
    x = layer(1, 'stem', kernel_size=7)(x, train)
    x = layer(2, 'down0', mode='down')(x, train)
    x = layer(4, 'down1', mode='down')(x, train)
    block = remat_if(self.remat, Block, (2,))
    for i in range(self.blocks):
      x = block(self.norm, self.dropout, self.dtype, name=f'block{i}')(x, train)
    return Features((x,))


class Decoder(nn.Module):
  """Back to full size; attributes as of `ResnetGenerator`."""

  features: int
  width: int
  norm: str
  dtype: Dtype
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """[N, h, w, 4 width], h = ceil(H / 4) -> float32 [N, H, W, features]."""
    height, width = size
    half = -(-height // 2), -(-width // 2)
    for factor, (rows, columns), name in ((2, half, 'up0'), (1, size, 'up1')):
      layer = remat_if(self.remat, Layer, (2,))(
        self.width * factor, self.norm, mode='up', dtype=self.dtype, name=name
      )
      x = layer(x, train)[:, :rows, :columns]
    out = mirrored_conv(self.features, 7, 'out', dtype=self.dtype)
    return out(x).astype(jnp.float32)


class ResnetGenerator(nn.Module):
  """A map for each image: logits of its labels, or an image of its labels.

  A segmenter, see `jaxseg.nets.segmenters`, with one map in `Features`.

  Attributes:
    features: output channels: K logits, or C.
    width: channels at full resolution; twice and four times that below.
    blocks: residual blocks at a quarter of the size; 9 or 6 as published.
    norm: 'instance' as published, 'group', 'batch' or 'frozen', see
      `layers.normalize`.
    dropout: rate between the convolutions of each block. The paper says none;
      CycleGAN's code offers .5.
    output: 'linear' (logits) or 'tanh' (images in [-1, 1]).
    dtype: dtype of the convolutions; norms compute in float32.
    remat: compute blocks and layers anew for the gradient, see
      `layers.remat_if`.
  """

  features: int
  width: int = 64
  blocks: int = 9
  norm: str = 'instance'
  dropout: float = 0.0
  output: str = 'linear'
  dtype: Dtype = 'float32'
  remat: bool = False

  def setup(self) -> None:
    if self.output not in OUTPUTS:
      raise ValueError(
        f'output is {self.output!r}, must be one of {", ".join(OUTPUTS)}'
      )
    self.encoder = Encoder(
      self.width, self.blocks, self.norm, self.dropout, self.dtype, self.remat
    )
    self.decoder = Decoder(
      self.features, self.width, self.norm, self.dtype, self.remat
    )

  def encode(self, x: jax.Array, train: bool) -> Features:
    """[N, H, W, C] -> one map [N, ceil(H / 4), ceil(W / 4), 4 width].

    Args:
      x: an image in [-1, 1], or probabilities or one-hot labels; sides of at
        least 5 pixels.
      train: whether batch norm and dropout are in training.

    Raises:
      ValueError: a side too small to be mirrored.
    """
    return self.encoder(x, train)

  def decode(
    self, features: Features, size: tuple[int, int], train: bool
  ) -> jax.Array:
    """Features, their image's (H, W) -> float32 [N, H, W, features]."""
    x = self.decoder(features.maps[0], size, train)
    return jnp.tanh(x) if self.output == 'tanh' else x

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] -> float32 [N, H, W, features]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)
