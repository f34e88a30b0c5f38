"""Labels for a published generator, learned from a few labelled images.

  python -m jaxseg.pretrained convert --kind=psp \
    --source=psp_ffhq_encode.pt --output=weights/psp_ffhq
  python -m jaxseg.train --config=configs/label_branch.py:weights/psp_ffhq \
    --config.data.source=folder:faces --workdir=runs/faces

The labelled images are inverted first; then SemanticGAN's label skips and,
beside them, DatasetGAN's pixel classifiers learn to label what the frozen
generator draws. The folder must hold an encoder, or inversion begins at the
mean w and needs more steps. Resolution and channels are those of the folder.
Measured on handwritten digits, see benchmarks/RESULTS.md, "Labels for a
pretrained generator".
"""

from jaxseg import config as jaxseg_config
from jaxseg.published import folder

stage = jaxseg_config.stage


def get_config(arg: str = 'weights/psp_ffhq'):
  """arg: folder of converted weights with a generator."""
  c = jaxseg_config.default()
  c.data.source = 'folder:faces'
  c.data.resolution, c.data.channels = 1024, 3
  if folder.is_one(arg):
    networks = folder.read_card(arg)['networks']
    for name in ('g', 'g_ema'):
      if name in networks:
        settings = networks[name]['settings']
        c.data.resolution = settings['resolution']
        c.data.channels = settings['channels']
  c.data.num_labelled = 30
  c.data.fit = 'crop'
  # A batch is so many codes of labelled images, drawn anew at every step.
  common = dict(
    init_from=arg, batch_size=4, log_every=100, checkpoint_every=500,
    picture_every=500,
  )  # fmt: skip
  return jaxseg_config.add_stages(
    c,
    skips=stage(
      'label_branch', label='Label skips', head='skips', total_steps=1000,
      **common,
    ),
    pixels=stage(
      'label_branch', label='Pixel classifiers', head='pixels', lr=1e-3,
      total_steps=1000, **common,
    ),
  )  # fmt: skip
