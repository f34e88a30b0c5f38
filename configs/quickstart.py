"""Handwritten digits, or drawn faces: the whole system in minutes, on a CPU.

  python -m jaxseg.train --config=configs/quickstart.py --workdir=runs/digits
  python -m jaxseg.train --config=configs/quickstart.py:avatars \
    --workdir=runs/avatars
"""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str = 'digits'):
  """arg: 'digits' (32x32, 11 classes) or 'avatars' (64x64, 6 classes)."""
  c = jaxseg_config.default()
  c.data.source = arg
  c.data.resolution = 32 if arg == 'digits' else 64
  c.data.channels = 1 if arg == 'digits' else 3
  c.data.num_labelled = 30
  c.data.augment.shift = 0.07
  c.eval.max_images = 400
  c.eval.batch_size = 50
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=2500,
      batch_size=16,
      unlabelled_batch_size=32,
      w_dim=64,
      mapping_depth=4,
      channel_max=32,
      d_m_width=16,
      d_m_scales=2,
      path_every=0,
      lr_g=0.0025,
      lr_d=0.0025,
      ema_half_life=2000.0,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=800,
      batch_size=16,
      unlabelled_batch_size=32,
      width=16,
      depths=(1, 1, 1, 1),
      features=64,
      perceptual_kind='discriminator',
      optimizer='adam',
      lr=2e-3,
      lr_steps=800,
      ema_half_life=2000.0,
      lambda_synthetic=1.0,
      refine_steps=60,
      refine_noise=False,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=600,
      batch_size=16,
      width=16,
      depth=3,
      lr=2e-3,
      lr_steps=600,
    ),
  )
