"""Images of any shape as squares, and answers back at the image's own shape."""

from typing import NamedTuple

import numpy as np

from jaxseg.data.formats import images

POLICIES = ('', 'crop', 'pad', 'squeeze')
# Long by short side that may be squeezed unasked.
MAX_ASPECT = 1.1


class Region(NamedTuple):
  """The part of an image that the networks see, in its pixels.

  It may reach beyond the image ('pad'): `top` and `left` are then negative.
  """

  top: int
  left: int
  height: int
  width: int


def region(shape: tuple[int, int], policy: str) -> Region:
  """Returns what of an image of [H, W] the square of the networks shows.

  Args:
    shape: (H, W).
    policy: 'crop': the largest square in its centre; 'pad': the smallest
      square around it; 'squeeze': the whole image, its sides scaled apart;
      '': 'squeeze' up to `MAX_ASPECT`, else 'pad' (in training such images
      are refused).
  """
  h, w = shape
  if not policy:
    policy = 'pad' if max(h, w) > MAX_ASPECT * min(h, w) else 'squeeze'
  if policy == 'squeeze' or h == w:
    return Region(0, 0, h, w)
  side = min(h, w) if policy == 'crop' else max(h, w)
  return Region((h - side) // 2, (w - side) // 2, side, side)


def image(array: np.ndarray, side: int, policy: str) -> np.ndarray:
  """Returns uint8 [side, side, C] of uint8 [H, W, C]; padding is black."""
  part = _cut(array, region(array.shape[:2], policy), 0)
  return images.resize_image(part, side)


def label(array: np.ndarray, side: int, policy: str) -> np.ndarray:
  """Returns uint8 [side, side] of uint8 [H, W]; padding is void."""
  part = _cut(array, region(array.shape, policy), images.VOID)
  return images.resize_label(part, side)


def seen(array: np.ndarray, policy: str) -> np.ndarray:
  """Returns a label [H, W] with void wherever the networks saw nothing."""
  part = _cut(array, region(array.shape, policy), images.VOID)
  return undo(part, array.shape, policy, images.VOID)


def undo(
  part: np.ndarray, shape: tuple[int, int], policy: str, outside: float
) -> np.ndarray:
  """Puts the region's pixels back to their place in the image.

  Args:
    part: [height, width, ...] of `region(shape, policy)`.
    shape: (H, W) of the image.
    policy: see `region`.
    outside: the value where the networks saw nothing.

  Returns:
    [H, W, ...].
  """
  r = region(shape, policy)
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
