"""The chest X-ray builder on miniatures of the archives."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.errors import UserError

SIDE = 2048
GREYS = np.array([[0, 255], [255, 0]], np.uint8)


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def bars(*columns):
  """A mask of 0 and 255, 1024x1024, with some sixteenths of the width on."""
  mask = np.zeros((SIDE // 2, 16), np.uint8)
  mask[256:768, columns] = 255
  return mask.repeat(64, 1)


def write_jsrt(root, *names):
  """Writes images and masks; columns 3-4 right lung, 9-10 left, 7-9 heart."""
  images = root / 'All247images'
  images.mkdir(parents=True)
  ramp = np.linspace(0, 4095, SIDE).round().astype('>u2')
  for name in names:
    np.tile(ramp, (SIDE, 1)).tofile(images / f'{name}.IMG')
    fold = 'fold1' if int(name[-1]) % 2 else 'fold2'
    masks = root / 'scratch' / fold / 'masks'
    save(masks / f'right lung/{name}.gif', bars(3, 4))
    save(masks / f'left lung/{name}.gif', bars(9, 10))
    save(masks / f'heart/{name}.gif', bars(7, 8, 9))


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'manual'
  write_jsrt(root, 'JPCLN001', 'JPCNN002')
  return root


def prepare(root, spec='chest_xray', **options):
  data_dir = str(root.parent / 'sets')
  prepared.prepare(spec, root, data_dir, **options)
  return prepared.open_prepared(spec, 1, data_dir=data_dir)


def write_others(root):
  montgomery, shenzhen = root / 'MontgomerySet', root / 'ChinaSet_AllFiles'
  left, right = np.array([[1, 0], [0, 0]]), np.array([[0, 1], [0, 0]])
  save(montgomery / 'CXR_png/MCUCXR_0001_0.png', GREYS)
  for side, mask in (('left', left), ('right', right)):
    path = montgomery / f'ManualMask/{side}Mask/MCUCXR_0001_0.png'
    save(path, np.uint8(255 * mask))
  save(shenzhen / 'CXR_png/CHNCXR_0001_0.png', GREYS[..., None].repeat(3, -1))
  save(root / 'mask/CHNCXR_0001_0_mask.png', 255 - GREYS)
  save(shenzhen / 'CXR_png/CHNCXR_0025_1.png', GREYS)
  save(root / 'images_001/images/00000001_000.png', GREYS)
  save(root / 'images_002/images/00000001_001.png', 255 - GREYS)


def test_lungs_of_four_hospitals(root):
  write_others(root)
  source = prepare(root, allow_partial=True)
  assert source.splits == {
    'train': ('JPCLN001', 'JPCNN002'),
    'ood_montgomery': ('MCUCXR_0001_0',),
    'ood_shenzhen': ('CHNCXR_0001_0',),
    'unlabelled_shenzhen': ('CHNCXR_0025_1',),
    'unlabelled_nih': ('00000001_000', '00000001_001'),
  }
  assert source.groups['JPCLN001'] == 'JPCLN001'
  assert source.groups['00000001_001'] == source.groups['00000001_000']
  assert source.class_names == ('background', 'lung')
  lungs = bars(3, 4, 9, 10) // 255
  np.testing.assert_array_equal(source.label('JPCLN001'), lungs)
  # Two neighbours of the ramp are averaged, and what was dense becomes dark.
  ramp = np.linspace(0, 4095, SIDE).round().reshape(-1, 2).mean(-1)
  grey = np.round((4095 - ramp) / 4095 * 255)
  image = source.image('JPCLN001')[..., 0]
  np.testing.assert_array_equal(image, np.tile(grey, (SIDE // 2, 1)))
  np.testing.assert_array_equal(source.label('MCUCXR_0001_0'), [[1, 1], [0, 0]])
  np.testing.assert_array_equal(source.label('CHNCXR_0001_0'), [[1, 0], [0, 1]])
  for id_ in ('MCUCXR_0001_0', 'CHNCXR_0001_0', '00000001_000'):
    np.testing.assert_array_equal(source.image(id_)[..., 0], GREYS)
  assert not source.has_label('CHNCXR_0025_1')
  assert not source.has_label('00000001_000')


def test_organs_in_the_folds_of_the_benchmark(root):
  source = prepare(root, 'chest_xray:folds', allow_partial=True)
  assert source.splits == {'train': ('JPCLN001',), 'test': ('JPCNN002',)}
  row = source.label('JPCNN002')[512, ::64]
  expected = [0, 0, 0, 1, 1, 0, 0, 3, 3, 2, 2, 0, 0, 0, 0, 0]
  np.testing.assert_array_equal(row, expected)


def test_organs_leave_the_other_hospitals_masks_out(root):
  write_others(root)
  builder = prepared.find_builder('chest_xray:organs')
  names = set(builder.check(root, allow_partial=True))
  assert names == {'train', 'unlabelled_shenzhen', 'unlabelled_nih'}


def test_counts(root, monkeypatch):
  builder = prepared.find_builder('chest_xray')
  with pytest.raises(UserError, match="2 in 'train' instead of 247"):
    builder.check(root, allow_partial=False)
  monkeypatch.setitem(builder.builder_config.counts, 'train', 2)
  assert builder.check(root, allow_partial=False) == {'train': 2}
  write_others(root)
  expected = "1 examples in 'ood_montgomery', not 138; 1 .*, not 566;"
  with pytest.raises(UserError, match=expected):
    builder.check(root, allow_partial=False)


def test_missing_parts_are_named(root):
  builder = prepared.find_builder('chest_xray')
  mask = root / 'scratch/fold1/masks/left lung/JPCLN001.gif'
  mask.unlink()
  with pytest.raises(UserError, match='left lung/JPCLN001.gif: .*zenodo'):
    builder.scan(root)
  with pytest.raises(UserError, match='All247images: .*db.jsrt.or.jp'):
    builder.scan(root / 'nowhere')
  (root / 'scratch').rename(root / 'elsewhere')
  with pytest.raises(UserError, match="scratch: the folder of SCR's masks"):
    builder.scan(root)


@pytest.mark.parametrize(
  'raw, message',
  [
    (np.zeros(SIDE, '>u2'), '4096 bytes, expected 8388608'),
    (np.full(SIDE**2, 4095, '<u2'), 'up to 65295, expected at most 4095'),
  ],
)
def test_damaged_images_are_named(root, raw, message):
  raw.tofile(root / 'All247images/JPCLN001.IMG')
  with pytest.raises(UserError, match=f'JPCLN001.IMG: .*{message}'):
    prepare(root, allow_partial=True)
  assert not prepared.is_prepared('chest_xray', str(root.parent / 'sets'))


def test_real_pictures(root, shared):
  """Montgomery and Shenzhen, laid out as their archives are."""
  real = shared / 'data' / 'cxr_lungs'
  names = ['MCUCXR_0001_0', 'MCUCXR_0104_1', 'CHNCXR_0001_0', 'CHNCXR_0327_1']
  expected = {}
  for name in names:
    hospital = 'montgomery' if name.startswith('MCU') else 'shenzhen'
    image = np.asarray(Image.open(real / f'images/{hospital}_{name}.png'))
    label = np.asarray(Image.open(real / f'labels/{hospital}_{name}.png'))
    expected[name] = image, label
    if hospital == 'shenzhen':
      save(root / f'ChinaSet_AllFiles/CXR_png/{name}.png', image)
      save(root / f'mask/{name}_mask.png', 255 * label)
      continue
    folder = root / 'MontgomerySet'
    save(folder / f'CXR_png/{name}.png', image)
    half = label * (np.arange(label.shape[1]) < label.shape[1] // 2)
    save(folder / f'ManualMask/rightMask/{name}.png', np.uint8(255 * half))
    rest = np.uint8(255 * (label - half))
    save(folder / f'ManualMask/leftMask/{name}.png', rest)
  source = prepare(root, allow_partial=True)
  assert len(source.splits['ood_montgomery']) == 2
  assert len(source.splits['ood_shenzhen']) == 2
  for name, (image, label) in expected.items():
    np.testing.assert_array_equal(source.image(name)[..., 0], image)
    np.testing.assert_array_equal(source.label(name), label)


def test_masks_of_different_sizes_are_named(root):
  path = root / 'scratch/fold1/masks/left lung/JPCLN001.gif'
  save(path, bars(9, 10)[:512])
  with pytest.raises(UserError, match='JPCLN001.gif.* 1024x1024'):
    prepare(root, allow_partial=True)
