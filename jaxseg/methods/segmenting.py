"""What the methods that train a segmenter share, as plain functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxseg import method, optimizers
from jaxseg.losses import regularized
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID
from jaxseg.method import Method, Prediction, PyTree, TrainState
from jaxseg.nets import imagenet, segmenters
from jaxseg.nets.layers import Features

# Of ImageNet's pixels in [0, 1], which published encoders expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class Segmenter(NamedTuple):
  """A network with its optimiser.

  Attributes:
    net: module with encode, decode and __call__, see `jaxseg.nets.segmenters`.
    tx: its optimiser.
    shape: of one batch of one image, (1, R, R, C).
    settings: what the network was built from.
    parts: of a batch, see `accumulation`.
    regularizer: the loss without labels that `regularize` adds.
    total_steps: of which its ramp-up is a part.
  """

  net: nn.Module
  tx: optax.GradientTransformation
  shape: tuple[int, int, int, int]
  settings: segmenters.Net
  parts: int = 1
  regularizer: Regularizer = Regularizer()
  total_steps: int = 1


def segmenter(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: segmenters.Net,
  optimizer: optimizers.Optimizer,
  regularizer: Regularizer = Regularizer(),
) -> Segmenter:
  """Builds the network and its optimiser; the arguments are those of `make`.

  Raises:
    UserError: a setting outside its choices.
  """
  regularized.check('regularizer', regularizer, (resolution, resolution))
  return Segmenter(
    segmenters.build(net, num_classes),
    optimizers.make(optimizer, total_steps),
    (1, resolution, resolution, channels),
    net,
    optimizer.accumulate,
    regularizer,
    total_steps,
  )


def init(seg: Segmenter, rng: jax.Array) -> tuple[PyTree, PyTree]:
  """Returns (parameters, batch statistics; {} without batch norm)."""
  images = prepare(seg, jnp.zeros(seg.shape))
  variables = seg.net.init(rng, images)
  return variables['params'], variables.get('batch_stats', {})


def start(
  seg: Segmenter,
  rng: jax.Array,
  others: dict[str, tuple[PyTree, optax.GradientTransformation]] | None = None,
) -> TrainState:
  """Returns the state before the first step, of network 'seg' and others.

  Args:
    seg: the segmenter that predicts.
    rng: typed key; network 'seg' is drawn from `fold_in(rng, 0)`.
    others: {name: (parameters, optimiser)} of further networks.

  Returns:
    `ema` and `extra` hold 'seg' alone: its averaged {'params', 'batch_stats'}
    and its batch statistics.
  """
  params, stats = init(seg, jax.random.fold_in(rng, 0))
  networks = {'seg': (params, seg.tx), **(others or {})}
  return method.new_state(
    rng,
    {name: params for name, (params, _) in networks.items()},
    {name: tx for name, (_, tx) in networks.items()},
    ema={'seg': collections(params, stats)},
    extra={'seg': stats},
  )


def pretrained(seg: Segmenter, names: tuple[str, ...] = ('seg',)) -> Any:
  """`Method.pretrained`: fills encoders from `net.weights`; None without.

  Weights that come from an earlier stage are kept.
  """
  if not seg.settings.weights:
    return None
  backbone = segmenters.imagenet_backbone(seg.settings)

  def fill(state, previous=None):
    if previous is not None:
      return state
    params, extra, ema = dict(state.params), dict(state.extra), dict(state.ema)
    for name in names:
      filled = imagenet.fill(
        collections(params[name], extra[name]), seg.settings.weights, backbone
      )
      params[name], extra[name] = filled['params'], filled['batch_stats']
      if name in ema:
        ema[name] = jax.tree.map(jnp.array, filled)  # no buffer twice
    return state.replace(params=params, extra=extra, ema=ema)

  return fill


def prepare(seg: Segmenter, images: jax.Array) -> jax.Array:
  """Images as the encoder expects them: ImageNet's with published weights."""
  if not seg.settings.weights:
    return images
  if images.shape[-1] == 1:
    images = jnp.repeat(images, 3, axis=-1)
  return (images / 2 + 0.5 - jnp.array(MEAN)) / jnp.array(STD)


def collections(params: PyTree, stats: PyTree) -> dict[str, PyTree]:
  """Flax's variables of a segmenter."""
  return {'params': params, 'batch_stats': stats}


def logits(
  seg: Segmenter, variables: dict[str, PyTree], images: jax.Array
) -> jax.Array:
  """float32 logits [N, H, W, K] in use: stored statistics, no dropout."""
  return seg.net.apply(variables, prepare(seg, images))


def train_logits(
  seg: Segmenter,
  params: PyTree,
  stats: PyTree,
  images: jax.Array,
  rng: jax.Array,
  split: tuple[int, ...] = (),
) -> tuple[jax.Array, PyTree]:
  """Logits in training: batch statistics and dropout.

  Args:
    seg: the segmenter.
    params: its parameters.
    stats: its batch statistics, {} without batch norm.
    images: [N, H, W, C] in [-1, 1].
    rng: key of dropout.
    split: where images of another kind begin, such as (the number of labelled
      images,); batch normalisation sees each kind by itself, in turn, unless
      `net.joint_norm`.

  Returns:
    (float32 logits [N, H, W, K], updated statistics).
  """
  images = prepare(seg, images)
  return _train(seg, params, stats, rng, split, '__call__', images)


def train_encode(
  seg: Segmenter,
  params: PyTree,
  stats: PyTree,
  images: jax.Array,
  rng: jax.Array,
  split: tuple[int, ...] = (),
) -> tuple[Features, PyTree]:
  """The first half of `train_logits`: (features, updated statistics)."""
  images = prepare(seg, images)
  return _train(seg, params, stats, rng, split, 'encode', images)


def train_decode(
  seg: Segmenter,
  params: PyTree,
  stats: PyTree,
  features: Features,
  size: tuple[int, int],
  rng: jax.Array,
  split: tuple[int, ...] = (),
) -> tuple[jax.Array, PyTree]:
  """The second half: (float32 logits [N, *size, K], updated statistics)."""
  return _train(seg, params, stats, rng, split, 'decode', features, size)


def _train(seg, params, stats, rng, split, function, inputs, *args):
  if not split or seg.settings.norm != 'batch' or seg.settings.joint_norm:
    return _train_part(seg, params, stats, rng, function, inputs, *args)
  found = []
  for i, (start, end) in enumerate(
    zip((0, *split), (*split, None), strict=True)
  ):
    part = jax.tree.map(lambda x: x[start:end], inputs)  # noqa: B023
    key = jax.random.fold_in(rng, i)
    part, stats = _train_part(seg, params, stats, key, function, part, *args)
    found.append(part)
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found), stats


def _train_part(seg, params, stats, rng, function, *args):
  found, updated = seg.net.apply(
    collections(params, stats),
    *args,
    train=True,
    method=function,
    mutable=['batch_stats'],
    rngs={'dropout': rng},
  )
  return found, updated.get('batch_stats', {})


def advance(
  state: TrainState,
  name: str,
  tx: optax.GradientTransformation,
  grads: PyTree,
  stats: PyTree | None = None,
  ema_decay: jax.Array | float | None = None,
) -> TrainState:
  """Steps one network; `state.step` stays.

  Args:
    state: before.
    name: the network's.
    tx: its optimiser.
    grads: like `state.params[name]`.
    stats: its new batch statistics; None: it has none.
    ema_decay: of the averaged parameters and statistics; None: not averaged.

  Returns:
    the state with that network's entries changed.
  """
  params, opt_state = method.update(
    tx, grads, state.opt_state[name], state.params[name]
  )
  state = state.replace(
    params=state.params | {name: params},
    opt_state=state.opt_state | {name: opt_state},
  )
  if stats is not None:
    state = state.replace(extra=state.extra | {name: stats})
  if ema_decay is not None:
    new = collections(params, state.extra.get(name, {}))
    ema = method.ema_update(state.ema[name], new, ema_decay)
    state = state.replace(ema=state.ema | {name: ema})
  return state


def step_key(state: TrainState) -> jax.Array:
  """The key of this step's random draws."""
  return jax.random.fold_in(state.rng, state.step)


def ramp_up(step: jax.Array, length: float) -> jax.Array:
  """exp(-5 (1 - t)^2), t = step / length up to 1 (Laine and Aila 2017).

  Args:
    step: number of finished steps.
    length: in steps; 0: the result is 1.

  Returns:
    float32 scalar in [exp(-5), 1].
  """
  if not length:
    return jnp.ones((), jnp.float32)
  t = jnp.clip(step / length, 0.0, 1.0).astype(jnp.float32)
  return jnp.exp(-5.0 * jnp.square(1.0 - t))


def regularize(
  seg: Segmenter,
  step: jax.Array,
  found: tuple[jax.Array, dict[str, jax.Array]],
  logits: jax.Array,
  images: jax.Array,
  label: jax.Array,
  suffix: str = '',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Adds the segmenter's `regularizer` to a loss; without one it is `found`.

  Args:
    seg: the segmenter.
    step: number of finished steps, for the ramp-up.
    found: (scalar loss, its metrics).
    logits: float32 [N, H, W, K] of the images.
    images: [N, H, W, C] in [-1, 1], as they were shown, so that their edges
      are those that the logits should follow.
    label: int32 [n, H, W] of the first n images; the others have none. Void
      pixels are unlabelled.
    suffix: of the metrics' names.

  Returns:
    (loss, metrics); its own are 'regularizer_' and the name of a term, before
    its weight.
  """
  settings = seg.regularizer
  if not regularized.is_on(settings):
    return found
  loss, terms = found
  others = jnp.ones((len(logits) - len(label), *label.shape[1:]), bool)
  value, more = regularized.regularize(
    logits, images, settings,
    unlabelled=jnp.concatenate([label == VOID, others]),
  )  # fmt: skip
  climbed = ramp_up(step, settings.ramp_up * seg.total_steps)
  own = {f'regularizer_{name}{suffix}': x for name, x in more.items()}
  return loss + climbed * value, terms | own


def predict(
  seg: Segmenter, name: str = 'seg'
) -> Callable[[TrainState, jax.Array], Prediction]:
  """`Method.predict` with the averaged weights of network `name`.

  Its trust is the mean over pixels of the largest probability.
  """

  def run(state, images):
    probabilities = jax.nn.softmax(logits(seg, state.ema[name], images))
    return Prediction(probabilities, trust=probabilities.max(-1).mean((1, 2)))

  return run


def pictures(
  predict_: Callable[[TrainState, jax.Array], Prediction],
) -> Callable[..., dict[str, jax.Array]]:
  """`Method.pictures`: image, label, and the predicted label."""

  def run(state, batch):
    return {
      'image': batch['image'],
      'label': batch['label'],
      'predicted': predict_(state, batch['image']).probabilities.argmax(-1),
    }

  return run


def as_method(
  seg: Segmenter,
  init: Callable[..., TrainState],
  train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
) -> Method:
  """The `Method` that trains network 'seg', predicts with it and shows it."""
  run = predict(seg)
  return Method(
    init,
    train_step,
    run,
    pictures=pictures(run),
    pretrained=pretrained(seg),
  )
