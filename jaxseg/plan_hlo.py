"""What the devices exchange, read from a compiled program.

Only after XLA has shared a program out between devices is it known.
"""

import math
import re
from typing import NamedTuple


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
    branches: of `plan_costs.Counted`.
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
