"""Readers of weak labels that people drew: scribbles, boxes, tags."""

import json
import math
import os
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np

from jaxseg.data.annotations import parsing, strokes, tables
from jaxseg.data.weak import Box
from jaxseg.errors import DataError

VOID = 255
MAX_POINTS = 100_000  # of all strokes of one file
MAX_COORDINATE = 100_000  # pixels
ACDC_VOID = 4


def read_scribble_xml(
  path: str | os.PathLike,
  class_names: Sequence[str],
  size: tuple[int, int] | None = None,
  width: int = 3,
) -> np.ndarray:
  """Reads one image's scribbles as ScribbleSup publishes them.

  Each <polygon> of the XML is an open stroke: the name of its class in <tag>,
  then <point>s with <X> and <Y>, counted from 1. Consecutive points are
  joined by lines; later strokes lie over earlier ones. This is how the masks
  with which Tang et al. 2018 trained (`rloss`, line width 3) were made.

  Args:
    path: an XML file.
    class_names: names in the order of their ids, 'background' first.
    size: (height, width) of the image; None: the file's <size>.
    width: of the lines, in pixels.

  Returns:
    uint8 [H, W], 255 where no stroke is.

  Raises:
    DataError: a damaged file, an unknown class, points that are no numbers,
      a stroke that is nowhere inside the image.
  """
  root = parsing.parse_xml(path)
  height, breadth = size or parsing.xml_size(path, root)
  label = np.full((height, breadth), VOID, np.uint8)
  read = 0
  for stroke in root.iter('polygon'):
    class_id = parsing.class_id(path, stroke.findtext('tag'), class_names)
    points = [
      (
        parsing.number(path, p, 'X') - 1,
        parsing.number(path, p, 'Y') - 1,
      )
      for p in stroke.iter('point')
    ]
    read += len(points)
    if read > MAX_POINTS:
      raise DataError(
        f'{path}: the strokes have more than {MAX_POINTS} points, expected '
        'hand-drawn ones; check where the file comes from',
        kind='too_large',
      )
    # Hands slip over the border; the line is clipped there.
    inside = [0 <= x < breadth and 0 <= y < height for x, y in points]
    far = [p for p in points if max(map(abs, p)) > MAX_COORDINATE]
    if points and (not any(inside) or far):
      x, y = far[0] if far else points[0]
      raise DataError(
        f'{path}: a stroke has a point at x={x + 1:g}, y={y + 1:g} and lies '
        f'outside the image of {breadth}x{height}, expected strokes inside; '
        'check that image and scribbles belong together',
        kind='size_mismatch',
      )
    if points:
      # (row, column) in place of (x, y).
      line = np.array(points, np.float32)[:, ::-1]
      label[strokes.draw(line, label.shape, width)] = class_id
  return label


def acdc_scribbles(
  scribbles: np.ndarray, unlabelled: int = ACDC_VOID
) -> np.ndarray:
  """Maps the scribbles of Valvano et al. 2021 for ACDC to our ids.

  Their files hold classes 0..3 and a further id where nothing was drawn.

  Args:
    scribbles: any real dtype and shape, whole numbers.
    unlabelled: the further id.

  Returns:
    uint8 of the same shape, 255 = not labelled.

  Raises:
    ValueError: values that are neither classes nor `unlabelled`.
  """
  found = np.unique(scribbles)
  strange = found[~np.isin(found, np.arange(unlabelled + 1))]
  if len(strange):
    raise ValueError(
      f'the scribbles hold {", ".join(f"{v:g}" for v in strange[:5])}, '
      f'expected classes 0 to {unlabelled - 1} and {unlabelled} where nothing '
      'was drawn'
    )
  return np.where(scribbles == unlabelled, VOID, scribbles).astype(np.uint8)


def read_voc_boxes(
  path: str | os.PathLike, class_names: Sequence[str]
) -> tuple[list[Box], tuple[int, int]]:
  """Reads the boxes of one image from PASCAL VOC's Annotations.

  Boxes of parts, such as heads, are left out; those of objects marked
  difficult are not.

  Args:
    path: an XML file.
    class_names: names in the order of their ids, 'background' first.

  Returns:
    (class id, top, left, bottom, right) of each object in the file's order,
    counted from 0, bottom and right excluded; (height, width) of the image.

  Raises:
    DataError: a damaged file, an unknown class, a box without inside.
  """
  root = parsing.parse_xml(path)
  height, breadth = parsing.xml_size(path, root)
  found = []
  for item in root.findall('object'):
    class_id = parsing.class_id(path, item.findtext('name'), class_names)
    box = item.find('bndbox')
    box = ElementTree.Element('bndbox') if box is None else box
    left, top, right, bottom = (
      parsing.number(path, box, name)
      for name in ('xmin', 'ymin', 'xmax', 'ymax')
    )
    # VOC counts from 1 and includes the last pixel; some are fractions.
    left, top = max(math.floor(left) - 1, 0), max(math.floor(top) - 1, 0)
    right = min(math.ceil(right), breadth)
    bottom = min(math.ceil(bottom), height)
    if left >= right or top >= bottom:
      raise DataError(
        f'{path}: a box of {class_names[class_id]!r} has nothing inside the '
        f'image of {breadth}x{height}, expected xmin < xmax and ymin < ymax; '
        'correct it',
        kind='bad_box',
      )
    found.append((class_id, top, left, bottom, right))
  return found, (height, breadth)


def read_tags(
  path: str | os.PathLike, class_names: Sequence[str]
) -> dict[str, np.ndarray]:
  """Reads which classes each image shows.

  Args:
    path: a JSON object {'image': ['class', ...], ...}, or a CSV file; see
      `tables.tag_lines`. Classes are names or ids.
    class_names: names in the order of their ids.

  Returns:
    float32 [K] of 0 and 1 by image.

  Raises:
    DataError: a damaged file, an unknown class, an image listed twice.
  """
  text = parsing.read_text(path)
  if str(path).lower().endswith('.json'):
    entries = _json_tags(path, text)
  else:
    entries = tables.tag_lines(path, text, class_names)
  found: dict[str, np.ndarray] = {}
  for image, classes in entries:
    if image in found:
      raise DataError(
        f'{path}: {image!r} is listed twice, expected each image once; join '
        'its classes',
        kind='listed_twice',
      )
    found[image] = np.zeros(len(class_names), np.float32)
    where = f'{path}: {image[:80]!r}'
    for name in classes:
      found[image][parsing.class_id(where, name, class_names)] = 1
  return found


def _json_tags(path, text):
  try:
    content = json.loads(text, object_pairs_hook=list)
  except (ValueError, RecursionError) as error:
    raise DataError(
      f'{path}: the file is not readable JSON ({error}), expected '
      "{'image': ['class', ...]}; correct it",
      kind='bad_json',
    ) from error
  pairs = [p for p in content if isinstance(p, tuple)] if content else []
  if (
    not isinstance(content, list)
    or len(pairs) != len(content)
    or not all(isinstance(classes, list) for _, classes in pairs)
    or not all(isinstance(c, str | int) for _, cs in pairs for c in cs)
  ):
    raise DataError(
      f'{path}: the file holds no tags, expected an object '
      '{"image": ["class", ...], ...}; correct it',
      kind='bad_json',
    )
  return pairs
