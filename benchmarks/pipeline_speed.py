"""Times jaxseg's data pipeline beside a plain PyTorch DataLoader.

  python -m benchmarks.pipeline_speed --data=FOLDER

Both read the same files with Pillow, resize them with the same filters, which
is compared first, and call the same augmentation (flip, shift, scale, rotation
of image and label). They run in turns (A B A B ...), so that other load on the
machine meets both. With the cache on, both keep resized images in memory, each
worker a copy of its own.
"""

import contextlib
import importlib.util
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg.data import pipeline, sources, splits, transforms
from jaxseg.errors import UserError, friendly

NO_TORCH = (
  'PyTorch is not installed, so only jaxseg runs; `pip install torch` adds the '
  'comparison.'
)
AUGMENT = dict(flip=True, shift=0.05, scale=0.1, rotate=10.0)
IMAGES, SIDE = 256, 384  # of the folder that the program makes
# Batches before each measurement: those read ahead while the other side ran.
UNTIMED = 12

_DATA = flags.DEFINE_string(
  'data', '', "Folder with images/ and labels/; '': one is made for the run."
)
_RESOLUTIONS = flags.DEFINE_list('resolutions', ['64', '128', '256'], 'Sides.')
_WORKERS = flags.DEFINE_list(
  'workers', ['0', '1', '2'], 'Processes that read; 0: those of the program.'
)
_BATCH = flags.DEFINE_integer('batch', 16, 'Labelled images a batch.')
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'Of a measurement.')
_TURNS = flags.DEFINE_integer('turns', 3, 'Measurements a side and row.')


class Cell(NamedTuple):
  """One row of the table."""

  resolution: int
  cache: bool
  workers: int


class PlainDataset:
  """What a PyTorch user writes: Pillow, NumPy, one image an index."""

  def __init__(
    self,
    files: Sequence[tuple[str, str]],
    resolution: int,
    cache: bool,
    augment: Any,
  ):
    self._files = files
    self._size = resolution, resolution
    self._augment = augment
    self._rng = np.random.default_rng()
    self._kept = [self._read(i) for i in range(len(files))] if cache else None

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
    image, label = self._kept[i] if self._kept else self._read(i)
    image = transforms.normalise(image)
    if self._augment is not None:
      image, label = transforms.augment(image, label, self._rng, self._augment)
    return image, label.astype(np.int32)

  def _read(self, i):
    image, label = self._files[i]
    with Image.open(image) as opened:
      image = opened.convert('RGB').resize(self._size, Image.Resampling.LANCZOS)
    with Image.open(label) as opened:
      label = opened.resize(self._size, Image.Resampling.NEAREST)
    return np.array(image), np.array(label)


def make_folder(root: pathlib.Path) -> None:
  """Writes JPEG images of blobs and noise with their PNG labels."""
  rng = np.random.default_rng(0)
  for name in ('images', 'labels'):
    (root / name).mkdir()
  y, x = np.ogrid[:SIDE, :SIDE]
  for i in range(IMAGES):
    label = np.zeros((SIDE, SIDE), np.uint8)
    for class_id in (1, 2, 3):
      cy, cx, r = rng.uniform(0.2, 0.8, 3) * SIDE
      label[(y - cy) ** 2 + (x - cx) ** 2 < (r / 3) ** 2] = class_id
    colours = rng.uniform(40, 215, (4, 3))
    image = colours[label] + rng.normal(0, 12, (SIDE, SIDE, 3))
    image = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    image.save(root / f'images/{i:04d}.jpg', quality=90)
    Image.fromarray(label).save(root / f'labels/{i:04d}.png')


def experiment(root: pathlib.Path, cell: Cell, augmented: bool = True) -> Any:
  """Returns the config of a cell, all images labelled."""
  c = jaxseg_config.default().unlock()
  c.data.source = f'folder:{root}'
  c.data.resolution = cell.resolution
  c.data.fit = 'squeeze'
  c.data.num_labelled = 0
  c.data.cache = cell.cache
  c.data.workers = cell.workers
  if augmented:
    c.data.augment.update(AUGMENT)
  return c.lock()


def jaxseg_side(root: pathlib.Path, config: Any, batch_size: int) -> Iterator:
  """Returns jaxseg's batches; the cache is full if there is one."""
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  if config.data.cache and not config.data.workers:
    for _ in pipeline.eval_batches(source, drawn.labelled, config, batch_size):
      pass
  return pipeline.train_batches(
    source, drawn, config,
    batch_size=batch_size, unlabelled_batch_size=0, seed=0,
  )  # fmt: skip


def plain_dataset(root: pathlib.Path, config: Any) -> PlainDataset:
  """Returns the other side's data set, of the same images.

  Raises:
    UserError: a label that is no image file of its image's name.
  """
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  labels = {p.stem: p for p in (root / 'labels').iterdir()}
  missing = [id_ for id_ in drawn.labelled if id_ not in labels]
  if missing:
    raise UserError(
      f'--data: {root}/labels has no file {missing[0]}.png, expected one for '
      'each labelled image; volumes cannot be timed.'
    )
  files = [(source.path(i), str(labels[i])) for i in drawn.labelled]
  augment = config.data.augment
  if transforms.is_identity(augment):
    augment = None
  return PlainDataset(files, config.data.resolution, config.data.cache, augment)


def torch_side(root: pathlib.Path, config: Any, batch_size: int) -> Iterator:
  """Returns an endless DataLoader; its workers are fresh processes."""
  import torch

  torch.set_num_threads(1)
  dataset = plain_dataset(root, config)
  workers = config.data.workers
  # Drawn with replacement, so that no end of an epoch holds it up.
  sampler = torch.utils.data.RandomSampler(
    dataset, replacement=True, num_samples=10**9
  )
  return iter(
    torch.utils.data.DataLoader(
      dataset,
      batch_size,
      sampler=sampler,
      num_workers=workers,
      multiprocessing_context='spawn' if workers else None,
    )
  )


def check_same(root: pathlib.Path, resolution: int) -> None:
  """Compares what both sides read, without augmentation.

  Raises:
    AssertionError: an image or label differs.
  """
  config = experiment(root, Cell(resolution, False, 0), augmented=False)
  source = sources.load(config.data)
  ids = splits.make_splits(source, config.data, 0).labelled[:8]
  (batch,) = pipeline.eval_batches(source, ids, config, len(ids))
  dataset = plain_dataset(root, config)
  for i in range(len(ids)):
    image, label = dataset[i]
    np.testing.assert_array_equal(image, batch['image'][i])
    np.testing.assert_array_equal(label, batch['label'][i])


def measure(
  sides: Sequence[Iterator],
  seconds: float,
  rounds: int,
  untimed: int = UNTIMED,
  now: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
  """Draws batches of the sides in turns.

  Args:
    sides: endless iterators of batches.
    seconds: of one measurement.
    rounds: measurements of each side.
    untimed: batches before each.
    now: the clock.

  Returns:
    for each side the batches a second, by round.
  """
  rates = [[] for _ in sides]
  for _ in range(rounds):
    for side, collected in zip(sides, rates, strict=True):
      for _ in itertools.islice(side, untimed):
        pass
      start, count = now(), 0
      while now() - start < seconds:
        next(side)
        count += 1
      collected.append(count / (now() - start))
  return rates


def table(rates: dict[Cell, list[list[float]]]) -> str:
  """Markdown: images a second of both sides and their ratio.

  Args:
    rates: images a second of jaxseg and, where it ran, of PyTorch, by round.
  """
  rows = [
    ['side', 'cache', 'workers', 'jaxseg, images/s'],
    ['--:', '---', '--:', '--:'],
  ]
  if any(len(both) > 1 for both in rates.values()):
    rows[0] += ['PyTorch, images/s', 'jaxseg / PyTorch, median (range)']
    rows[1] += ['--:', '--:']
  for cell, both in rates.items():
    row = [cell.resolution, 'on' if cell.cache else 'off', cell.workers]
    row += [f'{statistics.median(side):,.0f}' for side in both]
    if len(both) > 1:
      ratios = [a / b for a, b in zip(*both, strict=True)]
      row.append(
        f'{statistics.median(ratios):.2f} '
        f'({min(ratios):.2f} to {max(ratios):.2f})'
      )
    rows.append(row)
  return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in rows)


def check_flags() -> list[Cell]:
  """Returns the rows that the flags ask for.

  Raises:
    UserError: a value that cannot work.
  """
  for flag in (_BATCH, _TURNS, _SECONDS):
    if flag.value <= 0:
      raise UserError(f'--{flag.name} is {flag.value}, must be above 0.')
  for flag, least in ((_RESOLUTIONS, 1), (_WORKERS, 0)):
    wrong = [v for v in flag.value if not v.isdigit() or int(v) < least]
    if wrong or not flag.value:
      raise UserError(
        f'--{flag.name} has {wrong[0] if wrong else "nothing"!r}, must be '
        f'whole numbers of at least {least}, separated by commas.'
      )
  return [
    Cell(int(resolution), cache, int(workers))
    for resolution in _RESOLUTIONS.value
    for cache in (False, True)
    for workers in _WORKERS.value
  ]


def run(root: pathlib.Path) -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  cells = check_flags()
  with_torch = importlib.util.find_spec('torch') is not None
  makers = [jaxseg_side, torch_side][: 1 + with_torch]
  check_same(root, cells[0].resolution)
  rates = {}
  for cell in cells:
    config = experiment(root, cell)
    print(f'jaxseg: {cell}', file=sys.stderr)
    both = [make(root, config, _BATCH.value) for make in makers]
    found = measure(both, _SECONDS.value, _TURNS.value)
    rates[cell] = [[r * _BATCH.value for r in side] for side in found]
    both[0].close()
    del both  # ends PyTorch's workers
  about = (
    f'{_DATA.value or f"{IMAGES} made images of {SIDE}x{SIDE}"}, batches of '
    f'{_BATCH.value}, {_TURNS.value} turns of {_SECONDS.value:g} s, '
    f'{os.cpu_count()} cores'
    + (f', PyTorch {sys.modules["torch"].__version__}.' if with_torch else '.')
  )
  return '\n\n'.join([about if with_torch else NO_TORCH, table(rates)])


def main(argv: Sequence[str]) -> None:
  with friendly(), contextlib.ExitStack() as stack:
    if argv[1:]:
      raise UserError(f'{argv[1]!r} is no flag; see --help.')
    root = pathlib.Path(_DATA.value).expanduser()
    if not _DATA.value:
      made = tempfile.TemporaryDirectory(prefix='jaxseg_pipeline_')
      root = pathlib.Path(stack.enter_context(made))
      make_folder(root)
    print(run(root))


if __name__ == '__main__':
  app.run(main)
