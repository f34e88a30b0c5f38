"""DeepLab v2, ResNet-101, on the labelled images alone (Chen et al. 2018).

  python -m jaxseg.train --config=configs/deeplab_v2.py:digits \
    --workdir=runs/deeplab_v2

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py. The published
optimiser: SGD, 2.5e-4, ten times that for the classifier, poly. It expects
ImageNet weights, --config.deeplab_v2.args.net.weights=resnet101.pth, and then
norm='frozen'.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    deeplab_v2=preset.stage(
      'supervised',
      label='DeepLab v2',
      unlabelled_batch_size=0,
      net={
        'arch': 'deeplab_v2',
        'backbone': 'resnet101',
        'output_stride': 8,
        'norm': 'batch',
      },
      optimizer={
        'name': 'sgd',
        'lr': 2.5e-4,
        'schedule': 'poly',
        'weight_decay': 5e-4,
        'head_factor': 10.0,
      },
      loss={'dice': 0.0},
    ),  # fmt: skip
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
