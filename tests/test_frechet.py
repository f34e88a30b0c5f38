"""Distances of sets of images, against SciPy, loops and PyTorch."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from numpy.testing import assert_allclose
from torch_functions import F as functional
from torch_functions import from_torch, needed, to_torch

from jaxseg.metrics import frechet


def features(n, d, seed):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)


def test_by_hand():
  """Diagonal: sum over axes of (m1 - m2)^2 + (s1 - s2)^2."""
  first = np.array([0.0, 1, 5]), np.diag([4.0, 9, 1])
  second = np.array([3.0, 1, 1]), np.diag([1.0, 16, 1])
  value = frechet.frechet_distance(*first, *second)
  assert_allclose(value, 9 + 0 + 16 + 1 + 1 + 0)
  assert frechet.frechet_distance(*first, *first) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('count', (40, 6), ids=('regular', 'singular'))
def test_frechet_distance_of_scipy(count):
  a, b = (frechet.moments(features(count, 12, seed)) for seed in (0, 1))
  value = frechet.frechet_distance(a.mean, a.cov, b.mean, b.cov)
  # A little on the diagonal lets SciPy find the root of a singular product.
  ridge = 1e-9 * np.eye(12) * (count == 6)
  root = scipy.linalg.sqrtm((a.cov + ridge) @ (b.cov + ridge)).real
  wanted = np.square(a.mean - b.mean).sum()
  wanted += np.trace(a.cov + b.cov - 2 * root)
  assert_allclose(value, wanted, rtol=1e-9 if count == 40 else 1e-4)


def test_moments_come_in_parts():
  x = features(50, 7, 3) + 1e4  # far from zero, where sums of squares fail
  whole = frechet.moments(x)
  assert_allclose(whole.cov, np.cov(x.T), rtol=1e-10)
  parts = frechet.merge(
    frechet.merge(frechet.moments(x[:1]), frechet.moments(x[1:30])),
    frechet.moments(x[30:]),
  )
  for a, b in zip(whole, parts, strict=True):
    assert_allclose(a, b, rtol=1e-10)
  with pytest.raises(ValueError, match='found 1'):
    _ = frechet.moments(x[:1]).cov


def test_moments_of_batches_of_images():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 8, 8, 1), np.uint8)
  network = lambda x: x.mean((1, 2))
  found = frechet.moments_of([images[:2], images[2:]], network)
  wanted = frechet.moments(network(frechet.prepare(images)))
  for a, b in zip(found, wanted, strict=True):
    assert_allclose(a, b)
  with pytest.raises(ValueError, match='no images'):
    frechet.moments_of([], network)


def test_kernel_distance_by_loops():
  x, y = features(6, 4, 0), features(6, 4, 1)
  kernel = lambda a, b: (a @ b / 4 + 1) ** 3
  inside = lambda z: np.mean(
    [kernel(a, b) for a, b in itertools.permutations(z, 2)]
  )
  across = np.mean([kernel(a, b) for a, b in itertools.product(x, y)])
  wanted = inside(x) + inside(y) - 2 * across
  assert_allclose(frechet.kernel_distance(x, y, subsets=3), wanted)


def test_kernel_distance_of_subsets():
  """Near zero for one distribution, of the same draw for the same seed."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 400, 8))
  compute = lambda y, seed=0: frechet.kernel_distance(x, y, 20, 50, seed)
  assert abs(compute(y)) < 0.03 < 0.3 < compute(y + 1)
  assert compute(y) == compute(y) != compute(y, 1)
  with pytest.raises(ValueError, match='found 1'):
    frechet.kernel_distance(x, y[:1])


@needed
@pytest.mark.parametrize('size', ((40, 61), (350, 299)))
def test_bilinear_of_torch(size):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, *size, 3), np.uint8)
  theirs = functional.interpolate(
    to_torch(images) / 255, (299, 299), mode='bilinear', align_corners=False
  )
  found = frechet.prepare(images, 'legacy_pytorch')
  assert_allclose(found, from_torch(2 * theirs - 1), atol=1e-4)


def test_clean_resizing():
  """A wave too fine for 299 pixels vanishes; overshoot is clipped."""
  image = np.zeros((1, 598, 598, 3), np.uint8)
  image[:, ::2] = 200
  found = frechet.prepare(image)
  assert found.shape == (1, 299, 299, 3) and found.dtype == np.float32
  assert_allclose(found[0, 5:-5, 5:-5], (100 - 128) / 128, atol=1e-3)
  edge = np.zeros((1, 20, 20, 1), np.uint8)
  edge[:, 10:] = 255
  found = frechet.prepare(edge)
  assert found.min() == -1 and found.max() == np.float32(127 / 128)
  with pytest.raises(ValueError, match="'tensorflow'"):
    frechet.prepare(edge, 'tensorflow')
