"""Data sets by name, for configs that run on any of them.

`--config=configs/gct.py:acdc,7` reads: method GCT, data set acdc, 7 labels.
A preset holds what depends on the data alone, so that methods are compared with
the same network, optimiser and number of steps.
"""

import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config

# Photographs at the size of a U-Net would need a far larger one.
_UNET = {'arch': 'unet', 'width': 64, 'depth': 4, 'norm': 'batch'}
_DEEPLAB = {
  'arch': 'deeplab_v3plus', 'backbone': 'resnet50', 'output_stride': 16,
  'norm': 'batch', 'dropout': 0.5,
}  # fmt: skip
_ADAMW = {'name': 'adamw', 'lr': 1e-3, 'schedule': 'cosine'}
_SGD = {
  'name': 'sgd', 'lr': 1e-3, 'schedule': 'poly', 'head_factor': 10.0,
}  # fmt: skip


class Preset(NamedTuple):
  """A data set, and what every method is trained with on it.

  Attributes:
    config: `config.default()` with `data` and `eval` set; no stages yet.
    total_steps: of each method.
    batch_size: labelled images a step.
    unlabelled_batch_size: unlabelled images a step, of methods that read them.
    net: fields of `jaxseg.nets.segmenters.Net`.
    optimizer: fields of `jaxseg.optimizers.Optimizer`.
    one_piece: whether each foreground class is one connected piece, where an
      image shows it: a ventricle is, a pair of lungs is not.
  """

  config: ConfigDict
  total_steps: int
  batch_size: int
  unlabelled_batch_size: int
  net: dict[str, Any]
  optimizer: dict[str, Any]
  one_piece: bool = False

  @property
  def width(self) -> int:
    """Of the network; discriminators are as wide."""
    return self.net.get('width', 64)

  @property
  def net_label(self) -> str:
    """Of the network, in tables."""
    return {'unet': 'U-Net', 'deeplab_v3plus': 'DeepLab v3+'}[self.net['arch']]

  def stage(self, method: str, **changes: Any) -> ConfigDict:
    """One stage of `method` with this preset's numbers.

    Args:
      method: a key of `jaxseg.methods.METHODS`.
      **changes: as `jaxseg.config.stage`; `net` and `optimizer` are dicts of
        the fields that differ from the preset's. A `net` with an `arch` keeps
        the preset's width alone, an `optimizer` with a `name` nothing.
    """
    rest = {
      'total_steps': self.total_steps,
      'batch_size': self.batch_size,
      'unlabelled_batch_size': self.unlabelled_batch_size,
      'log_every': max(1, self.total_steps // 20),
      'checkpoint_every': max(1, self.total_steps // 4),
      'picture_every': max(1, self.total_steps // 4),
    } | changes
    for name, chooses, kept in (
      ('net', 'arch', {'width': self.width}), ('optimizer', 'name', {}),
    ):  # fmt: skip
      changed = changes.get(name, {})
      base = kept if chooses in changed else getattr(self, name)
      rest[name] = base | changed
    return jaxseg_config.stage(method, **rest)


def load(arg: str) -> Preset:
  """Reads a config's argument.

  Args:
    arg: 'SET', 'SET,LABELS' or 'SET,LABELS,SIZE'. SET is a key of SETS, or
      'folder:PATH'; LABELS how many labels are used (patients for acdc), a
      part of them such as '20%', or 'all'; SIZE 'laptop' for 64x64 images and
      a narrow U-Net.

  Raises:
    ValueError: another set or size, or LABELS is neither.
  """
  if arg.startswith('folder:'):  # whose path may have commas
    found = re.fullmatch(r'(.+?)(?:,([\d.]+%|\d*|all)(?:,(laptop|))?)?', arg)
    name, labels, size, *rest = *(part or '' for part in found.groups()), ''
  else:
    name, labels, size, *rest = [*arg.split(','), '', '', ''][:4]
  if (name not in SETS and not name.startswith('folder:')) or rest[0]:
    raise ValueError(
      f'{arg!r} is not SET[,LABELS[,SIZE]] with SET one of {", ".join(SETS)} '
      'or folder:PATH'
    )
  changes = _labels(labels) if labels else {}
  if size not in ('', 'laptop'):
    raise ValueError(f"size {size!r} is not '' or 'laptop'")
  c = jaxseg_config.default()
  c.data.source = name
  preset = SETS.get(name, _folder)(c)
  if size:
    preset = _laptop(preset, name)
  preset.config.data.update(changes)
  return preset


def _labels(text):
  """{field of config.data: value} of '7', '20%' or 'all'."""
  if text.isdecimal():
    return {'num_labelled': int(text)}
  if text == 'all':
    return {'num_labelled': 0}
  percent = re.fullmatch(r'(\d+(?:\.\d+)?)%', text)
  if not percent or not 0 < float(percent[1]) <= 100:
    raise ValueError(
      f"the number of labels {text!r} is not a number, such as '7', nor a part "
      "above 0 % and up to 100 %, such as '20%', nor 'all'"
    )
  return {'labelled_fraction': float(percent[1]) / 100}


def _digits(c):
  c.data.resolution, c.data.channels = 32, 1
  c.data.num_labelled = 30
  c.data.augment.shift = 0.07
  c.data.strong.blur = 1.0  # strokes are two pixels wide
  c.eval.max_images, c.eval.batch_size = 300, 50
  return Preset(c, 600, 10, 10, _UNET | {'width': 16, 'depth': 3},
                _ADAMW | {'lr': 2e-3}, one_piece=True)  # fmt: skip


def _avatars(c):
  c.data.resolution, c.data.channels = 64, 3
  c.data.num_labelled = 30
  c.data.augment.shift = 0.07
  c.eval.max_images, c.eval.batch_size = 60, 20
  return Preset(c, 600, 10, 10, _UNET | {'width': 16, 'depth': 3},
                _ADAMW | {'lr': 2e-3})  # fmt: skip


def _chest_xray(c):
  # The SemanticGAN paper's 175 / 25 / 47 of JSRT's 247 images, and its grey
  # values: histogram equalisation, then gamma.
  c.data.resolution, c.data.channels = 256, 1
  c.data.num_labelled = 9
  c.data.unlabelled = ('unlabelled_nih',)
  c.data.test_fraction = 47 / 247
  c.data.val_fraction = 25 / 200
  c.data.fit = 'squeeze'
  c.data.intensity.mode = 'equalize'
  c.data.intensity.gamma = 0.5
  c.data.augment.shift = c.data.augment.scale = 0.05
  return Preset(c, 5000, 8, 8, _UNET, _ADAMW)


def _skin_lesion(c):
  c.data.resolution, c.data.channels = 256, 3
  c.data.num_labelled = 40
  c.data.fit = 'squeeze'
  c.data.augment.flip = c.data.augment.flip_vertical = True
  c.data.augment.scale, c.data.augment.rotate = 0.1, 180.0
  return Preset(c, 10_000, 8, 8, _UNET, _ADAMW)


def _liver(c):
  c.data.resolution, c.data.channels = 256, 1
  c.data.num_labelled, c.data.labelled_by = 8, 'group'
  c.data.fit = 'pad'  # slices are mostly square
  c.data.augment.scale, c.data.augment.rotate = 0.1, 10.0
  return Preset(c, 20_000, 8, 8, _UNET, _ADAMW, one_piece=True)


def _acdc(c):
  # As SSL4MIS, BCP and UniMatch train: 70 / 10 / 20 patients, 12 + 12 slices,
  # a narrow U-Net with batch normalisation, SGD; 30,000 steps.
  c.data.source = 'acdc:ssl4mis'
  c.data.resolution, c.data.channels = 256, 1
  c.data.num_labelled, c.data.labelled_by = 7, 'group'
  c.data.fit = 'squeeze'
  c.data.augment.flip = c.data.augment.flip_vertical = True
  c.data.augment.rotate = 20.0
  return Preset(
    c, 30_000, 12, 12, _UNET | {'width': 16},
    _SGD | {'lr': 0.01, 'head_factor': 1.0}, one_piece=True,
  )  # fmt: skip


def _voc2012(c):
  c.data.source = 'voc2012:semi'
  _photographs(c, labels=183)
  return Preset(c, 40_000, 8, 8, _DEEPLAB, _SGD)


def _cityscapes(c):
  _photographs(c, labels=186)
  return Preset(c, 45_000, 8, 8, _DEEPLAB, _SGD | {'lr': 5e-3})


def _celeba_mask_hq(c):
  _photographs(c, labels=30)
  c.data.resolution = 256
  c.data.val_fraction = 0.0
  return Preset(c, 20_000, 8, 8, _DEEPLAB, _SGD)


def _photographs(c, labels):
  c.data.resolution, c.data.channels = 512, 3
  c.data.num_labelled = labels
  # Not 'pad': the border of an unlabelled image would count as content.
  c.data.fit = 'squeeze'
  c.data.augment.flip = True
  c.data.augment.scale = 0.5
  c.data.cache = False
  c.eval.batch_size = 8


def _folder(c):
  c.data.resolution, c.data.channels = 128, 3
  c.data.augment.shift = c.data.augment.scale = 0.05
  return Preset(c, 5000, 8, 8, _UNET | {'width': 32}, _ADAMW)


def _laptop(preset, name):
  """64x64, narrow: minutes on a CPU."""
  c = preset.config
  c.data.resolution, c.data.cache = 64, True
  c.eval.max_images, c.eval.batch_size = 140, 35
  if name == 'chest_xray':  # a folder of all three hospitals at 128x128
    c.data.source = 'folder:data/cxr_lungs'
    c.data.unlabelled = ('unlabeled_nih64', 'unlabeled_kermany')
    c.data.intensity.mode, c.data.intensity.gamma = 'auto', 1.0
    c.data.test_fraction, c.data.val_fraction = 0.2, 0.1
    c.data.fit = ''
  net = _UNET | {'width': 16, 'depth': 3}
  return preset._replace(
    total_steps=300, batch_size=8, unlabelled_batch_size=8, net=net,
    optimizer=_ADAMW,
  )  # fmt: skip


SETS = {
  'digits': _digits,
  'avatars': _avatars,
  'chest_xray': _chest_xray,
  'skin_lesion': _skin_lesion,
  'liver': _liver,
  'acdc': _acdc,
  'voc2012': _voc2012,
  'cityscapes': _cityscapes,
  'celeba_mask_hq': _celeba_mask_hq,
}
