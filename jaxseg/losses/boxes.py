"""What a box says: its class is inside, in each row and column, not outside.

Labels are those of `jaxseg.data.weak.draw_boxes`: the class inside of a box, 0
outside of all, 255 along the edges. A pixel inside may be of the class or not:

  outside  cross entropy of background at pixels of no box, which are certain;
  tight    of each row and column that crosses boxes of class k, some pixel
           inside them is of class k (Lempitsky et al., ICCV 2009); as bags,
           -log max p_k (Hsu et al., Weakly Supervised Instance Segmentation
           using the Bounding Box Tightness Prior, NeurIPS 2019, equation 4).
           Not of rows that are inside a box at the left or right border of
           the image, nor of such columns at the top or bottom: there the box
           may go on with what it is tight around, as after a crop;
  size     the part of the boxes of class k that is of class k lies between two
           bounds, a quadratic penalty beyond (Kervadec et al., Constrained-CNN
           losses for weakly supervised segmentation, MedIA 2019, equation 4);
  other    a pixel inside is of the class of its box, or background.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses import segmentation

SMALLEST = 1e-6  # probability whose logarithm is taken


class Boxes(NamedTuple):
  """Weights of the constraints, and the bounds of the filled part."""

  outside: float = 1.0
  tight: float = 0.5
  size: float = 1.0
  other: float = 1.0
  smallest: float = 0.3  # of the inside that its class fills
  # An ellipse fills .79 of its box, but up to all of what lies inside the void
  # edges.
  largest: float = 1.0


def constraints(
  logits: jax.Array, label: jax.Array, settings: Boxes
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of the constraints.

  Args:
    logits: float32 [N, H, W, K], class 0 is background.
    label: int32 [N, H, W] of filled boxes, see the module.
    settings: see `Boxes`.

  Returns:
    (scalar, {'outside', 'tight', 'size', 'other'}), of which each is a mean:
    over pixels, rows and columns, or classes in images; 0 of none.
  """
  probabilities = jax.nn.softmax(logits)
  inside = segmentation.one_hot(label, logits.shape[-1])[..., 1:]
  found = {
    'outside': segmentation.cross_entropy(
      logits, jnp.where(label == 0, 0, segmentation.VOID)
    ),
    'tight': tightness(probabilities[..., 1:], inside),
    'size': size_penalty(
      probabilities[..., 1:], inside, settings.smallest, settings.largest
    ),
    'other': other_classes(probabilities, inside),
  }
  total = sum(getattr(settings, name) * x for name, x in found.items())
  return total, found


def tightness(probabilities: jax.Array, inside: jax.Array) -> jax.Array:
  """Mean of -log max p over rows and columns inside boxes of a class.

  Args:
    probabilities: [N, H, W, F] of the foreground classes.
    inside: the same shape, 1 inside boxes of the class, else 0.

  Returns:
    scalar; 0 without rows and columns that count, see the module.
  """
  total, count = 0.0, 0.0
  for axis in (1, 2):
    lines = jnp.moveaxis(inside, axis, 1)
    whole = 1 - jnp.maximum(lines[:, 0], lines[:, -1])
    bag = lines.max(1) * whole
    best = (probabilities * inside).max(axis)
    total += -(jnp.log(jnp.maximum(best, SMALLEST)) * bag).sum()
    count += bag.sum()
  return total / jnp.maximum(count, 1.0)


def size_penalty(
  probabilities: jax.Array, inside: jax.Array, smallest: float, largest: float
) -> jax.Array:
  """Mean square of how far the filled part is beyond its bounds.

  Args:
    probabilities: as `tightness`.
    inside: likewise.
    smallest: least filled part of all boxes of a class in an image.
    largest: greatest.

  Returns:
    scalar, mean over the classes that have boxes in an image.
  """
  area = inside.sum((1, 2))
  filled = (probabilities * inside).sum((1, 2)) / jnp.maximum(area, 1.0)
  below = jax.nn.relu(smallest - filled)
  above = jax.nn.relu(filled - largest)
  there = area > 0
  total = ((jnp.square(below) + jnp.square(above)) * there).sum()
  return total / jnp.maximum(there.sum(), 1)


def other_classes(probabilities: jax.Array, inside: jax.Array) -> jax.Array:
  """Mean over pixels in boxes of -log(p of background + p of the box's class).

  Args:
    probabilities: [N, H, W, K].
    inside: [N, H, W, K - 1], as in `tightness`.
  """
  allowed = probabilities[..., 0] + (probabilities[..., 1:] * inside).sum(-1)
  mask = inside.sum(-1)
  # Not above 1, where rounding would make the loss negative.
  loss = -jnp.log(jnp.clip(allowed, SMALLEST, 1.0))
  return (loss * mask).sum() / jnp.maximum(mask.sum(), 1.0)


def check(where: str, settings: Boxes) -> None:
  """Refuses settings outside their range.

  Args:
    where: what holds them, for messages.
    settings: see `Boxes`.

  Raises:
    UserError: names the field.
  """
  for name in ('outside', 'tight', 'size', 'other'):
    if getattr(settings, name) < 0:
      raise UserError(
        f'{where}.{name} is {getattr(settings, name)}, must be 0 or more.'
      )
  if not 0 <= settings.smallest <= settings.largest <= 1:
    raise UserError(
      f'{where}.smallest and largest are {settings.smallest} and '
      f'{settings.largest}, must be parts of a box, 0 to 1, in this order.'
    )
