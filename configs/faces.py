"""Face parts in 6 classes: photographs in-domain, drawings out-of-domain.

  python -m jaxseg.train --config=configs/faces.py:30 \
    --config.data.source=folder:/data/faces --workdir=runs/faces

The folder holds images/, labels/ (ids of background, skin, hair, eyes, nose,
mouth; 255 = void), splits.json and meta.json; every split whose name starts
with 'ood' is evaluated too. The argument is the number of labelled images.
"""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str = '30'):
  """arg: the number of labelled images."""
  c = jaxseg_config.default()
  c.data.source = 'folder:data/faces'
  c.data.resolution = 64
  c.data.channels = 3
  c.data.num_labelled = int(arg)
  c.data.augment.flip = True
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan',
      total_steps=60_000,
      batch_size=16,
      unlabelled_batch_size=32,
      channel_max=256,
      w_dim=256,
      r1_gamma=0.5,
      r1_gamma_m=0.5,
      diffaugment_policy='color,translation',
      log_every=100,
      checkpoint_every=1000,
      picture_every=1000,
    ),
    encoder=stage(
      'semantic_gan_encoder',
      init_from='gan',
      label='Ours',
      total_steps=20_000,
      batch_size=16,
      unlabelled_batch_size=16,
      width=32,
      features=256,
      lr_steps=20_000,
      log_every=100,
      checkpoint_every=1000,
      picture_every=1000,
    ),
    unet=stage(
      'supervised',
      label='U-Net',
      total_steps=4000,
      batch_size=16,
      net={'width': 32},
    ),
  )
