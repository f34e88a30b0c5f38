"""Every mistake that is known from users' labels and lists, one row each.

See test_bad_inputs.py; here the masks, their pairing with the images, and the
lists are spoilt.
"""

import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import sources, splits
from jaxseg.data.formats import images, labels
from jaxseg.data.inspection import checks, examine
from jaxseg.errors import DataError, UserError

SIDE = 32
SPLITS = {
  'train': [f'{i:03d}' for i in range(8)],
  'val': ['008'],
  'test': ['009'],
  'ood_x': ['010', '011'],
  'unlabelled': ['012', '013'],
}
CLASSES = {'classes': ['background', 'lung', 'heart']}
LOOKS = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
COLOURS = {tuple(look): i for i, look in enumerate(LOOKS)}


def label():
  """Two objects on a background."""
  ids = np.zeros((SIDE, SIDE), np.uint8)
  ids[4:14, 4:14], ids[16:28, 10:28] = 1, 2
  return ids


LABEL = label()
CODED = np.array(LOOKS, np.uint8)[LABEL]


@pytest.fixture
def root(tmp_path):
  """Twelve images of noise with the same objects, and two without label."""
  root = tmp_path / 'set'
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(14):
    noise = rng.integers(0, 255, (SIDE, SIDE), np.uint8)
    Image.fromarray(noise).save(root / f'images/{i:03d}.png')
    if i < 12:
      Image.fromarray(LABEL).save(root / f'labels/{i:03d}.png')
  write(root, 'splits', SPLITS)
  write(root, 'classes', CLASSES)
  return root


def write(root, name, content):
  (root / f'{name}.json').write_text(json.dumps(content))


def save(root, *arrays, **options):
  """Writes labels 000.png, 001.png, ...; the last one to all that follow."""
  for i in range(12):
    array = arrays[min(i, len(arrays) - 1)]
    Image.fromarray(array).save(root / f'labels/{i:03d}.png', **options)


def inspect(root, config):
  config.data.source = f'folder:{root}'
  return checks.inspect(sources.load(config.data), target=(32, 32))[0]


def train(root, config):
  config.data.source = f'folder:{root}'
  config.data.num_labelled = 0
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  return source, checks.check(source, drawn, config.data)


def refused(root, config, kind, words):
  """What `inspect` finds and training refuses; returns the problems."""
  found = [p for p in inspect(root, config) if p.severity == 'refuse']
  assert {p.kind for p in found} == {kind}, found
  for problem in found:
    assert re.search(words, problem.message), problem.message
    assert 'expected' in problem.message
  with pytest.raises(DataError) as error:
    train(root, config)
  assert error.value.kind == kind
  return found


def noted(root, config, kind, words):
  """What `inspect` mentions and training accepts."""
  found = inspect(root, config)
  assert {p.severity for p in found} <= {'note'}, found
  (problem,) = [p for p in found if p.kind == kind]
  assert re.search(words, problem.message), problem.message
  train(root, config)
  return problem


def png(array, form='PNG', mode=None, **options):
  data = io.BytesIO()
  Image.fromarray(array, mode).save(data, form, **options)
  return data.getvalue()


def test_good(root, config):
  assert inspect(root, config) == []
  train(root, config)


@pytest.mark.parametrize('id_', ['000', '009', '011'])
def test_size_mismatch(root, config, id_):
  """B1: both sizes."""
  Image.new('L', (16, 32)).save(root / f'labels/{id_}.png')
  (problem,) = refused(
    root, config, 'size_mismatch', 'label is 16x32 and the image 32x32'
  )
  assert id_ in problem.path and 'nearest neighbour' in problem.message


def test_turned_label(root, config):
  """B2: no EXIF tag is blamed that is not there."""
  config.data.fit = 'crop'
  noise = np.random.default_rng(9).integers(0, 255, (40, 32), np.uint8)
  Image.fromarray(noise).save(root / 'images/000.png')
  Image.new('L', (40, 32)).save(root / 'labels/000.png')
  (problem,) = refused(root, config, 'size_mismatch', 'nearest neighbour')
  assert 'EXIF' not in problem.message


def test_label_of_a_turned_image(root, config):
  """B2: the orientation is named as the cause."""
  config.data.fit = 'crop'
  tags = Image.Exif()
  tags[0x0112] = 6
  noise = np.random.default_rng(9).integers(0, 255, (32, 40), np.uint8)
  Image.fromarray(noise).save(root / 'images/000.png', exif=tags)
  Image.new('L', (40, 32)).save(root / 'labels/000.png')
  refused(root, config, 'size_mismatch', 'before its EXIF tag turned it')


def test_unknown_ids(root, config):
  """B3: the ids and how often."""
  wrong = LABEL.copy()
  wrong[0, :3], wrong[1, 0] = 9, 200
  save(root, wrong, LABEL)
  refused(root, config, 'unknown_ids', '9 in 3 pixels, 200 in 1 pixels, .* 2')


def test_palette_gives_indices(root, config):
  """B4: whatever the colours are."""
  palette = np.array([[7, 7, 7], [8, 8, 8], [9, 9, 9]], np.uint8)
  images.write_label(root / 'labels/000.png', LABEL, palette)
  assert inspect(root, config) == []
  source, _ = train(root, config)
  np.testing.assert_array_equal(source.label('000'), LABEL)


def indexed(ids, looks):
  image = Image.fromarray(ids)
  image.putpalette(np.array(looks, np.uint8).tobytes())
  data = io.BytesIO()
  image.save(data, 'PNG')
  return data.getvalue()


def test_palette_whose_colours_are_the_classes():
  """B5: indices 3, 4, 5 are no ids, their colours are."""
  content = indexed(LABEL + 3, [[9, 9, 9]] * 3 + LOOKS)
  found = images.decode_label(content, 'x.png', COLOURS)
  np.testing.assert_array_equal(found, LABEL)


def test_palette_with_two_meanings():
  """B5: indices are ids, and their colours are those of other ids."""
  content = indexed(LABEL, LOOKS[::-1])
  with pytest.raises(DataError, match='value 0 is a class id.*class 2') as e:
    images.decode_label(content, 'x.png', COLOURS)
  assert e.value.kind == 'ambiguous_palette'
  explicit = {i: i for i in range(3)}
  found = images.decode_label(content, 'x.png', COLOURS, explicit)
  np.testing.assert_array_equal(found, LABEL)


def test_palette_with_two_meanings_and_void():
  ids = LABEL.copy()
  ids[0] = 255
  looks = np.zeros((256, 3), np.uint8)
  looks[:3] = LOOKS[::-1]  # and 255 is black, as background
  with pytest.raises(DataError) as error:
    images.decode_label(indexed(ids, looks), 'x.png', COLOURS)
  assert error.value.kind == 'ambiguous_palette'


MAPS = {
  'white': ({255: 1}, [0, 255], [0, 1]),
  'void': ({9: 255}, [0, 9, 255], [0, 255, 255]),
  'from 1': ({1: 0, 2: 1, 0: 255}, [0, 1, 2], [255, 0, 1]),
  'others stay': ({70: 2}, [0, 1, 70, 255], [0, 1, 2, 255]),
  'white beside its id': ({255: 1}, [0, 1, 255], 'holds 1 in 1 pixels'),
  'from 1, with 0': ({1: 0, 2: 1}, [0, 1, 2], 'holds 0 in 1 pixels'),
}


@pytest.mark.parametrize('case', MAPS)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_values(case, dtype):
  """B8, B9: mapped exactly, and never two values to one id unsaid."""
  values, stored, expected = MAPS[case]
  numbers = np.array([stored], dtype)
  if isinstance(expected, str):
    with pytest.raises(DataError, match=f'{expected}.*"values"') as error:
      labels.to_ids(numbers, 'x.png', values)
    assert error.value.kind == 'unknown_ids'
  else:
    found = labels.to_ids(numbers, 'x.png', values)
    assert found.dtype == np.uint8 and found.tolist() == [expected]


def test_palette_with_void(root, config):
  """B4 with 255, and classes.json naming the colours."""
  write(root, 'classes', CLASSES | {'colors': LOOKS})
  ids = LABEL.copy()
  ids[0] = 255
  images.write_label(root / 'labels/000.png', ids, np.array(LOOKS, np.uint8))
  assert inspect(root, config) == []
  np.testing.assert_array_equal(train(root, config)[0].label('000'), ids)


@pytest.mark.parametrize('form', ['PNG', 'TIFF', 'BMP'])
def test_colours_are_mapped(root, config, form):
  """B6."""
  write(root, 'classes', dict(zip('abc', LOOKS, strict=True)))
  save(root, CODED, format=form)
  kinds = {p.kind for p in inspect(root, config)}
  assert kinds <= {'extension'}
  np.testing.assert_array_equal(train(root, config)[0].label('000'), LABEL)


def test_unknown_colours(root, config):
  """B6: listed with counts."""
  write(root, 'classes', CLASSES | {'colors': LOOKS})
  wrong = CODED.copy()
  wrong[0, :5], wrong[1, :2] = (0, 255, 0), (9, 9, 8)
  save(root, wrong, CODED)
  words = r'7 of 1024 .*\[0, 255, 0\] \(5\), \[9, 9, 8\] \(2\), .*add them'
  refused(root, config, 'unknown_colours', words)


def test_colours_without_a_list(root, config):
  """B6: the line to put into classes.json."""
  save(root, CODED, LABEL)
  found = refused(root, config, 'colours', 'name its 3 colours in classes.json')
  line = re.search(r'classes.json: ({.*})', found[0].message)[1]
  colours = json.loads(line)
  assert list(colours) == ['background', 'class 1', 'class 2']
  write(root, 'classes', colours)
  config.data.num_labelled = 0
  # The order is that of frequency; background, the larger, the smaller.
  np.testing.assert_array_equal(
    train(root, config)[0].label('000'), np.array([0, 2, 1])[LABEL]
  )


def test_many_unknown_colours_are_not_blended():
  """B6: areas of twelve classes that are not in the list."""
  looks = np.arange(36, dtype=np.uint8).reshape(12, 3) + 99
  coded = np.repeat(looks, 3, 0)[:, None].repeat(4, 1)
  coded[:8] = looks[0]
  with pytest.raises(DataError) as error:
    images.decode_label(png(coded), 'x.png', COLOURS)
  assert error.value.kind == 'unknown_colours'


@pytest.mark.parametrize('how', ['smooth', 'JPEG'])
def test_blended_colours(root, config, how):
  """B7."""
  write(root, 'classes', CLASSES | {'colors': LOOKS})
  image = Image.fromarray(CODED)
  if how == 'smooth':
    image = image.resize((64, 64)).resize((SIDE, SIDE))
  else:
    image = Image.open(io.BytesIO(png(CODED, 'JPEG', quality=95)))
  save(root, np.asarray(image), CODED)
  refused(root, config, 'blended_colours', 'they look blended')


def test_a_photo_as_label(root, config):
  rng = np.random.default_rng(0)
  save(root, rng.integers(0, 255, (SIDE, SIDE, 3), np.uint8), LABEL)
  refused(root, config, 'colours', 'look like a photo')


def test_grey_ids_stored_as_rgb(root, config):
  save(root, np.dstack([LABEL] * 3), LABEL)
  noted(root, config, 'grey_as_rgb', 'all three channels are equal')
  np.testing.assert_array_equal(train(root, config)[0].label('000'), LABEL)


WHITE = np.uint8(255) * (LABEL > 0)


@pytest.mark.parametrize('classes', [None, {'classes': ['a', 'b']}])
def test_black_and_white(root, config, classes):
  """B8: refused; the line in the message mends it."""
  os.unlink(root / 'classes.json')
  if classes:
    write(root, 'classes', classes)
  save(root, WHITE)
  found = refused(root, config, 'black_and_white', '"values": {"255": 1}')
  values = re.search(r'"values": ({.*?})', found[0].message)[1]
  write(root, 'classes', (classes or {}) | {'values': json.loads(values)})
  assert inspect(root, config) == []
  assert set(np.unique(train(root, config)[0].label('000'))) == {0, 1}


def test_black_and_white_by_colour(root, config):
  """B8: white is named as a class."""
  write(root, 'classes', {'bg': [0, 0, 0], 'lung': [255, 255, 255]})
  save(root, WHITE, LABEL // 2, np.dstack([WHITE] * 3))
  source, _ = train(root, config)
  for id_ in ('000', '001', '002'):
    assert set(np.unique(source.label(id_))) == {0, 1}


def test_black_and_white_among_others(root, config):
  """B8: some masks only."""
  write(root, 'classes', {'classes': ['a', 'b']})
  save(root, WHITE, WHITE, LABEL // 2)
  problem = noted(root, config, 'black_and_white', '2 labels hold 0 and 255')
  values = re.search(r'"values": ({.*?})', problem.message)[1]
  write(root, 'classes', {'classes': ['a', 'b'], 'values': json.loads(values)})
  assert inspect(root, config) == []


def test_one_bit_white(root, config):
  """B8: white of a 1-bit file is that of the others."""
  write(root, 'classes', {'classes': ['a', 'b'], 'values': {'255': 1}})
  save(root, WHITE > 0, WHITE)
  source, _ = train(root, config)
  np.testing.assert_array_equal(source.label('000'), source.label('001'))


def test_ids_that_count_from_1(root, config):
  """B9: refused; the line in the message mends it."""
  save(root, LABEL + 1)
  found = refused(root, config, 'one_based', 'count from 1')
  values = re.search(r'"values": ({.*?})', found[0].message)[1]
  write(root, 'classes', CLASSES | {'values': json.loads(values)})
  assert inspect(root, config) == []
  np.testing.assert_array_equal(train(root, config)[0].label('000'), LABEL)
  os.unlink(root / 'classes.json')
  noted(root, config, 'one_based', 'no label holds 0')


def test_smoothly_resized_ids(root, config):
  """B10: ids in thin lines between others; of no class, or of one."""
  ids = np.uint8(8) * (LABEL == 1) + np.uint8(3) * (LABEL == 2)
  half = Image.fromarray(ids[::2, ::2])
  write(root, 'classes', {'classes': [f'c{i}' for i in range(9)]})
  save(root, np.asarray(half.resize((SIDE, SIDE), Image.BILINEAR)))
  found = inspect(root, config)
  assert {p.severity for p in found} == {'note'}
  lines = [p for p in found if p.kind == 'interpolated_ids']
  assert any("'c6' occurs only in thin lines" in p.message for p in lines)
  assert not any("'c3' occurs" in p.message for p in lines)
  write(root, 'classes', {'classes': ['x', 'y']})
  smooth = Image.fromarray((LABEL == 1) * np.uint8(255))
  smooth = smooth.resize((16, 16)).resize((SIDE, SIDE), Image.BILINEAR)
  save(root, np.asarray(smooth))
  refused(root, config, 'interpolated_ids', 'nearest neighbour')


def test_small_ring_is_no_mistake():
  """B10: the muscle of a heart, three pixels wide, between blood and lung."""
  y, x = np.indices((128, 128))
  radius = np.hypot(y - 64, x - 64)
  for width, thin in ((3, False), (1.5, True)):
    ring = np.uint8(radius < 12) + np.uint8(radius < 12 - width)
    pixels = np.bincount(ring.ravel(), minlength=256)
    assert list(np.flatnonzero(examine.interpolated(ring, pixels))) == (
      [1] if thin else []
    )


def test_thin_lines_beside_void_are_no_mistake():
  """B10: void is no higher id."""
  label = np.zeros((64, 64), np.uint8)
  label[30:32], label[32:40], label[50:] = 1, 255, 2
  pixels = np.bincount(label.ravel(), minlength=256)
  assert not examine.interpolated(label, pixels).any()
  assert examine.interpolated(label, pixels, void_is_void=False)[1]


def test_thin_class_is_no_mistake(root, config):
  """B10: a ring with an area of its own lies between two others too."""
  y, x = np.indices((SIDE, SIDE))
  radius = np.hypot(y - 16, x - 16)
  save(root, np.uint8(radius < 12) + np.uint8(radius < 6))
  assert inspect(root, config) == []


@pytest.mark.parametrize('name', ['000.png', '000.jpg'])
def test_lossy_label(root, config, name):
  """B11: by content and by name."""
  (root / 'labels/000.png').unlink()
  (root / 'labels' / name).write_bytes(png(LABEL, 'JPEG'))
  found = inspect(root, config)
  assert [(p.severity, p.kind) for p in found if p.kind != 'other_files'] == [
    ('refuse', 'lossy')
  ]
  with pytest.raises(DataError, match=f'labels/{name}'):
    train(root, config)


DEEP = {
  'I;16': png(LABEL.astype(np.uint16)),
  'I': png(LABEL.astype(np.int32), 'TIFF'),
  'I;16B': png(LABEL.astype('>u2'), 'TIFF'),
  'F': png(LABEL.astype(np.float32), 'TIFF'),
  'L': png(LABEL, 'BMP'),
}


@pytest.mark.parametrize('mode', DEEP)
def test_deep_ids(mode):
  """B12: exact."""
  found = images.decode_label(DEEP[mode], 'x')
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found, LABEL)


def test_ids_times_257(root, config):
  """B13: the line in the message mends it."""
  save(root, LABEL.astype(np.uint16) * 257)
  found = refused(root, config, 'times_257', 'multiples of 257')
  line = re.search(r'put ({.*}) into', found[0].message)[1]
  assert json.loads(line) == {'values': {'0': 0, '257': 1, '514': 2}}
  write(root, 'classes', CLASSES | json.loads(line))
  np.testing.assert_array_equal(train(root, config)[0].label('000'), LABEL)


def test_deep_white(root, config):
  """B13: 0 and 65535."""
  save(root, WHITE.astype(np.uint16) * 257)
  found = refused(root, config, 'times_257', '"65535": 1')
  assert len(found) == 12


def test_ids_above_255():
  """B3 in 16 bits, and below 0."""
  for value, dtype in ((300, np.uint16), (-1, np.int32)):
    content = png(np.full((8, 8), value, dtype), 'TIFF')
    with pytest.raises(DataError, match=f'value {value} .*64 pixels') as error:
      images.decode_label(content, 'x.tif')
    assert error.value.kind == 'unknown_ids'


def test_soft_mask(root, config):
  """B14."""
  for i in range(12):
    soft = Image.fromarray(LABEL.astype(np.float32) / 3)
    soft.save(root / f'labels/{i:03d}.tif')
    (root / f'labels/{i:03d}.png').unlink()
  refused(root, config, 'not_whole', r'from 0 to 0\.6667.*p > 0\.5')


def test_alpha_as_void(root, config):
  """B15: an option of classes.json."""
  alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
  alpha[:3] = 0
  save(root, np.concatenate([CODED, alpha], -1))
  write(root, 'classes', CLASSES | {'colors': LOOKS})
  refused(root, config, 'transparent', '96 of 1024 .*"void": "transparent"')
  write(root, 'classes', CLASSES | {'colors': LOOKS, 'void': 'transparent'})
  expected = LABEL.copy()
  expected[:3] = 255
  np.testing.assert_array_equal(train(root, config)[0].label('000'), expected)
  alpha[5] = 99
  save(root, np.concatenate([CODED, alpha], -1))
  refused(root, config, 'transparent', '32 of them partly')


def test_opaque_alpha(root, config):
  alpha = np.full((SIDE, SIDE, 1), 255, np.uint8)
  save(root, np.concatenate([CODED, alpha], -1), CODED)
  write(root, 'classes', CLASSES | {'colors': LOOKS})
  np.testing.assert_array_equal(train(root, config)[0].label('000'), LABEL)


def test_missing_on_both_sides(root, config):
  """B16: all of them, the images and the labels, with what was meant."""
  os.rename(root / 'labels/009.png', root / 'labels/009_mask.png')
  os.rename(root / 'labels/010.png', root / 'labels/X10.png')
  found = [p for p in inspect(root, config) if p.severity == 'refuse']
  assert {(p.kind, os.path.basename(p.path)) for p in found} == {
    ('no_image', '009_mask.png'),
    ('no_image', 'X10.png'),
    ('no_label', '009.png'),
    ('no_label', '010.png'),
  }
  (mask,) = [p for p in found if p.path.endswith('mask.png')]
  assert "rename it '009.png', as its image" in mask.message
  with pytest.raises(DataError, match='009_mask.png.*X10.png.*009.png.*010.p'):
    train(root, config)


def test_labels_of_another_case(root, config):
  """B16, B18."""
  for kind in ('images', 'labels'):
    os.rename(root / f'{kind}/000.png', root / f'{kind}/Anna.png')
  os.rename(root / 'labels/Anna.png', root / 'labels/anna.png')
  write(root, 'splits', SPLITS | {'train': ['Anna', *SPLITS['train'][1:]]})
  found = [p for p in inspect(root, config) if p.severity == 'refuse']
  assert [p.kind for p in found] == ['no_image']
  assert "rename it 'Anna.png', as its image" in found[0].message


@pytest.mark.parametrize('kind', ['images', 'labels'])
def test_two_files_of_one_name(root, config, kind):
  """B17."""
  Image.fromarray(LABEL).save(root / kind / '000.tif')
  (problem,) = refused(root, config, 'two_files', '000.png beside it')
  assert problem.path == str(root / kind / '000.tif')


def test_names_that_differ_in_case(root, config):
  """B18."""
  for name in ('anna', 'Anna'):
    noise = np.random.default_rng(len(name) + ord(name[0])).integers(
      0, 255, (SIDE, SIDE), np.uint8
    )
    Image.fromarray(noise).save(root / f'images/{name}.png')
  write(root, 'splits', SPLITS | {'unlabelled': ['anna', 'Anna', '012', '013']})
  noted(root, config, 'case', 'Anna, anna differ')


@pytest.mark.parametrize('empty', [3, 8])
def test_empty_masks(root, config, empty):
  """B19: told; refused if they are more than 90 %."""
  save(root, *[LABEL * 0] * empty, LABEL)
  words = f"{empty} of 8 labelled images show nothing but 'background'"
  if empty == 3:
    noted(root, config, 'empty_labels', words)
  else:
    refused(root, config, 'empty_labels', words)


def test_void_masks(root, config):
  """B20: refused where they would train, told where they are scored."""
  void = LABEL * 0 + np.uint8(255)
  Image.fromarray(void).save(root / 'labels/009.png')
  noted(root, config, 'all_void', 'all void')
  Image.fromarray(void).save(root / 'labels/000.png')
  found = refused(root, config, 'all_void', 'all void')
  assert found[0].path.endswith('000.png')


def test_class_missing_in_training(root, config):
  """B21: by name, and whether scored images have it."""
  write(root, 'classes', {'classes': [*CLASSES['classes'], 'rib']})
  save(root, *[LABEL % 2] * 8, LABEL)
  words = r'no labelled image shows heart \(only in scored images\), rib;'
  noted(
    root,
    config,
    'class_missing',
    words.replace('heart', "'heart'").replace('rib', "'rib'"),
  )


def test_dominant_class(root, config):
  """B22."""
  few = LABEL * 0
  few[0, 0] = 1
  save(root, few, few, few, LABEL * 0)
  write(root, 'splits', SPLITS | {'train': ['000', '001', '002', '003']})
  noted(root, config, 'dominant_class', r"99\.9.*'background'")


def test_void_that_is_a_class(root, config):
  """B23."""
  write(root, 'classes', CLASSES | {'void': 1})
  with pytest.raises(DataError, match="also the id of class 'lung'") as error:
    inspect(root, config)
  assert error.value.exit_code == 3


def test_one_labelled_image(root, config):
  """B26: works."""
  write(root, 'splits', SPLITS | {'train': ['000']})
  noted(root, config, 'one_label', 'only one labelled image')


def test_one_image_in_all(root, config):
  for kind in ('images', 'labels'):
    for path in list((root / kind).iterdir()):
      if path.stem != '000':
        path.unlink()
  (root / 'splits.json').unlink()
  config.data.test_fraction = config.data.val_fraction = 0.0
  assert train(root, config)[1].labelled == ('000',)


def test_no_labels(root, config):
  """B25: inspecting works, training says what it needs."""
  for path in (root / 'labels').iterdir():
    path.unlink()
  (root / 'splits.json').unlink()
  assert inspect(root, config) == []
  with pytest.raises(UserError, match='no labelled image to train on'):
    train(root, config)


def test_list_names_missing_files(root, config):
  """B29: exactly those."""
  for id_ in ('003', '005'):
    (root / f'images/{id_}.png').unlink()
    (root / f'labels/{id_}.png').unlink()
  (problem,) = refused(root, config, 'missing', 'names 2 images .*: 003, 005,')
  assert problem.path.endswith('splits.json')


def test_list_names_another_case(root, config):
  """B29, B18."""
  os.rename(root / 'images/012.png', root / 'images/Bert.PNG')
  write(root, 'splits', SPLITS | {'unlabelled': ['bert.png']})
  refused(root, config, 'missing', 'case differ: Bert')


LISTS = {
  'CRLF': b'000\r\n001\r\n\r\n',
  'BOM': b'\xef\xbb\xbf000\n001\n',
  'blank': b'\n 000 \n\n\t001\n\n',
  'suffix': b'000.png\nimages/001.png\n',
  'backslash': b'images\\000.png\r\n.\\images\\001.png',
}


@pytest.mark.parametrize('case', LISTS)
def test_text_lists(root, config, case):
  """B28: trimmed."""
  (root / 'splits.json').unlink()
  for name, ids in SPLITS.items():
    (root / f'{name}.txt').write_text('\n'.join(ids))
  (root / 'train.txt').write_bytes(LISTS[case])
  found = inspect(root, config)
  assert [p.kind for p in found] == ['unused']
  assert train(root, config)[1].labelled == ('000', '001')


@pytest.mark.parametrize(
  'entry', ['../../etc/passwd', '/etc/000.png', '../000']
)
def test_list_that_leads_outside(root, config, entry):
  """B28."""
  write(root, 'splits', SPLITS | {'unlabelled': ['012', entry]})
  refused(root, config, 'outside', re.escape(entry))


def test_list_with_another_folder(root, config):
  """B28: the name alone must not stand for another file."""
  write(root, 'splits', SPLITS | {'unlabelled': ['other/012.png']})
  refused(root, config, 'missing', 'other/012.png')


@pytest.mark.parametrize('train_id', ['000', '012'])
@pytest.mark.parametrize('score_id', ['008', '009', '011'])
def test_same_image_in_training_and_scoring(root, config, train_id, score_id):
  """B30, B33: by content, also of unlabelled images."""
  path = root / f'images/{score_id}.png'
  path.unlink()
  # Another file of the same pixels.
  Image.open(root / f'images/{train_id}.png').save(path, 'TIFF')
  (problem,) = refused(root, config, 'leak', f'{train_id}.png that trains')
  assert problem.path == str(path)
  config.data.allow_leaks = True
  train(root, config)


def test_black_images_are_no_leak(root, config):
  """A30: they are told of, as they show nothing."""
  for id_ in ('012', '009'):
    Image.new('L', (SIDE, SIDE)).save(root / f'images/{id_}.png')
  noted(root, config, 'flat', '2 of 14 images have one colour')


def test_same_id_in_training_and_scoring(root, config):
  """B30."""
  write(root, 'splits', SPLITS | {'test': ['009', '000']})
  found = [p for p in inspect(root, config) if p.severity == 'refuse']
  assert [(p.kind, p.path[-7:]) for p in found] == [('leak', '000.png')]
  with pytest.raises(UserError, match="split 'test' also train"):
    train(root, config)


def test_same_patient_in_training_and_scoring(root, config):
  """B32."""
  groups = {'000': 'anna', '009': 'anna'}
  write(root, 'splits', SPLITS | {'groups': groups})
  found = [p for p in inspect(root, config) if p.severity == 'refuse']
  assert [(p.kind, p.path[-7:]) for p in found] == [('leak', '009.png')]
  with pytest.raises(UserError, match="group 'anna'"):
    train(root, config)


def scene(size):
  y, x = np.indices((128, 128)) / 128
  picture = 120 + 60 * np.sin(9 * x) * np.cos(7 * y) + 40 * x
  return Image.fromarray(picture.astype(np.uint8)).resize((size, size))


@pytest.mark.parametrize(
  'how', ['resized', 'recompressed', 'brighter', 'other']
)
def test_near_duplicates(root, config, how):
  """B31."""
  scene(64).save(root / 'images/012.png')
  near = {
    'resized': lambda: scene(32),
    'recompressed': lambda: Image.open(io.BytesIO(png(
      np.asarray(scene(32)), 'JPEG', quality=60))),
    'brighter': lambda: scene(32).point(lambda v: v * 0.8 + 30),
    'other': lambda: scene(32).transpose(Image.Transpose.ROTATE_90),
  }[how]()  # fmt: skip
  near.save(root / 'images/009.png')
  found = [p for p in inspect(root, config) if p.kind == 'near_duplicate']
  if how == 'other':
    assert found == []
  else:
    (problem,) = found
    assert problem.severity == 'note' and problem.path.endswith('009.png')
    assert '012.png' in problem.message
  train(root, config)


def test_class_that_vanishes(root, config):
  """One pixel in 1024 is none at the resolution of the networks."""
  dots = np.zeros((64, 64), np.uint8)
  dots[:20], dots[30, 31] = 1, 2
  for i in range(12):
    noise = np.random.default_rng(i).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(root / f'images/{i:03d}.png')
  save(root, dots)
  found = [p for p in inspect(root, config) if p.kind == 'lost_class']
  assert sorted(p.message.split(' at ')[0] for p in found) == [
    "'heart' vanishes in 4 of 4 scored images",
    "'heart' vanishes in 8 of 8 labelled images",
  ]
