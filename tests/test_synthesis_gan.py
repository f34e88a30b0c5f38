"""Synthesis by command line, from a workdir of SemanticGAN on disk."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_config
from absl import flags
from PIL import Image

from jaxseg import checkpoints, synthesize, workdir
from jaxseg.data import sources, splits
from jaxseg.errors import UserError

NAMES = ('background', 'square')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir whose generator has random weights, and its data."""
  folder, path = (tmp_path_factory.mktemp(name) for name in ('data', 'run'))
  rng = np.random.default_rng(0)
  for kind in ('images', 'labels'):
    (folder / kind).mkdir()
  for i in range(12):
    image = rng.integers(0, 255, (32, 32), np.uint8)
    Image.fromarray(image).save(folder / 'images' / f'{i:02d}.png')
    label = Image.fromarray((image > 128).astype(np.uint8))
    label.save(folder / 'labels' / f'{i:02d}.png')
  config = tiny_config.get_config(str(folder))
  config.stages = ('gan',)
  workdir.save_config(path, config)
  workdir.save_classes(path, NAMES, np.array([[0, 0, 0], [255, 0, 0]]))
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, config.seed)
  splits.save_splits(path / 'splits.json', drawn)
  like = workdir.abstract_state(config, 'gan', len(NAMES))

  def fill(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    value = np.random.default_rng(leaf.size).normal(size=leaf.shape)
    return jnp.asarray(value, leaf.dtype)

  state = jax.tree.map(fill, like).replace(step=jnp.int32(3))
  with checkpoints.Checkpoints(workdir.checkpoint_folder(path, 'gan')) as saved:
    saved.save_and_wait(state, {})
  return path


def call(*arguments):
  """Runs the command line with flags of its own."""
  values = flags.FlagValues()
  synthesize._define_flags(values)
  values(['synthesize', *arguments])
  synthesize.run(values)


def test_scores_do_not_depend_on_the_batch(run):
  stage = workdir.load(run).stages['gan']
  judge = jax.jit(stage.method.judge)
  rng = np.random.default_rng(1)
  images = rng.uniform(-1, 1, (4, 32, 32, 1)).astype(np.float32)
  label = rng.integers(0, 2, (4, 32, 32))
  p = np.eye(2, dtype=np.float32)[label]
  scores = judge(stage.state, images, p)
  assert set(scores) == {'d_m', 'd_r'}
  order = np.array([2, 0, 3, 3])
  again = judge(stage.state, images[order], p[order])
  for name, values in scores.items():
    assert values.shape == (4,) and np.ptp(values) > 0
    np.testing.assert_allclose(again[name], values[order], rtol=1e-4, atol=1e-5)
  # D_r looks at the image alone.
  flipped = judge(stage.state, images, p[..., ::-1])
  np.testing.assert_allclose(flipped['d_r'], scores['d_r'], rtol=1e-5)
  assert (np.abs(flipped['d_m'] - scores['d_m']) > 1e-5).all()


def test_command_line(run, tmp_path, capsys):
  output = tmp_path / 'drawn'
  call(
    f'--workdir={run}', f'--output={output}', '--n=10', '--batch_size=8',
    '--rank_by=d_m', '--calibrate=16', '--truncation=0.5',
  )  # fmt: skip
  told = capsys.readouterr().out
  assert 'real  images' in told and 'nearest labelled image' in told
  with (output / 'synthesis.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  labelled = splits.load_splits(run / 'splits.json').labelled
  for row in rows:
    assert row['nearest'] in labelled and float(row['distance']) > 0
    assert np.isfinite([float(row['d_m']), float(row['d_r'])]).all()
  content = json.loads((output / 'synthesis.json').read_text())
  assert content['settings']['weights'].startswith('3-')
  assert content['settings']['truncation'] == 0.5
  assert content['summary']['distance']['min'] > 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir is missing'),
    (['--workdir={run}'], '--output is missing'),
    (['--workdir=/none', '--output={out}'], 'not the workdir of a training'),
    (['--workdir={run}', '--output={run}'], 'holds other things'),
    (['--workdir={run}', '--output={out}', '--stage=gam'], "no stage 'gam'"),
    (['--workdir={run}', '--output={out}', '--shard=2/2'], 'expected i/n'),
    (['--workdir={run}', '--output={out}', '--n=0'], '--n is 0'),
    (['--workdir={run}', '--output={out}', '--checkpoint=9'], "checkpoint '9'"),
  ],
)
def test_refuses_command_lines(run, tmp_path, arguments, message):
  out = tmp_path / 'new'
  with pytest.raises(UserError, match=message):
    call(*(a.format(run=run, out=out) for a in arguments))
  assert not out.exists()
