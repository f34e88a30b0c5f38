"""VGG16's convolutions (Simonyan and Zisserman, ICLR 2015, configuration D)."""

import flax.linen as nn
import jax

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  Features,
  normalize,
  remat_if,
)
from jaxseg.nets.upsampling import max_pool_with_indices

# Channels of the convolutions between poolings, in units of the first's.
GROUPS = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))

# He et al., Delving Deep into Rectifiers (ICCV 2015), equation 10: without
# normalisation the signal would not survive 13 layers of a smaller variance.
he_normal = nn.initializers.he_normal()


def conv_norm_relu(
  x: jax.Array,
  features: int,
  index: int,
  norm: str,
  train: bool,
  dtype: Dtype,
  padding: int = 1,
) -> jax.Array:
  """Adds 'conv{index}', 'norm{index}' to the compact module that calls this.

  Args:
    x: [N, H, W, I].
    features: output channels.
    index: of the layer.
    norm: as of `layers.normalize`, or 'none'. The convolution has a bias in
      either case, as published.
    train: as of `layers.normalize`.
    dtype: dtype of the convolution; None: that of x.
    padding: zeros on each side; 1 keeps the size.

  Returns:
    [N, H', W', features], H' = H + 2 padding - 2.
  """
  x = Conv(
    features, padding=padding, dtype=dtype, kernel_init=he_normal,
    name=f'conv{index}',
  )(x)  # fmt: skip
  if norm != 'none':
    x = normalize(x, norm, train, f'norm{index}')
  return nn.relu(x)


def vgg16(
  x: jax.Array,
  width: int,
  norm: str,
  train: bool,
  dtype: Dtype = None,
  padding: int = 1,
  remat: nn.Module | None = None,
) -> Features:
  """Adds the 13 convolutions, 'conv0' and on, to the module that calls this.

  Args:
    x: [N, H, W, C], any size.
    width: channels of the first convolution; 64 as published.
    norm: 'group', 'batch', 'frozen' or 'none'.
    train: as of `layers.normalize`.
    dtype: dtype of the convolutions; None: that of x.
    padding: zeros on each side of the first convolution.
    remat: the module that calls this; what lies between poolings is then
      computed anew for the gradient, see `layers.remat_if`.

  Returns:
    The maps after each of the 5 poolings, of strides 2 to 32 and ceiled sizes,
    with width times 1, 2, 4, 8, 8 channels, and the poolings' indices.
  """

  def convolved(module, x, group, first):
    del module
    for i, factor in enumerate(group, start=first):
      x = conv_norm_relu(
        x, width * factor, i, norm, train, dtype, 1 if i else padding
      )
    return max_pool_with_indices(x)

  convolved = remat_if(remat is not None, convolved, (2, 3))
  maps, indices = [], []
  i = 0
  for group in GROUPS:
    x, where = convolved(remat, x, group, i)
    i += len(group)
    maps.append(x)
    indices.append(where)
  return Features(tuple(maps), tuple(indices))
