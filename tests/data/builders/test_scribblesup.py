"""ScribbleSup from a miniature of the official layout."""

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import prepared
from jaxseg.data.annotations.readers import read_scribble_xml
from jaxseg.data.builders import scribblesup, voc2012
from jaxseg.errors import DataError, UserError

VAL = ['2007_000033']
SCRIBBLED = ['2007_000032', '2008_000002']  # train of VOC and of SBD
WIDTH, HEIGHT = 40, 30
FULL = np.tile(np.arange(HEIGHT, dtype=np.uint8)[:, None] % 21, (1, WIDTH))


def xml(strokes):
  """The published form: (class name, [(X, Y), ...]) each."""
  polygons = ''.join(
    f'<polygon><tag>{tag}</tag>'
    + ''.join(f'<point><X>{x}</X><Y>{y}</Y></point>' for x, y in points)
    + '</polygon>'
    for tag, points in strokes
  )
  return (
    '<annotation><folder>VOC2012</folder><filename>x.jpg</filename>'
    f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth>'
    f'</size><segmented>1</segmented>{polygons}</annotation>'
  )


@pytest.fixture
def root(tmp_path):
  """--manual_dir with VOC 2012 and the scribbles."""
  folder = tmp_path / 'manual' / 'VOCdevkit' / 'VOC2012'
  scribbles = tmp_path / 'manual' / 'scribble_annotation' / 'pascal_2012'
  lists = folder / 'ImageSets' / 'Segmentation'
  for path in (folder / 'JPEGImages', folder / 'SegmentationClass', lists):
    path.mkdir(parents=True)
  scribbles.mkdir(parents=True)
  (lists / 'val.txt').write_text('\n'.join(VAL))
  for id_ in VAL + SCRIBBLED:
    image = Image.new('RGB', (WIDTH, HEIGHT), (90, 120, 30))
    image.save(folder / 'JPEGImages' / f'{id_}.jpg')
    strokes = [
      ('background', [(5, 4), (30, 4)]),
      ('plane', [(10, 15), (10, 20), (20, 20)]),
      ('monitor', [(30, 25), (33, 25)]),
    ]
    (scribbles / f'{id_}.xml').write_text(xml(strokes))
  Image.fromarray(FULL).save(folder / 'SegmentationClass' / f'{VAL[0]}.png')
  return tmp_path / 'manual'


@pytest.fixture
def builder():
  return prepared.find_builder('scribblesup')


def test_scribbles_train_and_full_masks_score(root, builder):
  splits = builder.scan(root)
  ids = {name: [r.id for r in records] for name, records in splits.items()}
  assert ids == {'train': SCRIBBLED, 'test': VAL}
  np.testing.assert_array_equal(splits['test'][0].label(), FULL)


def test_scribbles_are_drawn_and_all_else_is_unlabelled(root, builder):
  label = builder.scan(root)['train'][0].label()
  assert label.shape == (HEIGHT, WIDTH)
  # Rows and columns count from 0, the X and Y of the files from 1.
  assert (label[3, 4:30] == voc2012.CLASS_NAMES.index('background')).all()
  assert (label[14:20, 9] == voc2012.CLASS_NAMES.index('aeroplane')).all()
  assert (label[19, 9:20] == voc2012.CLASS_NAMES.index('aeroplane')).all()
  assert (label[24, 29:33] == voc2012.CLASS_NAMES.index('tv/monitor')).all()
  assert (label[8:11] == 255).all() and (label[:, 36:] == 255).all()
  path = root / f'scribble_annotation/pascal_2012/{SCRIBBLED[0]}.xml'
  names = scribblesup.XML_NAMES
  expected = read_scribble_xml(path, names, (HEIGHT, WIDTH), width=3)
  np.testing.assert_array_equal(label, expected)


def test_names_of_the_files_stand_for_the_classes_of_voc():
  pairs = zip(scribblesup.XML_NAMES, voc2012.CLASS_NAMES, strict=True)
  different = {a: b for a, b in pairs if a != b}
  assert different == {
    'plane': 'aeroplane',
    'bike': 'bicycle',
    'table': 'dining table',
    'plant': 'potted plant',
    'monitor': 'tv/monitor',
  }


def test_an_unknown_class_names_the_file(root, builder):
  path = root / f'scribble_annotation/pascal_2012/{SCRIBBLED[0]}.xml'
  path.write_text(xml([('aeroplain', [(1, 1), (2, 2)])]))
  with pytest.raises(DataError, match=rf'{SCRIBBLED[0]}\.xml: .*aeroplain'):
    builder.scan(root)['train'][0].label()


def test_wrong_counts_are_refused_naming_both_numbers(root, builder):
  with pytest.raises(UserError, match=r'2 in .train. instead of 10582'):
    builder.check(root, allow_partial=False)
  assert builder.check(root, allow_partial=True) == {'train': 2, 'test': 1}


def test_a_missing_folder_is_named_with_the_instructions(root, builder):
  (root / 'scribble_annotation').rename(root / 'elsewhere')
  with pytest.raises(
    UserError, match=r'pascal_2012: .*scribble_annotation\.zip'
  ):
    builder.scan(root)


def test_written_and_read_back(root, builder, tmp_path):
  data_dir = str(tmp_path / 'data')
  prepared.prepare('scribblesup', root, data_dir, allow_partial=True)
  source = prepared.open_prepared('scribblesup', 3, data_dir=data_dir)
  for records in builder.scan(root).values():
    for record in records:
      np.testing.assert_array_equal(source.label(record.id), record.label())
  assert source.image(SCRIBBLED[0]).shape == (HEIGHT, WIDTH, 3)
  assert np.flatnonzero(source.classes_in(SCRIBBLED[0])).tolist() == [
    0,
    1,
    20,
    255,
  ]
