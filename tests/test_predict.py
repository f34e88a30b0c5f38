"""A folder of images in, masks of the same size out, whatever happens."""

import csv
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image
from thresholding import SIDE, make_trained

import jaxseg.config
from jaxseg import inference, predict, predict_files
from jaxseg.errors import UserError


def _image(seed=0, shape=(SIDE, SIDE)):
  """Dark and bright pixels, none near the middle."""
  return np.random.default_rng(seed).choice([30, 220], shape).astype(np.uint8)


def _rows(folder):
  with (folder / 'predictions.csv').open(newline='') as file:
    return list(csv.DictReader(file))


@pytest.fixture
def folders(tmp_path):
  (tmp_path / 'in').mkdir()
  return tmp_path / 'in', tmp_path / 'out'


def test_masks_overlays_and_table(folders):
  source, output = folders
  arrays = {f'{i}.png': _image(i) for i in range(4)}  # a full, a partial batch
  for name, array in arrays.items():
    Image.fromarray(array).save(source / name)
  (source / 'notes.txt').write_text('not an image')
  assert predict.predict_folder(make_trained(), source, output) == []
  assert sorted(p.name for p in output.iterdir()) == [
    '0.png', '1.png', '2.png', '3.png', 'overlays', 'predicted_by.json',
    'predictions.csv',
  ]  # fmt: skip
  for row, (name, array) in zip(_rows(output), arrays.items(), strict=True):
    mask = Image.open(output / name)
    assert mask.mode == 'P' and mask.getpalette()[:6] == [0, 0, 0, 255, 0, 0]
    np.testing.assert_array_equal(np.asarray(mask), array > 127)
    overlay = np.asarray(Image.open(output / 'overlays' / name))
    assert overlay.shape == (SIDE, SIDE, 3)
    assert (overlay[array < 127] == array[array < 127][:, None]).all()
    assert row['file'] == row['mask'] == name
    assert float(row['fraction_lung']) == pytest.approx((array > 127).mean())
    total = float(row['fraction_lung']) + float(row['fraction_background'])
    assert total == pytest.approx(1)
    assert float(row['trust']) == pytest.approx(1, abs=1e-3)
    assert float(row['seconds']) > 0


def _save_kinds(folder):
  """The same scene, bright on the right, in every kind of file."""
  grey = np.full((20, 30), 30, np.uint8)
  grey[:, 15:] = 220
  rgb = np.repeat(grey[..., None], 3, -1)
  Image.fromarray(grey).save(folder / 'grey.png')
  Image.fromarray(rgb).save(folder / 'rgb.jpg', quality=95)
  alpha = np.full((20, 30, 1), 255, np.uint8)
  Image.fromarray(np.concatenate([rgb, alpha], -1)).save(folder / 'rgba.png')
  Image.fromarray(rgb).quantize(4).save(folder / 'palette.png')
  deep = Image.fromarray(grey.astype(np.uint16) * 200)
  deep.save(folder / 'deep.png')
  exif = Image.Exif()
  exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to see it
  turned = Image.fromarray(rgb).rotate(90, expand=True)
  turned.save(folder / 'exif.jpg', exif=exif, quality=95)


def test_other_settings_of_test_time_optimisation_count_anew(folders, capsys):
  source, output = folders
  Image.fromarray(_image()).save(source / 'a.png')
  trained = make_trained(refined_at=0.5)
  stage = jaxseg.config.stage('semantic_gan_encoder', init_from='gan')
  config = jaxseg.config.add_stages(trained.config, seg=stage)
  trained = trained._replace(config=config)
  for steps, done in ((5, False), (5, True), (6, False)):
    config.seg.args.refine_steps = steps
    predict.predict_folder(trained, source, output)
    assert ('1 of 1 files are done' in capsys.readouterr().out) == done


@pytest.mark.parametrize('channels', [1, 3])
def test_every_kind_of_file_at_its_own_size(folders, channels):
  source, output = folders
  _save_kinds(source)
  trained = make_trained(channels=channels)
  assert predict.predict_folder(trained, source, output) == []
  expected = np.zeros((20, 30), bool)
  expected[:, 15:] = True
  assert len(_rows(output)) == 6
  for row in _rows(output):
    mask = np.asarray(Image.open(output / row['mask']))
    assert mask.shape == (20, 30), row
    # The networks see 8x8 pixels: the border may be off by one of theirs.
    clear = np.r_[:11, 19:30]
    np.testing.assert_array_equal(
      mask[:, clear], expected[:, clear], err_msg=row['file']
    )


def test_bad_files_are_named_and_the_rest_is_done(folders, capsys):
  source, output = folders
  Image.fromarray(_image()).save(source / 'good.png')
  data = (source / 'good.png').read_bytes()
  (source / 'cut.png').write_bytes(data[: len(data) // 2])
  (source / 'text.jpg').write_text('hello')
  bad = predict.predict_folder(make_trained(), source, output)
  assert bad == ['cut.png', 'text.jpg']
  text = capsys.readouterr().out
  assert 'cut.png' in text and 'text.jpg' in text
  assert [row['file'] for row in _rows(output)] == ['good.png']


def test_only_bad_files(folders):
  source, output = folders
  (source / 'a.png').write_text('')
  assert predict.predict_folder(make_trained(), source, output) == ['a.png']


def test_rerun_keeps_what_is_done(folders, capsys):
  source, output = folders
  for i in range(3):
    Image.fromarray(_image(i)).save(source / f'{i}.png')
  predict.predict_folder(make_trained(), source, output)
  before = {p: p.stat().st_mtime_ns for p in output.rglob('*.png')}
  (output / '1.png').unlink()  # as if it had been interrupted here
  Image.fromarray(_image(9)).save(source / '2.png')  # a new picture
  os.utime(source / '2.png', ns=(2**62, 2**62))
  Image.fromarray(_image(3)).save(source / '3.png')
  capsys.readouterr()
  predict.predict_folder(make_trained(), source, output)
  assert '1 of 4 files are done' in capsys.readouterr().out
  assert (output / '0.png').stat().st_mtime_ns == before[output / '0.png']
  for i, seed in enumerate((0, 1, 9, 3)):
    mask = np.asarray(Image.open(output / f'{i}.png'))
    np.testing.assert_array_equal(mask, _image(seed) > 127)
  assert len(_rows(output)) == 4


def test_other_weights_do_everything_again(folders):
  source, output = folders
  Image.fromarray(_image()).save(source / 'a.png')
  predict.predict_folder(make_trained(), source, output)
  predict.predict_folder(make_trained(at=0.9), source, output)
  assert not np.asarray(Image.open(output / 'a.png')).any()


def test_output_names_are_distinct():
  names = predict_files.output_names(
    ['b.png', 'a.jpg', 'a.png', 'A.JPG', 'c.tif']
  )
  assert names == {
    'A.JPG': 'A.JPG.png',
    'a.jpg': 'a.jpg_.png',
    'a.png': 'a.png.png',
    'b.png': 'b.png',
    'c.tif': 'c.png',
  }
  hard = ['a.jpg', 'a.png', 'a.jpg.png', 'a.png.bmp', 'a.png.png']
  masks = list(predict_files.output_names(hard).values())
  assert len(set(masks)) == len(hard)


def test_same_stem_gives_two_masks(folders):
  source, output = folders
  Image.fromarray(_image(0)).save(source / 'a.png')
  Image.fromarray(_image(1)).save(source / 'a.bmp')
  predict.predict_folder(make_trained(), source, output)
  for file, seed in (('a.png', 0), ('a.bmp', 1)):
    mask = np.asarray(Image.open(output / f'{file}.png'))
    np.testing.assert_array_equal(mask, _image(seed) > 127)


def test_choose_prefers_the_refined_system():
  trained = make_trained(refined_at=0.9)
  assert [s.name for s in inference.systems(trained)] == ['U-Net-NO', 'U-Net']
  assert [s.name for s in inference.systems(trained, refine=False)] == [
    'U-Net-NO'
  ]
  assert inference.choose(trained).name == 'U-Net'
  assert inference.choose(trained, refine=False).name == 'U-Net-NO'
  plain = make_trained()
  both = trained._replace(
    stages={**trained.stages, 'unet': plain.stages['seg']}
  )
  assert inference.choose(both).stage == 'seg'
  assert inference.choose(both, 'unet').stage == 'unet'
  for stage in ('gan', 'nonsense'):
    with pytest.raises(UserError, match=f'--stage={stage}.*seg, unet'):
      inference.choose(both, stage)
  only_gan = trained._replace(stages={'gan': trained.stages['gan']})
  with pytest.raises(UserError, match='no trained stage'):
    inference.choose(only_gan)


def test_fingerprint_sees_weights_and_step():
  state = make_trained().stages['seg'].state
  same = inference.fingerprint(make_trained().stages['seg'].state)
  assert inference.fingerprint(state) == same
  later = state.replace(step=jnp.int32(8))
  other = make_trained(at=0.1).stages['seg'].state
  keyed = state.replace(extra={'key': jax.random.key(1)})
  assert len({*map(inference.fingerprint, (state, later, other))}) == 3
  assert inference.fingerprint(keyed) == same
  half = state.replace(extra={'x': jnp.ones(3, jnp.bfloat16)})
  assert inference.fingerprint(half) != same


def test_predict_images_in_memory():
  trained = make_trained(refined_at=0.5)
  trained.config.data.fit = 'squeeze'
  images = [_image(0), _image(1, (SIDE, SIDE, 3)), np.full((40, 16), 180, 'u1')]
  grey = np.repeat(images[1][..., :1], 3, -1)
  results = predict.predict_images(trained, [images[0], grey, images[2]])
  assert [mask.shape for mask, _ in results] == [(8, 8), (8, 8), (40, 16)]
  np.testing.assert_array_equal(results[0][0], images[0] > 127)
  np.testing.assert_array_equal(results[1][0], grey[..., 0] > 127)
  assert not results[2][0].any()  # 180 is 0.41, below the refined 0.5
  for mask, probabilities in results:
    assert mask.dtype == np.uint8 and probabilities.dtype == np.float32
    assert probabilities.shape == (*mask.shape, 2)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  ((mask, _),) = predict.predict_images(trained, images[2:], refine=False)
  assert mask.all()
  assert predict.predict_images(trained, []) == []
  with pytest.raises(TypeError, match='float32'):
    predict.predict_images(trained, [np.zeros((8, 8), np.float32)])


@pytest.mark.parametrize('policy', ['crop', 'pad', ''])
def test_images_that_are_not_square(policy, folders):
  """The answer lies where the image showed it; void where it was not seen."""
  trained = make_trained()
  trained.config.data.fit = policy
  image = np.full((SIDE, 3 * SIDE), 30, np.uint8)
  image[:, SIDE : 2 * SIDE] = 220
  ((mask, probabilities),) = predict.predict_images(trained, [image])
  expected = (image > 127).astype(np.uint8)
  if policy == 'crop':
    expected[:, :SIDE] = expected[:, 2 * SIDE :] = 255
    assert (probabilities[:, 0] == 0.5).all()
    np.testing.assert_array_equal(mask, expected)
  else:  # at an eighth of the size, give or take a pixel
    assert (mask == expected).mean() > 0.8 and mask[SIDE // 2, SIDE + 4] == 1
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  source, output = folders
  Image.fromarray(image).save(source / 'wide.png')
  predict.predict_folder(trained, source, output)
  np.testing.assert_array_equal(Image.open(output / 'wide.png'), mask)
  (row,) = _rows(output)
  shares = [float(row[f'fraction_{name}']) for name in trained.class_names]
  assert abs(sum(shares) - (mask != 255).mean()) < 1e-5


@pytest.mark.parametrize('policy', ['crop', 'pad', 'squeeze', ''])
def test_networks_that_see_a_rectangle(policy, folders):
  """8 x 16 pixels of an image of 16 x 16, exactly where nothing is resized."""
  trained = make_trained()
  trained.config.data.width = 2 * SIDE
  trained.config.data.fit = policy
  image = np.full((2 * SIDE, 2 * SIDE), 30, np.uint8)
  image[:, SIDE:] = 220
  expected = (image > 127).astype(np.uint8)
  if policy == 'crop':
    expected[: SIDE // 2] = expected[-SIDE // 2 :] = 255
  ((mask, probabilities),) = predict.predict_images(trained, [image])
  if policy in ('crop', 'squeeze'):  # columns are as they were
    np.testing.assert_array_equal(mask, expected)
  else:  # at half the size
    assert (mask == expected).mean() > 0.9
  assert probabilities.shape == (2 * SIDE, 2 * SIDE, 2)
  source, output = folders
  Image.fromarray(image).save(source / 'square.png')
  wide = np.repeat(image[:SIDE], 2, 1)  # 8 x 32: wider than what they see
  Image.fromarray(wide).save(source / 'wide.png')
  predict.predict_folder(trained, source, output)
  np.testing.assert_array_equal(Image.open(output / 'square.png'), mask)
  answer = np.asarray(Image.open(output / 'wide.png'))
  assert answer.shape == wide.shape
  seen = answer != 255
  assert (answer == (wide > 127))[seen].mean() > 0.85
  assert seen.mean() == (0.5 if policy == 'crop' else 1)


def test_deep_images_are_read_as_in_training(folders):
  source, output = folders
  values = np.where(_image(0) > 127, 1200, 100).astype(np.uint16)
  Image.fromarray(values).save(source / 'ct.png')
  trained = make_trained()
  trained.config.data.intensity.mode = 'window'
  trained.config.data.intensity.window = (0.0, 3000.0)
  predict.predict_folder(trained, source, output)
  assert not np.asarray(Image.open(output / 'ct.png')).any()  # 1200 is dark
  # Another window is another answer: what is there is done anew.
  predict._show_window(trained.config, ['0', '1500'])
  predict.predict_folder(trained, source, output)
  np.testing.assert_array_equal(Image.open(output / 'ct.png'), values > 1000)


def test_window_of_the_command_line():
  with pytest.raises(UserError, match="--window is '1', expected the lowest"):
    predict._show_window(make_trained().config, ['1'])


def test_probabilities_are_resized_before_the_arg_max():
  p = np.random.default_rng(0).dirichlet(np.ones(3), (6, 5)).astype(np.float32)
  big = inference.resize_probabilities(p, (17, 23))
  assert big.shape == (17, 23, 3)
  np.testing.assert_allclose(big.sum(-1), 1, atol=1e-5)
  oracle = jax.image.resize(p, (17, 23, 3), 'bilinear')
  np.testing.assert_allclose(big, oracle, atol=1e-5)
  np.testing.assert_array_equal(inference.label_at(p, (17, 23)), big.argmax(-1))
  np.testing.assert_array_equal(inference.label_at(p, (6, 5)), p.argmax(-1))
  smaller = inference.label_at(p, (3, 2))
  oracle = jax.image.resize(p, (3, 2, 3), 'bilinear').argmax(-1)
  np.testing.assert_array_equal(smaller, oracle)


def test_padding_does_not_change_a_prediction():
  trained = make_trained()
  system = inference.choose(trained)
  run = inference.compile_system(system, trained.config, 4)
  batch = np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE, 1))
  batch = batch.astype(np.float32)
  out, seconds = run(batch)
  assert out.probabilities.shape == (3, SIDE, SIDE, 2) and seconds > 0
  assert out.trust.shape == (3,) and out.reconstruction is None
  np.testing.assert_array_equal(
    run(batch[1:2])[0].probabilities, out.probabilities[1:2]
  )


def test_unusable_folders(folders):
  source, output = folders
  with pytest.raises(UserError, match='holds no image'):
    predict.predict_folder(make_trained(), source, output)
  with pytest.raises(UserError, match='missing'):
    predict.predict_folder(make_trained(), source / 'x', output)
  Image.fromarray(_image()).save(source / 'a.png')
  with pytest.raises(UserError, match='a file'):
    predict.predict_folder(make_trained(), source / 'a.png', output)
  with pytest.raises(UserError, match='overwrite'):
    predict.predict_folder(make_trained(), source, source)
  assert not output.exists()


def _main(monkeypatch, *args):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  predict._define_flags(values)
  return predict.main(values(['predict', *args]))


def test_exit_codes(monkeypatch, folders, capsys):
  source, output = folders
  monkeypatch.setattr(predict.workdir, 'load', lambda w, **_: make_trained())
  where = [f'--images={source}', f'--output={output}', '--workdir=w']
  with pytest.raises(SystemExit) as error:
    _main(monkeypatch, *where)
  assert error.value.code == 2
  Image.fromarray(_image()).save(source / 'a.png')
  assert _main(monkeypatch, *where) == 0
  (source / 'b.png').write_text('no image')
  assert _main(monkeypatch, *where) == 1
  assert '1 file could not be read: b.png' in capsys.readouterr().out
  with pytest.raises(SystemExit) as error:
    _main(monkeypatch, *where[1:])
  assert error.value.code == 2
  assert '--images is missing' in capsys.readouterr().err


def test_command_without_workdir_tells_what_to_do(folders):
  source, output = folders
  Image.fromarray(_image()).save(source / 'a.png')
  done = subprocess.run(
    [sys.executable, '-m', 'jaxseg.predict', f'--images={source}',
     f'--output={output}', f'--workdir={source}/none'],
    capture_output=True, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert done.stderr.count('\n') == 1 and 'config.json' in done.stderr
