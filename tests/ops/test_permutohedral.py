"""The permutohedral lattice beside two other implementations."""

import crf_by_pydensecrf as peer
import jax
import jax.numpy as jnp
import lattice_by_hand
import numpy as np
import pytest
from test_bilateral import SIDE, worked_example

from jaxseg.ops import bilateral, permutohedral


@jax.jit
def both(features, values):
  lattice = permutohedral.build(features)
  return permutohedral.filter(lattice, values), lattice


def run(features, values):
  return both(features, values)[0]


def points(dims, spread=1.5, count=150):
  rng = np.random.default_rng(dims)
  features = rng.normal(0, spread, (count, dims)).astype(np.float32)
  return features, rng.normal(size=(count, 2)).astype(np.float32)


@pytest.mark.parametrize('dims, spread', ((2, 1.5), (5, 3)))
def test_by_hand(dims, spread):
  """Points in cloud and apart, far from 0, on vertices and on edges."""
  features, values = points(dims, spread)
  features[:40] += 20
  features[40:50] = 0
  features[50:60, 0] = -7
  expected, count = lattice_by_hand.filtered(features, values)
  found, lattice = both(features, values)
  assert int(lattice.vertices) == count and not lattice.overflow
  np.testing.assert_allclose(lattice.weights.sum(0), 1, rtol=1e-5)
  assert lattice.weights.min() > -1e-5
  np.testing.assert_allclose(found, expected, atol=5e-5)


# S'AS and (A S)[0, 0] of the released C++ code.
@pytest.mark.parametrize('rgb, xy, association, first', (
  (15, 100, 187.2262, 0.3529173),
  (60, 8, 1964.998, 2.5509613),
  (13, 80 / 12, 101.9221, 0.3072889),
))  # fmt: skip
def test_worked_example(rgb, xy, association, first):
  image, soft = worked_example()
  found = run(bilateral.features(image, xy / SIDE, rgb), soft)
  np.testing.assert_allclose((soft * found).sum(), association, rtol=2e-6)
  np.testing.assert_allclose(found[0, 0], first, rtol=2e-6)


@pytest.mark.parametrize('name', peer.FILTERS)
def test_pydensecrf(name, goldens):
  xy, rgb = peer.FILTERS[name]
  image, values = peer.filter_example()
  side = max(image.shape)
  features = bilateral.features(image / 127.5 - 1, xy / side, rgb)
  found = run(features, 2 * values[:, None] - 1)[:, 0]
  np.testing.assert_allclose(found, goldens[f'filter_{name}'], atol=2e-4)


@pytest.mark.parametrize('name', peer.FILTERS)
def test_pydensecrf_gave_the_goldens(name, goldens):
  pytest.importorskip('pydensecrf', reason='pip install pydensecrf2')
  found = peer.filtered(*peer.filter_example(), *peer.FILTERS[name])
  np.testing.assert_allclose(found, goldens[f'filter_{name}'], atol=2e-4)


@pytest.fixture(scope='module')
def goldens():
  return peer.goldens()


def test_it_is_nearly_the_exact_filter():
  """Up to a factor, on a smooth image."""
  image, soft = worked_example()
  features = bilateral.features(image, 8 / SIDE, 60)
  exact, found = bilateral.exact(features, soft), run(features, soft)
  factor = (exact * found).sum() / (found * found).sum()
  assert 1.5 < factor < 2.5
  error = jnp.linalg.norm(factor * found - exact) / jnp.linalg.norm(exact)
  assert error < 0.1


def test_gradient_is_the_filter():
  features, values = points(5)
  weights = jnp.square(values)
  found, lattice = both(features, weights)
  loss = lambda v: (permutohedral.filter(lattice, v) * weights).sum()
  grad = jax.jit(jax.grad(loss))(values)
  np.testing.assert_allclose(grad, found, rtol=1e-5, atol=1e-5)


def test_shortage_is_told():
  features, values = points(5)
  needed = int(both(features, values)[1].vertices)

  @jax.jit
  def short(features, values):
    lattice = permutohedral.build(features, needed - 1)
    return permutohedral.filter(lattice, values), lattice

  found, lattice = short(features, values)
  assert lattice.overflow and int(lattice.vertices) == needed
  assert np.isfinite(found).all()
  found, lattice = short(features / 10, values)  # close together
  assert not lattice.overflow
  expected = run(features / 10, values)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_too_wide_a_range_is_told():
  features, values = points(5)
  _, lattice = both(features * 200, values)
  assert lattice.overflow and lattice.vertices == permutohedral.TOO_WIDE
  assert not both(features * 5, values)[1].overflow


def test_capacity():
  assert permutohedral.capacity(100, 5) == 600  # always enough
  assert permutohedral.capacity(100, 5, 50) == 50
  assert permutohedral.capacity(100, 5, 601) == 600
  assert permutohedral.capacity(65**2, 5) == 2**14
  assert permutohedral.capacity(512**2, 5) == 512**2
  with pytest.raises(ValueError, match='max_vertices is -1, must be 0 or more'):
    permutohedral.capacity(100, 5, -1)
