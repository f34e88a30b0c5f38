"""Adversarial learning with few labels, AdvSSL (Hung et al., BMVC 2018).

  python -m jaxseg.train --config=configs/adv_ssl.py:digits \
    --workdir=runs/adv_ssl

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    adv_ssl=preset.stage('adv_ssl', label='AdvSSL', d_width=preset.width),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
