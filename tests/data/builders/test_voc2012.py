"""VOC 2012, alone and with SBD, from miniatures of the official layout."""

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.builders import voc2012
from jaxseg.data.formats import images
from jaxseg.data.source import voc_palette
from jaxseg.errors import DataError, UserError

TRAIN = ['2007_000032', '2007_000039', '2008_000008']
VAL = ['2007_000033', '2009_000012']
SBD = ['2008_000002', '2008_000003']
REST = ['2010_000001', '2011_000002']
SIDES = (12, 9)  # width, height


def label_of(id_, void=True):
  rng = np.random.default_rng(int(id_.replace('_', '')))
  label = rng.integers(0, 21, SIDES[::-1], np.uint8)
  label[0] = 255 if void else 3
  return label


def write_png(path, label):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(label)
  colours = np.zeros((256, 3), np.uint8)
  colours[:21] = voc_palette(21)
  colours[255] = (224, 224, 192)
  image.putpalette(colours.tobytes())
  image.save(path)


@pytest.fixture
def root(tmp_path):
  """--manual_dir with the official tree of VOC 2012."""
  folder = tmp_path / 'manual' / 'VOCdevkit' / 'VOC2012'
  lists = folder / 'ImageSets' / 'Segmentation'
  (folder / 'JPEGImages').mkdir(parents=True)
  lists.mkdir(parents=True)
  (lists / 'train.txt').write_text('\n'.join(TRAIN) + '\n')
  (lists / 'val.txt').write_text('\n'.join(VAL))  # no newline at the end
  for i, id_ in enumerate(TRAIN + VAL + SBD + REST):
    image = Image.new('RGB', SIDES, (20 * i, 100, 200 - 20 * i))
    image.save(folder / 'JPEGImages' / f'{id_}.jpg')
  for id_ in TRAIN + VAL:
    write_png(folder / 'SegmentationClass' / f'{id_}.png', label_of(id_))
  return tmp_path / 'manual'


@pytest.fixture
def convert(root):
  """Adds SegmentationClassAug; VOC's own images are in it, but different."""
  for id_ in TRAIN + VAL + SBD:
    path = root / 'VOCdevkit/VOC2012/SegmentationClassAug' / f'{id_}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(label_of(id_, void=False)).save(path)


def builder(config):
  return prepared.find_builder(f'voc2012:{config}')


def ids_of(splits):
  return {name: [r.id for r in records] for name, records in splits.items()}


def test_official_lists_are_respected_and_lose_no_line(root):
  splits = ids_of(builder('voc2012').scan(root))
  assert splits == {'train': TRAIN, 'test': VAL, 'unlabelled': SBD + REST}


def test_counts_of_the_complete_set_are_those_of_the_archives():
  configs = {c.name: c for c in voc2012.VOC2012.BUILDER_CONFIGS}
  assert sum(configs['voc2012'].counts.values()) == 17125
  semi = configs['semi'].counts
  assert configs['aug'].counts['train'] == semi['train'] + semi['unlabelled']
  assert len(voc2012.CLASS_NAMES) == 21


def test_wrong_counts_are_refused_naming_both_numbers(root):
  with pytest.raises(UserError, match=r'3 in .train. instead of 1464'):
    builder('voc2012').check(root, allow_partial=False)
  counts = builder('voc2012').check(root, allow_partial=True)
  assert counts == {'train': 3, 'test': 2, 'unlabelled': 4}


def test_a_missing_label_lowers_the_count(root):
  (root / f'VOCdevkit/VOC2012/SegmentationClass/{TRAIN[0]}.png').unlink()
  assert ids_of(builder('voc2012').scan(root))['train'] == TRAIN[1:]


def test_a_missing_folder_is_named_with_the_instructions(root, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=r'JPEGImages.*VOCtrainval_11-May-2012'):
    builder('voc2012').scan(tmp_path / 'empty')
  with pytest.raises(UserError, match=r'dataset/cls.*benchmark\.tgz'):
    builder('aug').scan(root)


def test_written_and_read_back(root, tmp_path):
  data_dir = str(tmp_path / 'data')
  prepared.prepare('voc2012', root, data_dir, allow_partial=True)
  source = prepared.open_prepared('voc2012', 3, data_dir=data_dir)
  assert source.splits['train'] == tuple(TRAIN)
  for id_ in TRAIN + VAL:
    path = root / f'VOCdevkit/VOC2012/JPEGImages/{id_}.jpg'
    np.testing.assert_array_equal(source.label(id_), label_of(id_))
    np.testing.assert_array_equal(source.image(id_), images.read_image(path, 3))
  assert source.label(REST[0]) is None
  np.testing.assert_array_equal(source.palette, voc_palette(21))


def test_aug_takes_sbd_but_keeps_the_labels_and_val_of_voc(root, convert):
  splits = builder('aug').scan(root)
  assert ids_of(splits) == {'train': TRAIN + SBD, 'test': VAL}
  labels = {r.id: r.label() for part in splits.values() for r in part}
  for id_ in TRAIN + VAL:
    np.testing.assert_array_equal(labels[id_], label_of(id_))
  for id_ in SBD:
    np.testing.assert_array_equal(labels[id_], label_of(id_, void=False))


def test_the_augmented_list_decides_and_keeps_its_first_line(root, convert):
  path = root / 'VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt'
  lines = [
    f'/JPEGImages/{id_}.jpg /SegmentationClassAug/{id_}.png'
    for id_ in [SBD[1], *TRAIN]
  ]
  path.write_text('\r\n'.join(lines))
  assert ids_of(builder('aug').scan(root))['train'] == [*TRAIN, SBD[1]]


def test_semi_has_the_images_of_sbd_without_labels(root, convert):
  splits = builder('semi').scan(root)
  assert ids_of(splits)['unlabelled'] == SBD
  assert all(r.label is None for r in splits['unlabelled'])


def test_sbd_from_its_mat_files(root):
  cls = root / 'benchmark_RELEASE' / 'dataset' / 'cls'
  cls.mkdir(parents=True)
  for id_ in [*SBD, TRAIN[0], VAL[0]]:
    label = label_of(id_, void=False)
    boundaries = np.empty((20, 1), object)  # MATLAB cells, as published
    for i in range(20):
      boundaries[i, 0] = scipy.sparse.csc_matrix(label == i, dtype=float)
    content = {
      'Boundaries': boundaries,
      'Segmentation': label,
      'CategoriesPresent': np.unique(label),
    }
    scipy.io.savemat(cls / f'{id_}.mat', {'GTcls': content})
  splits = builder('aug').scan(root)
  assert ids_of(splits) == {'train': TRAIN + SBD, 'test': VAL}
  np.testing.assert_array_equal(
    splits['train'][-1].label(), label_of(SBD[-1], void=False)
  )
  (cls / f'{SBD[0]}.mat').write_bytes(b'MATLAB 5.0 MAT-file, cut off')
  with pytest.raises(DataError, match=rf'{SBD[0]}\.mat: .*GTcls'):
    splits['train'][3].label()
