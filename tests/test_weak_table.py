"""The comparison of weak labels: what each training is, and its table."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg.errors import UserError
from jaxseg.losses.regularized import TERMS

CONFIG = Path(__file__).parents[1] / 'configs' / 'weak.py'
WEIGHTS = dict.fromkeys(TERMS, 0.0) | {'crf': 0.5, 'entropy': 0.1, 'ncut': 0.2}


@pytest.fixture
def bench(monkeypatch):
  # Its flags must not stay in the process's.
  monkeypatch.setattr(flags, 'FLAGS', flags.FlagValues())
  from benchmarks import weak

  return weak


@pytest.fixture
def config():
  spec = importlib.util.spec_from_file_location('weak_config', CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config('table,digits,all')


def test_each_system_is_a_config_that_passes(bench, config):
  found = {}
  for system in bench.SYSTEMS:
    c = bench.run_config(bench.alike(config), system, 3, WEIGHTS)
    jaxseg_config.check(c)
    assert (c.seed, c.is_locked) == (3, True)
    groups = [x for x in c.values() if isinstance(x, ConfigDict)]
    assert sum('method' in x for x in groups) == len(c.stages)
    weights = {}
    if 'weak' in c:
      of = c.weak.args.regularizer
      weights = {term: of[term] for term in TERMS if of[term]}
    found[system] = (c.data.weak.kind, weights)
  assert found == {
    'full': ('', {}),
    'pce': ('scribbles', {}),
    'crf': ('scribbles', {'crf': 0.5}),
    'entropy': ('scribbles', {'entropy': 0.1}),
    'ncut': ('scribbles', {'ncut': 0.2}),
    'crf_entropy': ('scribbles', {'crf': 0.5, 'entropy': 0.1}),
    'tags': ('tags', {}),
  }


def test_drawn_scribbles_are_for_scribbles_alone(bench, config):
  config.data.weak.drawn = 'scribbles'
  drawn = lambda system: (
    bench.run_config(bench.alike(config), system, 0, WEIGHTS).data.weak.drawn
  )
  assert drawn('crf') == drawn('pce') == 'scribbles'
  assert drawn('full') == drawn('tags') == ''


def test_tags_have_the_network_and_the_length(bench, config):
  config.weak.total_steps = 70
  config.weak.args.net.width = 24
  config.weak.args.optimizer.lr = 0.5
  c = bench.alike(config)
  for stage in (c.cam, c.sec):
    assert stage.total_steps == 70
    assert (stage.args.net.width, stage.args.optimizer.lr) == (24, 0.5)
  assert config.cam.args.net.width == 16, 'the config itself has changed'


def test_masks_and_scribbles_are_of_the_same_images(bench, config, tmp_path):
  rng = np.random.default_rng(0)
  for i in range(10):
    for folder, there in (
      ('images', True), ('labels', i != 3), ('scribbles', i not in (4, 5)),
    ):  # fmt: skip
      path = tmp_path / folder / f'x{i}.png'
      path.parent.mkdir(exist_ok=True)
      values = rng.integers(0, 2 if folder == 'labels' else 250, (32, 32))
      values[:] = values if folder != 'scribbles' else np.eye(32)
      if there:
        Image.fromarray(values.astype(np.uint8)).save(path)
  names = [f'x{i}' for i in range(10)]
  (tmp_path / 'classes.json').write_text('{"classes": ["ground", "thing"]}')
  splits = {'train': names[:8], 'val': [], 'test': names[8:]}
  (tmp_path / 'splits.json').write_text(json.dumps(splits))
  config.data.source = f'folder:{tmp_path}'
  bench.check_images(config, [0])  # simulated from the masks
  config.data.weak.drawn = 'scribbles'
  with pytest.raises(UserError, match=r'\(3 have one of them, such as x3, x4'):
    bench.check_images(config, [0])
  splits['train'] = names[:3] + names[6:8]
  (tmp_path / 'splits.json').write_text(json.dumps(splits))
  bench.check_images(config, [0])


def test_another_config_is_refused(bench, config):
  config.data.weak.kind = 'clicks'
  with pytest.raises(UserError, match="weak.kind is 'clicks', must be"):
    bench.alike(config)
  alone = jaxseg_config.add_stages(
    jaxseg_config.default(), unet=jaxseg_config.stage('supervised')
  )
  with pytest.raises(UserError, match='stages unet, expected those of configs'):
    bench.alike(alone)


def test_table_of_what_is_done(bench, tmp_path):
  runs = bench.plan(tmp_path, [0, 1])
  assert len(runs) == 2 * len(bench.SYSTEMS)
  for system, seed, folder in runs:
    if system not in ('full', 'tags') or (system, seed) == ('tags', 1):
      continue
    names = ['CAM', 'SEC'] if system == 'tags' else ['Full supervision']
    scores = {
      name: {'scores': {'miou': 0.5 + 0.1 * seed, 'dice_foreground': 0.25}}
      for name in (*names, 'majority class')
    }
    (folder / 'evaluation').mkdir(parents=True)
    (folder / 'evaluation' / 'metrics.json').write_text(
      json.dumps({'results': {'test': scores}})
    )
    (folder / 'done.json').touch()
  text = bench.table(runs)
  rows = [line for line in text.splitlines() if line.startswith('| ')]
  assert '| Full supervision | .550 ± .071 |' in rows
  assert '| CAM (in 1) | .500 |' in rows
  assert [r.split('|')[1].strip() for r in rows[2:5]] == [
    'Full supervision', 'CAM (in 1)', 'SEC (in 1)',
  ]  # fmt: skip
  assert '| Full supervision | .250 ± .000 |' in rows
