"""Training on drawn labels alone, and the scores that follow."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg import evaluate, train
from jaxseg.data import sources
from jaxseg.data import splits as data_splits
from jaxseg.errors import UserError
from jaxseg.metrics import segmentation

TRAINING = [f'{i:02d}' for i in range(4)]
NET = {'width': 8, 'depth': 2, 'norm': 'group'}


@pytest.fixture
def folder(tmp_path):
  """Squares; masks of the scored images, scribbles and tags of the others."""
  for kind in ('images', 'labels', 'scribbles'):
    (tmp_path / kind).mkdir()
  rng = np.random.default_rng(0)
  for i in range(6):
    label = np.zeros((32, 32), np.uint8)
    label[8 : 20 + i, 6:24] = 1
    image = rng.integers(0, 80, label.shape, np.uint8) + 150 * label
    strokes = np.full_like(label, 255)
    strokes[12:15, 10:20], strokes[2, 4:20] = 1, 0  # more of 1 than of 0
    Image.fromarray(image.astype(np.uint8)).save(
      tmp_path / f'images/{i:02d}.png'
    )
    kind, drawn = ('scribbles', strokes) if i < 4 else ('labels', label)
    Image.fromarray(drawn).save(tmp_path / f'{kind}/{i:02d}.png')
  (tmp_path / 'tags.csv').write_text(
    '00,thing\n01,thing\n02,thing\n03,background\n'
  )
  names = {'classes': ['background', 'thing']}
  (tmp_path / 'classes.json').write_text(json.dumps(names))
  ids = {'train': TRAINING, 'val': [], 'test': ['04', '05']}
  (tmp_path / 'splits.json').write_text(json.dumps(ids))
  return tmp_path


# A lattice that is too small for noise.
SMALL = {'crf': 0.1, 'filter': 'lattice', 'max_vertices': 40}


def config_of(folder, kind, drawn, method):
  c = jaxseg_config.default()
  c.data.source, c.data.channels = f'folder:{folder}', 1
  c.data.resolution, c.data.num_labelled = 32, 0
  c.data.weak.kind, c.data.weak.drawn = kind, drawn
  c.eval.splits, c.eval.batch_size, c.mesh.data = ('test',), 2, 1
  c.compilation_cache = ''
  more = {'regularizer': SMALL} if method == 'weak' else {}
  stage = jaxseg_config.stage(
    method, net=NET, total_steps=2, batch_size=2, picture_every=0,
    log_every=1, **more,
  )  # fmt: skip
  return jaxseg_config.add_stages(c, one=stage)


@pytest.mark.parametrize(
  'kind, drawn, method, wanted',
  [
    ('scribbles', 'scribbles', 'weak', (4 * 16, 4 * 30)),
    ('tags', 'tags.csv', 'cam', (4, 3)),
  ],
)
def test_train_and_score(
  folder, tmp_path, monkeypatch, capsys, kind, drawn, method, wanted
):
  config, workdir = config_of(folder, kind, drawn, method), tmp_path / 'run'
  baseline, counted = segmentation.majority_class_baseline, []

  def record(trained, truth):
    counted.append((tuple(trained), truth.sum()))
    return baseline(trained, truth)

  monkeypatch.setattr(segmentation, 'majority_class_baseline', record)
  train.train(config, str(workdir))
  told = capsys.readouterr().out
  assert told.count('raise config.one.args.regularizer.max_vertices') == (
    method == 'weak'
  )
  assert 'step 1: the lattice has no room' in told or method == 'cam'
  assert 'lattice_overflow' not in told
  assert counted == [(wanted, 2 * 32 * 32)]
  splits = data_splits.load_splits(workdir / 'splits.json')
  source = sources.load(config.data)
  told = "4 of the images 'labelled' have no full mask .*00.png"
  with pytest.raises(UserError, match=told):
    evaluate.resolve_splits(splits, ['test', 'labelled'], source)


def test_no_mask_at_all(folder, tmp_path):
  for path in (folder / 'labels').iterdir():
    path.unlink()
  ids = {'train': [*TRAINING, '04', '05']}
  (folder / 'splits.json').write_text(json.dumps(ids))
  config = config_of(folder, 'scribbles', 'scribbles', 'weak')
  with pytest.raises(UserError, match=r'add labels/NAME.png of a few images'):
    train.train(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run/one').exists()
