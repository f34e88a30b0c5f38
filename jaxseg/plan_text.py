"""A plan as text: what a stage needs, how fast it is, what to change."""

import re

from ml_collections import ConfigDict

from jaxseg import plan_chips
from jaxseg.plan_chips import Chip, Devices, Work
from jaxseg.plan_compile import Measured

# An update reads the state and the gradients and writes the state.
STATE_PASSES = 2
LARGE_STATE = 0.3  # of a device's memory: then sharing it out helps
SLOW = 0.5  # efficiency below which a warning tells what to change


def heading(named: Devices, config: ConfigDict, notes: list[str]) -> str:
  """What is planned, and what must be known to read it."""
  mesh = mesh_sizes(config, named.count)
  where = f' ({named.topology})' if named.topology else ''
  lines = [
    f'Plan for {named.count} x {named.chip.name}{where}, '
    f'config.mesh data {mesh[0]} x model {mesh[1]}'
  ]
  return '\n'.join(lines + [f'Note: {note}' for note in notes])


def mesh_sizes(config: ConfigDict, count: int) -> tuple[int, int]:
  """Devices along 'data' and along 'model'."""
  data, model = config.mesh.data, config.mesh.model
  return (max(1, count // model) if data == -1 else data), model


def parts(fields: ConfigDict) -> int:
  """Into how many parts a stage's step divides its batch."""
  return _setting(fields, 'accumulate') or 1


def _setting(fields, name):
  """A setting of the method, or of its optimiser or network; else None."""
  path = _path(fields, name)
  if not path:
    return None
  *group, name = path.split('.')
  return (fields.args[group[0]] if group else fields.args)[name]


def _path(fields, name):
  """Where below args that setting is: 'dtype', 'net.dtype'; '': nowhere."""
  args = fields.args
  groups = [('', args)]
  groups += [(f'{g}.', args[g]) for g in ('optimizer', 'net') if g in args]
  return next((prefix + name for prefix, g in groups if name in g), '')


def work(found: Measured, devices: int) -> Work:
  """What each of `devices` does in a step, on average over many.

  Where nothing was compiled it is the least that can be: operands and results
  of convolutions and products, the state, and all gradients once.
  """
  state = STATE_PASSES * sum(found.state.values())
  traffic = found.moved / devices + state
  sent, collectives = 2 * gradients(found), 1.0
  if found.traffic is not None:
    # XLA counts the dearest branch of a condition at every step, and the body
    # of a loop once; its memory traffic is scaled as the arithmetic is.
    traffic = found.traffic * sum(found.flops.values()) / (found.once or 1)
    sent, collectives = found.sent_bytes, found.collectives
  return Work(
    bf16=found.flops.get('bfloat16', 0.0) / devices,
    f32=found.flops.get('float32', 0.0) / devices,
    state_bytes=min(traffic, state),
    batch_bytes=max(0.0, traffic - state),
    sent_bytes=sent,
    collectives=collectives,
  )


def gradients(found: Measured) -> int:
  """Bytes of the gradients of all parameters."""
  return 4 * sum(found.parameters.values())


def stage(
  config: ConfigDict, name: str, named: Devices, found: Measured
) -> str:
  """The plan of one stage."""
  fields = config[name]
  mesh = mesh_sizes(config, named.count)
  used = mesh[0] * mesh[1]
  images = fields.batch_size + fields.unlabelled_batch_size
  each = work(found, used)
  time = plan_chips.seconds(named.chip, each, used)
  rows = [
    ('parameters', _parameters(found)),
    ('state on a device', _named_sizes(found.state)),
    ('checkpoint', _disk(found, fields.keep_checkpoints + 1)),
    ('arithmetic', _arithmetic(found, used)),
    ('memory on a device', _memory(found, named.chip)),
    ('exchanged', _exchanged(found, used)),
    ('expected step', _expected(time, images)),
  ]
  lines = [
    f'{name} ({fields.method}): {fields.batch_size} labelled and '
    f'{fields.unlabelled_batch_size} unlabelled images a step'
  ]
  lines += [f'  {title:<19} {text}' for title, text in rows]
  lines += ['', *_scaling(named.chip, each, used, mesh[1], images)]
  told = _warnings(f'config.{name}', fields, named.chip, mesh, found, each)
  lines += [f'  Warning: {text}' for text in told]
  return '\n'.join(lines)


def _parameters(found):
  each = ', '.join(f'{k} {v:,}' for k, v in found.parameters.items())
  return f'{each}; together {sum(found.parameters.values()):,}'


def _named_sizes(sizes):
  each = ', '.join(f'{k} {size(v)}' for k, v in sizes.items() if v)
  return f'{size(sum(sizes.values()))} ({each})'


def _disk(found, kept):
  return (
    f'{size(found.checkpoint)} uncompressed; disk for {kept} '
    f'(keep_checkpoints + 1): {size(kept * found.checkpoint)}'
  )


def _arithmetic(found, devices):
  total = sum(found.flops.values())
  shares = ', '.join(f'{k} {v / total:.0%}' for k, v in found.flops.items())
  text = (
    f'{flop(total)} a step on average ({shares}), {flop(total / devices)} on '
    'a device'
  )
  if any(found.branches):
    text += f'; {flop(found.once)} in a step with all regularisers'
  return text


def _memory(found, chip):
  available = size(chip.available)
  if found.too_much:
    return f'more than there is, {available}'
  if found.peak is None:
    return f'not known without compiling; there is {available}'
  return f'{size(found.peak)} at most, of {available}'


def _exchanged(found, devices):
  once = f'all gradients once: {size(gradients(found))}'
  if devices == 1:
    return 'nothing, on one device'
  if found.kinds is None:
    return f'at least {once}'
  kinds = ', '.join(f'{k} {size(v)}' for k, v in found.kinds.items())
  return (
    f'{kinds or "nothing"} a step in {found.collectives:.0f} collectives '
    f'({once})'
  )


def _expected(time, images):
  return (
    f'{milliseconds(time.step)}: the slower of arithmetic '
    f'{milliseconds(time.compute)} and memory {milliseconds(time.memory)}, '
    f'then links {milliseconds(time.communication)}; '
    f'{images / time.step:,.0f} images/s'
  )


def _scaling(chip, each, used, model, images):
  """A table: from as few devices as can be, doubled, to all."""
  counts = [model]
  while counts[-1] * 2 < used:
    counts.append(counts[-1] * 2)
  counts += [used] if used > counts[-1] else []
  lines = [
    f'  {"":>7} | {f"{images} images a step":^28} | '
    f'{f"{images / used:g} images a device":^28}',
    f'  {"devices":>7} | {"step":>9} {"images/s":>9} {"share":>8} | '
    f'{"step":>9} {"images/s":>9} {"share":>8}',
  ]
  bases = None
  for n in counts:
    strong = plan_chips.seconds(chip, each.with_batch(used / n), n).step
    weak = plan_chips.seconds(chip, each, n).step
    bases = bases or (strong * n, weak)
    lines.append(
      f'  {n:>7} | {milliseconds(strong):>9} {images / strong:>9,.0f} '
      f'{bases[0] / (strong * n):>8.0%} | {milliseconds(weak):>9} '
      f'{images * n / used / weak:>9,.0f} {bases[1] / weak:>8.0%}'
    )
  return lines


def _warnings(where, fields, chip, mesh, found, each):
  used = mesh[0] * mesh[1]
  available = chip.available
  told = []
  if found.too_much or (found.peak or 0) > available:
    told.append(
      f'{where} does not fit: {_excess(found, available)}. '
      f'{_smaller(where, fields, mesh, found, available)}'
    )
  one = plan_chips.seconds(chip, each.with_batch(used), 1).step
  share = one / used / plan_chips.seconds(chip, each, used).step
  if share < SLOW and used > mesh[1]:
    told.append(
      f'{used} devices do the work of {share * used:.1f}: the batch is too '
      f'small for them; raise {where}.batch_size or take fewer.'
    )
  if found.unknown:
    told.append(
      f'{found.unknown} condition(s) of {where} do not follow from the step '
      'number; what they exchange counts at every step.'
    )
  return told


def _excess(found, available):
  """How much too much."""
  if not found.too_much:
    return (
      f'{size(found.peak)} on each device, {size(found.peak - available)} too '
      'much'
    )
  # The two ways in which the TPU's compiler says it, in GiB.
  told = re.search(
    r'\(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)', found.too_much
  ) or re.search(r'Used ([\d.]+)G of ([\d.]+)G hbm', found.too_much)
  if not told:
    return f'the compiler says "{found.too_much[:200]}"'
  needed, there = map(float, told.groups())
  return (
    f'{needed:.3g} GiB on each device, {needed - there:.3g} GiB too much for '
    f'the {there:g} that its compiler gives out'
  )


def _smaller(where, fields, mesh, found, available):
  """What to change, the gentlest first."""
  ways = []
  better = {'dtype': 'bfloat16', 'remat': True, 'accumulate': 2 * parts(fields)}
  for name, value in better.items():
    path = _path(fields, name)
    if path and _setting(fields, name) != value:
      ways.append(f'{where}.args.{path}={str(value).lower()}')
  if fields.batch_size > mesh[0]:
    ways.append(f'a smaller {where}.batch_size')
  if sum(found.state.values()) > LARGE_STATE * available:
    ways.append(f'config.mesh.model={2 * mesh[1]}')
  return f'Set {", or ".join(ways) or "a smaller network or resolution"}.'


def model(chip: Chip) -> str:
  """The assumptions behind the times."""
  beyond = (
    f' up to {chip.domain}, {chip.network_rate / 1e9:g} GB/s for each beyond'
    if chip.domain
    else ''
  )
  lines = [
    f"Model of {chip.name}, from its vendor's peaks:",
    f'- {chip.bf16 / 1e12:g} TFLOP/s with bfloat16 and {chip.f32 / 1e12:g} '
    f'with float32 operands, of which {chip.compute_share:.0%} are reached;',
    f'- memory of {size(chip.memory)}, {chip.memory_share:.0%} for programs, '
    f'at {chip.memory_rate / 1e9:g} GB/s, of which '
    f'{plan_chips.MEMORY_SHARE:.0%} are reached;',
    f'- links of {chip.link_rate / 1e9:g} GB/s each way between devices'
    f'{beyond}, of which {plan_chips.LINK_SHARE:.0%} are reached; in rings, '
    f'{plan_chips.COLLECTIVE_SECONDS * 1e6:g} us for each collective, none '
    'hidden behind arithmetic.',
    'Not counted: reading the data, starting kernels (what small images and '
    'networks wait for on a GPU), pictures, checkpoints.',
    'FLOP are those of convolutions and matrix products, a multiplication with '
    'its addition 2, terms on padding included. What happens every few steps '
    '(R1, path length) counts by its share of the steps.',
    '"share" is the part of the devices\' time that is well spent, compared '
    'with the first row; the exchange is taken to be that of all devices.',
  ]
  return '\n'.join(lines)


def size(n: float) -> str:
  """Bytes for people: 1536 -> '1.5 KiB'."""
  return _unit(n, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))


def flop(n: float) -> str:
  """FLOP for people: 2e12 -> '2 TFLOP'."""
  return _unit(n, 1000, ('FLOP', 'kFLOP', 'MFLOP', 'GFLOP', 'TFLOP', 'PFLOP'))


def _unit(n, base, names):
  for name in names:
    if abs(n) < base * 0.9995 or name == names[-1]:
      return f'{n:.3g} {name}'
    n /= base


def milliseconds(seconds: float) -> str:
  """A time for people: 0.0123 -> '12.3 ms'."""
  if seconds >= 1:
    return f'{seconds:.3g} s'
  return f'{1000 * seconds:.3g} ms'
