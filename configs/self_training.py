"""Self-training: a network labels the images that the next one learns from.

  python -m jaxseg.train --config=configs/self_training.py:digits \
    --workdir=runs/self_training

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  # The strong augmentation of ST++.
  preset.config.data.strong.views = max(1, preset.config.data.strong.views)
  return dict(
    unet=preset.stage(
      'supervised', label=preset.net_label, unlabelled_batch_size=0
    ),
    self_training=preset.stage(
      'self_training', init_from='unet', label='Self-training'
    ),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
