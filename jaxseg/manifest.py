"""Checksums of what is saved: of each array, and of each file.

Formats of checkpoints do not notice a flipped bit. The checksum of an array is
of its values in memory, so it holds for any layout of devices and files; that
of a file tells which one is damaged before anything is read from it.
"""

import json
import os
import zlib
from collections.abc import Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxseg import hosts
from jaxseg.data.formats.images import write_atomically

FILES = 'files.json'  # within the folder it is about
# Written anew after the checksums; holds times alone.
TIMES = '_CHECKPOINT_METADATA'
CHUNK = 1 << 20  # bytes
THREADS = min(8, os.cpu_count() or 1)  # zlib works without Python's lock


def of_arrays(tree: Any) -> dict[str, list]:
  """Returns {path in the tree: [CRC-32, dtype, shape]}.

  Every process must call it; all get the same.

  Args:
    tree: of JAX arrays, typed random keys among them, on any devices.
  """
  found = {}
  with futures.ThreadPoolExecutor(THREADS) as pool:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
      array = np.ascontiguousarray(hosts.whole(leaf))
      crc = pool.submit(zlib.crc32, array.reshape(-1).view(np.uint8))
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      found[name] = [crc, str(array.dtype), list(array.shape)]
  return {name: [crc.result(), *rest] for name, (crc, *rest) in found.items()}


def changed_arrays(tree: Any, manifest: Mapping[str, list]) -> list[str]:
  """Returns the paths whose arrays are not those of the manifest."""
  found = of_arrays(tree)
  names = sorted(found.keys() | manifest.keys())
  return [n for n in names if found.get(n) != manifest.get(n)]


def of_json(content: Any) -> int:
  """Returns the CRC-32 of what can be written as JSON."""
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_files(folder: str | os.PathLike) -> None:
  """Writes the sizes and checksums of all files of a folder into it."""
  paths = list(_files(folder))
  names = [str(path.relative_to(folder)) for path in paths]
  with futures.ThreadPoolExecutor(THREADS) as pool:
    files = dict(zip(names, pool.map(_of_file, paths), strict=True))
  content = {'files': files, 'crc32': of_json(files)}
  write_atomically(Path(folder) / FILES, json.dumps(content).encode())


def changed_files(folder: str | os.PathLike) -> list[str] | None:
  """Returns what is wrong with the files of a folder, file by file.

  Returns:
    sentences that begin with the file's name; None: the folder has no
    checksums, or they are themselves damaged.
  """
  try:
    content = json.loads((Path(folder) / FILES).read_bytes())
    files = content['files']
    if of_json(files) != content['crc32']:
      return None
  except (OSError, ValueError, KeyError, TypeError):
    return None
  wrong = []
  for name, (size, crc) in files.items():
    path = Path(folder) / name
    try:
      found_size, found_crc = _of_file(path)
    except OSError as error:
      wrong.append(f'{path} cannot be read ({error.strerror})')
      continue
    if found_size != size:
      wrong.append(f'{path} has {found_size} bytes, expected {size}')
    elif found_crc != crc:
      wrong.append(f'{path} has other bytes than were written')
  return wrong


def _files(folder):
  folder = Path(folder)
  for path in sorted(folder.rglob('*')):
    if path.is_file() and path not in (folder / FILES, folder / TIMES):
      yield path


def _of_file(path):
  """[bytes, CRC-32]."""
  buffer, size, crc = bytearray(CHUNK), 0, 0
  view = memoryview(buffer)
  with open(path, 'rb', buffering=0) as file:
    while n := file.readinto(buffer):
      size += n
      crc = zlib.crc32(view[:n], crc)
  return [size, crc]
