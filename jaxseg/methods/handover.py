"""What a stage that trains a segmenter takes from the stage before it."""

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.method import PyTree, TrainState

# What an earlier stage may have trained: its name, and a method that does.
NETWORKS = {
  'seg': ('segmenter', 'supervised'),
  'cam': ('classifier of tags', 'cam'),
}


def copied(tree: PyTree) -> PyTree:
  """The same in buffers of its own: the loop gives away those of its state."""
  return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)


def transfer(fresh: PyTree, previous: PyTree) -> PyTree:
  """Takes from `previous` all arrays of the same place and shape.

  Args:
    fresh: a tree of dicts of arrays.
    previous: another, of a network that may differ in parts.

  Returns:
    like `fresh`; FCN-16s so starts from FCN-32s (Long et al. 2015, 4.1).
  """
  if not isinstance(fresh, dict):
    same = getattr(previous, 'shape', None) == fresh.shape
    return copied(previous) if same else fresh
  if not isinstance(previous, dict):
    return fresh
  return {k: transfer(v, previous.get(k)) for k, v in fresh.items()}


def weights_of(
  previous: TrainState, like: PyTree, method_name: str, network: str = 'seg'
) -> PyTree:
  """The averaged weights of an earlier stage, {'params', 'batch_stats'}.

  Args:
    previous: its final state.
    like: weights of the shapes that are needed.
    method_name: of the stage that needs them, for messages.
    network: see `averaged_of`.

  Raises:
    UserError: that stage trained no such network, or one of other shapes.
  """
  averaged = averaged_of(previous, method_name, network)
  found, wanted = _shapes(averaged), _shapes(like)
  for name in sorted(found.keys() | wanted.keys()):
    if found.get(name) != wanted.get(name):
      raise UserError(
        f'init_from of a {method_name} stage names one with another network: '
        f'{name} is {found.get(name, "missing")} there and '
        f'{wanted.get(name, "missing")} here; give both stages the same '
        f'args.net{" and args.head" * (network == "cam")}.'
      )
  return averaged


def averaged_of(
  previous: TrainState, method_name: str, network: str = 'seg'
) -> PyTree:
  """As `weights_of`, of whatever shapes; `network` is one of NETWORKS."""
  if network not in previous.ema:
    what, such_as = NETWORKS[network]
    raise UserError(
      f'init_from of a {method_name} stage names one that trained no {what} '
      f'(its networks: {", ".join(sorted(previous.params))}), '
      f'expected one such as {such_as!r}.'
    )
  return previous.ema[network]


def parts_of(previous: TrainState, like: PyTree, method_name: str) -> PyTree:
  """`like`, with what it has in common with an earlier stage; see `transfer`.

  Args:
    previous: its final state.
    like: fresh weights, {'params', 'batch_stats'}.
    method_name: of the stage that needs them, for messages.

  Raises:
    UserError: that stage trained no segmenter, or one in whose encoder no
      kernel has a place here.
  """
  averaged = averaged_of(previous, method_name)
  here, there = (
    _shapes(tree['params']['encoder']) for tree in (like, averaged)
  )
  if not any(len(s) == 4 and s == there.get(name) for name, s in here.items()):
    raise UserError(
      f'init_from of a {method_name} stage names one with another network, '
      "nothing of whose encoder fits; set it to '', or give both stages the "
      'same args.net.'
    )
  return transfer(like, averaged)


def begin(
  state: TrainState, previous: TrainState | None, method_name: str
) -> TrainState:
  """The state before the first step, with what an earlier stage has for it.

  Args:
    state: fresh, of network 'seg'.
    previous: the earlier stage's final state; None: there is none.
    method_name: of the stage that begins, for messages.

  Raises:
    UserError: see `parts_of`.
  """
  if previous is None:
    return state
  ema = parts_of(previous, state.ema['seg'], method_name)
  return state.replace(
    params={'seg': ema['params']},
    extra={'seg': ema['batch_stats']},
    ema={'seg': ema},
  )


def _shapes(tree):
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): x.shape
    for path, x in jax.tree.leaves_with_path(tree)
  }
