"""Files of weights as PyTorch writes them, made without PyTorch.

Arrays are drawn and written one after the other, so that files of any size can
be made in little memory.
"""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks import weight_layouts
from benchmarks.weight_layouts import Layout, draw

# Of a file of torch.save before PyTorch 1.6.
_LEGACY_HEAD = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
_EMPTY = b'ccollections\nOrderedDict\n)R'


def write_psp(path: Path, size: int, widest: int = 512, seed: int = 0) -> None:
  """Writes a checkpoint of pSp: {'state_dict', 'opts', 'latent_avg'}.

  Args:
    path: the file.
    size: side of the images.
    widest: see `weight_layouts.psp`.
    seed: of the random weights.
  """
  layout = weight_layouts.psp(size, widest)
  average = {'latent_avg': (2 * (size.bit_length() - 2), widest)}
  keys = {name: str(i) for i, name in enumerate(layout | average)}
  states = b''.join(
    _text(name) + _tensor(keys[name], shape) for name, shape in layout.items()
  )
  shape = average['latent_avg']
  content = [
    b'\x80\x02}(', _text('state_dict'), b'}(', states, b'u',
    _text('opts'), b'}', _text('latent_avg'),
    _tensor(keys['latent_avg'], shape), b'u.',
  ]  # fmt: skip
  rng = np.random.default_rng(seed)
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.pkl', b''.join(content))
    for name, shape in (layout | average).items():
      array = draw(rng, name, shape)
      archive.writestr(f'archive/data/{keys[name]}', array.tobytes())
    archive.writestr('archive/version', b'3\n')


def write_ada(path: Path, size: int, widest: int = 512, seed: int = 0) -> None:
  """Writes a pickle of StyleGAN2-ADA: {'G', 'D', 'G_ema'}; see `write_psp`."""
  rng = np.random.default_rng(seed)
  generator = weight_layouts.ada_generator(size, widest)
  discriminator = weight_layouts.ada_discriminator(size, widest)
  with path.open('wb') as file:
    file.write(b'\x80\x03}(')
    for name, layout in (
      ('G', generator), ('D', discriminator), ('G_ema', generator),
    ):  # fmt: skip
      file.write(_text(name))
      _write_module(file, rng, '', layout)
    file.write(b'u.')


def _write_module(
  file: BinaryIO, rng: np.random.Generator, path: str, layout: Layout
) -> None:
  """A module is a call with its state; those within it are in the state."""
  own = {name: s for name, s in layout.items() if '.' not in name}
  inner = {}
  for name, shape in layout.items():
    if '.' in name:
      first, rest = name.split('.', 1)
      inner.setdefault(first, {})[rest] = shape
  file.write(b'ctorch_utils.persistence\n_reconstruct_persistent_obj\n(}(')
  for key, value in (
    ('type', 'class'), ('module_src', ''), ('class_name', 'Module'),
  ):  # fmt: skip
    file.write(_text(key) + _text(value))
  file.write(_text('state') + b'}(' + _text('_parameters') + b'}(')
  for name, shape in own.items():
    array = draw(rng, f'{path}{name}', shape)
    file.write(_text(name) + _tensor_of(array))
  file.write(b'u' + _text('_buffers') + b'}' + _text('_modules') + b'}(')
  for name, part in inner.items():
    file.write(_text(name))
    _write_module(file, rng, f'{path}{name}.', part)
  file.write(b'uuutR')


def _tensor_of(array):
  """A tensor whose storage is a file of torch.save within the pickle."""
  saved = [pickle.dumps(part, 2) for part in _LEGACY_HEAD]
  saved += [b'\x80\x02', _storage('0', array.size), b'.']
  saved += [pickle.dumps(['0'], 2), struct.pack('<q', array.size)]
  data = b''.join([*saved, array.tobytes()])
  storage = b'ctorch.storage\n_load_from_bytes\n(B' + struct.pack(
    '<I', len(data)
  )
  return _rebuilt(storage + data + b'tR', array.shape)


def _tensor(key: str, shape: tuple[int, ...]) -> bytes:
  return _rebuilt(_storage(key, int(np.prod(shape))), shape)


def _rebuilt(storage, shape):
  strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
  return b''.join([
    b'ctorch._utils\n_rebuild_tensor_v2\n(', storage, _number(0),
    _numbers(shape), _numbers(strides), b'\x89', _EMPTY, b'tR',
  ])  # fmt: skip


def _storage(key, size):
  return b''.join([
    b'(', _text('storage'), b'ctorch\nFloatStorage\n', _text(key), _text('cpu'),
    _number(size), b'tQ',
  ])  # fmt: skip


def _text(text):
  data = text.encode()
  return b'X' + struct.pack('<I', len(data)) + data


def _number(value):
  return b'J' + struct.pack('<i', value)


def _numbers(values):
  return b'(' + b''.join(map(_number, values)) + b't'


WRITERS: Mapping = {'psp': write_psp, 'stylegan2-ada': write_ada}
