"""Times test-time optimisation of many images beside one image at a time.

  python -m benchmarks.tto_speed --channel_max=64 --tto_steps=100

jaxseg optimises a batch in one program, PyTorch its images one after the
other, as scripts do. Both begin with the same codes and minimise the same
loss; what each reaches is compared. README.md beside this file says more.
"""

import importlib.util
import os
import statistics
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import sides, speed
from jaxseg.errors import UserError, friendly

_IMAGES = flags.DEFINE_integer('images', 8, 'Images of the batch.')
_PEER_IMAGES = flags.DEFINE_integer(
  'peer_images', 0, 'Images that PyTorch optimises in a round; 0: all.'
)
# Defined in `benchmarks.speed`.
for name in (
  'resolution', 'channel_max', 'channel_multiplier', 'tto_steps', 'perceptual',
  'rounds', 'dtype', 'clock', 'check', 'compiled',
):  # fmt: skip
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


class Found(NamedTuple):
  """What one side did.

  Attributes:
    name: of the side.
    seconds: for an image, by round.
    losses: [images], of the best codes of the last round.
  """

  name: str
  seconds: list[float]
  losses: np.ndarray


def make_runs(
  setup: sides.Setup, images: int, compiled: bool, with_torch: bool
) -> tuple[dict[str, Any], dict[str, str]]:
  """Builds the sides.

  Returns:
    name -> a function of a number of images that returns their losses; name
    -> why it could not be built.
  """
  state, e_params = sides.init(setup)
  function, values = sides.jaxseg_inversion(setup, images, state, e_params)
  program, _ = sides.timed_compile(jax.jit(function), *values)
  runs = {'jaxseg': lambda n: np.asarray(program(*values)[1])}
  failed = {}
  for name in speed.NAMES[1:] if with_torch else ():
    if name == speed.NAMES[2] and not compiled:
      continue
    device, _ = sides.start_torch()
    nets = sides.torch_networks(setup, state, e_params, device)
    run = sides.torch_inversion(setup, images, nets, name == speed.NAMES[2])
    # Once before anything is timed: torch.compile compiles now.
    _, reasons = speed.able({name: lambda run=run: run(0, 1)})
    failed |= reasons
    if not reasons:
      runs[name] = lambda n, run=run: one_by_one(run, n)
  return runs, failed


def one_by_one(run: Any, n: int) -> np.ndarray:
  """Losses [n] of PyTorch's runs of one image each."""
  return np.array([float(run(i, i + 1)[1]) for i in range(n)])


def measure(
  runs: dict[str, Any], images: int, peer_images: int, rounds: int, clock: str
) -> list[Found]:
  """Runs the sides in turns.

  Args:
    runs: of `make_runs`.
    images: of jaxseg's batch.
    peer_images: of them, how many the others optimise.
    rounds: measurements of each side.
    clock: 'wall' or 'cpu'.
  """
  last = {}

  def timed(name, n):
    last[name] = runs[name](n)

  counts = {name: peer_images for name in runs} | {'jaxseg': images}
  cases = [
    {'tto': lambda name=name: timed(name, counts[name])} for name in runs
  ]
  times = speed.measure(cases, rounds, 1, clock)
  return [
    Found(name, [ms / 1e3 / counts[name] for ms in side['tto']], last[name])
    for name, side in zip(runs, times, strict=True)
  ]


def table(found: list[Found]) -> str:
  """Markdown: images a second against jaxseg's, and the losses reached."""
  rows = [['side', 'images a time', 'jaxseg is faster by', 'mean loss']]
  rows[0] += ['relative difference of losses, median (largest)']
  rows.append(['---'] + ['--:'] * 4)
  ours = found[0]
  for side in found:
    n = len(side.losses)
    ratios = [b / a for a, b in zip(ours.seconds, side.seconds, strict=True)]
    row = [side.name, str(n) if side is ours else '1']
    row.append(
      '1'
      if side is ours
      else f'{statistics.median(ratios):.2f} '
      f'({min(ratios):.2f} to {max(ratios):.2f})'
    )
    row.append(f'{side.losses.mean():.5g}')
    apart = np.abs(side.losses / ours.losses[:n] - 1)
    row.append(f'{np.median(apart):.1e} ({apart.max():.1e})')
    rows.append(row)
  return speed.markdown(rows)


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  speed.check_flags()
  if _IMAGES.value < 1:
    raise UserError(f'--images is {_IMAGES.value}, must be at least 1.')
  if not 0 <= _PEER_IMAGES.value <= _IMAGES.value:
    raise UserError(
      f'--peer_images is {_PEER_IMAGES.value}, must be from 0 to --images='
      f'{_IMAGES.value}.'
    )


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  with_torch = importlib.util.find_spec('torch') is not None
  lines = [
    speed.check_outputs() if with_torch and FLAGS.check else '',
    '' if with_torch else speed.NO_TORCH,
  ]
  setup = sides.Setup(
    sides.gan_arguments(
      FLAGS.resolution, FLAGS.channel_max, FLAGS.channel_multiplier, FLAGS.dtype
    ),
    tto_steps=FLAGS.tto_steps,
    perceptual=FLAGS.perceptual,
  )
  images = _IMAGES.value
  peer_images = _PEER_IMAGES.value or images
  runs, failed = make_runs(setup, images, FLAGS.compiled, with_torch)
  found = measure(runs, images, peer_images, FLAGS.rounds, FLAGS.clock)
  note = (
    f' PyTorch optimises {peer_images} of the {images} images in a round; its '
    'time for one image is compared.'
    if with_torch and peer_images < images
    else ''
  )
  lines += [
    f'{images} images of {FLAGS.resolution} px, {FLAGS.tto_steps} steps, '
    f'widest layer {FLAGS.channel_max}, {FLAGS.dtype}, {FLAGS.clock} time, '
    f'{FLAGS.rounds} rounds; {speed.machine()}{note}',
    table(found),
    *speed.failures(failed),
  ]
  return '\n\n'.join(line for line in lines if line)


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  # Both sides share a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # PyTorch's waiting threads would spin, see `benchmarks.speed`.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  app.run(main)
