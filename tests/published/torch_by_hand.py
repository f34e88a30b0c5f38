"""Files of torch.save made without PyTorch, in both formats.

A tree is of dictionaries, arrays, plain data and `Namespace`.
"""

import argparse
import struct

import numpy as np
from hostile_files import legacy, zipped

Namespace = argparse.Namespace
STORAGES = {
  'float32': 'Float', 'float64': 'Double', 'float16': 'Half',
  'bfloat16': 'BFloat16', 'int64': 'Long',
}  # fmt: skip


def zip_file(tree):
  """The format since PyTorch 1.6."""
  arrays = []
  data = b'\x80\x02' + _pickled(tree, arrays, b'')
  entries = {f'x/data/{i}': x.tobytes() for i, x in enumerate(arrays)}
  return zipped(data + b'.', entries | {'x/version': b'3\n'})


def legacy_file(tree):
  """The format before."""
  arrays = []
  data = b'\x80\x02' + _pickled(tree, arrays, b'N')
  content = [struct.pack('<q', x.size) + x.tobytes() for x in arrays]
  keys = [str(i) for i in range(len(arrays))]
  return legacy(data + b'.', keys, b''.join(content))


def _pickled(value, arrays, view):
  """The pickle of a value; arrays are put into a list."""
  again = lambda x: _pickled(x, arrays, view)
  if isinstance(value, Namespace):
    return b'cargparse\nNamespace\n)\x81' + again(vars(value)) + b'b'
  if isinstance(value, dict):
    items = b''.join(again(k) + again(x) for k, x in value.items())
    return b'}(' + items + b'u'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(again, value)) + b't'
  if isinstance(value, str):
    return b'X' + struct.pack('<i', len(value.encode())) + value.encode()
  if isinstance(value, bool):
    return b'\x88' if value else b'\x89'
  if value is None:
    return b'N'
  if isinstance(value, int):
    return b'I%d\n' % value
  if isinstance(value, float):
    return b'G' + struct.pack('>d', value)
  arrays.append(np.ascontiguousarray(value))
  storage = f'ctorch\n{STORAGES[value.dtype.name]}Storage\n'.encode()
  strides = tuple(s // value.itemsize for s in arrays[-1].strides)
  return b''.join((
    b'ctorch._utils\n_rebuild_tensor_v2\n((', again('storage'), storage,
    again(str(len(arrays) - 1)), again('cpu'), again(value.size), view, b'tQ',
    again(0), again(value.shape), again(strides), b'\x89}tR',
  ))  # fmt: skip
