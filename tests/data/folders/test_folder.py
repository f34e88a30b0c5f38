"""A user's own folder: layouts, class lists, split lists, volumes."""

import json
import os
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg.data import source
from jaxseg.data.folders import folder
from jaxseg.data.formats import images, stacks
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError, UserError


def kinds(opened, severity=None):
  return [
    p.kind for p in opened.problems if severity in (None, p.severity)
  ]  # fmt: skip


def test_images_and_labels(write_folder):
  opened = folder.load(write_folder(n=3, unlabelled=2), 1)
  assert opened.splits == {
    'all': ('000', '001', '002'),
    'unlabelled': ('003', '004'),
  }
  assert opened.class_names == ('background', 'class 1')
  label = opened.label('001')
  np.testing.assert_array_equal(opened.image('001')[..., 0], label * 100 + 1)
  assert opened.label('004') is None
  assert opened.has_label('001') and not opened.has_label('004')
  assert opened.path('004').endswith('images/004.png')
  assert opened.problems == () and opened.name == 'set'


@pytest.mark.parametrize('place', ['images', '.'])
def test_images_alone(tmp_path, place):
  (tmp_path / place).mkdir(exist_ok=True)
  for name in ('a.png', 'b.JPG', 'c.tiff'):
    Image.new('L', (32, 32), 9).save(tmp_path / place / name)
  opened = folder.load(tmp_path, 3)
  assert opened.splits == {'all': (), 'unlabelled': ('a', 'b', 'c')}
  assert opened.image('b').shape == (32, 32, 3)
  assert opened.label('a') is None


def test_splits_and_meta(write_folder):
  opened = folder.load(
    write_folder(
      splits={
        'train': ['000', '001'],
        'ood_x': ['002'],
        'budgets': {'1': ['001']},
        'groups': {'000': 'anna', '001': 7},
      },
      meta={
        'name': 'lungs',
        'classes': ['bg', 'lung'],
        'void': 9,
        'palette': [[1, 2, 3], [4, 5, 6]],
      },
    ),
    3,
  )
  assert opened.splits == {'train': ('000', '001'), 'ood_x': ('002',)}
  assert opened.budgets == {'1': ('001',)}
  assert opened.groups == {'000': 'anna', '001': '7'}
  assert opened.name == 'lungs' and opened.class_names == ('bg', 'lung')
  np.testing.assert_array_equal(opened.palette, [[1, 2, 3], [4, 5, 6]])
  assert opened.image('000').shape == (32, 32, 3)
  assert kinds(opened) == ['unused']


def test_classes_json(write_folder):
  root = write_folder(
    classes={
      'classes': ['bg', 'lung'],
      'colors': [[0, 0, 0], [255, 0, 0]],
      'values': {'7': 1},
      'licence': 'CC0',
    },
    meta={'classes': ['not', 'read']},
  )
  coded = np.zeros((32, 32, 3), np.uint8)
  coded[:4, :, 0] = 255
  Image.fromarray(coded).save(root / 'labels/000.png')
  Image.new('L', (32, 32), 7).save(root / 'labels/001.png')
  opened = folder.load(root, 1)
  assert opened.class_names == ('bg', 'lung') and opened.licence == 'CC0'
  np.testing.assert_array_equal(opened.palette, [[0, 0, 0], [255, 0, 0]])
  assert opened.label('000').sum() == 4 * 32
  assert (opened.label('001') == 1).all()


def test_short_class_list(write_folder):
  look = {'bg': [0, 0, 0], 'lung': [0, 0, 9], 'void': [255, 255, 255]}
  root = write_folder(classes=look)
  coded = np.zeros((32, 32, 3), np.uint8)
  coded[0], coded[1, :, 2] = 255, 9
  Image.fromarray(coded).save(root / 'labels/000.png')
  opened = folder.load(root, 1)
  assert opened.class_names == ('bg', 'lung')
  assert list(opened.label('000')[:3, 0]) == [255, 1, 0]


def test_void_id_becomes_255(write_folder):
  root = write_folder(num_classes=3, meta={'classes': ['a', 'b'], 'void': 2})
  assert set(np.unique(folder.load(root, 1).label('000'))) == {0, 1, 255}


def test_no_void(write_folder):
  root = write_folder(classes={'classes': ['a', 'b'], 'void': None})
  Image.new('L', (32, 32), 255).save(root / 'labels/000.png')
  opened = folder.load(root, 1)
  assert set(np.unique(opened.label('001'))) == {0, 1}
  with pytest.raises(DataError, match='000.png: the label holds 255.*no void'):
    opened.label('000')


def test_classes_are_inferred_from_labels(write_folder):
  root = write_folder(num_classes=4)
  void = np.full((32, 32), 255, np.uint8)
  Image.fromarray(void).save(root / 'labels/000.png')
  (root / 'labels/001.png').write_bytes(b'')  # told when it is checked
  opened = folder.load(root, 1)
  assert opened.class_names == ('background', 'class 1', 'class 2', 'class 3')
  np.testing.assert_array_equal(opened.palette, source.voc_palette(4))


def test_palette_of_the_label_files(write_folder):
  root = write_folder(n=2)
  palette = np.array([[5, 6, 7], [80, 90, 100]], np.uint8)
  for path in (root / 'labels').iterdir():
    images.write_label(path, images.read_label(path), palette)
  np.testing.assert_array_equal(folder.load(root, 1).palette, palette)


def test_intensity_is_used(write_folder):
  root = write_folder(n=1)
  window = Intensity('window', window=(0, 100))
  found = folder.load(root, 1, intensity=window).image('000')
  assert set(np.unique(found)) == {0, 255}


def test_missing_and_empty_folders(tmp_path):
  with pytest.raises(DataError, match='folder is missing'):
    folder.load(tmp_path / 'nowhere', 1)
  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='the data folder is a file, .*unpack it'):
    folder.load(tmp_path / 'file', 1)
  root = tmp_path / 'set'
  root.mkdir()
  with pytest.raises(DataError, match='no images in it.*holds nothing'):
    folder.load(root, 1)
  (root / 'labels').mkdir()
  with pytest.raises(DataError, match='a folder labels and none of images'):
    folder.load(root, 1)
  (root / 'images').mkdir()
  (root / 'images/scan.xyz').touch()
  with pytest.raises(DataError, match='no images in it.*holds scan.xyz'):
    folder.load(root, 1)


BAD_SPLITS = {
  'no list': ({'train': '000'}, 'expected a list'),
  'no names': ({'train': [0]}, 'expected a list'),
  'no objects': ({'train': ['000'], 'budgets': [1]}, 'must be objects'),
  'list': (['000'], 'holds a list'),
}


@pytest.mark.parametrize('case', BAD_SPLITS)
def test_splits_json_of_another_layout(write_folder, case):
  splits, sentence = BAD_SPLITS[case]
  with pytest.raises(DataError, match=sentence):
    folder.load(write_folder(splits=splits), 1)


BAD_NAMES = {
  'missing': ({'train': ['000', 'x', 'y']}, 'names 2 images .* x, y, exp'),
  'listed_twice': ({'train': ['000', '000']}, 'names 000 more than once'),
  'budget': ({'train': ['000'], 'budgets': {'2': ['000']}}, "'2' lists 1"),
  'outside': ({'train': ['000', '../../x/000.png']}, 'which is outside of'),
}


@pytest.mark.parametrize('kind', BAD_NAMES)
def test_wrong_names_in_splits_json(write_folder, kind):
  splits, sentence = BAD_NAMES[kind]
  opened = folder.load(write_folder(splits=splits), 1)
  assert opened.splits['train'] == ('000',)
  (problem,) = [p for p in opened.problems if p.severity == 'refuse']
  assert problem.kind == kind and problem.path.endswith('splits.json')
  assert re.search(sentence, problem.message)


def test_budgets_count_images_or_groups(write_folder):
  groups = {f'{i:03d}': f'p{i // 3}' for i in range(12)}
  ids = list(groups)
  root = write_folder(
    splits={
      'train': ids,
      'budgets': {'2': ids[:6], '3': ids[:3], '5': ids[:5]},
      'groups': groups,
      'unit': 'patients',
    }
  )
  opened = folder.load(root, 1)
  assert opened.budgets['2'] == tuple(ids[:6])
  assert kinds(opened, 'refuse') == []
  assert kinds(opened, 'note') == ['splits']  # 'unit' is not used


def test_names_with_folder_and_suffix(write_folder):
  root = write_folder(n=4)
  names = ['000.png', 'images/001.png', str(root / 'images/002.png'), './003']
  (root / 'splits.json').write_text(json.dumps({'train': names}))
  opened = folder.load(root, 1)
  assert opened.splits['train'] == ('000', '001', '002', '003')
  assert opened.problems == ()


TEXTS = {
  'unix': b'000\n001\n',
  'windows': b'\xef\xbb\xbf000.png\r\n\r\n  001.png \r\n',
  'utf-16': '000\r\n001\r\n'.encode('utf-16'),
}


@pytest.mark.parametrize('case', TEXTS)
def test_text_lists(write_folder, case):
  root = write_folder(n=4, unlabelled=2)
  (root / 'train.txt').write_bytes(TEXTS[case])
  (root / 'ood_far.txt').write_text('002')
  (root / 'unlabelled.txt').write_text('004\n005')
  (root / 'readme.txt').write_text('not a list')
  opened = folder.load(root, 1)
  assert opened.splits == {
    'train': ('000', '001'),
    'ood_far': ('002',),
    'unlabelled': ('004', '005'),
  }
  assert kinds(opened) == ['unused']


def test_splits_json_before_text_lists(write_folder):
  root = write_folder(n=2, splits={'train': ['000', '001']})
  (root / 'train.txt').write_text('000')
  opened = folder.load(root, 1)
  assert opened.splits == {'train': ('000', '001')}
  assert kinds(opened) == ['splits']


def test_group_by(write_folder):
  root = write_folder(n=4)
  opened = folder.load(root, 1, group_by=r'0(0[01])')
  assert opened.groups == {'000': '00', '001': '01'}
  assert kinds(opened) == ['no_group']
  (root / 'splits.json').write_text(
    json.dumps({'train': ['000'], 'groups': {'000': 'anna'}})
  )
  opened = folder.load(root, 1, group_by=r'(.)$')
  assert opened.groups['000'] == 'anna' and opened.groups['001'] == '1'


@pytest.mark.parametrize(
  'group_by, sentence',
  [
    ('(', 'no regular expression'),
    ('abc', 'with a group in parentheses'),
    ('(patient)', 'found in no name'),
    ('^(0)', "all 2 images the one group '0', expected several"),
  ],
)
def test_bad_group_by(write_folder, group_by, sentence):
  with pytest.raises(UserError, match=f'config.data.group_by.*{sentence}'):
    folder.load(write_folder(n=2), 1, group_by=group_by)


BAD_CLASSES = {
  'one': ({'classes': ['one']}, 'expected a list of 2 to 255'),
  'object': ({'classes': {'a': 0}}, 'expected a list of 2 to 255'),
  'twice': ({'classes': ['a', 'a']}, '2 to 255 different names'),
  'void is a class': ({'classes': ['a', 'b'], 'void': 0}, "id of class 'a'"),
  'void': ({'classes': ['a', 'b'], 'void': 'x'}, 'expected an id'),
}
BAD_META = {
  'palette': ({'classes': ['a', 'b'], 'palette': [[0, 0, 0]]}, '2 colours'),
  'range': ({'classes': ['a', 'b'], 'palette': [[0, 0, 300]] * 2}, 'colours'),
}
BAD_LONG = {
  'typo': ({'clases': ['a', 'b']}, "has the key 'clases'"),
  'colours': ({'classes': ['a', 'b'], 'colors': [[1, 2, 3]]}, '2 colours'),
  'same': (
    {'classes': ['a', 'b'], 'colors': [[1, 2, 3]] * 2}, 'a different colour',
  ),
  'short same': ({'a': [1, 2, 3], 'b': [1, 2, 3]}, 'a different colour'),
  'values': ({'values': [1]}, 'stored value'),
  'target': ({'classes': ['a', 'b'], 'values': {'9': 2}}, 'from 0 to 1'),
  'void value': ({'values': {'255': 1}, 'void': 255}, 'makes class 1'),
  'white': (
    {
      'classes': ['a', 'b'],
      'colors': [[0, 0, 0], [255, 255, 255]],
      'void': 255,
    },
    "white of class 'b'",
  ),
}  # fmt: skip


@pytest.mark.parametrize(
  'file, case',
  [
    *[('meta', case) for case in BAD_CLASSES | BAD_META],
    *[('classes', case) for case in BAD_CLASSES | BAD_LONG],
  ],
)
def test_bad_class_lists(write_folder, file, case):
  content, sentence = (BAD_CLASSES | BAD_META | BAD_LONG)[case]
  with pytest.raises(DataError, match=f'{file}.json: .*{sentence}'):
    folder.load(write_folder(**{file: content}), 1)


@pytest.mark.parametrize('file', ['splits', 'meta', 'classes'])
@pytest.mark.parametrize(
  'data', [b'{"train": [', b'\xff\xfe\x00', b'[' * 10**5]
)
def test_damaged_json(write_folder, file, data):
  root = write_folder(n=2)
  (root / f'{file}.json').write_bytes(data)
  with pytest.raises(DataError, match=f'{file}.json: the file is.* expected'):
    folder.load(root, 1)


def options(**values):
  return ConfigDict({'axis': 2, 'step': 1, 'skip_empty': False} | values)


@pytest.fixture
def volumes(tmp_path):
  """Two NIfTI volumes of 12x14x5, one with a label, and a photo."""
  nibabel = pytest.importorskip('nibabel')
  (tmp_path / 'images').mkdir()
  (tmp_path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for name in ('anna', 'bert'):
    values = rng.normal(0, 100, (12, 14, 5)).astype(np.float32)
    values[:, :, 4] += 1000
    image = nibabel.Nifti1Image(values, np.eye(4))
    nibabel.save(image, tmp_path / f'images/{name}.nii.gz')
  label = np.zeros((12, 14, 5), np.uint8)
  label[3:6, 3:6, 1:3] = 1
  image = nibabel.Nifti1Image(label, np.eye(4))
  nibabel.save(image, tmp_path / 'labels/anna.nii.gz')
  Image.new('L', (16, 16), 5).save(tmp_path / 'images/photo.png')
  return tmp_path


def test_volumes_are_slices(volumes):
  opened = folder.load(volumes, 1)
  anna = tuple(f'anna-ax{i:03d}' for i in range(5))
  bert = tuple(f'bert-ax{i:03d}' for i in range(5))
  assert opened.splits == {'all': anna, 'unlabelled': ('photo', *bert)}
  assert opened.groups == dict.fromkeys(anna, 'anna') | dict.fromkeys(
    bert, 'bert'
  )
  assert opened.image('bert-ax000').shape == (14, 12, 1)
  # One range of values for all slices of a volume: the bright one stays so.
  assert (
    opened.image('anna-ax004').mean() > 2 * opened.image('anna-ax000').mean()
  )
  assert opened.label('anna-ax001').sum() == 9
  assert opened.label('anna-ax000').sum() == 0
  assert opened.label('bert-ax000') is None
  assert opened.path('bert-ax003').endswith('bert.nii.gz slice 3')


def test_volume_options(volumes):
  every_second = folder.load(volumes, 3, volume=options(axis=1, step=2))
  assert [i for i in every_second.splits['all'] if 'anna' in i] == [
    f'anna-co{i:03d}' for i in range(0, 14, 2)
  ]
  full = folder.load(volumes, 1, volume=options(skip_empty=True))
  assert full.splits['all'] == ('anna-ax001', 'anna-ax002')
  assert len(full.splits['unlabelled']) == 6
  with pytest.raises(UserError, match='volume.step is 0'):
    folder.load(volumes, 1, volume=options(step=0))
  with pytest.raises(UserError, match='volume.axis is 3'):
    folder.load(volumes, 1, volume=options(axis=3))


def test_a_split_names_volumes(volumes):
  splits = {'train': ['anna'], 'unlabelled': ['bert.nii.gz', 'photo.png']}
  (volumes / 'splits.json').write_text(json.dumps(splits))
  opened = folder.load(volumes, 1)
  assert len(opened.splits['train']) == 5
  assert len(opened.splits['unlabelled']) == 6 and opened.problems == ()


def test_volume_and_label_of_other_shapes(volumes):
  nibabel = pytest.importorskip('nibabel')
  image = nibabel.Nifti1Image(np.zeros((12, 14, 4), np.uint8), np.eye(4))
  nibabel.save(image, volumes / 'labels/anna.nii.gz')
  opened = folder.load(volumes, 1)
  (problem,) = [p for p in opened.problems if p.severity == 'refuse']
  assert problem.kind == 'size_mismatch'
  assert '14x12x4 and the image of 14x12x5' in problem.message


def test_volume_and_label_of_other_axes(volumes):
  """A label stored along other axes fits, one without the header does not."""
  nibabel = pytest.importorskip('nibabel')
  aligned = folder.load(volumes, 1).label('anna-ax001')
  path = volumes / 'labels/anna.nii.gz'
  label = nibabel.load(path)
  label = nibabel.Nifti1Image(np.asarray(label.dataobj), label.affine)
  flips = [[1, -1], [0, 1], [2, -1]]
  nibabel.save(label.as_reoriented(np.array(flips)), path)
  opened = folder.load(volumes, 1)
  assert opened.problems == ()
  np.testing.assert_array_equal(opened.label('anna-ax001'), aligned)
  stored = np.asarray(label.dataobj)
  nibabel.save(nibabel.Nifti1Image(stored, np.diag([-1, -1, 1, 1])), path)
  opened = folder.load(volumes, 1)
  assert kinds(opened, 'refuse') == ['orientation']
  assert not opened.has_label('anna-ax001')
  shifted = np.eye(4)
  shifted[0, 3] = 3.0
  nibabel.save(nibabel.Nifti1Image(stored, shifted), path)
  assert folder.load(volumes, 1).problems == ()


@pytest.mark.parametrize(
  'name, severity', [('anna', 'refuse'), ('bert', 'skip')]
)
def test_damaged_volume(volumes, name, severity):
  (volumes / f'images/{name}.nii.gz').write_bytes(b'no gzip')
  opened = folder.load(volumes, 1)
  (problem,) = [p for p in opened.problems if p.severity != 'note']
  assert problem.severity == severity
  assert problem.path.endswith(f'images/{name}.nii.gz')
  assert not any(name in i for ids in opened.splits.values() for i in ids)


def test_float_volume_label(volumes):
  nibabel = pytest.importorskip('nibabel')
  image = nibabel.Nifti1Image(np.full((12, 14, 5), 0.5, np.float32), np.eye(4))
  nibabel.save(image, volumes / 'labels/anna.nii.gz')
  with pytest.raises(DataError, match='anna.nii.gz: .* not whole numbers'):
    folder.load(volumes, 1).label('anna-ax000')


def test_notes_of_volumes_are_passed_on(volumes):
  nibabel = pytest.importorskip('nibabel')
  flat = nibabel.Nifti1Image(
    np.zeros((12, 14, 5), np.int16), np.diag([1, 1, 9, 1])
  )
  nibabel.save(flat, volumes / 'images/bert.nii.gz')
  opened = folder.load(volumes, 1)
  assert kinds(opened, 'note') == ['volume']
  assert '9 mm apart' in opened.problems[0].message


def test_nan_in_a_volume(volumes, config):
  """Its slices are left out, or refused where they have a label."""
  nibabel = pytest.importorskip('nibabel')
  values = np.full((12, 14, 5), np.nan, np.float32)
  for name in ('anna', 'bert'):
    image = nibabel.Nifti1Image(values, np.eye(4))
    nibabel.save(image, volumes / f'images/{name}.nii.gz')
  found, _ = checks.inspect(folder.load(volumes, 1))
  wrong = {(p.severity, p.path[-11:]) for p in found if p.severity != 'note'}
  assert wrong == {('refuse', 'anna.nii.gz'), ('skip', 'bert.nii.gz')}


@pytest.fixture
def write_dicom():
  """Writes a file of 16x16 pixels."""
  pydicom = pytest.importorskip('pydicom')

  def write(path, series, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    d = pydicom.Dataset()
    d.file_meta = pydicom.dataset.FileMetaDataset()
    d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d.SOPClassUID = pydicom.uid.CTImageStorage
    d.SOPInstanceUID = f'1.2.3.{series}.{number}'
    d.SeriesInstanceUID = f'1.2.3.{series}'
    d.InstanceNumber = number
    d.ImagePositionPatient = [0, 0, 2 * number]
    d.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    d.PixelSpacing = [1, 1]
    d.Rows = d.Columns = 16
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, 'MONOCHROME2'
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation = 15, 0
    d.PixelData = np.arange(256, dtype=np.uint16).tobytes()
    d.save_as(path, enforce_file_format=True)

  return write


def test_dicom_series_in_folders(tmp_path, write_dicom):
  for i in range(3):
    write_dicom(tmp_path / f'images/anna/{i}.dcm', 1, i)
    write_dicom(tmp_path / f'images/both/{i}.dcm', i, i)
  opened = folder.load(tmp_path, 1)
  assert opened.splits['unlabelled'] == tuple(
    f'anna-ax{i:03d}' for i in range(3)
  )
  assert set(opened.groups.values()) == {'anna'}
  (problem,) = [p for p in opened.problems if p.severity != 'note']
  assert problem.severity == 'skip' and problem.path.endswith('images/both')
  assert 'series' in problem.message


@pytest.mark.parametrize('place', ['images', '.'])
def test_loose_dicom_files(tmp_path, write_dicom, place):
  """Each is an image; those of one series are one group."""
  for name, series in (('a', 1), ('b', 1), ('c', 2)):
    write_dicom(tmp_path / place / f'{name}.dcm', series, ord(name))
  opened = folder.load(tmp_path, 1)
  assert opened.groups == {
    'a-ax000': 'a', 'b-ax000': 'a', 'c-ax000': 'c',
  }  # fmt: skip
  assert opened.image('a-ax000').shape == (16, 16, 1)


def test_missing_packages(volumes, monkeypatch):
  def no_package(name):
    raise ImportError(name)

  monkeypatch.setattr(stacks.importlib, 'import_module', no_package)
  with pytest.raises(UserError, match='pip install nibabel'):
    folder.load(volumes, 1)


def test_a_folder_can_be_sent_to_workers(volumes):
  cloudpickle = pytest.importorskip('cloudpickle')
  opened = folder.load(volumes, 1)
  sent = cloudpickle.loads(cloudpickle.dumps(opened))
  for id_ in ('anna-ax004', 'photo'):
    np.testing.assert_array_equal(sent.image(id_), opened.image(id_))


def test_unreadable_folder(write_folder, monkeypatch):
  root = write_folder(n=1)

  def refuse(path='.'):
    raise PermissionError(13, 'Permission denied', str(path))

  monkeypatch.setattr(os, 'listdir', refuse)
  with pytest.raises(DataError, match='images|labels.*Permission denied'):
    folder.load(root, 1)
