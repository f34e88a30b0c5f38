"""The arithmetic of a training step, counted as JAX traced it.

There loops and conditions are still to be seen: XLA's own cost analysis counts
the dearer branch of a condition at every step, and the body of a loop once.
"""

import math
from typing import NamedTuple

import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

# Steps over which branches that depend on the step number are averaged: a
# multiple of every usual interval (2..16, 20, 24, 30, 48, 60, ...).
STEPS = 5040


class Counted(NamedTuple):
  """FLOP of all devices together in one step, on average.

  Attributes:
    flops: {'bfloat16' or 'float32': FLOP} of convolutions and matrix products.
    moved: bytes that these read and write; memory traffic is hardly less.
    once: all of it as XLA counts: the dearest branch, the body of loops once.
    branches: of the conditions in `jaxpr`, in order, the share of steps that
      take each branch; None where that does not follow from the step number.
    jaxpr: the step, each condition named 'branches_I', I into `branches`.
  """

  flops: dict[str, float]
  moved: float
  once: float
  branches: list[list[float] | None]
  jaxpr: core.ClosedJaxpr


def count(jaxpr: core.ClosedJaxpr, step: int) -> Counted:
  """Counts a traced training step.

  Args:
    jaxpr: from `jax.jit(train_step).trace(state, batch).jaxpr`.
    step: which of its inputs is the step number.
  """
  # What nothing depends on is traced too, but XLA leaves it out.
  outputs = [True] * len(jaxpr.jaxpr.outvars)
  needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, outputs, instantiate=True)
  jaxpr = jaxpr.replace(jaxpr=needed)
  branches = []
  known = [None] * len(jaxpr.jaxpr.invars)
  known[step] = np.arange(STEPS, dtype=np.int32)
  flops, once, named, _ = _walk(jaxpr.jaxpr, known, jaxpr.consts, branches)
  moved = flops.pop('moved', 0.0)
  return Counted(flops, moved, once, branches, jaxpr.replace(jaxpr=named))


def _walk(jaxpr, known, consts, branches):
  """Counts a jaxpr and follows the step number through it.

  Args:
    jaxpr: a Jaxpr.
    known: for each input its value [STEPS] by step number, or None.
    consts: values of its constants.
    branches: appended to.

  Returns:
    ({dtype: FLOP, 'moved': bytes}, FLOP as XLA counts, the jaxpr with names,
    what is known of its outputs).
  """
  env = dict(zip(jaxpr.invars, known, strict=True))
  env |= {v: _scalar(c) for v, c in zip(jaxpr.constvars, consts, strict=False)}
  look_up = lambda v: (
    _scalar(v.val) if isinstance(v, core.Literal) else env.get(v)
  )
  flops, once, eqns = {}, 0.0, []
  for eqn in jaxpr.eqns:
    values = [look_up(v) for v in eqn.invars]
    inner, inner_once, eqn, outputs = _equation(eqn, values, branches)
    eqns.append(eqn)
    once += inner_once
    _add(flops, inner, 1)
    env.update(zip(eqn.outvars, outputs, strict=False))
  outputs = [look_up(v) for v in jaxpr.outvars]
  return flops, once, jaxpr.replace(eqns=eqns), outputs


def _scalar(value):
  """A constant as a value by step number, None if it is no plain scalar."""
  if isinstance(value, bool | int | float | np.generic | np.ndarray):
    return np.broadcast_to(value, STEPS) if np.ndim(value) == 0 else None
  return None


# How conditions on the step number are computed.
_KNOWN = {
  'add': np.add, 'sub': np.subtract, 'mul': np.multiply, 'rem': np.fmod,
  'max': np.maximum, 'min': np.minimum, 'sign': np.sign, 'neg': np.negative,
  'eq': np.equal, 'ne': np.not_equal, 'lt': np.less, 'le': np.less_equal,
  'gt': np.greater, 'ge': np.greater_equal, 'not': np.logical_not,
  'and': np.logical_and, 'or': np.logical_or,
  'select_n': lambda which, *cases: np.choose(which.astype(int), cases),
}  # fmt: skip


def _evaluate(eqn, values):
  """What is known of the outputs of an equation without a jaxpr inside."""
  name = eqn.primitive.name
  if not values or any(v is None for v in values):
    return []
  if name == 'convert_element_type':
    return [values[0].astype(eqn.params['new_dtype'])]
  if name in ('and', 'or', 'not') and values[0].dtype != bool:
    return []
  return [_KNOWN[name](*values)] if name in _KNOWN else []


def _equation(eqn, values, branches):
  """`_walk` of one equation: the same, but its equation with names."""
  name = eqn.primitive.name
  if name == 'cond':
    return _condition(eqn, values, branches)
  if name not in ('dot_general', 'conv_general_dilated'):
    return _inside(eqn, values, branches)
  n = _product(eqn) if name == 'dot_general' else _convolution(eqn)
  narrow = eqn.invars[0].aval.dtype.itemsize < 4
  moved = sum(
    math.prod(v.aval.shape) * v.aval.dtype.itemsize
    for v in (*eqn.invars, *eqn.outvars)
  )
  own = {'bfloat16' if narrow else 'float32': n, 'moved': moved}
  return own, n, eqn, []


def _inside(eqn, values, branches):
  """`_equation` of one that may hold others: loops, calls."""
  name, params = eqn.primitive.name, eqn.params
  # A shard_map is what one device does; a loop's carry is not known.
  devices = params['mesh'].size if name == 'shard_map' else 1
  times = devices
  if name == 'scan':
    times = params['length']
    known = _num_consts(params)
    values = [v if i < known else None for i, v in enumerate(values)]
  total, once, changed = {}, 0.0, {}
  outputs = _evaluate(eqn, values)
  for key, value in params.items():
    if not isinstance(value, core.ClosedJaxpr | core.Jaxpr):
      continue
    closed = isinstance(value, core.ClosedJaxpr)
    inner, consts = (value.jaxpr, value.consts) if closed else (value, ())
    known, before = values, len(branches)
    if len(inner.invars) != len(values):
      known = [None] * len(inner.invars)
    costs, inner_once, named, told = _walk(inner, known, consts, branches)
    if len(branches) > before:
      changed[key] = value.replace(jaxpr=named) if closed else named
    if name in ('jit', 'pjit', 'closed_call', 'remat', 'checkpoint'):
      outputs = told
    once += inner_once * devices
    _add(total, costs, times)
  if changed:
    eqn = eqn.replace(params=params | changed)
  return total, once, eqn, outputs


def _num_consts(params):
  """How many inputs of a scan are the same in every pass."""
  if 'num_consts' in params:
    return params['num_consts']
  return len(params['ft_in'].unpack()[0])  # jax 0.11


def _add(total, more, factor):
  for name, n in more.items():
    total[name] = total.get(name, 0.0) + factor * n


def _condition(eqn, values, branches):
  """A condition costs the mean of its branches over the steps."""
  place, index = len(branches), values[0]
  branches.append(None)
  parts = [
    _walk(b.jaxpr, values[1:], b.consts, branches)
    for b in eqn.params['branches']
  ]
  if index is None:
    dearest = int(np.argmax([p[1] for p in parts]))
    shares = [float(i == dearest) for i in range(len(parts))]
  else:
    index = np.clip(index.astype(int), 0, len(parts) - 1)
    shares = [float(np.mean(index == i)) for i in range(len(parts))]
    branches[place] = shares
  flops = {}
  for share, part in zip(shares, parts, strict=True):
    _add(flops, part[0], share)
  named = tuple(
    b.replace(jaxpr=p[2])
    for b, p in zip(eqn.params['branches'], parts, strict=True)
  )
  info = eqn.source_info
  info = info.replace(name_stack=info.name_stack.extend(f'branches_{place}'))
  eqn = eqn.replace(params=eqn.params | {'branches': named}, source_info=info)
  return flops, max(p[1] for p in parts), eqn, []


def _product(eqn):
  """FLOP of a matrix product: 2 x results x terms of each."""
  (contracted, _), _ = eqn.params['dimension_numbers']
  left = eqn.invars[0].aval.shape
  terms = math.prod(left[i] for i in contracted)
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * terms


def _convolution(eqn):
  """FLOP of a convolution; terms on padding count, inserted zeros do not."""
  kernel = eqn.invars[1].aval.shape
  outputs = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  terms = math.prod(kernel) / outputs / math.prod(eqn.params['lhs_dilation'])
  return 2.0 * math.prod(eqn.outvars[0].aval.shape) * terms
