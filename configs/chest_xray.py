"""Lungs in chest X-rays, 1 channel: JSRT in-domain, other hospitals out.

  python -m jaxseg.datasets prepare chest_xray --manual_dir=DIR --max_side=512
  python -m jaxseg.train --config=configs/chest_xray.py:9 --workdir=runs/cxr
  python -m jaxseg.train --config=configs/chest_xray.py:9,laptop \
    --config.data.source=folder:/data/cxr_lungs --workdir=runs/cxr_laptop

The argument is the number of labels, and after a comma the size: 'paper'
(256x256, the published widths, the prepared set with the paper's histogram
equalisation and gamma) or 'laptop' (64x64, narrow: an hour or two on a CPU).
The folder of 'laptop' holds images/, labels/ (0 background, 1 lung, 255 void),
and splits.json with train/val/test, the budgets 9, 35 and 175, the
out-of-domain splits 'ood_*' and further unlabelled splits.

Published Dice with 9 labels (Li et al., CVPR 2021, table 2): Ours .9591 on
JSRT, .9464 on Montgomery (NLM), .9362 on Shenzhen (SZ). What we measured, and
how long it took, is in benchmarks/RESULTS.md.
"""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str = '9'):
  """arg: 'LABELS' or 'LABELS,SIZE', e.g. '35,laptop'."""
  labels, _, size = arg.partition(',')
  c = jaxseg_config.default()
  c.data.channels = 1
  c.data.num_labelled = int(labels)
  c.data.augment.shift = 0.05
  c.data.augment.scale = 0.05
  if size in ('', 'paper'):
    return paper(c)
  if size == 'laptop':
    return laptop(c)
  raise ValueError(f"size {size!r} is not 'paper' or 'laptop'")


def paper(c):
  """The published widths and schedules; 175 / 25 / 47 of JSRT's 247 images."""
  c.data.source = 'chest_xray'
  c.data.unlabelled = ('unlabelled_nih',)
  c.data.test_fraction = 47 / 247
  c.data.val_fraction = 25 / 200
  c.data.fit = 'squeeze'
  c.data.intensity.mode = 'equalize'
  c.data.intensity.gamma = 0.5
  c.data.resolution = 256
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=100_000,
      batch_size=8,
      unlabelled_batch_size=16,
      log_every=100,
      checkpoint_every=2000,
      picture_every=2000,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=50_000,
      batch_size=8,
      unlabelled_batch_size=16,
      lr_steps=50_000,
      log_every=100,
      checkpoint_every=2000,
      picture_every=2000,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=5000,
      batch_size=8,
    ),
  )


def laptop(c):
  """64x64 and narrow."""
  c.data.source = 'folder:data/cxr_lungs'
  c.data.unlabelled = ('unlabeled_nih64', 'unlabeled_kermany')
  c.data.resolution = 64
  c.eval.max_images = 140
  c.eval.batch_size = 35
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=2800,
      batch_size=8,
      unlabelled_batch_size=16,
      w_dim=128,
      mapping_depth=4,
      channel_multiplier=0.09375,
      channel_max=64,
      d_m_width=16,
      label_output='softmax',
      lr_g=0.0025,
      lr_d=0.0025,
      r1_gamma=5.0,
      r1_gamma_m=5.0,
      d_m_weight=0.5,
      feature_matching=0.5,
      path_every=0,
      ema_half_life=5000.0,
      log_every=100,
      checkpoint_every=500,
      picture_every=500,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=1000,
      batch_size=8,
      unlabelled_batch_size=16,
      width=16,
      depths=(1, 1, 1, 1),
      features=64,
      perceptual_kind='discriminator',
      optimizer='adam',
      lr=2e-3,
      lr_steps=1000,
      ema_half_life=2000.0,
      lambda_synthetic=1.0,
      refine_steps=60,
      refine_lr=0.02,
      refine_lambda_l2=1.0,
      refine_lambda_encoder=0.3,
      refine_noise=False,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=1000,
      batch_size=8,
      net={'width': 16, 'depth': 3},
    ),
  )
