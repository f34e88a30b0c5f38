"""The replay pool, against a pool that is a Python list."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxseg.methods import replay

GOLDEN = Path(__file__).parents[1] / 'goldens' / 'cyclegan_bookkeeping.npz'


def by_list(kept, places, batch, swap, slot):
  """Changes `kept`; returns what is handed on."""
  given = []
  for x, coin, i in zip(batch, swap, slot, strict=True):
    if len(kept) < places:
      kept.append(x)
      given.append(x)
    elif coin:
      given.append(kept[i])
      kept[i] = x
    else:
      given.append(x)
  return given


def decisions(rng, groups, places, probability=0.5):
  """What `exchange` draws."""
  coins, slots = jax.random.split(rng)
  return (
    np.asarray(jax.random.bernoulli(coins, probability, (groups,))),
    np.asarray(jax.random.randint(slots, (groups,), 0, places)),
  )


def example(value):
  """Two arrays that tell which example they belong to."""
  return {'image': np.full((2, 3), value, np.float32), 'valid': value % 2 == 0}


def stacked(values):
  return jax.tree.map(lambda *x: np.stack(x), *map(example, values))


@pytest.mark.parametrize('n', [1, 3, 8])
def test_images_one_by_one(n):
  places, step = 4, jax.jit(replay.exchange)
  pool = replay.empty(places, jax.tree.map(jnp.asarray, example(0)))
  kept = []
  for t in range(24 // n):
    rng = jax.random.key(t)
    values = np.arange(100 + t * n, 100 + (t + 1) * n)
    wanted = by_list(kept, places, values, *decisions(rng, n, places))
    pool, given = step(pool, stacked(values), rng)
    assert_array_equal(given['image'][:, 0, 0], wanted)
    assert_array_equal(given['valid'], np.array(wanted) % 2 == 0)
    assert int(pool.count) == len(kept)
    assert_array_equal(pool.items['image'][: len(kept), 1, 2], kept)
    assert_array_equal(
      pool.items['valid'][: len(kept)], np.array(kept) % 2 == 0
    )


def test_whole_batches():
  # Seven places hold three batches of two.
  pool, kept = replay.empty(7, jnp.zeros(2)), []
  step = jax.jit(replay.exchange, static_argnames='whole_batches')
  for t in range(12):
    rng = jax.random.key(t)
    wanted = by_list(kept, 3, [t], *decisions(rng, 1, 3))[0]
    batch = jnp.array([[t, 0.0], [t, 0.5]])
    pool, given = step(pool, batch, rng, whole_batches=True)
    assert_array_equal(given, [[wanted, 0], [wanted, 0.5]])
    firsts = np.asarray(pool.items)[: 2 * len(kept) : 2, 0]
    assert_array_equal(firsts, kept)


def test_a_pool_smaller_than_a_batch_keeps_none():
  pool, batch = replay.empty(1, jnp.zeros(())), jnp.array([1.0, 2.0])
  after, given = replay.exchange(
    pool, batch, jax.random.key(0), whole_batches=True
  )
  assert_array_equal(given, batch)
  assert int(after.count) == 0


@pytest.mark.parametrize(('probability', 'share'), [(0.0, 0), (1.0, 1)])
def test_probability(probability, share):
  pool = replay.empty(2, jnp.zeros(()))
  pool, _ = replay.exchange(pool, jnp.array([7.0, 8.0]), jax.random.key(0))
  batch = jnp.arange(20.0, 40.0)
  _, given = replay.exchange(pool, batch, jax.random.key(1), probability)
  assert (np.asarray(given) != batch).mean() == share


def test_recorded_sequence_of_the_published_pool():
  recorded = np.load(GOLDEN)
  wanted = recorded['pool_out_for_range40']
  places, n = int(recorded['pool_size']), len(wanted)
  # The published pool draws from NumPy's global generator.
  draws = np.random.RandomState(int(recorded['pool_np_seed']))
  swap, slot = np.zeros(n, bool), np.zeros(n, np.int32)
  for i in range(places, n):
    swap[i] = draws.random_sample() > 0.5
    if swap[i]:
      slot[i] = draws.randint(0, places)
  _, given, count = replay._sources(
    places, jnp.zeros((), jnp.int32), swap, slot
  )
  assert_array_equal(np.asarray(given) - places, wanted)
  assert int(count) == places
