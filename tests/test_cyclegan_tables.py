"""CycleGAN's tables: what is trained, what is read, what is refused."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxseg import train
from jaxseg.errors import UserError
from jaxseg.stage import Diverged

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
  monkeypatch.syspath_prepend(ROOT)
  from benchmarks import cyclegan

  return cyclegan


@pytest.fixture
def tables(monkeypatch):
  monkeypatch.syspath_prepend(ROOT)
  from benchmarks import cyclegan_tables

  return cyclegan_tables


@pytest.fixture
def config():
  path = ROOT / 'configs' / 'cyclegan.py'
  spec = importlib.util.spec_from_file_location('cyclegan_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config('digits')


# Classes 0, 1, 2; of another quality for each number of right pixels.
def matrix(right):
  return [[40, 10, 0], [20 - right, right, 0], [0, 5, 5]]


def mious(right):
  """(mIoU, the published code's without background), by hand."""
  ious = [40 / (70 - right), right / (20 + 15), 5 / 10]
  return sum(ious) / 3, (right / (right + 5) + 5 / 10) / 2


def write_run(run, right, splits=('test',), done=True, miou=None):
  """What training and evaluation leave."""
  (run.folder / 'evaluation').mkdir(parents=True)
  scores = {
    'confusion_matrix': matrix(right), 'dice_foreground': 0.5, 'images': 7,
    'miou': mious(right)[0] if miou is None else miou,
  }  # fmt: skip
  by_name = {'majority class': {'scores': {}}, 'CycleGAN': {'scores': scores}}
  results = {'results': dict.fromkeys(splits, by_name)}
  path = run.folder / 'evaluation' / 'metrics.json'
  path.write_text(json.dumps(results))
  (run.folder / 'splits.json').write_text(json.dumps({'labelled': ['a', 'b']}))
  if done:
    (run.folder / 'done.json').write_text('{}')


def test_plan(bench, tmp_path):
  runs = bench.plan(tmp_path, [10, 50], 20, [0, 3])
  assert len({r.folder for r in runs}) == len(runs) == 2 * (1 + 3 * 2 + 4)
  # All seeds of the first table come before the ablation.
  stages = [r.stage for r in runs]
  assert stages.index('no_cycle_s') == 2 * 7
  of = lambda seed: {(r.stage, r.percent) for r in runs if r.seed == seed}
  assert of(0) == of(3) == {
    ('full', 100), *((s, p) for s in ('partial', 'cyclegan')
                     for p in (10, 20, 50)),
    *((s, 20) for s in bench.ABLATION),
  }  # fmt: skip
  assert len(bench.plan(tmp_path, [10], 0, [0])) == 3


def test_config_of_a_run(bench, config, tmp_path):
  runs = {(r.stage, r.percent): r for r in bench.plan(tmp_path, [10], 20, [5])}
  c = bench.run_config(config, runs['cyclegan', 10])
  assert (c.seed, c.stages, c.data.labelled_fraction) == (5, ('cyclegan',), 0.1)
  assert c.eval.max_images == 0 and c.is_locked
  c = bench.run_config(config, runs['full', 100])
  assert (c.data.labelled_fraction, c.data.num_labelled) == (0, 0)
  assert config.eval.max_images > 0, 'the config itself has changed'


def test_means_and_gains(tables, bench, tmp_path):
  right = {
    ('full', 0): 18, ('partial', 0): 10, ('partial', 1): 12,
    ('cyclegan', 0): 14, ('cyclegan', 1): 13, ('no_cycle_s', 1): 11,
  }  # fmt: skip
  runs = bench.plan(tmp_path, [], 20, [0, 1])
  for run in runs:
    if (run.stage, run.seed) in right:
      write_run(run, right[run.stage, run.seed])
  text = tables.tables(runs, '')
  row = lambda start: next(
    [cell.strip() for cell in line.split('|')[1:-1]]
    for line in text.splitlines()
    if start in line
  )
  show = lambda x: f'{x:.3f}'.removeprefix('0')

  def cell(values):
    spread = np.std(values, ddof=1)
    return f'{show(np.mean(values))} ± {show(spread)}'

  both = {s: [mious(right[s, k]) for k in (0, 1)]
          for s in ('partial', 'cyclegan')}  # fmt: skip
  found = row('CycleGAN')
  assert found[:3] == ['20 %', '2', 'CycleGAN']
  assert found[3] == cell([m for m, _ in both['cyclegan']])
  gains = [a[0] - b[0] for a, b in zip(both['cyclegan'], both['partial'],
                                       strict=True)]  # fmt: skip
  assert found[4] == '+' + cell(gains)
  assert found[6] == cell([p for _, p in both['cyclegan']])
  assert row('Partial')[4] == ''
  assert row('Full')[:4] == ['100 %', '2', 'Full (in 1)', show(mious(18)[0])]
  # Paired with the seed that there is.
  assert row('without L_cycle^S')[0] == 'without L_cycle^S (in 1)'
  change = mious(11)[0] - mious(13)[0]
  assert row('without L_cycle^S')[2] == '-' + show(-change)
  assert row('without L_disc^I')[1:5] == ['', '', '', '']
  assert row('all terms')[5] == '.298'
  assert 'no background' in text and 'seeds 0, 1' in text


def test_the_papers_numbers_and_metric(tables, bench, tmp_path):
  runs = bench.plan(tmp_path, [20], 0, [0])
  for run in runs:
    write_run(run, 15)
  text = tables.tables(runs, 'acdc')
  lines = [line for line in text.splitlines() if line.startswith('| 20 %')]
  assert [line.split('|')[-2].strip() for line in lines] == ['.864', '.869']
  assert 'all classes' in text and '| .898 |' in text
  assert '.898' not in tables.tables(runs, 'voc2012')
  for run in runs:
    path = run.folder / 'evaluation' / 'metrics.json'
    path.write_text(path.read_text().replace('"test"', '"ood_other"'))
  assert '.898' not in tables.tables(runs, 'acdc')
  # Then the published metric is the mIoU.
  cells = [cell.strip() for cell in lines[0].split('|')]
  assert cells[4] == cells[7]


def test_what_is_not_done_is_not_read(tables, bench, tmp_path):
  run = bench.plan(tmp_path, [20], 0, [0])[1]
  write_run(run, 15, done=False)
  assert tables.read(run, slice(None)) == {}


def test_a_score_that_is_none(tables, bench, tmp_path):
  run = bench.plan(tmp_path, [20], 0, [0])[1]
  write_run(run, 15)
  path = run.folder / 'evaluation' / 'metrics.json'
  text = path.read_text().replace('ound": 0.5', 'ound": null')
  path.write_text(text)
  assert math.isnan(tables.read(run, slice(None))['test'].dice)
  assert 'nan' in tables.tables([run], '')


def test_only_what_is_missing_is_trained(bench, config, tmp_path, monkeypatch):
  trained, shown = [], []

  def fake(c, folder):
    trained.append((c.stages, c.data.labelled_fraction))
    if c.stages == ('partial',):
      raise Diverged('partial diverged at step 3')
    Path(folder).mkdir(parents=True, exist_ok=True)

  monkeypatch.setattr(train, 'train', fake)
  trainings = bench.trainings
  monkeypatch.setattr(trainings.workdir, 'refuse_other_config', lambda *_: None)
  run_all = lambda show: trainings.run_all(
    [(run.folder, bench.run_config(config, run)) for run in runs], show
  )
  runs = bench.plan(tmp_path, [50], 0, [0])
  bad = run_all(lambda: shown.append(1))
  assert trained == [
    (('full',), 0.0),
    (('partial',), 0.5),
    (('cyclegan',), 0.5),
  ]
  assert len(shown) == 3
  assert len(bad) == 1 and '50_partial: partial diverged at step 3' in bad[0]
  trained.clear()
  run_all(lambda: None)
  assert trained == [(('partial',), 0.5)]
  # A marker of another config does not count.
  config.eval.splits = ('test',)
  trained.clear()
  run_all(lambda: None)
  assert len(trained) == 3


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c: c.cyclegan.update({'total_steps': 7}),
     'config.full.total_steps is 600, expected.*7'),
    (lambda c: c.cyclegan.args.net.update({'width': 9}),
     'config.full.args.net.width is 16, .*set it for all stages'),
    (lambda c: c.no_disc_s.args.update({'lambda_1': 3.0}),
     'config.no_disc_s.args.lambda_1 is 3.0'),
  ],
)  # fmt: skip
def test_unlike_stages_are_refused(bench, config, change, message):
  bench.check_alike(config)
  change(config)
  with pytest.raises(UserError, match=message):
    bench.check_alike(config)


def test_another_config_is_refused(bench):
  from jaxseg import config as jaxseg_config

  with pytest.raises(UserError, match="no stage 'full'.*cyclegan.py"):
    bench.check_alike(jaxseg_config.default())


@pytest.mark.parametrize('text', ['ten', '-1', '100', ''])
def test_fractions_are_whole_numbers(bench, text):
  parse = bench.trainings.parse_numbers
  assert parse('fractions', ['10', '50', '10'], 1, 99) == [10, 50]
  with pytest.raises(UserError, match='--fractions holds.*from 1 to 99'):
    parse('fractions', ['10', text], 1, 99)
