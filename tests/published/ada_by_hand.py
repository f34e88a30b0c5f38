"""Pickles of StyleGAN2-ADA's PyTorch version, made without PyTorch."""

import struct

from hostile_files import legacy
from torch_by_hand import STORAGES

BUFFERS = ('resample_filter', 'noise_const', 'w_avg')


def pickle_file(networks):
  """Of {name: (arrays by key, arguments of the network, attributes by key)}."""
  modules = [_text(k) + _network(*v) for k, v in networks.items()]
  rest = _text('augment_pipe') + b'N'
  return b'\x80\x03}(' + b''.join(modules) + rest + b'u.'


def _network(arrays, arguments, attributes):
  tree = {'_init_kwargs': _plain(arguments)}
  for key, value in (arrays | attributes).items():
    *path, last = key.split('.')
    node = tree
    for part in path:
      node = node.setdefault('_modules', {}).setdefault(part, {})
    if key in attributes:
      node[last] = _plain(value)
    else:
      kind = '_buffers' if last in BUFFERS else '_parameters'
      node.setdefault(kind, {})[last] = _tensor(value, kind == '_parameters')
  return _module(tree)


def _module(tree):
  inner = {k: _module(v) for k, v in tree.pop('_modules', {}).items()}
  state = {k: _dict(v) if isinstance(v, dict) else v for k, v in tree.items()}
  state['_modules'] = _dict(inner)
  meta = {
    'type': _text('class'), 'class_name': _text('X'), 'state': _dict(state),
    'module_src': _text('raise SystemExit'),
  }  # fmt: skip
  return _call(
    'torch_utils.persistence', '_reconstruct_persistent_obj', _dict(meta)
  )


def _tensor(array, is_parameter):
  name = STORAGES[array.dtype.name]
  storage = b''.join((
    b'\x80\x02(', _text('storage'), f'ctorch\n{name}Storage\n'.encode(),
    _text('0'), _text('cpu'), b'I%d\nNtQ.' % array.size,
  ))  # fmt: skip
  content = struct.pack('<q', array.size) + array.tobytes()
  file = legacy(storage, ['0'], content)
  data = b'B' + struct.pack('<I', len(file)) + file
  strides = [s // array.itemsize for s in array.strides]
  parts = _call('torch.storage', '_load_from_bytes', data), _plain(0)
  parts += _plain(array.shape), _plain(tuple(strides)), b'\x89', b'}'
  tensor = _call('torch._utils', '_rebuild_tensor_v2', *parts)
  if not is_parameter:
    return tensor
  return _call('torch._utils', '_rebuild_parameter', tensor, b'\x88', b'}')


def _call(module, name, *arguments):
  target = f'c{module}\n{name}\n'.encode()
  return target + b'(' + b''.join(arguments) + b'tR'


def _dict(items):
  return b'}(' + b''.join(_text(k) + v for k, v in items.items()) + b'u'


def _text(text):
  return b'X' + struct.pack('<i', len(text.encode())) + text.encode()


def _plain(value):
  if isinstance(value, dict):
    easy = b'cdnnlib.util\nEasyDict\n)\x81('
    items = (_text(k) + _plain(v) for k, v in value.items())
    return easy + b''.join(items) + b'u'
  if isinstance(value, tuple):
    return b'(' + b''.join(map(_plain, value)) + b't'
  if isinstance(value, float):
    return b'G' + struct.pack('>d', value)
  return _text(value) if isinstance(value, str) else b'I%d\n' % value
