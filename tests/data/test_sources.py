import numpy as np
import pytest
from PIL import Image

from jaxseg.data import images, sources
from jaxseg.errors import UserError


def load(root, channels=1):
  return sources.load(f'folder:{root}', channels)


def test_folder(write_folder):
  source = load(write_folder(n=3, unlabelled=2))
  assert source.splits == {
    'all': ('000', '001', '002'),
    'unlabelled': ('003', '004'),
  }
  assert source.class_names == ('background', 'class 1')
  label = source.label('001')
  np.testing.assert_array_equal(source.image('001')[..., 0], label * 100 + 1)
  assert source.label('004') is None
  assert source.has_label('001') and not source.has_label('004')
  assert source.path('004').endswith('images/004.png')


def test_folder_with_splits_and_meta(write_folder):
  source = load(
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
  assert source.splits == {'train': ('000', '001'), 'ood_x': ('002',)}
  assert source.budgets == {'1': ('001',)}
  assert source.groups == {'000': 'anna', '001': '7'}
  assert source.name == 'lungs' and source.class_names == ('bg', 'lung')
  np.testing.assert_array_equal(source.palette, [[1, 2, 3], [4, 5, 6]])
  assert source.image('000').shape == (32, 32, 3)


def test_void_id_becomes_255(write_folder):
  root = write_folder(num_classes=3, meta={'classes': ['a', 'b'], 'void': 2})
  assert set(np.unique(load(root).label('000'))) == {0, 1, 255}


def test_classes_are_inferred_from_labels(write_folder):
  root = write_folder(num_classes=4)
  void = np.full((32, 32), 255, np.uint8)
  Image.fromarray(void).save(root / 'labels/000.png')
  source = load(root)
  assert source.class_names == ('background', 'class 1', 'class 2', 'class 3')
  np.testing.assert_array_equal(source.palette, sources.voc_palette(4))


def test_palette_of_the_label_files(write_folder):
  root = write_folder(n=2)
  palette = np.array([[5, 6, 7], [80, 90, 100]], np.uint8)
  for path in (root / 'labels').iterdir():
    images.write_label(path, images.read_label(path), palette)
  np.testing.assert_array_equal(load(root).palette, palette)


def test_voc_palette():
  np.testing.assert_array_equal(
    sources.voc_palette(256)[[0, 1, 2, 3, 8, 15, 20, 255]],
    [
      [0, 0, 0],  # background
      [128, 0, 0],  # aeroplane
      [0, 128, 0],  # bicycle
      [128, 128, 0],  # bird
      [64, 0, 0],  # cat
      [192, 128, 128],  # person
      [0, 64, 128],  # TV
      [224, 224, 192],  # void
    ],
  )


def test_hidden_files_are_no_images(write_folder):
  root = write_folder(n=2)
  (root / 'images/._000.png').write_bytes(b'AppleDouble')
  (root / 'images/Thumbs.db').write_bytes(b'x')
  assert load(root).splits == {'all': ('000', '001')}


@pytest.mark.parametrize('spec', ['', 'mnist', 'folder', 'folder:', 'tfds:x'])
def test_unknown_source(spec):
  with pytest.raises(UserError, match="'digits', 'avatars', 'folder:PATH'"):
    sources.load(spec, 1)


def test_channels():
  with pytest.raises(UserError, match='config.data.channels is 2'):
    sources.load('digits', 2)


def test_missing_and_empty_folders(tmp_path):
  with pytest.raises(UserError, match='folder is missing'):
    load(tmp_path / 'nowhere')
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='not a folder'):
    load(tmp_path / 'file')
  root = tmp_path / 'set'
  root.mkdir()
  with pytest.raises(UserError, match="no folder 'images'.*holds nothing"):
    load(root)
  (root / 'images').mkdir()
  with pytest.raises(UserError, match='no images in it.*holds nothing'):
    load(root)
  (root / 'images/scan.dcm').touch()
  with pytest.raises(UserError, match='holds scan.dcm'):
    load(root)


def test_two_files_of_one_name(write_folder):
  root = write_folder(n=2)
  Image.new('L', (32, 32)).save(root / 'images/000.jpg')
  with pytest.raises(UserError, match='same stem'):
    load(root)


def test_labels_without_image(write_folder):
  root = write_folder(n=2)
  Image.new('L', (32, 32)).save(root / 'labels/000_mask.png')
  with pytest.raises(UserError, match='1 label files.*000_mask.png'):
    load(root)


@pytest.mark.parametrize(
  'splits, sentence',
  [
    ({'train': ['000', 'x']}, 'names 1 images that are not in.*x'),
    ({'train': '000'}, 'expected a list'),
    ({'train': [0]}, 'expected a list'),
    ({'train': ['000', '000']}, '000 more than once'),
    ({'train': ['000'], 'budgets': {'2': ['000']}}, 'budget .2. lists 1'),
    ({'train': ['000'], 'budgets': {'1': ['y']}}, 'not in'),
    ({'train': ['000'], 'budgets': [1]}, 'must be objects'),
    (['000'], 'holds a list'),
  ],
)
def test_bad_splits_json(write_folder, splits, sentence):
  with pytest.raises(UserError, match=sentence):
    load(write_folder(splits=splits))


@pytest.mark.parametrize(
  'meta, sentence',
  [
    ({'classes': ['one']}, 'expected a list of 2 to 255'),
    ({'classes': {'a': 0}}, 'expected a list of 2 to 255'),
    ({'classes': ['a', 'b'], 'void': 0}, "id of class 'a'"),
    ({'classes': ['a', 'b'], 'void': 'x'}, 'expected an id'),
    ({'classes': ['a', 'b'], 'palette': [[0, 0, 0]]}, 'expected 2 colours'),
    ({'classes': ['a', 'b'], 'palette': [[0, 0, 300]] * 2}, 'colours'),
  ],
)
def test_bad_meta_json(write_folder, meta, sentence):
  with pytest.raises(UserError, match=sentence):
    load(write_folder(meta=meta))


def test_damaged_json(write_folder):
  root = write_folder(n=2)
  (root / 'splits.json').write_text('{"train": [')
  with pytest.raises(UserError, match='splits.json.*not readable JSON'):
    load(root)
