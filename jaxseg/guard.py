"""What the loop wraps around a training step: it survives a bad batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.method import Batch, Metrics, TrainState

MAX_TERMS = 30  # bits of `Health.terms`, and one more for the update
UPDATE = 'the update'  # of parameters: a finite loss may have a nan gradient


class Health(NamedTuple):
  """What went wrong so far; int32 scalars.

  Attributes:
    skipped: steps without effect since the stage was started.
    row: of these, how many in a row up to now.
    step: the last of them, -1: none.
    terms: what was not finite, one bit each: its metrics in sorted order, and
      the updated parameters.
  """

  skipped: jax.Array
  row: jax.Array
  step: jax.Array
  terms: jax.Array


def healthy() -> Health:
  """Nothing went wrong."""
  return Health(*(np.int32(x) for x in (0, 0, -1, 0)))


def guarded(
  train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
) -> Callable[..., tuple[TrainState, Health, Metrics]]:
  """`train_step` without effect where a metric or the update is not finite.

  Only `state.step` goes on then, and with it the place in the data and the
  random numbers: a batch with a nan costs one step.

  Returns:
    (state, health, batch) -> (state, health, metrics).
  """

  def step(state, health, batch):
    new, metrics = train_step(state, batch)
    bad = [
      ~jnp.isfinite(metrics[name]).all() for name in sorted(metrics)[:MAX_TERMS]
    ]
    seen = jnp.stack(bad).any()
    bad.append(~seen & ~finite(new.params))
    terms = sum(b.astype(jnp.int32) << i for i, b in enumerate(bad))
    ok = terms == 0
    kept = jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state)
    return (
      kept.replace(step=new.step),
      _count(health, ok, new.step, terms),
      (metrics),
    )

  return step


def _count(health, ok, step, terms):
  return Health(
    health.skipped + ~ok,
    jnp.where(ok, 0, health.row + 1),
    jnp.where(ok, health.step, step),
    jnp.where(ok, health.terms, terms),
  )


def several(
  step: Callable[..., tuple[TrainState, Health, Metrics]],
) -> Callable[..., tuple[TrainState, Health, Metrics]]:
  """A guarded step that does one step after another in a single program.

  Returns:
    (state, health, batches) -> (state, health, metrics of the last step);
    every array of `batches` has the steps as its first axis.
  """

  def run(state, health, batches):
    def body(carry, batch):
      state, health, metrics = step(*carry, batch)
      return (state, health), metrics

    (state, health), metrics = jax.lax.scan(body, (state, health), batches)
    return state, health, jax.tree.map(lambda x: x[-1], metrics)

  return run


def names(terms: int, metrics: Any) -> list[str]:
  """Returns what the bits of `Health.terms` are."""
  known = [*sorted(metrics)[:MAX_TERMS], UPDATE]
  return [name for i, name in enumerate(known) if terms >> i & 1]


def finite(tree: Any) -> jax.Array:
  """Whether every number of a tree is finite; keys and integers are."""
  leaves = [
    jnp.isfinite(x).all()
    for x in jax.tree.leaves(tree)
    if jnp.issubdtype(x.dtype, jnp.inexact)
  ]
  return jnp.stack(leaves).all() if leaves else jnp.ones((), bool)


all_finite = jax.jit(finite)
