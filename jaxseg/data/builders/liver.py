"""Liver: CT of LiTS, and CT and MR of CHAOS as other domains.

Layout (archives unpacked in one folder; CHAOS is optional):

  Training Batch 1/volume-0.nii, segmentation-0.nii            LiTS, 0 to 27
  Training Batch 2/volume-28.nii, segmentation-28.nii          LiTS, 28 to 130
  Train_Sets/CT/1/DICOM_anon/i0000,0000b.dcm                   CHAOS, 20 of CT
  Train_Sets/CT/1/Ground/liver_GT_000.png
  Train_Sets/MR/1/T1DUAL/DICOM_anon/{InPhase,OutPhase}/*.dcm   20 others of MR
  Train_Sets/MR/1/T1DUAL/Ground/*.png

LiTS: 131 volumes, 58,638 axial slices, shown with the front on top and the
patient's right on the left; label 1 is liver, 2 tumour, which is part of the
liver unless the config keeps it apart. A volume counts as a patient. No split
is official, so all is 'train', from which jaxseg draws what is scored. The 8,
20 and 118 labels of Li et al. (CVPR 2021) seem to count volumes, as
--config.data.labelled_by=group does.

CHAOS: healthy livers. The slices of CT and of the phases belong to the labels
by the order of the numbers in their names; sorting them by position tears the
pairs apart. In the labels of MR the liver is 63 (by CHAOS's rule, above 55 up
to 70), other organs are background; in those of CT it is 255.

CT is shown in a window of -150 to 250 HU (`python -m jaxseg.predict
--window=-150,250` shows new volumes alike). MR has no units: the percentiles
0.5 and 99.5 of each volume become black and white.
"""

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxseg.data.builders import base, parts, slices
from jaxseg.data.formats import dicom
from jaxseg.data.formats import intensity as intensities
from jaxseg.data.formats.intensity import Intensity
from jaxseg.errors import UserError

MR = Intensity('percentile')
MR_LIVER = (56, 70)  # smallest and largest value of the labels
CT_LIVER = (128, 255)
CHAOS_PATIENTS = 20


@dataclasses.dataclass
class Config(parts.Config):
  """A variant of the set.

  Attributes:
    tumours: keep LiTS's tumours as a class of their own.
    step: take every step-th slice of LiTS.
    window: lowest and highest Hounsfield unit shown.
  """

  tumours: bool = False
  step: int = 1
  window: tuple[float, float] = (-150.0, 250.0)


PATIENTS = {
  'train': 131,
  'ood_ct_chaos': CHAOS_PATIENTS,
  'ood_mri_in': CHAOS_PATIENTS,
  'ood_mri_out': CHAOS_PATIENTS,
}


class Liver(parts.Builder, skip_registration=True):
  """See the module."""

  name = 'liver'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    Config(
      name='liver',
      description='Livers, tumours included; trained on CT, scored on MR.',
      class_names=('background', 'liver'),
      channels=1,
      patients=PATIENTS,
    ),
    Config(
      name='every_4th',
      description="As 'liver' with every fourth slice of LiTS, 14,700 or so.",
      class_names=('background', 'liver'),
      channels=1,
      patients=PATIENTS,
      step=4,
    ),
    Config(
      name='tumour',
      description='Livers and their tumours.',
      class_names=('background', 'liver', 'tumour'),
      channels=1,
      patients=PATIENTS,
      tumours=True,
    ),
  ]
  TITLE = 'Axial slices of the abdomen, CT and MR, liver (and tumours)'
  HOMEPAGE = 'https://competitions.codalab.org/competitions/17094'
  LICENCE = 'LiTS: CC BY-NC-ND 4.0; CHAOS: CC BY-NC-SA 4.0'
  CITATION = """\
@article{bilic2023lits,
  title={The Liver Tumor Segmentation Benchmark (LiTS)},
  author={Bilic, Patrick and others}, journal={Medical Image Analysis},
  volume={84}, pages={102680}, year={2023}
}
@article{kavur2021chaos,
  title={CHAOS Challenge - combined (CT-MR) healthy abdominal organ
    segmentation},
  author={Kavur, A. Emre and others}, journal={Medical Image Analysis},
  volume={69}, pages={101950}, year={2021}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
unpack Training_Batch1.zip and Training_Batch2.zip of LiTS (register at
https://competitions.codalab.org/competitions/17094; CC BY-NC-ND 4.0) so that
--manual_dir holds, in any folders, volume-0.nii to volume-130.nii and
segmentation-0.nii to segmentation-130.nii; optionally also CHAOS_Train_Sets.zip
(https://zenodo.org/record/3431873; CC BY-NC-SA 4.0), as Train_Sets/{CT,MR}.
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    splits = {'train': self._lits(root)}
    chaos = parts.find(
      root, 'Train_Sets', 'CHAOS_Train_Sets/Train_Sets', 'CHAOS/Train_Sets'
    )
    if chaos is None:
      return splits
    window = Intensity('window', window=self.builder_config.window)
    splits['ood_ct_chaos'] = [
      record
      for patient in _patients(chaos / 'CT')
      for record in self._series(
        f'chaos_ct_{patient.name}',
        f'chaos_ct_{patient.name}',
        patient / 'DICOM_anon',
        patient / 'Ground',
        window,
        CT_LIVER,
      )
    ]
    for split, phase in (('in', 'InPhase'), ('out', 'OutPhase')):
      splits[f'ood_mri_{split}'] = [
        record
        for patient in _patients(chaos / 'MR')
        for record in self._series(
          f'chaos_mr_{patient.name}_{split}',
          f'chaos_mr_{patient.name}',
          patient / 'T1DUAL' / 'DICOM_anon' / phase,
          patient / 'T1DUAL' / 'Ground',
          MR,
          MR_LIVER,
        )
      ]
    return splits

  def _lits(self, root):
    config = self.builder_config
    labels = {_number(p): p for p in root.rglob('segmentation-*.nii*')}
    images = {_number(p): p for p in root.rglob('volume-*.nii*')}
    if not images:
      raise self.missing(root / 'volume-0.nii', 'every volume of LiTS')
    records = []
    for number, path in sorted(images.items()):
      if number not in labels:
        name = path.name.replace('volume', 'segmentation')
        raise self.missing(path.with_name(name), 'the label of a volume')
      records += slices.records(
        path,
        labels[number],
        name=f'lits_{number:03d}',
        group=f'lits_{number:03d}',
        intensity=Intensity('window', window=config.window),
        ids=((0, 0), (1, 1), (2, 2 if config.tumours else 1)),
        step=config.step,
      )
    return records

  def _series(self, name, group, images, labels, intensity, liver):
    """Lists the slices of a folder of DICOM files and one of PNGs."""
    self.require(images, 'the folder')
    self.require(labels, 'the folder')
    files = tuple(sorted(images.glob('[!.]*.dcm'), key=_numbers))
    masks = sorted(labels.glob('[!.]*.png'), key=_numbers)
    if len(files) != len(masks) or not files:
      raise UserError(
        f'{images}: there are {len(files)} DICOM files and {len(masks)} labels '
        f'in {labels}, expected as many; unpack CHAOS_Train_Sets.zip again'
      )
    return [
      base.Record(
        f'{name}_s{i:03d}',
        functools.partial(_dicom_slice, files, intensity, i),
        functools.partial(_liver, mask, liver),
        group,
      )
      for i, mask in enumerate(masks)
    ]


def _patients(folder):
  return sorted((p for p in folder.glob('*') if p.is_dir()), key=_numbers)


def _numbers(path):
  return [int(number) for number in re.findall(r'\d+', path.stem)], path.name


def _number(path):
  """Returns 12 of volume-12.nii."""
  return int(path.name.split('.')[0].split('-')[1])


# Slices are asked for in order: those of one series are kept.
@functools.lru_cache(maxsize=1)
def _series(files, intensity):
  # Each file by itself, as it is stored: so are the labels.
  images = [dicom.open_stack(file).read()[..., 0] for file in files]
  limits = intensities.limits(
    np.concatenate([image.ravel() for image in images]), intensity
  )
  return [intensities.to_8_bits(i, intensity, limits=limits) for i in images]


def _dicom_slice(files, intensity, index):
  return _series(files, intensity)[index]


def _liver(path, values):
  """Returns uint8 [H, W] of 0 and 1."""
  low, high = values
  pixels = parts.read_pixels(path)
  return ((pixels >= low) & (pixels <= high)).astype(np.uint8)
