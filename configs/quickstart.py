"""Handwritten digits, or drawn faces: the whole system in minutes, on a CPU.

  python -m jaxseg.train --config=configs/quickstart.py --workdir=runs/digits
  python -m jaxseg.train --config=configs/quickstart.py:avatars \
    --workdir=runs/avatars
"""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str = 'digits'):
  """arg: 'digits' (32x32, 11 classes) or 'avatars' (64x64, 6 classes)."""
  if arg not in ('digits', 'avatars'):
    raise ValueError(f"{arg!r} is not 'digits' or 'avatars'")
  digits = arg == 'digits'
  c = jaxseg_config.default()
  c.data.source = arg
  c.data.resolution = 32 if digits else 64
  c.data.channels = 1 if digits else 3
  c.data.num_labelled = 30
  c.data.augment.shift = 0.07
  c.eval.max_images = 300 if digits else 60
  c.eval.batch_size = 50 if digits else 20
  # At these widths the learning rate must be higher, and R1 stronger, than
  # the paper's; D_r compares the whole batch, or the generator collapses.
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=3200 if digits else 2000,
      batch_size=10,
      unlabelled_batch_size=32 if digits else 16,
      w_dim=64,
      mapping_depth=4,
      channel_multiplier=0.03125 if digits else 0.0625,
      channel_max=64,
      stddev_group=32 if digits else 16,
      d_m_width=16,
      d_m_scales=2,
      label_output='softmax',
      feature_matching=0.0,
      mixing=0.5,
      path_every=0,
      lr_g=0.004,
      lr_d=0.004,
      r1_gamma=15.0,
      r1_gamma_m=0.5,
      ema_half_life=2000.0,
      truncation=1.0,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=700,
      batch_size=10,
      unlabelled_batch_size=32 if digits else 16,
      width=16,
      depths=(1, 1, 1, 1),
      features=64,
      perceptual_kind='discriminator',
      lambda_synthetic=1.0,
      optimizer='adam',
      lr=2e-3,
      lr_steps=700,
      ema_half_life=2000.0,
      # Chosen on the validation split: larger steps render the image better
      # and the label worse.
      refine_steps=60,
      refine_lr=0.02,
      refine_lambda_l2=1.0,
      refine_lambda_encoder=0.3,
      refine_noise=False,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=1500,
      batch_size=10,
      net={'width': 16, 'depth': 3},
      optimizer={'lr': 2e-3},
      log_every=200,
    ),
  )
