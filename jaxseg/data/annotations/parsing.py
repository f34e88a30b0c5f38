"""Small annotation files, XML, CSV and JSON, read with distrust."""

import math
import os
import pathlib
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from jaxseg.errors import DataError

MAX_BYTES = 10_000_000  # of a file; the known sets' own are below 1 MB
MAX_SIDE = 20_000  # pixels


def class_id(
  path: str | os.PathLike, name: object, class_names: Sequence[str]
) -> int:
  """Returns the id of a class given by name or, else, by number.

  Raises:
    DataError: no such class.
  """
  text = str(name).strip()
  if text in class_names:
    return list(class_names).index(text)
  if re.fullmatch(r'\d{1,3}', text) and int(text) < len(class_names):
    return int(text)
  raise DataError(
    f'{path}: there is no class {text[:80]!r}, expected one of '
    f'{", ".join(class_names)}; correct the file or the classes',
    kind='unknown_class',
  )


def xml_size(
  path: str | os.PathLike, root: ElementTree.Element
) -> tuple[int, int]:
  """Returns (height, width) of an annotation's <size>.

  Raises:
    DataError: there is none, or no whole numbers from 1 to MAX_SIDE.
  """
  size = root.find('size')
  if size is None:
    raise DataError(
      f'{path}: the file has no <size>, expected the width and height of its '
      'image; give the size',
      kind='bad_xml',
    )
  sides = tuple(number(path, size, name) for name in ('height', 'width'))
  if not all(side == int(side) and 0 < side <= MAX_SIDE for side in sides):
    raise DataError(
      f'{path}: <size> is {sides[1]:g}x{sides[0]:g}, expected whole numbers '
      f'from 1 to {MAX_SIDE}; correct it',
      kind='bad_xml',
    )
  return int(sides[0]), int(sides[1])


def number(
  path: str | os.PathLike, element: ElementTree.Element, name: str
) -> float:
  """Returns the number in the child element `name`.

  Raises:
    DataError: there is none, or it is not finite.
  """
  text = element.findtext(name)
  try:
    value = float(text)
    if math.isfinite(value):
      return value
  except (TypeError, ValueError):
    pass
  raise DataError(
    f'{path}: <{name}> in <{element.tag}> is {str(text)[:80]!r}, expected a '
    'number; correct the file',
    kind='bad_xml',
  )


def parse_xml(path: str | os.PathLike) -> ElementTree.Element:
  """Returns the root element of an XML file.

  Raises:
    DataError: as `read_text`; no XML; a document type or entities, which can
      make a small file fill the memory.
  """
  text = read_text(path)
  if re.search(r'<!\s*(DOCTYPE|ENTITY)', text, re.IGNORECASE):
    raise DataError(
      f'{path}: the XML declares a document type or entities, expected plain '
      'elements; remove the <!DOCTYPE ...> part',
      kind='bad_xml',
    )
  try:
    return ElementTree.fromstring(text)
  except (ElementTree.ParseError, ValueError) as error:
    raise DataError(
      f'{path}: the file is not readable XML ({error}), expected an '
      'annotation; download it again',
      kind='bad_xml',
    ) from error


def read_text(path: str | os.PathLike) -> str:
  """Returns a file's text; UTF-8 with or without byte order mark.

  Raises:
    DataError: a file that is missing, unreadable, no text or above MAX_BYTES.
  """
  try:
    size = os.path.getsize(path)
    if size > MAX_BYTES:
      raise DataError(
        f'{path}: the file has {size} bytes, expected at most {MAX_BYTES} for '
        'annotations; check where it comes from',
        kind='too_large',
      )
    return pathlib.Path(path).read_text('utf-8-sig')
  except OSError as error:
    raise DataError(
      f'{path}: the file cannot be read ({error.strerror}), expected '
      'annotations; check the path and its permissions',
      kind='unreadable',
    ) from error
  except UnicodeDecodeError as error:
    raise DataError(
      f'{path}: the file is not text in UTF-8 ({error.reason}), expected '
      'annotations; save it as UTF-8',
      kind='not_text',
    ) from error
