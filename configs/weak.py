"""A segmenter from weak labels: scribbles, clicks, polygons, boxes or tags.

  python -m jaxseg.train --config=configs/weak.py:scribble,digits \
    --workdir=runs/scribbles
  python -m jaxseg.train --config=configs/weak.py:scribble,folder:mydata,all \
    --config.data.weak.drawn=scribbles --workdir=runs/mydata
  python -m jaxseg.train --config=configs/weak.py:tags,digits,all \
    --workdir=runs/tags

The argument is KIND[,SET[,LABELS[,SIZE]]], see jaxseg/presets.py for all but
KIND. The labels are made from the masks of the set, as an annotator would have
drawn them, unless `config.data.weak.drawn` names those that one has drawn; with
`scribble,acdc` they are the published scribbles. Tags train a classifier first,
whose class activation maps are the seeds of the segmenter (SEC).
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets

KINDS = {  # of config.data.weak
  'scribble': 'scribbles', 'click': 'clicks', 'polygon': 'polygons',
  'box': 'boxes', 'tags': 'tags',
}  # fmt: skip


def stages(preset, kind):
  """The stages on a preset's data."""
  if kind == 'tags':
    return dict(
      cam=preset.stage('cam', label='CAM'),
      sec=preset.stage('sec', label='SEC', init_from='cam'),
    )
  regularizer = {'crf': 0.1, 'ramp_up': 0.3}
  supervision = 'boxes' if kind == 'box' else 'pixels'
  return dict(
    weak=preset.stage(
      'weak', label=f'{preset.net_label}, {KINDS[kind]}',
      unlabelled_batch_size=0, supervision=supervision,
      regularizer=regularizer,
    ),
  )  # fmt: skip


def get_config(arg: str = 'scribble,digits'):
  """arg: 'KIND[,SET[,LABELS[,SIZE]]]', e.g. 'click,folder:mydata,all'."""
  kind, _, rest = arg.partition(',')
  if kind not in KINDS:
    raise ValueError(
      f'{kind!r} is no kind of weak labels, expected one of {", ".join(KINDS)}'
    )
  preset = presets.load(rest or 'digits')
  data = preset.config.data
  data.weak.kind = KINDS[kind]
  if kind == 'scribble' and rest.split(',')[0] == 'acdc':
    data.source, data.weak.kind = 'acdc:scribbles', ''
  if kind == 'box':  # a turned box is none
    data.augment.rotate = data.augment.shear = data.augment.elastic = 0.0
  return jaxseg_config.add_stages(preset.config, **stages(preset, kind))
