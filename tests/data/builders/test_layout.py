"""Archives that were unpacked elsewhere than where they belong."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.builders import layout
from jaxseg.errors import DataError, UserError

CITIES = {'train': 'aachen', 'val': 'munster'}


@pytest.fixture
def root(tmp_path):
  """A miniature of Cityscapes."""
  root = tmp_path / 'downloads'
  rng = np.random.default_rng(0)
  for part, city in CITIES.items():
    for i in range(2):
      name = f'{city}_{i:06d}_000019'
      for folder, end in (('leftImg8bit', ''), ('gtFine', '_labelIds')):
        path = root / folder / part / city / f'{name}_{folder}{end}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 34, (16, 32), np.uint8)
        image = Image.fromarray(pixels)
        image.convert('L' if end else 'RGB').save(path)
  return root


def prepare(root):
  return prepared.prepare(
    'cityscapes', root, root.parent / 'sets', allow_partial=True
  )


def refused(root, words):
  with pytest.raises(UserError, match=words):
    prepare(root)


def test_all_in_a_folder_of_its_own(root):
  shutil.move(root, root.parent / 'x')
  shutil.move(root.parent / 'x', root / 'cityscapes')
  refused(
    root, f'leftImg8bit is there; move it .*--manual_dir={root}/cityscapes '
  )
  prepare(root / 'cityscapes')


def test_each_archive_in_a_folder_of_its_own(root):
  for name in ('leftImg8bit', 'gtFine'):
    (root / f'{name}_trainvaltest').mkdir()
    shutil.move(root / name, root / f'{name}_trainvaltest' / name)
  for name in ('leftImg8bit', 'gtFine'):  # as the advice says
    found = root / f'{name}_trainvaltest' / name
    refused(root, f'{found} is there; move it to {root / name}')
    shutil.move(found, root / name)
  prepare(root)


def test_packed_archives(root):
  shutil.rmtree(root / 'gtFine')
  (root / 'gtFine_trainvaltest.zip').write_bytes(b'PK')
  refused(root, 'gtFine_trainvaltest.zip, still packed; unpack it')
  refused(root / 'gtFine_trainvaltest.zip', '--manual_dir is no folder')
  refused(root / 'none', '--manual_dir is missing, .*register at https')


def test_other_names(root):
  refused(root / 'leftImg8bit', f'too deep; pass --manual_dir={root} ')
  os.rename(root / 'leftImg8bit', root / 'leftimg8bit')
  refused(root, f'leftimg8bit is there; move it to {root}/leftImg8bit ')


def test_nothing_is_like_it(root):
  shutil.rmtree(root / 'leftImg8bit')
  refused(root, "images of 'train' of cityscapes is missing; register at")


def test_other_labels(root):
  for path in (root / 'gtFine').rglob('*.png'):
    path.rename(path.with_name(path.name.replace('labelIds', 'color')))
  refused(root, 'ID_gtFine_labelIds.png: every label of cityscapes is missing')


def test_a_doubled_folder(tmp_path):
  (tmp_path / 'Input' / 'Input').mkdir(parents=True)
  assert layout.advice(tmp_path) == (
    f'{tmp_path}/Input/Input is there; move what it holds one folder up'
  )


def test_leftovers_of_macos(root):
  for path in list(root.rglob('*.png')):
    path.with_name(f'._{path.name}').write_bytes(b'\0\5\x16\7')
  (root / '__MACOSX' / 'leftImg8bit').mkdir(parents=True)
  prepare(root)
  opened = prepared.open_prepared(
    'cityscapes', 3, data_dir=root.parent / 'sets'
  )
  assert [len(ids) for ids in opened.splits.values()] == [2, 2]


def test_images_that_were_cut_off(root):
  path = next((root / 'leftImg8bit/train/aachen').iterdir())
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(DataError, match=f'{path}: .*copy or download'):
    prepare(root)


def test_labels_in_colours(root):
  path = next((root / 'gtFine/train/aachen').iterdir())
  pixels = np.random.default_rng(0).integers(0, 2, (16, 32, 3), np.uint8)
  Image.fromarray(pixels).save(path)
  with pytest.raises(DataError, match='holds colours.*; unpack the official'):
    prepare(root)


def test_labels_that_are_all_missing(tmp_path):
  """Even --allow_partial needs something to train on."""
  folder = tmp_path / 'VOCdevkit' / 'VOC2012'
  for name in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
    (folder / name).mkdir(parents=True)
  for i in range(3):  # one of them in no list, and so unlabelled
    Image.new('RGB', (16, 16)).save(folder / f'JPEGImages/2007_00000{i}.jpg')
  for name in ('train', 'val'):
    (folder / f'ImageSets/Segmentation/{name}.txt').write_text('2007_000001')
  words = 'every image of the training split of voc2012 is missing'
  with pytest.raises(UserError, match=words):
    prepared.prepare('voc2012', tmp_path, tmp_path, allow_partial=True)
