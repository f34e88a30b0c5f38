"""The fully convolutional discriminator of label maps.

Source: Hung et al., Adversarial Learning for Semi-Supervised Semantic
Segmentation (BMVC 2018), section 3.2.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets import upsampling
from jaxseg.nets.layers import Conv, Dtype

STRIDE = 32  # of the score map: five layers, each halves


class FullyConvDiscriminator(nn.Module):
  """Scores each pixel of a label map: drawn by hand, or predicted.

  Five 4x4 convolutions with stride 2, without normalisation; the score map of
  1/32 of the side is interpolated, corner to corner, to the input's size. A
  side below 64 leaves one score, the same for all pixels of an image.

  Attributes:
    width: channels of the first layer; doubled three times. 64 is published:
      2.78 M parameters for 21 classes.
    dtype: dtype of the convolutions; None: float32.
  """

  width: int = 64
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Scores label maps.

    Args:
      x: [N, H, W, K], probabilities or one-hot labels, void all 0.

    Returns:
      float32 logits [N, H, W, 1], high for maps drawn by hand.

    Raises:
      ValueError: a side below 32, which cannot be halved five times.
    """
    size = x.shape[1:3]
    if min(size) < STRIDE:
      raise ValueError(
        f'FullyConvDiscriminator: maps are {size[0]} x {size[1]}, must be at '
        f'least {STRIDE} x {STRIDE}'
      )
    for i in range(4):
      conv = Conv(
        self.width * 2**i, 4, 2, padding=1, dtype=self.dtype, name=f'layer{i}'
      )
      x = nn.leaky_relu(conv(x), 0.2)
    x = Conv(1, 4, 2, padding=1, dtype=self.dtype, name='layer4')(x)
    return upsampling.resize(x.astype(jnp.float32), size, align_corners=True)
