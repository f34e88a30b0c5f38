"""The flaw detector of guided collaborative training.

Source: Ke et al., Guided Collaborative Training for Pixel-wise Semi-Supervised
Learning (ECCV 2020), section 3; the normalisation is that of Pan et al., Two at
Once (IBN-Net, ECCV 2018), halves of the channels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets import upsampling
from jaxseg.nets.discriminators import instance_norm
from jaxseg.nets.layers import Conv, Dtype

# Name, multiple of the width, and whether the layer halves the map as
# published. All kernels are 4x4 with one zero around, so that the others take
# one row and one column away. A last layer, 'classifier', halves as well.
LAYERS = (
  ('conv1', 1, True),
  ('conv2', 2, True),
  ('conv2_1', 2, False),
  ('conv3', 4, True),
  ('conv3_1', 4, False),
  ('conv4', 8, True),
  ('conv4_1', 8, False),
)
STRIDES = (32, 16, 8, 4, 2, 1)  # the first is published


class IBNorm(nn.Module):
  """Batch norm of the first half of the channels, instance norm of the rest.

  Batch norm has a scale and a bias, and averages its statistics in the
  collection 'batch_stats'; instance norm has neither, in training and in use.
  """

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, C], C even -> float32 [N, H, W, C]."""
    half = x.shape[-1] // 2
    x = x.astype(jnp.float32)
    batch = nn.BatchNorm(
      use_running_average=not train, momentum=0.9, epsilon=1e-5, name='batch'
    )(x[..., :half])
    return jnp.concatenate([batch, instance_norm(x[..., half:])], -1)


class FlawDetector(nn.Module):
  """Says where a prediction is wrong, from the image and the prediction.

  The published map has one cell for 32 x 32 pixels, none at all below 60
  pixels a side and only one up to 91. A smaller `stride` leaves the last
  layers' halving out, for small images; the parameters are the same.

  Attributes:
    width: channels of the first layer, even; 64 is published: 8.29 M parameters
      for 24 input channels.
    stride: one of STRIDES, see `fitting_stride`.
    dtype: dtype of the convolutions; None: float32.
  """

  width: int = 64
  stride: int = 32
  dtype: Dtype = None

  @nn.compact
  def __call__(
    self, image: jax.Array, probabilities: jax.Array, train: bool = False
  ) -> jax.Array:
    """Maps the flaws of a prediction.

    Args:
      image: [N, H, W, C] in [-1, 1].
      probabilities: [N, H, W, K], sum to 1 over K.
      train: whether batch norm uses the statistics of the batch, and averages
        them.

    Returns:
      float32 [N, H, W], about 0 where the prediction is right and 1 where it is
      wrong; not bounded.

    Raises:
      ValueError: a side too small for the stride.
    """
    size = image.shape[1:3]
    if cells(min(size), self.stride) < 1:
      raise ValueError(
        f'FlawDetector: images are {size[0]} x {size[1]}, must be at least '
        f'{smallest_side(self.stride, 1)} a side for stride {self.stride}'
      )
    x = jnp.concatenate([image, probabilities.astype(image.dtype)], -1)
    *strides, last = _layer_strides(self.stride)
    for (name, factor, _), stride in zip(LAYERS, strides, strict=True):
      x = Conv(
        self.width * factor, 4, stride, padding=1, dtype=self.dtype, name=name
      )(x)
      x = IBNorm(name=name.replace('conv', 'norm'))(x, train)
      x = nn.leaky_relu(x, 0.2)
    x = Conv(1, 4, last, padding=1, dtype=self.dtype, name='classifier')(x)
    x = upsampling.resize(x.astype(jnp.float32), size, align_corners=True)
    return x[..., 0]


def _layer_strides(stride):
  """Stride of each layer: the first log2(stride) that may halve, do."""
  strides = []
  for halves in (*(halves for _, _, halves in LAYERS), True):
    strides.append(2 if halves and stride > 1 else 1)
    stride //= strides[-1]
  return strides


def cells(side: int, stride: int) -> int:
  """Cells a side of the flaw map before it is interpolated; 0: none.

  Args:
    side: of the images, in pixels.
    stride: one of STRIDES.
  """
  for layer in _layer_strides(stride):
    side = max(0, (side - 2) // layer + 1)
  return side


def smallest_side(stride: int, least: int) -> int:
  """The smallest side of images whose flaw map has `least` cells a side."""
  side = 1
  while cells(side, stride) < least:
    side += 1
  return side


def fitting_stride(side: int) -> int:
  """The greatest stride that leaves 5 cells a side: 32 from 188 pixels on."""
  return next((s for s in STRIDES if cells(side, s) >= 5), 1)
