"""Networks computed a second time: Flax's parameters, PyTorch's functions."""

import jax
import numpy as np
import pytest

try:
  import torch
except ImportError:
  torch = None

F = torch and torch.nn.functional
needed = pytest.mark.skipif(torch is None, reason='PyTorch is not installed')


def to_torch(x):
  """[N, H, W, C] -> [N, C, H, W]."""
  return torch.from_numpy(np.array(x, np.float32)).permute(0, 3, 1, 2)


def from_torch(x):
  """[N, C, H, W] -> [N, H, W, C]."""
  return x.detach().permute(0, 2, 3, 1).numpy()


def tensor(x):
  """Copy of an array; a tensor stays, so that it may have a gradient."""
  if isinstance(x, torch.Tensor):
    return x
  return torch.from_numpy(np.array(x, np.float32))


def conv(params, x, padding=0):
  weight = tensor(params['kernel']).permute(3, 2, 0, 1)
  bias = tensor(params['bias']) if 'bias' in params else None
  return F.conv2d(x, weight, bias, padding=padding)


def conv_transpose(params, x, stride, padding=0):
  weight = tensor(params['kernel']).permute(2, 3, 0, 1)
  bias = tensor(params['bias']) if 'bias' in params else None
  return F.conv_transpose2d(x, weight, bias, stride, padding)


def batch_norm(params, stats, x, train=False):
  mean, var = (tensor(stats[name]) for name in ('mean', 'var'))
  scale, bias = (tensor(params[name]) for name in ('scale', 'bias'))
  return F.batch_norm(x, mean, var, scale, bias, training=train)


def random_variables(module, *args, seed=0):
  """All collections of a module, filled at random as (host) arrays.

  Kernels keep the variance through a ReLU; statistics are positive.
  """
  init = lambda: module.init(jax.random.key(0), *args)
  return random_like(jax.eval_shape(init), seed)


def random_like(variables, seed=0):
  """Another draw of every variable of a tree, or one of its shapes."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    x = rng.normal(size=leaf.shape)
    name = path[-1].key
    if name == 'kernel':
      x = x * np.sqrt(2 / np.prod(leaf.shape[:-1]))
    elif name in ('scale', 'var'):
      x = rng.uniform(0.5, 1.5, size=leaf.shape)
    else:
      x = 0.2 * x
    return np.asarray(x, np.float32)

  return jax.tree_util.tree_map_with_path(draw, variables)


def count(params):
  """Number of parameters of a tree of arrays or shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
