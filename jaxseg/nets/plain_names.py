"""What pickles of plain data ask for: containers, paths, NumPy's arrays.

Each is rebuilt here from what the pickle says of it; nothing of these modules
is called but NumPy's functions that give bytes a dtype and a shape.

Source: pickles of Python 3.7 to 3.13 and of NumPy 1 and 2, protocols 2 to 5.
"""

import math
import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from jaxseg.nets import plain_data
from jaxseg.nets.plain_data import Attributes, Global, Unfilled, unread

# Of booleans, numbers and strings; the number is that of bytes or characters.
DTYPE = re.compile('[biufcSU][1-9][0-9]{0,3}')


def sizes(values: Sequence[Any]) -> Sequence[int]:
  """Returns the values.

  Raises:
    ValueError: one of them is no integer, or can be no size.
  """
  if not all(type(v) is int and 0 <= v < 2**48 for v in values):
    raise ValueError('a size, stride or offset of a tensor is impossible')
  return values


def _default_dict(factory=None, *_):
  return plain_data.mapping()


def _set(items=()):
  if not isinstance(items, list | tuple):
    raise ValueError('a set is made of something else than a list')
  return plain_data.members(items)


def _counter(counts=()):
  is_filled = isinstance(counts, dict)
  return plain_data.mapping(counts.items() if is_filled else ())


def _no_bytes():
  return b''


def _encode(text, codec):
  """Bytes, as protocol 2 has them."""
  if not isinstance(text, str) or codec not in ('latin1', 'latin-1'):
    raise ValueError('its pickle encodes something that is not bytes')
  return text.encode('latin1')


def _path(*parts):
  if not all(isinstance(part, str) for part in parts):
    raise ValueError('a path has parts that are no strings')
  return str(PurePosixPath(*parts))


def _dtype(kind, *_):
  """A dtype, which gets its byte order later."""
  if isinstance(kind, Global) and isinstance(kind.value, np.dtype):
    dtype = kind.value
  elif isinstance(kind, str) and DTYPE.fullmatch(kind):
    dtype = np.dtype(kind)
  else:
    kind = f' of kind {kind:.20}' if isinstance(kind, str) else ''
    raise ValueError(f'an array is not of numbers or strings{kind}')

  def fill(state):
    _, order, *fields = state[:5]
    if order not in ('<', '>', '|', '=') or any(x is not None for x in fields):
      raise ValueError('an array is of records or has no byte order')
    return dtype if order in '|=' else dtype.newbyteorder(order)

  return Unfilled(fill)


def _reconstruct(kind, *_):
  """An array, which gets its shape and numbers later."""
  if not isinstance(kind, Global) or kind.value is not np.ndarray:
    raise ValueError('an array is of an unknown class')
  return Unfilled(lambda state: _filled(*state[-4:]))


def _filled(shape, dtype, is_fortran, content):
  return _from_buffer(content, dtype, shape, 'F' if is_fortran else 'C')


def _from_buffer(content, dtype, shape, order='C'):
  """Views bytes as an array, read-only."""
  if not isinstance(content, bytes | bytearray | memoryview):
    raise ValueError('an array holds something else than bytes')
  if not isinstance(dtype, np.dtype) or order not in ('C', 'F'):
    raise ValueError('an array has no dtype or order')
  if not isinstance(shape, tuple) or len(shape) > 32:
    raise ValueError('an array has no shape or too many axes')
  if math.prod(sizes(shape)) * dtype.itemsize != len(content):
    raise ValueError(
      f'an array of shape {shape} and {dtype} has {len(content)} bytes'
    )
  array = np.ndarray(shape, dtype, content, order=order)
  array.flags.writeable = False
  return array


def _scalar(dtype, content):
  return _from_buffer(content, dtype, ()).item()


# What training scripts leave in their checkpoints, and no network needs.
UNREAD = unread(
  'collections deque', 'datetime date', 'datetime datetime', 'datetime time',
  'datetime timedelta', 'datetime timezone', 'decimal Decimal',
  'fractions Fraction', 'random Random', 'uuid UUID',
  'numpy.random._mt19937 MT19937', 'numpy.random._pcg64 PCG64',
  'numpy.random._pickle __bit_generator_ctor',
  'numpy.random._pickle __generator_ctor',
  'numpy.random._pickle __randomstate_ctor',
  'numpy.random.bit_generator SeedSequence',
  'numpy.random.bit_generator __pyx_unpickle_SeedSequence',
  *(f'{module} {name}' for module in ('builtins', '__builtin__')
    for name in ('complex', 'range', 'slice', 'xrange')),
)  # fmt: skip

PYTHON = {
  **UNREAD,
  ('collections', 'OrderedDict'): Global(plain_data.mapping),
  ('collections', 'Counter'): Global(_counter),
  ('collections', 'defaultdict'): Global(_default_dict),
  ('argparse', 'Namespace'): Global(lambda: Attributes()),
  ('types', 'SimpleNamespace'): Global(lambda: Attributes()),
  ('_codecs', 'encode'): Global(_encode),
  **{
    (module, name): what
    for module in ('builtins', '__builtin__')
    for name, what in {
      'set': Global(_set),
      'frozenset': Global(lambda items=(): frozenset(_set(items))),
      'bytes': Global(_no_bytes),
      # What a defaultdict holds; they are not called.
      **dict.fromkeys(('dict', 'list', 'int', 'float'), Global()),
    }.items()
  },
  **{
    (module, name): Global(_path)
    for module in ('pathlib', 'pathlib._local')
    for name in (
      'PosixPath', 'PurePosixPath', 'WindowsPath', 'PureWindowsPath', 'Path'
    )
  },
}  # fmt: skip

NUMPY = {
  ('numpy', 'dtype'): Global(_dtype),
  ('numpy', 'ndarray'): Global(value=np.ndarray),
  ('ml_dtypes', 'bfloat16'): Global(value=np.dtype(ml_dtypes.bfloat16)),
  **{
    (f'numpy.{core}.{module}', name): Global(build)
    for core in ('core', '_core')
    for module, name, build in (
      ('multiarray', '_reconstruct', _reconstruct),
      ('multiarray', 'scalar', _scalar),
      ('numeric', '_frombuffer', _from_buffer),
    )
  },
  # Classes as settings.
  **{
    ('numpy', name): f'numpy.{name}'
    for name in (
      'float16', 'float32', 'float64', 'int8', 'int16', 'int32', 'int64',
      'uint8', 'uint16', 'bool', 'bool_',
    )
  },
}  # fmt: skip
