"""The program of `predict_pretrained`: a batch of images to codes."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.methods import frozen, inversion, perceptual
from jaxseg.predict_tto import Settings, shown_steps
from jaxseg.published import folder


class System(NamedTuple):
  """A converted generator, ready to invert images.

  Attributes:
    modules: the networks.
    weights: of `frozen.weights`.
    distance: the perceptual one; None: the mean squared error alone counts.
    distance_weights: of `frozen.metric_weights`.
    card: what pretrained.json tells of the networks that are used.
  """

  modules: frozen.Frozen
  weights: dict[str, Any]
  distance: perceptual.Perceptual | None
  distance_weights: Any
  card: dict[str, Any]

  @property
  def num_classes(self) -> int:
    """Of the masks; 0: the generator draws none."""
    k = self.modules.g.num_classes
    return 2 if k == 1 else k


class Found(NamedTuple):
  """What is found out about N images.

  Attributes:
    w_plus: [N, L, D], after the last step.
    rendered: [N, S, R, R, C], at each of `shown_steps`.
    perceptual: [N, S], distances of these to the images; 0 without one.
    l2: [N, S], mean squared errors of these.
    diverged: bool [N], whether the last loss was not finite.
    probabilities: [N, R, R, K], None without a label branch.
  """

  w_plus: Any
  rendered: Any
  perceptual: Any
  l2: Any
  diverged: Any
  probabilities: Any


def load(
  pretrained: str | os.PathLike, kind: str = 'auto', lpips_weights: str = ''
) -> System:
  """Reads what an inversion needs of a folder of converted weights.

  Args:
    pretrained: the folder.
    kind: of the perceptual distance, see `frozen.metric`.
    lpips_weights: file or folder of them; '': the installed package's.

  Raises:
    UserError: not such a folder, no generator in it, no such distance.
  """
  card = folder.read_card(pretrained)
  used = {n: c for n, c in card['networks'].items() if n != 'd_m'}
  if 'g_ema' in used:
    used.pop('g', None)
  card = card | {'networks': used}
  modules = frozen.build(card)
  distance = frozen.metric(modules, kind, lpips_weights)
  weights = frozen.weights(folder.load(pretrained, used))
  distance_weights = frozen.metric_weights(distance, weights)
  return System(modules, weights, distance, distance_weights, card)


def inverter(
  system: System, settings: Settings
) -> Callable[[Any, jax.Array], Found]:
  """Returns ((weights, distance weights), images) -> `Found`, to be jitted."""
  steps, shown = settings.steps, shown_steps(settings)

  def invert(values, images):
    weights, distance_weights = values
    model = frozen.model(
      system.modules, weights, system.distance, distance_weights
    )
    w_plus = frozen.encode(system.modules, weights, images)
    noise = [jnp.asarray(maps) for maps in weights['noise']]
    diverged = jnp.zeros(len(images), bool)
    before = jnp.zeros((0, *images.shape))
    if steps:
      if settings.optimize_noise:
        noise = [jnp.repeat(maps, len(images), 0) for maps in noise]
      result = inversion.invert(
        model, images, w_plus, noise, **settings.arguments(),
        snapshot_steps=shown[:-1],
      )  # fmt: skip
      diverged = ~jnp.isfinite(result.trace[-1])
      w_plus, noise = _last_or_best(result, diverged, settings.optimize_noise)
      before = result.snapshots
    image, logits = model.synthesize(w_plus, noise)
    rendered = jnp.concatenate([before, image[None]])
    target = model.features(images)
    compare = lambda image: model.distance(model.features(image), target)
    zero = jnp.zeros(rendered.shape[:2])
    far = lax.map(compare, rendered) if system.distance else zero
    l2 = jnp.square(rendered - images).mean((2, 3, 4))
    first = lambda x: x.swapaxes(0, 1)
    return Found(
      w_plus, first(rendered), far.T, l2.T, diverged, _probabilities(logits)
    )

  return invert


def _last_or_best(result, diverged, with_noise):
  """(w_plus, noise) after the last step, of the best one where it diverged."""

  def pick(best, last):
    return jnp.where(diverged.reshape(-1, *[1] * (last.ndim - 1)), best, last)

  w_plus = pick(result.w_plus, result.last[0])
  if not with_noise:
    return w_plus, result.noise
  return w_plus, jax.tree.map(pick, result.noise, result.last[1])


def _probabilities(logits):
  if logits is None:
    return None
  if logits.shape[-1] == 1:  # of the foreground alone
    logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
  return jax.nn.softmax(logits)
