"""Arrays of .npz and safetensors files, none of them read at first.

Sources: NumPy's format note (NEP 1); the README of safetensors, "Format".
"""

import json
import math
import struct
import zipfile
from typing import BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from jaxseg.published.source import Tensor

# An array of an .npz may unpack to this many bytes, or times its packed size.
MAX_UNPACKED, MAX_RATIO = 1 << 24, 20
MAX_ARRAYS = 100_000
# Bytes of the names and shapes of a safetensors file.
MAX_HEADER = 8 << 20

# ml_dtypes names those that NumPy lacks.
SAFE_DTYPES = {
  'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F8_E5M2': ml_dtypes.float8_e5m2,
  'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': 'i1', 'U64': '<u8',
  'U32': '<u4', 'U16': '<u2', 'U8': 'u1', 'BOOL': '?', 'C64': '<c8',
}  # fmt: skip


def npz(file: str | BinaryIO) -> dict[str, Tensor]:
  """Lists the arrays of an .npz.

  Args:
    file: its path, or the open file.

  Returns:
    them by name; reading one may still raise any exception, where its numbers
    are damaged.

  Raises:
    ValueError: an array of Python objects, or one that unpacks to far more than
      the file holds.
    Exception: of any other kind, from a damaged file.
  """
  archive = zipfile.ZipFile(file)
  infos = archive.infolist()
  names = {info.filename for info in infos}
  if len(names) < len(infos) or len(infos) > MAX_ARRAYS:
    raise ValueError(f'{len(infos)} arrays have {len(names)} names')
  return {
    info.filename.removesuffix('.npy'): _npy(archive, info) for info in infos
  }


def _npy(archive, info):
  if info.file_size > max(MAX_UNPACKED, MAX_RATIO * info.compress_size):
    raise ValueError(
      f'{info.filename} unpacks from {info.compress_size} to {info.file_size} '
      'bytes'
    )
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = header(file)
    if dtype.hasobject:
      raise ValueError(f'{info.filename} holds Python objects')
    if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
      raise ValueError(f'{info.filename} has not the size of {shape} {dtype}')

  def read():
    with archive.open(info) as file:
      return np.lib.format.read_array(file, allow_pickle=False)

  return Tensor(shape, dtype, read)


def safe(path: str, data: memoryview) -> tuple[dict[str, Tensor], dict]:
  """Lists the arrays of a safetensors file.

  Args:
    path: of the file.
    data: all of it.

  Returns:
    arrays by name, which read as views of `data`; and its metadata, strings.

  Raises:
    ValueError: two arrays of one name, or a dtype that NumPy cannot hold.
    Exception: of any other kind, from a damaged file.
  """
  (size,) = struct.unpack('<Q', data[:8])
  if size > min(MAX_HEADER, len(data) - 8):
    raise ValueError(f'its header would take {size} bytes')
  # The library checks offsets, sizes and shapes, but not that names differ.
  with safetensors.safe_open(path, 'np'):
    pass
  header = json.loads(bytes(data[8 : 8 + size]), object_pairs_hook=_unique)
  metadata = header.pop('__metadata__', {})
  content = data[8 + size :]
  return {name: _safe(content, name, x) for name, x in header.items()}, metadata


def _unique(pairs):
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('two of its arrays have one name')
  return found


def _safe(content, name, entry):
  if entry['dtype'] not in SAFE_DTYPES:
    raise ValueError(
      f'{name} has the dtype {entry["dtype"]}, expected one of '
      f'{", ".join(SAFE_DTYPES)}'
    )
  dtype = np.dtype(SAFE_DTYPES[entry['dtype']])
  start, stop = entry['data_offsets']
  shape = tuple(entry['shape'])
  read = lambda: np.frombuffer(content[start:stop], dtype).reshape(shape)
  return Tensor(shape, dtype, read)
