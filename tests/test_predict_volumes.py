"""Volumes in, one label volume each that lies over its voxels."""

import csv
import gzip
import os

import numpy as np
import pytest
from PIL import Image
from thresholding import PALETTE, SIDE, make_trained

from jaxseg import predict, predict_files
from jaxseg.data.folders import folder
from jaxseg.data.formats import intensity, stacks, volumes
from jaxseg.errors import UserError

nibabel = pytest.importorskip('nibabel')
pydicom = pytest.importorskip('pydicom')

SHAPE = (SIDE, SIDE, 5)  # right, front, head


@pytest.fixture
def folders(tmp_path):
  (tmp_path / 'in').mkdir()
  return tmp_path / 'in', tmp_path / 'out'


def _values(seed=0, shape=SHAPE):
  """Values of which those from 500 on are bright, dark slices among them.

  Limits of single slices would make half of a dark slice bright.
  """
  rng = np.random.default_rng(seed)
  values = rng.choice([0, 200, 800, 1000], shape).astype(np.int16)
  values[..., 1] = rng.choice([0, 200], shape[:2])
  return values


def _write_nifti(path, ras, codes='RAS', shift=7.5):
  """Stores an array along RAS+ axes along others; returns it as stored."""
  affine = np.diag([1.5, 1.5, 4, 1])
  affine[:3, 3] = shift, -3, 60
  image = nibabel.Nifti1Image(ras, affine)
  if codes != 'RAS':
    turn = nibabel.orientations.ornt_transform(
      nibabel.orientations.axcodes2ornt('RAS'),
      nibabel.orientations.axcodes2ornt(codes),
    )
    image = image.as_reoriented(turn)
  nibabel.save(image, path)
  return nibabel.load(path)


def _write_dicom(root, ras, series='1.2.3', first=0):
  """An axial series, rows to the left and then back, 4 mm apart."""
  root.mkdir(exist_ok=True)
  for k in range(ras.shape[2]):
    pixels = np.ascontiguousarray(ras[::-1, ::-1, k].T)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    kind = pydicom.uid.CTImageStorage
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    uid = f'{series}.{first + k}'
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
    dataset.SeriesInstanceUID = series
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = 'MONOCHROME2'
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 1
    dataset.PixelSpacing = [2, 1.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [-20, -30, 4 * (first + k) + 11]
    dataset.PixelData = pixels.tobytes()
    # File names say nothing of the order.
    name = f'{(7 * (first + k)) % 101:03d}.dcm'
    dataset.save_as(root / name, enforce_file_format=True)
  return root


def _rows(output):
  with (output / 'predictions.csv').open(newline='') as file:
    return {row['file']: row for row in csv.DictReader(file)}


def _array(path):
  return np.asarray(nibabel.load(path).dataobj)


@pytest.mark.parametrize('codes', ['RAS', 'LPS', 'PIR', 'SAL'])
@pytest.mark.parametrize('axis', [0, 1, 2])
def test_label_volume_equals_the_threshold(folders, codes, axis):
  source, output = folders
  ras = np.moveaxis(_values(), 2, axis)  # slices are 8x8 across the axis
  image = _write_nifti(source / 'anna.nii.gz', ras, codes)
  trained = make_trained()
  trained.config.data.volume.axis = axis
  trained.config.data.volume.step = 2  # of training only
  trained.config.data.volume.skip_empty = True
  assert predict.predict_folder(trained, source, output) == []
  assert sorted(p.name for p in output.iterdir()) == [
    'anna.nii.gz', 'overlays', 'predicted_by.json', 'predictions.csv',
  ]  # fmt: skip
  label = nibabel.load(output / 'anna.nii.gz')
  bright = np.asarray(image.dataobj) >= 500
  assert label.shape == image.shape and label.get_data_dtype() == np.uint8
  np.testing.assert_array_equal(np.asarray(label.dataobj), bright)
  np.testing.assert_array_equal(label.affine, image.affine)
  row = _rows(output)['anna.nii.gz']
  assert row['mask'] == 'anna.nii.gz'
  assert float(row['fraction_lung']) == pytest.approx(bright.mean(), abs=1e-6)
  shares = float(row['fraction_lung']) + float(row['fraction_background'])
  assert shares == pytest.approx(1) and float(row['seconds']) > 0


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_dicom_series_becomes_a_label_volume(folders, axis):
  source, output = folders
  ras = np.moveaxis(_values(), 2, axis)
  _write_dicom(source / 'bert', ras)
  trained = make_trained()
  trained.config.data.volume.axis = axis
  assert predict.predict_folder(trained, source, output) == []
  label = nibabel.load(output / 'bert.nii.gz')
  bright = ras[::-1, ::-1] >= 500  # (column, row, slice)
  np.testing.assert_array_equal(np.asarray(label.dataobj), bright)
  # The first pixel lies 20 mm to the right and 30 mm in front.
  expected = [[-1.5, 0, 0, 20], [0, -2, 0, 30], [0, 0, 4, 11], [0, 0, 0, 1]]
  np.testing.assert_allclose(label.affine, expected)
  assert _rows(output)['bert']['mask'] == 'bert.nii.gz'


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'mode': 'percentile', 'percentiles': (2.0, 90.0), 'gamma': 0.7},
    {'mode': 'window', 'window': (-50.0, 700.0)},
    {'mode': 'equalize', 'gamma': 0.5},
  ],
)
def test_grey_values_are_those_of_training(tmp_path, options, channels):
  (tmp_path / 'images').mkdir()
  rng = np.random.default_rng(0)
  ct = rng.normal(100, 300, (7, 9, 6)).astype(np.int16)
  files = ['ct.nii.gz', 'mr.nii', 'xa']
  _write_nifti(tmp_path / 'images/ct.nii.gz', ct, 'PIR')
  shallow = rng.integers(30, 90, (7, 9, 6)).astype(np.uint8)
  _write_nifti(tmp_path / 'images/mr.nii', shallow)
  _write_dicom(tmp_path / 'images/xa', ct + 400)
  config = make_trained(channels=channels).config
  config.data.volume.axis = 1
  config.data.intensity.update(options)
  training = folder.load(
    tmp_path, channels, volume=config.data.volume,
    intensity=intensity.from_config(config.data.intensity),
  )  # fmt: skip
  for file in files:
    opened = predict_files.open_file(tmp_path / 'images' / file, config)
    assert opened.count == 9
    for i in range(opened.count):
      expected = training.image(f'{file.split(".")[0]}-co{i:03d}')
      np.testing.assert_array_equal(opened.read(i), expected)
  assert sum(map(len, training.splits.values())) == 27


def test_slices_that_are_not_square(folders):
  source, output = folders
  ras = np.full((20, 33, 4), 10, np.float32)
  ras[:, :16] = 900.5
  _write_nifti(source / 'wide.nii', ras, 'ASL')
  predict.predict_folder(make_trained(resolution=33), source, output)
  expected = _array(source / 'wide.nii') > 500
  assert (_array(output / 'wide.nii.gz') == expected).mean() > 0.95
  trained = make_trained(resolution=20)
  trained.config.data.fit = 'crop'
  predict.predict_folder(trained, source, output.with_name('cropped'))
  label = nibabel.load(output.with_name('cropped') / 'wide.nii.gz')
  label = np.asarray(nibabel.as_closest_canonical(label).dataobj)
  # What the networks did not see is void: 6 or 7 voxels on each side.
  assert (label[:, :6] == 255).all() and (label[:, 27:] == 255).all()
  np.testing.assert_array_equal(label[:, 7:26], ras[:, 7:26] > 500)


@pytest.mark.parametrize('turned', [False, True])
def test_networks_that_see_the_slices_whole(folders, turned):
  """Slices of 33 x 20 voxels (height x width) or 20 x 33: nothing is lost."""
  source, output = folders
  sides = (33, 20) if turned else (20, 33)  # along x and y
  ras = np.full((*sides, 4), 10, np.float32)
  ras[:, :16] = 900.5
  ras[3] = 10
  _write_nifti(source / 'wide.nii', ras, 'ASL')
  trained = make_trained(resolution=sides[1])
  trained.config.data.width = sides[0]
  predict.predict_folder(trained, source, output)
  expected = _array(source / 'wide.nii') > 500
  np.testing.assert_array_equal(_array(output / 'wide.nii.gz'), expected)


def test_images_and_volumes_share_batches(folders, monkeypatch):
  source, output = folders
  picture = np.where(_values(9)[..., 0] >= 500, 220, 30).astype(np.uint8)
  Image.fromarray(picture).save(source / 'a.png')
  for name, seed in (('a', 1), ('c', 2)):
    _write_nifti(source / f'{name}.nii.gz', _values(seed))
  _write_dicom(source / 'b', _values(3))
  _write_dicom(source, _values(4)[..., :1])  # a file of its own: 000.dcm
  sizes, cached = [], []
  compiled = predict.compile_system

  def counted(*args):
    run = compiled(*args)

    def spy(batch):
      sizes.append(len(batch))
      keys = [str(key[0]) for key in stacks._cache]
      cached.append(sum(key.startswith(str(source)) for key in keys))
      return run(batch)

    return spy

  monkeypatch.setattr(predict, 'compile_system', counted)
  trained = make_trained(batch=6)
  assert predict.predict_folder(trained, source, output) == []
  assert sizes == [6, 6, 5]  # an image, a file of one slice and 3 x 5 slices
  assert max(cached) <= 1  # volumes in memory
  rows = _rows(output)
  assert {file: row['mask'] for file, row in rows.items()} == {
    '000.dcm': '000.nii.gz',
    'a.nii.gz': 'a.nii.gz.nii.gz',
    'a.png': 'a.png.png',
    'b': 'b.nii.gz',
    'c.nii.gz': 'c.nii.gz',
  }
  overlays = sorted(p.name for p in (output / 'overlays').iterdir())
  assert overlays == [
    '000.png', 'a.nii.gz.png', 'a.png.png', 'b.png', 'c.png',
  ]  # fmt: skip
  np.testing.assert_array_equal(Image.open(output / 'a.png.png'), picture > 127)
  for name, seed in (('a.nii.gz', 1), ('c', 2)):
    bright = _values(seed) >= 500
    np.testing.assert_array_equal(_array(output / f'{name}.nii.gz'), bright)
  bright = _values(3)[::-1, ::-1] >= 500
  np.testing.assert_array_equal(_array(output / 'b.nii.gz'), bright)


def test_slices_that_lie_loose_are_told(folders, capsys):
  source, output = folders
  _write_dicom(source, _values())
  _write_dicom(source, _values()[..., :1], '9.8.7', first=20)  # an X-ray
  _write_dicom(source / 'good', _values())
  assert predict.predict_folder(make_trained(), source, output) == []
  told = [x for x in capsys.readouterr().out.splitlines() if 'DICOM' in x]
  assert len(told) == 1 and f'{source}: 5 DICOM files are of one' in told[0]
  assert len(_rows(output)) == 7
  predict.predict_folder(make_trained(), source, output)
  assert 'DICOM' not in capsys.readouterr().out


def test_trust_is_the_mean_of_the_slices(folders):
  source, output = folders
  values = _values()
  values[..., 2] = np.linspace(440, 560, SIDE * SIDE).reshape(SIDE, SIDE)
  _write_nifti(source / 'v.nii', values)
  trained = make_trained()
  predict.predict_folder(trained, source, output)
  state = trained.stages['seg'].state
  label = trained.stages['seg'].method.predict
  opened = predict_files.open_file(source / 'v.nii', trained.config)
  trusts = []
  for i in range(opened.count):
    picture = opened.read(i)[None].astype(np.float32) / 127.5 - 1
    trusts.append(label(state, picture).trust.item())
  assert max(trusts) - min(trusts) > 0.01
  trust = float(_rows(output)['v.nii']['trust'])
  assert trust == pytest.approx(np.mean(trusts), abs=1e-4)


def _made(output):
  return {
    str(p.relative_to(output)): p.stat().st_mtime_ns
    for p in output.rglob('*')
    if p.suffix in ('.gz', '.png')
  }


def test_rerun_keeps_what_is_done(folders, capsys):
  source, output = folders
  _write_nifti(source / 'a.nii.gz', _values(0))
  _write_nifti(source / 'b.nii.gz', _values(1))
  series = _write_dicom(source / 'c', _values(2))
  predict.predict_folder(make_trained(), source, output)
  before = _made(output)
  assert len(before) == 6
  (output / 'b.nii.gz').unlink()
  capsys.readouterr()
  predict.predict_folder(make_trained(), source, output)
  assert '2 of 3 files are done' in capsys.readouterr().out
  after = _made(output)
  assert {k for k in before if before[k] == after[k]} == {
    'a.nii.gz', 'overlays/a.png', 'c.nii.gz', 'overlays/c.png',
  }  # fmt: skip
  os.utime(series / '007.dcm', ns=(2**62, 2**62))  # one slice is new
  predict.predict_folder(make_trained(), source, output)
  assert '2 of 3 files are done' in capsys.readouterr().out
  assert _made(output)['c.nii.gz'] != after['c.nii.gz']


@pytest.mark.parametrize('step', ['compressed', 'renamed', 'labelled'])
def test_a_crash_leaves_nothing_half_written(folders, monkeypatch, step):
  source, output = folders
  for name in ('a', 'b'):
    _write_nifti(source / f'{name}.nii.gz', _values())
  seen = []

  def stop_at_the_second(function, needle):
    def wrapped(*args, **kwargs):
      if needle in str(args[-1]):
        seen.append(args)
        if len(seen) == 2:
          raise KeyboardInterrupt
      return function(*args, **kwargs)

    return wrapped

  with monkeypatch.context() as patch:
    module, name, needle = {
      'compressed': (gzip, 'compress', ''),
      'renamed': (os, 'replace', '.nii.gz'),
      'labelled': (predict, '_label', ''),
    }[step]
    function = stop_at_the_second(getattr(module, name), needle)
    patch.setattr(module, name, function)
    with pytest.raises(KeyboardInterrupt):
      predict.predict_folder(make_trained(batch=5), source, output)
  assert not (output / 'b.nii.gz').exists()
  assert [p.name for p in output.iterdir() if p.name.startswith('.')] == []
  done = _made(output)['a.nii.gz']
  predict.predict_folder(make_trained(batch=5), source, output)
  assert _made(output)['a.nii.gz'] == done
  for name in ('a', 'b'):
    bright = _values() >= 500
    np.testing.assert_array_equal(_array(output / f'{name}.nii.gz'), bright)


def test_damaged_volumes_are_named_and_the_rest_is_done(folders, capsys):
  source, output = folders
  good = source / 'good.nii.gz'
  _write_nifti(good, _values())
  noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20), np.int16)
  _write_nifti(source / 'cut.nii.gz', noise)
  data = (source / 'cut.nii.gz').read_bytes()
  (source / 'cut.nii.gz').write_bytes(data[: len(data) // 2])
  (source / 'text.nii').write_text('hello')
  nan = _values().astype(np.float32)
  nan[0, 0, 3] = np.nan
  _write_nifti(source / 'nan.nii', nan)
  _write_nifti(source / 'time.nii', np.stack([noise] * 2, -1))
  _write_dicom(source / 'two', _values(), '1.2.3')
  _write_dicom(source / 'two', _values(), '9.8.7', first=9)
  broken = _write_dicom(source / 'broken', _values()) / '014.dcm'
  broken.write_bytes(broken.read_bytes()[:-40])
  (source / 'empty').mkdir()  # no volume, no mistake
  bad = predict.predict_folder(make_trained(), source, output)
  expected = ['broken', 'cut.nii.gz', 'nan.nii', 'text.nii', 'time.nii', 'two']
  assert bad == expected
  told = [
    line
    for line in capsys.readouterr().out.splitlines()
    if line.startswith('skipped: ')
  ]
  assert len(told) == 6
  for name in expected:
    (line,) = [x for x in told if x.startswith(f'skipped: {source / name}')]
    assert ', expected ' in line and '; ' in line
  assert list(_rows(output)) == ['good.nii.gz']
  made = {'good.nii.gz', 'overlays/good.png'}
  assert _made(output).keys() == made
  np.testing.assert_array_equal(_array(output / good.name), _values() >= 500)
  # Only the damaged are tried again.
  assert predict.predict_folder(make_trained(), source, output) == expected
  assert '1 of 7 files are done' in capsys.readouterr().out


def test_missing_packages_end_the_run(folders, monkeypatch):
  source, output = folders
  _write_nifti(source / 'v.nii', _values())

  def no_package(name):
    raise ImportError(name)

  monkeypatch.setattr(stacks.importlib, 'import_module', no_package)
  with pytest.raises(UserError, match='pip install nibabel pydicom'):
    predict.predict_folder(make_trained(), source, output)


def test_contact_sheet(folders):
  assert predict_files.shown(1) == [0]
  assert predict_files.shown(5) == [0, 1, 2, 3, 4]
  assert predict_files.shown(100) == [4, 12, 20, 29, 37, 45, 54, 62, 70, 79, 87,
                                      95]  # fmt: skip
  source, output = folders
  values = np.repeat(_values()[..., :1], 30, 2)
  values[..., 20:] = 0
  _write_nifti(source / 'v.nii', values)
  predict.predict_folder(make_trained(), source, output)
  sheet = np.asarray(Image.open(output / 'overlays/v.png'))
  assert sheet.shape == (3 * 96 + 2 * 2, 4 * 96 + 3 * 2, 3)
  # Slices 1 to 18 are labelled, 21 to 28 are not: the first eight cells.
  red = (sheet[..., 0] > 100) & (sheet[..., 2] < 200)
  share = (_values()[..., 0] >= 500).mean()
  for i in range(12):
    row, column = divmod(i, 4)
    cell = red[98 * row : 98 * row + 96, 98 * column : 98 * column + 96]
    assert cell.mean() == pytest.approx(share if i < 8 else 0)
  # Of one slice, the overlay is that of an image.
  picture, mask = np.zeros((3, 5, 1), np.uint8), np.ones((3, 5), np.uint8)
  one = predict_files.draw([picture], [mask], PALETTE)
  assert one.shape == (3, 5, 3)
  # Large slices are made smaller.
  large = np.zeros((512, 300, 1), np.uint8)
  label = np.zeros((512, 300), np.uint8)
  assert predict_files.draw([large] * 2, [label] * 2, PALETTE).shape == (
    256, 2 * 150 + 2, 3,
  )  # fmt: skip


def test_names_of_volumes():
  names = predict_files.output_names(
    ['a.NII.GZ', 'a.png', 'case.1', 'd.dcm', 'x.png', 'x.png.dcm', 'v.nii', 'v']
  )
  assert names == {
    'a.NII.GZ': 'a.NII.GZ.nii.gz',
    'a.png': 'a.png.png',
    'case.1': 'case.1.nii.gz',
    'd.dcm': 'd.nii.gz',
    'v': 'v.nii.gz',
    'v.nii': 'v.nii.nii.gz',
    'x.png': 'x.png',
    'x.png.dcm': 'x.png.nii.gz',
  }
  overlays = {
    predict_files.overlay_path(predict_files.Path(mask)).name
    for mask in names.values()
  }
  assert len(overlays) == len(names) and 'x.png.png' in overlays


def test_which_files_are_read(folders):
  source, _ = folders
  for name in ('a.png', 'b.nii', '.c.nii', 'notes.txt', 'd.npy'):
    (source / name).write_text('x')
  (source / 'other').mkdir()
  (source / 'other/e.png').write_text('x')
  _write_dicom(source / 'series', _values())
  (source / 'series/000.dcm').rename(source / 'IM000001')  # no suffix
  assert sorted(predict_files.list_files(source)) == [
    'IM000001', 'a.png', 'b.nii', 'series',
  ]  # fmt: skip
  assert volumes.is_volume(source / 'IM000001')
