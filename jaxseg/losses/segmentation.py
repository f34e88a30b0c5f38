"""Losses between label logits and class ids; 255 is void everywhere."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseg.errors import UserError

VOID = 255


class Loss(NamedTuple):
  """Settings of the loss on labelled pixels."""

  ce: float = 1.0  # weight of cross entropy
  dice: float = 1.0  # weight of the Dice loss; 0: not computed
  dice_background: bool = True  # whether class 0 takes part in Dice
  # Of each class in cross entropy, K numbers; (): all alike. `python -m
  # jaxseg.datasets check` prints the median-frequency weights of a set.
  class_weights: tuple[float, ...] = ()
  # Online hard example mining: only pixels whose true class has a probability
  # of at most this count, and always the hardest `ohem_kept`; 0: off.
  ohem: float = 0.0
  ohem_kept: float = 0.0625  # fraction of the labelled pixels


def supervised(
  logits: jax.Array, label: jax.Array, settings: Loss
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss on labelled pixels.

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void.
    settings: see `Loss`.

  Returns:
    (ce weight x cross entropy + dice weight x Dice loss, {'ce', 'dice'}).

  Raises:
    UserError: class_weights are not K numbers.
  """
  ce = cross_entropy(
    logits, label, class_weights=settings.class_weights,
    ohem=settings.ohem, ohem_kept=settings.ohem_kept,
  )  # fmt: skip
  if not settings.dice:
    return settings.ce * ce, {'ce': ce}
  dice = dice_loss(
    jax.nn.softmax(logits),
    label,
    include_background=settings.dice_background,
  )
  return settings.ce * ce + settings.dice * dice, {'ce': ce, 'dice': dice}


def valid_pixels(label: jax.Array) -> jax.Array:
  """float32 mask of the pixels that carry a label; any shape."""
  return (label != VOID).astype(jnp.float32)


def pixel_cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """-log softmax(logits)[label] of each pixel; 0 where the label is void.

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void.

  Returns:
    float32 [N, H, W].
  """
  ids = jnp.where(label == VOID, 0, label)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
  return loss * valid_pixels(label)


def cross_entropy(
  logits: jax.Array,
  label: jax.Array,
  temperature: float = 1.0,
  *,
  class_weights: Sequence[float] = (),
  ohem: float = 0.0,
  ohem_kept: float = 0.0625,
) -> jax.Array:
  """Weighted mean over labelled pixels of -log softmax(logits / t)[label].

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void.
    temperature: t.
    class_weights: w of each class, K numbers; the sum is divided by the sum of
      the pixels' weights (as PyTorch's); (): all 1.
    ohem: see `hard_pixels`; 0: all labelled pixels count.
    ohem_kept: see `hard_pixels`.

  Returns:
    scalar; 0 when every pixel is void.

  Raises:
    UserError: class_weights are not K numbers.
  """
  num_classes = logits.shape[-1]
  logits = logits / temperature
  weight = valid_pixels(label)
  if ohem:
    weight = hard_pixels(logits, label, ohem, ohem_kept)
  if len(class_weights):
    if len(class_weights) != num_classes:
      raise UserError(
        f'loss.class_weights are {len(class_weights)} numbers, must be '
        f'{num_classes}, one for each class.'
      )
    weights = jnp.asarray((*class_weights,), jnp.float32)
    weight = weight * weights[jnp.where(label == VOID, 0, label)]
  total = (pixel_cross_entropy(logits, label) * weight).sum()
  # Class weights may be below 1, so the guard must be for no pixel alone.
  count = weight.sum()
  return total / jnp.where(count > 0, count, 1.0)


def hard_pixels(
  logits: jax.Array, label: jax.Array, threshold: float, kept: float
) -> jax.Array:
  """The labelled pixels that are not yet easy (Shrivastava et al., 2016).

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void.
    threshold: pixels whose true class has at most this probability are hard.
    kept: at least this fraction of the labelled pixels is kept, the hardest.

  Returns:
    float32 [N, H, W] of 0 and 1, without gradient.
  """
  valid = label != VOID
  p = jax.lax.stop_gradient(jnp.exp(-pixel_cross_entropy(logits, label)))
  p = jnp.where(valid, p, jnp.inf)
  least = jnp.ceil(kept * valid.sum()).astype(jnp.int32)
  # The probability of the last of the `least` hardest pixels.
  last = jnp.sort(p.ravel())[jnp.maximum(least - 1, 0)]
  last = jnp.where(least > 0, last, 0.0)
  return (valid & (p <= jnp.maximum(threshold, last))).astype(jnp.float32)


def dice_loss(
  probabilities: jax.Array,
  label: jax.Array,
  *,
  include_background: bool = False,
  smooth: float = 1e-5,
) -> jax.Array:
  """1 - Dice per class over the whole batch, averaged over classes.

  Dice of class k is (2 sum p y + s) / (sum p^2 + sum y^2 + s), the form with
  squared denominators (Milletari et al., V-Net, 2016, section 3).

  Args:
    probabilities: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void: those pixels count nowhere.
    include_background: whether class 0 takes part.
    smooth: s; keeps an absent class finite.

  Returns:
    scalar in [0, 1].
  """
  valid = valid_pixels(label)[..., None]
  num_classes = probabilities.shape[-1]
  target = one_hot(label, num_classes)
  p = probabilities * valid
  axes = (0, 1, 2)
  overlap = (p * target).sum(axes)
  size = jnp.square(p).sum(axes) + jnp.square(target).sum(axes)
  dice = (2 * overlap + smooth) / (size + smooth)
  first = 0 if include_background or num_classes == 1 else 1
  return (1 - dice[first:]).mean()


def one_hot(label: jax.Array, num_classes: int) -> jax.Array:
  """float32 [..., K]; void pixels are all zero."""
  return jax.nn.one_hot(
    jnp.where(label == VOID, num_classes, label), num_classes
  )


def signed_one_hot(label: jax.Array, num_classes: int) -> jax.Array:
  """One-hot in {-1, 1} [..., K], as D_m sees real labels; void is all 0."""
  return (2 * one_hot(label, num_classes) - 1) * valid_pixels(label)[..., None]
