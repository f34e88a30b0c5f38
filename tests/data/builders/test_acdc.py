"""The ACDC builder on miniatures of the archive."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.errors import UserError

nibabel = pytest.importorskip('nibabel')

SHAPE = (5, 4, 3)  # x, y, slices
LPS = np.diag([-1.5, -1.5, 10, 1])


def write_volume(path, array, affine=LPS):
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(nibabel.Nifti1Image(array, affine), path)


def write_patient(folder, number, seed=0, testing=False, shape=SHAPE):
  """Writes two frames; returns {frame: (image, label)}, [x, y, slices]."""
  rng = np.random.default_rng([seed, number])
  patient = f'patient{number:03d}'
  folder = folder / ('testing' if testing else 'training') / patient
  volumes = {}
  for frame in ('frame01', 'frame12'):
    image = rng.integers(0, 900, shape, np.int16)
    label = rng.integers(0, 4, shape, np.uint8)
    write_volume(folder / f'{patient}_{frame}.nii.gz', image)
    # Headers of labels that say otherwise must not turn them.
    affine = np.diag([1.5, 1.5, 10, 1])
    write_volume(folder / f'{patient}_{frame}_gt.nii.gz', label, affine)
    volumes[frame] = image, label
  (folder / 'Info.cfg').write_text('ED: 1\nES: 12\nGroup: DCM\n')
  write_volume(folder / f'{patient}_4d.nii.gz', np.zeros((*shape, 2), np.int16))
  return volumes


def prepare(root, config='official'):
  data_dir = str(root.parent / 'sets')
  spec = f'acdc:{config}'
  prepared.prepare(spec, root, data_dir, allow_partial=True)
  return prepared.open_prepared(spec, 1, data_dir=data_dir)


@pytest.fixture
def root(tmp_path):
  return tmp_path / 'manual'


def test_official(root):
  train = write_patient(root / 'ACDC/database', 1)
  test = write_patient(root / 'ACDC/database', 101, testing=True)
  source = prepare(root)
  assert {name: len(ids) for name, ids in source.splits.items()} == {
    'train': 6,
    'test': 6,
  }
  assert source.splits['train'][:4] == (
    'patient001_frame01_s000',
    'patient001_frame01_s001',
    'patient001_frame01_s002',
    'patient001_frame12_s000',
  )
  assert set(source.groups.values()) == {'patient001', 'patient101'}
  for patient, volumes in (('patient001', train), ('patient101', test)):
    for frame, (image, label) in volumes.items():
      low, high = image.min(), np.percentile(image, 99)
      grey = np.clip((image - low) / (high - low), 0, 1)
      for i in range(SHAPE[2]):
        id_ = f'{patient}_{frame}_s{i:03d}'
        np.testing.assert_array_equal(source.label(id_), label[..., i].T)
        expected = np.round(255 * grey[..., i].T)
        np.testing.assert_array_equal(source.image(id_)[..., 0], expected)


def test_without_the_labels_of_testing(root):
  write_patient(root, 1)
  write_patient(root, 101, testing=True)
  for path in (root / 'testing/patient101').glob('*_gt.nii.gz'):
    path.unlink()
  assert prepared.find_builder('acdc').check(root, True) == {'train': 6}


def test_patients_of_ssl4mis(root):
  for number in (1, 2, 38, 93, 100):
    write_patient(root, number)
  splits = prepared.find_builder('acdc:ssl4mis').scan(root)
  patients = {
    name: {int(r.group.removeprefix('patient')) for r in records}
    for name, records in splits.items()
  }
  assert patients == {'train': {38, 100}, 'val': {2}, 'test': {1, 93}}


@pytest.mark.parametrize('config', ['ssl4mis', 'scribbles'])
def test_lists_are_of_different_patients(config):
  config = prepared.find_builder(f'acdc:{config}').builder_config
  scored = config.val + config.test
  assert len(set(scored)) == 100 - config.patients['train']
  assert len(config.val) == config.patients['val']
  assert 1 <= min(scored) and max(scored) <= 100


@pytest.mark.parametrize(
  'names', [('frame01', 'frame12'), ('frame_ED', 'frame_ES')]
)
def test_scribbles_train_and_dense_labels_are_scored(root, names):
  dense = {number: write_patient(root, number) for number in (1, 2, 5)}
  rng = np.random.default_rng(1)
  scribbles = {}
  for frame, name in zip(('frame01', 'frame12'), names, strict=True):
    scribbles[frame] = rng.integers(0, 5, SHAPE, np.uint8)
    path = root / f'ACDC_scribbles/patient002/patient002_{name}_scribble.nii.gz'
    write_volume(path, scribbles[frame])
  source = prepare(root, 'scribbles')
  assert {name: len(ids) for name, ids in source.splits.items()} == {
    'train': 6,
    'val': 6,
    'test': 6,
  }
  for frame, scribble in scribbles.items():
    expected = np.where(scribble == 4, 255, scribble)
    for i in range(SHAPE[2]):
      label = source.label(f'patient002_{frame}_s{i:03d}')
      np.testing.assert_array_equal(label, expected[..., i].T)
      for number, patient in ((1, 'patient001'), (5, 'patient005')):
        label = source.label(f'{patient}_{frame}_s{i:03d}')
        full = dense[number][frame][1]
        np.testing.assert_array_equal(label, full[..., i].T)


def test_missing_scribbles_are_named(root):
  write_patient(root, 2)
  builder = prepared.find_builder('acdc:scribbles')
  expected = 'patient002_frame01_scribble.nii.gz: .*acdc_scribbles.zip'
  with pytest.raises(UserError, match=expected):
    builder.check(root, allow_partial=True)


def test_counts(root, monkeypatch):
  write_patient(root, 1)
  builder = prepared.find_builder('acdc')
  with pytest.raises(UserError, match="6 in 'train' instead of 1902"):
    builder.check(root, allow_partial=False)
  monkeypatch.setitem(builder.builder_config.counts, 'train', 6)
  with pytest.raises(UserError, match="1 patients in 'train', not 100"):
    builder.check(root, allow_partial=False)
  monkeypatch.setitem(builder.builder_config.patients, 'train', 1)
  assert builder.check(root, allow_partial=False) == {'train': 6}
  write_patient(root, 101, testing=True)
  expected = "6 examples in 'test', not 1076; 1 patients in 'test', not 50"
  with pytest.raises(UserError, match=expected):
    builder.check(root, allow_partial=False)


def test_missing_parts_are_named(root):
  write_patient(root, 1)
  builder = prepared.find_builder('acdc')
  with pytest.raises(UserError, match='nowhere/training: .*creatis'):
    builder.scan(root / 'nowhere')
  (root / 'training/patient001/patient001_frame12.nii.gz').unlink()
  with pytest.raises(UserError, match='patient001_frame12.nii.gz: an image'):
    builder.check(root, allow_partial=True)


def test_labels_of_another_shape_or_with_other_values_are_named(root):
  write_patient(root, 1)
  path = root / 'training/patient001/patient001_frame12_gt.nii.gz'
  write_volume(path, np.full(SHAPE, 4, np.uint8))
  with pytest.raises(UserError, match=r'frame12_gt.nii.gz: .*\[4\], expected'):
    prepare(root)
  write_volume(path, np.zeros((4, 5, 3), np.uint8))
  with pytest.raises(UserError, match='frame12_gt.nii.gz: .*4x5x3 .*5x4x3'):
    prepare(root)


def test_real_slices(root, shared):
  """ACDC with the published scribbles, stacked into volumes again."""
  real = shared / 'data' / 'cardiac_mr'
  expected = {}
  for number, frames in ((2, ('01', '12')), (1, ('01', '12'))):
    patient = f'patient{number:03d}'
    for frame in frames:
      names = sorted(
        p.name
        for p in (real / 'images').glob(f'acdc_{number:03d}_f{frame}_*.png')
      )
      stacks = {
        kind: np.stack([np.asarray(Image.open(real / kind / n)) for n in names])
        for kind in ('images', 'labels', 'scribbles')
      }
      folder = root / 'training' / patient
      stem = f'{patient}_frame{frame}'
      image = stacks['images'].T.astype(np.int16)
      write_volume(folder / f'{stem}.nii.gz', image)
      write_volume(folder / f'{stem}_gt.nii.gz', stacks['labels'].T)
      scribble = np.where(stacks['scribbles'] == 255, 4, stacks['scribbles'])
      write_volume(folder / f'{stem}_scribble.nii.gz', scribble.T)
      for i in range(len(names)):
        expected[f'{stem}_s{i:03d}'] = {k: s[i] for k, s in stacks.items()}
  source = prepare(root, 'scribbles')
  assert set(source.splits) == {'train', 'val'}
  for split, kind in (('train', 'scribbles'), ('val', 'labels')):
    for id_ in source.splits[split]:
      label = source.label(id_)
      np.testing.assert_array_equal(label, expected[id_][kind])
      image = expected[id_]['images'].astype(int)
      # Stretched again, since the 1 % is now taken of a crop.
      got = source.image(id_)[..., 0]
      assert np.corrcoef(image.ravel(), got.ravel())[0, 1] > 0.97
      assert (
        np.diff(got.ravel()[np.argsort(image, None)].astype(int)) >= 0
      ).all()
