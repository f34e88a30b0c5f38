"""What a learning method is: pure functions over one explicit state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
  """Everything that training changes; it is the checkpoint, whole.

  The dicts are keyed by network, such as 'g', 'd_r', 'd_m', 'e'; a segmenter
  is 'seg'.

  Attributes:
    step: int32 scalar, the number of finished training steps.
    rng: a typed `jax.random` key; step k draws from `fold_in(rng, k)`.
    params: trained parameters, float32.
    opt_state: optimiser states, same keys as `params`.
    ema: exponential moving averages of parameters; what `predict` uses.
    extra: any other arrays a method carries (running statistics, power
      iteration vectors, path length mean, frozen networks).
  """

  step: jax.Array
  rng: jax.Array
  params: dict[str, PyTree]
  opt_state: dict[str, PyTree]
  ema: dict[str, PyTree]
  extra: dict[str, PyTree]


class Prediction(NamedTuple):
  """What a method says about N images.

  Attributes:
    probabilities: float32 [N, H, W, K], sums to 1 over K.
    reconstruction: float32 [N, H, W, C] in [-1, 1], or None.
    trust: float32 [N], higher is better, comparable between images of one
      model; None when the method has no opinion.
  """

  probabilities: jax.Array
  reconstruction: jax.Array | None = None
  trust: jax.Array | None = None


class Method(NamedTuple):
  """A way to learn to segment, as `optax.GradientTransformation` is to update.

  All functions are pure and can be jitted. Images are float32 [N, H, W, C] in
  [-1, 1]; labels int32 [N, H, W] with 255 for void.

  Attributes:
    init: (rng, previous) -> TrainState. `previous` is the final state of the
      stage named by `init_from`, else None.
    train_step: (state, batch) -> (state, {name: float32 scalar}).
    predict: (state, images) -> Prediction; None for a stage that only
      generates.
    refine: (state, images) -> Prediction by test-time optimisation, or None.
    sample: (state, rng, n, truncation=of `make`) -> (images, probabilities),
      or None; `truncation` is psi, 1: none.
    pictures: (state, batch) -> {name: images [n, H, W, C] in [-1, 1] or
      class ids [n, H, W]}, shown in the sample grids, or None.
    pretrained: (state, previous) -> state, fills networks of a fresh state from
      files; not to be jitted. None when there is nothing to fill.
    absorb: (state, images [M, H, W, C], labels [M, H, W], alive) -> state,
      looks at the labelled images, args.max_images at most, once before the
      first step and calls alive() now and then; not to be jitted. None for most
      methods.
    judge: (state, images, probabilities) -> {name: float32 [N]}, scores of what
      `sample` gave, higher is better, each image by itself; None where the
      state holds nothing that could tell.
  """

  init: Callable[..., TrainState]
  train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
  predict: Callable[[TrainState, jax.Array], Prediction] | None = None
  refine: Callable[[TrainState, jax.Array], Prediction] | None = None
  sample: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  pictures: Callable[[TrainState, Batch], dict[str, jax.Array]] | None = None
  pretrained: Callable[..., TrainState] | None = None
  absorb: Callable[..., TrainState] | None = None
  judge: Callable[..., dict[str, jax.Array]] | None = None


def new_state(
  rng: jax.Array,
  params: dict[str, PyTree],
  tx: dict[str, optax.GradientTransformation],
  ema: dict[str, PyTree] | None = None,
  extra: dict[str, PyTree] | None = None,
) -> TrainState:
  """Returns the state before the first step, with fresh optimisers."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    rng=rng,
    params=params,
    opt_state={name: tx[name].init(params[name]) for name in params},
    ema=ema or {},
    extra=extra or {},
  )


def update(
  tx: optax.GradientTransformation,
  grads: PyTree,
  opt_state: PyTree,
  params: PyTree,
) -> tuple[PyTree, PyTree]:
  """Returns (parameters, optimiser state) after one step of `tx`."""
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def ema_decay(batch_size: int, half_life_images: float) -> float:
  """Decay per step whose half-life is counted in images, not in steps.

  A half-life of 0 gives 0: no average, the newest weights.
  """
  return 0.5 ** (batch_size / half_life_images) if half_life_images else 0.0


def ema_update(ema: PyTree, params: PyTree, decay: float) -> PyTree:
  """Returns decay * ema + (1 - decay) * params."""
  return optax.incremental_update(params, ema, 1.0 - decay)
