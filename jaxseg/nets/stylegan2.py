"""The StyleGAN2 generator of an image and its label, and D_r.

Sources: Karras et al. (2020), figure 7 and appendix B; Li et al., Semantic
Segmentation with Generative Models (CVPR 2021), section 3.1: the label branch
is a second output at every resolution, driven by the same styles.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import (
  Dtype,
  EqualConv,
  EqualDense,
  ModulatedConv,
  leaky_relu,
  remat_if,
)
from jaxseg.ops.upfirdn2d import upsample2d

Noise = Sequence[jax.Array] | None


def num_latents(resolution: int) -> int:
  """Length L of a W+ code: 2 log2(resolution) - 2."""
  return 2 * int(math.log2(resolution)) - 2


def noise_shapes(resolution: int) -> list[tuple[int, int]]:
  """Height and width of each noise map: 4, 8, 8, 16, 16, ..., resolution."""
  sizes = [4]
  while sizes[-1] < resolution:
    sizes += [2 * sizes[-1]] * 2
  return [(s, s) for s in sizes]


def make_noise(rng: jax.Array, n: int, resolution: int) -> list[jax.Array]:
  """Draws the noise maps of n images: [n, h, w, 1] ~ N(0, 1) each."""
  shapes = noise_shapes(resolution)
  keys = jax.random.split(rng, len(shapes))
  return [
    jax.random.normal(key, (n, *shape, 1))
    for key, shape in zip(keys, shapes, strict=True)
  ]


def broadcast_w(w: jax.Array, resolution: int) -> jax.Array:
  """Repeats w [N, D] to the W+ code [N, L, D]."""
  return jnp.repeat(w[:, None], num_latents(resolution), axis=1)


def mix_styles(
  w1: jax.Array, w2: jax.Array, crossover: jax.Array | int, resolution: int
) -> jax.Array:
  """W+ codes with w1 before the crossover and w2 from there on.

  Args:
    w1: [N, D].
    w2: [N, D].
    crossover: index in [1, L], one for the batch or [N]; L keeps w1 alone.
    resolution: of the generator.

  Returns:
    [N, L, D].
  """
  layer = jnp.arange(num_latents(resolution))[None, :, None]
  first = layer < jnp.reshape(crossover, (-1, 1, 1))
  return jnp.where(first, w1[:, None], w2[:, None])


def truncate(w: jax.Array, w_avg: jax.Array, psi: float) -> jax.Array:
  """Truncation trick: w_avg + psi (w - w_avg); any leading axes."""
  return w_avg + psi * (w - w_avg)


class MappingNetwork(nn.Module):
  """z -> w: normalisation, then dense layers at 1/100 of the learning rate."""

  w_dim: int = 512
  depth: int = 8
  lr_mul: float = 0.01

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """[N, D] -> [N, w_dim]."""
    x = z * jax.lax.rsqrt(jnp.mean(jnp.square(z), -1, keepdims=True) + 1e-8)
    for i in range(self.depth):
      x = EqualDense(
        self.w_dim, lr_mul=self.lr_mul, activate=True, name=f'dense_{i}'
      )(x)
    return x


class StyledConv(nn.Module):
  """Modulated convolution, noise of learned strength, bias, leaky ReLU."""

  features: int
  upsample: bool = False
  dtype: Dtype = None
  conv_clamp: float = 0.0

  @nn.compact
  def __call__(
    self, x: jax.Array, w: jax.Array, noise: jax.Array | None
  ) -> jax.Array:
    """[N, H, W, I], [N, D], [N or 1, H', W', 1] -> [N, H', W', features]."""
    x = ModulatedConv(
      self.features, upsample=self.upsample, dtype=self.dtype, name='conv'
    )(x, w)
    strength = self.param('noise_strength', nn.initializers.zeros, ())
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    if noise is not None:
      x = x + (strength * noise).astype(x.dtype)
    return clamp(leaky_relu(x + bias.astype(x.dtype)), self.conv_clamp)


class ToOutput(nn.Module):
  """1x1 modulated convolution without demodulation: to_rgb and to_seg."""

  features: int
  dtype: Dtype = None
  conv_clamp: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """[N, H, W, I], [N, D] -> float32 [N, H, W, features]."""
    x = ModulatedConv(
      self.features,
      kernel_size=1,
      demodulate=False,
      dtype=self.dtype,
      name='conv',
    )(x, w)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return clamp(x.astype(jnp.float32) + bias, self.conv_clamp)


class Generator(nn.Module):
  """StyleGAN2 with output skips for an image and for label logits.

  Attributes:
    resolution: side of the output, a power of two >= 8.
    channels: image channels, 1 or 3.
    num_classes: label logits K; 0 for an image alone.
    w_dim: width of z and w.
    mapping_depth: dense layers of the mapping network.
    channel_multiplier: channels(r) = min(channel_max, multiplier 16384 / r).
    channel_max: upper limit of that.
    dtype: dtype of the convolutions, e.g. bfloat16; None: float32.
    remat: compute convolutions anew for the gradient, see `layers.remat_if`.
    widths: channels at 4, 8, ..., resolution; (): by the rule above.
    conv_clamp: limit of what layers give, of published half-precision
      networks (Karras et al. 2020, Limited Data, appendix); 0: none.
  """

  resolution: int
  channels: int = 3
  num_classes: int = 0
  w_dim: int = 512
  mapping_depth: int = 8
  channel_multiplier: float = 2.0
  channel_max: int = 512
  dtype: Dtype = None
  remat: bool = False
  widths: Sequence[int] = ()
  conv_clamp: float = 0.0

  def setup(self):
    self.mapping_network = MappingNetwork(self.w_dim, self.mapping_depth)
    widths = widths_of(self)
    same = dict(dtype=self.dtype, conv_clamp=self.conv_clamp)
    self.const = self.param(
      'const', nn.initializers.normal(1.0), (4, 4, widths[0])
    )
    styled = remat_if(self.remat, StyledConv)
    output = remat_if(self.remat, ToOutput)
    self.conv_first = styled(widths[0], **same)
    self.conv_up = [styled(w, upsample=True, **same) for w in widths[1:]]
    self.conv = [styled(w, **same) for w in widths[1:]]
    self.to_rgb = [output(self.channels, **same) for _ in widths]
    if self.num_classes:
      # A label's logits are not limited, whatever the image's layers are.
      self.to_seg = [output(self.num_classes, self.dtype) for _ in widths]

  def __call__(self, z: jax.Array, noise: Noise = None):
    """`synthesize` of the W+ code of z; [N, w_dim] -> (image, logits)."""
    w = self.mapping(z)
    return self.synthesize(broadcast_w(w, self.resolution), noise)

  def mapping(self, z: jax.Array) -> jax.Array:
    """z [N, w_dim] -> w [N, w_dim]."""
    return self.mapping_network(z)

  def synthesize(
    self, w_plus: jax.Array, noise: Noise = None
  ) -> tuple[jax.Array, jax.Array | None]:
    """Renders W+ codes.

    Args:
      w_plus: float32 [N, L, w_dim].
      noise: maps [N or 1, h, w, 1] in the order of `noise_shapes`; None: no
        noise.

    Returns:
      image [N, R, R, C], nominally in [-1, 1] and unbounded; label logits
      [N, R, R, K], None when num_classes is 0.
    """
    image, logits, _ = self.render(w_plus, noise)
    return image, logits

  def render(
    self, w_plus: jax.Array, noise: Noise = None
  ) -> tuple[jax.Array, jax.Array | None, list[jax.Array]]:
    """`synthesize`, and the feature maps [N, r, r, C] of every convolution.

    There is one at 4x4 and two at each further size, in order.
    """
    n = w_plus.shape[0]
    noise = (
      [None] * len(noise_shapes(self.resolution)) if noise is None else noise
    )
    x = jnp.broadcast_to(self.const, (n, *self.const.shape))
    x = self.conv_first(x, w_plus[:, 0], noise[0])
    image = self.to_rgb[0](x, w_plus[:, 1])
    logits = self.to_seg[0](x, w_plus[:, 1]) if self.num_classes else None
    maps = [x]
    for i, (conv_up, conv) in enumerate(
      zip(self.conv_up, self.conv, strict=True)
    ):
      first = 2 * i + 1
      x = conv_up(x, w_plus[:, first], noise[first])
      maps.append(x)
      x = conv(x, w_plus[:, first + 1], noise[first + 1])
      maps.append(x)
      style = w_plus[:, first + 2]
      image = upsample2d(image) + self.to_rgb[i + 1](x, style)
      if self.num_classes:
        logits = upsample2d(logits) + self.to_seg[i + 1](x, style)
    return image, logits, maps


def channels_at(size: int, multiplier: float, maximum: int) -> int:
  """Feature channels at a resolution (Karras et al. 2020, appendix B)."""
  return min(maximum, int(multiplier * 16384 / size))


def widths_of(net: 'Generator | Discriminator') -> tuple[int, ...]:
  """Feature channels at 4, 8, ..., resolution.

  Raises:
    ValueError: `widths` are given, but not one for each.
  """
  sizes = [2**i for i in range(2, int(math.log2(net.resolution)) + 1)]
  if net.widths and len(net.widths) != len(sizes):
    raise ValueError(
      f'widths are {tuple(net.widths)}, but a side of {net.resolution} needs '
      f'{len(sizes)} of them'
    )
  return tuple(net.widths) or tuple(
    channels_at(s, net.channel_multiplier, net.channel_max) for s in sizes
  )


def clamp(x: jax.Array, limit: float) -> jax.Array:
  """Limits x to [-limit, limit]; 0: not at all."""
  return jnp.clip(x, -limit, limit) if limit else x


class Discriminator(nn.Module):
  """D_r: the residual StyleGAN2 discriminator of images.

  Attributes:
    resolution: side of the input, a power of two >= 8.
    channel_multiplier: as in `Generator`.
    channel_max: as in `Generator`.
    stddev_group: images that share one minibatch standard deviation.
    dtype: dtype of the convolutions; None: float32.
    remat: compute blocks anew for the gradient, see `layers.remat_if`.
    widths: as in `Generator`.
    conv_clamp: as in `Generator`.
  """

  resolution: int
  channel_multiplier: float = 2.0
  channel_max: int = 512
  stddev_group: int = 4
  dtype: Dtype = None
  remat: bool = False
  widths: Sequence[int] = ()
  conv_clamp: float = 0.0

  @nn.compact
  def __call__(
    self, image: jax.Array, features_only: bool = False
  ) -> jax.Array | list[jax.Array]:
    """Scores images.

    Args:
      image: [N, R, R, C]; N must be divisible by min(N, stddev_group).
      features_only: stop after the residual blocks and return the output of
        each, [N, R / 2**i, R / 2**i, C_i], for a perceptual distance.

    Returns:
      float32 [N], high for real; or the list of features.
    """
    *inner, last = widths_of(self)
    limit = self.conv_clamp
    x = EqualConv(last, kernel_size=1, dtype=self.dtype, name='from_rgb')(image)
    x = clamp(x, limit)
    features, block = [x], remat_if(self.remat, ResidualBlock)
    for i, width in reversed(list(enumerate(inner))):
      x = block(width, self.dtype, limit, name=f'block_{4 * 2**i}')(x)
      features.append(x)
    if features_only:
      return features
    x = minibatch_stddev(x.astype(jnp.float32), self.stddev_group)
    x = EqualConv(inner[0], dtype=self.dtype, name='conv_last')(x)
    x = clamp(x, limit)
    x = x.reshape(x.shape[0], -1).astype(jnp.float32)
    x = EqualDense(inner[0], activate=True, name='dense')(x)
    return EqualDense(1, name='score')(x)[:, 0]


class ResidualBlock(nn.Module):
  """Halves the size: two convolutions beside a filtered 1x1 convolution."""

  features: int
  dtype: Dtype = None
  conv_clamp: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H / 2, W / 2, features]."""
    limit = lambda x: clamp(x, self.conv_clamp)
    y = limit(EqualConv(x.shape[-1], dtype=self.dtype, name='conv1')(x))
    y = EqualConv(
      self.features, downsample=True, dtype=self.dtype, name='conv2'
    )(y)
    skip = EqualConv(
      self.features,
      kernel_size=1,
      downsample=True,
      use_bias=False,
      activate=False,
      dtype=self.dtype,
      name='skip',
    )(x)
    # The published networks do not limit the skip.
    return (limit(y) + skip) / math.sqrt(2.0)


def minibatch_stddev(x: jax.Array, group_size: int) -> jax.Array:
  """Appends one channel: mean standard deviation within groups of images.

  Args:
    x: [N, H, W, C]; N must be divisible by g = min(N, group_size). Image i
      belongs to group i mod (N / g).
    group_size: images a group.

  Returns:
    [N, H, W, C + 1] (Karras et al. 2018, section 3).

  Raises:
    ValueError: N is not divisible by the group.
  """
  n, height, width, _ = x.shape
  group = min(n, group_size)
  if n % group:
    raise ValueError(
      f'a batch of {n} images cannot be split into groups of {group}; choose '
      f'a multiple of {group}'
    )
  grouped = x.reshape(group, n // group, *x.shape[1:])
  deviation = jnp.sqrt(jnp.var(grouped, axis=0) + 1e-8)
  deviation = jnp.mean(deviation, axis=(1, 2, 3))  # [n / group]
  feature = jnp.tile(deviation, group)[:, None, None, None]
  feature = jnp.broadcast_to(feature, (n, height, width, 1))
  return jnp.concatenate([x, feature], axis=-1)
