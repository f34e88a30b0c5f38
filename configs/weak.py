"""A segmenter from weak labels: scribbles, clicks, polygons, boxes or tags.

`box` learns from boxes as constraints, `grabcut` from the masks that GrabCut
makes of them.

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
whose class activation maps are the seeds of the segmenter (SEC). KIND `table`
is for benchmarks/weak.py alone: stages that learn from different labels.
"""

from jaxseg import config as jaxseg_config
from jaxseg import presets
from jaxseg.data import fit

KINDS = {  # of config.data.weak
  'scribble': 'scribbles', 'click': 'clicks', 'polygon': 'polygons',
  'box': 'boxes', 'grabcut': 'boxes', 'tags': 'tags',
}  # fmt: skip


def stages(preset, kind):
  """The stages on a preset's data."""
  pixels = dict(weak=_weak(preset, kind))
  if kind == 'table':
    return pixels | _tags(preset)
  return _tags(preset) if kind == 'tags' else pixels


def _weak(preset, kind):
  # On a laptop the dense terms see 32x32 pixels.
  laptop = max(fit.size(preset.config.data)) == 64
  return preset.stage(
    'weak', label=f'{preset.net_label} ({kind})',
    unlabelled_batch_size=0,
    supervision='boxes' if kind == 'box' else 'pixels',
    regularizer={
      'crf': 2.0, 'sigma_xy': 0.1, 'ramp_up': 0.3,
      'shrink': 2 if laptop else 0,
    },
  )  # fmt: skip


def _tags(preset):
  data = preset.config.data
  # Maps of 4x4 pixels are too coarse to say where; the background of small
  # images is most of what their coarse maps cover.
  small = data.resolution < 64
  head = {'level': 1 if small else 0}
  cues = {'foreground': 0.7, 'background': 0.3} if small else {}
  return dict(
    cam=preset.stage(
      'cam', label='CAM', unlabelled_batch_size=0, head=head,
      flip=data.augment.flip, background=0.5 if small else 0.3,
    ),
    sec=preset.stage(
      'sec', label='SEC', unlabelled_batch_size=0, init_from='cam', head=head,
      cues=cues,
    ),
  )  # fmt: skip


def get_config(arg: str = 'scribble,digits'):
  """arg: 'KIND[,SET[,LABELS[,SIZE]]]', e.g. 'click,folder:mydata,all'."""
  kind, _, rest = arg.partition(',')
  if kind not in (*KINDS, 'table'):
    raise ValueError(
      f'{kind!r} is no kind of weak labels, expected one of {", ".join(KINDS)}'
    )
  preset = presets.load(rest or 'digits')
  data = preset.config.data
  data.weak.kind = KINDS.get(kind, 'scribbles')
  if kind == 'scribble' and rest.split(',')[0] == 'acdc':
    data.source, data.weak.kind = 'acdc:scribbles', ''
  if kind == 'grabcut':
    data.weak.refine = 'grabcut'
  if kind == 'box':  # a turned box is none
    data.augment.rotate = data.augment.shear = data.augment.elastic = 0.0
  return jaxseg_config.add_stages(preset.config, **stages(preset, kind))
