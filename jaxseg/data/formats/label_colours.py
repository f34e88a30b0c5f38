"""Colours in label files to class ids: each exactly, or none at all."""

import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

from jaxseg.data import problems
from jaxseg.errors import DataError

VOID = 255
# As a key of the colours: pixels of alpha 0, whatever their colour.
TRANSPARENT = (0, 0, 0, 0)
WHITE = (255, 255, 255)
SHOWN = 8  # values or colours in a message

Colours = Mapping[tuple[int, ...], int]


def by_palette(
  found: np.ndarray, name: str, colours: Colours, looks: np.ndarray
) -> np.ndarray:
  """Decides between a file's values and what their colours stand for.

  Args:
    found: the values in a label file, sorted.
    name: of the file, for messages.
    colours: see `labels.decode_label`.
    looks: uint8 [n, 3], the colour of each value found.

  Returns:
    The class id of each value: itself where all are ids, else, where all
    their colours are known, those of the colours; else the values.

  Raises:
    DataError: 'ambiguous_palette', where both could be meant and differ.
  """
  looks = [tuple(map(int, look)) for look in looks]
  mapped = np.array([colours.get(look, -1) for look in looks], np.int64)
  # Where white is the colour of a class, a white 255 is not void.
  white = VOID in found and looks[-1] == WHITE
  ids = set(colours.values())
  if not white or colours.get(WHITE, VOID) == VOID:
    ids.add(VOID)
  are_ids = ids.issuperset(found.tolist())
  if mapped.min() < 0 or are_ids and np.array_equal(mapped, found):
    return found
  if are_ids:
    i = int(np.flatnonzero(mapped != found)[0])
    raise DataError(
      f"{name}: the label's value {found[i]} is a class id, but its colour "
      f'{list(looks[i])} is that of class {mapped[i]} in classes.json, '
      'expected one meaning; save the file as RGB if the colours are right, '
      'or remove the colours from classes.json if the values are',
      'ambiguous_palette',
    )
  problems.mention(
    'colours_of_palette',
    name,
    f"the label's values are no class ids, expected some of {sorted(ids)}; "
    'their colours are in classes.json, and decide',
  )
  return mapped


def from_rgb(
  rgb: np.ndarray, clear: np.ndarray, name: str, colours: Colours | None
) -> np.ndarray:
  """Maps colours to class ids.

  Args:
    rgb: uint8 [H, W, 3].
    clear: bool [H, W], pixels that are void whatever their colour.
    name: of the file, for messages.
    colours: see `labels.decode_label`.

  Returns:
    uint8 [H, W], 255 = void.

  Raises:
    DataError: 'colours' (there is no list of them), 'unknown_colours',
      'blended_colours'.
  """
  codes = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
  if not colours:
    raise _no_colours(codes, name)
  label = np.full(codes.shape, VOID, np.uint8)
  known = clear.copy()
  for colour, id_ in colours.items():
    if colour != TRANSPARENT:
      here = (codes == _code(colour)) & ~clear
      label[here] = id_
      known |= here
  if not known.all():
    raise _unknown_colours(codes[~known], codes.size, name, colours)
  return label


def opaque(
  image: Image.Image, name: str, colours: Colours | None
) -> tuple[np.ndarray, np.ndarray]:
  """Takes an image with colours apart.

  Returns:
    (uint8 [H, W, 3], bool [H, W]: alpha is 0, and `TRANSPARENT` is allowed).

  Raises:
    DataError: 'transparent'.
  """
  array = np.asarray(image.convert('RGBA' if image.mode != 'RGB' else 'RGB'))
  if array.shape[-1] == 3:
    return array, np.zeros(array.shape[:2], bool)
  alpha = array[..., 3]
  clear = alpha == 0
  see_through = np.count_nonzero(alpha < 255)
  partly = np.count_nonzero((alpha > 0) & (alpha < 255))
  if see_through and (partly or TRANSPARENT not in (colours or {})):
    raise DataError(
      f'{name}: {see_through} of {alpha.size} pixels of the label are '
      f'transparent ({partly} of them partly), expected opaque class ids; '
      'give them a colour, or put "void": "transparent" into classes.json if '
      'all are wholly transparent and mean void',
      'transparent',
    )
  return array[..., :3], clear


def _no_colours(codes, name):
  """The error for a colour file without a list of colours."""
  found, counts = np.unique(codes, return_counts=True)
  found = found[np.argsort(-counts, kind='stable')]
  if len(found) <= 64:
    problems.mention_colours(tuple(_colour(code)) for code in found)
    names = ['background', *(f'class {i}' for i in range(1, len(found)))]
    line = dict(zip(names, map(_colour, found[:SHOWN]), strict=False))
    more = ', ...' * (len(found) > SHOWN)
    fix = (
      f'name its {len(found)} colours in classes.json: '
      f'{json.dumps(line)[:-1]}{more}}}'
    )
  else:
    fix = (
      f'its {len(found)} colours look like a photo, an overlay or a lossy '
      'copy; export the labels again, as an indexed or grey PNG'
    )
  return DataError(
    f'{name}: the label file holds colours, expected one class id per pixel; '
    f'{fix}',
    'colours',
  )


def _unknown_colours(codes, total, name, colours):
  """The error for colours that are not in the list."""
  found, counts = np.unique(codes, return_counts=True)
  order = np.argsort(-counts, kind='stable')
  shown = ', '.join(f'{_colour(found[i])} ({counts[i]})' for i in order[:SHOWN])
  if len(found) > SHOWN:
    shown += f' and {len(found) - SHOWN} more'
  # Edges drawn smoothly or saved lossily: many colours, few pixels of each.
  blended = len(found) > max(8, len(colours)) and counts.max() < total / 10
  fix = (
    'they look blended, as at smooth edges or after JPEG; export the labels '
    'again without anti-aliasing, lossy formats or smooth resizing'
    if blended
    else 'add them to classes.json, or correct the file'
  )
  return DataError(
    f'{name}: {len(codes)} of {total} pixels of the label have colours that '
    f'are not in classes.json: {shown}, expected its {len(colours)} colours; '
    f'{fix}',
    'blended_colours' if blended else 'unknown_colours',
  )


def _code(colour):
  red, green, blue = colour
  return (red << 16) + (green << 8) + blue


def _colour(code):
  return [int(code) >> 16, int(code) >> 8 & 255, int(code) & 255]
