"""NIfTI and DICOM files, written here, give the slices NumPy expects."""

import builtins
import concurrent.futures
import gzip
import itertools
import os
import pickle

import numpy as np
import pytest

from jaxseg.data.formats import stacks, volumes
from jaxseg.errors import DataError, UserError

nibabel = pytest.importorskip('nibabel')
pydicom = pytest.importorskip('pydicom')

SHAPE = (4, 5, 6)  # right, front, head
RAS = np.arange(120, dtype=np.int16).reshape(SHAPE)
RAS_AFFINE = np.diag([1.0, 2, 3, 1])
# As a radiologist sees them: what is on top, what is on the left.
SHOWN = {
  0: lambda i: RAS[i, ::-1, ::-1].T,  # head on top, front on the left
  1: lambda i: RAS[::-1, i, ::-1].T,  # head on top, right on the left
  2: lambda i: RAS[::-1, ::-1, i].T,  # front on top, right on the left
}


@pytest.fixture
def write_nifti(tmp_path):
  def write(array=RAS, affine=RAS_AFFINE, name='v.nii.gz', codes=1, **header):
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, codes)
    image.set_qform(None, 0)
    image.header.set_slope_inter(header.pop('slope', 1), header.pop('inter', 0))
    for key, value in header.items():
      image.header[key] = value
    path = tmp_path / name
    nibabel.save(image, path)
    return path

  return write


def dicom_slice(pixels, number=1, position=None, **attributes):
  """An axial DICOM image; `position` is its height in millimetres."""
  dataset = pydicom.Dataset()
  dataset.file_meta = pydicom.dataset.FileMetaDataset()
  dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
  dataset.file_meta.MediaStorageSOPInstanceUID = f'1.2.{number}'
  dataset.SOPClassUID = pydicom.uid.CTImageStorage
  dataset.SOPInstanceUID = f'1.2.{number}'
  dataset.SeriesInstanceUID = '1.2.3'
  dataset.InstanceNumber = number
  dataset.Rows, dataset.Columns = pixels.shape[-2:]
  if pixels.ndim == 3:
    dataset.NumberOfFrames = len(pixels)
  dataset.SamplesPerPixel = 1
  dataset.PhotometricInterpretation = 'MONOCHROME2'
  dataset.BitsAllocated = dataset.BitsStored = 16
  dataset.HighBit = 15
  dataset.PixelRepresentation = int(pixels.dtype.kind == 'i')
  dataset.PixelSpacing = [2, 1]
  dataset.PixelData = pixels.tobytes()
  if position is not None:
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, position]
  for name, value in attributes.items():
    setattr(dataset, name, value)
  return dataset


@pytest.fixture
def write_series(tmp_path):
  """Writes datasets as files of a folder."""

  def write(datasets, names=None, folder='series'):
    root = tmp_path / folder
    root.mkdir(exist_ok=True)
    for i, dataset in enumerate(datasets):
      name = names[i] if names else f'{i:03d}.dcm'
      dataset.save_as(root / name, enforce_file_format=True)
    return root

  return write


def axial(k, **attributes):
  """Slice k of RAS, stored as scanners do: rows to the left, then back."""
  attributes = {'number': k + 1, 'position': 3.0 * k} | attributes
  return dicom_slice(np.ascontiguousarray(SHOWN[2](k)), **attributes)


def all_slices(volume):
  return [volume.slices(i) for i in range(volume.shape[2])]


def refused(path, kind, match, axis=2):
  """Opening or reading `path` raises one sentence."""
  with pytest.raises(DataError, match=match) as found:
    volumes.values(volumes.open_volume(path, axis))
  assert found.value.kind == kind
  message = str(found.value)
  assert message.startswith(str(path)) and '\n' not in message
  assert ', expected ' in message and '; ' in message


@pytest.mark.parametrize('axis', [0, 1, 2])
@pytest.mark.parametrize('name', ['v.nii', 'v.nii.gz', 'V.NII.GZ'])
def test_nifti_slices_are_upright(write_nifti, axis, name):
  path = write_nifti(name=name.lower())
  path = path.rename(path.with_name(name))
  assert volumes.is_volume(path)
  volume = volumes.open_volume(path, axis)
  assert volume.shape[2] == SHAPE[axis]
  for i in range(SHAPE[axis]):
    slice_ = volume.slices(i)
    np.testing.assert_array_equal(slice_, SHOWN[axis](i))
    assert slice_.dtype == np.int16 and slice_.shape == volume.shape[:2]
  spacing = {0: (3, 2, 1), 1: (3, 1, 2), 2: (2, 1, 3)}
  assert volume.spacing == spacing[axis]
  assert volumes.values(volume).shape == (SHAPE[axis], *volume.shape[:2])


@pytest.mark.parametrize('codes', ['LPS', 'PIR', 'ASL', 'SAR', 'LAS'])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_every_orientation_gives_the_same_slices(write_nifti, codes, axis):
  # The same head, stored along other axes.
  image = nibabel.Nifti1Image(RAS, RAS_AFFINE)
  ornt = nibabel.orientations.axcodes2ornt(codes)
  other = image.as_reoriented(
    nibabel.orientations.ornt_transform(
      nibabel.orientations.axcodes2ornt('RAS'), ornt
    )
  )
  array = np.asarray(other.dataobj)
  assert array.shape != SHAPE or (array != RAS).any()
  volume = volumes.open_volume(write_nifti(array, other.affine), axis)
  for i in range(SHAPE[axis]):
    np.testing.assert_array_equal(volume.slices(i), SHOWN[axis](i))


def test_nifti_scaling_is_applied(write_nifti):
  volume = volumes.open_volume(write_nifti(slope=0.5, inter=-10))
  np.testing.assert_allclose(volume.slices(1), SHOWN[2](1) * 0.5 - 10)
  assert volume.slices(1).dtype == np.float32


def test_trailing_axes_of_one_are_no_frames(write_nifti):
  volume = volumes.open_volume(write_nifti(RAS[..., None]))
  np.testing.assert_array_equal(volume.slices(5), SHOWN[2](5))
  flat = volumes.open_volume(write_nifti(RAS[:, :, 0], name='flat.nii'))
  assert flat.shape == (5, 4, 1)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_one_slice_is_shown_whatever_the_axis(write_nifti, axis):
  volume = volumes.open_volume(write_nifti(RAS[:, 2:3]), axis)
  assert volume.shape == (6, 4, 1)
  np.testing.assert_array_equal(volume.slices(0), SHOWN[1](2))


def test_anisotropy_is_noted(write_nifti):
  volume = volumes.open_volume(write_nifti(affine=np.diag([1.0, 1, 5, 1])), 2)
  assert any('5 mm apart' in note for note in volume.notes)
  volume = volumes.open_volume(write_nifti(affine=np.diag([1.0, 1, 5, 1])), 0)
  assert any('5 x 1 mm' in note and 'axis=2' in note for note in volume.notes)
  even = write_nifti(affine=np.diag([1.0, 1.05, 2, 1]))
  assert volumes.open_volume(even).notes == ()


def test_missing_orientation_and_spacing_are_noted(write_nifti):
  volume = volumes.open_volume(write_nifti(codes=0))
  assert any('does not say how the volume lies' in n for n in volume.notes)
  path = write_nifti(name='flat.nii')
  data = bytearray(path.read_bytes())
  data[280:328] = bytes(48)  # the matrix
  path.write_bytes(data)
  volume = volumes.open_volume(path)
  assert any('does not say' in note for note in volume.notes)
  assert volume.shape == (5, 4, 6)
  assert volume.spacing == (2, 1, 3)
  data[80:92] = np.full(3, np.nan, '<f4').tobytes()  # the voxels' size
  path.write_bytes(data)
  volume = volumes.open_volume(path)
  assert any('no size of the voxels' in note for note in volume.notes)
  assert volume.spacing is None


def test_labels_are_exact(write_nifti):
  label = np.array([[[0, 1, 35, 255]]], np.float32)
  ids = volumes.whole_numbers(label[0], 'x')
  assert ids.dtype == np.int64 and ids.tolist() == [[0, 1, 35, 255]]
  np.testing.assert_array_equal(
    volumes.whole_numbers(np.array([[2035, -1]], np.int32), 'x'), [[2035, -1]]
  )
  # A label saved with a scale, as some programs do, is whole all the same.
  path = write_nifti(RAS % 5, slope=1.0000001, inter=0)
  slice_ = volumes.open_volume(path).slices(3)
  np.testing.assert_array_equal(
    volumes.whole_numbers(slice_, path), SHOWN[2](3) % 5
  )
  with pytest.raises(DataError, match='x: 2 values .* 0.5.*nearest') as found:
    volumes.whole_numbers(np.array([[0, 0.5, 1.25, 1]]), 'x')
  assert found.value.kind == 'float_label'


def test_bad_nifti_files(write_nifti, tmp_path):
  path = write_nifti()
  data = path.read_bytes()
  nan = RAS.astype(np.float32)
  nan[0, 0, :3] = np.nan, np.inf, -np.inf
  refused(write_nifti(nan, name='nan.nii.gz'), 'nan', '3 of 120 voxels')
  refused(
    write_nifti(np.stack([RAS] * 7, -1), name='four.nii'), 'four_d', '7 frames'
  )
  colour = np.zeros(SHAPE, [('R', 'u1'), ('G', 'u1'), ('B', 'u1')])
  refused(write_nifti(colour, name='rgb.nii'), 'colours', 'colours')
  refused(tmp_path / 'none.nii', 'missing', 'No such file')

  def bad(name, content, kind, match):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, kind, match)

  rng = np.random.default_rng(0)
  noise = rng.integers(0, 99, (20, 20, 20), np.int16)
  whole = write_nifti(noise, name='whole.nii').read_bytes()
  packed = write_nifti(noise, name='whole.nii.gz').read_bytes()
  bad('text.nii.gz', gzip.compress(b'hello' * 99), 'not_a_volume', 'gzip data')
  bad('cut.nii', whole[:9000], 'truncated', 'cut short')
  bad('cut.nii.gz', packed[:5000], 'truncated', 'cut short')
  bad('start.nii.gz', packed[:20], 'truncated', 'cut short')
  flipped = packed[:6000] + bytes([packed[6000] ^ 255]) + packed[6001:]
  bad('flipped.nii.gz', flipped, 'truncated', 'damaged')
  bad('head.nii', whole[:200], 'not_a_volume', 'no readable NIfTI')
  bad('empty.nii.gz', b'', 'empty', '0 bytes')
  bad('page.nii', b'<html>404</html>' * 99, 'not_a_volume', 'web page')
  bad('packed.nii', data, 'not_a_volume', 'not named .nii.gz')
  bad('plain.nii.gz', whole, 'not_a_volume', 'no readable NIfTI')
  bad('magic.nii', b'\x01\x02\x00\xff' * 200, 'not_a_volume', 'something else')
  pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n'
  bad('lfs.nii.gz', pointer, 'lfs_pointer', 'git lfs pull')
  (tmp_path / 'folder.nii').mkdir()
  refused(tmp_path / 'folder.nii', 'not_a_volume', 'no file')


def test_a_huge_shape_is_refused_before_it_is_read(write_nifti):
  path = write_nifti(name='v.nii')
  data = bytearray(path.read_bytes())
  data[42:48] = np.array([30000] * 3, '<i2').tobytes()
  path.write_bytes(data)
  refused(path, 'too_large', '30000x30000x30000')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read everything')
def test_no_permission(write_nifti):
  path = write_nifti()
  path.chmod(0)
  refused(path, 'unreadable', 'permissions')


def test_wrong_axis(write_nifti):
  with pytest.raises(UserError, match=r'config\.data\.volume\.axis is 3'):
    volumes.open_volume(write_nifti(), 3)


@pytest.mark.parametrize('package', ['nibabel', 'pydicom'])
def test_missing_packages(write_nifti, write_series, monkeypatch, package):
  path = write_nifti() if package == 'nibabel' else write_series([axial(0)])
  real = builtins.__import__

  def no_package(name):
    if name == package:
      raise ImportError(name)
    return real(name)

  monkeypatch.setattr(stacks.importlib, 'import_module', no_package)
  with pytest.raises(UserError, match='pip install nibabel pydicom') as found:
    volumes.open_volume(path)
  assert not isinstance(found.value, DataError)


def test_a_volume_is_read_once_by_many_threads(write_nifti, monkeypatch):
  volume = volumes.open_volume(write_nifti())
  reads = []
  original = stacks._read
  monkeypatch.setattr(
    stacks, '_read', lambda stack: reads.append(1) or original(stack)
  )
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    slices = list(pool.map(volume.slices, list(range(6)) * 8))
  assert len(reads) == 1
  for i, slice_ in enumerate(slices):
    np.testing.assert_array_equal(slice_, SHOWN[2](i % 6))
  slices[0][:] = 0  # a copy
  np.testing.assert_array_equal(volume.slices(0), SHOWN[2](0))


def test_the_cache_is_bounded_and_follows_the_file(write_nifti, monkeypatch):
  monkeypatch.setattr(stacks, 'CACHE_BYTES', 2 * RAS.nbytes)
  opened = [
    volumes.open_volume(write_nifti(RAS + i, name=f'{i}.nii')) for i in range(5)
  ]
  for i, volume in enumerate(opened):
    np.testing.assert_array_equal(volume.slices(0), SHOWN[2](0) + i)
  paths = [key[0] for key in stacks._cache]
  assert [opened[i].path in paths for i in range(5)] == [0, 0, 0, 1, 1]
  path = write_nifti(RAS * 2, name='4.nii')
  os.utime(path, (1, 1))
  np.testing.assert_array_equal(
    volumes.open_volume(path).slices(0), SHOWN[2](0) * 2
  )


def test_volumes_can_be_sent_to_workers(write_nifti):
  volume = pickle.loads(pickle.dumps(volumes.open_volume(write_nifti())))
  np.testing.assert_array_equal(volume.slices(2), SHOWN[2](2))
  assert volumes.encode_label(volume, np.zeros((6, 5, 4), np.uint8))


def test_dicom_series_equals_the_nifti_volume(write_series, write_nifti):
  order = [3, 0, 5, 2, 1, 4]  # files in another order than the slices
  root = write_series([axial(k) for k in order])
  assert volumes.is_volume(root)
  for axis in range(3):
    volume = volumes.open_volume(root, axis)
    same = volumes.open_volume(write_nifti(), axis)
    assert volume.shape == same.shape
    assert volume.spacing == pytest.approx(same.spacing)
    for found, expected in zip(
      all_slices(volume), all_slices(same), strict=True
    ):
      np.testing.assert_array_equal(found, expected)


def test_dicom_sagittal_series(write_series):
  # Rows run to the back, columns to the feet, slices to the right.
  root = write_series(
    [
      dicom_slice(
        np.ascontiguousarray(SHOWN[0](i)),
        i + 1,
        ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
        ImagePositionPatient=[-1.0 * i, 0, 0],
        PixelSpacing=[3, 2],
      )
      for i in range(4)
    ]
  )
  for axis in range(3):
    volume = volumes.open_volume(root, axis)
    for i, slice_ in enumerate(all_slices(volume)):
      np.testing.assert_array_equal(slice_, SHOWN[axis](i))


def test_dicom_names_without_suffix_and_other_files(write_series):
  root = write_series(
    [axial(k) for k in range(6)], [f'IM{k}' for k in range(6)]
  )
  (root / 'report.txt').write_text('no image')
  (root / '._IM0').write_bytes(b'\0\5\x16\7')
  volume = volumes.open_volume(root)
  assert volume.shape == (5, 4, 6)
  notes = [note for note in volume.notes if 'left out' in note]
  assert len(notes) == 1 and 'report.txt' in notes[0]
  assert '._IM0' not in notes[0]
  assert volumes.is_volume(root / 'IM0')
  np.testing.assert_array_equal(
    volumes.open_volume(root / 'IM3').slices(0), SHOWN[2](3)
  )


def test_dicom_rescale_and_monochrome1(write_series):
  root = write_series(
    [axial(k, RescaleSlope=1, RescaleIntercept=-1024) for k in range(3)]
  )
  slice_ = volumes.open_volume(root).slices(1)
  assert slice_.dtype == np.int32
  np.testing.assert_array_equal(slice_, SHOWN[2](1) - 1024)

  pixels = np.array([[0, 1], [100, 4095]], np.uint16)
  bright = dicom_slice(
    pixels, PhotometricInterpretation='MONOCHROME1', BitsStored=12, HighBit=11
  )
  volume = volumes.open_volume(write_series([bright], folder='bright'))
  np.testing.assert_array_equal(volume.slices(0), 4095 - pixels.astype(int))
  assert any('MONOCHROME1' in note for note in volume.notes)

  half = dicom_slice(pixels, RescaleSlope=0.5, RescaleIntercept=0)
  slice_ = volumes.open_volume(write_series([half], folder='half')).slices(0)
  np.testing.assert_allclose(slice_, pixels * 0.5)


def test_dicom_without_positions(write_series):
  root = write_series([axial(k, position=None) for k in (2, 0, 1)])
  volume = volumes.open_volume(root)
  assert any('order of InstanceNumber' in note for note in volume.notes)
  for k, slice_ in enumerate(all_slices(volume)):
    np.testing.assert_array_equal(slice_, SHOWN[2](k))
  root = write_series([axial(k, position=None) for k in (0, 2)], folder='gap')
  assert any('1 InstanceNumbers' in n for n in volumes.open_volume(root).notes)


def test_dicom_notes(write_series):
  datasets = [axial(k) for k in (0, 1, 2, 5)]
  volume = volumes.open_volume(write_series(datasets))
  assert any('about 2 are missing' in note for note in volume.notes)
  datasets = [axial(k) for k in range(3)]
  for dataset in datasets:
    del dataset.PixelSpacing
  volume = volumes.open_volume(write_series(datasets, folder='bare'))
  assert volume.spacing is None
  assert any('no size of the voxels' in note for note in volume.notes)
  np.testing.assert_array_equal(volume.slices(1), SHOWN[2](1))


def test_two_series_in_one_folder(write_series):
  scout = axial(0, SeriesInstanceUID='9.8.7', SeriesDescription='scout')
  root = write_series([axial(0), axial(1), axial(2), scout])
  refused(
    root, 'several_series', r'2 DICOM series.*3 files of 1\.2\.3.*1 files of '
    r'9\.8\.7 \(scout\).*folder of its own',
  )  # fmt: skip


def test_bad_dicom_folders(write_series, tmp_path):
  def bad(folder, datasets, kind, match):
    refused(write_series(datasets, folder=folder), kind, match)

  twice = [axial(0), axial(1), axial(1, number=3)]
  bad('time', twice, 'several_volumes', '1 images lie where another')
  odd = dicom_slice(np.zeros((3, 3), np.int16), 2, 3.0)
  bad('sizes', [axial(0), odd], 'size_mismatch', '3x3, 4x5')
  turned = axial(1, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
  bad('turned', [axial(0), turned], 'several_directions', 'directions')
  rgb = axial(0, SamplesPerPixel=3, PhotometricInterpretation='RGB')
  root = write_series([rgb], folder='rgb')
  refused_file(root, root / '000.dcm', 'colours', 'RGB')
  (tmp_path / 'nothing').mkdir()
  (tmp_path / 'nothing/readme.txt').write_text('hello')
  assert not volumes.is_volume(tmp_path / 'nothing')
  assert not volumes.is_volume(tmp_path / 'absent')
  refused(tmp_path / 'nothing', 'not_a_volume', 'readme.txt')
  refused(tmp_path / 'absent', 'missing', 'No such file')


def refused_file(folder, file, kind, match):
  """As `refused`, where one file of a folder is named."""
  with pytest.raises(DataError, match=match) as found:
    volumes.values(volumes.open_volume(folder))
  assert found.value.kind == kind
  assert str(found.value).startswith(f'{file}: ')


def test_damaged_dicom_files(write_series):
  root = write_series([axial(0), axial(1)])
  file = root / '001.dcm'
  data = file.read_bytes()
  file.write_bytes(data[:-20])
  refused_file(root, file, 'truncated', 'cut short')
  # Values that are parsed only when they are asked for.
  file.write_bytes(data.replace(b'1.2.840.10008.1.2.1', b'1.2.840.10008.1.1.1'))
  refused_file(root, file, 'truncated', 'not a transfer syntax')
  for name, value in (('Rows', 0), ('NumberOfFrames', 10**8)):
    axial(1, **{name: value}).save_as(file, enforce_file_format=True)
    with pytest.raises(DataError):
      volumes.values(volumes.open_volume(root))
  file.write_bytes(data[:150])
  refused_file(root, file, 'truncated', 'cut short')
  file.write_bytes(b'')
  refused_file(root, file, 'empty', '0 bytes')


@pytest.mark.parametrize(
  ('syntax', 'match'),
  [
    ('JPEGLSLossless', 'pip install pylibjpeg'),
    ('MPEG2MPML', 'export it uncompressed'),
  ],
)
def test_compression_without_decoder(write_series, monkeypatch, syntax, match):
  class NoDecoder:
    is_available = False

  uid = getattr(pydicom.uid, syntax)
  if syntax == 'JPEGLSLossless':
    monkeypatch.setattr(pydicom.pixels, 'get_decoder', lambda uid: NoDecoder)
  dataset = axial(0)
  dataset.PixelData = pydicom.encaps.encapsulate([b'\0\1'])
  dataset['PixelData'].VR = 'OB'
  dataset.file_meta.TransferSyntaxUID = uid
  root = write_series([dataset])
  refused_file(root, root / '000.dcm', 'compressed', match)


def test_rle_needs_no_plugin(write_series):
  dataset = axial(2)
  dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
  volume = volumes.open_volume(write_series([dataset]))
  np.testing.assert_array_equal(volume.slices(0), SHOWN[2](2))


def test_multi_frame_file(write_series):
  frames = np.stack([SHOWN[2](k) for k in (1, 0, 2)])
  plain = dicom_slice(frames)
  root = write_series([plain], folder='plain')
  volume = volumes.open_volume(root / '000.dcm')
  assert any('stored order' in note for note in volume.notes)
  np.testing.assert_array_equal(volumes.values(volume), frames)

  enhanced = dicom_slice(frames)
  del enhanced.PixelSpacing
  shared, per_frame = pydicom.Dataset(), []
  shared.PlaneOrientationSequence = [pydicom.Dataset()]
  shared.PlaneOrientationSequence[0].ImageOrientationPatient = [
    1,
    0,
    0,
    0,
    1,
    0,
  ]
  shared.PixelMeasuresSequence = [pydicom.Dataset()]
  shared.PixelMeasuresSequence[0].PixelSpacing = [2, 1]
  for k in (1, 0, 2):
    frame = pydicom.Dataset()
    frame.PlanePositionSequence = [pydicom.Dataset()]
    frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * k]
    frame.PixelValueTransformationSequence = [pydicom.Dataset()]
    frame.PixelValueTransformationSequence[0].RescaleSlope = k + 1
    frame.PixelValueTransformationSequence[0].RescaleIntercept = 7
    per_frame.append(frame)
  enhanced.SharedFunctionalGroupsSequence = [shared]
  enhanced.PerFrameFunctionalGroupsSequence = per_frame
  volume = volumes.open_volume(write_series([enhanced], folder='enhanced'))
  assert volume.spacing == (2, 1, 3) and volume.shape == (5, 4, 3)
  for k, slice_ in enumerate(all_slices(volume)):
    np.testing.assert_array_equal(slice_, SHOWN[2](k) * (k + 1) + 7)


def test_old_files_without_magic_number(tmp_path):
  dataset = axial(1)
  path = tmp_path / 'old.dcm'
  with path.open('wb') as file:
    writer = pydicom.filebase.DicomFileLike(file)
    writer.is_little_endian, writer.is_implicit_VR = True, True
    pydicom.filewriter.write_dataset(writer, dataset)
  volume = volumes.open_volume(path)
  np.testing.assert_array_equal(volume.slices(0), SHOWN[2](1))


def test_gzip_trailing_bytes_do_no_harm(write_nifti):
  path = write_nifti()
  path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b'x'))
  np.testing.assert_array_equal(
    volumes.open_volume(path).slices(0), SHOWN[2](0)
  )


def label_of(volume, tmp_path):
  """Labels each voxel by its value (at most 255) and reads the file back."""
  label = np.rint(volumes.values(volume)).astype(np.uint8)
  path = tmp_path / 'label.nii.gz'
  path.write_bytes(volumes.encode_label(volume, label))
  return nibabel.load(path)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_labels_lie_where_the_voxels_are(write_nifti, tmp_path, axis):
  rng = np.random.default_rng(0)
  for order in itertools.permutations(range(3)):
    for signs in itertools.product((-1, 1), repeat=3):
      affine = np.eye(4)
      affine[:3, :3] = np.diag([1.5, 2, 3])[:, order] * signs
      affine[:3, :3] += rng.uniform(-0.3, 0.3, (3, 3))  # oblique
      affine[:3, 3] = rng.uniform(-100, 100, 3)
      path = write_nifti(RAS, affine, 'v.nii')
      label = label_of(volumes.open_volume(path, axis), tmp_path)
      np.testing.assert_array_equal(np.asarray(label.dataobj), RAS)
      np.testing.assert_array_equal(label.affine, nibabel.load(path).affine)
      assert label.get_data_dtype() == np.uint8


def test_labels_keep_the_geometry_and_no_more(write_nifti, tmp_path):
  path = write_nifti(slope=2, descrip=b'Jane Doe', cal_max=900, xyzt_units=2)
  image = nibabel.load(path)
  image.set_qform(np.diag([-1.0, 2, 3, 1]), 3)  # two places that differ
  nibabel.save(image, path)
  label = label_of(volumes.open_volume(path, 1), tmp_path)
  np.testing.assert_array_equal(np.asarray(label.dataobj), RAS * 2)
  for name in ('sform', 'qform'):
    for found, expected in zip(
      getattr(label, f'get_{name}')(coded=True),
      getattr(image, f'get_{name}')(coded=True),
      strict=True,
    ):
      np.testing.assert_array_equal(found, expected)
  assert label.header.get_xyzt_units()[0] == 'mm'
  assert label.header['descrip'] == b'' and label.header['cal_max'] == 0


@pytest.mark.parametrize('shape', [(4, 5), (4, 5, 6, 1), (4, 5, 1), (1, 5, 6)])
def test_labels_of_other_shapes(write_nifti, tmp_path, shape):
  array = RAS.ravel()[: np.prod(shape)].reshape(shape)
  volume = volumes.open_volume(write_nifti(array), 1)
  label = label_of(volume, tmp_path)
  assert label.shape == shape
  np.testing.assert_array_equal(np.asarray(label.dataobj), array)


def test_labels_of_headers_that_say_little(write_nifti, tmp_path):
  path = write_nifti(name='odd.nii')
  data = bytearray(path.read_bytes())
  data[280:328] = bytes(48)  # the matrix
  data[80:92] = np.full(3, np.nan, '<f4').tobytes()  # the voxels' size
  path.write_bytes(data)
  label = label_of(volumes.open_volume(path), tmp_path)
  np.testing.assert_array_equal(np.asarray(label.dataobj), RAS)
  assert label.header.binaryblock[280:328] == bytes(48)


def test_nifti_2_stays_so(tmp_path):
  path = tmp_path / 'v.nii'
  affine = np.diag([-1.0, 1 / 3, 3, 1])  # a third: not exact in 32 bits
  nibabel.save(nibabel.Nifti2Image(RAS, affine), path)
  label = label_of(volumes.open_volume(path), tmp_path)
  np.testing.assert_array_equal(label.affine, affine)
  np.testing.assert_array_equal(np.asarray(label.dataobj), RAS)


def oblique_series(write_series, lean=0.0):
  """Slices on a tilted plane, and the position of a pixel in millimetres."""
  row = np.array([0.8, 0.6, 0])  # along a row: the column index grows
  column = np.array([0, 0, -1.0])
  normal = np.cross(row, column)
  first = np.array([-30, 12.5, 40])

  def position(i, j, k):
    step = 3 * normal + lean * column
    return first + 1.0 * j * row + 2.0 * i * column + k * step

  pixels = [
    np.array([[100 * k + 10 * i + j for j in range(4)] for i in range(5)])
    for k in range(2)
  ]
  root = write_series(
    [
      dicom_slice(
        pixels[k].astype(np.int16),
        k + 1,
        ImageOrientationPatient=[*row, *column],
        ImagePositionPatient=[*position(0, 0, k)],
      )
      for k in (1, 0)
    ],
    folder=f'oblique{lean}',
  )
  return root, position


@pytest.mark.parametrize('lean', [0.0, 0.7])  # the gantry may be tilted
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_labels_of_dicom_lie_where_the_headers_say(
  write_series, tmp_path, axis, lean
):
  root, position = oblique_series(write_series, lean)
  label = label_of(volumes.open_volume(root, axis), tmp_path)
  assert label.shape == (4, 5, 2)  # columns, rows, slices
  array = np.asarray(label.dataobj)
  for j, i, k in np.ndindex(label.shape):
    assert array[j, i, k] == 100 * k + 10 * i + j
    left, back, head = position(i, j, k)
    found = label.affine @ [j, i, k, 1]
    np.testing.assert_allclose(found[:3], [-left, -back, head], atol=1e-4)
  assert label.get_sform(coded=True)[1] == 1
  assert label.header.get_xyzt_units()[0] == 'mm'


def test_values_can_be_forgotten(write_nifti):
  volume = volumes.open_volume(write_nifti())
  volumes.values(volume)
  assert volume.stack.key in stacks._cache
  volumes.forget(volume)
  assert volume.stack.key not in stacks._cache
  volumes.forget(volume)
  np.testing.assert_array_equal(volume.slices(0), SHOWN[2](0))
