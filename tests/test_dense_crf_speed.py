"""The comparison of the lattice with the sum over all pairs."""

from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg.errors import UserError


@pytest.fixture
def benchmark(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import dense_crf

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return dense_crf


def test_photographs_need_no_download(benchmark):
  for name in benchmark.PHOTOGRAPHS:
    image = benchmark.photograph(name, 16)
    assert image.shape == (1, 16, 16, 3) and image.dtype == np.float32
    assert -1 <= image.min() < -0.2 and 0.2 < image.max() <= 1


def test_sides_take_turns(benchmark, monkeypatch):
  calls, clock = [], iter(range(100))
  runs = [lambda: calls.append('a'), lambda: calls.append('b')]
  monkeypatch.setattr(benchmark, '_AT_LEAST', 0.0)
  times = benchmark.measure(runs, 3, 1e9, lambda: next(clock))
  assert calls == ['a', 'b'] * 4 and times == [[1] * 3] * 2
  calls.clear()
  times = benchmark.measure(runs, 3, 0.0, lambda: next(clock))
  assert calls == ['a', 'b'] * 2 and times == [[1]] * 2


def test_report(benchmark):
  with flagsaver.flagsaver(sizes=['16'], rounds=1, error_size=0, clock='wall'):
    report = benchmark.run()
  assert report.splitlines()[-1].startswith('| 16x16 | ')


def test_errors_are_those_of_the_lattice(benchmark):
  """At 32x32; the factor is near that of larger photographs."""
  errors = benchmark.errors_of('astronaut', 32)
  assert set(errors) == set(benchmark.ERRORS)
  assert errors['after scaling'] < 0.15 < 0.3 < errors['relative L2'] < 0.6
  assert 0.4 < errors['association'] < 0.7
  assert errors['row-normalised'] < 0.01


@pytest.mark.parametrize('name, value', (
  ('sizes', []), ('sizes', ['128', 'x']), ('sizes', ['4']),
  ('error_size', 4), ('rounds', 0),
))  # fmt: skip
def test_mistakes_are_named(benchmark, name, value):
  benchmark.check_flags()
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=f'--{name} '):
      benchmark.check_flags()
