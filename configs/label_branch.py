"""Labels for a published generator, learned from a few labelled images.

  python -m jaxseg.pretrained convert --kind=psp \
    --source=psp_ffhq_encode.pt --output=weights/psp_ffhq
  python -m jaxseg.train --config=configs/label_branch.py:weights/psp_ffhq \
    --config.data.source=folder:faces --workdir=runs/faces

The labelled images are inverted first; then DatasetGAN's pixel classifiers
learn to label what the frozen generator draws for them, or SemanticGAN's label
skips, `configs/label_branch.py:weights/psp_ffhq,skips`. The folder should hold
an encoder: without one inversion begins at the mean w and needs more steps.
Resolution and channels are those of the folder. Measured on handwritten digits,
see benchmarks/RESULTS.md, "Labels for a pretrained generator".
"""

from jaxseg import config as jaxseg_config
from jaxseg.published import folder

stage = jaxseg_config.stage


def get_config(arg: str = 'weights/psp_ffhq'):
  """arg: 'FOLDER' of converted weights with a generator, or 'FOLDER,HEAD'."""
  weights, _, head = arg.partition(',')
  c = jaxseg_config.default()
  c.data.source = 'folder:faces'
  c.data.resolution, c.data.channels = 1024, 3
  if folder.is_one(weights):
    networks = folder.read_card(weights)['networks']
    for name in ('g', 'g_ema'):
      if name in networks:
        settings = networks[name]['settings']
        c.data.resolution = settings['resolution']
        c.data.channels = settings['channels']
  c.data.num_labelled = 30
  c.data.fit = 'crop'
  head = head or 'pixels'
  return jaxseg_config.add_stages(
    c,
    labels=stage(
      'label_branch',
      label='Pixel classifiers' if head == 'pixels' else 'Label skips',
      init_from=weights,
      head=head,
      lr=1e-3 if head == 'pixels' else 2e-3,
      total_steps=1000,
      batch_size=4,  # codes of labelled images, drawn anew at every step
      log_every=100,
    ),
  )
