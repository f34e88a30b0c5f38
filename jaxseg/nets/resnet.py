"""ResNet as an encoder of segmenters.

Sources: He et al., Deep Residual Learning (CVPR 2016), table 1; in the form of
torchvision, whose ImageNet weights fit: the stride in the 3x3 convolution
("v1.5"), no pre-activation. Chen et al., Rethinking Atrous Convolution (2017),
section 3 (dilation in place of stride, multi-grid).
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxseg.nets.layers import Conv, Dtype, normalize, remat_if
from jaxseg.ops.pooling import max_pool

# Residual blocks of each stage; bottlenecks from depth 50 on.
DEPTHS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}

# Keeps the variance of gradients through ReLUs (He et al. 2015, equation 14).
he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class ResNet(nn.Module):
  """Bottom-up features at four strides.

  A stage whose stride is replaced by dilation computes what it would with the
  stride, at every pixel in between as well: convolutions that read the map
  before that stride keep their dilation, all later ones have it doubled.

  Attributes:
    depth: 18, 34, 50, 101 or 152.
    width: channels of the stem; 64 is the published size.
    output_stride: 32, 16 or 8, the coarsest map's.
    multi_grid: factors of the dilation in the blocks of stage 4; (): all 1.
      Chen et al. use (1, 2, 4) with three blocks.
    norm: 'group', 'batch' or 'frozen', see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    depths: blocks of each stage, for other sizes; None: those of `depth`.
    remat: compute blocks anew for the gradient, see `layers.remat_if`.
  """

  depth: int = 50
  width: int = 64
  output_stride: int = 32
  multi_grid: Sequence[int] = ()
  norm: str = 'group'
  dtype: Dtype = None
  depths: Sequence[int] | None = None
  remat: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
    """Encodes images.

    Args:
      x: [N, H, W, C].
      train: whether norm 'batch' uses the statistics of the batch.

    Returns:
      outputs of the stages 1 to 4, [N, ceil(H / s), ceil(W / s), F] in `dtype`:
      strides s = 4, 8, 16, 32, none above `output_stride`; F = width, 2 width,
      4 width, 8 width, four times that with bottlenecks.

    Raises:
      ValueError: another depth or output stride, or a `multi_grid` that is not
        as long as stage 4.
    """
    depths = self._checked_depths()
    x = Conv(
      self.width, 7, 2, use_bias=False, dtype=self.dtype,
      kernel_init=he_fan_out, name='stem',
    )(x)  # fmt: skip
    x = max_pool(nn.relu(normalize(x, self.norm, train, 'norm_stem')))
    kind = BasicBlock if self.depth < 50 else Bottleneck
    block = remat_if(self.remat, kind, (2,))
    maps, reached, dilation = [], 4, 1
    for stage, depth in enumerate(depths, start=1):
      step = 1 if stage == 1 else 2
      stride = step if reached * step <= self.output_stride else 1
      before, dilation = dilation, dilation * step // stride
      reached *= stride
      grid = (self.multi_grid if stage == 4 else ()) or (1,) * depth
      for j in range(depth):
        x = block(
          self.width * 2 ** (stage - 1),
          stride if j == 0 else 1,
          ((before if j == 0 else dilation) * grid[j], dilation * grid[j]),
          self.norm,
          self.dtype,
          name=f'layer{stage}_block{j}',
        )(x, train)
      maps.append(x)
    return tuple(maps)

  def _checked_depths(self):
    if self.depth not in DEPTHS:
      raise ValueError(
        f'depth is {self.depth}, must be one of {", ".join(map(str, DEPTHS))}'
      )
    if self.output_stride not in (8, 16, 32):
      raise ValueError(
        f'output_stride is {self.output_stride}, must be 8, 16 or 32'
      )
    depths = tuple(self.depths or DEPTHS[self.depth])
    if self.multi_grid and len(self.multi_grid) != depths[3]:
      raise ValueError(
        f'multi_grid has {len(self.multi_grid)} factors, but stage 4 has '
        f'{depths[3]} blocks'
      )
    return depths


class BasicBlock(nn.Module):
  """Residual block 3x3, 3x3; stride in the first.

  Attributes:
    width: channels.
    stride: 1 or 2.
    dilations: of convolutions before and after the stride.
    norm: see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
  """

  width: int
  stride: int = 1
  dilations: tuple[int, int] = (1, 1)
  norm: str = 'group'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, ceil(H / stride), ceil(W / stride), width]."""
    conv = functools.partial(_conv, self, train)
    before, after = self.dilations
    y = nn.relu(conv(1, x, self.width, 3, self.stride, before))
    y = conv(2, y, self.width, 3, 1, after)
    return nn.relu(y + _shortcut(self, train, x, y.shape[-1]))


class Bottleneck(nn.Module):
  """Residual block 1x1, 3x3, 1x1; stride in the 3x3.

  Attributes:
    width: channels of the 3x3 convolution.
    stride: 1 or 2.
    dilations: as of BasicBlock; the first counts.
    norm: see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
  """

  width: int
  stride: int = 1
  dilations: tuple[int, int] = (1, 1)
  norm: str = 'group'
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[N, H, W, I] -> [N, ceil(H / stride), ceil(W / stride), 4 width]."""
    conv = functools.partial(_conv, self, train)
    y = nn.relu(conv(1, x, self.width, 1))
    y = nn.relu(conv(2, y, self.width, 3, self.stride, self.dilations[0]))
    y = conv(3, y, 4 * self.width, 1)
    return nn.relu(y + _shortcut(self, train, x, y.shape[-1]))


def _conv(block, train, i, x, features, k, stride=1, dilation=1):
  """Convolution i and its normalisation, in the scope of a block."""
  conv, norm = (f'conv{i}', f'norm{i}') if i else ('shortcut', 'norm_shortcut')
  x = Conv(
    features, k, stride, use_bias=False, dtype=block.dtype, dilation=dilation,
    kernel_init=he_fan_out, name=conv,
  )(x)  # fmt: skip
  return normalize(x, block.norm, train, norm)


def _shortcut(block, train, x, features):
  """The input, brought to the size of the output where that differs."""
  if x.shape[-1] == features and block.stride == 1:
    return x
  return _conv(block, train, 0, x, features, 1, block.stride)
