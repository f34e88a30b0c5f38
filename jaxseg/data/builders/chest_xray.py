"""Chest X-rays with lung masks: JSRT, and three other hospitals.

Layout (archives unpacked in one folder; all but JSRT and SCR are optional):

  All247images/JPCLN001.IMG              JSRT, 247 (154 JPCLN*, 93 JPCNN*)
  scratch/{fold1,fold2}/masks/{left lung,right lung,heart}/JPCLN001.gif     SCR
  MontgomerySet/CXR_png/MCUCXR_0001_0.png        138
  MontgomerySet/ManualMask/{leftMask,rightMask}/MCUCXR_0001_0.png
  ChinaSet_AllFiles/CXR_png/CHNCXR_0001_0.png    Shenzhen, 662
  mask/CHNCXR_0001_0_mask.png            Stirenko et al.'s masks of 566 of them
  images_001/images/00000001_000.png     NIH ChestX-ray14, 112,120 in 12 folders

JSRT's files are 2048 x 2048 big-endian integers of 12 bits without a header,
film density, so that bones are dark. They are inverted, averaged to the 1024 x
1024 of SCR's masks and mapped linearly, 4096 values to 256. All other images
are kept as they are.

All of JSRT is 'train' (jaxseg draws what is scored from it): the budgets of Li
et al. (CVPR 2021), 9, 35 and 175 labels of 175 with 25 for validation and 47
for testing, are larger than SCR's folds, and their lists were never published.
configs/chest_xray.py draws as many. The config 'folds' has SCR's own protocol
(van Ginneken et al., 2006): one of its folds, the 124 images of odd number,
trains and the 123 others are scored.
"""

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders import base, parts
from jaxseg.data.formats.intensity import Intensity, to_8_bits
from jaxseg.errors import DataError

SIDE = 2048  # of JSRT's images, in pixels
DEPTH = 4096
ORGANS = ('right lung', 'left lung', 'heart')
OTHERS = {
  'ood_montgomery': 138,
  'ood_shenzhen': 566,
  'unlabelled_shenzhen': 96,
  'unlabelled_nih': 112120,
}
LICENCE = (
  'JSRT: free for research and education; SCR: research; Montgomery, Shenzhen: '
  'public (NLM), please cite; Shenzhen masks: CC BY-NC-SA 4.0; NIH: free with '
  'attribution'
)


@dataclasses.dataclass
class Config(parts.Config):
  """A variant of the set.

  Attributes:
    organs: JSRT's three organs instead of lungs.
    folds: SCR's folds as 'train' and 'test'; else all of JSRT is 'train', of
      which jaxseg draws the images to score.
  """

  organs: bool = False
  folds: bool = False


class ChestXray(parts.Builder, skip_registration=True):
  """See the module."""

  name = 'chest_xray'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    Config(
      name='lungs',
      description='Lungs; trained on JSRT, scored on other hospitals.',
      class_names=('background', 'lung'),
      channels=1,
      counts={'train': 247},
      optional=OTHERS,
    ),
    Config(
      name='organs',
      description='Both lungs and the heart, of JSRT. Where outlines of heart '
      'and lungs overlap, it is lung.',
      class_names=('background', *ORGANS),
      channels=1,
      counts={'train': 247},
      optional=OTHERS,
      organs=True,
    ),
    Config(
      name='folds',
      description="As 'organs', split as the SCR benchmark is.",
      class_names=('background', *ORGANS),
      channels=1,
      counts={'train': 124, 'test': 123},
      optional=OTHERS,
      organs=True,
      folds=True,
    ),
  ]
  TITLE = 'Chest X-rays, lungs (and heart)'
  HOMEPAGE = 'http://db.jsrt.or.jp/eng.php'
  LICENCE = LICENCE
  CITATION = """\
@article{shiraishi2000jsrt,
  title={Development of a Digital Image Database for Chest Radiographs with and
    without a Lung Nodule},
  author={Shiraishi, Junji and others},
  journal={American Journal of Roentgenology}, volume={174}, pages={71--74},
  year={2000}
}
@article{vanginneken2006scr,
  title={Segmentation of Anatomical Structures in Chest Radiographs Using
    Supervised Methods},
  author={van Ginneken, Bram and Stegmann, Mikkel B. and Loog, Marco},
  journal={Medical Image Analysis}, volume={10}, pages={19--40}, year={2006}
}
@article{jaeger2014two,
  title={Two Public Chest X-ray Datasets for Computer-Aided Screening of
    Pulmonary Diseases},
  author={Jaeger, Stefan and others},
  journal={Quantitative Imaging in Medicine and Surgery}, volume={4},
  number={6}, pages={475--477}, year={2014}
}
@inproceedings{stirenko2018chest,
  title={Chest X-Ray Analysis of Tuberculosis by Deep Learning with
    Segmentation and Augmentation},
  author={Stirenko, Sergii and others}, booktitle={ELNANO}, year={2018}
}
@inproceedings{wang2017chestxray,
  title={ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks},
  author={Wang, Xiaosong and others}, booktitle={CVPR}, year={2017}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
unpack All247images.zip of JSRT (http://db.jsrt.or.jp/eng.php; research and
education) and the masks of SCR (https://zenodo.org/record/7056076; research),
so that --manual_dir holds All247images/*.IMG and scratch/{fold1,fold2}/masks;
optionally also, beside them, NLM's MontgomerySet and ChinaSet_AllFiles
(https://openi.nlm.nih.gov/faq; public), Stirenko's masks of the latter as
mask/*_mask.png (kaggle: yoctoman/shcxr-lung-mask; CC BY-NC-SA 4.0), and
images_001 to images_012 of NIH ChestX-ray14
(https://nihcc.app.box.com/v/ChestXray-NIHCC; free with attribution).
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    splits = self._jsrt(root)
    if not self.builder_config.organs:
      splits['ood_montgomery'] = self._montgomery(root)
    labelled, unlabelled = _shenzhen(root)
    if not self.builder_config.organs:
      splits['ood_shenzhen'] = labelled
    splits['unlabelled_shenzhen'] = unlabelled
    splits['unlabelled_nih'] = _nih(root)
    return splits

  def _jsrt(self, root):
    folder = parts.find(root, 'All247images', 'JSRT')
    if folder is None:
      raise self.missing(root / 'All247images', "the folder of JSRT's images")
    masks = parts.find(root, 'scratch', 'SCR/scratch', 'scr/scratch', 'SCR')
    if masks is None:
      raise self.missing(root / 'scratch', "the folder of SCR's masks")
    files = {
      p.stem: p
      for p in sorted(folder.rglob('JPC*'))
      if re.fullmatch(r'JPC[LN]N\d{3}\.img', p.name, re.IGNORECASE)
    }
    if not files:
      raise self.missing(folder / 'JPCLN001.IMG', "every image of JSRT's")
    splits = {'train': [], 'test': []}
    for name, path in files.items():
      lung = f'masks/{ORGANS[0]}/{name}.gif'
      fold = parts.find(masks, f'fold1/{lung}', f'fold2/{lung}')
      if fold is None:
        raise self.missing(masks / 'fold1' / lung, "SCR's mask")
      organs = [
        self.require(fold.parents[1] / organ / fold.name, "SCR's mask")
        for organ in (ORGANS if self.builder_config.organs else ORGANS[:2])
      ]
      label = _organs if self.builder_config.organs else parts.binary_label
      splits['train' if int(name[-3:]) % 2 else 'test'].append(
        base.Record(
          name,
          functools.partial(_jsrt_image, path),
          functools.partial(label, *organs),
        )
      )
    if self.builder_config.folds:
      return splits
    return {'train': sorted(splits['train'] + splits['test'])}

  def _montgomery(self, root):
    folder = parts.find(root, 'MontgomerySet')
    if folder is None:
      return []
    sides = [folder / f'ManualMask/{s}Mask' for s in ('left', 'right')]
    return [
      base.Record(
        path.stem,
        path,
        functools.partial(
          parts.binary_label,
          *[self.require(s / path.name, "Montgomery's mask") for s in sides],
        ),
      )
      for path in sorted((folder / 'CXR_png').glob('MCUCXR_*.png'))
    ]


def _shenzhen(root):
  """Lists the images (with, without) a mask."""
  masks = {
    path.name: path
    for folder in ('mask', 'ChinaSet_AllFiles')
    for path in (root / folder).rglob('CHNCXR_*_mask.png')
  }
  labelled, unlabelled = [], []
  images = root / 'ChinaSet_AllFiles' / 'CXR_png'
  for path in sorted(images.glob('CHNCXR_????_?.png')):
    mask = masks.get(f'{path.stem}_mask.png')
    if mask:
      label = functools.partial(parts.binary_label, mask)
      labelled.append(base.Record(path.stem, path, label))
    else:
      unlabelled.append(base.Record(path.stem, path))
  return labelled, unlabelled


def _nih(root):
  """Lists NIH's images; the first half of a name is the patient's number."""
  files = [
    *root.glob('images_*/images/[!.]*.png'),
    *root.glob('NIH/**/[!.]*.png'),
  ]
  return [
    base.Record(path.stem, path, None, f'nih_{path.stem.split("_")[0]}')
    for path in sorted(files, key=lambda p: p.name)
  ]


def _jsrt_image(path):
  """Returns uint8 [1024, 1024], bones bright."""
  size = path.stat().st_size
  if size != 2 * SIDE**2:
    raise DataError(
      f'{path}: the file has {size} bytes, expected {2 * SIDE**2} ({SIDE} x '
      f'{SIDE} values of 16 bits, no header); unpack All247images.zip again',
      'truncated',
    )
  raw = np.fromfile(path, '>u2')
  if raw.max() >= DEPTH:
    raise DataError(
      f'{path}: the file holds values up to {raw.max()}, expected at most '
      f'{DEPTH - 1} (big-endian); unpack All247images.zip again',
      'damaged',
    )
  half = SIDE // 2
  density = raw.reshape(half, 2, half, 2).mean((1, 3))
  window = Intensity('window', window=(0, DEPTH - 1))
  return to_8_bits(DEPTH - 1 - density, window)


def _organs(right, left, heart):
  """Returns class ids, uint8 [H, W], of the masks of `ORGANS`."""
  label = 3 * parts.binary_label(heart)
  label[parts.mask(left)] = 2
  label[parts.mask(right)] = 1
  return label
