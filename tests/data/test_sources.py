"""Sets by name, and out-of-domain sets beside them."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import sources, splits
from jaxseg.data.builders import BUILDERS
from jaxseg.data.source import voc_palette
from jaxseg.errors import DataError, UserError


@pytest.fixture
def load(config):
  """spec, channels, fields of config.data -> the opened set."""

  def open_set(spec, channels=1, **fields):
    config.data.source, config.data.channels = spec, channels
    for name, value in fields.items():
      config.data[name] = value
    return sources.load(config.data)

  return open_set


@pytest.fixture
def other(tmp_path):
  """A set of two labelled images and one without, classes in other order."""
  root = tmp_path / 'other'
  for kind in ('images', 'labels'):
    (root / kind).mkdir(parents=True)
  for i in range(3):
    Image.new('L', (8, 8), 10 * i).save(root / f'images/{i}.png')
  for i in range(2):
    label = np.repeat(np.arange(4, dtype=np.uint8), 16).reshape(8, 8)
    label[0, 0] = 255
    Image.fromarray(label).save(root / f'labels/{i}.png')
  names = '["lung", "heart", "background", "rib"]'
  (root / 'classes.json').write_text(f'{{"classes": {names}}}')
  return root


@pytest.fixture
def chest(write_folder):
  """The main set: background, lung."""
  classes = {'classes': ['background', 'lung']}
  return f'folder:{write_folder(n=12, classes=classes)}'


def test_voc_palette():
  np.testing.assert_array_equal(
    voc_palette(256)[[0, 1, 2, 3, 8, 15, 20, 255]],
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


@pytest.mark.parametrize('spec', ['', 'mnist', 'folder', 'folder:', 'tfds:x'])
def test_unknown_source(load, spec):
  with pytest.raises(UserError, match="'digits', 'avatars', 'folder:PATH'"):
    load(spec)


def test_channels(load):
  with pytest.raises(UserError, match='config.data.channels is 2'):
    load('digits', 2)


@pytest.mark.parametrize('name', BUILDERS)
def test_a_set_that_is_not_prepared(load, tmp_path, name):
  with pytest.raises(UserError, match=f'datasets prepare {name} --manual_dir'):
    load(name, data_dir=str(tmp_path))


def test_ood_source(load, chest, other, config):
  source = load(
    chest,
    ood_sources=(f'clinic=folder:{other}',),
    ood_classes=('clinic:heart=lung',),
  )
  assert source.splits['ood_clinic'] == ('clinic__0', 'clinic__1')
  label = source.label('clinic__1')
  # lung -> 1, heart -> 1 as asked, background -> 0; rib is unknown: void
  np.testing.assert_array_equal(label[:, 1], np.repeat([1, 1, 0, 255], 2))
  assert label[0, 0] == 255
  assert (source.image('clinic__1') == 10).all()
  assert source.path('clinic__0').endswith('other/images/0.png')
  alone = load(chest, ood_sources=(), ood_classes=())
  np.testing.assert_array_equal(source.label('003'), alone.label('003'))
  config.data.ood_sources = (f'clinic=folder:{other}',)
  s = splits.make_splits(source, config.data, 0)
  assert s.ood == {'ood_clinic': ('clinic__0', 'clinic__1')}
  assert not any('clinic' in i for i in (*s.unlabelled, *s.val, *s.test))


def test_unlabelled_ood_files_leave_nothing_out_of_training(load, chest, other):
  (other / 'images/picture.gif').write_bytes(b'GIF89a')
  source = load(chest, ood_sources=(f'clinic=folder:{other}',))
  (problem,) = [p for p in source.problems if p.kind == 'format']
  assert problem.severity == 'note'


def test_ood_classes_by_name(load, chest, other):
  table = sources.class_map(('a', 'b', 'c'), ('c', 'a'), 'a=void')
  assert table[:4].tolist() == [255, 255, 0, 255]
  with pytest.raises(UserError, match='none in common with x, y.*NAME:b=y'):
    sources.class_map(('a', 'b'), ('x', 'y'))
  ood = dict(ood_sources=(f'clinic=folder:{other}',))
  with pytest.raises(UserError, match="'spleen' in 'spleen=lung', expe"):
    load(chest, **ood, ood_classes=('clinic:spleen=lung',))
  with pytest.raises(UserError, match="'liver' in 'rib=liver', .* lung, void"):
    load(chest, **ood, ood_classes=('clinic:rib=liver',))
  with pytest.raises(UserError, match="names 'hospital', expected .*clinic"):
    load(chest, **ood, ood_classes=('hospital:rib=lung',))


def test_ood_mistakes(load, chest, other):
  for entry in ('clinic', '=folder:x', 'a b=folder:x', 'clinic='):
    with pytest.raises(UserError, match="expected 'NAME=...'"):
      load(chest, ood_sources=(entry,))
  with pytest.raises(UserError, match='config.data.ood_sources is .nowhere.'):
    load(chest, ood_sources=('clinic=nowhere',))
  source = load(chest, ood_sources=(f'clinic=folder:{other}',))
  Image.new('L', (8, 8), 7).save(other / 'labels/0.png')
  with pytest.raises(DataError, match=r'ids \[7\], expected 0 to 3'):
    source.label('clinic__0')
  for i in range(2):
    (other / f'labels/{i}.png').unlink()
  with pytest.raises(UserError, match='no labelled image'):
    load(chest, ood_sources=(f'clinic=folder:{other}',))


@pytest.mark.parametrize(
  ('spec', 'meant'),
  [
    ('digit', "write 'digits'"),
    ('voc', "write 'voc2012'"),
    ('VOC2012:aug', "write 'voc2012:aug'"),
    ('city_scapes', "write 'cityscapes'"),
    ('folder', "write 'folder:PATH'"),
    ('Folder:x', "write 'folder:x'"),
    ('faces', 'change --config.data.source'),
  ],
)
def test_what_was_meant(load, spec, meant):
  with pytest.raises(UserError, match=f'{meant}$'):
    load(spec)


def test_a_bare_path_is_told_of(load, chest, other):
  with pytest.raises(UserError, match=f"write 'folder:{other}'"):
    load(str(other))
  with pytest.raises(UserError, match=f"ood_sources is .*'folder:{other}'"):
    load(chest, ood_sources=(f'x={other}',))


def test_groups_of_sets_that_are_only_scored(load, chest, other):
  """Their names need not have the form of those that train."""
  fields = {'group_by': r'^(00.|01.)', 'ood_sources': (f'x=folder:{other}',)}
  opened = load(chest, **fields)
  assert opened.groups['003'] == '003' and len(opened.splits['ood_x']) == 2
