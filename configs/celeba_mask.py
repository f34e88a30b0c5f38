"""SemanticGAN on CelebAMask-HQ, 8 classes, 256x256: the paper's numbers.

  python -m jaxseg.datasets prepare celeba_mask_hq --manual_dir=DIR
  python -m jaxseg.train --config=configs/celeba_mask.py:30 \
    --workdir=runs/celeba_mask

The prepared set has the authors' split: images 0-27999 unlabelled, 28000-29499
train, 29500-29999 test. The argument is the number of labels: :30, :150 or
:1500. Paintings as another domain, once both are there:

  python -m jaxseg.datasets prepare metfaces40 --manual_dir=DIR
  python -m jaxseg.evaluate --workdir=runs/celeba_mask \
    --ood_sources=metfaces=metfaces40 --splits=ood_metfaces

Published mIoU with 28,000 unlabelled images (Li et al., CVPR 2021, table 1):
.6902, .7600, .7810. Not run by us: it needs several GPUs or a TPU pod slice for
days.
"""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str = '1500'):
  """arg: the number of labelled images."""
  c = jaxseg_config.default()
  c.data.source = 'celeba_mask_hq'
  c.data.resolution = 256
  c.data.channels = 3
  c.data.num_labelled = int(arg)
  c.data.val_fraction = 0.0  # all 1,500 may be labelled
  c.data.augment.flip = True
  c.data.cache = False
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=800_000,
      batch_size=16,
      unlabelled_batch_size=16,
      log_every=100,
      checkpoint_every=2000,
      picture_every=2000,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=100_000,
      batch_size=16,
      unlabelled_batch_size=16,
      lr_steps=100_000,
      log_every=100,
      checkpoint_every=2000,
      picture_every=2000,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=20_000,
      batch_size=16,
      log_every=100,
      checkpoint_every=2000,
    ),
  )
