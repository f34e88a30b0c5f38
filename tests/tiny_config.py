"""Every stage at toy size, on a folder: `tests/tiny_config.py:FOLDER`."""

from jaxseg import config as jaxseg_config

stage = jaxseg_config.stage


def get_config(arg: str):
  """arg: a folder of images/ and labels/."""
  c = jaxseg_config.default()
  c.data.source = f'folder:{arg}'
  c.data.resolution = 32
  c.data.channels = 1
  c.data.num_labelled = 4
  c.data.augment.shift = 0.1
  c.data.ood = ()
  c.eval.splits = ('test',)
  c.eval.batch_size = 4
  c.mesh.data = 1
  c.compilation_cache = ''
  every = dict(
    total_steps=6, batch_size=4, log_every=1, checkpoint_every=2,
    picture_every=3,
  )  # fmt: skip
  return jaxseg_config.add_stages(
    c,
    gan=stage(
      'semantic_gan', unlabelled_batch_size=4, w_dim=8, mapping_depth=2,
      channel_max=8, d_m_width=8, d_m_scales=1, **every,
    ),
    encoder=stage(
      'semantic_gan_encoder', init_from='gan', unlabelled_batch_size=4,
      label='Ours', width=8, depths=(1, 1, 1, 1), features=8,
      perceptual_kind='discriminator', refine_steps=2, **every,
    ),
    unet=stage(
      'supervised', label='U-Net', net={'width': 8, 'depth': 2}, **every
    ),
  )  # fmt: skip
