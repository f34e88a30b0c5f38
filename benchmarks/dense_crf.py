"""Times the dense CRF loss with the lattice beside the sum over all pairs.

  python -m benchmarks.dense_crf --sizes=128,256

What is timed is the value and the gradient of jaxseg's dense CRF loss for one
photograph and 21 classes: one filtering. Both sides run in turns (A B A B ...)
in one process. A second table says how far the lattice is from the sum over all
pairs, on photographs that lie inside scikit-image. The sum over all pairs takes
minutes beyond 256x256 pixels.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image
from skimage import data

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import speed
from jaxseg.errors import UserError, friendly
from jaxseg.losses import regularized
from jaxseg.ops import bilateral

PHOTOGRAPHS = ('astronaut', 'chelsea', 'coffee', 'rocket')
NUM_CLASSES = 21
KINDS = ('lattice', 'exact')
ERRORS = ('relative L2', 'after scaling', 'row-normalised', 'association')
# Standard deviations of the published loss: 100 of 513 pixels, 15 grey levels.
SIGMA_XY, SIGMA_RGB = 100 / 513, 15.0
_AT_LEAST = 0.2  # seconds of a measurement, for what is quicker than that

_SIZES = flags.DEFINE_list('sizes', ['128', '256'], 'Sides that are timed.')
_ERROR_SIZE = flags.DEFINE_integer(
  'error_size', 128, 'Side at which errors are measured; 0: they are not.'
)
_MOST_SECONDS = flags.DEFINE_float(
  'most_seconds', 60.0, 'No further round of a size begins after so long.'
)
# Defined in `benchmarks.speed`.
for name in ('rounds', 'clock', 'absolute'):
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


class Side(NamedTuple):
  """One way to compute the loss.

  Attributes:
    run: computes value and gradient, waits, and returns them.
    memory: bytes of the program's intermediate results.
  """

  run: Callable[[], Any]
  memory: int


def photograph(name: str, size: int) -> np.ndarray:
  """The square in the middle, float32 [1, size, size, 3] in [-1, 1]."""
  image = Image.fromarray(getattr(data, name)()).convert('RGB')
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  box = left, top, left + side, top + side
  image = image.resize((size, size), Image.Resampling.LANCZOS, box=box)
  return np.asarray(image, np.float32)[None] / 127.5 - 1


def make_logits(size: int) -> np.ndarray:
  """Smooth scores, float32 [1, size, size, NUM_CLASSES]."""
  rng = np.random.default_rng(0)
  coarse = rng.normal(0, 2, (1, 8, 8, NUM_CLASSES)).astype(np.float32)
  shape = 1, size, size, NUM_CLASSES
  return np.array(jax.image.resize(coarse, shape, 'cubic'))


def make_side(kind: str, image: np.ndarray, logits: np.ndarray) -> Side:
  """Compiles the loss and its gradient."""
  settings = regularized.Regularizer(
    crf=1.0, sigma_xy=SIGMA_XY, sigma_rgb=SIGMA_RGB, filter=kind, shrink=1
  )

  def loss(logits, image):
    return regularized.regularize(logits, image, settings)

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  program = grad.lower(logits, image).compile()
  args = jax.device_put((logits, image))
  run = lambda: jax.block_until_ready(program(*args))
  return Side(run, program.memory_analysis().temp_size_in_bytes)


def measure(
  runs: Sequence[Callable[[], Any]],
  rounds: int,
  most_seconds: float,
  now: Callable[[], float],
) -> list[list[float]]:
  """Runs the sides in turns.

  Args:
    runs: functions that compute once and wait.
    rounds: measurements of each side, if time allows.
    most_seconds: after which no further round begins; one there is always.
    now: the clock.

  Returns:
    for each side the seconds of one run, by round.
  """
  repeats = []
  for run in runs:
    start = time.perf_counter()
    run()  # memory
    once = time.perf_counter() - start
    repeats.append(max(1, round(_AT_LEAST / max(once, 1e-6))))
    if once > most_seconds:
      rounds = 1
  times, begun = [[] for _ in runs], time.perf_counter()
  for _ in range(rounds):
    for run, count, collected in zip(runs, repeats, times, strict=True):
      start = now()
      for _ in range(count):
        run()
      collected.append((now() - start) / count)
    if time.perf_counter() - begun > most_seconds:
      break
  return times


def time_row(size: int, absolute: bool) -> list[str]:
  """Of the table of times, for one size.

  Raises:
    UserError: the lattice has no room for the photograph.
  """
  image, logits = photograph(PHOTOGRAPHS[0], size), make_logits(size)
  sides = [make_side(kind, image, logits) for kind in KINDS]
  (_, terms), _ = sides[0].run()
  if terms['lattice_overflow']:
    raise UserError(f'--sizes has {size}, for which the lattice has no room.')
  clock = FLAGS.clock
  now = time.perf_counter if clock == 'wall' else time.process_time
  runs = [side.run for side in sides]
  times = measure(runs, FLAGS.rounds, _MOST_SECONDS.value, now)
  ratios = [b / a for a, b in zip(*times, strict=True)]
  row = [
    f'{size}x{size}',
    f'{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})',
    str(len(ratios)),
    *(f'{side.memory / 2**20:.0f}' for side in sides),
  ]
  if absolute:
    row += [f'{1e3 * statistics.median(each):.1f}' for each in times]
  return row


def times_table(sizes: Sequence[int], absolute: bool) -> str:
  """Markdown: how much longer the sum over all pairs takes."""
  head = ['image', 'all pairs / lattice, median (range)', 'rounds',
          'lattice, MiB', 'all pairs, MiB']  # fmt: skip
  if absolute:
    head += ['lattice, ms', 'all pairs, ms']
  rows = [head, ['---', *['--:'] * (len(head) - 1)]]
  return speed.markdown(rows + [time_row(size, absolute) for size in sizes])


def errors_of(name: str, size: int) -> dict[str, float]:
  """How far the lattice's answer is from the sum over all pairs.

  Returns:
    'relative L2' of the filtered probabilities; 'after scaling' by the factor
    that makes it smallest; 'row-normalised', the mean absolute difference of
    filtered probabilities that sum to 1; 'association', the ratio of S'AS.
  """
  image = photograph(name, size)[0]
  soft = jax.nn.softmax(make_logits(size)[0]).reshape(-1, NUM_CLASSES)

  @jax.jit
  def compare(image, soft):
    exact, lattice = (
      bilateral.apply(bilateral.prepare(image, SIGMA_XY, SIGMA_RGB, kind), soft)
      for kind in ('exact', 'lattice')
    )
    norm = jnp.linalg.norm
    factor = (exact * lattice).sum() / (lattice * lattice).sum()
    rows = [x / x.sum(-1, keepdims=True) for x in (exact, lattice)]
    return {
      'relative L2': norm(lattice - exact) / norm(exact),
      'after scaling': norm(factor * lattice - exact) / norm(exact),
      'row-normalised': jnp.abs(rows[0] - rows[1]).mean(),
      'association': (soft * lattice).sum() / (soft * exact).sum(),
    }

  return {k: float(v) for k, v in compare(image, soft).items()}


def errors_table(size: int) -> str:
  """Markdown: `errors_of` all photographs."""
  found = {name: errors_of(name, size) for name in PHOTOGRAPHS}
  rows = [[f'{size}x{size}', *ERRORS], ['---', *['--:'] * len(ERRORS)]]
  for name, errors in found.items():
    rows.append([name, *(f'{errors[key]:.2g}' for key in ERRORS)])
  return speed.markdown(rows)


def check_flags() -> list[int]:
  """Returns the sizes.

  Raises:
    UserError: a value that cannot work.
  """
  wrong = [v for v in _SIZES.value if not v.isdigit() or int(v) < 8]
  if wrong or not _SIZES.value:
    raise UserError(
      f'--sizes has {wrong[0] if wrong else "nothing"!r}, must be whole '
      'numbers of at least 8, separated by commas.'
    )
  if _ERROR_SIZE.value and _ERROR_SIZE.value < 8:
    raise UserError(
      f'--error_size is {_ERROR_SIZE.value}, must be 0 or at least 8.'
    )
  if FLAGS.rounds < 1:
    raise UserError(f'--rounds is {FLAGS.rounds}, must be at least 1.')
  return [int(size) for size in _SIZES.value]


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  sizes = check_flags()
  on_cpu = jax.default_backend() == 'cpu'
  absolute = not on_cpu if FLAGS.absolute is None else FLAGS.absolute
  lines = [
    f'{PHOTOGRAPHS[0]}, {NUM_CLASSES} classes, {FLAGS.clock} time; '
    f'{speed.machine()}',
    times_table(sizes, absolute),
  ]
  if _ERROR_SIZE.value:
    lines.append(errors_table(_ERROR_SIZE.value))
  return '\n\n'.join(lines)


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  app.run(main)
