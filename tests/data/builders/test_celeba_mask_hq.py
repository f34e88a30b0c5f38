"""CelebAMask-HQ from a miniature of the official layout."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.builders import celeba_mask_hq
from jaxseg.errors import DataError, UserError

SIDE = 64  # of the miniature's masks; its images are twice that
FACES = [0, 1, 27999, 28000, 28001, 29499, 29500, 29999]
# Numbers in CelebA, from 0, on both sides of the official limits.
NUMBERS = [5, 162770, 162771, 182637, 182638, 9, 202598, 7]
PERSONS = [11, 12, 13, 14, 15, 16, 17, 11]


def image_of(i):
  ramp = np.linspace(0, 250, 2 * SIDE)
  rows = np.tile(ramp[:, None], (1, 2 * SIDE))
  # Averaging gives another colour than taking every other pixel.
  checks = np.indices(rows.shape).sum(0) % 2 * 40 + 20 * (i % 10)
  return np.stack([rows, rows.T, checks], -1).astype(np.uint8)


def save_mask(folder, i, part, mask):
  """As published: RGB, black and white."""
  folder = folder / 'CelebAMask-HQ-mask-anno' / str(i // 2000)
  folder.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray((mask * 255).astype(np.uint8)).convert('RGB')
  image.save(folder / f'{i:05d}_{part}.png')


def square(top, left, size):
  mask = np.zeros((SIDE, SIDE), bool)
  mask[top : top + size, left : left + size] = True
  return mask


@pytest.fixture
def folder(tmp_path):
  """manual/CelebAMask-HQ with eight faces."""
  folder = tmp_path / 'manual' / 'CelebAMask-HQ'
  (folder / 'CelebA-HQ-img').mkdir(parents=True)
  for i in FACES:
    path = folder / 'CelebA-HQ-img' / f'{i}.jpg'
    Image.fromarray(image_of(i)).save(path, quality=100, subsampling=0)
    save_mask(folder, i, 'skin', square(10, 10, 40))
    save_mask(folder, i, 'l_eye', square(20, 20, 5))
    save_mask(folder, i, 'hair', square(5, 10, 10))  # over the skin
    save_mask(folder, i, 'cloth', square(55, 0, 9))
  return folder


@pytest.fixture
def mapping(folder):
  rows = ['idx   orig_idx   orig_file']
  rows += [
    f'{i}  {n}  {n + 1:06d}.jpg' for i, n in zip(FACES, NUMBERS, strict=True)
  ]
  path = folder / 'CelebA-HQ-to-CelebA-mapping.txt'
  path.write_text('\n'.join(rows) + '\n')
  return path


@pytest.fixture
def identities(folder, mapping):
  rows = zip(NUMBERS, PERSONS, strict=True)
  (folder / 'identity_CelebA.txt').write_text(
    '\n'.join(f'{n + 1:06d}.jpg {person}' for n, person in rows)
  )


def builder(config='classes8'):
  return prepared.find_builder(f'celeba_mask_hq:{config}')


def ids_of(splits):
  return {
    name: [int(r.id) for r in records] for name, records in splits.items()
  }


def test_the_authors_split(folder):
  splits = builder().scan(folder.parent)
  assert ids_of(splits) == {
    'unlabelled': [0, 1, 27999],
    'train': [28000, 28001, 29499],
    'test': [29500, 29999],
  }
  assert all(r.label is None for r in splits['unlabelled'])
  assert splits['train'][0].id == '28000'


def test_the_split_of_celeba(folder, mapping):
  splits = builder('classes8_celeba').scan(folder.parent)
  assert ids_of(splits) == {
    'train': [0, 1, 29499, 29999],
    'val': [27999, 28000],
    'test': [28001, 29500],
  }
  assert all(r.label for records in splits.values() for r in records)


def test_counts_of_the_complete_set():
  for config in celeba_mask_hq.CelebAMaskHQ.BUILDER_CONFIGS:
    assert sum(config.counts.values()) == 30000


def test_later_parts_lie_over_earlier_ones(folder):
  record = builder('parts19').scan(folder.parent)['train'][0]
  label = record.label()
  expected = np.zeros((SIDE, SIDE), np.uint8)
  for part, mask in (
    (1, square(10, 10, 40)),
    (4, square(20, 20, 5)),
    (13, square(5, 10, 10)),
    (18, square(55, 0, 9)),
  ):
    expected[mask] = part
  np.testing.assert_array_equal(label, expected)
  eight = builder('classes8').scan(folder.parent)['train'][0].label()
  lookup = np.array([0, 1, 2, 0, 3, 3, 4, 4, 5, 5, 6, 6, 6, 7] + 5 * [0])
  np.testing.assert_array_equal(eight, lookup[expected])


def test_wrong_counts_are_refused_naming_both_numbers(folder):
  with pytest.raises(UserError, match=r'3 in .unlabelled. instead of 28000'):
    builder().check(folder.parent, allow_partial=False)
  counts = builder().check(folder.parent, allow_partial=True)
  assert counts == {'unlabelled': 3, 'train': 3, 'test': 2}


def test_a_labelled_face_without_masks_lowers_the_count(folder):
  for path in folder.glob('*/*/28000_*.png'):
    path.unlink()
  assert ids_of(builder().scan(folder.parent))['train'] == [28001, 29499]


def test_a_missing_folder_is_named_with_the_instructions(folder):
  (folder / 'CelebAMask-HQ-mask-anno').rename(folder / 'masks')
  with pytest.raises(UserError, match=r'mask-anno: .*CelebAMask-HQ\.zip'):
    builder().scan(folder.parent)
  with pytest.raises(UserError, match=r'mapping\.txt: '):
    (folder / 'masks').rename(folder / 'CelebAMask-HQ-mask-anno')
    builder('parts19_celeba').scan(folder.parent)


def test_an_unknown_part_and_a_mask_of_another_size_are_refused(folder):
  save_mask(folder, 28000, 'cloth', np.ones((9, 9), bool))
  with pytest.raises(DataError, match=r'28000_cloth\.png: .* 9x9 .* 64x64'):
    builder().scan(folder.parent)['train'][0].label()
  save_mask(folder, 28000, 'beard', square(30, 20, 9))
  with pytest.raises(DataError, match=r"28000_beard\.png: .*'beard'.*hair"):
    builder().scan(folder.parent)


def test_persons_on_both_sides_are_reported_and_not_moved(
  folder, identities, capsys
):
  before = ids_of(builder().scan(folder.parent))
  builder().check(folder.parent, allow_partial=True)
  said = capsys.readouterr().err
  assert '1 of 2 test images' in said and '29999, person-11' in said
  splits = builder().scan(folder.parent)
  assert ids_of(splits) == before
  assert splits['test'][1].group == splits['unlabelled'][0].group
  builder('classes8_celeba').check(folder.parent, allow_partial=True)
  assert capsys.readouterr().err == ''


def test_a_damaged_table_names_the_line(folder, mapping):
  mapping.write_text('idx orig_idx orig_file\n0 119613 119614.jpg\n1 99')
  with pytest.raises(DataError, match=r"mapping\.txt: .*'1 99'.*3 columns"):
    builder('classes8_celeba').scan(folder.parent)


def test_images_are_halved_and_written_as_jpeg(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(celeba_mask_hq, 'SIDE', SIDE)
  data_dir = str(tmp_path / 'data')
  prepared.prepare(
    'celeba_mask_hq', folder.parent, data_dir, allow_partial=True
  )
  source = prepared.open_prepared('celeba_mask_hq', 3, data_dir=data_dir)
  for i in FACES:
    whole = image_of(i).astype(float)
    halved = whole.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3))
    image = source.image(f'{i:05d}')
    assert image.shape == (SIDE, SIDE, 3)
    assert np.abs(image - halved).max() < 8  # JPEG twice
  for records in builder().scan(folder.parent).values():
    for record in records:
      if record.label:
        np.testing.assert_array_equal(source.label(record.id), record.label())
      else:
        assert source.label(record.id) is None
  content = celeba_mask_hq.read_jpeg(folder / 'CelebA-HQ-img' / '0.jpg')
  assert content[:2] == b'\xff\xd8' and len(content) < 4000


def test_published_labels_are_rebuilt_exactly(shared, tmp_path):
  faces = shared / 'data' / 'faces'
  if not faces.is_dir():
    pytest.skip(f'no faces in {faces}')
  meta = json.loads((faces / 'meta.json').read_text())
  assert tuple(meta['labels19']) == celeba_mask_hq.NAMES19
  names = sorted(p.stem for p in (faces / 'labels19').glob('*.png'))[:4]
  folder = tmp_path / 'CelebAMask-HQ'
  (folder / 'CelebA-HQ-img').mkdir(parents=True)
  originals = {}
  for i, name in zip((28000, 28001, 29500, 29501), names, strict=True):
    originals[f'{i}'] = name
    label = np.asarray(Image.open(faces / 'labels19' / f'{name}.png'))
    for part in np.unique(label[label > 0]):
      save_mask(folder, i, meta['labels19'][part], label == part)
    image = Image.open(next((faces / 'images').glob(f'{name}.*')))
    image.convert('RGB').save(
      folder / 'CelebA-HQ-img' / f'{i}.jpg', quality=100, subsampling=0
    )
  spec, data_dir = 'celeba_mask_hq:parts19', str(tmp_path / 'data')
  prepared.prepare(spec, tmp_path, data_dir, allow_partial=True)
  source = prepared.open_prepared(spec, 3, data_dir=data_dir)
  six = np.array(meta['map19'], np.uint8)
  for id_, name in originals.items():
    label = np.asarray(Image.open(faces / 'labels19' / f'{name}.png'))
    np.testing.assert_array_equal(source.label(id_), label)
    common = np.asarray(Image.open(faces / 'labels' / f'{name}.png'))
    np.testing.assert_array_equal(six[source.label(id_)], common)
    image = np.asarray(
      Image.open(next((faces / 'images').glob(f'{name}.*'))).convert('RGB')
    )
    difference = source.image(id_).astype(int) - image
    assert source.image(id_).shape == image.shape
    assert np.abs(difference).mean() < 3
