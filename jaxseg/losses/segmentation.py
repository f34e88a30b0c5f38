"""Losses between label logits and class ids; 255 is void everywhere."""

import jax
import jax.numpy as jnp
import optax

VOID = 255


def valid_pixels(label: jax.Array) -> jax.Array:
  """float32 mask of the pixels that carry a label; any shape."""
  return (label != VOID).astype(jnp.float32)


def cross_entropy(
  logits: jax.Array, label: jax.Array, temperature: float = 1.0
) -> jax.Array:
  """Mean over labelled pixels of -log softmax(logits / temperature)[label].

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = void.
    temperature: divides the logits.

  Returns:
    scalar; 0 when every pixel is void.
  """
  valid = valid_pixels(label)
  ids = jnp.where(label == VOID, 0, label)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits / temperature, ids
  )
  return (loss * valid).sum() / jnp.maximum(valid.sum(), 1.0)


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
