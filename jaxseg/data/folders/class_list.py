"""classes.json: names, colours and stored values of the classes of a folder."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data.formats import files
from jaxseg.data.formats.label_colours import TRANSPARENT, VOID, WHITE
from jaxseg.errors import DataError

_KEYS = ('classes', 'colors', 'colours', 'values', 'void', 'licence')
_MORE_KEYS = ('license', 'name', 'description', 'url')


class ClassList(NamedTuple):
  """What classes.json or meta.json says of the label files.

  Attributes:
    names: of the classes in the order of their ids; None: not said.
    palette: uint8 [K, 3]; None: not said.
    colours: see `labels.decode_label`; None: colours stand for nothing.
    values: see `labels.decode_label`.
    has_void: whether 255 in a label file is void.
    name: of the set; '': not said.
    licence: in words.
    path: the file, for messages.
  """

  names: tuple[str, ...] | None = None
  palette: np.ndarray | None = None
  colours: dict[tuple[int, ...], int] | None = None
  values: dict[int, int] | None = None
  has_void: bool = True
  name: str = ''
  licence: str = ''
  path: str = ''


def read_classes(root: pathlib.Path) -> ClassList:
  """Reads classes.json, else meta.json, of a folder; both may be missing.

  classes.json is {"classes": [names], "colors": [[r, g, b], ...], "values":
  {"stored value": id or null}, "void": id, [r, g, b], "transparent" or null,
  "licence": "..."}, each key optional, or in short {"name": [r, g, b], ...}
  with 'void' as a name that is no class. Its colours are those of
  colour-coded masks. meta.json has "classes", "void" (an id), "palette"
  (colours for showing alone) and "name".

  Raises:
    DataError: 'json' or 'classes'.
  """
  path = root / 'classes.json'
  if not path.exists():
    path = root / 'meta.json'
    if not path.exists():
      return ClassList(path=str(root / 'classes.json'))
  content = read_json(path)
  if path.name == 'classes.json':
    content = _long_form(content, path)
  names = _names(content, path)
  colours, palette = _colours(content, names, path)
  return ClassList(
    names=names,
    palette=palette,
    colours=colours,
    values=_values(content, names, colours, path),
    has_void=content.get('void', VOID) is not None,
    name=str(content.get('name', '')),
    licence=str(content.get('licence', content.get('license', ''))),
    path=str(path),
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Raises:
    DataError: 'json'; as `files.read_bytes`.
  """
  try:
    content = json.loads(files.read_bytes(path, 'JSON').decode('utf-8-sig'))
  except (ValueError, RecursionError) as error:
    raise DataError(
      f'{path}: the file is not readable JSON ({error}), expected an object '
      '{...}; correct or remove it',
      'json',
    ) from error
  if not isinstance(content, dict):
    raise DataError(
      f'{path}: the file holds a {type(content).__name__}, expected an object '
      '{...}; correct or remove it',
      'json',
    )
  return content


def _wrong(path, field, value, expected):
  return DataError(
    f'{path}: "{field}" is {json.dumps(value)[:80]}, expected {expected}; '
    'correct it',
    'classes',
  )


def _long_form(content, path):
  """Returns {"classes": ..., "colors": ...} of {"name": [r, g, b], ...}."""
  looks = [v for k, v in content.items() if not k.startswith('_')]
  if len(looks) > 1 and all(map(_is_colour, looks)) and (
    not set(content) & {'classes', 'colors', 'colours', 'values'}
  ):  # fmt: skip
    classes = [k for k in content if k.casefold() != 'void']
    long = {'classes': classes, 'colors': [content[k] for k in classes]}
    void = [v for k, v in content.items() if k.casefold() == 'void']
    return long | ({'void': void[0]} if void else {})
  unknown = [k for k in content if k not in _KEYS + _MORE_KEYS]
  if unknown:
    raise DataError(
      f'{path}: it has the key {unknown[0]!r}, expected some of '
      f'{", ".join(_KEYS)}, or class names with a colour [red, green, blue] '
      'each; correct it',
      'classes',
    )
  return content


def _is_colour(value):
  return (
    isinstance(value, list)
    and len(value) == 3
    and all(type(v) is int and 0 <= v <= 255 for v in value)
  )


def _names(content, path):
  names = content.get('classes')
  if names is None:
    return None
  if (
    not isinstance(names, list)
    or not 2 <= len(names) <= VOID
    or not all(isinstance(name, str) and name.strip() for name in names)
    or len(set(names)) < len(names)
  ):
    raise _wrong(
      path, 'classes', names,
      'a list of 2 to 255 different names in the order of their ids',
    )  # fmt: skip
  return tuple(names)


def _colours(content, names, path):
  """Returns (class ids by colour or None, palette or None)."""
  key = next((k for k in ('colors', 'colours') if k in content), None)
  if path.name == 'meta.json':
    key = 'palette' if 'palette' in content else None
  if key is None:
    return None, None
  looks = content[key]
  wanted = f'{len(names) if names else 2} colours'
  if (
    not isinstance(looks, list)
    or not all(map(_is_colour, looks))
    or len(looks) != (len(names) if names else len(looks))
  ):
    expected = f'{wanted} [red, green, blue] of 0 to 255, one a class'
    raise _wrong(path, key, looks, expected)
  palette = np.array(looks, np.uint8).reshape(-1, 3)
  if key == 'palette':
    return None, palette
  if names is None:
    raise _wrong(path, 'classes', None, f'{len(looks)} names, one a colour')
  colours = {tuple(look): id_ for id_, look in enumerate(looks)}
  void = content.get('void')
  if void == 'transparent':
    colours[TRANSPARENT] = VOID
  elif isinstance(void, list):
    looks = [*looks, void]
    colours[tuple(void)] = VOID
  if len({tuple(look) for look in looks}) < len(looks):
    raise _wrong(path, key, looks, 'a different colour for each class')
  if void == VOID and WHITE in colours:
    raise DataError(
      f'{path}: "void" is 255, which is also the white of class '
      f'{names[colours[WHITE]]!r}, expected different ones; put "void": null '
      'if there is no void',
      'classes',
    )
  return colours, palette


def _values(content, names, colours, path):
  """Returns ids by stored value, the id of void among them, or None."""
  k = len(names) if names else VOID
  given = content.get('values', {})
  if not isinstance(given, dict):
    raise _wrong(path, 'values', given, '{"stored value": class id, ...}')
  values = {}
  for key, id_ in given.items():
    id_ = VOID if id_ is None else id_
    if not key.strip().isdecimal() or type(id_) is not int or not (
      0 <= id_ < k or id_ == VOID
    ):  # fmt: skip
      raise _wrong(
        path, 'values', given,
        f'stored values with a class id from 0 to {k - 1}, or null for void',
      )  # fmt: skip
    values[int(key)] = id_
  void = content.get('void')
  if void is None or void == 'transparent' or _is_colour(void):
    if void and not colours:
      raise _wrong(path, 'colors', None, 'colours, as "void" is one of them')
    return values or None
  if type(void) is not int or not 0 <= void <= 255:
    raise _wrong(path, 'void', void, 'an id from 0 to 255, or null')
  if names and void < k and void not in values:
    raise DataError(
      f'{path}: "void" is {void}, which is also the id of class '
      f'{names[void]!r}, expected an id that no class has; use 255',
      'classes',
    )
  if values.get(void, VOID) != VOID:
    raise DataError(
      f'{path}: "void" is {void}, which "values" makes class {values[void]}, '
      'expected one of the two; put "void": null if there is no void',
      'classes',
    )
  return values | ({void: VOID} if void != VOID else {}) or None
