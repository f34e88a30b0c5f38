"""Skin lesions: ISIC 2018 and three sets from elsewhere.

Layout (archives unpacked in one folder; all but ISIC's training images are
optional):

  ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg            2,594
  ISIC2018_Task1_Training_GroundTruth/ISIC_0000000_segmentation.png
  ISIC2018_Task1-2_Validation_Input, ISIC2018_Task1_Validation_GroundTruth  100
  ISIC2018_Task1-2_Test_Input, ISIC2018_Task1_Test_GroundTruth            1,000
  PH2Dataset/PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/IMD002.bmp  200
  PH2Dataset/PH2 Dataset images/IMD002/IMD002_lesion/IMD002_lesion.bmp
  Skin Image Data Set-1/skin_data/melanoma/{dermIS,dermquest}/NAME_orig.jpg
  Skin Image Data Set-1/skin_data/melanoma/{dermIS,dermquest}/NAME_contour.png
  Skin Image Data Set-2/skin_data/notmelanoma/{dermis,dermquest}/...

The official splits are kept: 'train', and 'val' and 'test' where both their
archives are there (otherwise they are drawn from 'train'). ISIC publishes no
patients, and some of its pictures are near duplicates.

DermIS and DermQuest are photographs, not dermoscopy, collected and outlined by
the University of Waterloo. The counts of 69 and 137 (206 together) are the
literature's; the archives themselves state none.
"""

import functools
import re
from pathlib import Path

import tensorflow_datasets as tfds

from jaxseg.data.builders import base, parts

LICENCE = (
  'ISIC 2018 task 1: CC BY-NC 4.0; PH2: research and education; DermIS, '
  'DermQuest: research, please cite'
)


class SkinLesion(parts.Builder, skip_registration=True):
  """See the module."""

  name = 'skin_lesion'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    parts.Config(
      name='lesion',
      description='Lesions; trained on ISIC 2018, scored on it and elsewhere.',
      class_names=('background', 'lesion'),
      counts={'train': 2594},
      optional={
        'val': 100,
        'test': 1000,
        'ood_ph2': 200,
        'ood_dermis': 69,
        'ood_dermquest': 137,
      },
    )
  ]
  TITLE = 'Skin lesions, dermoscopy and photographs'
  HOMEPAGE = 'https://challenge.isic-archive.com/data/#2018'
  LICENCE = LICENCE
  CITATION = """\
@article{codella2019isic,
  title={Skin Lesion Analysis Toward Melanoma Detection 2018},
  author={Codella, Noel and others}, journal={arXiv:1902.03368}, year={2019}
}
@article{tschandl2018ham10000,
  title={The HAM10000 dataset, a large collection of multi-source
    dermatoscopic images of common pigmented skin lesions},
  author={Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  journal={Scientific Data}, volume={5}, pages={180161}, year={2018}
}
@inproceedings{mendonca2013ph2,
  title={PH2 - A dermoscopic image database for research and benchmarking},
  author={Mendon{\\c{c}}a, Teresa and others}, booktitle={EMBC}, year={2013}
}
@article{glaister2014segmentation,
  title={Segmentation of Skin Lesions from Digital Images Using Joint
    Statistical Texture Distinctiveness},
  author={Glaister, Jeffrey and Wong, Alexander and Clausi, David A.},
  journal={IEEE Transactions on Biomedical Engineering}, volume={61},
  pages={1220--1230}, year={2014}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
unpack ISIC2018_Task1-2_Training_Input.zip (10 GB) and
ISIC2018_Task1_Training_GroundTruth.zip of
https://challenge.isic-archive.com/data/#2018 (CC BY-NC 4.0) so that
--manual_dir holds these two folders; optionally also, beside them, the folders
of Validation and Test, PH2Dataset (https://www.fc.up.pt/addi/ph2%20database.html;
research and education), and 'Skin Image Data Set-1' and 'Skin Image Data Set-2'
(https://uwaterloo.ca/vision-image-processing-lab/research-demos/skin-cancer-detection;
research).
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    self.require(root / _isic_folder('Training', 'Input'), 'the folder')
    self.require(root / _isic_folder('Training', 'GroundTruth'), 'the folder')
    return {
      'train': self._isic(root, 'Training'),
      'val': self._isic(root, 'Validation'),
      'test': self._isic(root, 'Test'),
      'ood_ph2': self._ph2(root),
      'ood_dermis': self._waterloo(root, 'dermis'),
      'ood_dermquest': self._waterloo(root, 'dermquest'),
    }

  def _isic(self, root, part):
    images = root / _isic_folder(part, 'Input')
    labels = root / _isic_folder(part, 'GroundTruth')
    if not labels.exists():  # images alone cannot be scored
      return []
    return [
      self._record(
        path.stem, path, labels / f'{path.stem}_segmentation.png', "ISIC's mask"
      )
      for path in sorted(images.glob('ISIC_*.jpg'))
    ]

  def _ph2(self, root):
    folder = parts.find(
      root, 'PH2Dataset/PH2 Dataset images', 'PH2 Dataset images'
    )
    if folder is None:
      return []
    return [
      self._record(
        path.stem,
        functools.partial(parts.read_pixels, path, 'RGB'),  # BMP becomes PNG
        path.parents[1] / f'{path.stem}_lesion' / f'{path.stem}_lesion.bmp',
        "PH2's mask",
      )
      for path in sorted(folder.glob('IMD*/IMD*_Dermoscopic_Image/IMD*.bmp'))
    ]

  def _waterloo(self, root, source):
    records = []
    for path in sorted(root.glob('**/skin_data/*melanoma/*/*_orig.jpg')):
      kind, folder = path.parts[-3:-1]
      if folder.lower() == source:  # spelt dermIS or dermis
        name = path.name.removesuffix('_orig.jpg')
        label = path.with_name(f'{name}_contour.png')
        id_ = re.sub(r'[^a-zA-Z0-9._-]', '_', f'{source}_{kind}_{name}')
        records.append(self._record(id_, path, label, "Waterloo's mask"))
    return records

  def _record(self, id_, image, label, what):
    self.require(label, what)
    return base.Record(id_, image, functools.partial(parts.binary_label, label))


def _isic_folder(part, what):
  task = 'Task1-2' if what == 'Input' else 'Task1'
  return f'ISIC2018_{task}_{part}_{what}'
