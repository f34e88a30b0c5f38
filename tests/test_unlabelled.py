"""No method sees a label of an image that counts as unlabelled."""

import importlib.util
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg import parallel, train

CONFIGS = Path(__file__).parents[1] / 'configs'
LABELLED = [f'{i:02d}' for i in range(4)]


@pytest.fixture
def folder(tmp_path):
  """20 images, all with a label file; a budget names four of them."""
  root = tmp_path / 'set'
  (root / 'images').mkdir(parents=True)
  (root / 'labels').mkdir()
  rng = np.random.default_rng(0)
  names = [f'{i:02d}' for i in range(20)]
  for name in names:
    image = rng.integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(image).save(root / 'images' / f'{name}.png')
    draw_label(root, name, rng)
  lists = {
    'train': names[:12], 'val': names[12:15], 'test': names[15:],
    'budgets': {'4': LABELLED},
  }  # fmt: skip
  (root / 'splits.json').write_text(json.dumps(lists))
  return root


def draw_label(root, name, rng):
  label = rng.integers(0, 3, (32, 32), np.uint8)
  Image.fromarray(label).save(root / 'labels' / f'{name}.png')


def batches_of_all_stages(root, workdir):
  spec = importlib.util.spec_from_file_location('b', CONFIGS / 'baselines.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(f'folder:{root},4')
  with config.unlocked():
    config.data.resolution, config.data.channels = 32, 1
  workdir.mkdir()
  data = train.Data(config, str(workdir))
  assert set(data.splits.labelled) == set(LABELLED)
  found = {}
  for stage in config.stages:
    stream = data.batches(config, stage, 0, 0, parallel.make_mesh(1))
    found[stage] = list(itertools.islice(stream, 3))
    stream.close()
  return config, found


def test_scrambled_labels_of_unlabelled_images_change_nothing(folder, tmp_path):
  """Methods are functions of their batches, so equal batches are proof."""
  config, before = batches_of_all_stages(folder, tmp_path / 'before')
  rng = np.random.default_rng(1)
  for i in range(12):
    if f'{i:02d}' not in LABELLED:
      draw_label(folder, f'{i:02d}', rng)
  _, after = batches_of_all_stages(folder, tmp_path / 'after')
  for stage in config.stages:
    for a, b in zip(before[stage], after[stage], strict=True):
      assert a.keys() == b.keys()
      has_unlabelled = config[stage].unlabelled_batch_size > 0
      assert ('unlabelled' in a) == has_unlabelled
      for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=stage)
  # The comparison would notice: a labelled image's label does matter.
  draw_label(folder, LABELLED[0], rng)
  _, other = batches_of_all_stages(folder, tmp_path / 'other')
  assert any(
    (a['label'] != b['label']).any()
    for a, b in zip(before['unet'], other['unet'], strict=True)
  )
