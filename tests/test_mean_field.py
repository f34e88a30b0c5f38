"""A dense CRF behind a network: its rows, its flags, its lattice's room."""

import csv
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image
from test_evaluate import CALLS, SIDE, _evaluate, _source, _trained, _workdir
from thresholding import make_trained

from jaxseg import evaluate, inference, mean_field, predict, workdir
from jaxseg.data import sources
from jaxseg.errors import UserError
from jaxseg.method import Prediction
from jaxseg.ops import dense_crf, permutohedral
from jaxseg.ops.dense_crf import CRF

# Changes labels of clear images: the image counts for nothing.
BLUR = CRF(iterations=2, bilateral_weight=0.0, spatial_weight=200.0,
           spatial_xy=0.1, filter='exact')  # fmt: skip


def _expected(image, settings=BLUR):
  """Labels of a threshold that is as sure as `test_evaluate`'s."""
  image = image.astype(np.float32)[None] / 127.5 - 1
  bright = jax.nn.sigmoid(50 * image.mean(-1))
  p = jnp.stack([1 - bright, bright], -1)
  logits = jnp.log(jnp.maximum(p, 1e-10))
  return np.asarray(dense_crf.mean_field(logits, image, settings))[0].argmax(-1)


def test_evaluation_has_a_second_row(tmp_path):
  scores = _evaluate(tmp_path, crf=BLUR)
  rows = ['majority class', 'Ours-NO', 'Ours-NO+CRF', 'Ours', 'Ours+CRF',
          'U-Net', 'U-Net+CRF']  # fmt: skip
  assert list(scores['test']) == list(scores['ood_a']) == rows
  assert sorted(CALLS) == ['predict', 'predict', 'refine']  # one for both rows
  source, splits = _source()
  changed = 0
  for id_ in splits.test:
    image = source.image(id_)
    for folder, expected in (
      ('encoder', image[..., 0] > 127), ('encoder_crf', _expected(image)),
    ):  # fmt: skip
      mask = Image.open(tmp_path / f'masks/test/{folder}/{id_}.png')
      np.testing.assert_array_equal(np.asarray(mask), expected)
    changed += (_expected(image) != (image[..., 0] > 127)).sum()
    overlay = Image.open(tmp_path / f'overlays/test/{id_}.png')
    assert overlay.size == (8 * 96 + 7 * 2, 96)
  assert changed > 10
  pair = [scores['test'][n]['seconds_per_image'] for n in rows[1:3]]
  assert 0 < pair[0] < pair[1]
  assert 'U-Net+CRF' in (tmp_path / 'table.md').read_text()
  report = (tmp_path / 'report.html').read_text()
  assert 'predicted, Ours+CRF' in report and 'spatial_weight 200.0' in report
  assert 'reconstruction, Ours"' in report
  assert 'reconstruction, Ours+CRF' not in report


def test_rows_are_kept_or_done_anew(tmp_path):
  few = dict(split_names=['test'], systems=['U-Net'])
  first = _evaluate(tmp_path, **few)['test']
  second = _evaluate(tmp_path, **few, crf=BLUR)['test']
  assert list(second) == ['majority class', 'U-Net', 'U-Net+CRF']
  assert json.dumps(second['U-Net']) == json.dumps(first['U-Net'])
  for crf in (BLUR, None, BLUR._replace(max_vertices=9)):
    again = _evaluate(tmp_path, **few, crf=crf)['test']
    assert not CALLS and json.dumps(again) == json.dumps(second)
  other = BLUR._replace(spatial_weight=1.0)
  third = _evaluate(tmp_path, **few, crf=other)['test']
  assert CALLS == ['predict']
  assert json.dumps(third['U-Net']) == json.dumps(first['U-Net'])
  matrices = [x['U-Net+CRF']['confusion_matrix'] for x in (second, third)]
  assert matrices[0] != matrices[1]
  alone = dict(split_names=['ood_a'], systems=['U-Net+CRF'], crf=other)
  assert list(_evaluate(tmp_path, **alone)['ood_a']) == [
    'majority class', 'U-Net+CRF',
  ]  # fmt: skip
  with pytest.raises(UserError, match="--systems: 'U-Net.CRF' is no system"):
    _evaluate(tmp_path / 'b', systems=['U-Net+CRF'])


def _parse(monkeypatch, module, *args):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  monkeypatch.setattr(sys, 'argv', ['command', *map(str, args)])
  module._define_flags(values)
  return values(sys.argv)


def test_evaluate_command(tmp_path, monkeypatch):
  _workdir(tmp_path)
  monkeypatch.setattr(sources, 'load', lambda *_: _source()[0])
  monkeypatch.setattr(workdir, 'load', lambda w, **_: _trained())
  evaluate.main(_parse(
    monkeypatch, evaluate, f'--workdir={tmp_path}', '--splits=test', '--crf',
    '--systems=U-Net', '--mean_field.iterations=2',
    '--mean_field.bilateral_weight=0', '--mean_field.spatial_weight=200',
    '--mean_field.spatial_xy=0.1', '--mean_field.filter=exact',
  ))  # fmt: skip
  source, splits = _source()
  folder = tmp_path / 'evaluation/masks/test/unet_crf'
  for id_ in splits.test:
    mask = np.asarray(Image.open(folder / f'{id_}.png'))
    np.testing.assert_array_equal(mask, _expected(source.image(id_)))


@pytest.mark.parametrize('module', (evaluate, predict))
@pytest.mark.parametrize('args, message', (
  (['--crf', '--mean_field.iterations=0'], 'iterations is 0, must'),
  (['--crf', '--mean_field.spatial_xy=-0.1'], 'spatial_xy is -0.1, must'),
  (['--crf', '--mean_field.filter=grid'], "filter is 'grid', must"),
  (['--mean_field.bilateral_xy=0.1'], '.bilateral_xy was given without --crf'),
  (['--crf', '--mean_field.xy=0.1'], "--mean_field has no field 'xy'"),
))  # fmt: skip
def test_bad_flags(module, args, message, tmp_path, monkeypatch, capsys):
  where = ['--workdir=w']
  if module is predict:
    where += [f'--images={tmp_path}', f'--output={tmp_path / "out"}']
  with pytest.raises(SystemExit) as error:
    module.main(_parse(monkeypatch, module, *where, *args))
  assert error.value.code == 2
  told = capsys.readouterr().err
  assert told.startswith('jaxseg: --mean_field') and message in told


def test_predict_folder(tmp_path):
  images = tmp_path / 'in'
  images.mkdir()
  image = np.random.default_rng(0).choice([30, 220], (SIDE, SIDE))
  Image.fromarray(image.astype(np.uint8)).save(images / 'a.png')

  def label(crf):
    output = tmp_path / 'out'
    predict.predict_folder(make_trained(), images, output, crf=crf)
    with (output / 'predictions.csv').open(newline='') as file:
      (row,) = csv.DictReader(file)
    return np.asarray(Image.open(output / 'a.png')), row

  plain, row = label(None)
  blurred, other = label(BLUR)
  again, same = label(BLUR)
  assert (plain != blurred).mean() > 0.1 and (again == blurred).all()
  assert row['trust'] == other['trust'] and other == same
  (found, probabilities), = inference.predict_images(
    make_trained(), [image.astype(np.uint8)], crf=BLUR
  )  # fmt: skip
  np.testing.assert_array_equal(found, blurred)
  np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def _run(settings, needed):
  """Follows a network with lattices that need so much room."""
  made = []

  def compile_(function, shape):
    made.append(shape)
    return lambda x: (jax.tree.map(np.asarray, function((), x)), 0.5)

  run = mean_field.runner(settings, compile_)
  rng = np.random.default_rng(0)
  p = rng.dirichlet(np.ones(2), (2, 8, 8)).astype(np.float32)
  images = np.full((2, 8, 8, 3), needed, np.float32)
  for _ in range(2):
    prediction, seconds = run(Prediction(p, trust=np.ones(2)), images)
  assert seconds == 0.5 and prediction.trust.tolist() == [1, 1]
  np.testing.assert_allclose(prediction.probabilities, p, rtol=1e-5)
  return made


def test_lattice_grows_or_is_refused(monkeypatch):
  room = lambda settings: settings.max_vertices or 20

  def faked(logits, image, settings):
    needed = jnp.asarray(image[:, 0, 0, 0]).astype(jnp.int32)
    needed = jnp.where(needed < 0, permutohedral.TOO_WIDE, needed)
    shortage = jnp.where(needed > room(settings), needed, 0)
    return jax.nn.softmax(logits), shortage

  monkeypatch.setattr(dense_crf, 'mean_field_and_shortage', faked)
  assert _run(CRF(), 20) == [(8, 8, 5)]
  assert len(_run(CRF(), 21)) == 2
  assert len(_run(CRF(max_vertices=21), 21)) == 1
  with pytest.raises(
    UserError, match='--mean_field.max_vertices is 21, but an image needs 22;'
  ):
    _run(CRF(max_vertices=21), 22)
  with pytest.raises(UserError, match='bilateral_rgb=13 are too small for'):
    _run(CRF(), -1)


def test_settings_are_remembered(tmp_path):
  path = tmp_path / 'a' / 'mean_field.json'
  assert mean_field.remember(path, None) is None
  assert mean_field.remember(path, BLUR) == BLUR
  assert mean_field.remember(path, None) == BLUR
  path.write_text('{"other": 1}')
  assert mean_field.remember(path, None) is None
