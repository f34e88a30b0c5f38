"""A folder of converted weights: weights.safetensors, pretrained.json.

The arrays are written one after the other as they are read, so that memory
holds one of them at a time. Names in weights.safetensors are
NETWORK/COLLECTION/PATH, such as 'g_ema/params/conv_first/bias', and
extras/NAME. files.json holds a checksum of each file.
"""

import hashlib
import json
import math
import os
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
from jaxseg.published import whole
from jaxseg.published.card import (
  CARD,
  FORMAT,
  WEIGHTS,
  read_card,
  refuse_changed,
  refuse_misfits,
)
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Entry, WeightsError

SEPARATOR = '/'


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
  whole.refuse_existing(output)
  entries = flat(converted.extras, 'extras/')
  for name, network in converted.networks.items():
    entries |= flat(network.variables, f'{name}/')
  # The same weights give the same bytes, whichever way they came.
  entries = dict(sorted(entries.items()))
  card = _card(converted, entries, files, ignored)
  with whole.written(output) as partial:
    _write(partial / WEIGHTS, entries)
    text = json.dumps(card, indent=1) + '\n'
    (partial / CARD).write_text(text, encoding='utf-8')
    manifest.write_files(partial)
  return card


def is_one(folder: str | os.PathLike) -> bool:
  """Whether a folder looks like one that `save` wrote."""
  return os.path.isfile(Path(folder) / CARD)


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
  used = card | {'networks': {name: card['networks'][name] for name in names}}
  tree = traverse_util.unflatten_dict(_arrays(folder, used), sep=SEPARATOR)
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


def _arrays(folder, card):
  """Arrays of the networks of a card and of the extras, by name."""
  path, beginnings = Path(folder) / WEIGHTS, (*card['networks'], 'extras')
  wanted = tuple(f'{name}/' for name in beginnings)
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      slices = {
        k: file.get_slice(k) for k in file.keys() if k.startswith(wanted)
      }
      shapes = {k: tuple(part.get_shape()) for k, part in slices.items()}
      refuse_misfits(folder, card, shapes)
      for name, part in slices.items():
        if part.get_dtype() != 'F32':
          raise ValueError(f'{name} is {part.get_dtype()}, expected F32')
      return {name: file.get_tensor(name) for name in slices}
  except (OSError, ValueError, safetensors.SafetensorError) as error:
    if isinstance(error, UserError):
      raise
    reason = ' '.join(str(error).split())[:200]
    raise WeightsError(
      f'{path} cannot be read ({reason}); convert the file anew'
    ) from error


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
    'label_output': converted.label_output,
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
