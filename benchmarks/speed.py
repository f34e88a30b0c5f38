"""Times jaxseg beside a PyTorch counterpart, in one process.

  python -m benchmarks.speed --resolution=64 --batch_size=8 --channel_max=64

README.md beside this file says what each case does. Both sides are first shown
to compute the same numbers, then run in turns (A B A B ...), so that other
load on the machine meets both; the table gives times relative to jaxseg's.
"""

import importlib.util
import os
import statistics
import sys
import time

import jax
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import sides
from jaxseg.errors import UserError, friendly

AMORTISED = 'gan_amortised'
CASES = (*sides.STEPS, AMORTISED, sides.ENCODER, *sides.TTO_BATCHES)
NAMES = ('jaxseg', 'PyTorch', 'PyTorch compiled')
TOLERANCE = 1e-3
NO_TORCH = (
  'PyTorch is not installed, so only jaxseg runs; `pip install torch` adds the '
  'comparison.'
)

_RESOLUTION = flags.DEFINE_integer('resolution', 64, 'Side of the images.')
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', 8, 'Images of the labelled, and of the unlabelled batch.'
)
_MULTIPLIER = flags.DEFINE_float(
  'channel_multiplier', 1.0, 'channels(r) = min(channel_max, this 16384 / r).'
)
_CHANNEL_MAX = flags.DEFINE_integer(
  'channel_max', 512, 'Widest layer, a multiple of 8; all widths follow it.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Pairs of measurements a case.')
_REPEATS = flags.DEFINE_integer(
  'repeats', 0, 'Runs a measurement; 0: 1 on CPUs, 10 elsewhere.'
)
_TTO_STEPS = flags.DEFINE_integer(
  'tto_steps', 10, 'Steps of one test-time optimisation.'
)
_CASES = flags.DEFINE_list('cases', list(CASES), 'What to measure.')
_DTYPE = flags.DEFINE_enum(
  'dtype', 'float32', ['float32', 'bfloat16'], 'Of the convolutions.'
)
_PERCEPTUAL = flags.DEFINE_enum(
  'perceptual',
  'random',
  ['random', 'discriminator'],
  "Distance: VGG16's structure with random weights, or features of D_r.",
)
_CLOCK = flags.DEFINE_enum(
  'clock',
  'wall',
  ['wall', 'cpu'],
  'cpu: processor time of all threads, for CPUs with other load.',
)
_ABSOLUTE = flags.DEFINE_bool(
  'absolute', None, 'Also print milliseconds; by default not on CPUs.'
)
_CHECK = flags.DEFINE_bool('check', True, 'First compare the outputs.')
COMPILED = flags.DEFINE_bool(
  'compiled', False, 'Also PyTorch with torch.compile; that takes minutes.'
)

# Milliseconds of every round, by case.
Times = dict[str, list[float]]


def check_outputs(resolution: int = 32) -> str:
  """Compares every network's outputs on both sides, at a tiny size.

  Returns:
    a sentence with the largest relative difference.

  Raises:
    AssertionError: it exceeds TOLERANCE, or is not a number.
  """
  from benchmarks import check

  differences = check.compare(resolution)
  wrong = {k: v for k, v in differences.items() if not v <= TOLERANCE}
  if wrong:
    raise AssertionError(f'jaxseg and PyTorch differ in {wrong}')
  return (
    f'jaxseg and PyTorch agree in {len(differences)} outputs; the largest '
    f'relative difference is {max(differences.values()):.1e}.'
  )


def measure(
  runs: list[sides.Runs], rounds: int, repeats: int, clock: str = 'wall'
) -> list[Times]:
  """Runs the sides in turns, case by case.

  Args:
    runs: one dict for each side; the first has all cases.
    rounds: measurements of each case and side.
    repeats: runs a measurement.
    clock: 'wall' or 'cpu'.

  Returns:
    for each side the milliseconds of one run, by case and round.
  """
  now = time.perf_counter if clock == 'wall' else time.process_time
  times = [{case: [] for case in side} for side in runs]
  for case in runs[0]:
    able = [pair for pair in zip(runs, times, strict=True) if case in pair[0]]
    for side, _ in able:
      side[case]()  # memory, kernel choice
    for _ in range(rounds):
      for side, collected in able:
        start = now()
        for _ in range(repeats):
          side[case]()
        collected[case].append(1e3 * (now() - start) / repeats)
  return times


def able(runs: sides.Runs) -> tuple[sides.Runs, dict[str, str]]:
  """Runs each case once, in which torch.compile compiles it.

  Returns:
    the cases that can be run; for the others the error in one line.
  """
  found, failed = {}, {}
  for case, run in runs.items():
    try:
      run()
      found[case] = run
    except Exception as error:  # a compiler's, of any kind
      lines = str(error).strip().splitlines() or ['']
      failed[case] = f'{type(error).__name__}: {lines[0]}'
  return found, failed


def failures(failed: dict[str, str]) -> list[str]:
  """A sentence for each case that torch.compile cannot compile."""
  return [
    f'torch.compile fails at {case} ({reason}).'
    for case, reason in failed.items()
  ]


def add_amortised(times: Times) -> None:
  """Adds the mean step of a training run, lazy terms at their usual rate."""
  if not times.keys() >= sides.STEPS.keys():
    return
  parts = (times[case] for case in sides.STEPS)
  times[AMORTISED] = [
    plain + (r1 - plain) / 16 + (path - plain) / 4
    for plain, r1, path in zip(*parts, strict=True)
  ]


def table(cases: list[str], times: list[Times], absolute: bool) -> str:
  """Markdown: relative times, on request also milliseconds.

  Args:
    cases: rows.
    times: of jaxseg and, where they ran, of the sides in NAMES; the others may
      lack cases.
    absolute: add the median (least) milliseconds of each side.
  """
  names = NAMES[: len(times)]
  header = ['case', *names]
  if absolute:
    header += [f'{name}, ms' for name in names]
  rows = [header, ['---'] * len(header)]
  ours, *others = times
  for case in cases:
    row = [case, '1']
    row += [_ratios(ours[case], side.get(case)) for side in others]
    if absolute:
      row += [_milliseconds(side.get(case)) for side in times]
    rows.append(row)
  return markdown(rows)


def _ratios(ours, theirs):
  """Median (range) of the ratios of each round; a dash without times."""
  if not theirs:
    return '–'
  ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
  return (
    f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
  )


def _milliseconds(times):
  """Median (least); a dash without times."""
  return f'{statistics.median(times):.1f} ({min(times):.1f})' if times else '–'


def compile_table(seconds: dict[str, tuple[float, float]]) -> str:
  """Markdown: how long each of jaxseg's programs took to build."""
  rows = [['program', 'lower, s', 'compile, s'], ['---'] * 3]
  rows += [
    [name, *(f'{s:.1f}' for s in both)] for name, both in seconds.items()
  ]
  return markdown(rows)


def markdown(rows: list[list[str]]) -> str:
  """The rows of a table."""
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  unknown = sorted(set(_CASES.value) - set(CASES))
  if unknown or not _CASES.value:
    raise UserError(
      f'--cases has {", ".join(unknown) or "no case"}; valid, separated by '
      f'commas: {", ".join(CASES)}.'
    )
  if _CHANNEL_MAX.value < 8 or _CHANNEL_MAX.value % 8:
    raise UserError(
      f'--channel_max is {_CHANNEL_MAX.value}, must be a multiple of 8.'
    )
  if _RESOLUTION.value not in (32, 64, 128, 256, 512, 1024):
    raise UserError(
      f'--resolution is {_RESOLUTION.value}, must be a power of two from 32 to '
      '1024.'
    )
  if _BATCH_SIZE.value < 1 or _BATCH_SIZE.value % min(_BATCH_SIZE.value, 4):
    raise UserError(
      f'--batch_size is {_BATCH_SIZE.value}, must be at most 4 or a multiple '
      'of 4: D_r looks at groups of 4 images.'
    )
  for flag in (_ROUNDS, _TTO_STEPS):
    if flag.value < 1:
      raise UserError(f'--{flag.name} is {flag.value}, must be at least 1.')


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  # Compile times are those of a first start.
  jax.config.update('jax_enable_compilation_cache', False)
  with_torch = importlib.util.find_spec('torch') is not None
  lines = [
    check_outputs() if with_torch and _CHECK.value else '',
    '' if with_torch else NO_TORCH,
  ]
  setup = sides.Setup(
    sides.gan_arguments(
      _RESOLUTION.value, _CHANNEL_MAX.value, _MULTIPLIER.value, _DTYPE.value
    ),
    _BATCH_SIZE.value,
    _TTO_STEPS.value,
    _PERCEPTUAL.value,
  )
  # In the order of CASES; the amortised step needs its three parts.
  wanted = [
    case
    for case in CASES
    if case in _CASES.value
    or (AMORTISED in _CASES.value and case in sides.STEPS)
  ]
  measured = [case for case in wanted if case != AMORTISED]
  state, e_params = sides.init(setup)
  runs, seconds = sides.jaxseg_side(setup, measured, state, e_params)
  every, failed = [runs], {}
  if with_torch:
    every.append(sides.torch_side(setup, measured, state, e_params))
  if with_torch and COMPILED.value:
    runs = sides.torch_side(setup, measured, state, e_params, compiled=True)
    runs, failed = able(runs)
    every.append(runs)
  on_cpu = jax.default_backend() == 'cpu'
  repeats = _REPEATS.value or (1 if on_cpu else 10)
  times = measure(every, _ROUNDS.value, repeats, _CLOCK.value)
  if AMORTISED in wanted:
    for side in times:
      add_amortised(side)
  absolute = not on_cpu if _ABSOLUTE.value is None else _ABSOLUTE.value
  lines += [
    describe(setup),
    table(wanted, times, absolute),
    *failures(failed),
    compile_table(seconds),
  ]
  return '\n\n'.join(line for line in lines if line)


def describe(setup: sides.Setup) -> str:
  """What was measured and where, in a sentence."""
  a = setup.arguments
  return (
    f'{a["resolution"]} px, batches of {setup.batch_size}, widest layer '
    f'{a["channel_max"]}, channel multiplier {a["channel_multiplier"]:g}, '
    f'{a["dtype"]}, {_CLOCK.value} time, {_ROUNDS.value} rounds; '
    f'{machine()}'
  )


def machine() -> str:
  """Device, cores and versions, as the end of a sentence."""
  versions = [f'JAX {jax.__version__}'] + [
    f'{title} {sys.modules[name].__version__}'
    for name, title in (
      ('torch', 'PyTorch'),
      ('segmentation_models_pytorch', 'segmentation_models_pytorch'),
    )
    if name in sys.modules
  ]
  return (
    f'{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, '
    f'{", ".join(versions)}.'
  )


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  # Both sides share a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # PyTorch's waiting threads would spin, which disturbs the other side and,
  # on a busy machine, slows PyTorch itself many times over.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  app.run(main)
