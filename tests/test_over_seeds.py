"""Means over runs, from the scores that evaluation writes."""

import json
import statistics
from pathlib import Path

import pytest

from jaxseg.errors import UserError


@pytest.fixture
def over_seeds(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import over_seeds

  return over_seeds


@pytest.fixture
def runs(tmp_path):
  found = []
  for seed, scores in enumerate(
    ({'U-Net': 0.5, 'GCT': 0.625}, {'U-Net': 0.75})
  ):
    folder = tmp_path / f'run_{seed}'
    (folder / 'evaluation').mkdir(parents=True)
    results = {
      split: {
        name: {'key': 'x', 'scores': {'miou': value - k / 4}}
        for name, value in scores.items()
      }
      for k, split in enumerate(('test', 'ood'))
    }
    (folder / 'evaluation/metrics.json').write_text(
      json.dumps({'results': results})
    )
    found.append(str(folder))
  return found


def test_mean_and_spread(over_seeds, runs):
  lines = over_seeds.table(over_seeds.collect(runs, 'miou')).splitlines()
  assert lines[0] == '| | test | ood |'
  spread = f'{statistics.stdev([0.5, 0.75]):.3f}'[1:]
  assert lines[2] == f'| U-Net | .625 ± {spread} | .375 ± {spread} |'
  assert lines[3] == '| GCT (in 1) | .625 | .375 |'


def test_a_run_without_scores(over_seeds, runs, tmp_path):
  with pytest.raises(UserError, match='jaxseg.evaluate --workdir'):
    over_seeds.collect([*runs, str(tmp_path)], 'miou')
