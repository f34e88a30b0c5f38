"""Reads what torch.save wrote, without PyTorch and without running anything.

Nothing but NumPy arrays and plain containers is built. Both forms of torch.save
are read: the zip of PyTorch 1.6 and later, and the row of pickles of before.

Source: the formats, as PyTorch's note "Serialization semantics" describes them
and as its files show them.
"""

import functools
import mmap
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxseg.nets import plain_data, plain_pickle
from jaxseg.nets.plain_data import Global
from jaxseg.nets.plain_names import sizes
from jaxseg.nets.plain_pickle import View
from jaxseg.nets.torch_names import GLOBALS, tensor

LOAD = ('torch.storage', '_load_from_bytes')
# Storages within pickles, see `_run`.
MAX_NESTED = 2

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001


def parse(data: mmap.mmap) -> Any:
  """Reads a file of torch.save.

  Args:
    data: the mapped file, in the zip or in the legacy format, little-endian.

  Returns:
    what was saved, of dict (also for OrderedDict), list, tuple, set, str,
    bytes, int, float, bool, None, read-only NumPy arrays and `Unread`; a
    torch.Size is a tuple, a torch.device, a torch.dtype and a path are str, an
    argparse.Namespace is a dict, a NumPy scalar a number. The arrays are views
    of the mapped file, so that they take no memory of their own: copy what is
    to be kept. Arrays of bfloat16 and of 8 bits have dtypes of `ml_dtypes`.

  Raises:
    Exception: damaged, or not of these types alone.
  """
  if data[:4] == b'PK\x03\x04':
    return _read_zip(data)
  return _read_legacy(View(data))


def parse_pickle(data: mmap.mmap, more: Mapping[tuple[str, str], Any]) -> Any:
  """The same of one pickle that was not made by torch.save.

  Args:
    data: the mapped file.
    more: see `plain_pickle.run`.
  """
  stream = View(data)
  value = _run(stream, None, more=more)
  if stream.tell() != len(data):
    raise ValueError('something follows its pickle')
  return value


def is_legacy(data: mmap.mmap) -> bool:
  """Whether torch.save wrote it, before PyTorch 1.6 or asked to do as then."""
  head = data[:64]
  return (
    LEGACY_MAGIC.to_bytes(10, 'little') in head
    or str(LEGACY_MAGIC).encode() in head
  )


def is_zip(data: mmap.mmap) -> bool:
  """Whether a zip archive is one of torch.save; damaged ones may raise."""
  names = zipfile.ZipFile(data).namelist()
  return any(name.split('/')[1:] == ['data.pkl'] for name in names)


def _read_zip(data):
  """FOLDER/data.pkl is the pickle, FOLDER/data/KEY are the storages."""
  infos = zipfile.ZipFile(data).infolist()
  entries = {info.filename: info for info in infos}
  if len(entries) < len(infos):
    raise ValueError('two entries of the archive have one name')
  if sum(info.compress_size for info in infos) > len(data):
    raise ValueError('the archive promises more than it holds')
  for name in entries:
    if name.startswith('/') or '..' in name.split('/'):
      raise ValueError(f'{name!r:.50} is outside the archive')
  pickles = [name for name in entries if name.split('/')[1:] == ['data.pkl']]
  if len(pickles) != 1:
    raise ValueError('the zip archive is not one of torch.save')
  folder = pickles[0].removesuffix('data.pkl')
  if f'{folder}constants.pkl' in entries:
    raise ValueError(
      'it is a program of TorchScript, not weights alone; of the Inception of '
      "FID, take pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
    )

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
  return _run(View(memoryview(data)[start:stop]), storage_of)


def _stored(data, info):
  """(start, stop) of an entry's bytes, which torch.save never compresses."""
  start = info.header_offset
  if info.compress_type != zipfile.ZIP_STORED:
    raise ValueError(f'{info.filename} is compressed')
  if info.file_size != info.compress_size:
    raise ValueError(f'{info.filename} has two sizes')
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


def _read_legacy(stream, run=None):
  """Pickles of magic, protocol, machine, object and keys; then the storages.

  Args:
    stream: View.
    run: replaces `_run`, within another pickle.
  """
  run = run or _run
  try:
    magic = run(stream)
  except Exception:
    magic = None
  if magic != LEGACY_MAGIC:
    raise ValueError('it does not begin as a file of torch.save does')
  protocol, machine = run(stream), run(stream)
  if protocol != LEGACY_PROTOCOL or machine.get('little_endian') is not True:
    raise ValueError('its protocol is unknown or its numbers are big-endian')
  begin, wanted = stream.at, {}

  def announced(key, dtype, size):
    if wanted.setdefault(key, (dtype, size)) != (dtype, size):
      raise ValueError(f'storage {key} has two types or sizes')
    return np.broadcast_to(np.zeros((), dtype), (size,))

  # The place of a storage depends on the sizes of those before it, so that the
  # object is built twice, first without its numbers.
  run(stream, announced)
  keys = plain_data.mapping((key, None) for key in run(stream))
  data, start, storages = stream.data, stream.at, {}
  for key in keys:
    dtype, size = wanted[key]
    (stored,) = struct.unpack('<q', data[start : start + 8])
    if stored != size:
      raise ValueError(f'storage {key} has {stored} elements, not {size}')
    start += 8
    storages[key] = _elements(data, key, dtype, size, start, len(data))
    start += storages[key].nbytes
  stream.at = begin
  return run(stream, lambda key, dtype, size: storages[key])


def _elements(data, key, dtype, size, start, stop):
  if start + size * dtype.itemsize > stop:
    raise ValueError(f'storage {key} is cut off, {size} {dtype} are expected')
  return np.frombuffer(data, dtype, size, start)


def _run(stream, storage_of=None, budget=None, depth=0, more=None):
  """Runs one pickle.

  Args:
    stream: View.
    storage_of: key, dtype, size -> [size].
    budget: of the pickle that this one lies in.
    depth: how many that are.
    more: see `plain_pickle.run`.
  """
  budget = budget or plain_pickle.Budget()

  def persistent(identity):
    if not isinstance(identity, tuple):
      raise ValueError('its pickle asks for an object without a name')
    tag, kind, key, _, size, *rest = identity
    is_kind = isinstance(kind, Global) and isinstance(kind.value, np.dtype)
    if tag != 'storage' or not is_kind or not isinstance(key, str):
      raise ValueError('its pickle asks for something else than a storage')
    storage = storage_of(key, kind.value, sizes([size])[0])
    if rest and rest[0] is not None:  # legacy: a part of another one
      _, start, count = rest[0]
      storage = tensor(storage, start, (count,), (1,))
    return storage

  def load(content):
    """A storage outside torch.save, which is a legacy file by itself."""
    if depth >= MAX_NESTED or not isinstance(content, bytes | memoryview):
      raise ValueError(
        f'files within files lie deeper in it than {MAX_NESTED}, or are none'
      )
    run = functools.partial(_run, budget=budget, depth=depth + 1)
    return _read_legacy(View(content), run)

  names = {**GLOBALS, **(more or {}), LOAD: Global(load)}
  return plain_pickle.run(stream, names, storage_of and persistent, budget)
