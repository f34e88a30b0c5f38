"""Whole splits scored exactly, once, and shown."""

import html.parser
import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

import jaxseg.config
from jaxseg import evaluate, inference, report, scoring, workdir
from jaxseg.data import sources
from jaxseg.data import splits as data_splits
from jaxseg.errors import UserError
from jaxseg.method import Method, Prediction, new_state
from jaxseg.metrics import segmentation

SIDE = 32
NAMES = ('background', 'lung <&> "x"')
PALETTE = np.array([[0, 0, 0], [10, 200, 30]], np.uint8)
CALLS = []


def _source(sizes=(SIDE,) * 8, missing=()):
  """Images whose bright pixels are class 1, wrong in the first row."""
  rng = np.random.default_rng(0)
  truth = {}
  images = {}
  for i, side in enumerate(sizes):
    label = np.zeros((side, side), np.uint8)
    top, left = rng.integers(2, side // 2, 2)
    label[top : top + side // 2, left : left + side // 2] = 1
    images[f'i{i}'] = np.where(label, 220, 30).astype(np.uint8)[..., None]
    label[0, : 2 + i] = 1  # the image does not show it
    label[-1] = 255
    truth[f'i{i}'] = label
  ids = tuple(images)
  splits = data_splits.Splits(
    ids[:1], ids[1:2], (), ids[2:7], {'ood_a': ids[7:], 'ood_b': ()}, 'hash'
  )
  source = sources.Source(
    name='<toy>',
    class_names=NAMES,
    palette=PALETTE,
    channels=1,
    splits={'train': ids[:2], 'test': ids[2:7], 'ood_a': ids[7:]},
    budgets={},
    groups={},
    image=images.__getitem__,
    label=lambda id_: None if id_ in missing else truth[id_],
    has_label=lambda id_: id_ not in missing,
    path=lambda id_: f'/data/{id_}.png',
    cache={},
  )
  return source, splits


def _method(scale=1.0):
  """`predict` thresholds at state.params, `refine` marks everything lung."""

  def threshold(images, at):
    bright = jax.nn.sigmoid(50 * scale * (images.mean(-1) - at))
    return jnp.stack([1 - bright, bright], -1)

  def predict(state, images):
    CALLS.append('predict')  # once a compilation
    p = threshold(images, state.params['seg']['at'])
    return Prediction(p, trust=p.max(-1).mean((1, 2)))

  def refine(state, images):
    CALLS.append('refine')
    return Prediction(threshold(images, -2.0), reconstruction=images * 0.5)

  return Method(None, None, predict, refine)


def _config():
  config = jaxseg.config.default()
  config.data.resolution, config.data.channels = SIDE, 1
  config.eval.batch_size = 2
  config.eval.report_images = 3
  return config


def _trained(at=0.0, config=None):
  state = new_state(jax.random.key(0), {}, {}).replace(
    params={'seg': {'at': jnp.float32(at)}}, step=jnp.int32(7)
  )
  stages = {
    'gan': workdir.Stage(Method(None, None), state, 'gan'),
    'encoder': workdir.Stage(_method(), state, 'Ours'),
    'unet': workdir.Stage(_method()._replace(refine=None), state, 'U-Net'),
  }
  return workdir.Trained(config or _config(), NAMES, PALETTE, stages)


def _evaluate(output, trained=None, data=None, **kwargs):
  trained = trained or _trained()
  source, splits = data or _source()
  CALLS.clear()
  return evaluate.evaluate(
    trained, source, splits, trained.config, output, **kwargs
  )


def _expected(source, ids, predict):
  labels = np.concatenate([source.label(id_).ravel() for id_ in ids])
  predictions = np.concatenate([predict(source.image(id_)) for id_ in ids])
  cm = segmentation.confusion_matrix(labels, predictions, 2)
  return segmentation.summarize(cm, NAMES)


def test_scores_of_a_split_are_exact(tmp_path, capsys):
  source, splits = _source()
  scores = _evaluate(tmp_path)
  assert list(scores) == ['test', 'ood_a']
  rows = ['majority class', 'Ours-NO', 'Ours', 'U-Net']
  for split, ids in (('test', splits.test), ('ood_a', splits.ood['ood_a'])):
    assert list(scores[split]) == rows
    for name, predict in (
      ('majority class', lambda x: np.zeros(x.size, int)),
      ('Ours-NO', lambda x: (x > 127).ravel()),
      ('Ours', lambda x: np.ones(x.size, int)),
      ('U-Net', lambda x: (x > 127).ravel()),
    ):
      expected = _expected(source, ids, predict)
      found = scores[split][name]
      for key, value in expected.items():
        assert found[key] == pytest.approx(value), (split, name, key)
      assert found['images'] == len(ids)
  assert scores['test']['Ours']['seconds_per_image'] > 0
  assert math.isnan(scores['test']['majority class']['seconds_per_image'])
  # One program each, though 5 images and 1 image make full and partial batches.
  assert sorted(CALLS) == ['predict', 'predict', 'refine']
  printed = capsys.readouterr().out
  assert f'{scores["test"]["Ours-NO"]["miou"]:.4f}' in printed


def test_files(tmp_path):
  source, splits = _source()
  scores = _evaluate(tmp_path)
  stored = json.loads((tmp_path / 'metrics.json').read_text())
  entry = stored['results']['test']['Ours']['scores']
  assert entry['miou'] == scores['test']['Ours']['miou']
  majority = stored['results']['test']['majority class']['scores']
  assert majority['seconds_per_image'] is None
  for split, ids in (('test', splits.test), ('ood_a', splits.ood['ood_a'])):
    for id_ in ids:
      overlay = Image.open(tmp_path / 'overlays' / split / f'{id_}.png')
      assert overlay.size == (5 * 96 + 4 * 2, 96)  # image, 3 systems, truth
      mask = Image.open(tmp_path / 'masks' / split / 'encoder' / f'{id_}.png')
      assert mask.mode == 'P'
      np.testing.assert_array_equal(
        np.asarray(mask), source.image(id_)[..., 0] > 127
      )
      rebuilt = tmp_path / 'reconstructions' / split / 'encoder_refined'
      assert (rebuilt / f'{id_}.png').exists()
  lines = (tmp_path / 'per_image/test/encoder.csv').read_text().splitlines()
  assert lines[0] == 'id,miou,dice,dice_foreground,pixel_accuracy,trust'
  id_, miou, *_ = lines[1].split(',')
  expected = _expected(source, [id_], lambda x: (x > 127).ravel())
  assert float(miou) == pytest.approx(expected['miou'], rel=1e-4)
  table = (tmp_path / 'table.md').read_text()
  assert 'IoU per class' in table and 'Dice per class' in table
  first = table.split('\n\n')[0].splitlines()
  assert len({len(line) for line in first}) == 1  # aligned
  assert len(first) == 2 + 2 * 4


def test_label_resolution_is_its_own(tmp_path):
  data = _source((SIDE, SIDE, 64, 96, 48, SIDE, 40, 128))
  scores = _evaluate(tmp_path, data=data, systems=['Ours-NO'])
  source, splits = data
  for split in ('test', 'ood_a'):
    ids = splits.test if split == 'test' else splits.ood['ood_a']
    pixels = sum(int((source.label(i) != 255).sum()) for i in ids)
    assert scores[split]['Ours-NO']['pixels'] == pixels
    assert scores[split]['Ours-NO']['pixel_accuracy'] > 0.9
  mask = Image.open(tmp_path / 'masks/ood_a/encoder/i7.png')
  assert mask.size == (128, 128)


def test_rerun_skips_what_is_done(tmp_path):
  first = _evaluate(tmp_path, split_names=['test'], systems=['Ours-NO'])
  assert CALLS == ['predict']
  second = _evaluate(tmp_path)
  assert sorted(CALLS) == ['predict', 'predict', 'refine']
  old = first['test']['Ours-NO']['seconds_per_image']
  assert second['test']['Ours-NO']['seconds_per_image'] == old
  third = _evaluate(tmp_path, split_names=['ood_a'])
  assert CALLS == []
  assert json.dumps(third) == json.dumps(second)  # nan is equal here
  _evaluate(tmp_path, overwrite=True)
  assert sorted(CALLS) == ['predict', 'predict', 'refine']


@pytest.mark.parametrize('change', ['weights', 'splits', 'config', 'masks'])
def test_rerun_redoes_what_changed(tmp_path, change):
  few = dict(split_names=['test'], systems=['Ours-NO'])
  before = _evaluate(tmp_path, **few)['test']['Ours-NO']
  trained, (source, splits) = _trained(), _source()
  if change == 'weights':
    trained = _trained(at=2.0)
  elif change == 'splits':
    splits = splits._replace(test=splits.test[:2], hash='other')
  elif change == 'config':
    trained.config.eval.max_images = 3
  else:
    (tmp_path / 'masks/test/encoder/i3.png').unlink()
  after = _evaluate(tmp_path, trained, (source, splits), **few)['test']
  assert CALLS == ['predict']
  same = after['Ours-NO']['miou'] == before['miou']
  assert same == (change == 'masks')


def test_interruption_keeps_finished_systems(tmp_path, monkeypatch):
  real = inference.compile_system

  def interrupted(system, config, size):
    if system.refined:
      raise KeyboardInterrupt
    return real(system, config, size)

  monkeypatch.setattr(inference, 'compile_system', interrupted)
  with pytest.raises(KeyboardInterrupt):
    _evaluate(tmp_path)
  stored = json.loads((tmp_path / 'metrics.json').read_text())['results']
  assert list(stored) == ['test']
  assert list(stored['test']) == ['majority class', 'Ours-NO']
  assert 'Ours-NO' in (tmp_path / 'table.md').read_text()
  assert (tmp_path / 'report.html').exists()
  monkeypatch.setattr(inference, 'compile_system', real)
  _evaluate(tmp_path, split_names=['test'])
  assert sorted(CALLS) == ['predict', 'refine']  # 'Ours' and 'U-Net'


def test_norefine_and_max_images(tmp_path):
  trained = _trained()
  trained.config.eval.refine = False
  trained.config.eval.max_images = 3
  scores = _evaluate(tmp_path, trained)
  assert list(scores['test']) == ['majority class', 'Ours-NO', 'U-Net']
  assert scores['test']['U-Net']['images'] == 3
  assert scores['ood_a']['U-Net']['images'] == 1
  ids = list('abcdefgh')
  assert scoring.draw(ids, 0, 0) == scoring.draw(ids, 8, 0) == ids
  drawn = scoring.draw(ids, 3, 0)
  assert drawn == scoring.draw(ids, 3, 0) == sorted(drawn) and len(drawn) == 3
  assert len({tuple(scoring.draw(ids, 3, seed)) for seed in range(5)}) > 1


def test_splits_are_named():
  _, splits = _source()
  assert evaluate.resolve_splits(splits, ['test', 'ood', 'test', 'val']) == [
    'test', 'ood_a',
  ]  # fmt: skip
  with pytest.raises(UserError, match="'tst'.*test.*ood_a.*ood"):
    evaluate.resolve_splits(splits, ['tst'])
  with pytest.raises(UserError, match='no image in val.*test'):
    evaluate.resolve_splits(splits, ['val'])


def test_mistakes_are_named(tmp_path):
  with pytest.raises(UserError, match="--systems: 'Our'.*Ours-NO"):
    _evaluate(tmp_path, systems=['Our'])
  with pytest.raises(UserError, match='/data/i3.png'):
    _evaluate(tmp_path, data=_source(missing=('i3',)))
  source, splits = _source()
  wrong = source._replace(label=lambda id_: source.label(id_) * 0 + 5)
  with pytest.raises(UserError, match='/data/i.*class 5'):
    _evaluate(tmp_path, data=(wrong, splits))


class _Page(html.parser.HTMLParser):
  """Collects what is on a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.images, self.text = [], [], ''
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    if tag == 'img':
      self.images.append(dict(attrs))

  def handle_data(self, data):
    self.text += data


def test_report(tmp_path):
  _evaluate(tmp_path)
  text = (tmp_path / 'report.html').read_text()
  page = _Page(text)
  assert not {'script', 'link', 'x', 'toy'} & set(page.tags)
  assert NAMES[1] in page.text and '<toy>' in page.text
  assert '<toy>' not in text and NAMES[1] not in text
  captions = [image['alt'] for image in page.images]
  per_image = [
    'input', 'reconstruction, Ours', 'predicted, Ours-NO', 'predicted, Ours',
    'predicted, U-Net', 'true',
  ]  # fmt: skip
  assert captions == per_image * 4  # 3 of test, the 1 of ood_a
  for image in page.images:
    assert image['src'].startswith(('data:image/png', 'data:image/jpeg'))
  assert 'prefers-color-scheme' in text or 'color-scheme: light dark' in text
  assert 'width=device-width' in text
  assert all(f'stage {s}' in page.text for s in ('encoder', 'unet'))
  shown = page.text.split('test: worst of Ours first')[1].split('ood_a: ')[0]
  everything = lambda x: np.ones(x.size, int)
  _, splits = _source()
  worst = sorted(
    splits.test, key=lambda i: _expected(_source()[0], [i], everything)['miou']
  )
  order = [shown.find(f'{id_}Ours-NO: mIoU') for id_ in worst]
  assert 0 <= order[0] < order[1] < order[2] and order[3:] == [-1, -1]


def test_dash_for_absent_classes_and_pipes_in_names():
  cm = np.diag([3, 0])
  scores = segmentation.summarize(cm, ('a|b', 'c'))
  scores |= {'images': 1, 'seconds_per_image': math.nan}
  table = report.class_table({'test': {'x': scores}}, 'iou')
  assert table == (['split', 'system', 'a|b', 'c'],
                   [['test', 'x', '1.0000', report.DASH]])  # fmt: skip
  text = report.markdown(table)
  assert 'a\\|b' in text
  assert text.splitlines()[1] == '| ----- | ------ | -----: | --: |'


def _workdir(folder):
  config = _config()
  config.data.source = 'folder:nowhere'
  source, splits = _source()
  workdir.save_config(folder, config)
  workdir.save_classes(folder, NAMES, PALETTE)
  splits = splits._replace(hash=data_splits._hash(splits))
  data_splits.save_splits(folder / 'splits.json', splits)


def test_command(tmp_path, monkeypatch, capsys):
  _workdir(tmp_path)
  monkeypatch.setattr(sources, 'load', lambda *_: _source()[0])
  monkeypatch.setattr(workdir, 'load', lambda w, **_: _trained())

  def main(*args):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, 'FLAGS', values)
    evaluate._define_flags(values)
    evaluate.main(values(['evaluate', *args]))

  where = f'--workdir={tmp_path}'
  main(where, '--splits=test', '--norefine', '--max_images=2')
  stored = json.loads((tmp_path / 'evaluation/metrics.json').read_text())
  assert list(stored['results']['test']) == [
    'majority class', 'Ours-NO', 'U-Net',
  ]  # fmt: skip
  assert stored['results']['test']['U-Net']['scores']['images'] == 2
  main(where, '--systems=Ours')
  for args in ((where, '--splits=x'), (), (where, 'extra')):
    with pytest.raises(SystemExit) as error:
      main(*args)
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith('jaxseg: ')
  (tmp_path / 'config.json').unlink()
  with pytest.raises(SystemExit):
    main(where)
  assert 'config.json' in capsys.readouterr().err


def test_the_output_may_be_a_relative_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  _evaluate('runs/a', systems=['U-Net'])
  _evaluate('runs/a')  # reads what is there
  assert {p.name for p in (tmp_path / 'runs/a').iterdir()} == {
    'masks', 'metrics.json', 'overlays', 'per_image', 'reconstructions',
    'report.html', 'table.md',
  }  # fmt: skip


def test_pixels_that_were_not_seen_are_not_scored(tmp_path):
  config = _config()
  config.data.fit = 'crop'
  source, splits = _source()

  def wide(function):
    return lambda id_: np.concatenate([function(id_)] * 3, 1)

  three = source._replace(
    image=wide(source.image), label=wide(source.label), cache={}
  )
  data = three, splits
  scores = _evaluate(tmp_path / 'a', _trained(config=config), data)
  expected = _evaluate(tmp_path / 'b')  # the square in the middle alone
  for system in ('U-Net', 'Ours-NO', 'majority class'):
    np.testing.assert_array_equal(
      scores['test'][system]['confusion_matrix'],
      expected['test'][system]['confusion_matrix'],
    )


def test_networks_that_see_a_rectangle(tmp_path):
  """Three squares side by side are seen whole, and scored thrice."""
  config = _config()
  config.data.width = 3 * SIDE
  source, splits = _source()

  def wide(function):
    return lambda id_: np.concatenate([function(id_)] * 3, 1)

  three = source._replace(
    image=wide(source.image), label=wide(source.label), cache={}
  )
  scores = _evaluate(tmp_path / 'a', _trained(config=config), (three, splits))
  expected = _evaluate(tmp_path / 'b')
  for system in ('U-Net', 'Ours-NO', 'Ours', 'majority class'):
    np.testing.assert_array_equal(
      scores['test'][system]['confusion_matrix'],
      3 * np.array(expected['test'][system]['confusion_matrix']),
    )
  drawn = tmp_path / 'a' / 'reconstructions/test/encoder_refined/i2.png'
  assert Image.open(drawn).size == (3 * SIDE, SIDE)
  assert '96x32x1' in (tmp_path / 'a' / 'report.html').read_text()
  assert '32x32x1' in (tmp_path / 'b' / 'report.html').read_text()


@pytest.fixture
def command(tmp_path, monkeypatch):
  """Runs the command line on a workdir; `other` makes a further set."""
  _workdir(tmp_path)
  main_set, _ = _source()
  opened = sources._open
  monkeypatch.setattr(
    sources, '_open',
    lambda spec, *args: (
      main_set if spec == 'folder:nowhere' else opened(spec, *args)
    ),
  )  # fmt: skip
  monkeypatch.setattr(workdir, 'load', lambda w, **_: _trained())

  def run(*args):
    values = flags.FlagValues()
    monkeypatch.setattr(flags, 'FLAGS', values)
    evaluate._define_flags(values)
    args = [f'--workdir={tmp_path}', '--norefine', *args]
    evaluate.main(values(['evaluate', *args]))
    text = (tmp_path / 'evaluation/metrics.json').read_text()
    return json.loads(text)['results']

  return run


def _other(root, width=4, turned=False):
  """A folder of two images of air (1) and lungs (0)."""
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
  for i in range(2):
    label = np.zeros((SIDE, SIDE + 2 * turned), np.uint8)
    label[2:6, i : i + width] = 1
    image = np.where(label, 220, 30).astype(np.uint8)
    Image.fromarray(image).save(root / f'images/{i}.png')
    label = label.T if turned else label
    Image.fromarray(1 - label).save(root / f'labels/{i}.png')
  (root / 'classes.json').write_text('{"classes": ["lungs", "air"]}')
  return root


MAP = f'--ood_classes=new:lungs={NAMES[1]},air=background'


def test_further_ood_sources(tmp_path, command):
  """A set named on the command line is scored in the classes of training."""
  folder = f'--ood_sources=new=folder:{_other(tmp_path / "a")}'
  command('--splits=test', '--systems=U-Net')
  CALLS.clear()
  found = command('--splits=ood_new', folder, MAP)
  scores = found['ood_new']['U-Net']['scores']
  assert scores['images'] == 2 and scores['miou'] == 1
  command('--splits=test', '--systems=U-Net')
  assert CALLS == ['predict'] * 2  # of the new set, with two systems


def test_another_set_of_the_same_name_is_scored_anew(tmp_path, command):
  """Its ids may be the same."""
  pixels = []
  for name, width in (('a', 4), ('b', 8)):
    other = _other(tmp_path / name, width)
    command('--splits=ood_new', f'--ood_sources=new=folder:{other}', MAP)
    text = (tmp_path / 'evaluation/metrics.json').read_text()
    row = json.loads(text)['results']['ood_new']
    pixels.append(
      [np.sum(row[n]['scores']['confusion_matrix'], 1)[1] for n in row]
    )
  assert pixels == [[32] * 3, [64] * 3]
  swapped = f'--ood_classes=new:lungs=background,air={NAMES[1]}'
  found = command(
    '--splits=ood_new', '--ood_sources=new=folder:' + str(other), swapped
  )
  for row in found['ood_new'].values():
    total = 2 * SIDE * SIDE
    assert np.sum(row['scores']['confusion_matrix'], 1)[1] == total - 64


def test_further_sets_are_checked(tmp_path, command, capsys):
  other = _other(tmp_path / 'a', turned=True)
  with pytest.raises(SystemExit) as error:
    command('--splits=ood_new', f'--ood_sources=new=folder:{other}', MAP)
  assert error.value.code == 3
  assert 'expected one size' in capsys.readouterr().err
  assert not (tmp_path / 'evaluation').exists()


def test_images_that_are_gone(tmp_path, command, capsys):
  path = tmp_path / 'splits.json'
  splits = data_splits.load_splits(path)
  splits = splits._replace(test=(*splits.test, 'i99'))
  data_splits.save_splits(path, data_splits.rehash(splits))
  with pytest.raises(SystemExit) as error:
    command('--splits=test')
  assert error.value.code == 2
  assert "split 'test' are gone (i99)" in capsys.readouterr().err


def test_module_runs():
  done = subprocess.run(
    [sys.executable, '-m', 'jaxseg.evaluate', '--splits=test'],
    capture_output=True, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert done.stderr == 'jaxseg: --workdir is missing; add --workdir=FOLDER\n'
