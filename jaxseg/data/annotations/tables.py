"""CSV files of boxes and of tags, as people keep them."""

import csv
import math
import os
from collections.abc import Sequence

from jaxseg.data.annotations import parsing
from jaxseg.data.source import Box
from jaxseg.errors import DataError

IMAGE = 'image'  # the name of the first column, where columns have names
EDGES = ('top', 'left', 'bottom', 'right')
MAX_COORDINATE = 100_000  # pixels


def read_boxes(
  path: str | os.PathLike, class_names: Sequence[str]
) -> dict[str, list[Box]]:
  """Reads the boxes of all images.

  Args:
    path: a CSV file with the columns image, class, top, left, bottom, right,
      in any order, and one line a box; in pixels from the upper left corner
      of the image, bottom and right excluded, so that 0, 0, height, width is
      all of it. A line with an image alone says that it shows no object.
      Classes are names or ids.
    class_names: names in the order of their ids, 'background' first.

  Returns:
    By image as it is written there, (class id, top, left, bottom, right) in
    the file's order; pixels that are covered in part count.

  Raises:
    DataError: a damaged file, a missing column, an unknown class, edges that
      are no numbers or in the wrong order.
  """
  lines = csv_lines(path, parsing.read_text(path), 'image, class, top, ...')
  columns = (IMAGE, 'class', *EDGES)
  header = [cell.casefold() for cell in lines[0][1]] if lines else []
  missing = [name for name in columns if name not in header]
  if missing:
    raise DataError(
      f'{path}: its first line has no column {missing[0]!r}, expected '
      f'{",".join(columns)}; add the column or the line of names',
      kind='bad_csv',
    )
  found: dict[str, list[Box]] = {}
  for number, cells in lines[1:]:
    row = dict(zip(header, [*cells, *[''] * len(header)], strict=False))
    boxes = found.setdefault(row[IMAGE], [])
    if any(row[name] for name in columns[1:]):
      boxes.append(_box(path, number, row, class_names))
  return found


def _box(path, number, row, class_names):
  """Returns one line's box."""
  where = f'{path}: line {number}'
  class_id = parsing.class_id(where, row['class'], class_names)
  edges = []
  for name in EDGES:
    try:
      edges.append(float(row[name]))
    except ValueError:
      edges.append(math.nan)
    if not 0 <= edges[-1] <= MAX_COORDINATE:
      raise DataError(
        f'{where}: {name} is {row[name][:80]!r}, expected a number of pixels '
        f'from 0 to {MAX_COORDINATE}; correct it',
        kind='bad_box',
      )
  top, left, bottom, right = edges
  if class_id == 0 or not (top < bottom and left < right):
    raise DataError(
      f'{where}: the box of {class_names[class_id]!r} is from {top:g}, '
      f'{left:g} to {bottom:g}, {right:g} (top, left to bottom, right), '
      'expected an object, top < bottom and left < right; correct it',
      kind='bad_box',
    )
  return (
    class_id, math.floor(top), math.floor(left), math.ceil(bottom),
    math.ceil(right),
  )  # fmt: skip


def tag_lines(
  path: str | os.PathLike, text: str, class_names: Sequence[str]
) -> list[tuple[str, list[str]]]:
  """Returns (image, its classes) of each line of a CSV file of tags.

  Args:
    path: of the file, for messages.
    text: lines of image, class, class, ..., where 'class;class' is as good;
      or below a first line of names, image,classes. If the names after
      'image' are those of classes, each line has a 1 in the columns of those
      that the image shows and 0 in the others.
    class_names: names in the order of their ids.

  Raises:
    DataError: no CSV; a first line of which some names alone are classes;
      what is neither 0 nor 1 in the column of a class.
  """
  lines = csv_lines(path, text, 'image, class, class, ...')
  if not lines or lines[0][1][0].casefold() != IMAGE:
    return [(cells[0], _split(cells[1:])) for _, cells in lines]
  header = lines[0][1][1:]
  unknown = [name for name in header if name not in class_names]
  if unknown and len(unknown) < len(header):
    raise DataError(
      f'{path}: line {lines[0][0]} names {unknown[0][:80]!r} among the classes,'
      f' expected some of {", ".join(class_names)}; correct it',
      kind='unknown_class',
    )
  if unknown or not header:
    return [(cells[0], _split(cells[1:])) for _, cells in lines[1:]]
  entries = []
  for number, (image, *cells) in lines[1:]:
    strange = [c for c in cells if c not in ('0', '1')]
    if strange or len(cells) != len(header):
      found = repr(strange[0][:80]) if strange else f'{len(cells)} of them'
      raise DataError(
        f'{path}: line {number} has {found} below the names of '
        f'{len(header)} classes, expected 0 or 1 for each; correct it',
        kind='bad_csv',
      )
    shown = zip(header, cells, strict=True)
    entries.append((image, [name for name, cell in shown if cell == '1']))
  return entries


def _split(cells):
  parts = [part.strip() for cell in cells for part in cell.split(';')]
  return [part for part in parts if part]


def csv_lines(
  path: str | os.PathLike, text: str, expected: str
) -> list[tuple[int, list[str]]]:
  """Returns (line number, cells) of the lines that are not blank.

  Raises:
    DataError: no CSV.
  """
  rows = csv.reader(text.splitlines())
  try:
    lines = [(rows.line_num, [c.strip() for c in cells]) for cells in rows]
  except csv.Error as error:
    raise DataError(
      f'{path}: the file is not readable CSV ({error}), expected lines of '
      f'{expected}; correct it',
      kind='bad_csv',
    ) from error
  return [(number, cells) for number, cells in lines if any(cells)]
