"""Times the inversion of images with a pretrained generator and its encoder.

  python -m benchmarks.inversion_speed --inversion_sizes=256,1024
  python -m benchmarks.inversion_speed --inversion_folder=weights/psp_ffhq

The program is that of `jaxseg.predict --pretrained`. README.md beside this file
says more.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import speed, weight_files
from jaxseg import inference, parallel, predict_inversion, pretrained
from jaxseg.errors import UserError, friendly
from jaxseg.methods import perceptual
from jaxseg.predict_tto import Settings

_FOLDER = flags.DEFINE_string(
  'inversion_folder', '', 'Folder of converted weights; else random ones.'
)
_SIZES = flags.DEFINE_list(
  'inversion_sizes', ['64', '256', '1024'],
  'Sides of the images of generators with random weights.',
)  # fmt: skip
_WIDEST = flags.DEFINE_integer(
  'inversion_widest', 512, 'Channels of their widest layers.'
)
_BATCHES = flags.DEFINE_list(
  'inversion_batches', ['1', '4'], 'Images at a time.'
)
_STEPS = flags.DEFINE_integer('inversion_steps', 100, 'Steps of Adam.')
_ROUNDS = flags.DEFINE_integer('inversion_rounds', 3, 'Measurements of each.')
_KIND = flags.DEFINE_enum(
  'inversion_perceptual', 'random', perceptual.KINDS,
  'Distance; random: LPIPS on a network with random weights.',
)  # fmt: skip


class Timed(NamedTuple):
  """One program.

  Attributes:
    compilation: seconds.
    seconds: for an image, by round.
  """

  compilation: float
  seconds: list[float]


def measure(
  system: predict_inversion.System, steps: int, batch: int, rounds: int
) -> Timed:
  """Compiles the inversion and runs it, once more than it is measured."""
  g = system.modules.g
  shape = (g.resolution, g.resolution, g.channels)
  start = time.perf_counter()
  run = inference.compile_batches(
    predict_inversion.inverter(system, Settings(steps=steps)),
    (system.weights, system.distance_weights),
    shape, batch, parallel.make_mesh(1),
  )  # fmt: skip
  compilation = time.perf_counter() - start
  rng = np.random.default_rng(0)
  images = rng.uniform(-1, 1, (batch, *shape)).astype(np.float32)
  return Timed(compilation, [run(images)[1] for _ in range(rounds + 1)][1:])


def row(name: str, batch: int, steps: int, times: list[Timed]) -> list[str]:
  """Cells of a generator at a batch size.

  Args:
    name: of the generator.
    batch: images at a time.
    steps: of Adam.
    times: of the encoder alone, and with the steps.
  """
  start, all_of_it = (statistics.median(t.seconds) for t in times)
  spread = times[1].seconds
  return [
    name, str(batch), f'{start:.3g}',
    f'{all_of_it:.3g} ({min(spread):.3g} to {max(spread):.3g})',
    f'{(all_of_it - start) / max(1, steps):.3g}',
    f'{sum(t.compilation for t in times):.0f}',
  ]  # fmt: skip


def systems() -> Iterator[tuple[str, predict_inversion.System]]:
  """(name, generator) of what the flags name, one in memory at a time."""
  if _FOLDER.value:
    yield _FOLDER.value, predict_inversion.load(_FOLDER.value, _KIND.value)
    return
  for size in map(int, _SIZES.value):
    with tempfile.TemporaryDirectory() as folder:
      source, output = Path(folder) / 'weights', Path(folder) / 'converted'
      weight_files.write_psp(source, size, _WIDEST.value)
      pretrained.convert('psp', str(source), str(output))
      source.unlink()
      system = predict_inversion.load(output, _KIND.value)
    yield f'pSp, {size} px', system


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  for flag, least in ((_SIZES, 32), (_BATCHES, 1)):
    for text in flag.value:
      if not text.isdecimal() or int(text) < least:
        raise UserError(
          f'--{flag.name} has {text!r}, must be whole numbers from {least}.'
        )
  for size in map(int, _SIZES.value):
    if size & (size - 1):
      raise UserError(f'--inversion_sizes has {size}, must be powers of two.')
  if _WIDEST.value < 128 or _WIDEST.value % 128:
    raise UserError(
      f'--inversion_widest is {_WIDEST.value}, must be a multiple of 128.'
    )
  for flag, least in ((_STEPS, 0), (_ROUNDS, 1)):
    if flag.value < least:
      raise UserError(
        f'--{flag.name} is {flag.value}, must be at least {least}.'
      )


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  steps = _STEPS.value
  rows = [['generator', 'images a time', 'encoder, s an image']]
  rows[0] += [f'with {steps} steps, s an image', 's a step and image']
  rows[0] += ['compilation, s']
  rows.append(['---'] + ['--:'] * (len(rows[0]) - 1))
  for name, system in systems():
    for batch in map(int, _BATCHES.value):
      times = [measure(system, n, batch, _ROUNDS.value) for n in (0, steps)]
      rows.append(row(name, batch, steps, times))
  return (
    f'Distance: {_KIND.value}; medians of {_ROUNDS.value} rounds; '
    f'{speed.machine()}\n\n{speed.markdown(rows)}'
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
