"""Small trainings on generated squares, which are to be disturbed.

  --config=benchmarks/faults_config.py:FOLDER         a U-Net
  --config=benchmarks/faults_config.py:FOLDER,METHOD  any method

FOLDER is made by `write_squares`.
"""

import inspect
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg.methods import METHODS

NET = {'width': 8, 'depth': 2, 'norm': 'batch', 'dropout': 0.1}
GAN = dict(
  w_dim=8, mapping_depth=2, channel_max=8, d_m_width=8, d_m_scales=1,
)  # fmt: skip
# What makes each method small; of the segmenting ones, beside NET.
TINY = {
  'supervised': {},
  'semantic_gan': GAN,
  'semantic_gan_encoder': dict(
    width=8, depths=(1, 1, 1, 1), features=8, perceptual_kind='discriminator',
  ),
  'mean_teacher': {},
  'adv_ssl': dict(d_width=8, semi_start=0.0),
  'gct': {},
  'self_training': {},
  'entropy': {},
  'graph': {},
  'unimatch': {},
  'bcp': {},
  'cyclegan': dict(
    net={'arch': 'resnet_generator', 'width': 8, 'blocks': 1,
         'norm': 'instance'}, g_width=8, g_blocks=1, d_width=8, pool_size=5,
  ),
}  # fmt: skip
STARTS_FROM = {
  'semantic_gan_encoder': 'semantic_gan',
  'self_training': 'supervised',
  'bcp': 'supervised',
}


def get_config(arg: str):
  """arg: a folder of images/ and labels/; or FOLDER,METHOD."""
  folder, _, name = arg.partition(',')
  c = jaxseg_config.default()
  c.data.source = f'folder:{folder}'
  c.data.resolution = 32
  c.data.channels = 1
  c.data.num_labelled = 4
  c.data.augment.shift = 0.1
  c.eval.splits = ('test',)
  c.eval.batch_size = 4
  c.compilation_cache = ''
  if not name:
    return jaxseg_config.add_stages(
      c,
      unet=_stage(
        'supervised',
        label='U-Net',
        batch_size=8,
        net={'width': 8, 'depth': 2, 'norm': 'group'},
      ),
    )
  if name == 'unimatch':
    c.data.strong.views = 2
  before = STARTS_FROM.get(name)
  stages = {before: _stage(before, total_steps=2)} if before else {}
  stages[name] = _stage(name, init_from=before or '')
  return jaxseg_config.add_stages(c, **stages)


def _stage(name, **changes):
  signature = inspect.signature(METHODS[name].make).parameters
  args = dict(
    total_steps=24, batch_size=4, log_every=1, checkpoint_every=4,
    keep_checkpoints=3, picture_every=0,
    unlabelled_batch_size=0 if name == 'supervised' else 4,
  )  # fmt: skip
  if 'net' in signature:
    args['net'] = NET
  args |= {k: v for k, v in TINY[name].items() if k in signature}
  return jaxseg_config.stage(name, **(args | changes))


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
