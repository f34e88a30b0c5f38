import numpy as np
import pytest

from jaxseg.data.annotations import readers, tables
from jaxseg.errors import DataError

NAMES = ('background', 'cat', 'dog')


@pytest.fixture
def write(tmp_path):
  """Returns a function that writes a CSV file and gives its path."""

  def write_file(*lines):
    path = tmp_path / 'a.csv'
    path.write_text('\n'.join(lines))
    return path

  return write_file


def test_boxes(write):
  path = write(
    'class,image,Top,left,bottom,right,by',
    'cat,a.png,1,2,11,22,me',
    '',
    '2, a.png ,0.5,0.5,9.5,9.5',
    ',b',
  )
  assert tables.read_boxes(path, NAMES) == {
    'a.png': [(1, 1, 2, 11, 22), (2, 0, 0, 10, 10)],
    'b': [],
  }


@pytest.mark.parametrize(
  'lines, sentence',
  [
    ([], "no column 'image'"),
    (['a,cat,1,2,3,4'], "no column 'image'"),
    (['image,class,top,left,bottom'], "no column 'right'"),
    (['a,fox,1,2,3,4'], "line 2: there is no class 'fox'"),
    (['a,cat,1,x,3,4'], "line 2: left is 'x'"),
    (['a,cat,1,nan,3,4'], "line 2: left is 'nan'"),
    (['a,cat,-1,2,3,4'], "line 2: top is '-1'"),
    (['a,cat,1,2'], "line 2: bottom is ''"),
    (['a,cat,5,2,5,4'], 'line 2: the box of .cat. is from 5, 2 to 5, 4'),
    (['a,background,1,2,3,4'], 'expected an object'),
  ],
)
def test_bad_boxes(write, lines, sentence):
  if lines and 'image' not in lines[0] and 'column' not in sentence:
    lines = ['image,class,top,left,bottom,right', *lines]
  with pytest.raises(DataError, match=sentence) as error:
    tables.read_boxes(write(*lines), NAMES)
  assert str(error.value).count('\n') == 0 and 'a.csv' in str(error.value)


@pytest.mark.parametrize(
  'lines',
  [
    ['a,cat,dog', 'b', 'c,background'],
    ['image,classes', 'a,cat; dog', 'b,', 'c,0'],
    ['Image,dog,background,cat', 'a,1,0,1', 'b,0,0,0', 'c,0,1,0'],
  ],
)
def test_tags(write, lines):
  found = readers.read_tags(write(*lines), NAMES)
  expected = {'a': [0, 1, 1], 'b': [0, 0, 0], 'c': [1, 0, 0]}
  assert found.keys() == expected.keys()
  for image, tags in expected.items():
    np.testing.assert_array_equal(found[image], tags)


@pytest.mark.parametrize('cells, found', [('1,2', "'2'"), ('1', '1 of them')])
def test_bad_columns_of_tags(write, cells, found):
  with pytest.raises(DataError, match=f'line 2 has {found}'):
    readers.read_tags(write('image,cat,dog', f'a,{cells}'), NAMES)
