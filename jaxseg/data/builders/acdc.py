"""ACDC: short-axis cine MR of the heart, dense labels or scribbles.

Layout (the archive of the challenge, Bernard et al., 2018; a folder 'database'
or 'ACDC/database' around it does no harm):

  training/patient001/Info.cfg
  training/patient001/patient001_frame01.nii.gz        end of diastole
  training/patient001/patient001_frame01_gt.nii.gz
  training/patient001/patient001_frame12{,_gt}.nii.gz  end of systole
  testing/patient101/...                               patients 101 to 150

100 patients with 1,902 slices to train, 50 with 1,076 to test. The labels of
the latter were published with the second release; where they are absent, what
is scored is drawn from 'train'. The scribbles (Valvano et al., 2021) are
unpacked anywhere beside it, as patient001_frame01_scribble.nii.gz or
patient001_frame_ED_scribble.nii.gz.

Slices are stored as the published 2-D copies of the set show them (y down, x
right; the headers do not tell how the heart lies), the brightest 1 % of each
volume being white.

Patients are kept whole. Splits other than the official are those of released
code: 'ssl4mis' of SSL4MIS, on which UA-MT, CPS, BCP, UniMatch, ... are
compared (its 3 and 7 labelled patients with --config.data.labelled_by=group);
'scribbles' of the scribbles' authors (split0). Mondal et al. (2019) drew
single slices, so that patients are on both sides: that is not copied.
"""

import dataclasses
from pathlib import Path

import tensorflow_datasets as tfds

from jaxseg.data.builders import base, parts, slices
from jaxseg.data.formats.intensity import Intensity
from jaxseg.errors import DataError

DENSE = ((0, 0), (1, 1), (2, 2), (3, 3))
SCRIBBLES = (*DENSE, (4, 255))
CLASS_NAMES = ('background', 'right ventricle', 'myocardium', 'left ventricle')
BRIGHTNESS = Intensity('percentile', (0, 99))


@dataclasses.dataclass
class Config(parts.Config):
  """A variant of ACDC.

  Attributes:
    val, test: numbers of the patients 1 to 100 scored, the others train; none:
      the official splits.
    scribbles: the training labels are scribbles.
  """

  val: tuple[int, ...] = ()
  test: tuple[int, ...] = ()
  scribbles: bool = False


def _patients(*numbers):
  return tuple(f'patient{number:03d}' for number in numbers)


class ACDC(parts.Builder, skip_registration=True):
  """See the module."""

  name = 'acdc'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    Config(
      name='official',
      description='Patients 1 to 100 train; 101 to 150 are scored.',
      class_names=CLASS_NAMES,
      channels=1,
      counts={'train': 1902},
      optional={'test': 1076},
      patients={'train': 100, 'test': 50},
    ),
    Config(
      name='ssl4mis',
      description='70, 10 and 20 of the patients 1 to 100, as in SSL4MIS.',
      class_names=CLASS_NAMES,
      channels=1,
      counts={'train': 1312},
      patients={'train': 70, 'val': 10, 'test': 20},
      val=(2, 19, 28, 30, 39, 45, 78, 82, 85, 87),
      test=(
        *(1, 7, 8, 11, 13, 22, 24, 33, 52, 59),
        *(64, 65, 66, 68, 75, 80, 81, 83, 84, 93),
      ),
      budgets={
        '3': _patients(38, 50, 99),
        '7': _patients(38, 50, 99, 21, 49, 58, 100),
      },
    ),
    Config(
      name='scribbles',
      description='70, 15 and 15 of the patients 1 to 100; scribbles train, '
      'dense labels are scored, as by Valvano et al.',
      class_names=CLASS_NAMES,
      channels=1,
      patients={'train': 70, 'val': 15, 'test': 15},
      val=(1, 17, 18, 22, 25, 27, 32, 44, 49, 57, 79, 81, 84, 95, 96),
      test=(5, 10, 24, 30, 36, 39, 41, 60, 64, 72, 73, 77, 78, 80, 82),
      scribbles=True,
    ),
  ]
  TITLE = 'Cine MR of the heart, both ventricles and the myocardium'
  HOMEPAGE = 'https://www.creatis.insa-lyon.fr/Challenge/acdc/'
  LICENCE = 'CC BY-NC-SA 4.0 (ACDC); scribbles: research, please cite'
  CITATION = """\
@article{bernard2018acdc,
  title={Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures
    Segmentation and Diagnosis: Is the Problem Solved?},
  author={Bernard, Olivier and others},
  journal={IEEE Transactions on Medical Imaging}, volume={37}, number={11},
  pages={2514--2525}, year={2018}
}
@article{valvano2021learning,
  title={Learning to Segment from Scribbles using Multi-scale Adversarial
    Attention Gates},
  author={Valvano, Gabriele and Leo, Andrea and Tsaftaris, Sotirios A.},
  journal={IEEE Transactions on Medical Imaging}, year={2021}
}
"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
unpack ACDC.zip (https://humanheart-project.creatis.insa-lyon.fr/database/;
CC BY-NC-SA 4.0) so that --manual_dir holds training/patient001/ to
training/patient100/ and testing/patient101/ to testing/patient150/; for the
config 'scribbles' also acdc_scribbles.zip
(https://vios-s.github.io/multiscale-adversarial-attention-gates/data).
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    config = self.builder_config
    training = parts.find(
      root, 'training', 'database/training', 'ACDC/database/training'
    )
    if training is None:
      raise self.missing(root / 'training', 'the folder')
    if not config.test:
      return {
        'train': self._records(_frames(training)),
        'test': self._records(_frames(training.with_name('testing'))),
      }
    scribbles = None
    if config.scribbles:
      scribbles = {p.name: p for p in root.rglob('patient*_scribble.nii*')}
    split = {f'patient{i:03d}': 'val' for i in config.val}
    split |= {f'patient{i:03d}': 'test' for i in config.test}
    frames = {'train': [], 'val': [], 'test': []}
    for frame in _frames(training):
      frames[split.get(frame.parent.name, 'train')].append(frame)
    return {
      name: self._records(part, scribbles if name == 'train' else None)
      for name, part in frames.items()
    }

  def _records(self, labels, scribbles=None):
    """Lists the slices of frames, by their label volumes."""
    records = []
    for label in labels:
      image = label.with_name(label.name.replace('_gt', ''))
      self.require(image, 'an image')
      ids = DENSE
      if scribbles is not None:
        label, ids = self._scribble(label, scribbles), SCRIBBLES
      records += slices.records(
        image,
        label,
        name=image.name.split('.')[0],
        group=image.parent.name,
        intensity=BRIGHTNESS,
        ids=ids,
        upright=False,
      )
    return records

  def _scribble(self, label, scribbles):
    """Returns the scribbles of a frame, which is named by number or phase."""
    patient, frame = label.name.split('.')[0].split('_')[:2]
    stems = [f'{patient}_{frame}']
    info = label.with_name('Info.cfg')
    if info.exists():
      stems += [
        f'{patient}_frame_{phase}'
        for phase, number in _phases(info).items()
        if f'frame{number:02d}' == frame
      ]
    for stem in stems:
      for suffix in ('.nii.gz', '.nii'):
        if f'{stem}_scribble{suffix}' in scribbles:
          return scribbles[f'{stem}_scribble{suffix}']
    raise self.missing(
      label.with_name(f'{stems[0]}_scribble.nii.gz'), 'the scribbles of a frame'
    )


def _frames(folder):
  """Lists the label volumes below a folder of patients."""
  return sorted(folder.glob('patient*/patient*_frame*_gt.nii*'))


def _phases(info):
  """Returns {'ED': number of the frame, 'ES': ...} of an Info.cfg."""
  phases = {}
  for line in info.read_text('utf-8', 'replace').splitlines():
    key, _, value = line.partition(':')
    if key.strip() in ('ED', 'ES'):
      try:
        phases[key.strip()] = int(value)
      except ValueError:
        raise DataError(
          f'{info}: {line.strip()!r} is no number of a frame, expected such as '
          "'ED: 1'; unpack the archive again",
          'damaged',
        ) from None
  return phases
