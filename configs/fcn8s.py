"""FCN-32s, then 16s and 8s, each from the one before (Long et al. 2015).

  python -m jaxseg.train --config=configs/fcn8s.py:digits \
    --workdir=runs/fcn8s

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py. The published
learning rate, 1e-10 with momentum .99, is for the cross entropy summed over
half a million pixels; here it is their mean.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def fcn(preset, arch, **changes):
  """One FCN on a preset's data."""
  return preset.stage(
    'supervised',
    label=f'FCN-{arch[3:]}',
    unlabelled_batch_size=0,
    net={'arch': arch, 'norm': 'none', 'dropout': 0.5},
    optimizer={
      'name': 'sgd', 'lr': 1e-3, 'schedule': 'poly', 'weight_decay': 5e-4,
    },
    loss={'dice': 0.0},
    **changes,
  )  # fmt: skip


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    fcn32s=fcn(preset, 'fcn32s'),
    fcn16s=fcn(preset, 'fcn16s', init_from='fcn32s'),
    fcn8s=fcn(preset, 'fcn8s', init_from='fcn16s'),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
