"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017).

  python -m jaxseg.train --config=configs/mean_teacher.py:digits \
    --workdir=runs/mean_teacher

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    mean_teacher=preset.stage('mean_teacher', label='Mean Teacher'),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
