"""CycleGAN through the loop: exact resume with full pools, scores, pictures."""

import csv
import importlib.util
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import loop, predict, runtime, train, workdir

ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH, POOL = 32, 40, 3


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """24 grey rectangles on darker noise, 16 of them with a label."""
  path = tmp_path_factory.mktemp('rectangles')
  (path / 'images').mkdir()
  (path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for i in range(24):
    image = rng.integers(0, 80, (HEIGHT, WIDTH), np.uint8)
    top, left = rng.integers(2, 14, 2)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[top : top + 14, left : left + 18] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(path / 'images' / f'{i:02d}.png')
    if i < 16:
      label[:3] = 255
      Image.fromarray(label).save(path / 'labels' / f'{i:02d}.png')
  return path


def get_config(folder):
  path = ROOT / 'configs' / 'cyclegan.py'
  spec = importlib.util.spec_from_file_location('cyclegan_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config(f'folder:{folder},50%')
  c.data.resolution, c.data.width, c.data.channels = HEIGHT, WIDTH, 1
  c.data.ood, c.eval.splits = (), ('test',)
  c.mesh.data, c.compilation_cache = 1, ''
  c.stages = ('cyclegan',)
  fields = c.cyclegan
  fields.total_steps = 24
  fields.batch_size = fields.unlabelled_batch_size = 2
  fields.log_every = fields.checkpoint_every = 6
  fields.picture_every = 24
  args = fields.args
  args.net.width = args.g_width = args.d_width = 8
  args.net.blocks = args.g_blocks = 1
  args.optimizer.lr, args.pool_size = 4e-3, POOL
  return c


@pytest.fixture(scope='module')
def straight(folder, tmp_path_factory):
  """A workdir trained without interruption, and scored."""
  path = tmp_path_factory.mktemp('straight')
  train.train(get_config(folder), str(path))
  return path


def test_continued_after_a_signal_is_bit_for_bit_the_same(
  folder, straight, tmp_path, monkeypatch
):
  log = loop.Loop.log

  def log_and_signal(self, step, *args):
    log(self, step, *args)
    if step == 12:
      signal.raise_signal(signal.SIGTERM)

  monkeypatch.setattr(loop.Loop, 'log', log_and_signal)
  config = get_config(folder)
  with pytest.raises(runtime.Interrupted, match='step 12'):
    train.train(config, str(tmp_path), evaluate_after=False)
  monkeypatch.setattr(loop.Loop, 'log', log)
  train.train(config, str(tmp_path), evaluate_after=False)
  one, other = (
    workdir.load(path).stages['cyclegan'].state for path in (straight, tmp_path)
  )
  for name in ('pool_i', 'pool_s'):
    assert int(one.extra[name].count) == POOL
  raw = lambda x: (
    jax.random.key_data(x)
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(raw(a), raw(b)), one, other
  )
  name = 'cyclegan/metrics.jsonl'
  assert (straight / name).read_text() == (tmp_path / name).read_text()


def test_scores_pictures_and_splits(straight):
  table = (straight / 'evaluation' / 'table.md').read_text()
  row = next(line for line in table.splitlines() if '| CycleGAN' in line)
  majority = next(line for line in table.splitlines() if '| majority' in line)
  miou = lambda line: float(line.split('|')[3])
  assert miou(row) > miou(majority) + 0.2
  drawn = straight / 'evaluation' / 'reconstructions'
  assert len(list(drawn.rglob('*.png'))) == 3
  assert list((straight / 'cyclegan' / 'samples').glob('*.png'))
  trained = workdir.load(straight)
  splits = train.data_splits.load_splits(straight / 'splits.json')
  # Half of the labels that are left to train, and no image on both sides.
  assert not set(splits.labelled) & set(splits.unlabelled)
  assert trained.config.data.labelled_fraction == 0.5


def test_reconstructions_and_trust_of_a_folder(straight, folder, tmp_path):
  trained = workdir.load(straight)
  assert not predict.predict_folder(trained, folder / 'images', tmp_path)
  image = np.asarray(Image.open(folder / 'images' / '20.png'), np.float64)
  drawn = np.asarray(Image.open(tmp_path / 'reconstructions' / '20.png'))
  assert drawn.shape == (HEIGHT, WIDTH, 3)
  with (tmp_path / 'predictions.csv').open(newline='') as file:
    rows = {row['file']: row for row in csv.DictReader(file)}
  assert len(rows) == 24
  # Trust is minus the distance of image and reconstruction, in [-1, 1].
  error = np.abs(drawn[..., 0] - image).mean() / 127.5
  assert float(rows['20.png']['trust']) == pytest.approx(-error, abs=0.01)
