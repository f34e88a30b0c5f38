"""Images of any shape as the networks see them, and answers back at their own.

The networks see one rectangle, for most experiments a square. Sizes are
(height, width), or one number for both.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxseg.data.formats import images
from jaxseg.data.source import Box
from jaxseg.errors import UserError

POLICIES = ('', 'crop', 'pad', 'squeeze')
# One aspect by the other that may be squeezed unasked.
MAX_ASPECT = 1.1
# Sides that the networks may see: from, to, and what they are multiples of.
SMALLEST, LARGEST, MULTIPLE = 32, 1024, 4

Size = int | tuple[int, int]


class Region(NamedTuple):
  """The part of an image that the networks see, in its pixels.

  It may reach beyond the image ('pad'): `top` and `left` are then negative.
  """

  top: int
  left: int
  height: int
  width: int


def size(data_config: Any) -> tuple[int, int]:
  """Returns (height, width) of what the networks see, of `config.data`."""
  return data_config.resolution, data_config.width or data_config.resolution


def check_size(data_config: Any) -> None:
  """Refuses sides that are too small, too large or cannot be halved twice.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  for name, side in zip(
    ('resolution', 'width'), size(data_config), strict=True
  ):
    if side % MULTIPLE or not SMALLEST <= side <= LARGEST:
      nearest = MULTIPLE * round(side / MULTIPLE)
      nearest = min(max(nearest, SMALLEST), LARGEST)
      raise UserError(
        f'config.data.{name} is {side}, must be a multiple of {MULTIPLE} from '
        f'{SMALLEST} to {LARGEST}; {nearest} is the nearest.'
      )


def region(shape: tuple[int, int], target: Size, policy: str) -> Region:
  """Returns what of an image the rectangle of the networks shows.

  Args:
    shape: (H, W) of the image.
    target: size of the rectangle; only its aspect counts.
    policy: 'crop': the largest rectangle of that aspect in the image's centre;
      'pad': the smallest around it; 'squeeze': the whole image, its sides
      scaled apart; '': 'squeeze' up to `MAX_ASPECT` between both aspects, else
      'pad' (in training such images are refused).
  """
  h, w = shape
  rows, columns = _aspect(target)
  # Height and width of the image, each in units of the rectangle's.
  tall, wide = h * columns, w * rows
  if not policy:
    near = max(tall, wide) <= MAX_ASPECT * min(tall, wide)
    policy = 'squeeze' if near else 'pad'
  if policy == 'squeeze' or tall == wide:
    return Region(0, 0, h, w)
  # One side stays: of a crop the one the image has less of.
  if (policy == 'crop') == (tall < wide):
    height, width = h, max(1, round(h * columns / rows))
  else:
    height, width = max(1, round(w * rows / columns)), w
  return Region((h - height) // 2, (w - width) // 2, height, width)


def same_aspect(shape: tuple[int, int], target: Size) -> bool:
  """Whether nothing is lost or bent when an image is brought to `target`."""
  rows, columns = _aspect(target)
  return shape[0] * columns == shape[1] * rows


def _aspect(target):
  """(rows, columns) in lowest terms: (1, 1) of every square."""
  height, width = (target, target) if isinstance(target, int) else target
  divisor = math.gcd(height, width)
  return height // divisor, width // divisor


def image(array: np.ndarray, target: Size, policy: str) -> np.ndarray:
  """Returns uint8 [*target, C] of uint8 [H, W, C]; padding is black."""
  part = _cut(array, region(array.shape[:2], target, policy), 0)
  return images.resize_image(part, target)


def label(array: np.ndarray, target: Size, policy: str) -> np.ndarray:
  """Returns uint8 [*target] of uint8 [H, W]; padding is void."""
  part = _cut(array, region(array.shape, target, policy), images.VOID)
  return images.resize_label(part, target)


def strokes(array: np.ndarray, target: Size, policy: str) -> np.ndarray:
  """Brings scribbles or clicks to the rectangle of the networks.

  Where that makes them smaller, no thin stroke is lost: a pixel has the class
  that most of the annotated pixels have which it covers.

  Args:
    array: uint8 [H, W], 255 where nothing was drawn.
    target: see `region`.
    policy: see `region`.

  Returns:
    uint8 [*target].
  """
  height, width = (target, target) if isinstance(target, int) else target
  part = _cut(array, region(array.shape, target, policy), images.VOID)
  if part.shape[0] <= height and part.shape[1] <= width:
    return images.resize_label(part, (height, width))
  label = np.full((height, width), images.VOID, np.uint8)
  most = np.zeros((height, width), np.float32)
  for class_id in np.unique(part[part != images.VOID]):
    share = cv2.resize(
      (part == class_id).astype(np.float32), (width, height),
      interpolation=cv2.INTER_AREA,
    )  # fmt: skip
    label[share > most] = class_id
    most = np.maximum(most, share)
  return label


def boxes(
  found: Sequence[Box],
  shape: tuple[int, int],
  target: Size,
  policy: str,
  beyond: int = 0,
) -> list[Box]:
  """Brings boxes to the rectangle of the networks.

  Args:
    found: in the pixels of an image.
    shape: (H, W) of the image.
    target: see `region`.
    policy: see `region`.
    beyond: pixels that boxes may reach out of the rectangle; 0: they are cut.

  Returns:
    Those that the networks see, each of a pixel or more.
  """
  height, width = (target, target) if isinstance(target, int) else target
  r = region(shape, target, policy)
  moved = []
  for class_id, top, left, bottom, right in found:
    top, bottom = _moved(top, bottom, r.top, height / r.height, height, beyond)
    left, right = _moved(left, right, r.left, width / r.width, width, beyond)
    if top < bottom and left < right:
      moved.append((class_id, top, left, bottom, right))
  return moved


def _moved(first, last, start, scale, length, beyond):
  """Scales an interval, cut to [0, length) or so; empty only if outside."""
  first, last = (first - start) * scale, (last - start) * scale
  if last <= 0 or first >= length:
    return 0, 0
  low = min(max(round(first), -beyond), length - 1)
  return low, min(max(round(last), low + 1, 1), length + beyond)


def seen(array: np.ndarray, target: Size, policy: str) -> np.ndarray:
  """Returns a label [H, W] with void wherever the networks saw nothing."""
  part = _cut(array, region(array.shape, target, policy), images.VOID)
  return undo(part, array.shape, target, policy, images.VOID)


def undo(
  part: np.ndarray,
  shape: tuple[int, int],
  target: Size,
  policy: str,
  outside: float,
) -> np.ndarray:
  """Puts the region's pixels back to their place in the image.

  Args:
    part: [height, width, ...] of `region(shape, target, policy)`.
    shape: (H, W) of the image.
    target: see `region`.
    policy: see `region`.
    outside: the value where the networks saw nothing.

  Returns:
    [H, W, ...].
  """
  r = region(shape, target, policy)
  if r == (0, 0, *shape):
    return part
  whole = np.full((*shape, *part.shape[2:]), outside, part.dtype)
  there, here = _overlap(r, shape)
  whole[there] = part[here]
  return whole


def _cut(array, r, outside):
  shape = array.shape[:2]
  if r == (0, 0, *shape):
    return array
  part = np.full((r.height, r.width, *array.shape[2:]), outside, array.dtype)
  there, here = _overlap(r, shape)
  part[here] = array[there]
  return part


def _overlap(r, shape):
  """Returns slices of the image, and of the region, of what both have."""
  there, here = [], []
  for start, length, size in zip(r[:2], r[2:], shape, strict=True):
    first, last = max(start, 0), min(start + length, size)
    there.append(slice(first, last))
    here.append(slice(first - start, last - start))
  return tuple(there), tuple(here)
