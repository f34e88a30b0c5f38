"""A pool of earlier fakes, which discriminators see beside the newest.

Source: Shrivastava et al., Learning from Simulated and Unsupervised Images
through Adversarial Training (CVPR 2017), section 2.3, as used by CycleGAN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.method import PyTree


class Pool(NamedTuple):
  """Up to P examples; part of `TrainState.extra`.

  Attributes:
    items: a tree of arrays [P, ...].
    count: int32 scalar, how many of them have been filled.
  """

  items: PyTree
  count: jax.Array


def empty(size: int, example: PyTree) -> Pool:
  """A pool of `size` places for trees of arrays like `example`."""
  zeros = lambda x: jnp.zeros((size, *x.shape), x.dtype)
  return Pool(jax.tree.map(zeros, example), jnp.zeros((), jnp.int32))


def exchange(
  pool: Pool,
  batch: PyTree,
  rng: jax.Array,
  probability: float = 0.5,
  whole_batches: bool = False,
) -> tuple[Pool, PyTree]:
  """Lays a batch into the pool and takes as many examples out.

  One by one: while the pool has a free place, an example takes it and is
  handed on as well; then, with `probability`, it changes places with a
  random one of the pool, else it is handed on and not kept.

  Args:
    pool: of P places; P = 0: the batch is handed on.
    batch: a tree of arrays [N, ...].
    rng: typed key.
    probability: of the exchange, once the pool is full.
    whole_batches: batches are kept, and exchanged, as one; P // N of them.

  Returns:
    (pool, tree like `batch`).
  """
  n = jax.tree.leaves(batch)[0].shape[0]
  group = n if whole_batches else 1
  size = jax.tree.leaves(pool.items)[0].shape[0]
  groups, places = size // group, size // group * group
  if not places:
    return pool, batch
  coins, slots = jax.random.split(rng)
  swap = jax.random.bernoulli(coins, probability, (n // group,))
  slot = jax.random.randint(slots, (n // group,), 0, groups)
  kept, given, count = _sources(groups, pool.count // group, swap, slot)
  kept, given = _spread(kept, group), _spread(given, group)

  # Where example j of the batch stays: at the place that still names it.
  names = places + jnp.arange(n)
  stays = names[:, None] == kept[None]
  place = jnp.where(stays.any(1), stays.argmax(1), size)  # outside: dropped

  def give(old, new):
    from_pool = old[jnp.minimum(given, places - 1)]
    from_batch = new[jnp.maximum(given - places, 0)]
    chosen = (given < places).reshape(-1, *(1,) * (new.ndim - 1))
    return jnp.where(chosen, from_pool, from_batch)

  out = jax.tree.map(give, pool.items, batch)
  items = jax.tree.map(
    lambda old, new: old.at[place].set(new, mode='drop'), pool.items, batch
  )
  return Pool(items, (count * group).astype(jnp.int32)), out


def _sources(places, count, swap, slot):
  """What lies in each place, and what is handed on, as indices.

  Below `places`: what lay there before; from `places` on: of the batch.
  """

  def step(carry, example):
    inside, count = carry
    name, swap, slot = example
    full = count >= places
    at = jnp.where(full, slot, count)
    given = jnp.where(full & swap, inside[at], name)
    stays = ~full | swap
    inside = inside.at[at].set(jnp.where(stays, name, inside[at]))
    return (inside, jnp.minimum(count + 1, places)), given

  names = places + jnp.arange(swap.shape[0], dtype=jnp.int32)
  start = jnp.arange(places, dtype=jnp.int32), count
  (kept, count), given = jax.lax.scan(step, start, (names, swap, slot))
  return kept, given, count


def _spread(indices, group):
  """Indices of groups -> indices of their members, in order."""
  return (indices[:, None] * group + jnp.arange(group)).reshape(-1)
