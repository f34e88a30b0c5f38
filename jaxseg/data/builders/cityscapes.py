"""Cityscapes: streets seen from a car, 19 classes.

Official layout (leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip,
leftImg8bit_trainextra.zip):

  leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png    2048x1024
  gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
  leftImg8bit/train_extra/augsburg/augsburg_000000_000000_leftImg8bit.png

Names are CITY_SEQUENCE_FRAME: frames of one sequence are neighbours in time
and stay together as a group, city + sequence. (Some cities are one long
sequence; jaxseg's 'val', which is drawn by groups from the training images as
the official val set is scored as 'test', then varies in size with the seed.)

The 1,525 official test images are left out: their labels are withheld for the
benchmark server, and images that a submission is judged on should not be
learned from, not even without labels.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders import base
from jaxseg.data.formats import images
from jaxseg.errors import DataError


class Label(NamedTuple):
  """A row of the official table of labels."""

  id: int  # in *_labelIds.png
  name: str
  colour: tuple[int, int, int]


# The ids that are evaluated, of cityscapesscripts/helpers/labels.py; the class
# ids (official 'trainId') count them from 0. All other ids, 0 to 33, are void.
LABELS = (
  Label(7, 'road', (128, 64, 128)),
  Label(8, 'sidewalk', (244, 35, 232)),
  Label(11, 'building', (70, 70, 70)),
  Label(12, 'wall', (102, 102, 156)),
  Label(13, 'fence', (190, 153, 153)),
  Label(17, 'pole', (153, 153, 153)),
  Label(19, 'traffic light', (250, 170, 30)),
  Label(20, 'traffic sign', (220, 220, 0)),
  Label(21, 'vegetation', (107, 142, 35)),
  Label(22, 'terrain', (152, 251, 152)),
  Label(23, 'sky', (70, 130, 180)),
  Label(24, 'person', (220, 20, 60)),
  Label(25, 'rider', (255, 0, 0)),
  Label(26, 'car', (0, 0, 142)),
  Label(27, 'truck', (0, 0, 70)),
  Label(28, 'bus', (0, 60, 100)),
  Label(31, 'train', (0, 80, 100)),
  Label(32, 'motorcycle', (0, 0, 230)),
  Label(33, 'bicycle', (119, 11, 32)),
)
LAST_ID = 33
# Black throughout in the archive, as several repositories note.
DAMAGED = ('troisdorf_000000_000073',)


def _config(name, description, counts):
  return base.Config(
    name=name,
    description=description,
    class_names=tuple(label.name for label in LABELS),
    palette=tuple(label.colour for label in LABELS),
    counts=counts,
  )


class Cityscapes(base.Builder, skip_registration=True):
  """See the module."""

  name = 'cityscapes'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    _config('fine', 'Fine labels.', {'train': 2975, 'test': 500}),
    _config(
      'extra',
      "Fine labels, and the images of train_extra as 'unlabelled_extra'.",
      {'train': 2975, 'test': 500, 'unlabelled_extra': 19997},
    ),
  ]
  TITLE = 'Streets of 50 European cities seen from a car, 19 classes'
  HOMEPAGE = 'https://www.cityscapes-dataset.com/'
  LICENCE = (
    'Cityscapes licence: free for non-commercial research and teaching, '
    'registration needed, no redistribution'
  )
  CITATION = """\
@inproceedings{cordts2016cityscapes,
  title={The Cityscapes Dataset for Semantic Urban Scene Understanding},
  author={Cordts, Marius and Omran, Mohamed and Ramos, Sebastian and Rehfeld,
    Timo and Enzweiler, Markus and Benenson, Rodrigo and Franke, Uwe and Roth,
    Stefan and Schiele, Bernt},
  booktitle={CVPR}, year={2016}
}"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
register at https://www.cityscapes-dataset.com/ (non-commercial licence), and
unpack leftImg8bit_trainvaltest.zip (11 GB) and gtFine_trainvaltest.zip (241
MB), for the config 'extra' also leftImg8bit_trainextra.zip (44 GB), into one
folder, so that --manual_dir holds leftImg8bit/{train,val} and
gtFine/{train,val}.
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    """See `base.Builder.scan`."""
    splits = {
      'train': self._part(root, 'train'),
      'test': self._part(root, 'val'),
    }
    if 'unlabelled_extra' in self.builder_config.counts:
      splits['unlabelled_extra'] = self._part(root, 'train_extra', False)
    return splits

  def _part(self, root, part, labelled=True):
    """Returns the records of an official part, in the order of their names."""
    folder = self.require(
      root / 'leftImg8bit' / part, f'the folder of images of {part!r}'
    )
    found = _files(folder, '_leftImg8bit.png')
    if not labelled:
      return [
        base.Record(id_, path, group=_sequence(id_))
        for id_, path in found.items()
        if id_ not in DAMAGED
      ]
    folder = self.require(
      root / 'gtFine' / part, f'the folder of labels of {part!r}'
    )
    labels = _files(folder, '_gtFine_labelIds.png')
    if found and not labels:
      raise self.missing(folder / 'CITY/ID_gtFine_labelIds.png', 'every label')
    return [
      base.Record(
        id_,
        path,
        functools.partial(read_label_ids, labels[id_]),
        _sequence(id_),
      )
      for id_, path in found.items()
      if id_ in labels
    ]


def read_label_ids(path: Path) -> np.ndarray:
  """Reads one *_gtFine_labelIds.png.

  Returns:
    uint8 [H, W], class ids 0..18 and 255.

  Raises:
    DataError: a damaged file, or ids that the official table does not have.
  """
  ids = images.read_label(path)
  if ids.max() > LAST_ID:
    raise DataError(
      f'{path}: the label file holds the id {ids.max()}, expected the official '
      f'label ids 0 to {LAST_ID}; these may be train ids, so unpack '
      'gtFine_trainvaltest.zip again',
      'unknown_ids',
    )
  classes = np.full(256, 255, np.uint8)
  classes[[label.id for label in LABELS]] = np.arange(len(LABELS))
  return classes[ids]


def _files(folder, suffix):
  """Returns {id: path} of folder/CITY/ID + suffix, sorted."""
  paths = sorted(folder.glob(f'*/[!.]*{suffix}'))
  return {path.name.removesuffix(suffix): path for path in paths}


def _sequence(id_):
  """'aachen_000000_000019' -> 'aachen_000000'."""
  return id_.rpartition('_')[0]
