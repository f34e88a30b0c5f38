"""Small folders of images, made by the tests that use them."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg import config as jaxseg_config


@pytest.fixture
def config():
  """An experiment's config on 32x32 grey images, open to changes."""
  c = jaxseg_config.default().unlock()
  c.data.resolution = 32
  c.data.channels = 1
  c.data.num_labelled = 4
  return c


@pytest.fixture
def write_folder(tmp_path):
  """Returns a function that writes a data folder and gives its path."""

  def write(n=12, unlabelled=0, side=32, num_classes=2, **jsons):
    root = tmp_path / 'set'
    (root / 'images').mkdir(parents=True)
    (root / 'labels').mkdir()
    rng = np.random.default_rng(0)
    for i in range(n + unlabelled):
      # The image is drawn from the label, so that the two can be compared.
      label = rng.integers(0, num_classes, (side, side), np.uint8)
      image = label * 100 + i
      Image.fromarray(image).save(root / f'images/{i:03d}.png')
      if i < n:
        Image.fromarray(label).save(root / f'labels/{i:03d}.png')
    for name, content in jsons.items():
      (root / f'{name}.json').write_text(json.dumps(content))
    return root

  return write
