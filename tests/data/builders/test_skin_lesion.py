"""The skin lesion builder on miniatures of the archives."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.errors import UserError

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
MASK = np.array([[0, 0, 1, 1, 0, 0]] * 4, np.uint8)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def write_isic(root, part, name, image=PICTURE, mask=MASK):
  images = root / f'ISIC2018_Task1-2_{part}_Input'
  masks = root / f'ISIC2018_Task1_{part}_GroundTruth'
  save(images / f'{name}.jpg', image)
  save(masks / f'{name}_segmentation.png', 255 * mask)


def write_ph2(root, name, image=PICTURE, mask=MASK):
  folder = root / 'PH2Dataset' / 'PH2 Dataset images' / name
  save(folder / f'{name}_Dermoscopic_Image/{name}.bmp', image)
  save(folder / f'{name}_lesion/{name}_lesion.bmp', mask.astype(bool))


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'manual'
  write_isic(root, 'Training', 'ISIC_0000000')
  write_isic(root, 'Training', 'ISIC_0000001', mask=1 - MASK)
  (root / 'ISIC2018_Task1-2_Training_Input/LICENSE.txt').write_text('CC')
  return root


def prepare(root):
  data_dir = str(root.parent / 'sets')
  prepared.prepare('skin_lesion', root, data_dir, allow_partial=True)
  return prepared.open_prepared('skin_lesion', 3, data_dir=data_dir)


def test_four_sets(root):
  write_isic(root, 'Validation', 'ISIC_0012255')
  write_isic(root, 'Test', 'ISIC_0012169')
  write_ph2(root, 'IMD002')
  for number, kind, folder, value in (
    (1, 'melanoma', 'dermIS', 1),
    (1, 'melanoma', 'dermquest', 255),
    (2, 'notmelanoma', 'dermis', 1),
    (2, 'notmelanoma', 'dermquest', 255),
  ):
    data = root / f'Skin Image Data Set-{number}/skin_data' / kind / folder
    save(data / 'SS 1_orig.jpg', PICTURE)
    save(data / 'SS 1_contour.png', value * MASK)
  source = prepare(root)
  assert source.splits == {
    'train': ('ISIC_0000000', 'ISIC_0000001'),
    'val': ('ISIC_0012255',),
    'test': ('ISIC_0012169',),
    'ood_ph2': ('IMD002',),
    'ood_dermis': ('dermis_melanoma_SS_1', 'dermis_notmelanoma_SS_1'),
    'ood_dermquest': ('dermquest_melanoma_SS_1', 'dermquest_notmelanoma_SS_1'),
  }
  for ids in source.splits.values():
    for id_ in ids:
      expected = 1 - MASK if id_ == 'ISIC_0000001' else MASK
      np.testing.assert_array_equal(source.label(id_), expected)
  np.testing.assert_array_equal(source.image('IMD002'), PICTURE)
  folder = root / 'ISIC2018_Task1-2_Training_Input'
  with Image.open(folder / 'ISIC_0000000.jpg') as image:
    np.testing.assert_array_equal(source.image('ISIC_0000000'), image)


def test_images_whose_masks_are_not_there_are_not_scored(root):
  write_isic(root, 'Test', 'ISIC_0012169')
  masks = root / 'ISIC2018_Task1_Test_GroundTruth'
  masks.rename(root / 'later')
  builder = prepared.find_builder('skin_lesion')
  assert builder.check(root, allow_partial=True) == {'train': 2}


def test_counts(root, monkeypatch):
  builder = prepared.find_builder('skin_lesion')
  with pytest.raises(UserError, match="2 in 'train' instead of 2594"):
    builder.check(root, allow_partial=False)
  monkeypatch.setitem(builder.builder_config.counts, 'train', 2)
  assert builder.check(root, allow_partial=False) == {'train': 2}
  write_ph2(root, 'IMD002')
  with pytest.raises(UserError, match="1 examples in 'ood_ph2', not 200"):
    builder.check(root, allow_partial=False)


@pytest.mark.parametrize(
  'gone',
  [
    'ISIC2018_Task1-2_Training_Input',
    'ISIC2018_Task1_Training_GroundTruth',
    'ISIC2018_Task1_Training_GroundTruth/ISIC_0000001_segmentation.png',
  ],
)
def test_missing_parts_are_named(root, gone):
  (root / gone).rename(root / 'elsewhere')
  builder = prepared.find_builder('skin_lesion')
  with pytest.raises(UserError, match=f'{gone}: .*challenge.isic-archive.com'):
    builder.check(root, allow_partial=True)


def test_damaged_masks_are_named(root):
  masks = root / 'ISIC2018_Task1_Training_GroundTruth'
  (masks / 'ISIC_0000001_segmentation.png').write_bytes(b'\x89PNG\r\n\x1a\n')
  with pytest.raises(UserError, match='ISIC_0000001_segmentation.png: .*again'):
    prepare(root)


def test_masks_of_another_size_are_named(root):
  write_isic(root, 'Training', 'ISIC_0000002', mask=MASK[:2])
  with pytest.raises(UserError, match='ISIC_0000002: .* 6x2 .* 6x4'):
    prepare(root)


def test_real_pictures(root, shared):
  """ISIC and PH2, laid out as their archives are."""
  real = shared / 'data' / 'skin_lesion'
  expected = {}
  for name in ('ISIC_0000009', 'ISIC_0016072', 'ph2_IMD003', 'ph2_IMD009'):
    with Image.open(real / f'images/{name}.jpg') as image:
      picture = np.asarray(image)
    label = np.asarray(Image.open(real / f'labels/{name}.png'))
    expected[name.removeprefix('ph2_')] = picture, label
    if name.startswith('ph2'):
      write_ph2(root, name.removeprefix('ph2_'), picture, label)
      continue
    write_isic(root, 'Training', name, picture, label)
    copy = root / f'ISIC2018_Task1-2_Training_Input/{name}.jpg'
    copy.write_bytes((real / f'images/{name}.jpg').read_bytes())
  source = prepare(root)
  assert source.splits['ood_ph2'] == ('IMD003', 'IMD009')
  for name, (picture, label) in expected.items():
    np.testing.assert_array_equal(source.image(name), picture)
    np.testing.assert_array_equal(source.label(name), label)
    assert 0 < label.mean() < 1
