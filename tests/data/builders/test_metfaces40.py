"""MetFaces-40 from the layouts that its archive may have."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.builders import celeba_mask_hq
from jaxseg.errors import UserError

NAMES = ['met_00012', 'met_00345']


def label_of(name):
  rng = np.random.default_rng(int(name[4:]))
  label = rng.integers(0, 8, (10, 10), np.uint8)
  label[0, :8] = np.arange(8)
  return label


def write(root, images='images', labels='labels', colours=False):
  (root / images).mkdir(parents=True)
  (root / labels).mkdir(parents=True)
  for i, name in enumerate([*NAMES, 'met_01000']):  # the last has no label
    image = np.full((10, 10, 3), 40 * i, np.uint8)
    Image.fromarray(image).save(root / images / f'{name}.png')
  palette = np.array(celeba_mask_hq.COLOURS8, np.uint8)
  for name in NAMES:
    label = label_of(name)
    label = palette[label] if colours else label
    Image.fromarray(label).save(root / labels / f'{name}.png')
  (root / labels / '._met_00012.png').write_bytes(b'\0\5\x16\7')


@pytest.fixture
def builder():
  return prepared.find_builder('metfaces40')


@pytest.mark.parametrize(
  'inner, images, labels, colours',
  [
    ('', 'images', 'labels', False),
    ('MetFaces40', 'image', 'annotations', False),
    ('', 'images', 'masks', True),
  ],
)
def test_tolerant_layouts(tmp_path, builder, inner, images, labels, colours):
  write(tmp_path / inner, images, labels, colours)
  splits = builder.scan(tmp_path)
  assert list(splits) == ['ood_metfaces']
  assert [r.id for r in splits['ood_metfaces']] == NAMES
  for record in splits['ood_metfaces']:
    np.testing.assert_array_equal(record.label(), label_of(record.id))


def test_classes_are_those_of_celeba_mask_hq(builder):
  faces = prepared.find_builder('celeba_mask_hq:classes8').builder_config
  assert builder.builder_config.class_names == faces.class_names
  assert builder.builder_config.palette == faces.palette


def test_wrong_counts_are_refused_naming_both_numbers(tmp_path, builder):
  write(tmp_path)
  with pytest.raises(UserError, match=r'2 in .ood_metfaces. instead of 40'):
    builder.check(tmp_path, allow_partial=False)
  assert builder.check(tmp_path, allow_partial=True) == {'ood_metfaces': 2}


def test_a_missing_folder_is_named_with_the_instructions(tmp_path, builder):
  (tmp_path / 'images').mkdir()
  with pytest.raises(UserError, match=r'labels: .*semanticGAN_code.*BY-NC'):
    builder.scan(tmp_path)


def test_written_and_read_back(tmp_path):
  write(tmp_path / 'manual')
  data_dir = str(tmp_path / 'data')
  manual = tmp_path / 'manual'
  prepared.prepare('metfaces40', manual, data_dir, allow_partial=True)
  source = prepared.open_prepared('metfaces40', 3, data_dir=data_dir)
  assert source.splits == {'ood_metfaces': tuple(NAMES)}
  for i, name in enumerate(NAMES):
    np.testing.assert_array_equal(source.label(name), label_of(name))
    assert (source.image(name) == 40 * i).all()
