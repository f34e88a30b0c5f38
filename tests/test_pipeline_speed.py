"""The pipeline's speed comparison reads the same and measures in turns."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg.errors import UserError


@pytest.fixture
def speed(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import pipeline_speed

  monkeypatch.setattr(pipeline_speed, 'IMAGES', 12)
  monkeypatch.setattr(pipeline_speed, 'SIDE', 48)
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return pipeline_speed


@pytest.fixture
def root(speed, tmp_path):
  speed.make_folder(tmp_path)
  return tmp_path


def test_both_sides_read_the_same(speed, root):
  speed.check_same(root, 32)


def test_a_difference_is_found(speed, root, monkeypatch):
  read = speed.PlainDataset._read
  monkeypatch.setattr(
    speed.PlainDataset, '_read', lambda *a: (read(*a)[0], read(*a)[1] + 1)
  )
  with pytest.raises(AssertionError):
    speed.check_same(root, 32)


@pytest.mark.parametrize('cache', [False, True])
def test_batches_of_both_sides(speed, root, cache):
  pytest.importorskip('torch', reason='PyTorch is needed to compare with it')
  config = speed.experiment(root, speed.Cell(32, cache, 0))
  ours = speed.jaxseg_side(root, config, 4)
  image, label = next(speed.torch_side(root, config, 4))
  batch = next(ours)
  ours.close()
  assert image.shape == batch['image'].shape == (4, 32, 32, 3)
  assert label.shape == batch['label'].shape == (4, 32, 32)
  assert -1 <= image.min() and image.max() <= 1
  assert str(label.dtype) == 'torch.int32'


def test_measures_in_turns(speed):
  calls = []

  def side(name):
    for _ in itertools.count():
      calls.append(name)
      yield

  clock = iter(np.arange(0, 100, 0.5)).__next__
  rates = speed.measure([side('a'), side('b')], 1, 2, untimed=1, now=clock)
  first, *_ = ''.join(k for k, _ in itertools.groupby(calls))
  assert first == 'a' and len(rates) == 2
  assert ''.join(k for k, _ in itertools.groupby(calls)) == 'abab'
  assert [len(r) for r in rates] == [2, 2]
  assert all(0 < r < 2 for side in rates for r in side)


def test_table(speed):
  cell = speed.Cell(64, True, 2)
  lines = speed.table({cell: [[1000.0, 3000.0], [2000.0, 2000.0]]})
  assert lines.splitlines()[2] == (
    '| 64 | on | 2 | 2,000 | 2,000 | 1.00 (0.50 to 1.50) |'
  )
  alone = speed.table({cell: [[10.0]]}).splitlines()
  assert alone[2] == '| 64 | on | 2 | 10 |'


@pytest.mark.parametrize(
  'name, value', [('workers', ['-1']), ('resolutions', []), ('turns', 0)]
)
def test_mistakes_are_named(speed, name, value):
  assert len(speed.check_flags()) == 18
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=f'--{name} '):
      speed.check_flags()


def test_labels_must_be_files(speed, root, monkeypatch):
  config = speed.experiment(root, speed.Cell(32, False, 0))
  assert len(speed.plain_dataset(root, config)) >= 6
  source = speed.sources.load(config.data)
  monkeypatch.setattr(speed.sources, 'load', lambda _: source)
  for path in (root / 'labels').iterdir():
    path.unlink()
  with pytest.raises(UserError, match='--data: .* no file'):
    speed.plain_dataset(root, config)
