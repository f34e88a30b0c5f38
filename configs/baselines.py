"""Every baseline on the same images, labels, network and number of steps.

  python -m jaxseg.train --config=configs/baselines.py:digits \
    --workdir=runs/baselines/digits_0

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py; other labels, data
order and initial weights with --config.seed=1; fewer methods with
--config.stages="('unet','mean_teacher')". One evaluation and one report
compare them all; `python -m benchmarks.over_seeds` takes means over runs.
"""

import importlib.util
from pathlib import Path

from jaxseg import config as jaxseg_config
from jaxseg import presets

CONFIGS = (
  'unet', 'mean_teacher', 'adv_ssl', 'gct', 'self_training', 'entropy',
  'graph', 'fixmatch', 'unimatch', 'bcp',
)  # fmt: skip


def beside(name):
  """The module of another config in this folder."""
  path = Path(__file__).with_name(f'{name}.py')
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'chest_xray,9,laptop'."""
  preset = presets.load(arg)
  stages = {}
  for name in CONFIGS:
    stages |= beside(name).stages(preset)
  return jaxseg_config.add_stages(preset.config, **stages)
