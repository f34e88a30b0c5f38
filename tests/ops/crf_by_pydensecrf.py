"""What tests/goldens/dense_crf.npz was made with: pydensecrf2 1.1.

`DenseCRF2D` with its defaults: symmetric normalisation, Potts compatibility.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
  """Standard deviations of positions are in pixels."""

  size: tuple[int, int, int]  # H, W, K
  bilateral: tuple[float, float, float]  # weight, xy, rgb
  spatial: tuple[float, float]  # weight, xy


CASES = {
  'two_classes': Case((20, 32, 2), (10.0, 16.0, 13.0), (3.0, 2.0)),
  'four_classes': Case((24, 24, 4), (5.0, 8.0, 40.0), (3.0, 1.0)),
  'many_classes': Case((28, 16, 21), (4.0, 20.0, 8.0), (0.0, 1.0)),
  'positions_alone': Case((12, 18, 4), (0.0, 1.0, 1.0), (3.0, 1.5)),
}
# Standard deviations of positions and colours.
FILTERS = {'wide': (30.0, 40.0), 'narrow': (6.0, 13.0), 'positions': (3.0, 0.0)}


def example(case):
  """An image uint8 [H, W, 3] of noisy blobs, logits [H, W, K] as noisy."""
  rng = np.random.default_rng(0)
  h, w, k = case.size
  y, x = np.mgrid[:h, :w] / max(h, w)
  places = rng.uniform(0, 1, (k, 2)) * (h, w) / max(h, w)
  near = np.stack([-20 * ((y - a) ** 2 + (x - b) ** 2) for a, b in places], -1)
  colours = rng.uniform(20, 235, (k, 3))
  image = colours[near.argmax(-1)] + rng.normal(0, 8, (h, w, 3))
  logits = near / 4 + rng.normal(0, 1, (h, w, k))
  return image.clip(0, 255).astype(np.uint8), logits.astype(np.float32)


def filter_example():
  """An image, and a map [P] in [0, 1] to filter."""
  case = CASES['two_classes']
  return example(case)[0], np.random.default_rng(1).uniform(size=20 * 32)


def mean_field(image, logits, case, iterations=10):
  """Probabilities float32 [H, W, K]."""
  from pydensecrf import densecrf

  h, w, k = case.size
  crf = densecrf.DenseCRF2D(w, h, k)
  crf.setUnaryEnergy(_energy(logits.reshape(-1, k)))
  weight, xy, rgb = case.bilateral
  if weight:
    crf.addPairwiseBilateral(xy, rgb, rgbim=image, compat=weight)
  weight, xy = case.spatial
  if weight:
    crf.addPairwiseGaussian(xy, compat=weight)
  return np.array(crf.inference(iterations)).T.reshape(h, w, k)


def filtered(image, values, xy, rgb, weight=0.02):
  """The lattice's answer for 2 values - 1, float32 [P].

  It is read off one iteration, without normalisation, of two classes of
  probabilities v and 1 - v: their logits grow by weight times it.
  """
  from pydensecrf import densecrf

  h, w, _ = image.shape
  both = np.stack([values, 1 - values], -1)
  crf = densecrf.DenseCRF2D(w, h, 2)
  crf.setUnaryEnergy(_energy(np.log(both)))
  if rgb:
    args = dict(sxy=xy, srgb=rgb, rgbim=image)
    add = crf.addPairwiseBilateral
  else:
    args, add = dict(sxy=xy), crf.addPairwiseGaussian
  add(**args, compat=weight, normalization=densecrf.NO_NORMALIZATION)
  after = np.array(crf.inference(1), np.float64)
  logit = np.log(after[0] / after[1]) - np.log(both[:, 0] / both[:, 1])
  return (logit / weight).astype(np.float32)


def _energy(logits):
  logits = logits - logits.max(-1, keepdims=True)
  found = np.log(np.exp(logits).sum(-1, keepdims=True)) - logits
  return np.ascontiguousarray(found.T, np.float32)


def goldens():
  """What tests/goldens/dense_crf.npz holds: {name: array}."""
  folder = Path(__file__).resolve().parents[1] / 'goldens'
  return dict(np.load(folder / 'dense_crf.npz'))
