"""Inception-v3, whose features the Frechet and kernel distances compare.

Sources: Szegedy et al., Rethinking the Inception Architecture (CVPR 2016),
table 1 and figures 5, 6, 7 and 10, as the published weights are named; Heusel
et al., GANs Trained by a Two Time-Scale Update Rule (NeurIPS 2017), who compare
features of TensorFlow's graph of 2015.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Classes of TensorFlow's graph of 2015.
FID_CLASSES = 1008

# Pixels a side from which every map has at least one.
SMALLEST = 75

# Of images in [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Distances between features are smaller than what TPUs' fast products lose.
EXACT = lax.Precision.HIGHEST


class Step(NamedTuple):
  """One convolution of a branch.

  Attributes:
    name: as published.
    features: output channels, at the published width.
    size: (rows, columns) of the kernel.
    stride: 1, or 2 without padding.
  """

  name: str
  features: int
  size: tuple[int, int] = (1, 1)
  stride: int = 1


# A branch is a row of steps; a string among them names a pooling, a tuple of
# steps reads one input, its outputs side by side.
Branches = Sequence[Sequence[Any]]


class Outputs(NamedTuple):
  """What the distances compare.

  Attributes:
    pool: float32 [N, 2048], the means of the last maps.
    logits: float32 [N, K].
  """

  pool: jax.Array
  logits: jax.Array


def _a(pooled: int) -> Branches:
  return (
    (Step('branch1x1', 64),),
    (Step('branch5x5_1', 48), Step('branch5x5_2', 64, (5, 5))),
    (
      Step('branch3x3dbl_1', 64),
      Step('branch3x3dbl_2', 96, (3, 3)),
      Step('branch3x3dbl_3', 96, (3, 3)),
    ),
    ('average', Step('branch_pool', pooled)),
  )


def _b() -> Branches:
  return (
    (Step('branch3x3', 384, (3, 3), 2),),
    (
      Step('branch3x3dbl_1', 64),
      Step('branch3x3dbl_2', 96, (3, 3)),
      Step('branch3x3dbl_3', 96, (3, 3), 2),
    ),
    ('halve',),
  )


def _c(inner: int) -> Branches:
  return (
    (Step('branch1x1', 192),),
    (
      Step('branch7x7_1', inner),
      Step('branch7x7_2', inner, (1, 7)),
      Step('branch7x7_3', 192, (7, 1)),
    ),
    (
      Step('branch7x7dbl_1', inner),
      Step('branch7x7dbl_2', inner, (7, 1)),
      Step('branch7x7dbl_3', inner, (1, 7)),
      Step('branch7x7dbl_4', inner, (7, 1)),
      Step('branch7x7dbl_5', 192, (1, 7)),
    ),
    ('average', Step('branch_pool', 192)),
  )


def _d() -> Branches:
  return (
    (Step('branch3x3_1', 192), Step('branch3x3_2', 320, (3, 3), 2)),
    (
      Step('branch7x7x3_1', 192),
      Step('branch7x7x3_2', 192, (1, 7)),
      Step('branch7x7x3_3', 192, (7, 1)),
      Step('branch7x7x3_4', 192, (3, 3), 2),
    ),
    ('halve',),
  )


def _e(pooling: str) -> Branches:
  both = lambda name: (
    Step(f'{name}a', 384, (1, 3)),
    Step(f'{name}b', 384, (3, 1)),
  )
  return (
    (Step('branch1x1', 320),),
    (Step('branch3x3_1', 384), both('branch3x3_2')),
    (
      Step('branch3x3dbl_1', 448),
      Step('branch3x3dbl_2', 384, (3, 3)),
      both('branch3x3dbl_3'),
    ),
    (pooling, Step('branch_pool', 192)),
  )


def blocks(is_fid: bool) -> dict[str, Branches]:
  """The blocks of mixed kernels, in order."""
  return {
    'Mixed_5b': _a(32), 'Mixed_5c': _a(64), 'Mixed_5d': _a(64),
    'Mixed_6a': _b(), 'Mixed_6b': _c(128), 'Mixed_6c': _c(160),
    'Mixed_6d': _c(160), 'Mixed_6e': _c(192), 'Mixed_7a': _d(),
    'Mixed_7b': _e('average'), 'Mixed_7c': _e('max' if is_fid else 'average'),
  }  # fmt: skip


class ConvNorm(nn.Module):
  """Convolution without bias, batch norm of epsilon 1e-3, ReLU.

  Attributes:
    features: output channels.
    size: (rows, columns) of the kernel.
    stride: 1 or 2.
    pad: whether zeros around keep the size.
  """

  features: int
  size: tuple[int, int]
  stride: int = 1
  pad: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', features]."""
    pads = [(k // 2 if self.pad else 0,) * 2 for k in self.size]
    x = nn.Conv(
      self.features, self.size, self.stride, pads, use_bias=False,
      precision=EXACT, name='conv',
    )(x)  # fmt: skip
    return nn.relu(
      nn.BatchNorm(use_running_average=True, epsilon=1e-3, name='bn')(x)
    )


class Block(nn.Module):
  """Branches that read one input, their outputs side by side.

  Attributes:
    branches: see `blocks`.
    width: of the network.
    is_fid: whether averages leave out what lies beyond the border.
  """

  branches: Branches
  width: int
  is_fid: bool

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', sum of the branches' channels]."""
    outputs = []
    for branch in self.branches:
      y = x
      for step in branch:
        y = self._step(step, y)
      outputs.append(y)
    return jnp.concatenate(outputs, -1)

  def _step(self, step, x):
    if step == 'halve':
      return nn.max_pool(x, (3, 3), (2, 2))
    around = (3, 3), (1, 1), ((1, 1), (1, 1))
    if step == 'max':
      return nn.max_pool(x, *around)
    if step == 'average':
      return nn.avg_pool(x, *around, count_include_pad=not self.is_fid)
    if not isinstance(step, Step):
      return jnp.concatenate([self._step(part, x) for part in step], -1)
    return ConvNorm(
      step.features * self.width // 32, step.size, step.stride,
      step.stride == 1, name=step.name,
    )(x)  # fmt: skip


class InceptionV3(nn.Module):
  """The classifier, in use only: statistics stay as they are.

  Attributes:
    num_classes: K; 1008 in TensorFlow's graph of 2015, 1000 in torchvision's.
    is_fid: as in that graph, average pooling leaves out what lies beyond the
      border, and the last block's pooling is a maximum.
    width: channels of the first convolution; 32 as published, even.
    transform_input: whether images are normalised by ImageNet's mean and
      standard deviation and are brought to [-1, 1] first, as torchvision does.
  """

  num_classes: int = FID_CLASSES
  is_fid: bool = True
  width: int = 32
  transform_input: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> Outputs:
    """Classifies images.

    Args:
      images: [N, H, W, 3] in [-1, 1], 299 pixels a side as published, at least
        SMALLEST.
    """
    x = images.astype(jnp.float32)
    if self.transform_input:
      mean, std = jnp.array(IMAGENET_MEAN), jnp.array(IMAGENET_STD)
      x = 2 * (x * std + mean) - 1
    conv = lambda name, features, k, stride, pad: ConvNorm(
      features * self.width // 32, (k, k), stride, pad, name=name
    )
    x = conv('Conv2d_1a_3x3', 32, 3, 2, False)(x)
    x = conv('Conv2d_2a_3x3', 32, 3, 1, False)(x)
    x = conv('Conv2d_2b_3x3', 64, 3, 1, True)(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = conv('Conv2d_3b_1x1', 80, 1, 1, False)(x)
    x = conv('Conv2d_4a_3x3', 192, 3, 1, False)(x)
    x = nn.max_pool(x, (3, 3), (2, 2))
    for name, branches in blocks(self.is_fid).items():
      x = Block(branches, self.width, self.is_fid, name=name)(x)
    pool = x.mean((1, 2))
    logits = nn.Dense(self.num_classes, precision=EXACT, name='fc')(pool)
    return Outputs(pool, logits)


def of_variables(variables: dict[str, Any]) -> InceptionV3:
  """The module that variables are of; of 1008 classes: `is_fid`."""
  params = variables['params']
  num_classes = params['fc']['bias'].shape[0]
  width = params['Conv2d_1a_3x3']['conv']['kernel'].shape[-1]
  return InceptionV3(num_classes, num_classes == FID_CLASSES, width)


def features(variables: dict[str, Any], images: jax.Array) -> Outputs:
  """Runs the network that the variables are of.

  Args:
    variables: {'params', 'batch_stats'}, e.g. of converted weights.
    images: [N, H, W, 3] in [-1, 1], 299 pixels a side, see
      `metrics.frechet.prepare`.

  Returns:
    pool and logits.
  """
  return of_variables(variables).apply(variables, images)
