"""DeepLab v3+ on the labelled images alone (Chen et al., ECCV 2018).

  python -m jaxseg.train --config=configs/deeplab_v3plus.py:digits \
    --workdir=runs/deeplab_v3plus

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py. The published
optimiser: SGD, 0.007, poly; ImageNet weights from a local file:
--config.deeplab_v3plus.args.net.weights=resnet50.pth.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    deeplab_v3plus=preset.stage(
      'supervised',
      label='DeepLab v3+',
      unlabelled_batch_size=0,
      net={
        'arch': 'deeplab_v3plus',
        'backbone': 'resnet50',
        'norm': 'batch',
        'dropout': 0.5,
      },
      optimizer={
        'name': 'sgd',
        'lr': 0.007,
        'schedule': 'poly',
        'weight_decay': 5e-4,
      },
      loss={'dice': 0.0},
    ),  # fmt: skip
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
