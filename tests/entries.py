"""Opened files made of arrays at hand, and the arrays of converted networks."""

import jax
import numpy as np

from jaxseg.published.source import Entry, Source, Tensor


def source_of(arrays, path='weights.pt', values=None):
  """A file that holds these arrays."""
  tensor = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  return Source(path, {key: tensor(x) for key, x in arrays.items()}, values)


def arrays_of(tree):
  """Every entry, read."""
  return jax.tree.map(lambda entry: entry.read(), tree, is_leaf=_is_entry)


def shapes_of(tree):
  """Shapes of entries, or of what `jax.eval_shape` gives."""
  shape = lambda leaf: tuple(leaf.shape)
  return jax.tree.map(shape, tree, is_leaf=_is_entry)


def zeros_of(shapes):
  """Arrays of these shapes that take no memory."""
  return {k: np.broadcast_to(np.float32(0), s) for k, s in shapes.items()}


def _is_entry(x):
  return isinstance(x, Entry)
