"""Opens files of published weights, whatever their format, as a `Source`.

Nothing of a file is ever run, and neither PyTorch nor Python's unpickler is
used: see `jaxseg.nets.plain_pickle`.
"""

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg.errors import UserError
from jaxseg.nets import torch_files
from jaxseg.nets.plain_data import Unread
from jaxseg.published import array_files, nvidia
from jaxseg.published.source import Source, Tensor, WeightsError

# Dictionaries within dictionaries, and their entries: some may be shared, so
# that a small file could describe a huge or an endless tree.
MAX_DEPTH, MAX_ENTRIES, MAX_ITEMS, MAX_NAME = 16, 100_000, 1_000_000, 500
# So may numbers: all arrays together may have this many bytes, and the file's
# times this; .npz are packed.
MAX_SHARED, MAX_RATIO, MAX_PACKED_RATIO = 64 << 20, 4, 20
PLAIN = (
  str | bytes | bytearray | memoryview | int | float | complex | dict | list
  | tuple | set | frozenset | Unread | None
)  # fmt: skip

HOW_TO_MEND = (
  'expected tensors in plain containers, as files of torch.save, pickles of '
  "StyleGAN2-ADA's PyTorch version, safetensors, .npz and pickled NumPy arrays "
  'hold them: fetch the file again, or save the state dict alone with '
  'torch.save(model.state_dict(), FILE)'
)


def open_source(path: str) -> Source:
  """Opens a file, by its content and not by its name.

  Args:
    path: file of torch.save (zip or legacy), pickle of StyleGAN2-ADA (see
      `nvidia`) or of NumPy arrays, safetensors or .npz.

  Returns:
    the arrays, unread where the format allows; those of nested dictionaries
    have keys joined by '/'. What else the file holds is in `values`, under such
    keys: numbers, strings, None, lists and tuples as they are, and `Unread`
    instead of what is harmless but of no use. 'module.'
    (DataParallel) is left out where all keys of a dictionary begin with it.

  Raises:
    UserError: no such file.
    WeightsError: damaged, hostile, or of none of these formats.
  """
  try:
    is_file = Path(path).is_file()
  except OSError as error:
    raise UserError(
      f'the weights {path} cannot be looked for ({error.strerror}); choose a '
      'file that you may read'
    ) from error
  if not is_file:
    raise UserError(
      f'the weights {path} are not a file; give the path of the published file'
    )
  try:
    tensors, values = _open(path)
  except WeightsError:
    raise
  # Anything may go wrong in a damaged or a hostile file.
  except Exception as error:
    raise _damaged(path, error) from error
  guarded = {
    name: tensor._replace(read=_guarded(path, name, tensor.read))
    for name, tensor in tensors.items()
  }
  return Source(path, guarded, values)


def _open(path):
  """(tensors, values) of a file."""
  with open(path, 'rb') as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  if data[:4] == b'PK\x03\x04' and not torch_files.is_zip(data):
    return _checked(array_files.npz(path), len(data), MAX_PACKED_RATIO), {}
  tensors, values = _unpacked(path, data)
  return _checked(tensors, len(data), MAX_RATIO), values


def _unpacked(path, data):
  """The same of a file whose arrays are in it as they are."""
  if _is_safe(data):
    tensors, metadata = array_files.safe(path, memoryview(data))
    return tensors, {f'__metadata__/{k}': v for k, v in metadata.items()}
  if data[:2] == b'\x1f\x8b':
    raise ValueError('it is compressed; unpack it with gunzip')
  if data[:4] == b'PK\x03\x04' or torch_files.is_legacy(data):
    return flatten(torch_files.parse(data))
  return flatten(nvidia.plain(torch_files.parse_pickle(data, nvidia.NAMES)))


def _is_safe(data):
  """Whether a JSON object follows a length; pickles begin with 0x80."""
  size = int.from_bytes(data[:8], 'little')
  return data[8:9] == b'{' and (data[:1] != b'\x80' or size <= len(data))


def flatten(tree: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
  """Joins the keys of nested dictionaries.

  Args:
    tree: a dictionary, of dictionaries, arrays and plain data; a list that has
      an array as an item counts as a dictionary of its indices.

  Returns:
    (arrays, all else), by joined key.

  Raises:
    ValueError: it is no dictionary, one key occurs twice, or it is endless.
  """
  if not isinstance(tree, dict):
    raise ValueError(f'the file holds a {type(tree).__name__}')
  flat = _Flat()
  flat.add('', tree, 0)
  return flat.tensors, flat.values


class _Flat:
  """Fills `tensors` and `values`."""

  def __init__(self):
    self.tensors, self.values, self.items = {}, {}, 0

  def add(self, prefix, tree, depth):
    """Adds a dictionary; the prefix ends in '/'."""
    items = [(str(key), value) for key, value in tree.items()]
    if items and all(key.startswith('module.') for key, _ in items):
      items = [(key.removeprefix('module.'), value) for key, value in items]
    for key, value in items:
      name = prefix + key
      self.check(name, depth)
      if isinstance(value, list | tuple):
        self.items += len(value)
        if any(isinstance(item, np.ndarray) for item in value):
          value = dict(enumerate(value))
      if isinstance(value, dict) and value:
        self.items += len(value)
        self.add(f'{name}/', value, depth + 1)
      elif isinstance(value, np.ndarray):
        read = lambda value=value: value
        self.tensors[name] = Tensor(value.shape, value.dtype, read)
      elif isinstance(value, PLAIN):  # no class by itself
        self.values[name] = value

  def check(self, name, depth):
    """Raises if the name is taken, or the tree is too large."""
    if name in self.tensors or name in self.values:
      raise ValueError(f'two of its entries are {name}')
    count = len(self.tensors) + len(self.values)
    if (
      count >= MAX_ENTRIES
      or self.items > MAX_ITEMS
      or depth > MAX_DEPTH
      or len(name) > MAX_NAME
    ):
      raise ValueError(
        'its dictionaries are too deep, or have too many entries'
      )


def _check(name, tensor):
  """Raises if no array in memory has this shape, or no user can read it."""
  if not name.isprintable():
    raise ValueError(f'an array has the name {ascii(name)}')
  sizes = [max(1, size) for size in tensor.shape]
  too_big = math.prod(sizes) * max(1, tensor.dtype.itemsize) >= 2**47
  if len(sizes) > 32 or too_big or min(tensor.shape, default=0) < 0:
    raise ValueError(f'{name} has the shape {tensor.shape}')


def _checked(tensors, size, ratio):
  """Raises if a file of that many bytes would fill memory or a disk."""
  for name, tensor in tensors.items():
    _check(name, tensor)
  total = sum(
    math.prod(tensor.shape) * tensor.dtype.itemsize
    for tensor in tensors.values()
  )
  if total > MAX_SHARED + ratio * size:
    raise ValueError(
      f'its arrays repeat their numbers: {total:,} bytes of a file of {size:,}'
    )
  return tensors


def _guarded(path, name, read):
  """Reads an array, whose damage in an .npz shows only then."""

  def guarded():
    try:
      return read()
    except Exception as error:
      raise _damaged(path, error, f', {name} is damaged') from error

  return guarded


def _damaged(path, error, where=''):
  kind = '' if type(error) is ValueError else f'{type(error).__name__}: '
  reason = ' '.join(f'{kind}{error}'.split())[:300]
  reason = ''.join(c if c.isprintable() else '?' for c in reason)
  return WeightsError(
    f'the weights {path} cannot be read{where} ({reason}); {HOW_TO_MEND}'
  )
