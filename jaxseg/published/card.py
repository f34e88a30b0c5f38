"""What a folder of weights tells of itself, read as from a stranger.

pretrained.json holds the card, files.json the sizes and checksums of the other
two files; a right checksum tells of no damage, but not of a good maker.
"""

import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxseg import manifest
from jaxseg.errors import UserError
from jaxseg.published import networks
from jaxseg.published.source import WeightsError

WEIGHTS, CARD = 'weights.safetensors', 'pretrained.json'
FORMAT = 1
# Bytes of a file of JSON.
MAX_TEXT = 64 << 20
# What pretrained.json tells, beside its format, and of what type.
FIELDS = {
  'kind': str, 'sources': list, 'networks': dict, 'extras': dict,
  'adds_w_avg': bool, 'label_output': str, 'remarks': list, 'ignored': list,
}  # fmt: skip
SOURCE = {'file': str, 'bytes': int, 'sha256': str}
NETWORK = {'arch': str, 'settings': dict, 'parameters': int}


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads pretrained.json, and checks all that can be without the weights.

  Returns:
    the card; each network's 'settings' are such as `networks.module` takes.

  Raises:
    UserError: there is none.
    WeightsError: it is damaged, of another version, or not as it is written
      here.
  """
  path = Path(folder) / CARD
  try:
    is_there = path.is_file()
  except OSError as error:
    raise UserError(
      f'{folder} cannot be looked into ({error.strerror}); choose a folder '
      'that you may read'
    ) from error
  if not is_there:
    raise UserError(
      f'{folder} holds no {CARD}, expected a folder of converted weights; make '
      'one: python -m jaxseg.pretrained convert --kind=KIND --source=FILE '
      f'--output={folder}'
    )
  try:
    text = _bytes(path)
    card = json.loads(text)
    version = card['format']
  except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
    reason = getattr(error, 'strerror', None) or 'it is not as it was written'
    raise WeightsError(
      f'{path} cannot be read ({reason}); convert the file anew'
    ) from error
  if version != FORMAT:
    raise WeightsError(
      f'{path} is of format {str(version)[:20]}, expected {FORMAT}; convert '
      'the file anew with this version of jaxseg'
    )
  if _recorded(folder)[CARD] != [len(text), zlib.crc32(text)]:
    raise _damaged(folder, f'{path} has other bytes than were written')
  if fault := _fault(card):
    raise WeightsError(f'{path} {fault}; convert the file anew')
  return card


def refuse_changed(folder: str | os.PathLike) -> None:
  """Refuses a folder whose files are not those that `folder.save` wrote.

  Raises:
    WeightsError: names the first.
  """
  _recorded(folder)
  if wrong := manifest.changed_files(folder):
    raise _damaged(folder, wrong[0])


def refuse_misfits(
  folder: str | os.PathLike,
  card: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Refuses arrays of other shapes than the card's networks have.

  Args:
    folder: its path.
    card: of `read_card`, with those of its networks that are to be read.
    shapes: of the arrays in weights.safetensors that belong to them and to the
      extras, by name.

  Raises:
    WeightsError: names the first array.
  """
  wanted = {f'extras/{k}': tuple(v) for k, v in card['extras'].items()}
  for name, network in card['networks'].items():
    prefix = f'{name}/'
    found = {
      path.removeprefix(prefix): shape
      for path, shape in shapes.items()
      if path.startswith(prefix)
    }
    if not found:
      raise WeightsError(
        f'{Path(folder) / WEIGHTS} has no arrays of {name!r}, of which {CARD} '
        'tells; convert the file anew'
      )
    expected = networks.shapes(network['arch'], network['settings'], found)
    wanted |= {f'{prefix}{path}': shape for path, shape in expected.items()}
  for path in sorted(shapes.keys() | wanted.keys()):
    if shapes.get(path) != wanted.get(path):
      raise WeightsError(
        f'{Path(folder) / WEIGHTS} holds {path} of shape '
        f'{shapes.get(path, "nothing")}, but by {CARD} expected is '
        f'{wanted.get(path, "nothing")}; convert the file anew'
      )


def _recorded(folder):
  """{name: [bytes, CRC-32]} of files.json; both files are there, so long."""
  path = Path(folder) / manifest.FILES
  try:
    content = json.loads(_bytes(path))
    files = content['files']
    is_whole = manifest.of_json(files) == content['crc32']
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    is_whole = False
  if not is_whole:
    raise _damaged(folder, f'{path} is missing or damaged')
  if not isinstance(files, dict) or set(files) != {WEIGHTS, CARD}:
    raise _damaged(folder, f'{path} tells of other files')
  for name, entry in files.items():
    if not isinstance(entry, list) or [type(x) for x in entry] != [int, int]:
      raise _damaged(folder, f'{path} tells no size of {name}')
    try:
      size = _size(Path(folder) / name)
    except OSError as error:
      reason = f'cannot be read ({error.strerror})'
      raise _damaged(folder, f'{Path(folder) / name} {reason}') from error
    except ValueError as error:
      raise _damaged(folder, str(error)) from error
    if size != entry[0]:
      reason = f'has {size} bytes, expected {entry[0]}'
      raise _damaged(folder, f'{Path(folder) / name} {reason}')
  return files


def _size(path):
  """Of a file; a link, or a device without end, is none."""
  found = os.lstat(path)
  if not stat.S_ISREG(found.st_mode):
    raise ValueError(f'{path} is a link or no regular file')
  return found.st_size


def _bytes(path):
  if _size(path) > MAX_TEXT:
    raise ValueError(f'{path} is too long')
  return path.read_bytes()


def _damaged(folder, reason):
  return WeightsError(
    f'the weights in {folder} are damaged ({reason}), expected the files as '
    'they were written; convert the file anew'
  )


def _fault(card):
  """What is wrong with a card, or None."""
  if fault := _misses(card, FIELDS):
    return fault
  for name, types in (('remarks', str), ('ignored', str), ('sources', dict)):
    if not all(type(item) is types for item in card[name]):
      return f'has a field {name!r} of something else than {types.__name__}'
  for source in card['sources']:
    if fault := _misses(source, SOURCE):
      return fault
  for name, network in card['networks'].items():
    is_whole = type(network) is dict
    fault = _misses(network, NETWORK) if is_whole else 'has no network'
    if is_whole and not fault:
      fault = networks.fault(network['arch'], network['settings'])
    if fault:
      return f'{fault} in networks, {name[:50]}'
  for name, shape in card['extras'].items():
    if type(shape) is not list or any(type(size) is not int for size in shape):
      return f'tells no shape of {name[:50]!r} in extras'
  return networks.extras_fault(card['networks'], card['extras'])


def _misses(tree, fields):
  if missing := sorted(fields.keys() - tree.keys()):
    wanted = ', '.join(sorted(fields))
    return f'has no field {missing[0]!r}, expected all of {wanted}'
  for name, wanted in fields.items():
    if type(tree[name]) is not wanted:
      found = type(tree[name]).__name__
      return f'has a field {name!r} of {found}, expected {wanted.__name__}'
  return None
