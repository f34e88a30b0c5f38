"""What a training step costs: its arithmetic, and what its devices exchange.

Arithmetic is counted in the step as JAX traced it, where loops and conditions
are still to be seen: XLA's own cost analysis counts the dearer branch of a
condition at every step, and the body of a loop once. What is exchanged is only
known after XLA has shared the program out, so it is read from compiled HLO.
"""

import math
import re
from typing import NamedTuple

import numpy as np
from jax.extend import core

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
  name, params = eqn.primitive.name, eqn.params
  if name == 'cond':
    return _condition(eqn, values, branches)
  if name in ('dot_general', 'conv_general_dilated'):
    n = _product(eqn) if name == 'dot_general' else _convolution(eqn)
    narrow = eqn.invars[0].aval.dtype.itemsize < 4
    moved = sum(
      math.prod(v.aval.shape) * v.aval.dtype.itemsize
      for v in (*eqn.invars, *eqn.outvars)
    )
    own = {'bfloat16' if narrow else 'float32': n, 'moved': moved}
    return own, n, eqn, []
  times = devices = 1
  if name == 'scan':
    times = params['length']
    # What it carries changes from turn to turn.
    values = [
      v if i < params['num_consts'] else None for i, v in enumerate(values)
    ]
  elif name == 'shard_map':
    devices = params['mesh'].size
  flops, once, changed = {}, 0.0, {}
  outputs = _evaluate(eqn, values)
  for key, value in params.items():
    if not isinstance(value, core.ClosedJaxpr | core.Jaxpr):
      continue
    closed = isinstance(value, core.ClosedJaxpr)
    inner = value.jaxpr if closed else value
    same = len(inner.invars) == len(values)
    before = len(branches)
    inside, inner_once, named, told = _walk(
      inner,
      values if same else [None] * len(inner.invars),
      value.consts if closed else (),
      branches,
    )
    if len(branches) > before:
      changed[key] = value.replace(jaxpr=named) if closed else named
    if name in ('jit', 'pjit', 'closed_call', 'remat', 'checkpoint'):
      outputs = told
    once += inner_once * devices
    _add(flops, inside, times * devices)
  if changed:
    eqn = eqn.replace(params=params | changed)
  return flops, once, eqn, outputs


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


class Exchange(NamedTuple):
  """What each device exchanges in one step, on average.

  Attributes:
    kinds: {'all-reduce', 'all-gather', ...: bytes of the whole arrays}.
    sent_bytes: that go out of a device if the groups are rings without end.
    collectives: how many.
    unknown: conditions counted at every step, their share being unknown.
  """

  kinds: dict[str, float]
  sent_bytes: float
  collectives: float
  unknown: int


# Bytes that a device sends for each byte of the whole array, in a long ring.
SENT = {
  'all-reduce': 2, 'all-gather': 1, 'reduce-scatter': 1, 'all-to-all': 1,
  'collective-permute': 1, 'ragged-all-to-all': 1, 'collective-broadcast': 1,
}  # fmt: skip

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$')
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\('
)
_CALLED = re.compile(
  r'(?:calls|to_apply|body|condition|branch_computations|true_computation|'
  r'false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_ARRAY = re.compile(r'\b([a-z]+[0-9]*)(?:e\w+)?\[([0-9,]*)\]')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BRANCHES = re.compile(r'op_name="[^"]*branches_(\d+)/cond"')


def exchanges(hlo: str, branches: list[list[float] | None]) -> Exchange:
  """Reads the collectives of a compiled program.

  Args:
    hlo: `compiled.as_text()`.
    branches: of `Counted`.
  """
  computations, entry = _computations(hlo)
  found = {'kinds': {}, 'sent': 0.0, 'number': 0.0, 'unknown': set()}

  def visit(name, weight):
    for line in computations.get(name, ()):
      match = _INSTRUCTION.match(line)
      if not match or not weight:
        continue
      shape, op = match.groups()
      kind = op.removesuffix('-start')
      if kind in SENT:
        size = _bytes(shape, op, line)
        kinds = found['kinds']
        kinds[kind] = kinds.get(kind, 0.0) + weight * size
        found['sent'] += weight * size * SENT[kind]
        found['number'] += weight
        continue
      called = [
        c.strip().lstrip('%')
        for group in _CALLED.findall(line)
        for c in group.strip('{}').split(',')
      ]
      shares = [1.0] * len(called)
      if op == 'conditional':
        shares = _shares(line, branches, len(called), found['unknown'])
      elif op == 'while':
        trips = _TRIPS.search(line)
        shares = [float(trips[1]) if trips else 1.0] * len(called)
      for callee, share in zip(called, shares, strict=True):
        visit(callee, weight * share)

  visit(entry, 1.0)
  return Exchange(
    found['kinds'], found['sent'], found['number'], len(found['unknown'])
  )


def _computations(hlo):
  """Returns ({name: lines}, name of the entry)."""
  computations, entry, lines = {}, '', []
  for line in hlo.splitlines():
    start = None if ' = ' in line else _COMPUTATION.match(line)
    if start:
      lines = computations[start[2]] = []
      entry = start[2] if start[1] else entry
    else:
      lines.append(line)
  return computations, entry


def _shares(line, branches, number, unknown):
  """How often each branch of a conditional is taken."""
  place = _BRANCHES.search(line)
  shares = branches[int(place[1])] if place else None
  if shares is None or len(shares) != number:
    unknown.add(line)
    return [1.0] * number
  # HLO may hold a condition of two branches as (true, false).
  return shares[::-1] if 'true_computation=' in line else shares


def _bytes(shape, op, line):
  """Bytes of the whole array that a collective is about."""
  sizes = [
    math.prod(map(int, filter(None, dims.split(',')))) * _width(dtype)
    for dtype, dims in _ARRAY.findall(shape)
  ]
  if op == 'all-reduce-start':
    return sum(sizes)
  if op.endswith('-start'):
    return max(sizes)  # (what goes in, what comes out, signals)
  return sum(sizes) * (_group(line) if op == 'reduce-scatter' else 1)


def _width(dtype):
  """Bytes of one number: 'f32' -> 4, 'pred' -> 1."""
  bits = re.search(r'\d+', dtype)
  return int(bits[0]) / 8 if bits else 1


def _group(line):
  """Devices in each group of a collective, in any of HLO's notations."""
  listed = re.search(r'replica_groups=\{\{([0-9,]+)\}', line)
  if listed:
    return listed[1].count(',') + 1
  iota = re.search(r'replica_groups=\[(?:\d+,)*(\d+)\]<=', line)
  if iota:
    return int(iota[1])
  mesh = re.search(r'replica_groups=mesh\[(.*?)\] ?\{(.*?)\}', line)
  if not mesh:
    return 1
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
  return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
