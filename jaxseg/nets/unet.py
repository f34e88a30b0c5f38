"""U-Net (Ronneberger et al., MICCAI 2015), in its common padded form."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import Conv, Dtype


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with group normalisation and ReLU."""

  features: int
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H, W, features]."""
    for i in range(2):
      x = Conv(
        self.features, use_bias=False, dtype=self.dtype, name=f'conv{i}'
      )(x)
      groups = min(8, self.features)
      x = nn.relu(nn.GroupNorm(num_groups=groups, name=f'norm{i}')(x))
    return x


class UNet(nn.Module):
  """Encoder and decoder with skip connections.

  Attributes:
    num_classes: label logits K.
    width: channels at full resolution, doubled at each level below.
    depth: number of levels below; the side must be divisible by 2**depth.
    dtype: dtype of the convolutions; None: float32.
  """

  num_classes: int
  width: int = 64
  depth: int = 4
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, C] in [-1, 1] -> float32 logits [N, H, W, K]."""
    skips = []
    for i in range(self.depth):
      x = DoubleConv(self.width * 2**i, self.dtype, name=f'down{i}')(x)
      skips.append(x)
      x = nn.max_pool(x, (2, 2), (2, 2))
    x = DoubleConv(self.width * 2**self.depth, self.dtype, name='bottom')(x)
    for i in reversed(range(self.depth)):
      n, height, width, _ = skips[i].shape
      x = jax.image.resize(x, (n, height, width, x.shape[-1]), 'bilinear')
      x = jnp.concatenate([skips[i], x], -1)
      x = DoubleConv(self.width * 2**i, self.dtype, name=f'up{i}')(x)
    logits = Conv(self.num_classes, 1, dtype=self.dtype, name='out')(x)
    return logits.astype(jnp.float32)
