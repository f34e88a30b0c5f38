"""Pickles of StyleGAN2-ADA's PyTorch version and its successors, as data.

Such a file is one pickle of a dictionary of networks. Each module in it is a
call with a dictionary: its class, the source code of that class, its state. The
source code is never looked at; of the state, the settings are kept, and under
the names that PyTorch's state dict would give them, parameters and buffers.

Source: the published description of the pickles (README of StyleGAN2-ADA for
PyTorch) and what such files hold.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxseg.nets import plain_data
from jaxseg.nets.plain_data import Global

# Parts may be shared, so that a small file could describe a huge network.
MAX_DEPTH, MAX_ITEMS, MAX_NAME = 32, 100_000, 500


@dataclass(frozen=True)
class Module:
  """A module as it is stored: the name of its class, data by attribute."""

  class_name: Any
  state: dict


def _module(meta):
  if not isinstance(meta, dict) or meta.get('type') != 'class':
    raise ValueError('a network in it is not stored as a class')
  state = meta.get('state')
  if not isinstance(state, dict):
    raise ValueError('a network in it is without its state')
  return Module(meta.get('class_name'), state)


def _tensorflow(*_):
  raise ValueError(
    'it is of the TensorFlow version of StyleGAN; convert it first with '
    'legacy.py of StyleGAN2-ADA for PyTorch'
  )


SETTINGS = ('_init_args', '_init_kwargs')

NAMES = {
  ('torch_utils.persistence', '_reconstruct_persistent_obj'): Global(_module),
  ('dnnlib.util', 'EasyDict'): Global(plain_data.mapping),
  ('dnnlib', 'EasyDict'): Global(plain_data.mapping),
  ('dnnlib.tflib.network', 'Network'): Global(_tensorflow),
}


def plain(tree: Any) -> Any:
  """Makes dictionaries of the networks of a file.

  Args:
    tree: what `torch_files.parse_pickle` found with NAMES.

  Returns:
    it; a network {'synthesis.b4.const': array, .., 'synthesis.w_dim': plain
    data, .., '_class_name': .., '_init_args': .., '_init_kwargs': ..}.

  Raises:
    ValueError: a network holds itself, or too much.
  """
  if not isinstance(tree, dict):
    return tree
  found = {}
  for name, value in tree.items():
    if isinstance(value, Module):
      network = _Network()
      network.add('', value, 0)
      found[name] = network.found
    else:
      found[name] = value
  return found


class _Network:
  """Fills `found`."""

  def __init__(self):
    self.found, self.items = {}, 0

  def add(self, prefix, module, depth):
    """Adds a module and those within; the prefix is '' or ends in '.'."""
    state = module.state
    self.found[f'{prefix}_class_name'] = module.class_name
    parts = [state.get(n) or {} for n in ('_parameters', '_buffers')]
    modules = state.get('_modules') or {}
    self.items += 1 + sum(map(len, (state, modules, *parts)))
    if self.items > MAX_ITEMS or depth > MAX_DEPTH or len(prefix) > MAX_NAME:
      raise ValueError('a network in it has too many modules within modules')
    for name, value in state.items():
      if name in SETTINGS or not str(name).startswith('_'):
        self.found[f'{prefix}{name}'] = value
    for part in parts:
      for name, array in part.items():
        if isinstance(array, np.ndarray):
          self.found[f'{prefix}{name}'] = array
    for name, inner in modules.items():
      if isinstance(inner, Module):
        self.add(f'{prefix}{name}.', inner, depth + 1)
