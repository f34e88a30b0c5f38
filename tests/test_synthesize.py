"""Labelled images out of a generator: the same set however they are drawn."""

import csv
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

import jaxseg.config
from jaxseg import (
  parallel,
  runtime,
  synthesis_draw,
  synthesis_filter,
  synthesis_folder,
  synthesize,
  workdir,
)
from jaxseg.data import pipeline, sources, splits
from jaxseg.errors import UserError
from jaxseg.method import Method, new_state
from jaxseg.synthesis_filter import Rule, Settings

SIDE, NAMES = 32, ('background', 'square', 'rare one')
PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
SETTINGS = Settings(batch_size=8, calibrate=48, keep=0.75, rank_by='d_m')


def _sample(state, rng, n, truncation=1.0):
  """Squares as large as the first number says; one in eight is 'rare one'."""
  keys = jax.random.split(rng, 2)
  z = truncation * jax.random.uniform(keys[0], (n,)) * state.params['g']
  rare = jax.random.bernoulli(keys[1], 1 / 8, (n,))
  place = jnp.arange(SIDE)[None] < (6 + 20 * z[:, None])
  inside = place[:, None] & place[:, :, None]
  logits = jnp.stack([~inside, inside & ~rare[:, None, None],
                      inside & rare[:, None, None]], -1) * 9.0  # fmt: skip
  image = jnp.where(inside, z[:, None, None], -1.0)[..., None]
  # What is large is uncertain.
  return image, jax.nn.softmax(logits * (1.1 - z[:, None, None, None]))


def _judge(state, images, probabilities):
  del state, probabilities
  return {'d_m': images.mean((1, 2, 3))}


@pytest.fixture(scope='module')
def trained():
  """A generator of squares; 'blind' cannot judge, 'seg' cannot draw."""
  state = new_state(jax.random.key(0), {}, {}).replace(
    params={'g': jnp.float32(1)}, step=jnp.int32(7)
  )
  config = jaxseg.config.default()
  config.data.resolution, config.data.channels = SIDE, 1
  method = Method(None, None, sample=_sample, judge=_judge)
  stage = lambda m: workdir.Stage(m, state, '')
  stages = {
    'gan': stage(method),
    'blind': stage(method._replace(judge=None)),
    'seg': stage(Method(None, None)),
  }
  return workdir.Trained(config, NAMES, PALETTE, stages)


@pytest.fixture(scope='module')
def whole(trained, tmp_path_factory):
  """A folder made by one process without interruption."""
  folder = tmp_path_factory.mktemp('whole')
  synthesize.synthesize(trained, folder, 60, SETTINGS)
  return folder


def _bytes(folder):
  """Everything in a folder, by name."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


def _rows(folder):
  with (folder / 'synthesis.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def test_folder_is_a_data_set(whole):
  data = jaxseg.config.default().data
  data.source, data.resolution, data.channels = f'folder:{whole}', SIDE, 1
  source = sources.load(data)
  rows = _rows(whole)
  kept = [row['id'] for row in rows if row['outcome'] == 'kept']
  assert source.class_names == NAMES
  np.testing.assert_array_equal(source.palette, PALETTE)
  assert source.splits == {'train': tuple(kept)} and not source.problems
  assert 48 <= len(kept) <= 75 and len(rows) == 80
  assert {p.stem for p in (whole / 'images').iterdir()} == set(kept)
  drawn = splits.make_splits(source, data, 0)
  assert set(drawn.labelled) <= set(kept) and drawn.labelled
  config = jaxseg.config.default()
  config.data = data
  batch = next(iter(pipeline.eval_batches(source, kept[:4], config, 4)))
  assert batch['image'].shape == (4, SIDE, SIDE, 1)
  assert set(np.unique(source.label(kept[0]))) <= {0, 1, 2}
  row = next(row for row in rows if row['id'] == kept[0])
  share = (source.label(kept[0]) == 0).mean()
  assert float(row['fraction_background']) == pytest.approx(share, abs=1e-6)
  assert Image.open(whole / 'labels' / f'{kept[0]}.png').mode == 'P'
  assert Image.open(whole / 'contact_sheet.png').width > 600


def test_best_scores_are_kept(whole):
  rows = _rows(whole)
  score = {True: [], False: []}
  for row in rows:
    score[row['outcome'] == 'kept'].append(float(row['d_m']))
  assert min(score[True]) > max(score[False])
  summary = json.loads((whole / 'synthesis.json').read_text())['summary']
  assert summary['kept'] == len(score[True])
  assert summary['dropped'] == {'score': len(score[False])}


def test_shards_make_the_same_folder(trained, whole, tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  synthesize.synthesize(trained, one, 60, SETTINGS, shard=(0, 2))
  assert len(_rows(one)) == 40
  shutil.copytree(one, two)
  synthesize.synthesize(trained, one, 60, SETTINGS, shard=(1, 2))
  assert _bytes(one) == _bytes(whole)
  # Another machine's share, copied here, and what was made before it came.
  synthesize.synthesize(trained, tmp_path / 'b', 60, SETTINGS, shard=(1, 2))
  shutil.copytree(tmp_path / 'b', two, dirs_exist_ok=True)
  synthesize.synthesize(trained, two, 60, SETTINGS)
  assert _bytes(two) == _bytes(whole)


def test_goes_on_after_a_kill(trained, whole, tmp_path, monkeypatch):
  write, count = synthesis_folder.visualize.write_png, []

  def dying(path, image):
    count.append(path)
    if len(count) == 21:
      raise SystemExit(137)
    write(path, image)

  monkeypatch.setattr(synthesis_folder.visualize, 'write_png', dying)
  with pytest.raises(SystemExit):
    synthesize.synthesize(trained, tmp_path, 60, SETTINGS)
  monkeypatch.undo()
  done = sorted((tmp_path / 'records').iterdir())
  assert done and not (tmp_path / 'splits.json').exists()
  done[0].write_bytes(done[0].read_bytes()[:150])  # a disk that was full
  next((tmp_path / 'labels').iterdir()).unlink()
  synthesize.synthesize(trained, tmp_path, 60, SETTINGS)
  assert _bytes(tmp_path) == _bytes(whole)


def test_goes_on_after_a_signal_and_grows(trained, whole, tmp_path):
  class Stop(list):
    def __bool__(self):  # asked before each batch, and at the end
      self.append('SIGTERM')
      return len(self) > 3

  with pytest.raises(runtime.Interrupted, match='24 of 40 images are done'):
    synthesize.synthesize(trained, tmp_path, 30, SETTINGS, stop=Stop())
  assert len(_rows(tmp_path)) == 24
  synthesize.synthesize(trained, tmp_path, 30, SETTINGS)
  assert len(_rows(tmp_path)) == 40
  synthesize.synthesize(trained, tmp_path, 60, SETTINGS)
  assert _bytes(tmp_path) == _bytes(whole)


def test_all_are_kept_without_a_filter(trained, tmp_path):
  settings = SETTINGS._replace(keep=1.0, rank_by='uncertainty')
  folder, other = tmp_path / 'all', tmp_path / 'other'
  content = synthesize.synthesize(trained, folder, 11, settings, stage='blind')
  assert content['images'] == len(_rows(folder)) == 11
  assert content['summary']['kept'] == 11
  with pytest.raises(UserError, match='stage blind does not have that measure'):
    synthesize.synthesize(trained, other, 11, SETTINGS, stage='blind')
  assert not other.exists()


def test_an_image_depends_on_its_number_alone(trained):
  stage = trained.stages['gan']
  mesh = parallel.make_mesh(1)
  draw = synthesis_draw.compile_draw(stage, 3, None, 4, mesh)
  wide = synthesis_draw.compile_draw(stage, 3, None, 16, parallel.make_mesh())
  other = synthesis_draw.compile_draw(stage, 4, None, 4, mesh)
  a, b = draw([5, 2, 9]), wide(np.arange(10))
  for i, number in enumerate((5, 2, 9)):
    np.testing.assert_array_equal(a.images[i], b.images[number])
    np.testing.assert_array_equal(a.labels[i], b.labels[number])
    for name, values in a.measures.items():
      assert values[i] == pytest.approx(b.measures[name][number], rel=1e-5)
  assert (other([5]).images != a.images[0]).any()


def test_truncation_and_entropy(trained):
  stage = trained.stages['gan']
  mesh = parallel.make_mesh(1)
  drawn = synthesis_draw.compile_draw(stage, 0, 0.0, 2, mesh)([0, 1])
  np.testing.assert_array_equal(drawn.images[0], drawn.images[1])
  assert set(drawn.measures) == {'d_m', 'entropy', 'uncertainty'}
  logits = np.array([9.9, 0, 0])
  p = np.exp(logits) / np.exp(logits).sum()
  entropy = -(p * np.log(p)).sum()
  for name in ('entropy', 'uncertainty'):  # the same in every pixel
    assert drawn.measures[name][0] == pytest.approx(entropy, rel=1e-3)


def test_balance_accepts_rare_classes():
  frequency = np.array([1.0, 0.5, 0.125, 0.0])
  np.testing.assert_allclose(synthesis_filter.acceptance(frequency, 0.0), 1)
  np.testing.assert_allclose(
    synthesis_filter.acceptance(frequency, 1.0), [0.125, 0.25, 1, 1]
  )
  accept = synthesis_filter.acceptance(frequency, 1.0)
  rule = Rule('d_m', None, None, tuple(frequency), tuple(accept), 0.4)
  own = {'d_m': 0.0, 'entropy': 0.1}

  def share(shows):
    shows = np.array(shows, bool)
    outcomes = [
      synthesis_filter.decide(rule, 5, i, own, shows) for i in range(2000)
    ]
    assert set(outcomes) <= {'kept', 'balance'}
    return outcomes.count('kept') / 2000

  assert share([1, 1, 0, 0]) == pytest.approx(0.25, abs=0.03)
  assert share([1, 1, 1, 0]) == share([1, 0, 0, 1]) == 1


def test_balanced_folder(trained, tmp_path):
  settings = SETTINGS._replace(balance=1.0, keep=1.0)
  content = synthesize.synthesize(trained, tmp_path, 24, settings)
  rare = content['summary']['classes']['rare one']
  assert rare['kept']['images'] > 2 * rare['drawn']['images']
  assert content['images'] > 40


@pytest.mark.parametrize(
  ('change', 'n', 'message'),
  [
    ({}, 0, '--n is 0, expected 1'),
    ({'keep': 0.0}, 5, '--keep is 0.0, expected a share above 0'),
    ({'keep': 1.5}, 5, '--keep is 1.5'),
    ({'keep': 0.5, 'min_score': 1.0}, 5, 'both given'),
    ({'balance': 2.0}, 5, '--balance is 2.0'),
    ({'seed': -1}, 5, '--seed is -1'),
    ({'truncation': -0.5}, 5, '--truncation is -0.5'),
    ({'rank_by': 'd_x'}, 5, '--rank_by=d_x: .* one of d_m, entropy, uncert'),
    ({'keep': None, 'min_score': 9.0}, 5, 'none of the first 48 images passes'),
  ],
)
def test_refuses_settings(trained, tmp_path, change, n, message):
  settings = SETTINGS._replace(**change)
  with pytest.raises(UserError, match=message):
    synthesize.synthesize(trained, tmp_path / 'new', n, settings)
  assert not (tmp_path / 'new').exists()


def test_refuses_stages(trained, tmp_path):
  draw = lambda trained, stage=None: synthesize.synthesize(
    trained, tmp_path / 'new', 5, SETTINGS, stage=stage
  )
  with pytest.raises(UserError, match='--stage=seg: .* one of gan, blind'):
    draw(trained, 'seg')
  only = trained._replace(stages={'seg': trained.stages['seg']})
  with pytest.raises(UserError, match=r'none of the trained stages \(seg\)'):
    draw(only)


def test_refuses_other_folders(trained, whole, tmp_path):
  draw = lambda folder, n=60, **change: synthesize.synthesize(
    trained, folder, n, SETTINGS._replace(**change)
  )
  with pytest.raises(UserError, match='another seed, 0, and it is now 1'):
    draw(whole, seed=1)
  with pytest.raises(UserError, match='--n is 5, but .* --n=60'):
    draw(whole, n=5)
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(UserError, match='holds other things'):
    draw(tmp_path)
  with pytest.raises(UserError, match='a file has that name'):
    draw(tmp_path / 'mine.txt')
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'bad' / 'synthesis.json').write_text('{"n": ')
  with pytest.raises(UserError, match='the file is damaged'):
    draw(tmp_path / 'bad')


@pytest.mark.parametrize('text', ['4/4', '1', '-1/2', '0/0', 'a/b'])
def test_refuses_shards(text):
  with pytest.raises(UserError, match='expected i/n with i from 0 to n-1'):
    synthesize.parse_shard(text)
  assert synthesize.parse_shard('3/4') == (3, 4)


def test_flags_fit_the_settings():
  values = flags.FlagValues()
  synthesize._define_flags(values)
  values(['synthesize'])
  defaults = Settings()
  for name in Settings._fields:
    assert values[name].value == getattr(defaults, name), name
