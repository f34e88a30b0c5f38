"""Published generators invert a folder of images, whatever lies in it."""

import csv
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg import (
  predict,
  predict_inversion,
  predict_tto,
  pretrained,
  visualize,
)
from jaxseg.data import transforms
from jaxseg.errors import UserError
from jaxseg.methods import frozen
from jaxseg.nets import lpips
from jaxseg.published import folder, networks

SIDE = 16
CELL = 96  # of a strip, magnified
GENERATOR = {
  'resolution': SIDE, 'channels': 3, 'num_classes': 1, 'w_dim': 8,
  'mapping_depth': 2, 'channel_max': 8,
}  # fmt: skip


def save(path, **settings):
  """Writes random networks: {name: (arch, settings)}; returns the folder."""
  found = {}
  for i, (name, (arch, fields)) in enumerate(settings.items()):
    net = networks.module(arch, fields)
    is_generator = arch == 'stylegan2_generator'
    x = np.zeros((1, 8) if is_generator else (1, SIDE, SIDE, 3), np.float32)
    variables = jax.jit(net.init)(jax.random.key(i), x)
    variables = jax.tree.map(np.asarray, dict(variables))
    found[name] = networks.Network(arch, fields, variables)
  folder.save(networks.Converted('semanticgan', found, {}), path)
  return path


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A generator with a label branch, its encoder and its discriminator."""
  sizes = {'resolution': SIDE, 'channel_max': 8}
  return save(
    tmp_path_factory.mktemp('weights') / 'all',
    g_ema=('stylegan2_generator', GENERATOR),
    e=('residual_encoder', sizes | {'w_dim': 8}),
    d_r=('stylegan2_discriminator', sizes),
  )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """A generator and nothing else."""
  fields = GENERATOR | {'num_classes': 0}
  path = tmp_path_factory.mktemp('weights') / 'alone'
  return save(path, g_ema=('stylegan2_generator', fields))


def _image(shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
  """A square, a wide and a broken one."""
  source = tmp_path / 'in'
  source.mkdir()
  Image.fromarray(_image((SIDE, SIDE))).save(source / 'a.png')
  Image.fromarray(_image((20, 30), 1)).save(source / 'b.png')
  (source / 'c.jpg').write_text('no image')
  return source


def _values(monkeypatch, *args):
  values = flags.FlagValues()
  monkeypatch.setattr(flags, 'FLAGS', values)
  monkeypatch.setattr(sys, 'argv', ['predict', *map(str, args)])
  predict._define_flags(values)
  return values, values(sys.argv)


def _main(monkeypatch, *args):
  return predict.main(_values(monkeypatch, *args)[1])


def _rows(output):
  with (output / 'inversions.csv').open(newline='') as file:
    return {row['file']: row for row in csv.DictReader(file)}


def _panels(strip):
  """What a strip shows, back at the generator's size."""
  strip = np.asarray(Image.open(strip))[-CELL:]
  step, k = CELL + 2, CELL // SIDE
  return [strip[::k, i : i + CELL : k] for i in range(0, strip.shape[1], step)]


def _arguments(weights, images, output, *more):
  return (
    f'--pretrained={weights}', f'--images={images}', f'--output={output}',
    '--perceptual_kind=discriminator', '--batch_size=2', *more,
  )  # fmt: skip


def test_a_folder_is_inverted_and_kept(
  monkeypatch, capsys, weights, images, tmp_path
):
  output = tmp_path / 'out'
  steps = '--tto.steps=4', '--tto.lr=0.05', '--tto.snapshots=2'
  arguments = _arguments(weights, images, output, *steps)
  assert _main(monkeypatch, *arguments) == 1
  said = capsys.readouterr().out
  assert '1 file could not be read: c.jpg' in said
  assert 'perceptual distance: discriminator' in said
  _check_results(weights, output)

  written = list(output.rglob('*.png')) + list(output.rglob('*.npy'))
  assert len(written) == 2 * 5
  before = {path: path.stat().st_mtime_ns for path in written}
  (output / 'codes' / 'b.npy').unlink()  # as if it had been interrupted here
  assert _main(monkeypatch, *arguments) == 1
  assert '1 of 3 files are done' in capsys.readouterr().out
  same = {
    path.name for path in written if path.stat().st_mtime_ns == before[path]
  }
  assert same == {'a.png', 'a.npy'}

  arguments = _arguments(weights, images, output, '--tto.steps=0')
  assert _main(monkeypatch, *arguments) == 1
  assert 'are done' not in capsys.readouterr().out
  assert len(_panels(output / 'strips' / 'a.png')) == 2
  assert list(_rows(output)['a.png'])[2:] == ['perceptual_0', 'l2_0', 'seconds']


def _check_results(weights, output):
  """Strip, reconstruction, code, mask and row of the square image."""
  system = predict_inversion.load(weights, 'discriminator')
  original, start, _, last = panels = _panels(output / 'strips' / 'a.png')
  assert all(panel.shape == (SIDE, SIDE, 3) for panel in panels)
  np.testing.assert_array_equal(original, _image((SIDE, SIDE)))
  assert np.asarray(Image.open(output / 'strips' / 'b.png')).shape == (
    (CELL + 20, 4 * CELL + 3 * 2, 3)
  )
  draw = jax.jit(
    lambda w: frozen.synthesize(
      system.modules, system.weights, w, system.weights['noise']
    )
  )
  encode = jax.jit(lambda x: frozen.encode(system.modules, system.weights, x))
  # The encoder compares the images of its batch.
  inputs = [
    transforms.normalise(_panels(output / 'strips' / name)[0])
    for name in ('a.png', 'b.png')
  ]
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1)
  image, _ = draw(encode(jnp.stack(inputs)))
  close(start.astype(int), visualize.to_uint8(image[0]).astype(int))
  code = np.load(output / 'codes' / 'a.npy')
  assert code.dtype == np.float32 and code.shape == (6, 8)
  image, logits = draw(jnp.stack([code, code]))
  close(last.astype(int), visualize.to_uint8(image[0]).astype(int))
  reconstruction = Image.open(output / 'reconstructions' / 'a.png')
  np.testing.assert_array_equal(np.asarray(reconstruction), last)
  mask = np.asarray(Image.open(output / 'a.png'))
  assert (mask == (np.asarray(logits[0, ..., 0]) > 0)).mean() > 0.98
  wide = np.asarray(Image.open(output / 'b.png'))
  assert wide.shape == (20, 30) and (wide[:, [4, 25]] == 255).all()
  assert (wide[:, 5:25] < 2).all()
  for row in _rows(output).values():
    loss = [
      float(row[f'perceptual_{i}']) + 0.1 * float(row[f'l2_{i}'])
      for i in (0, 2, 4)
    ]
    assert loss[0] > loss[1] > loss[2]


def test_a_generator_alone_begins_at_the_mean_w(
  monkeypatch, capsys, alone, images, tmp_path
):
  monkeypatch.setattr(lpips, 'find_weights', lambda: None)
  output = tmp_path / 'out'
  arguments = _arguments(alone, images, output, '--tto.steps=0')
  assert _main(monkeypatch, *arguments[:3], *arguments[4:]) == 1
  said = capsys.readouterr().out
  assert 'begins with the mean w' in said
  assert 'the squared error alone counts; install' in said
  system = predict_inversion.load(alone)
  np.testing.assert_allclose(
    np.load(output / 'codes' / 'a.npy'), system.weights['w_avg'], atol=1e-6
  )
  assert set(_rows(output)['b.png']) == {'file', 'strip', 'l2_0', 'seconds'}
  assert not (output / 'a.png').exists()
  assert not (output / 'overlays').exists()


def test_where_the_last_loss_is_not_finite_the_best_code_stays(alone):
  system = predict_inversion.load(alone, 'discriminator')
  assert system.distance is None
  images = transforms.normalise(_image((SIDE, SIDE)))[None]
  values = system.weights, system.distance_weights
  run = lambda lr: jax.jit(
    predict_inversion.inverter(
      system, predict_tto.Settings(steps=2, lr=lr, optimize_noise=True)
    )
  )(values, images)
  found = run(float('nan'))
  assert found.diverged.all()
  np.testing.assert_array_equal(found.w_plus[0], system.weights['w_avg'])
  np.testing.assert_allclose(found.l2[:, 1], found.l2[:, 0], rtol=1e-5)


@pytest.mark.parametrize(
  ('more', 'sentence'),
  [
    (['--workdir=w'], '--workdir was given with --pretrained'),
    (['--norefine'], '--refine was given with --pretrained'),
    (['--tto.steps=5', '--tto.snapshots=(0,6)'], 'holds 6, must be steps'),
    (['--tto.snapshots=(0,1.5)'], 'holds 1.5, must be steps'),
    (['--tto.lr=nan'], '--tto.lr is nan, must be 0 or more'),
    (['--tto.schedule=cosine'], "'cosine', must be one of constant, ramp"),
    (['--output='], '--output is missing'),
    (['--tto.stepz=5'], "--tto has no field 'stepz', did you mean 'steps'"),
    (['--pretrained='], '--pretrained is missing'),
  ],
)
def test_mistakes_are_told_in_a_sentence(
  monkeypatch, capsys, weights, images, tmp_path, more, sentence
):
  output = tmp_path / 'out'
  with pytest.raises(SystemExit) as error:
    _main(monkeypatch, *_arguments(weights, images, output), *more)
  assert error.value.code == 2
  told = capsys.readouterr().err
  assert sentence in told and told.count('\n') == 1
  assert not output.exists()


@pytest.mark.parametrize(('name', 'value'), [('tto.steps', 5), ('fit', 'pad')])
def test_flags_of_the_other_kind_of_weights_are_refused(
  monkeypatch, capsys, images, tmp_path, name, value
):
  with pytest.raises(SystemExit):
    _main(
      monkeypatch, '--workdir=w', f'--images={images}',
      f'--output={tmp_path / "out"}', f'--{name}={value}',
    )  # fmt: skip
  told = capsys.readouterr().err
  assert f'--{name.partition(".")[0]} was given without --pretrained' in told


def test_a_folder_without_weights_is_refused(images):
  with pytest.raises(UserError, match='holds no pretrained.json'):
    predict_inversion.load(images)


def _psp_ffhq():
  path = Path(__file__).parents[1] / 'configs' / 'psp_ffhq.py'
  spec = importlib.util.spec_from_file_location('psp_ffhq', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config, path


def test_the_config_holds_the_first_users_numbers(monkeypatch):
  get_config, path = _psp_ffhq()
  config = get_config()
  assert config.is_locked
  jaxseg_config.check_data(config.data)
  with pytest.raises(ValueError, match='takes no argument'):
    get_config('x')
  args, _ = _values(
    monkeypatch, f'--config={path}', '--config.tto.lr=0.02', '--tto.steps=7'
  )
  settings, data = predict_tto.from_flags(args)
  assert settings == predict_tto.Settings(steps=7, lr=0.02)
  assert predict_tto.shown_steps(settings) == (0, 7)
  assert data.fit == 'crop'
  args, _ = _values(monkeypatch, '--fit=squeeze')
  settings, data = predict_tto.from_flags(args)
  assert (settings.steps, settings.lr) == (100, 0.01)
  assert settings.rate()(3) == 0.01 and data.fit == 'squeeze'
  ramp = predict_tto.Settings(schedule='ramp').rate()
  assert float(ramp(0)) < float(ramp(50)) > float(ramp(99))


def test_the_published_layout_inverts(monkeypatch, shared, tmp_path):
  """Once: its encoder sees 256 pixels and compiles for long."""
  monkeypatch.setattr(lpips, 'find_weights', lambda: None)
  source = shared / 'golden' / 'semanticgan' / 'psp_rgb_64.pt'
  weights, output = str(tmp_path / 'psp'), tmp_path / 'out'
  pretrained.convert('psp', str(source), weights)
  (tmp_path / 'in').mkdir()
  Image.fromarray(_image((64, 64))).save(tmp_path / 'in' / 'a.png')
  done = _main(
    monkeypatch, f'--pretrained={weights}', f'--images={tmp_path / "in"}',
    f'--output={output}', '--tto.steps=3', '--tto.lr=0.02',
  )  # fmt: skip
  assert done == 0
  row = _rows(output)['a.png']
  assert float(row['l2_3']) < float(row['l2_0'])
  assert np.load(output / 'codes' / 'a.npy').shape == (10, 32)
