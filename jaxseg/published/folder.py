"""A folder of converted weights: weights.safetensors, pretrained.json.

The arrays are written one after the other as they are read, so that memory
holds one of them at a time. Names in weights.safetensors are
NETWORK/COLLECTION/PATH, such as 'g_ema/params/conv_first/bias', and
extras/NAME. files.json holds a checksum of each file.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from flax import traverse_util

import jaxseg
from jaxseg import manifest
from jaxseg.errors import UserError
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Entry, WeightsError

WEIGHTS, CARD = 'weights.safetensors', 'pretrained.json'
FORMAT = 1
SEPARATOR = '/'
# What pretrained.json tells, beside its format.
FIELDS = {
  'kind', 'sources', 'networks', 'extras', 'adds_w_avg', 'remarks', 'ignored',
}  # fmt: skip


class Pretrained(NamedTuple):
  """Weights in memory.

  Attributes:
    kind: of the file they come from; 'jaxseg': a training of this package.
    networks: by name, see `networks.Converted`; leaves are float32 arrays.
    extras: nested dict of float32 arrays.
    adds_w_avg: see `networks.Converted`.
    card: what pretrained.json tells.
  """

  kind: str
  networks: dict[str, Network]
  extras: dict[str, Any]
  adds_w_avg: bool
  card: dict[str, Any]


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Leaves of a nested dict by '/'-joined path."""
  found = traverse_util.flatten_dict(dict(tree), sep=SEPARATOR)
  return {f'{prefix}{name}': leaf for name, leaf in found.items()}


def save(
  converted: Converted,
  output: str | os.PathLike,
  files: Iterable[str | os.PathLike] = (),
  ignored: Iterable[str] = (),
) -> dict[str, Any]:
  """Writes a folder of weights, whole or not at all.

  Args:
    converted: leaves are entries, which are read now, or float32 arrays.
    output: the folder; must not exist, or be empty.
    files: where they come from; their names, sizes and checksums are noted.
    ignored: names in those files that were not converted.

  Returns:
    what pretrained.json tells.

  Raises:
    UserError: the folder exists or cannot be written.
    WeightsError: numbers that are not finite, or a damaged file.
  """
  output = Path(os.path.abspath(output))
  refuse_existing(output)
  entries = flat(converted.extras, 'extras/')
  for name, network in converted.networks.items():
    entries |= flat(network.variables, f'{name}/')
  # The same weights give the same bytes, whichever way they came.
  entries = dict(sorted(entries.items()))
  card = _card(converted, entries, files, ignored)
  partial = output.with_name(f'.{output.name}.partial-{os.getpid()}')
  new = [folder for folder in partial.parents if not os.path.exists(folder)]
  try:
    partial.mkdir(parents=True)
    _write(partial / WEIGHTS, entries)
    text = json.dumps(card, indent=1) + '\n'
    (partial / CARD).write_text(text, encoding='utf-8')
    manifest.write_files(partial)
    if output.is_dir():
      output.rmdir()
    partial.rename(output)
  except OSError as error:
    raise UserError(
      f'--output={output} cannot be written ({error.strerror or error}); '
      'choose a folder with room where you may write'
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
    if not os.path.isdir(output):
      for parent in new:
        with contextlib.suppress(OSError):
          parent.rmdir()
  return card


def refuse_existing(output: str | os.PathLike) -> None:
  """Refuses a folder in which something lies.

  Raises:
    UserError: names it.
  """
  try:
    exists = os.path.lexists(output)
    taken = exists and not (os.path.isdir(output) and not os.listdir(output))
  except OSError as error:
    raise UserError(
      f'--output={output} cannot be looked into ({error.strerror}); choose a '
      'folder where you may write'
    ) from error
  if taken:
    raise UserError(
      f'--output={output} exists, expected a new folder; remove it or choose '
      'another'
    )


def is_one(folder: str | os.PathLike) -> bool:
  """Whether a folder looks like one that `save` wrote."""
  return (Path(folder) / CARD).is_file()


def read_card(folder: str | os.PathLike) -> dict[str, Any]:
  """Reads pretrained.json.

  Raises:
    UserError: there is none.
    WeightsError: it is damaged, or of another version.
  """
  path = Path(folder) / CARD
  if not path.is_file():
    raise UserError(
      f'{folder} holds no {CARD}, expected a folder of converted weights; make '
      'one: python -m jaxseg.pretrained convert --kind=KIND --source=FILE '
      f'--output={folder}'
    )
  try:
    card = json.loads(path.read_text(encoding='utf-8'))
    version = card['format']
  except (OSError, ValueError, KeyError, TypeError) as error:
    reason = getattr(error, 'strerror', None) or 'it is not as it was written'
    raise WeightsError(
      f'{path} cannot be read ({reason}); convert the file anew'
    ) from error
  if version != FORMAT:
    raise WeightsError(
      f'{path} is of format {version}, expected {FORMAT}; convert the file '
      'anew with this version of jaxseg'
    )
  if missing := sorted(FIELDS - card.keys()):
    raise WeightsError(
      f'{path} has no field {missing[0]!r}, expected all of '
      f'{", ".join(sorted(FIELDS))}; convert the file anew'
    )
  return card


def refuse_changed(folder: str | os.PathLike) -> None:
  """Refuses a folder whose files are not those that `save` wrote.

  Raises:
    WeightsError: names the first.
  """
  wrong = manifest.changed_files(folder)
  if wrong is None:
    wrong = [f'{Path(folder) / manifest.FILES} is missing or damaged']
  if wrong:
    raise WeightsError(
      f'the weights in {folder} are damaged ({wrong[0]}), expected the files '
      'as they were written; convert the file anew'
    )


def load(
  folder: str | os.PathLike, names: Iterable[str] | None = None
) -> Pretrained:
  """Reads a folder that `save` wrote.

  Args:
    folder: its path.
    names: networks to read; None: all.

  Returns:
    the weights, on the host.

  Raises:
    UserError: not such a folder, or it has no such network.
    WeightsError: it is damaged.
  """
  card = read_card(folder)
  refuse_changed(folder)
  names = list(card['networks'] if names is None else names)
  for name in names:
    if name not in card['networks']:
      raise UserError(
        f'the weights in {folder} have no network {name!r}, found '
        f'{", ".join(card["networks"])}; convert a file that holds one'
      )
  arrays = {}
  wanted = tuple(f'{name}/' for name in (*names, 'extras'))
  with safetensors.safe_open(Path(folder) / WEIGHTS, framework='numpy') as file:
    for key in file.keys():
      if key.startswith(wanted):
        arrays[key] = file.get_tensor(key)
  tree = traverse_util.unflatten_dict(arrays, sep=SEPARATOR)
  if missing := [name for name in names if name not in tree]:
    raise WeightsError(
      f'{Path(folder) / WEIGHTS} has no arrays of {missing[0]!r}, of which '
      f'{CARD} tells; convert the file anew'
    )
  networks = {
    name: Network(
      card['networks'][name]['arch'], card['networks'][name]['settings'],
      tree[name],
    )
    for name in names
  }  # fmt: skip
  return Pretrained(
    card['kind'], networks, tree.get('extras', {}), card['adds_w_avg'], card
  )


def _card(converted, entries, files, ignored):
  networks = {
    name: {
      'arch': network.arch,
      'settings': network.settings,
      'parameters': sum(
        math.prod(leaf.shape)
        for leaf in flat(network.variables['params']).values()
      ),
    }
    for name, network in converted.networks.items()
  }
  return {
    'format': FORMAT,
    'kind': converted.kind,
    'jaxseg': jaxseg.__version__,
    'sources': [_about(path) for path in files],
    'networks': networks,
    'extras': {
      name.removeprefix('extras/'): list(entry.shape)
      for name, entry in entries.items()
      if name.startswith('extras/')
    },
    'adds_w_avg': converted.adds_w_avg,
    'remarks': list(converted.remarks),
    'ignored': sorted(ignored),
  }


def _about(path):
  with open(path, 'rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  return {
    'file': Path(path).name,
    'bytes': os.path.getsize(path),
    'sha256': digest,
  }


def _write(path, entries):
  """The format of safetensors: length of the header, header, bytes in order."""
  header, start = {}, 0
  for name, entry in entries.items():
    size = 4 * math.prod(entry.shape)
    header[name] = {
      'dtype': 'F32',
      'shape': list(entry.shape),
      'data_offsets': [start, start + size],
    }
    start += size
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)))
    file.write(text)
    for name, entry in entries.items():
      array = entry.read() if isinstance(entry, Entry) else entry
      array = np.asarray(array, '<f4', order='C')
      if array.shape != tuple(entry.shape):
        raise AssertionError(f'{name} {array.shape} is not {entry.shape}')
      file.write(array.reshape(-1).view(np.uint8).data)
    file.flush()
    os.fsync(file.fileno())
