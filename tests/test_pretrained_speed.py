"""Files of random weights are as published ones; what is measured is told."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg import pretrained
from jaxseg.errors import UserError
from jaxseg.published import read


@pytest.fixture
def benchmark_of(monkeypatch):
  """Imports a module of benchmarks/, flags parsed."""
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])

  def load(name):
    module = importlib.import_module(f'benchmarks.{name}')
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    return module

  return load


@pytest.mark.parametrize('kind', ['psp', 'stylegan2-ada'])
def test_files_convert_and_hold_what_was_drawn(benchmark_of, tmp_path, kind):
  weight_files = benchmark_of('weight_files')
  path = tmp_path / 'weights'
  weight_files.WRITERS[kind](path, 32, 128)
  prefix, name = {
    'psp': ('state_dict/', 'encoder.latlayer1.weight'),
    'stylegan2-ada': ('G_ema/', 'synthesis.b4.const'),
  }[kind]
  array = read.open_source(str(path)).tensors[prefix + name].read()
  assert np.isfinite(array).all() and array.std() > 0
  card = pretrained.convert(kind, str(path), str(tmp_path / 'out'))
  g = card['networks']['g_ema']
  assert g['settings']['resolution'] == 32
  assert g['settings']['widths'] == [128] * 4
  assert card['ignored'] == []


def test_published_sizes(benchmark_of):
  """pSp's file for FFHQ has 1.2 GB, a pickle of StyleGAN2-ADA some 350 MB."""
  layouts = benchmark_of('weight_layouts')
  count = lambda layout: sum(int(np.prod(s)) for s in layout.values())
  assert 1.19e9 < 4 * count(layouts.psp(1024)) < 1.21e9
  ada = 2 * count(layouts.ada_generator(1024))
  ada += count(layouts.ada_discriminator(1024))
  assert 3.4e8 < 4 * ada < 3.9e8


def test_conversion_is_measured_in_its_own_process(benchmark_of, tmp_path):
  conversion = benchmark_of('conversion')
  with flagsaver.flagsaver(
    conversion_kinds=['stylegan2-ada'], conversion_size=32,
    conversion_widest=128, conversion_folder=str(tmp_path),
  ):  # fmt: skip
    cells = conversion.run().splitlines()[-1].strip('| ').split(' | ')
  assert len(cells) == len(conversion.HEAD)
  assert float(cells[2]) > 0 and float(cells[3]) > float(cells[1]) > 1
  assert not list(tmp_path.iterdir())
  (tmp_path / 'no weights').write_text('nothing')
  with pytest.raises(UserError, match='failed: jaxseg: the weights'):
    conversion.measure('psp', tmp_path / 'no weights', tmp_path / 'out')
  for name, value, sentence in (
    ('conversion_kinds', ['psp', 'gan'], 'has gan; valid'),
    ('conversion_size', 48, 'is 48, must be a power of two'),
    ('conversion_widest', 64, 'is 64, must be a multiple of 128'),
  ):
    with flagsaver.flagsaver(**{name: value}):
      with pytest.raises(UserError, match=sentence):
        conversion.run()


def test_rows_tell_speeds(benchmark_of):
  inversion_speed = benchmark_of('inversion_speed')
  times = [
    inversion_speed.Timed(1.0, [0.5, 0.25, 1.0]),
    inversion_speed.Timed(2.0, [2.5, 3.5, 1.5]),
  ]
  assert inversion_speed.row('g', 4, 10, times) == [
    'g', '4', '0.5', '2.5 (1.5 to 3.5)', '0.2', '3',
  ]  # fmt: skip


def test_flags_that_cannot_work_are_refused(benchmark_of):
  inversion_speed = benchmark_of('inversion_speed')
  for name, value, sentence in (
    ('inversion_sizes', ['48'], 'has 48, must be powers of two'),
    ('inversion_batches', ['0'], "has '0', must be whole numbers from 1"),
    ('inversion_widest', 100, 'is 100, must be a multiple of 128'),
    ('inversion_rounds', 0, 'is 0, must be at least 1'),
  ):
    with flagsaver.flagsaver(**{name: value}):
      with pytest.raises(UserError, match=sentence):
        inversion_speed.run()


@pytest.fixture
def small(benchmark_of, tmp_path):
  weight_files = benchmark_of('weight_files')
  weight_files.write_ada(tmp_path / 'weights', 32, 128)
  folder = str(tmp_path / 'converted')
  pretrained.convert('stylegan2-ada', str(tmp_path / 'weights'), folder)
  return folder


def test_an_inversion_is_measured(benchmark_of, small):
  inversion_speed = benchmark_of('inversion_speed')
  with flagsaver.flagsaver(
    inversion_folder=small, inversion_batches=['1'], inversion_steps=0,
    inversion_rounds=1, inversion_perceptual='discriminator',
  ):  # fmt: skip
    cells = inversion_speed.run().splitlines()[-1].strip('| ').split(' | ')
  assert cells[:2] == [small, '1'] and float(cells[2]) > 0
