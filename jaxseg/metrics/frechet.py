"""Distances between two sets of images, through the features of a network.

Sources: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (NeurIPS
2017), equation 6 (Frechet Inception distance); Binkowski et al., Demystifying
MMD GANs (ICLR 2018), section 3 (kernel Inception distance); Parmar et al., On
Aliased Resizing (CVPR 2022), whose way of resizing `prepare` follows. Sums are
taken on the host, in float64.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image

# Side of Inception's images.
SIDE = 299

RESIZINGS = ('clean', 'legacy_pytorch')


class Moments(NamedTuple):
  """What the Frechet distance needs of a set of features.

  Attributes:
    count: number of them.
    mean: float64 [D].
    scatter: float64 [D, D], the sum of outer products around the mean.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @property
  def cov(self) -> np.ndarray:
    """The unbiased covariance, float64 [D, D]."""
    if self.count < 2:
      raise ValueError(f'a covariance needs two features, found {self.count}')
    return self.scatter / (self.count - 1)


def moments(features: np.ndarray) -> Moments:
  """Of features [N, D], N > 0."""
  x = np.asarray(features, np.float64)
  mean = x.mean(0)
  return Moments(len(x), mean, (x - mean).T @ (x - mean))


def merge(a: Moments, b: Moments) -> Moments:
  """Of two sets together (Chan et al. 1983), so that sets may come in parts."""
  count = a.count + b.count
  step = b.mean - a.mean
  scatter = np.outer(step, step) * (a.count * b.count / count)
  mean = a.mean + step * (b.count / count)
  return Moments(count, mean, a.scatter + b.scatter + scatter)


def moments_of(
  images: Iterable[np.ndarray],
  features: Callable[[np.ndarray], np.ndarray],
  resizing: str = 'clean',
) -> Moments:
  """Runs a network on batches of images.

  Args:
    images: batches [N, H, W, C] in [0, 255], at least one.
    features: of images as `prepare` returns them -> [N, D], such as
      `nets.inception.features(variables, images).pool`, jitted.
    resizing: see `prepare`.

  Raises:
    ValueError: no batch, or another resizing.
  """
  total = None
  for batch in images:
    part = moments(features(prepare(batch, resizing)))
    total = part if total is None else merge(total, part)
  if total is None:
    raise ValueError('there are no images')
  return total


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """Squared Frechet distance of two Gaussians.

  |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2). Estimated from N features it is
  too large, by an amount that falls with 1 / N: compare only equal N, and use
  some 10 000 images or more.

  Args:
    mean1, mean2: [D].
    cov1, cov2: [D, D], symmetric and without negative eigenvalues; they may be
      singular.
  """
  mean1, cov1, mean2, cov2 = (
    np.asarray(x, np.float64) for x in (mean1, cov1, mean2, cov2)
  )
  # C1 C2 has the eigenvalues of the symmetric C1^1/2 C2 C1^1/2.
  values, vectors = np.linalg.eigh(cov1)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  inner = root @ cov2 @ root
  values = np.linalg.eigvalsh((inner + inner.T) / 2)
  cross = np.sqrt(np.maximum(values, 0)).sum()
  gap = np.square(mean1 - mean2).sum()
  return float(gap + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def kernel_distance(
  features1: np.ndarray,
  features2: np.ndarray,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 0,
) -> float:
  """Squared maximum mean discrepancy with the kernel (x . y / D + 1)^3.

  The unbiased estimate, a mean over random subsets; it may be below zero.

  Args:
    features1: [N, D].
    features2: [M, D].
    subsets: how many are drawn, without replacement within each.
    size: of a subset at most; also at most N and M.
    seed: of the draws.

  Raises:
    ValueError: a set has fewer than two features.
  """
  x, y = (np.asarray(f, np.float64) for f in (features1, features2))
  size = min(size, len(x), len(y))
  if size < 2:
    raise ValueError(f'two features are needed of each set, found {size}')
  rng = np.random.default_rng(seed)
  kernel = lambda a, b: (a @ b.T / x.shape[1] + 1) ** 3
  others = lambda k: (k.sum() - np.trace(k)) / (size * (size - 1))
  total = 0.0
  for _ in range(subsets):
    a = x[rng.choice(len(x), size, replace=False)]
    b = y[rng.choice(len(y), size, replace=False)]
    total += others(kernel(a, a)) + others(kernel(b, b))
    total -= 2 * kernel(a, b).mean()
  return float(total / subsets)


def prepare(images: np.ndarray, resizing: str = 'clean') -> np.ndarray:
  """Brings images to Inception's size and range.

  Args:
    images: [N, H, W, C] in [0, 255], any dtype; C is 3, or 1 for grey.
    resizing: 'clean': bicubic with low-pass filter, each channel in floating
      point, clipped, then (x - 128) / 128, as clean-fid; 'legacy_pytorch':
      bilinear without a filter, corners not aligned, then x / 127.5 - 1, as
      pytorch-fid. Distances of one are not comparable with the other's.

  Returns:
    float32 [N, 299, 299, 3].

  Raises:
    ValueError: another resizing.
  """
  if resizing not in RESIZINGS:
    raise ValueError(
      f'resizing is {resizing!r}, must be one of {", ".join(RESIZINGS)}'
    )
  x = np.asarray(images, np.float32)
  if x.shape[-1] == 1:
    x = np.repeat(x, 3, -1)
  if resizing == 'clean':
    x = np.stack([_bicubic(image) for image in x])
    return (np.clip(x, 0, 255) - 128) / 128
  return _bilinear(_bilinear(x, 1), 2) / np.float32(127.5) - 1


def _bicubic(image):
  channels = [
    Image.fromarray(channel).resize((SIDE, SIDE), Image.BICUBIC)
    for channel in np.ascontiguousarray(image.transpose(2, 0, 1))
  ]
  return np.stack([np.asarray(channel) for channel in channels], -1)


def _bilinear(x, axis):
  """One axis at SIDE places, each between its two neighbours."""
  size = x.shape[axis]
  place = np.maximum((np.arange(SIDE) + 0.5) * (size / SIDE) - 0.5, 0)
  low = np.minimum(place.astype(int), size - 1)
  high = np.minimum(low + 1, size - 1)
  shape = [1] * x.ndim
  shape[axis] = SIDE
  share = (place - low).astype(np.float32).reshape(shape)
  return x.take(low, axis) * (1 - share) + x.take(high, axis) * share
