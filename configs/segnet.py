"""SegNet on the labelled images alone (Badrinarayanan et al., TPAMI 2017).

  python -m jaxseg.train --config=configs/segnet.py:digits \
    --workdir=runs/segnet

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py. The published
optimiser: SGD, 0.001, constant.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    segnet=preset.stage(
      'supervised',
      label='SegNet',
      unlabelled_batch_size=0,
      net={'arch': 'segnet', 'norm': 'batch'},
      optimizer={
        'name': 'sgd',
        'lr': 1e-3,
        'schedule': 'constant',
        'weight_decay': 5e-4,
      },
      loss={'dice': 0.0},
    ),  # fmt: skip
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
