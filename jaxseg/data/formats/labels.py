"""Label files to class ids: exactly, or refused with the line that mends it."""

import json
import os
from collections.abc import Mapping

import numpy as np

from jaxseg.data import problems
from jaxseg.data.formats import decode, files, label_colours
from jaxseg.data.formats.label_colours import SHOWN, VOID, Colours
from jaxseg.data.formats.label_colours import TRANSPARENT as TRANSPARENT
from jaxseg.errors import DataError

LABEL_FORMATS = ('PNG', 'TIFF', 'BMP')  # lossless: JPEG invents class ids
LABEL_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp')
Values = Mapping[int, int]


def read_label(
  path: str | os.PathLike,
  colours: Colours | None = None,
  values: Values | None = None,
) -> np.ndarray:
  """Reads one label file; see `decode_label`.

  Raises:
    DataError: as `files.read_bytes` and `decode_label`.
  """
  data = files.read_bytes(path, 'label')
  return decode_label(data, str(path), colours, values)


def decode_label(
  data: bytes,
  name: str,
  colours: Colours | None = None,
  values: Values | None = None,
) -> np.ndarray:
  """Decodes one file of class ids.

  Grey files of 1, 8, 16 or 32 bits and float files of whole numbers give
  their values, indexed ('P') files their indices. Where those are no class
  ids but their colours are all in `colours`, the colours decide; where both
  could be meant and differ, the file is refused. Colour files need `colours`
  unless they are grey throughout. Nothing is rounded and no nearest colour is
  looked for.

  Args:
    data: a PNG, TIFF or BMP file's content.
    name: of the file, for messages.
    colours: class id, or 255, of (red, green, blue); `TRANSPARENT` as a key
      makes pixels of alpha 0 void.
    values: class id, or 255, of stored values. Others stay what they are,
      except that a value which another one becomes is refused; 255 stays
      void. White of a 1-bit file counts as 255 if that is in it and 1 is not.

  Returns:
    uint8 [H, W], 255 = void.

  Raises:
    DataError: as `decode.open_image`; 'colours', 'unknown_colours',
      'blended_colours', 'ambiguous_palette', 'transparent', 'not_whole',
      'deep_colour', 'times_257' or 'unknown_ids'.
  """
  image, _, deep_colour = decode.open_image(data, name, LABEL_FORMATS, 'label')
  if deep_colour:
    raise DataError(
      f'{name}: the label file holds colours of 16 bits a channel, expected '
      'class ids; save it as an 8-bit grey or indexed PNG',
      'deep_colour',
    )
  if image.mode in ('RGB', 'RGBA', 'LA', 'PA'):
    rgb, clear = label_colours.opaque(image, name, colours)
    if clear.any() or (rgb != rgb[..., :1]).any():
      return label_colours.from_rgb(rgb, clear, name, colours)
    problems.mention(
      'grey_as_rgb',
      name,
      'the label is stored as RGB, expected one value a pixel; all three '
      'channels are equal, so they are read as one',
    )
    return to_ids(np.ascontiguousarray(rgb[..., 0]), name, values, colours)
  numbers = np.asarray(image)
  if image.mode == '1':
    white = VOID if values and VOID in values and 1 not in values else 1
    numbers = numbers * np.uint8(white)
  elif image.mode not in ('L', 'P', 'I', 'F') and image.mode[:2] != 'I;':
    raise DataError(
      f'{name}: the label file holds colours (mode {image.mode}), expected '
      'one class id per pixel; save it as an indexed or grey PNG whose pixel '
      'values are class ids',
      'colours',
    )
  palette = _palette(image) if image.mode == 'P' else _GREY
  return to_ids(numbers, name, values, colours, palette)


_GREY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def to_ids(
  numbers: np.ndarray,
  name: str,
  values: Values | None = None,
  colours: Colours | None = None,
  palette: np.ndarray = _GREY,
) -> np.ndarray:
  """Turns stored numbers into class ids; see `decode_label`.

  Args:
    numbers: of any dtype and shape.
    name: of the file, for messages.
    values: see `decode_label`.
    colours: see `decode_label`.
    palette: uint8 [n, 3], the colours of the numbers 0..n-1.

  Returns:
    uint8 of the same shape.

  Raises:
    DataError: 'not_whole', 'unknown_ids', 'times_257', 'ambiguous_palette'.
  """
  numbers = _whole(numbers, name)
  found, counts = _unique(numbers)
  if values:
    new = _by_values(found, counts, name, values)
  elif colours and found[0] >= 0 and found[-1] < len(palette):
    new = label_colours.by_palette(found, name, colours, palette[found])
  else:
    new = found
    if palette is not _GREY and 0 <= found[0] and found[-1] < len(palette):
      looks = map(tuple, palette[found].tolist())
      problems.mention_palette(dict(zip(found.tolist(), looks, strict=True)))
  if new.min() < 0 or new.max() > VOID:
    raise _out_of_range(found, counts, name)
  if np.array_equal(new, found) and numbers.dtype == np.uint8:
    return numbers
  if numbers.dtype == np.uint8:
    table = np.zeros(256, np.uint8)
    table[found] = new
    return table[numbers]
  return new.astype(np.uint8)[np.searchsorted(found, numbers)]


def _whole(numbers, name):
  """Returns integers; refuses fractions."""
  if numbers.dtype.kind in 'iub':
    return numbers.astype(np.uint8) if numbers.dtype.kind == 'b' else numbers
  with np.errstate(invalid='ignore'):
    fractions = np.count_nonzero(numbers != np.floor(numbers))
  fractions += np.count_nonzero(np.isinf(numbers))
  if fractions:
    finite = numbers[np.isfinite(numbers)]
    low, high = finite.min(initial=np.inf), finite.max(initial=-np.inf)
    raise DataError(
      f'{name}: {fractions} of {numbers.size} pixels of the label are no whole '
      f'numbers (from {low:.4g} to {high:.4g}), expected class ids; if it is a '
      'probability, save (p > 0.5) as 0 and 1',
      'not_whole',
    )
  return numbers.astype(np.int64)


def _unique(numbers):
  """Returns (sorted values, their counts)."""
  if numbers.dtype == np.uint8:
    counts = np.bincount(numbers.ravel(), minlength=256)
    found = np.flatnonzero(counts)
    return found, counts[found]
  found, counts = np.unique(numbers, return_counts=True)
  return found.astype(np.int64), counts


def _by_values(found, counts, name, values):
  """Maps by the explicit `values`; others stay, if that is no mix-up."""
  targets = set(values.values()) - {VOID}
  mixed = [i for i, v in enumerate(found) if v in targets and v not in values]
  if mixed:
    raise DataError(
      f'{name}: the label holds {_pixels(found[mixed], counts[mixed])}, which '
      '"values" in classes.json gives no class, though another value becomes '
      f'that id; add it there, e.g. "{found[mixed[0]]}": {found[mixed[0]]} or '
      f'"{found[mixed[0]]}": {VOID} (void)',
      'unknown_ids',
    )
  return np.array([values.get(int(v), int(v)) for v in found], np.int64)


def _out_of_range(found, counts, name):
  """The error for values that no id can have, with what may have been meant."""
  wrong = (found < 0) | (found > VOID)
  kind, fix = (
    'unknown_ids',
    ('save it as an 8-bit PNG whose pixel values are class ids'),
  )
  if found[0] >= 0 and not (found % 257).any():
    kind = 'times_257'
    ids = {int(v): int(v) // 257 for v in found}
    if list(ids) == [0, 65535]:
      ids[65535] = 1
    line = json.dumps({'values': {str(k): v for k, v in ids.items()}})
    fix = (
      'all are multiples of 257, as after a conversion from 8 to 16 bits; put '
      f'{line} into classes.json'
    )
  return DataError(
    f'{name}: the label file holds the value {found[wrong][-1]} '
    f'({_pixels(found[wrong], counts[wrong])}), expected class ids from 0 to '
    f'255; {fix}',
    kind,
  )


def _pixels(found, counts):
  """Words for values and how many pixels have each."""
  parts = [f'{v} in {n} pixels' for v, n in zip(found, counts, strict=True)]
  return problems.some(parts, SHOWN)


def _palette(image):
  """Returns uint8 [256, 3]; colours that the file leaves out are black."""
  colours = np.array(image.getpalette('RGB') or [], np.uint8).reshape(-1, 3)
  palette = np.zeros((256, 3), np.uint8)
  palette[: len(colours)] = colours[:256]
  return palette


def label_palette(path: str | os.PathLike) -> np.ndarray | None:
  """Returns the colours (uint8 [n, 3]) of an indexed file, else None.

  Raises:
    DataError: as `read_label`.
  """
  data = files.read_bytes(path, 'label')
  image = decode.open_image(data, str(path), LABEL_FORMATS, 'label').image
  if image.mode != 'P':
    return None
  return np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)
