"""Reads what torch.save wrote, without PyTorch and without running anything.

Nothing but NumPy arrays and plain containers is built. Both forms of torch.save
are read: the zip of PyTorch 1.6 and later, and the row of pickles of before.

Source: the formats, as PyTorch's note "Serialization semantics" describes them
and as its files show them.
"""

import functools
import io
import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxseg.errors import UserError
from jaxseg.nets import plain_pickle
from jaxseg.nets.plain_pickle import Attributes, Global
from jaxseg.published.source import WeightsError

# A tensor may repeat elements of its storage, so that a tiny file could ask
# for any amount of memory: more bytes than this must be in the storage.
MAX_REPEATED = 1 << 20

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

HOW_TO_MEND = (
  'expected a file of torch.save that holds tensors in plain containers: save '
  'the state dict alone with torch.save(model.state_dict(), FILE), or its '
  'arrays with numpy.savez'
)


def read(path: str) -> Any:
  """Reads a file of torch.save.

  Args:
    path: of the file, in the zip or in the legacy format, little-endian.

  Returns:
    what was saved, of dict (also for OrderedDict), list, tuple, str, bytes,
    int, float, bool, None and read-only NumPy arrays; a torch.Size is a tuple,
    a torch.device a str, an argparse.Namespace a dict. The arrays are views of
    the mapped file, so that they take no memory of their own: copy what is to
    be kept. Arrays of bfloat16 have the dtype of `ml_dtypes`.

  Raises:
    UserError: no such file.
    WeightsError: damaged, or not of these types alone.
  """
  if not Path(path).is_file():
    raise UserError(f'the weights {path} are not a file')
  try:
    with open(path, 'rb') as file:
      data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if data[:4] == b'PK\x03\x04':
      return _read_zip(data)
    return _read_legacy(data)
  # Anything may go wrong in a damaged or a hostile file.
  except Exception as error:
    kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
    reason = ' '.join(f'{kind}{error}'.split())[:300]
    raise WeightsError(
      f'the weights {path} cannot be read ({reason}); {HOW_TO_MEND}'
    ) from error


def is_zip(data: mmap.mmap) -> bool:
  """Whether a zip archive is one of torch.save; damaged ones may raise."""
  names = zipfile.ZipFile(data).namelist()
  return any(name.split('/')[1:] == ['data.pkl'] for name in names)


def _read_zip(data):
  """FOLDER/data.pkl is the pickle, FOLDER/data/KEY are the storages."""
  entries = {i.filename: i for i in zipfile.ZipFile(data).infolist()}
  pickles = [name for name in entries if name.split('/')[1:] == ['data.pkl']]
  if len(pickles) != 1:
    raise ValueError('the zip archive is not one of torch.save')
  folder = pickles[0].removesuffix('data.pkl')

  @functools.cache
  def region(name):
    if name not in entries:
      raise ValueError(f'{name} is missing in it')
    return _stored(data, entries[name])

  def storage_of(key, dtype, size):
    start, stop = region(f'{folder}data/{key}')
    return _elements(data, key, dtype, size, start, stop)

  if f'{folder}byteorder' in entries:
    start, stop = region(f'{folder}byteorder')
    if data[start:stop] != b'little':
      raise ValueError('its numbers are big-endian')
  start, stop = region(pickles[0])
  if stop - start > plain_pickle.MAX_BYTES:
    raise ValueError(f'its pickle has {stop - start} bytes')
  return _run(io.BytesIO(data[start:stop]), storage_of)


def _stored(data, info):
  """(start, stop) of an entry's bytes, which torch.save never compresses."""
  start = info.header_offset
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'{info.filename} is compressed')
  if start < 0 or data[start : start + 4] != b'PK\x03\x04':
    raise ValueError(f'{info.filename} is not where the archive says')
  start += 30 + sum(struct.unpack('<HH', data[start + 26 : start + 30]))
  stop = start + info.file_size
  if stop > len(data):
    raise ValueError(f'{info.filename} is cut off')
  with memoryview(data) as view, view[start:stop] as content:
    # 0: torch.save was told to leave the checksum out.
    if info.CRC not in (0, zlib.crc32(content)):
      raise ValueError(f'{info.filename} differs from its checksum')
  return start, stop


def _read_legacy(data):
  """Pickles of magic, protocol, machine, object and keys; then the storages."""
  try:
    magic = _run(data)
  except Exception:
    magic = None
  if magic != LEGACY_MAGIC:
    raise ValueError('it does not begin as a file of torch.save does')
  protocol, machine = _run(data), _run(data)
  if protocol != LEGACY_PROTOCOL or machine.get('little_endian') is not True:
    raise ValueError('its protocol is unknown or its numbers are big-endian')
  begin, wanted = data.tell(), {}

  def announced(key, dtype, size):
    if wanted.setdefault(key, (dtype, size)) != (dtype, size):
      raise ValueError(f'storage {key} has two types or sizes')
    return np.broadcast_to(np.zeros((), dtype), (size,))

  # The place of a storage depends on the sizes of those before it, so that the
  # object is built twice, first without its numbers.
  _run(data, announced)
  keys = plain_pickle.mapping((key, None) for key in _run(data))
  start, storages = data.tell(), {}
  for key in keys:
    dtype, size = wanted[key]
    (stored,) = struct.unpack('<q', data[start : start + 8])
    if stored != size:
      raise ValueError(f'storage {key} has {stored} elements, not {size}')
    start += 8
    storages[key] = _elements(data, key, dtype, size, start, len(data))
    start += storages[key].nbytes
  data.seek(begin)
  return _run(data, lambda key, dtype, size: storages[key])


def _elements(data, key, dtype, size, start, stop):
  if start + size * dtype.itemsize > stop:
    raise ValueError(f'storage {key} is cut off, {size} {dtype} are expected')
  return np.frombuffer(data, dtype, size, start)


def _run(stream, storage_of=None):
  """Runs one pickle; `storage_of`: key, dtype, size -> [size]."""

  def persistent(identity):
    tag, kind, key, _, size, *rest = identity
    is_kind = isinstance(kind, Global) and isinstance(kind.value, np.dtype)
    if tag != 'storage' or not is_kind or not isinstance(key, str):
      raise ValueError('its pickle asks for something else than a storage')
    storage = storage_of(key, kind.value, _sizes([size])[0])
    if rest and rest[0] is not None:  # legacy: a part of another one
      _, start, count = rest[0]
      storage = _tensor(storage, start, (count,), (1,))
    return storage

  return plain_pickle.run(stream, GLOBALS, storage_of and persistent)


def _sizes(values):
  """The values, if they are integers that can be sizes."""
  if not all(type(v) is int and 0 <= v < 2**48 for v in values):
    raise ValueError('a size, stride or offset of a tensor is impossible')
  return values


def _tensor(storage, offset, shape, strides, *rest):
  """The view of a storage that torch.Tensor.as_strided describes."""
  if not isinstance(storage, np.ndarray) or storage.ndim != 1:
    raise ValueError('a tensor is without a storage')
  # rest: requires_grad, hooks, and marks of negated or conjugated numbers.
  if len(rest) > 2 and rest[2]:
    raise ValueError('a tensor is a negated or conjugated view')
  _sizes((offset, *shape, *strides))
  if len(shape) != len(strides) or len(shape) > 32:
    raise ValueError('a tensor has too many sizes or strides')
  if 0 in shape:
    return np.zeros(shape, storage.dtype)
  last = sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
  if offset + last >= storage.size:
    raise ValueError(
      f'a tensor of shape {shape} exceeds its storage of {storage.size}'
    )
  step = storage.itemsize
  if step * math.prod(shape) > max(step * storage.size, MAX_REPEATED):
    raise ValueError(f'a tensor of shape {shape} repeats too few elements')
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, [step * t for t in strides], writeable=False
  )


def _parameter(data, *_):
  return data


def _device(kind, *index):
  if not all(isinstance(x, str | int) for x in (kind, *index)):
    raise ValueError('a torch.device has no name')
  return ':'.join(map(str, (kind, *index)))


DTYPES = {
  'Double': '<f8', 'Float': '<f4', 'Half': '<f2',
  'BFloat16': ml_dtypes.bfloat16, 'Long': '<i8', 'Int': '<i4', 'Short': '<i2',
  'Char': 'i1', 'Byte': 'u1', 'Bool': '?',
}  # fmt: skip

GLOBALS = {
  ('collections', 'OrderedDict'): Global(plain_pickle.mapping),
  ('argparse', 'Namespace'): Global(lambda: Attributes()),
  ('torch', 'Size'): Global(tuple),
  ('torch', 'device'): Global(_device),
  ('torch._utils', '_rebuild_tensor'): Global(_tensor),
  ('torch._utils', '_rebuild_tensor_v2'): Global(_tensor),
  ('torch._utils', '_rebuild_parameter'): Global(_parameter),
  ('torch._utils', '_rebuild_parameter_with_state'): Global(_parameter),
  **{
    (module, f'{name}Storage'): Global(value=np.dtype(dtype))
    for module in ('torch', 'torch.cuda')
    for name, dtype in DTYPES.items()
  },
}
