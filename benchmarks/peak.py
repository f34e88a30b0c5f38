"""How much of the device's matrix product rate a GAN step reaches.

  python -m benchmarks.peak --resolution=256 --channel_multiplier=2 \
    --batch_size=16 --dtype=bfloat16

The rate is that of one large product of --dtype, measured in turns with the
step; the step's operations are counted, see `flops`. README.md beside this
file says more.
"""

import os
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import flops, sides, speed
from jaxseg.errors import UserError, friendly
from jaxseg.methods import semantic_gan

PRODUCTS = 8  # in one program, so that starting it does not count

_SIDE = flags.DEFINE_integer(
  'matrix', 0, 'Side of the matrices; 0: 1024 on CPUs, 8192 elsewhere.'
)
# Defined in `benchmarks.speed`.
for name in (
  'resolution', 'batch_size', 'channel_max', 'channel_multiplier', 'rounds',
  'repeats', 'dtype', 'clock',
):  # fmt: skip
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


def product_run(side: int, dtype: str) -> tuple[Any, int]:
  """Square matrices multiplied PRODUCTS times: (run, its operations)."""

  @jax.jit
  def multiply(x, y):
    for _ in range(PRODUCTS):
      x = x @ y
    return x

  x, y = (
    jax.random.normal(jax.random.key(i), (side, side)).astype(dtype)
    for i in range(2)
  )
  y = y / jnp.asarray(side**0.5, dtype)  # keeps the variance
  run = lambda: jax.block_until_ready(multiply(x, y))
  return run, PRODUCTS * 2 * side**3


def step_flops(arguments: dict[str, Any], n: int) -> dict[str, list[float]]:
  """Operations of each of `sides.STEPS` and of the mean step.

  Args:
    arguments: of `sides.gan_arguments`.
    n: images of the labelled, and of the unlabelled batch.
  """
  none = dict(r1_gamma=0.0, r1_gamma_m=0.0, path_every=0)
  changes = {
    'gan_step': none,
    'r1_step': dict(path_every=0),
    'path_step': none | dict(path_every=sides.PATH_EVERY),
  }
  batch = sides.make_batch(arguments, n)
  found = {}
  for case, change in changes.items():
    method = semantic_gan.make(**arguments, **change)
    state = jax.eval_shape(method.init, jax.random.key(0))
    found[case] = [float(flops.count(method.train_step, state, batch))]
  speed.add_amortised(found)
  return found


def table(
  times: speed.Times, operations: dict[str, list[float]], product: int
) -> str:
  """Markdown: operations, their rate, and its share of the product's.

  Args:
    times: milliseconds by round, of the steps and of 'product'.
    operations: of the steps.
    product: operations of 'product'.
  """
  rows = [['case', 'TFLOP', 'TFLOP/s', 'share of the product, median (range)']]
  rows.append(['---'] + ['--:'] * 3)
  counts = {'product': [product]} | operations
  rates = {
    case: [1e-9 * counts[case][0] / ms for ms in times[case]] for case in counts
  }
  for case, values in rates.items():
    shares = [a / b for a, b in zip(values, rates['product'], strict=True)]
    rows.append(
      [
        case,
        f'{1e-12 * counts[case][0]:.4g}',
        f'{statistics.median(values):.4g}',
        f'{statistics.median(shares):.1%} '
        f'({min(shares):.1%} to {max(shares):.1%})',
      ]
    )
  return speed.markdown(rows)


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  speed.check_flags()
  if _SIDE.value < 0:
    raise UserError(f'--matrix is {_SIDE.value}, must be 0 or more.')
  on_cpu = jax.default_backend() == 'cpu'
  arguments = sides.gan_arguments(
    FLAGS.resolution, FLAGS.channel_max, FLAGS.channel_multiplier, FLAGS.dtype
  )
  setup = sides.Setup(arguments, FLAGS.batch_size)
  state, e_params = sides.init(setup)
  runs, _ = sides.jaxseg_side(setup, list(sides.STEPS), state, e_params)
  side = _SIDE.value or (1024 if on_cpu else 8192)
  product, count = product_run(side, FLAGS.dtype)
  repeats = FLAGS.repeats or (1 if on_cpu else 10)
  runs = {'product': product} | runs
  (times,) = speed.measure([runs], FLAGS.rounds, repeats, FLAGS.clock)
  speed.add_amortised(times)
  return (
    f'{speed.describe(setup)} The product is of matrices of side {side}.\n\n'
    + table(times, step_flops(arguments, FLAGS.batch_size), count)
  )


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  app.run(main)
