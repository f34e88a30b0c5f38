"""FixMatch (Sohn et al., NeurIPS 2020): UniMatch with one strong view.

  python -m jaxseg.train --config=configs/fixmatch.py:digits \
    --workdir=runs/fixmatch

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  preset.config.data.strong.views = max(1, preset.config.data.strong.views)
  return dict(
    fixmatch=preset.stage(
      'unimatch', label='FixMatch', views=1, feature_weight=0.0
    ),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
