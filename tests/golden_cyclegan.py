"""Recordings of the published CycleGAN as parameters of our networks.

The published generators are named by their input, `Gsi` from the image to the
segmentation. A recorded training step (`init/`, `grad/`, `final/`) names them
as the paper does: `Gis` makes labels of images (its first kernel has C inputs,
its last K outputs), `Gsi` images of labels; `Di`, `Ds` judge images and labels.

`arrays` maps the names of the PyTorch modules to arrays; `prefix` ends in '/'.
PyTorch stores kernels as [O, I, kh, kw], transposed ones as [I, O, kh, kw].
"""

import re
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / 'goldens'


def load(name: str) -> dict[str, np.ndarray]:
  """One of the recordings that lie beside the tests."""
  return dict(np.load(FOLDER / f'cyclegan_{name}.npz'))


def nhwc(x: np.ndarray) -> np.ndarray:
  """Images or maps [N, C, H, W] with the channels last."""
  return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def generator(arrays, prefix: str) -> dict:
  """'params' of a `ResnetGenerator` with instance norm.

  Gradients and moments of its parameters convert in the same way.
  """
  name = lambda index: f'{prefix}res_model.{index}'
  pattern = re.compile(re.escape(prefix) + r'res_model\.(\d+)\.res_block\.3\.w')
  blocks = sum(bool(pattern.match(key)) for key in arrays)
  encoder = {'stem': {'conv': _conv(arrays, f'{name(1)}.0')}}
  for i in range(2):
    encoder[f'down{i}'] = {'conv': _conv(arrays, f'{name(2 + i)}.0')}
  for i in range(blocks):
    encoder[f'block{i}'] = {
      'first': {'conv': _conv(arrays, f'{name(4 + i)}.res_block.1.0')},
      'second': {'conv': _conv(arrays, f'{name(4 + i)}.res_block.3')},
    }
  end = 4 + blocks
  decoder = {
    f'up{i}': {'conv': _conv(arrays, f'{name(end + i)}.0', transposed=True)}
    for i in range(2)
  }
  decoder['out'] = _conv(arrays, name(end + 3))
  return {'encoder': encoder, 'decoder': decoder}


def pixel(arrays, prefix: str) -> dict:
  """'params' of a `PixelDiscriminator`."""
  params = {
    f'conv{i}': _conv(arrays, f'{prefix}dis_model.{index}')
    for i, index in enumerate((0, 2, 5))
  }
  norm = f'{prefix}dis_model.3'
  if f'{norm}.weight' in arrays:
    scale, bias = arrays[f'{norm}.weight'], arrays[f'{norm}.bias']
    params['norm1'] = {'scale': scale, 'bias': bias}
  return params


def patch(arrays, prefix: str) -> dict:
  """'params' of a `PatchGAN` with three layers and instance norm."""
  names = ('0', '2.0', '3.0', '4.0', '5')
  return {
    f'conv{i}': _conv(arrays, f'{prefix}dis_model.{name}')
    for i, name in enumerate(names)
  }


def without_idle(params: dict) -> dict:
  """Leaves out the biases that instance norm takes away again.

  Their gradients are rounding errors, which Adam scales up to whole steps: they
  agree in no two programs, and change nothing.
  """
  if 'encoder' in params:
    return {
      'encoder': _idle(params['encoder']),
      'decoder': {
        name: layer if name == 'out' else _idle(layer)
        for name, layer in params['decoder'].items()
      },
    }
  last = max(name for name in params if name.startswith('conv'))
  return {
    name: layer if name in ('conv0', last) else _idle(layer)
    for name, layer in params.items()
  }


def _idle(tree):
  return {
    name: _idle(value) if isinstance(value, dict) else value
    for name, value in tree.items()
    if name != 'bias'
  }


def _conv(arrays, name, transposed=False):
  axes = (2, 3, 0, 1) if transposed else (2, 3, 1, 0)
  params = {'kernel': arrays[f'{name}.weight'].transpose(axes)}
  if f'{name}.bias' in arrays:
    params['bias'] = arrays[f'{name}.bias']
  return params
