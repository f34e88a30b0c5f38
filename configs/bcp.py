"""Bidirectional copy-paste (Bai et al., CVPR 2023).

  python -m jaxseg.train --config=configs/bcp.py:digits \
    --workdir=runs/bcp

The argument is SET[,LABELS[,SIZE]], see jaxseg/presets.py. Two stages of as
many steps each: labelled images alone, then all.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets


def stages(preset):
  """The stages on a preset's data."""
  return dict(
    bcp_start=preset.stage(
      'bcp',
      pretrain=True,
      unlabelled_batch_size=0,
      label='BCP, labels only',
      largest_component=preset.one_piece,
    ),
    bcp=preset.stage(
      'bcp',
      init_from='bcp_start',
      label='BCP',
      largest_component=preset.one_piece,
    ),
  )


def get_config(arg: str = 'digits'):
  """arg: 'SET[,LABELS[,SIZE]]', e.g. 'acdc,7' or 'folder:mydata,30'."""
  preset = presets.load(arg)
  return jaxseg_config.add_stages(preset.config, **stages(preset))
