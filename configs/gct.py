"""Guided collaborative training (Ke et al., ECCV 2020).

  python -m jaxseg.train --config=configs/gct.py:digits \
    --workdir=runs/gct

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    gct=preset.stage('gct', label='GCT', detector={'width': preset.width}),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
