"""Step time and memory against resolution and batch; cost of sharding.

  python -m benchmarks.scaling --channel_max=32 --measure=128
  python -m benchmarks.scaling --device_counts=1,2,4,8 --channel_max=32

The first form compiles the training steps of the GAN, the encoder and a U-Net
at each size: memory is what the compiler plans, time is measured up to
--measure pixels. The second splits one batch over virtual CPU devices, or over
GPUs where there are some. README.md beside this file says more.
"""

import itertools
import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import encoder_sides, sides, speed
from jaxseg import parallel
from jaxseg.errors import UserError, friendly
from jaxseg.method import Method, TrainState
from jaxseg.methods import semantic_gan, supervised
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

STEPS = ('gan', 'encoder', 'unet')
SIZES = ('64', '128', '256', '512', '1024')

_STEPS = flags.DEFINE_list('steps', list(STEPS), 'What to compile.')
_SIZES = flags.DEFINE_list('sides', list(SIZES), 'Sides of the images.')
_BATCHES = flags.DEFINE_list(
  'batches', ['4', '8'], 'Labelled, and as many unlabelled, images.'
)
_MEASURE = flags.DEFINE_integer(
  'measure', 128, 'Largest side at which steps are timed; 0: none.'
)
_REMAT = flags.DEFINE_bool(
  'remat', False, 'Compute blocks anew for the gradient: less memory.'
)
_DEVICES = flags.DEFINE_list(
  'device_counts', [], 'Numbers of devices to share a batch; without sizes.'
)
# Defined in `benchmarks.speed`.
for name in (
  'resolution', 'batch_size', 'channel_max', 'channel_multiplier', 'rounds',
  'repeats', 'dtype', 'clock', 'absolute',
):  # fmt: skip
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


class Point(NamedTuple):
  """One training step at one size.

  Attributes:
    arguments: bytes of state and batch.
    temporary: bytes of all else that the step holds at once.
    milliseconds: of a step, by round; () where it was not run.
  """

  arguments: int
  temporary: int
  milliseconds: tuple[float, ...] = ()


def make_step(
  name: str, resolution: int
) -> tuple[Method, Callable[[jax.Array], TrainState]]:
  """Returns (method, key -> its state before the first step).

  Widths follow the flags, as in `benchmarks.speed`; the U-Net's first layer
  is an eighth of the widest, its depth 4.
  """
  width = FLAGS.channel_max
  arguments = sides.gan_arguments(
    resolution, width, FLAGS.channel_multiplier, FLAGS.dtype
  )
  if name == 'unet':
    net = Net(
      width=sides.narrow(width), norm='batch', dtype=FLAGS.dtype,
      remat=_REMAT.value,
    )  # fmt: skip
    method = supervised.make(
      num_classes=arguments['num_classes'], resolution=resolution, channels=3,
      total_steps=1, net=net, optimizer=Optimizer(),
    )  # fmt: skip
    return method, lambda key: method.init(key, None)
  gan = semantic_gan.make(**arguments, remat=_REMAT.value)
  if name == 'gan':
    return gan, gan.init
  setup = sides.Setup(arguments, perceptual='discriminator')
  encoder = encoder_sides.make_method(setup, remat=_REMAT.value)
  return encoder, lambda key: encoder.init(key, gan.init(key))


def make_batch(name: str, resolution: int, n: int) -> dict[str, Any]:
  """Random images and labels; a U-Net sees n labelled ones alone."""
  batch = sides.make_batch(dict(resolution=resolution, num_classes=8), n)
  if name == 'unet':
    del batch['unlabelled']
  return batch


def measure(name: str, resolution: int, n: int, timed: bool) -> Point:
  """Compiles one step, and runs it when `timed`."""
  method, init = make_step(name, resolution)
  key = jax.random.key(0, impl='unsafe_rbg')  # quicker to compile
  batch = make_batch(name, resolution, n)
  step = jax.jit(method.train_step, donate_argnums=0)
  # The plan of the memory is made before code is generated.
  options = None if timed else sides.quick_options()
  program = step.lower(jax.eval_shape(init, key), batch).compile(options)
  memory = program.memory_analysis()
  point = Point(memory.argument_size_in_bytes, memory.temp_size_in_bytes)
  if not timed:
    return point
  run = runner(program, sides.quick_jit(init)(key), jax.device_put(batch))
  times = speed.measure([{name: run}], FLAGS.rounds, repeats(), FLAGS.clock)
  return point._replace(milliseconds=tuple(times[0][name]))


def runner(
  program: Callable[..., Any], state: TrainState, batch: Any
) -> Callable[[], None]:
  """A function that makes one step and waits for its end.

  Step numbers do not go up: no step has lazy terms.
  """

  def run():
    nonlocal state
    number = jax.device_put(jnp.ones((), jnp.int32), state.step.sharding)
    state, metrics = program(state.replace(step=number), batch)
    jax.block_until_ready((state, metrics))

  return run


def repeats() -> int:
  """Runs a measurement, as in `benchmarks.speed`."""
  return FLAGS.repeats or (1 if jax.default_backend() == 'cpu' else 10)


def sizes_table(found: dict[tuple[str, int, int], Point | str]) -> str:
  """Markdown: time and memory of each step, resolution and batch.

  Args:
    found: by (step, side, batch); a text says why there is nothing.
  """
  header = ['step', 'side', 'batch', 'state and batch, MiB', 'temporary, MiB']
  header += ['time, relative'] + ['ms'] * shows_milliseconds()
  rows = [header, ['---'] + ['--:'] * (len(header) - 1)]
  first = {}
  for (name, side, n), point in found.items():
    row = [name, str(side), str(n)]
    if isinstance(point, str):
      rows.append(row + [point] + ['–'] * (len(header) - 4))
      continue
    row += [f'{x / 2**20:,.0f}' for x in (point.arguments, point.temporary)]
    if point.milliseconds:
      time = statistics.median(point.milliseconds)
      row.append(f'{time / first.setdefault(name, time):.2f}')
    else:
      row.append('–')
    if shows_milliseconds():
      row.append(f'{time:.1f}' if point.milliseconds else '–')
    rows.append(row)
  return speed.markdown(rows)


def shows_milliseconds() -> bool:
  """--absolute; by default not on CPUs."""
  on_cpu = jax.default_backend() == 'cpu'
  return not on_cpu if FLAGS.absolute is None else FLAGS.absolute


def over_sizes() -> str:
  """The table of resolutions and batches."""
  found = {}
  for name, side, n in itertools.product(
    _STEPS.value, map(int, _SIZES.value), map(int, _BATCHES.value)
  ):
    try:
      found[name, side, n] = measure(name, side, n, side <= _MEASURE.value)
    except jax.errors.JaxRuntimeError as error:  # too large for the device
      found[name, side, n] = str(error).strip().splitlines()[0]
    jax.clear_caches()
  return sizes_table(found)


def sharded_runs(name: str, counts: list[int]) -> dict[str, sides.Runs]:
  """One step with the same batch over each number of devices."""
  method, init = make_step(name, FLAGS.resolution)
  batch = make_batch(name, FLAGS.resolution, FLAGS.batch_size)
  key = jax.random.key(0, impl='unsafe_rbg')
  runs = {}
  for count in counts:
    mesh = parallel.make_mesh(count)
    with jax.set_mesh(mesh):
      placed = parallel.put_batch(batch, mesh)
      everywhere = parallel.replicated(mesh)
      state = jax.jit(init, out_shardings=everywhere)(key)
      step = jax.jit(
        method.train_step, donate_argnums=0, out_shardings=everywhere
      )
      run = runner(step.lower(state, placed).compile(), state, placed)
    runs[str(count)] = {name: within(mesh, run)}
  return runs


def within(
  mesh: jax.sharding.Mesh, run: Callable[[], None]
) -> Callable[[], None]:
  """`run` on a mesh."""

  def wrapped():
    with jax.set_mesh(mesh):
      run()

  return wrapped


def over_devices() -> str:
  """The table of numbers of devices."""
  counts = [int(n) for n in _DEVICES.value]
  rows = [['step', *(f'over {n}' for n in counts)]]
  rows.append(['---'] + ['--:'] * len(counts))
  for name in _STEPS.value:
    runs = sharded_runs(name, counts)
    times = speed.measure(
      list(runs.values()), FLAGS.rounds, repeats(), FLAGS.clock
    )
    first, *_ = times
    row = [name]
    for side in times:
      ratios = [b / a for a, b in zip(first[name], side[name], strict=True)]
      cell = (
        f'{statistics.median(ratios):.2f} '
        f'({min(ratios):.2f} to {max(ratios):.2f})'
      )
      if shows_milliseconds():
        cell += f', {statistics.median(side[name]):.1f} ms'
      row.append(cell)
    rows.append(row)
  return speed.markdown(rows)


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  unknown = sorted(set(_STEPS.value) - set(STEPS))
  if unknown or not _STEPS.value:
    raise UserError(
      f'--steps has {", ".join(unknown) or "nothing"}; valid, separated by '
      f'commas: {", ".join(STEPS)}.'
    )
  for flag, allowed in ((_SIZES, SIZES), (_BATCHES, None), (_DEVICES, None)):
    for value in flag.value:
      if not value.isdigit() or int(value) < 1:
        raise UserError(f'--{flag.name} has {value!r}, must be whole numbers.')
      if allowed and value not in ('32', *allowed):
        raise UserError(
          f'--{flag.name} has {value}, must be powers of two from 32 to 1024.'
        )
  sizes = {int(n) for n in _BATCHES.value} | {FLAGS.batch_size}
  for n in sizes:
    if n % min(n, 4):
      raise UserError(
        f'--batches has {n}, must be at most 4 or a multiple of 4: D_r looks '
        'at groups of 4 images.'
      )
  for n in _DEVICES.value:
    if FLAGS.batch_size % int(n):
      raise UserError(
        f'--device_counts has {n}, which cannot share --batch_size='
        f'{FLAGS.batch_size} evenly.'
      )


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  jax.config.update('jax_enable_compilation_cache', False)
  counts = [int(n) for n in _DEVICES.value]
  if counts:
    # Counts only before JAX starts, and for CPUs.
    jax.config.update('jax_num_cpu_devices', max(counts))
  shape = f'batch {FLAGS.batch_size}, {FLAGS.resolution} px, ' if counts else ''
  sentence = (
    f'{shape}widest layer {FLAGS.channel_max}, {FLAGS.dtype}, '
    f'{"with" if _REMAT.value else "without"} remat, {FLAGS.clock} time, '
    f'{FLAGS.rounds} rounds; {speed.machine()}'
  )
  return f'{sentence}\n\n{over_devices() if counts else over_sizes()}'


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  app.run(main)
