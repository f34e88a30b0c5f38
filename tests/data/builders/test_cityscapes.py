"""Cityscapes from a miniature of the official layout."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.builders import cityscapes
from jaxseg.errors import DataError, UserError

TRAIN = [
  'aachen_000000_000019',
  'aachen_000001_000019',
  'hanover_000000_000164',
  'hanover_000000_000381',
]
VAL = ['frankfurt_000000_000294', 'munster_000173_000019']
TEST = ['berlin_000000_000019']
EXTRA = ['troisdorf_000000_000073', 'augsburg_000000_000001']
# Every id of the official table, void for those that are not evaluated.
IDS = np.arange(36, dtype=np.uint8).reshape(4, 9) % 34


def image_of(id_):
  rng = np.random.default_rng(sum(map(ord, id_)))
  return rng.integers(0, 256, (4, 9, 3), np.uint8)


def write(root, part, id_, labelled=True):
  city = id_.partition('_')[0]
  folder = root / 'leftImg8bit' / part / city
  folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image_of(id_)).save(folder / f'{id_}_leftImg8bit.png')
  if labelled:
    folder = root / 'gtFine' / part / city
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ('labelIds', 'instanceIds', 'color'):
      Image.fromarray(IDS).save(folder / f'{id_}_gtFine_{kind}.png')
    (folder / f'{id_}_gtFine_polygons.json').write_text('{}')


@pytest.fixture
def root(tmp_path):
  """--manual_dir with the three archives unpacked."""
  for part, ids in (('train', TRAIN), ('val', VAL), ('test', TEST)):
    for id_ in ids:
      write(tmp_path / 'manual', part, id_)
  for id_ in EXTRA:
    write(tmp_path / 'manual', 'train_extra', id_, labelled=False)
  return tmp_path / 'manual'


def builder(config='fine'):
  return prepared.find_builder(f'cityscapes:{config}')


def ids_of(splits):
  return {name: [r.id for r in records] for name, records in splits.items()}


def test_official_val_is_test_and_official_test_is_left_out(root):
  assert ids_of(builder().scan(root)) == {'train': TRAIN, 'test': VAL}


def test_frames_of_one_sequence_are_one_group(root):
  groups = [r.group for r in builder().scan(root)['train']]
  assert groups == [
    'aachen_000000',
    'aachen_000001',
    'hanover_000000',
    'hanover_000000',
  ]


def test_train_extra_is_unlabelled_and_without_its_damaged_image(root):
  splits = builder('extra').scan(root)
  assert ids_of(splits)['unlabelled_extra'] == EXTRA[1:]
  assert splits['unlabelled_extra'][0].label is None
  assert splits['unlabelled_extra'][0].group == 'augsburg_000000'


def test_ids_become_the_19_classes_in_the_official_order(root):
  label = builder().scan(root)['train'][0].label()
  # trainId of ids 0 to 33 in cityscapesscripts/helpers/labels.py.
  v = 255
  expected = [v, v, v, v, v, v, v, 0, 1, v, v, 2, 3, 4, v, v, v, 5, v, 6, 7]
  expected += [8, 9, 10, 11, 12, 13, 14, 15, v, v, 16, 17, 18]
  np.testing.assert_array_equal(label, np.array(expected, np.uint8)[IDS])
  names = builder().builder_config.class_names
  assert (names[0], names[13], names[18]) == ('road', 'car', 'bicycle')


def test_labels_that_are_train_ids_are_refused(root):
  path = root / f'gtFine/train/aachen/{TRAIN[0]}_gtFine_labelIds.png'
  Image.fromarray(np.where(IDS > 18, 255, IDS).astype(np.uint8)).save(path)
  with pytest.raises(DataError, match=rf'{path}.* 255, expected .* 0 to 33'):
    builder().scan(root)['train'][0].label()


def test_wrong_counts_are_refused_naming_both_numbers(root):
  with pytest.raises(UserError, match=r'4 in .train. instead of 2975'):
    builder().check(root, allow_partial=False)
  with pytest.raises(
    UserError, match=r'1 in .unlabelled_extra. instead of 199'
  ):
    builder('extra').check(root, allow_partial=False)
  counts = builder('extra').check(root, allow_partial=True)
  assert counts == {'train': 4, 'test': 2, 'unlabelled_extra': 1}


def test_a_missing_folder_is_named_with_the_instructions(root):
  (root / 'gtFine').rename(root / 'gtCoarse')
  with pytest.raises(UserError, match=r'gtFine/train: .*gtFine_trainvaltest'):
    builder().scan(root)


def test_written_and_read_back(root, tmp_path):
  data_dir = str(tmp_path / 'data')
  prepared.prepare('cityscapes:extra', root, data_dir, allow_partial=True)
  source = prepared.open_prepared('cityscapes:extra', 3, data_dir=data_dir)
  for id_ in TRAIN + VAL:
    np.testing.assert_array_equal(source.image(id_), image_of(id_))
    np.testing.assert_array_equal(
      source.label(id_),
      cityscapes.read_label_ids(
        next(root.glob(f'gtFine/*/*/{id_}_gtFine_labelIds.png'))
      ),
    )
  assert source.groups[TRAIN[3]] == 'hanover_000000'
  assert source.splits['unlabelled_extra'] == (EXTRA[1],)
  assert source.palette[13].tolist() == [0, 0, 142]
