"""A small U-Net on generated squares, for trainings that are to be disturbed.

  --config=benchmarks/faults_config.py:FOLDER

FOLDER is made by `write_squares`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import config as jaxseg_config


def get_config(arg: str):
  """arg: a folder of images/ and labels/."""
  c = jaxseg_config.default()
  c.data.source = f'folder:{arg}'
  c.data.resolution = 32
  c.data.channels = 1
  c.data.num_labelled = 4
  c.data.augment.shift = 0.1
  c.eval.splits = ('test',)
  c.eval.batch_size = 4
  c.compilation_cache = ''
  unet = jaxseg_config.stage(
    'supervised', label='U-Net', total_steps=24, batch_size=8, log_every=1,
    checkpoint_every=4, keep_checkpoints=3, picture_every=0,
    net={'width': 8, 'depth': 2, 'norm': 'group'},
  )  # fmt: skip
  return jaxseg_config.add_stages(c, unet=unet)


def write_squares(folder: str | Path, count: int = 12) -> None:
  """Writes bright squares on noise, 32x32, with their labels."""
  folder = Path(folder)
  (folder / 'images').mkdir(parents=True)
  (folder / 'labels').mkdir()
  rng = np.random.default_rng(1)
  for i in range(count):
    image = rng.integers(0, 80, (32, 32), np.uint8)
    top, left = rng.integers(2, 16, 2)
    label = np.zeros((32, 32), np.uint8)
    label[top : top + 12, left : left + 12] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(folder / 'images' / f'{i:02d}.png')
    Image.fromarray(label).save(folder / 'labels' / f'{i:02d}.png')
