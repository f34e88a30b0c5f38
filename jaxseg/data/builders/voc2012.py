"""PASCAL VOC 2012 segmentation, alone or augmented with SBD.

Official layout (VOCtrainval_11-May-2012.tar):

  VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg     17,125 images
  VOCdevkit/VOC2012/SegmentationClass/2007_000032.png  indexed, 255 = void
  VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt   1,464 and 1,449

The labels of VOC's own test images are withheld, so, as in nearly all papers,
the official val list is scored as 'test'. No 'val' is written: jaxseg draws it
from the training images (config.data.val_fraction), so that no choice during
training is made on the images of the final score.

SBD (Hariharan et al., ICCV 2011) labels 11,355 images of VOC. Without VOC's
val images and with its train images they are the 10,582 of 'train_aug'. Images
of VOC's train list keep VOC's own labels; SBD's have no void at the contours.
Either form is read: SegmentationClassAug/*.png beside SegmentationClass (with
ImageSets/Segmentation/train_aug.txt where there is one), or the original
benchmark_RELEASE/dataset/cls/*.mat.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
import tensorflow_datasets as tfds

from jaxseg.data.builders import base
from jaxseg.data.formats import images
from jaxseg.errors import DataError

CLASS_NAMES = (
  'background',
  'aeroplane',
  'bicycle',
  'bird',
  'boat',
  'bottle',
  'bus',
  'car',
  'cat',
  'chair',
  'cow',
  'dining table',
  'dog',
  'horse',
  'motorbike',
  'person',
  'potted plant',
  'sheep',
  'sofa',
  'train',
  'tv/monitor',
)
LICENCE = (
  "Photographs from flickr, under flickr's terms of use; no licence is stated "
  'for the annotations'
)
INSTRUCTIONS = """\
unpack VOCtrainval_11-May-2012.tar (2 GB, of
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/#devkit; the photographs are
under flickr's terms of use), so that --manual_dir holds
VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets}.
"""


@dataclasses.dataclass
class Config(base.Config):
  """A variant of VOC 2012.

  Attributes:
    sbd: 'labelled': SBD's images train with labels; 'unlabelled': without;
      '': SBD is not used and all other photographs are unlabelled.
  """

  sbd: str = ''


class VOC2012(base.Builder, skip_registration=True):
  """See the module."""

  name = 'voc2012'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    Config(
      name='voc2012',
      description='1,464 labelled images; the rest of VOC 2012 unlabelled.',
      class_names=CLASS_NAMES,
      counts={'train': 1464, 'test': 1449, 'unlabelled': 14212},
    ),
    Config(
      name='aug',
      description="10,582 labelled images: VOC's train list and SBD.",
      class_names=CLASS_NAMES,
      counts={'train': 10582, 'test': 1449},
      sbd='labelled',
    ),
    Config(
      name='semi',
      description='1,464 labelled images; the other 9,118 of SBD unlabelled, '
      'the usual protocol of semi-supervised papers.',
      class_names=CLASS_NAMES,
      counts={'train': 1464, 'test': 1449, 'unlabelled': 9118},
      sbd='unlabelled',
    ),
  ]
  TITLE = 'Everyday photographs, 20 kinds of objects and background'
  HOMEPAGE = 'http://host.robots.ox.ac.uk/pascal/VOC/voc2012/'
  LICENCE = LICENCE
  CITATION = """\
@article{everingham2015pascal,
  title={The PASCAL Visual Object Classes Challenge: A Retrospective},
  author={Everingham, Mark and Eslami, S. M. Ali and Van Gool, Luc and
    Williams, Christopher K. I. and Winn, John and Zisserman, Andrew},
  journal={International Journal of Computer Vision},
  volume={111}, number={1}, pages={98--136}, year={2015}
}
@inproceedings{hariharan2011semantic,
  title={Semantic Contours from Inverse Detectors},
  author={Hariharan, Bharath and Arbel{\\'a}ez, Pablo and Bourdev, Lubomir and
    Maji, Subhransu and Malik, Jitendra},
  booktitle={ICCV}, year={2011}
}"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    INSTRUCTIONS
    + """\
For the configs 'aug' and 'semi' add SBD: either SegmentationClassAug.zip (a
conversion that many repositories link to) as
VOCdevkit/VOC2012/SegmentationClassAug, or benchmark.tgz (1.4 GB, of
http://home.bharathh.info/pubs/codes/SBD/download.html) as
benchmark_RELEASE/dataset/cls.
"""
  )

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    """See `base.Builder.scan`."""
    folder = devkit(self, root)
    train, test = dense(self, folder, 'train'), dense(self, folder, 'val')
    official = {id_ for part in ('train', 'val') for id_ in ids(folder, part)}
    splits = {'train': train, 'test': test}
    if not self.builder_config.sbd:
      rest = sorted(photographs(folder).keys() - official)
      splits['unlabelled'] = records(folder, rest)
    else:
      labels = self._sbd_labels(root, folder)
      listed = _train_aug(folder) or sorted(labels)
      more = [id_ for id_ in listed if id_ not in official]
      if self.builder_config.sbd == 'labelled':
        splits['train'] = train + records(folder, more, labels)
      else:
        splits['unlabelled'] = records(folder, more)
    return splits

  def _sbd_labels(self, root, folder):
    """Returns {id: function that reads its label}."""
    converted = folder / 'SegmentationClassAug'
    if converted.is_dir():
      return _labels(converted)
    cls = root / 'benchmark_RELEASE' / 'dataset' / 'cls'
    self.require(cls, "the folder of SBD's labels")
    return {
      path.stem: functools.partial(read_sbd, path)
      for path in cls.glob('[!.]*.mat')
    }


def devkit(builder: base.Builder, root: Path) -> Path:
  """Returns the folder VOC2012 of the unpacked development kit."""
  for folder in (root, root / 'VOC2012'):
    if (folder / 'JPEGImages').is_dir():
      return folder
  folder = root / 'VOCdevkit' / 'VOC2012'
  builder.require(folder / 'JPEGImages', 'the folder of photographs')
  return folder


def ids(folder: Path, part: str) -> list[str]:
  """Returns the ids of an official list, 'train' or 'val', in its order."""
  return _read_ids(folder / 'ImageSets' / 'Segmentation' / f'{part}.txt')


def photographs(folder: Path) -> dict[str, Path]:
  """Returns {id: path} of all JPEG files."""
  return {path.stem: path for path in (folder / 'JPEGImages').glob('[!.]*.jpg')}


def dense(builder: base.Builder, folder: Path, part: str) -> list[base.Record]:
  """Returns the records of an official list with VOC's own labels."""
  path = folder / 'ImageSets' / 'Segmentation' / f'{part}.txt'
  builder.require(path, 'an official list')
  labels = builder.require(
    folder / 'SegmentationClass', 'the folder of label images'
  )
  return records(folder, ids(folder, part), _labels(labels))


def records(
  folder: Path,
  wanted: list[str],
  labels: dict[str, Callable[[], np.ndarray]] | None = None,
) -> list[base.Record]:
  """Returns the records of those `wanted` ids whose files are there.

  Args:
    folder: VOC2012.
    wanted: ids, in the order to be kept.
    labels: {id: function that reads its label}; None: all are unlabelled.
  """
  paths = photographs(folder)
  if labels is None:
    return [base.Record(id_, paths[id_]) for id_ in wanted if id_ in paths]
  return [
    base.Record(id_, paths[id_], labels[id_])
    for id_ in wanted
    if id_ in paths and id_ in labels
  ]


def read_sbd(path: Path) -> np.ndarray:
  """Reads one label of SBD, GTcls.Segmentation of a .mat file.

  Returns:
    uint8 [H, W], classes 0..20; SBD knows no void.

  Raises:
    DataError: a damaged file, or one of another kind.
  """
  try:
    contents = scipy.io.loadmat(path, variable_names=['GTcls'])
    return np.asarray(contents['GTcls'][0, 0]['Segmentation'], np.uint8)
  except Exception as error:  # the parser raises many types on damaged files
    raise DataError(
      f'{path}: the label of SBD cannot be read ({error!r}), expected a MATLAB '
      'file that holds GTcls.Segmentation; unpack benchmark.tgz again'
    ) from error


def _labels(folder):
  return {
    path.stem: functools.partial(images.read_label, path)
    for path in folder.glob('[!.]*.png')
  }


def _train_aug(folder):
  """Returns the ids of the augmented list, [] where there is none."""
  for name in ('train_aug.txt', 'trainaug.txt'):
    path = folder / 'ImageSets' / 'Segmentation' / name
    if path.exists():
      return _read_ids(path)
  return []


def _read_ids(path):
  """Reads one id a line; lines may be 'JPEGImages/ID.jpg Labels/ID.png'."""
  lines = path.read_text('utf-8-sig').splitlines()
  return [Path(line.split()[0]).stem for line in lines if line.split()]
