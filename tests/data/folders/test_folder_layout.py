"""Folders in another layout: the advice leads to one that works."""

import os
import shutil

import pytest
from PIL import Image

from jaxseg.data import splits
from jaxseg.data.folders import folder
from jaxseg.errors import DataError, UserError


def rename(root, **names):
  for old, new in names.items():
    os.rename(root / old, root / new)


@pytest.mark.parametrize(
  ('images', 'labels', 'advice'),
  [
    ('Images', 'Labels', "rename the folder 'Images' to 'images' and 'Labels'"),
    ('imagesTr', 'labelsTr', "rename the folder 'imagesTr' to 'images'"),
    ('img', 'labels', "none of images, .*rename the folder 'img' to 'images'"),
  ],
)
def test_folders_of_other_names(write_folder, images, labels, advice):
  root = write_folder(n=2)
  rename(root, images=images, labels=labels)
  with pytest.raises(DataError, match=advice):
    folder.load(root, 1)


def test_a_folder_in_the_folder(write_folder):
  root = write_folder(n=2)
  (root / 'set').mkdir()
  for name in ('images', 'labels'):
    shutil.move(root / name, root / 'set' / name)
  (root / '__MACOSX' / 'images').mkdir(parents=True)
  with pytest.raises(DataError, match=f'name the folder inside, .*{root}/set$'):
    folder.load(root, 1)
  assert len(folder.load(root / 'set', 1).splits['all']) == 2
  shutil.copytree(root / 'set', root / 'val')
  with pytest.raises(DataError, match=r'files of set, val into .*set\.txt'):
    folder.load(root, 1)


def test_images_in_subfolders(tmp_path):
  (tmp_path / 'images' / 'anna').mkdir(parents=True)
  Image.new('L', (32, 32)).save(tmp_path / 'images/anna/1.png')
  advice = 'subfolders are not read.*anna/1.png to anna_1.png'
  with pytest.raises(DataError, match=advice):
    folder.load(tmp_path, 1)


@pytest.mark.parametrize('name', ['images.zip', 'a.tar.gz', 'B.ZIP', 'c.tgz'])
def test_packed_archives(tmp_path, name):
  (tmp_path / name).write_bytes(b'PK')
  with pytest.raises(DataError, match=f'unpack {name}'):
    folder.load(tmp_path, 1)


def test_labels_in_a_folder_of_another_name(write_folder, config):
  root = write_folder(n=3)
  rename(root, labels='masks')
  opened = folder.load(root, 1)
  (note,) = opened.problems
  assert (note.kind, note.path) == ('no_labels', str(root / 'masks'))
  # What training says is the same: it has no label either.
  with pytest.raises(UserError, match="masks: .*rename it 'labels'"):
    splits.make_splits(opened, config.data, 0)
  rename(root, masks='labels')
  assert folder.load(root, 1).problems == ()


def test_training_says_why_there_is_no_label(write_folder, config):
  root = write_folder(n=3)
  for path in (root / 'labels').iterdir():
    path.rename(path.with_name(f'{path.stem}_mask.png'))
  opened = folder.load(root, 1)
  advice = r"000_mask.png: .*rename it '000.png', as its image \(and 2 more\)"
  with pytest.raises(UserError, match=advice):
    splits.make_splits(opened, config.data, 0)


def test_labels_that_are_no_masks(write_folder):
  root = write_folder(n=2)
  for path in list((root / 'labels').iterdir()):
    path.with_suffix('.json').write_text('{"shapes": []}')
    path.unlink()
  (problem,) = folder.load(root, 1).problems
  assert (problem.severity, problem.kind) == ('refuse', 'no_labels')
  assert '000.json' in problem.message and 'indexed PNG' in problem.message


@pytest.mark.parametrize('end', ['_mask', '-seg', '_GT', '_superpixels'])
def test_masks_among_the_images(tmp_path, end):
  for name in ('a', 'b', f'a{end}', 'mask', 'x_mask'):
    Image.new('L', (32, 32)).save(tmp_path / f'{name}.png')
  (problem,) = folder.load(tmp_path, 1).problems
  assert (problem.severity, problem.kind) == ('refuse', 'masks_in_images')
  assert problem.message.startswith('1 files are named') and (
    f'a{end} beside a' in problem.message
  )


def test_series_in_folders_of_their_own(tmp_path):
  (tmp_path / 'images' / 'anna' / 'SE01').mkdir(parents=True)
  with pytest.raises(DataError, match=r'anna holds folders only \(SE01\)'):
    folder.load(tmp_path, 1)


def test_volumes_that_are_not_read(write_folder):
  root = write_folder(n=2, unlabelled=1)
  (root / 'labels' / '002.seg.nrrd').write_bytes(b'NRRD0004')
  (problem,) = folder.load(root, 1).problems
  assert (
    problem.severity == 'refuse' and 'to NIfTI (.nii.gz)' in problem.message
  )


def test_a_label_image_of_a_volume(write_folder):
  root = write_folder(n=2)
  (root / 'images' / '001.png').unlink()
  (root / 'images' / '001.nii.gz').write_bytes(b'')
  found = [p for p in folder.load(root, 1).problems if p.kind == 'no_image']
  assert [p.path for p in found] == [str(root / 'labels' / '001.png')]
  assert 'image 001.nii.gz are not both volumes' in found[0].message
