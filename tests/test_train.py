"""The loop: exact resume, signals, nan, records, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg import guard, loop, runtime, train, writers
from jaxseg import workdir as workdirs
from jaxseg.errors import DataError, UserError
from jaxseg.resources import NotEnough
from jaxseg.stage import Diverged

ROOT = Path(__file__).parents[1]
STAGES = ('gan', 'encoder', 'unet')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """24 grey squares on darker noise, 16 of them with a label."""
  path = tmp_path_factory.mktemp('squares')
  (path / 'images').mkdir()
  (path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for i in range(24):
    image = rng.integers(0, 80, (32, 32), np.uint8)
    top, left = rng.integers(2, 16, 2)
    label = np.zeros((32, 32), np.uint8)
    label[top : top + 12, left : left + 12] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(path / 'images' / f'{i:02d}.png')
    if i < 16:
      Image.fromarray(label).save(path / 'labels' / f'{i:02d}.png')
  return path


def run(config, workdir, **kwargs):
  train.train(config, str(workdir), **kwargs)


@pytest.fixture(scope='module')
def straight(folder, tmp_path_factory):
  """A workdir trained without interruption."""
  workdir = tmp_path_factory.mktemp('straight')
  run(tiny_config.get_config(str(folder)), workdir, evaluate_after=True)
  return workdir


def command(folder, workdir, *more):
  return [
    sys.executable, '-m', 'jaxseg.train', f'--workdir={workdir}',
    f'--config=tests/tiny_config.py:{folder}', '--noevaluate', *more,
  ]  # fmt: skip


def arrays(tree):
  is_key = lambda x: jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(
    lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree
  )


def assert_same_run(one, other):
  a, b = workdirs.load(one), workdirs.load(other)
  for stage in STAGES:
    jax.tree.map(
      np.testing.assert_array_equal,
      arrays(a.stages[stage].state), arrays(b.stages[stage].state),
    )  # fmt: skip
    name = f'{stage}/metrics.jsonl'
    assert (one / name).read_text() == (other / name).read_text()


def wait_for(path, process, seconds=1200):
  end = time.monotonic() + seconds
  while not path.exists():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end, f'{path} did not appear'
    time.sleep(0.02)


def test_killed_twice_and_continued_is_bit_for_bit_the_same(
  folder, straight, tmp_path
):
  for stage in ('gan', 'encoder'):
    process = subprocess.Popen(
      command(folder, tmp_path), cwd=ROOT, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for(tmp_path / stage / 'checkpoints' / '2', process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  run(tiny_config.get_config(str(folder)), tmp_path, evaluate_after=False)
  assert_same_run(straight, tmp_path)


def test_records_of_a_run(straight):
  for stage in STAGES:
    lines = [
      json.loads(line)
      for line in (straight / stage / 'metrics.jsonl').read_text().splitlines()
    ]
    assert [line['step'] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert list((straight / stage).glob('events.out.tfevents.*'))
    pictures = sorted(p.name for p in (straight / stage / 'samples').iterdir())
    assert pictures == ['samples_0000003.png', 'samples_0000006.png']
    kept = {int(p.name) for p in (straight / stage / 'checkpoints').iterdir()
            if p.name.isdigit()}  # fmt: skip
    assert kept == {4, 6}
  assert json.loads((straight / 'timing.json').read_text()).keys() == set(
    STAGES
  )


def test_evaluation_at_the_end(straight):
  metrics = json.loads((straight / 'evaluation' / 'metrics.json').read_text())
  text = json.dumps(metrics)
  for row in ('U-Net', 'Ours-NO', 'Ours'):
    assert row in text
  assert '<html' in (straight / 'evaluation' / 'report.html').read_text()


def test_finished_run_does_nothing(folder, straight):
  before = (straight / 'gan' / 'metrics.jsonl').stat().st_mtime_ns
  run(tiny_config.get_config(str(folder)), straight, evaluate_after=False)
  assert (straight / 'gan' / 'metrics.jsonl').stat().st_mtime_ns == before


def unet_config(folder, **changes):
  c = tiny_config.get_config(str(folder))
  with c.unlocked():
    c.stages = ('unet',)
    c.unet.update(changes)
  return c


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM'])
def test_signal_saves_and_says_how_to_continue(
  folder, straight, tmp_path, monkeypatch, name
):
  log = loop.Loop.log

  def log_and_signal(self, step, *args):
    log(self, step, *args)
    if step == 3:
      signal.raise_signal(getattr(signal, name))

  # The stage's place decides its random numbers, so all stages stay.
  config = tiny_config.get_config(str(folder))
  for stage in ('gan', 'encoder'):
    os.makedirs(tmp_path / stage)
    os.symlink(
      straight / stage / 'checkpoints', tmp_path / stage / 'checkpoints'
    )
  monkeypatch.setattr(loop.Loop, 'log', log_and_signal)
  with pytest.raises(runtime.Interrupted, match='step 3.*again to continue'):
    run(config, tmp_path, evaluate_after=False)
  monkeypatch.setattr(loop.Loop, 'log', log)
  assert (tmp_path / 'unet' / 'checkpoints' / '3').is_dir()
  run(config, tmp_path, evaluate_after=False)
  name = 'unet/metrics.jsonl'
  assert (tmp_path / name).read_text() == (straight / name).read_text()


def poison(monkeypatch, bad):
  """Makes every `bad`-th batch drawn, and those it says, hold nan."""
  put_batch = train.parallel.put_batch
  seen = []

  def poisoned(batch, mesh, **kwargs):
    seen.append(1)
    if bad(len(seen)):
      batch = {**batch, 'image': np.full_like(batch['image'], np.nan)}
    return put_batch(batch, mesh, **kwargs)

  monkeypatch.setattr(train.parallel, 'put_batch', poisoned)


def test_nan_in_one_batch_costs_one_step(folder, tmp_path, monkeypatch, capsys):
  poison(monkeypatch, lambda n: n == 4)
  run(unet_config(folder), tmp_path, evaluate_after=False)
  lines = (tmp_path / 'unet' / 'metrics.jsonl').read_text().splitlines()
  lost = [json.loads(line)['ce'] is None for line in lines]
  assert lost == [False, False, False, True, False, False]
  told = capsys.readouterr().out
  assert 'unet step 4: ce, dice not finite, the step was left out' in told
  state = workdirs.load(tmp_path).stages['unet'].state
  assert int(state.step) == 6 and bool(guard.all_finite(state.params))


def test_nan_for_ever_goes_back_three_times_and_keeps_the_good_one(
  folder, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(loop, 'MAX_SKIPPED', 2)
  poison(monkeypatch, lambda n: n >= 4)
  seeds = []
  train_batches = train.pipeline.train_batches

  def drawn(*args, seed, **kwargs):
    seeds.append(seed)
    return train_batches(*args, seed=seed, **kwargs)

  monkeypatch.setattr(train.pipeline, 'train_batches', drawn)
  with pytest.raises(Diverged) as caught:
    run(unet_config(folder), tmp_path)
  message = str(caught.value)
  # Step 4 had no effect, but what it began with was fine and is saved.
  assert 'step 6' in message and 'ce' in message and 'of step 4' in message
  assert caught.value.exit_code == 6
  assert 'back to step 4, with the data in another order (3 of 3' in (
    capsys.readouterr().out
  )
  assert len(set(seeds)) == 4
  state = workdirs.load(tmp_path).stages['unet'].state
  assert int(state.step) == 4
  assert bool(guard.all_finite(state.params))


def test_a_state_that_went_bad_is_not_saved(folder, tmp_path, monkeypatch):
  finite, asked = guard.all_finite, []

  def once(tree):
    asked.append(1)
    return finite(tree) if len(asked) != 2 else False

  monkeypatch.setattr(guard, 'all_finite', once)
  run(unet_config(folder), tmp_path, evaluate_after=False)
  # Steps 2, 4 (bad: back to 2), 4, 6.
  assert len(asked) == 4
  state = workdirs.load(tmp_path).stages['unet'].state
  assert int(state.step) == 6
  expected = [1, 2, 3, 4, 5, 6]
  lines = (tmp_path / 'unet' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == expected


def test_several_steps_in_one_program_are_those_one_by_one(folder, tmp_path):
  lines = {}
  for steps in (1, 3):
    c = unet_config(
      folder, steps_per_dispatch=steps, log_every=3, checkpoint_every=6
    )
    run(c, tmp_path / str(steps), evaluate_after=False)
    path = tmp_path / str(steps) / 'unet' / 'metrics.jsonl'
    lines[steps] = [json.loads(x) for x in path.read_text().splitlines()]
  assert [x['step'] for x in lines[3]] == [3, 6]
  for one, other in zip(lines[1], lines[3], strict=True):
    np.testing.assert_allclose(
      list(one.values()), list(other.values()), rtol=1e-4
    )


def test_a_checkpoint_between_two_programs_is_told(folder, tmp_path):
  c = unet_config(folder, checkpoint_every=3)
  run(c, tmp_path, evaluate_after=False)
  shutil.rmtree(tmp_path / 'unet' / 'checkpoints' / '6')
  c = unet_config(folder, checkpoint_every=2, log_every=2, picture_every=0,
                  steps_per_dispatch=2)  # fmt: skip
  with pytest.raises(UserError, match='is of step 3, no multiple of it'):
    run(c, tmp_path, evaluate_after=False)


def test_the_best_on_validation_is_kept(folder, tmp_path, monkeypatch):
  scores = iter([0.2, 0.9, 0.4])
  score = loop.Loop.score
  found = []

  def scored(self, state):
    found.append(score(self, state))
    return next(scores)

  monkeypatch.setattr(loop.Loop, 'score', scored)
  config = unet_config(folder, keep_best=1, keep_checkpoints=1)
  with config.unlocked():
    config.data.val_fraction = 0.3
  run(config, tmp_path, evaluate_after=False)
  assert all(0 <= value <= 1 for value in found) and len(found) == 3
  folders = (tmp_path / 'unet' / 'checkpoints').iterdir()
  assert {int(p.name) for p in folders} == {4, 6}
  steps = {
    which: int(workdirs.load(tmp_path, (), which).stages['unet'].state.step)
    for which in ('newest', 'best', '4')
  }
  assert steps == {'newest': 6, 'best': 4, '4': 4}
  with pytest.raises(UserError, match="no checkpoint '5', expected .* 4, 6"):
    workdirs.load(tmp_path, (), '5')
  lines = (tmp_path / 'unet' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(x)['val_miou'] for x in lines if 'val_miou' in x] == found


def test_the_best_needs_validation_images(folder, tmp_path):
  c = unet_config(folder, keep_best=1)
  c.data.val_fraction = 0.0
  with pytest.raises(UserError, match='no validation images.*val_fraction'):
    run(c, tmp_path)
  assert not (tmp_path / 'unet').exists()


def test_data_that_vanish_cost_no_step(folder, tmp_path, monkeypatch):
  batches = train.Data.batches

  class Ending:
    def __init__(self, real):
      self.real, self.left = real, 3
      self.state, self.close = real.state, real.close

    def __next__(self):
      self.left -= 1
      if self.left < 0:
        raise DataError('image.png: gone, expected an image; put it back')
      return next(self.real)

  monkeypatch.setattr(
    train.Data, 'batches', lambda *args: Ending(batches(*args))
  )
  with pytest.raises(DataError, match=r'image\.png'):
    run(unet_config(folder), tmp_path)
  assert int(workdirs.load(tmp_path).stages['unet'].state.step) == 3


def test_a_second_training_of_the_workdir_is_refused(folder, tmp_path):
  with runtime.locked(tmp_path):
    with pytest.raises(runtime.Locked, match='in use by process'):
      run(unet_config(folder), tmp_path)


def test_disk_and_memory_are_checked_before(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(train.resources, 'memory', lambda: 1000)
  with pytest.raises(NotEnough, match='unet needs at least'):
    run(unet_config(folder), tmp_path)
  assert not (tmp_path / 'config.json').exists()


def test_workdir_of_another_config_is_refused(folder, straight):
  c = tiny_config.get_config(str(folder))
  c.gan.args.r1_gamma = 3.0
  with pytest.raises(UserError, match=r'gan\.args\.r1_gamma was 10\.0.*3\.0'):
    run(c, straight)
  c = tiny_config.get_config(str(folder))
  c.seed = 1
  with pytest.raises(UserError, match='seed'):
    run(c, straight)


def test_test_time_optimisation_may_change_after_training(
  folder, straight, tmp_path
):
  workdir = shutil.copytree(straight, tmp_path / 'copy')
  c = tiny_config.get_config(str(folder))
  c.encoder.args.refine_steps = 1
  c.encoder.args.refine_regularizer.crf = 0.5
  run(c, workdir, evaluate_after=False)
  args = workdirs.load_config(workdir).encoder.args
  assert (args.refine_steps, args.refine_regularizer.crf) == (1, 0.5)
  assert_same_run(straight, workdir)
  c.encoder.args.refine_lambda_l2 = 0.5
  with pytest.raises(UserError, match='refine_lambda_l2 was'):
    run(c, workdir)


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    ('data.resolution', 48, 'data.resolution is 48.*power of two.*32'),
    ('data.width', 64, 'data.width 64, but config.gan .*draws squares'),
    ('data.channels', 2, 'data.channels is 2'),
    ('data.num_labelled', 500, '500'),
    ('data.source', 'folder:/nowhere/at/all', '/nowhere/at/all'),
    ('data.source', 'imagenet', 'imagenet.*digits'),
    ('gan.total_steps', 0, 'gan.total_steps is 0.*at least 1'),
    ('gan.args.lr_g', float('nan'), 'gan.args.lr_g is nan'),
    ('gan.args.r1_gamma', -1.0, 'r1_gamma is -1.0'),
    ('encoder.init_from', 'unet', "init_from is 'unet'.*earlier stage"),
    ('eval.splits', ('tset',), 'tset.*test'),
    ('mesh.data', 999, '999'),
    ('mesh.model', 0, 'mesh.model is 0.*at least 1'),
    ('unet.steps_per_dispatch', 4, 'total_steps is 6.*steps_per_dispatch, 4'),
    ('gan.keep_best', 1, 'semantic_gan labels no images'),
  ],
)
def test_bad_config_is_one_sentence_before_training(
  folder, tmp_path, path, value, message
):
  c = tiny_config.get_config(str(folder))
  with c.ignore_type():
    c.update_from_flattened_dict({path: value})
  with pytest.raises(UserError, match=message):
    run(c, tmp_path)
  assert not (tmp_path / 'gan').exists()


def test_weights_of_begun_stages_may_be_gone(tmp_path):
  net = {'arch': 'segnet', 'width': 2, 'weights': 'gone.pth'}
  c = jaxseg_config.add_stages(
    jaxseg_config.default(), first=jaxseg_config.stage('supervised', net=net)
  )
  jaxseg_config.check(c)
  with pytest.raises(UserError, match='gone.pth are not a file'):
    train.check_weights(c, tmp_path)
  os.makedirs(workdirs.checkpoint_folder(tmp_path, 'first') / '5')
  train.check_weights(c, tmp_path)
  workdirs.abstract_state(c, 'first', 2)  # as `jaxseg.load` does


def test_unlike_networks_are_refused_before_training():
  stage = jaxseg_config.stage
  c = jaxseg_config.add_stages(
    jaxseg_config.default(),
    first=stage('supervised', net={'width': 4, 'depth': 1}),
    bcp=stage('bcp', init_from='first', net={'width': 4, 'depth': 1}),
  )
  train.check_transfers(c, 2)
  with c.unlocked():
    c.bcp.args.net.width = 6
  with pytest.raises(UserError, match='another network: .* give both stages'):
    train.check_transfers(c, 2)
  c = jaxseg_config.add_stages(
    jaxseg_config.default(),
    first=stage('supervised', net={'arch': 'fcn32s', 'width': 2}),
    next=stage(
      'supervised', init_from='first', net={'arch': 'segnet', 'width': 2}
    ),
  )
  train.check_transfers(c, 2)  # the encoders are alike
  with c.unlocked():
    c.next.args.net.arch = 'unet'
  with pytest.raises(UserError, match='supervised stage .* encoder fits'):
    train.check_transfers(c, 2)


def test_only_states_that_are_started_from_are_kept(
  folder, tmp_path, monkeypatch
):
  kept = {}

  def trained(config, stage, workdir, data, mesh, finished, stop):
    kept[stage] = tuple(finished)
    return stage

  monkeypatch.setattr(train, 'train_stage', trained)
  run(tiny_config.get_config(str(folder)), tmp_path, evaluate_after=False)
  assert kept == {'gan': (), 'encoder': ('gan',), 'unet': ('gan',)}


def test_batch_that_devices_cannot_share(folder, tmp_path):
  c = tiny_config.get_config(str(folder))
  c.mesh.data = 8
  with pytest.raises(UserError, match=r'config\.gan\.batch_size is 4.*8'):
    run(c, tmp_path)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config.gan.total_step=3'], 'total_step'),
    (['--config.gan.total_steps=many'], 'total_steps'),
    (['--workdir='], '--workdir is missing'),
    (['--config=configs/no_such_file.py'], 'no_such_file'),
  ],
)
def test_command_line_mistakes_exit_2_without_traceback(
  folder, tmp_path, arguments, message
):
  done = subprocess.run(
    command(folder, tmp_path, *arguments), cwd=ROOT, capture_output=True,
    text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert message in done.stderr and 'Traceback' not in done.stderr
  assert not (tmp_path / 'gan').exists()


def test_a_refused_run_does_not_tie_the_workdir(folder, tmp_path):
  """The advice can be followed in the same workdir."""
  c = tiny_config.get_config(str(folder))
  c.data.unlabelled = ('nowhere',)
  with pytest.raises(UserError, match='nowhere'):
    run(c, tmp_path)
  c.data.unlabelled = ()
  c.eval.splits = ('nothing',)
  with pytest.raises(UserError, match='nothing'):
    run(c, tmp_path)
  assert not (tmp_path / 'config.json').exists()
  assert not (tmp_path / 'splits.json').exists()


def test_a_workdir_that_cannot_be_made(folder, tmp_path):
  (tmp_path / 'file').write_text('')
  c = tiny_config.get_config(str(folder))
  with pytest.raises(UserError, match='--workdir=.*file/run cannot be made'):
    run(c, tmp_path / 'file/run')


def test_configs_of_before_have_todays_defaults(folder, tmp_path):
  c = tiny_config.get_config(str(folder))
  workdirs.save_config(tmp_path, c)
  path = tmp_path / 'config.json'
  content = json.loads(path.read_text())
  for name in ('fit', 'weak', 'width', 'labelled_fraction'):
    del content['data'][name]
  for name in ('keep_best', 'steps_per_dispatch'):
    del content['unet'][name]
  del content['hang_timeout']
  del content['unet']['args']['net']['dropout']
  del content['unet']['args']['ema_half_life']
  path.write_text(json.dumps(content))
  workdirs.refuse_other_config(tmp_path, c)
  assert workdirs.load_config(tmp_path).data.weak.kind == ''
  assert workdirs.load_config(tmp_path).unet.keep_best == 0
  c.unet.args.net.dropout = 0.5
  with pytest.raises(UserError, match='net.dropout was 0.0 and is now 0.5'):
    workdirs.refuse_other_config(tmp_path, c)
  c.unet.args.net.dropout = 0.0
  c.data.fit = 'pad'
  with pytest.raises(UserError, match="data.fit was '' and is now 'pad'"):
    workdirs.refuse_other_config(tmp_path, c)


@pytest.mark.parametrize('field', ['lr_steps', 'net.levels'])
def test_settings_of_another_version_are_told(field):
  c = jaxseg_config.add_stages(
    jaxseg_config.default(), unet=jaxseg_config.stage('supervised')
  ).unlock()
  *group, name = field.split('.')
  args = c.unet.args.unlock()
  for part in group:
    args = args[part]
  args[name] = 3
  with pytest.raises(UserError, match=f'unet.args.{field} is not a setting'):
    workdirs.make_method(c, 'unet', 2)


def test_itstime():
  assert [s for s in range(1, 8) if loop.itstime(s, 3, s == 7)] == [3, 6, 7]
  assert not loop.itstime(7, 0, True)


def test_default_config_is_locked():
  with pytest.raises((AttributeError, KeyError)):
    jaxseg_config.default().data.resolutoin = 64
  with pytest.raises(KeyError, match='r1_gama'):
    jaxseg_config.stage('semantic_gan', r1_gama=1.0)


def test_progress_is_printed(capsys):
  writers.say('hello')
  assert capsys.readouterr().out == 'hello\n'
