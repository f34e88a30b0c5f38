"""The speed comparison compares the same computation."""

from pathlib import Path

import pytest


@pytest.fixture
def speed(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import speed

  return speed


def test_both_sides_compute_the_same(speed):
  pytest.importorskip('torch', reason='PyTorch is needed to compare with it')
  assert 'agree' in speed.check_outputs(resolution=16)


def test_measures_in_turns(speed):
  calls = []
  side = lambda name: {'case': lambda: calls.append(name)}
  times = speed.measure([side('a'), side('b')], rounds=2, repeats=1)
  assert ''.join(calls) == 'ab' + 'abab'
  assert [len(t['case']) for t in times] == [2, 2]


def test_amortised_and_table(speed):
  ours = {'gan_step': [2.0], 'r1_step': [18.0], 'path_step': [6.0]}
  theirs = {case: [3 * t for t in ms] for case, ms in ours.items()}
  for times in (ours, theirs):
    speed.add_amortised(times)
  assert ours['gan_amortised'] == [4.0]
  lines = speed.table(['gan_amortised'], [ours, theirs], absolute=True)
  assert lines.splitlines()[2] == (
    '| gan_amortised | 1 | 3.00 (3.00 to 3.00) | 4.0 (4.0) | 12.0 (12.0) |'
  )
