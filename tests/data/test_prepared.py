"""A public set in miniature: prepared from its files, read back, refused."""

import json
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data import builders, prepared
from jaxseg.data.builders import base
from jaxseg.data.formats.intensity import Intensity
from jaxseg.errors import UserError

NAMES = ('background', 'cell', 'nucleus')


class Cells(base.Builder, skip_registration=True):
  """Photographs photo_ID.jpg with masks mask_ID.png; the dish is the group."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    base.Config(
      name='both',
      class_names=NAMES,
      counts={'train': 3},
      budgets={'1': ('d1',)},
    ),
    base.Config(name='cells', class_names=NAMES[:2], counts={'train': 3}),
  ]
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Get cells.zip from the cell bank.'
  TITLE, LICENCE = 'Cells in dishes', 'CC BY 4.0'

  def scan(self, root):
    records = [
      base.Record(
        path.stem[6:],
        path,
        lambda p=path: np.asarray(
          Image.open(p.with_name(f'mask_{p.stem[6:]}.png'))
        ),
        group=path.stem[6:8],
      )
      for path in sorted(root.glob('photo_*.jpg'))
    ]
    drawing = base.Record('drawn', lambda: np.full((5, 7), 9, np.uint8))
    return {'train': records, 'unlabelled': [drawing], 'ood_none': []}


@pytest.fixture
def cells(tmp_path, monkeypatch):
  """Three photographs of two dishes."""
  monkeypatch.setattr(prepared, 'BUILDERS', {'cells': ''})
  monkeypatch.setattr(prepared, 'builder_class', lambda name: Cells)
  root = tmp_path / 'archives'
  root.mkdir()
  rng = np.random.default_rng(0)
  for i, name in enumerate(['d1_a', 'd1_b', 'd2_a']):
    photo = Image.fromarray(rng.integers(0, 255, (8, 10, 3), np.uint8))
    photo.save(root / f'photo_{name}.jpg')
    mask = np.full((8, 10), i, np.uint8)
    mask[0] = 255
    Image.fromarray(mask).save(root / f'mask_{name}.png')
  return root


def test_what_was_written_is_read(cells, tmp_path):
  data_dir = str(tmp_path / 'sets')
  assert not prepared.is_prepared('cells', data_dir)
  folder = prepared.prepare('cells', cells, data_dir)
  assert prepared.is_prepared('cells', data_dir)
  assert list(folder.glob('*.array_record*'))
  source = prepared.open_prepared('cells', 3, data_dir=data_dir)
  assert source.splits == {
    'train': ('d1_a', 'd1_b', 'd2_a'),
    'unlabelled': ('drawn',),
  }
  assert source.class_names == NAMES and source.licence == 'CC BY 4.0'
  assert source.groups == {
    'd1_a': 'd1', 'd1_b': 'd1', 'd2_a': 'd2', 'drawn': 'drawn',
  }  # fmt: skip
  assert source.budgets == {'1': ('d1_a', 'd1_b')}
  for i, name in enumerate(source.splits['train']):
    photo = np.asarray(Image.open(cells / f'photo_{name}.jpg'))
    np.testing.assert_array_equal(source.image(name), photo)  # the same JPEG
    mask = np.asarray(Image.open(cells / f'mask_{name}.png'))
    np.testing.assert_array_equal(source.label(name), mask)
    assert set(np.flatnonzero(source.classes_in(name))) == {i, 255}
  assert source.label('drawn') is None and not source.has_label('drawn')
  assert (source.image('drawn') == 9).all()
  grey = prepared.open_prepared(
    'cells', 1, data_dir=data_dir, intensity=Intensity(gamma=0.5)
  )
  assert grey.image('drawn').shape == (5, 7, 1)
  assert grey.image('drawn')[0, 0] == round(255 * (9 / 255) ** 0.5)


def test_prepared_once(cells, tmp_path):
  data_dir = str(tmp_path)
  folder = prepared.prepare('cells', cells, data_dir)
  written = (folder / prepared.INDEX).stat().st_mtime_ns
  assert prepared.prepare('cells', cells, data_dir) == folder
  assert (folder / prepared.INDEX).stat().st_mtime_ns == written
  # Interrupted between the records and their index, which alone knows of
  # `max_side`, it is not prepared.
  records = next(folder.glob('*train.array_record*')).stat().st_mtime_ns
  (folder / prepared.INDEX).unlink()
  with pytest.raises(UserError, match='is not prepared in .*datasets prepare'):
    prepared.open_prepared('cells', 3, data_dir=data_dir)
  time.sleep(0.01)
  prepared.prepare('cells', cells, data_dir)
  assert next(folder.glob('*train.array_record*')).stat().st_mtime_ns > records
  records = next(folder.glob('*train.array_record*')).stat().st_mtime_ns
  time.sleep(0.01)
  prepared.prepare('cells', cells, data_dir, overwrite=True)
  assert next(folder.glob('*train.array_record*')).stat().st_mtime_ns > records


def test_counts(cells, tmp_path):
  (cells / 'photo_d2_a.jpg').unlink()
  with pytest.raises(UserError, match="2 in 'train' instead of 3.*--allow_par"):
    prepared.prepare('cells', cells, str(tmp_path))
  assert not list(tmp_path.glob('cells/*/*'))  # nothing was begun
  prepared.prepare('cells', cells, str(tmp_path), allow_partial=True)
  source = prepared.open_prepared('cells', 3, data_dir=str(tmp_path))
  assert len(source.splits['train']) == 2


def test_missing_archive(cells, tmp_path):
  with pytest.raises(
    UserError, match='nowhere: --manual_dir is missing.*the cell bank'
  ):
    prepared.prepare('cells', tmp_path / 'nowhere', str(tmp_path))


def test_wrong_files_leave_nothing_behind(cells, tmp_path):
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(cells / 'mask_d1_b.png')
  with pytest.raises(UserError, match='d1_b: the label .* 4x4 .* 10x8'):
    prepared.prepare('cells', cells, str(tmp_path))
  Image.fromarray(np.full((8, 10), 3, np.uint8)).save(cells / 'mask_d1_b.png')
  with pytest.raises(UserError, match=r'd1_b: .* ids \[3\], expected 0 to 2'):
    prepared.prepare('cells', cells, str(tmp_path))
  (cells / 'photo_d1_b.jpg').write_bytes(b'no image')
  with pytest.raises(UserError, match='photo_d1_b.jpg: .* cannot be read'):
    prepared.prepare('cells', cells, str(tmp_path))
  assert not prepared.is_prepared('cells', str(tmp_path))


def test_large_images_are_reduced(cells, tmp_path):
  data_dir = str(tmp_path)
  prepared.prepare('cells', cells, data_dir, max_side=5)
  source = prepared.open_prepared('cells', 3, data_dir=data_dir)
  assert source.image('d1_b').shape == (4, 5, 3)
  label = source.label('d1_b')
  assert label.shape == (4, 5) and (label[1:] == 1).all()
  assert source.image('drawn').shape == (4, 5, 3)  # it was 5 x 7
  with pytest.raises(UserError, match='--max_side=5, and --max_side=0 was ask'):
    prepared.prepare('cells', cells, data_dir)
  prepared.prepare('cells', cells, data_dir, overwrite=True)
  assert prepared.open_prepared('cells', 3, data_dir=data_dir).image(
    'd1_b'
  ).shape == (8, 10, 3)


@pytest.mark.parametrize('max_side', [0, 5])
def test_photographs_turned_by_their_tag(cells, tmp_path, max_side):
  """The label must fit the image as it is read, not as it is stored."""
  exif = Image.Exif()
  exif[0x0112] = 6
  path = cells / 'photo_d1_b.jpg'
  Image.open(path).save(path, exif=exif)
  data_dir = str(tmp_path / 'sets')
  with pytest.raises(UserError, match='d1_b: the label .* 10x8 .* image 8x10'):
    prepared.prepare('cells', cells, data_dir, max_side=max_side)
  mask = cells / 'mask_d1_b.png'
  Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
  prepared.prepare('cells', cells, data_dir, max_side=max_side)
  source = prepared.open_prepared('cells', 3, data_dir=data_dir)
  side = max_side or 10
  assert source.image('d1_b').shape[:2] == (side, side * 8 // 10)
  assert source.label('d1_b').shape == (side, side * 8 // 10)


def test_unknown_names(cells, tmp_path):
  with pytest.raises(UserError, match="'sells' is no data set .* cells"):
    prepared.prepare('sells', cells, str(tmp_path))
  with pytest.raises(UserError, match="no config 'x', expected one of both, c"):
    prepared.open_prepared('cells:x', 3, data_dir=str(tmp_path))


def test_the_index_is_plain_json(cells, tmp_path):
  folder = prepared.prepare('cells', cells, str(tmp_path))
  index = json.loads((folder / prepared.INDEX).read_text())
  assert index['splits']['train']['classes'] == [[0, 255], [1, 255], [2, 255]]


@pytest.mark.parametrize('name', builders.BUILDERS)
def test_every_builder_says_what_a_user_needs(name):
  cls = builders.builder_class(name)
  for field in (
    'TITLE', 'HOMEPAGE', 'LICENCE', 'CITATION', 'MANUAL_DOWNLOAD_INSTRUCTIONS',
  ):  # fmt: skip
    assert getattr(cls, field), field
  for config in cls.BUILDER_CONFIGS:
    k = len(config.class_names)
    assert k >= 2 and len(set(config.class_names)) == k
    assert len(config.palette) in (0, k) and config.channels in (1, 3)
    assert config.counts or config.patients
    assert config.description
