"""UniMatch (Yang et al., CVPR 2023).

  python -m jaxseg.train --config=configs/unimatch.py:digits \
    --workdir=runs/unimatch

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  preset.config.data.strong.views = 2
  return dict(
    unimatch=preset.stage('unimatch', label='UniMatch'),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
