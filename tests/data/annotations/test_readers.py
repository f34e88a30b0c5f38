import json
import time

import numpy as np
import pytest

from jaxseg.data import weak
from jaxseg.data.annotations import parsing, readers
from jaxseg.errors import DataError

NAMES = ('background', 'cat', 'dog')

SCRIBBLES = """<?xml version="1.0" encoding="utf-8"?>
<annotation>
  <filename>2007_000032.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <polygon>
    <tag>cat</tag>
    <point><X>11</X><Y>6</Y></point>
    <point><X>31</X><Y>6</Y></point>
    <point><X>31</X><Y>26</Y></point>
  </polygon>
  <polygon>
    <tag>background</tag>
    <point><X>6</X><Y>36</Y></point>
  </polygon>
</annotation>
"""

BOXES = """<annotation>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <object>
    <name>dog</name>
    <difficult>1</difficult>
    <bndbox><xmin>1</xmin><ymin>3</ymin><xmax>60</xmax><ymax>40</ymax></bndbox>
    <part>
      <name>head</name>
      <bndbox><xmin>2</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
    </part>
  </object>
  <object>
    <name>cat</name>
    <bndbox>
      <xmin>11.4</xmin><ymin>6</ymin><xmax>20</xmax><ymax>15.2</ymax>
    </bndbox>
  </object>
</annotation>
"""


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a file and gives its path."""

  def write_file(content, name='a.xml'):
    path = tmp_path / name
    if isinstance(content, str):
      content = content.encode()
    path.write_bytes(content)
    return path

  return write_file


def test_scribbles(write):
  path = write(SCRIBBLES)
  label = readers.read_scribble_xml(path, NAMES, width=1)
  expected = np.full((40, 60), 255, np.uint8)
  expected[5, 10:31] = 1  # the file counts from 1
  expected[5:26, 30] = 1
  expected[35, 5] = 0
  np.testing.assert_array_equal(label, expected)
  thick = readers.read_scribble_xml(path, NAMES, (40, 60))
  assert (thick[4:7, 12:29] == 1).all() and (thick[3, 12:29] == 255).all()
  assert set(np.unique(thick)) == {0, 1, 255}
  assert np.count_nonzero(thick == 0) < 12


def test_a_size_from_outside_rules(write):
  path = write(SCRIBBLES.replace('<width>60', '<width>0'))
  label = readers.read_scribble_xml(path, NAMES, (41, 62))
  assert label.shape == (41, 62)


def test_later_strokes_lie_on_top(write):
  path = write(SCRIBBLES.replace('<X>6</X><Y>36</Y>', '<X>20</X><Y>6</Y>'))
  label = readers.read_scribble_xml(path, NAMES, width=1)
  assert label[5, 19] == 0 and label[5, 18] == 1


def test_strokes_that_slip_over_the_border_are_clipped(write):
  path = write(SCRIBBLES.replace('<X>31</X><Y>6</Y>', '<X>70</X><Y>6</Y>'))
  label = readers.read_scribble_xml(path, NAMES, width=1)
  assert (label[5, 10:] == 1).all() and (label[5, :10] == 255).all()


def test_voc_boxes(write):
  boxes, size = readers.read_voc_boxes(write(BOXES), NAMES)
  assert size == (40, 60)
  assert boxes == [(2, 2, 0, 40, 60), (1, 5, 10, 16, 20)]
  label = weak.draw_boxes(boxes, size, width=1)
  assert label[20, 30] == 2 and label[10, 15] == 1 and label[0, 0] == 0


def test_acdc_scribbles():
  stored = np.array([[0.0, 4.0], [3.0, 4.0]])
  label = readers.acdc_scribbles(stored)
  assert label.dtype == np.uint8
  np.testing.assert_array_equal(label, [[0, 255], [3, 255]])
  with pytest.raises(ValueError, match='hold 5, expected classes 0 to 3'):
    readers.acdc_scribbles(stored + 1)
  with pytest.raises(ValueError, match='1.5'):
    readers.acdc_scribbles(stored / 2)
  other = readers.acdc_scribbles(np.array([0, 5, 9]), unlabelled=9)
  np.testing.assert_array_equal(other, [0, 5, 255])


@pytest.mark.parametrize(
  'name, content',
  [
    ('tags.csv', '\ufeffa,cat\r\n\r\n b , dog ,background\nc,2,1\nd\n'),
    (
      'tags.JSON',
      json.dumps(
        {'a': ['cat'], 'b': ['dog', 'background'], 'c': [2, 1], 'd': []}
      ),
    ),
  ],
)
def test_tags(write, name, content):
  tags = readers.read_tags(write(content, name), NAMES)
  assert list(tags) == ['a', 'b', 'c', 'd']
  assert all(t.dtype == np.float32 for t in tags.values())
  np.testing.assert_array_equal(
    list(tags.values()), [[0, 1, 0], [1, 0, 1], [0, 1, 1], [0, 0, 0]]
  )


def test_names_that_are_numbers_are_names(write):
  digits = ('background', '0', '1', '2')
  tags = readers.read_tags(write('a,0\n', 'tags.csv'), digits)
  np.testing.assert_array_equal(tags['a'], [0, 1, 0, 0])


BOMB = (
  '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "ha">'
  + ''.join(f'<!ENTITY x{i} "{f"&x{i - 1};" * 10}">' for i in range(1, 30))
  + ']><annotation>&x29;</annotation>'
).replace('&x0;', '&x;')

BAD_SCRIBBLES = {
  'empty': ('', 'not readable XML', 'bad_xml'),
  'cut off': (SCRIBBLES[:300], 'not readable XML', 'bad_xml'),
  'not text': (b'\x89PNG\r\n\x1a\n\0\xff', 'UTF-8', 'not_text'),
  'bomb': (BOMB, 'entities', 'bad_xml'),
  'external': (
    '<!doctype a SYSTEM "file:///etc/passwd"><a/>',
    'entities',
    'bad_xml',
  ),
  'class': (
    SCRIBBLES.replace('>cat', '>cow'),
    "no class 'cow', expected one of background, cat, dog",
    'unknown_class',
  ),
  'no class': (
    SCRIBBLES.replace('<tag>cat</tag>', ''),
    "no class 'None'",
    'unknown_class',
  ),
  'point': (SCRIBBLES.replace('<X>31', '<X>x'), "<X> .* 'x'", 'bad_xml'),
  'infinite': (SCRIBBLES.replace('<X>31', '<X>inf'), "'inf'", 'bad_xml'),
  'no Y': (SCRIBBLES.replace('<Y>6</Y>', ''), "<Y> .* 'None'", 'bad_xml'),
  'outside': (
    SCRIBBLES.replace('<X>6</X><Y>36</Y>', '<X>70</X><Y>36</Y>'),
    'x=70, y=36 and lies outside the image of 60x40',
    'size_mismatch',
  ),
  'far outside': (
    SCRIBBLES.replace('<X>31</X><Y>26</Y>', '<X>1e9</X><Y>26</Y>'),
    'lies outside the image of 60x40',
    'size_mismatch',
  ),
  'no size': (
    SCRIBBLES.replace('size>', 'sizes>'),
    'no <size>',
    'bad_xml',
  ),
  'size': (
    SCRIBBLES.replace('<width>60', '<width>1e9'),
    'from 1 to 20000',
    'bad_xml',
  ),
}


@pytest.mark.parametrize('case', BAD_SCRIBBLES)
def test_bad_scribbles(write, case):
  content, said, kind = BAD_SCRIBBLES[case]
  path = write(content)
  start = time.monotonic()
  with pytest.raises(DataError, match=said) as error:
    readers.read_scribble_xml(path, NAMES)
  assert time.monotonic() - start < 2
  assert str(error.value).startswith(f'{path}: ') and 'expected' in str(
    error.value
  )
  assert error.value.kind == kind


def test_too_much(write, monkeypatch):
  monkeypatch.setattr(readers, 'MAX_POINTS', 3)
  with pytest.raises(DataError, match='more than 3 points'):
    readers.read_scribble_xml(write(SCRIBBLES), NAMES)
  monkeypatch.setattr(parsing, 'MAX_BYTES', 50)
  with pytest.raises(DataError, match='expected at most 50') as error:
    readers.read_scribble_xml(write(SCRIBBLES), NAMES)
  assert error.value.kind == 'too_large'


def test_deeply_nested_xml(write):
  path = write('<a>' * 200_000 + '</a>' * 200_000)
  with pytest.raises(DataError, match='size'):
    readers.read_scribble_xml(path, NAMES)


@pytest.mark.parametrize(
  'before, after, said',
  [
    ('<xmin>11.4', '<xmin>40', "box of 'cat' has nothing inside"),
    ('<xmin>11.4', '<xmin>', "<xmin> in <bndbox> is ''"),
    ('>cat<', '>sheep<', "no class 'sheep'"),
    ('bndbox>', 'box>', "<xmin> in <bndbox> is 'None'"),
  ],
)
def test_bad_boxes(write, before, after, said):
  content = BOXES.replace(before, after)
  assert content != BOXES
  with pytest.raises(DataError, match=said):
    readers.read_voc_boxes(write(content), NAMES)


@pytest.mark.parametrize(
  'name, content, said, kind',
  [
    (
      't.csv',
      'a,cat\nb,horse\n',
      "'b': there is no class 'horse'",
      'unknown_class',
    ),
    ('t.csv', 'image,cat,dgo\na,1,0\n', "line 1 names 'dgo'", 'unknown_class'),
    ('t.csv', 'a,cat,7\n', "no class '7'", 'unknown_class'),
    ('t.csv', 'a,cat\na,dog\n', "'a' is listed twice", 'listed_twice'),
    ('t.csv', 'a,' + 'x' * 200_000, 'not readable CSV', 'bad_csv'),
    ('t.json', '{"a": ["cat"], "a": []}', "'a' is listed", 'listed_twice'),
    (
      't.json',
      '{"a": ["cow"]}',
      "'a': there is no class 'cow'",
      'unknown_class',
    ),
    ('t.json', '{"a": "cat"}', 'holds no tags', 'bad_json'),
    ('t.json', '{"a": [{"cat": 1}]}', 'holds no tags', 'bad_json'),
    ('t.json', '["cat"]', 'holds no tags', 'bad_json'),
    ('t.json', 'null', 'holds no tags', 'bad_json'),
    ('t.json', '{"a": [', 'not readable JSON', 'bad_json'),
    ('t.json', '[' * 100_000, 'not readable JSON', 'bad_json'),
  ],
)
def test_bad_tags(write, name, content, said, kind):
  path = write(content, name)
  with pytest.raises(DataError, match=said) as error:
    readers.read_tags(path, NAMES)
  assert str(error.value).startswith(f'{path}: ')
  assert error.value.kind == kind


def test_missing_file(tmp_path):
  with pytest.raises(DataError, match='No such file') as error:
    readers.read_tags(tmp_path / 'no.csv', NAMES)
  assert error.value.kind == 'unreadable'
