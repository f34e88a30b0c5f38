"""The network of all baselines, on the labelled images alone.

A U-Net (Ronneberger et al. 2015); for voc2012, cityscapes and celeba_mask_hq
DeepLab v3+ (Chen et al. 2018).

  python -m jaxseg.train --config=configs/unet.py:digits \
    --workdir=runs/unet

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    unet=preset.stage(
      'supervised', label=preset.net_label, unlabelled_batch_size=0
    ),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
