"""The liver builder on miniatures of the archives."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.errors import UserError

nibabel = pytest.importorskip('nibabel')
pydicom = pytest.importorskip('pydicom')

SHAPE = (6, 5, 4)  # x, y, slices
ORGANS = np.array([0, 55, 56, 63, 70, 71, 126, 189, 252], np.uint8)
IS_LIVER = np.array([0, 0, 1, 1, 1, 0, 0, 0, 0], np.uint8)


def write_lits(root, number, orientation=(-1, -1, 1), seed=0):
  """Writes a volume; returns (HU, label), [slices, y, x], upright."""
  rng = np.random.default_rng([seed, number])
  image = rng.integers(-300, 400, SHAPE, np.int16)
  label = rng.integers(0, 3, SHAPE, np.uint8)
  folder = root / f'Training Batch {1 + (number > 27)}'
  folder.mkdir(parents=True, exist_ok=True)
  affine = np.diag([*orientation, 1]).astype(float)
  nibabel.save(
    nibabel.Nifti1Image(image, affine), folder / f'volume-{number}.nii'
  )
  # Headers of labels that say otherwise must not turn them.
  nibabel.save(
    nibabel.Nifti1Image(label, np.eye(4)), folder / f'segmentation-{number}.nii'
  )
  steps = np.array(orientation) * [-1, -1, 1]
  x, y, z = (slice(None, None, int(step)) for step in steps)
  return image[x, y, z].T, label[x, y, z].T


def write_dicom(path, pixels, position, intercept=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.SOPClassUID = pydicom.uid.CTImageStorage
  dataset.SOPInstanceUID = pydicom.uid.generate_uid()
  dataset.SeriesInstanceUID = '1.2.3'
  dataset.Rows, dataset.Columns = pixels.shape
  dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, 'MONOCHROME2'
  dataset.BitsAllocated = dataset.BitsStored = 16
  dataset.HighBit, dataset.PixelRepresentation = 15, 0
  dataset.RescaleSlope, dataset.RescaleIntercept = 1, intercept
  # Upside down, as some of CHAOS: slices and labels go by their names.
  dataset.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
  dataset.ImagePositionPatient = [0, 0, -float(position)]
  dataset.PixelData = pixels.astype('<u2').tobytes()
  dataset.save_as(str(path), enforce_file_format=True)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def write_chaos_ct(root, patient):
  """Returns (HU, label), [slices, y, x]."""
  rng = np.random.default_rng([1, patient])
  stored = rng.integers(700, 1500, (12, 7, 8))
  label = rng.integers(0, 2, stored.shape, np.uint8)
  folder = root / f'Train_Sets/CT/{patient}'
  for i, (image, mask) in enumerate(zip(stored, label, strict=True)):
    write_dicom(folder / f'DICOM_anon/i{i:04d},0000b.dcm', image, i, -1024)
    save(folder / f'Ground/liver_GT_{i:03d}.png', 255 * mask)
  return stored - 1024, label


def write_chaos_mr(root, patient):
  """Returns (in phase, out of phase, label), [slices, y, x]."""
  rng = np.random.default_rng([2, patient])
  phases = rng.integers(0, 1200, (2, 11, 7, 8))
  organ = rng.integers(0, len(ORGANS), phases.shape[1:])
  folder = root / f'Train_Sets/MR/{patient}/T1DUAL'
  for i in range(len(organ)):
    # Both phases are numbered through, the labels as the one in phase. The
    # numbers pass from one digit to two.
    for phase, (name, number) in enumerate(
      [('InPhase', 2 * i + 2), ('OutPhase', 2 * i + 1)]
    ):
      path = folder / f'DICOM_anon/{name}/IMG-0004-{number}.dcm'
      write_dicom(path, phases[phase, i], i)
    save(folder / f'Ground/IMG-0004-{2 * i + 2}.png', ORGANS[organ[i]])
  return *phases, IS_LIVER[organ]


def to_grey(values, low, high):
  return np.round(255 * np.clip((values - low) / (high - low), 0, 1))


def prepare(root, config='liver'):
  data_dir = str(root.parent / 'sets')
  spec = f'liver:{config}'
  prepared.prepare(spec, root, data_dir, allow_partial=True)
  return prepared.open_prepared(spec, 1, data_dir=data_dir)


def assert_slices(source, name, grey, label):
  ids = [i for i in source.groups if i.startswith(f'{name}_s')]
  assert ids == [f'{name}_s{i:03d}' for i in range(len(label))]
  for i, id_ in enumerate(ids):
    np.testing.assert_array_equal(source.image(id_)[..., 0], grey[i])
    np.testing.assert_array_equal(source.label(id_), label[i])


@pytest.fixture
def root(tmp_path):
  return tmp_path / 'manual'


def test_ct_and_mr(root):
  orientations = {2: (-1, -1, 1), 10: (1, 1, -1), 28: (1, -1, 1)}
  lits = {n: write_lits(root, n, o) for n, o in orientations.items()}
  ct = write_chaos_ct(root, 1)
  mr = {number: write_chaos_mr(root, number) for number in (2, 10)}
  source = prepare(root)
  assert {name: len(ids) for name, ids in source.splits.items()} == {
    'train': 3 * 4,
    'ood_ct_chaos': 12,
    'ood_mri_in': 2 * 11,
    'ood_mri_out': 2 * 11,
  }
  assert source.splits['train'][::4] == (
    'lits_002_s000',
    'lits_010_s000',
    'lits_028_s000',
  )
  assert source.groups['lits_028_s003'] == 'lits_028'
  for number, (image, label) in lits.items():
    grey = to_grey(image, -150, 250)
    assert_slices(source, f'lits_{number:03d}', grey, np.minimum(label, 1))
  assert_slices(source, 'chaos_ct_1', to_grey(ct[0], -150, 250), ct[1])
  for number, (in_phase, out_phase, label) in mr.items():
    for name, image in (('in', in_phase), ('out', out_phase)):
      grey = to_grey(image, *np.percentile(image, (0.5, 99.5)))
      assert_slices(source, f'chaos_mr_{number}_{name}', grey, label)
    group = source.groups[f'chaos_mr_{number}_in_s000']
    assert group == source.groups[f'chaos_mr_{number}_out_s000']


def test_tumours_and_steps(root):
  image, label = write_lits(root, 0)
  source = prepare(root, 'tumour')
  assert source.class_names == ('background', 'liver', 'tumour')
  assert_slices(source, 'lits_000', to_grey(image, -150, 250), label)
  assert prepare(root, 'every_4th').splits == {'train': ('lits_000_s000',)}


def test_counts(root):
  write_lits(root, 0)
  builder = prepared.find_builder('liver')
  with pytest.raises(UserError, match="1 patients in 'train', not 131"):
    builder.check(root, allow_partial=False)
  write_chaos_mr(root, 1)
  (root / 'Train_Sets/CT').mkdir()
  expected = "not 131; 1 patients in 'ood_mri_in', not 20; 1 .*_out', not 20;"
  with pytest.raises(UserError, match=expected):
    builder.check(root, allow_partial=False)
  assert builder.check(root, allow_partial=True) == {
    'train': 4,
    'ood_mri_in': 11,
    'ood_mri_out': 11,
  }


def test_missing_parts_are_named(root):
  builder = prepared.find_builder('liver')
  root.mkdir()
  with pytest.raises(UserError, match='volume-0.nii: .*codalab'):
    builder.check(root, allow_partial=True)
  write_lits(root, 3)
  (root / 'Training Batch 1/segmentation-3.nii').unlink()
  with pytest.raises(UserError, match='segmentation-3.nii: .*codalab'):
    builder.check(root, allow_partial=True)
  write_lits(root, 3)
  write_chaos_ct(root, 5)
  (root / 'Train_Sets/CT/5/Ground/liver_GT_004.png').unlink()
  with pytest.raises(UserError, match='CT/5/.* 12 DICOM files and 11 labels'):
    builder.check(root, allow_partial=True)


def test_damaged_volumes_are_named(root):
  write_lits(root, 3)
  path = root / 'Training Batch 1/volume-3.nii'
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(UserError, match='volume-3.nii: .*again'):
    prepare(root)
