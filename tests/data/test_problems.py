import csv
import os
import threading

import numpy as np
import pytest
from PIL import Image

from jaxseg import errors
from jaxseg.data import problems
from jaxseg.data.formats import images
from jaxseg.data.inspection import duplicates
from jaxseg.data.problems import Problem
from jaxseg.errors import DataError, UserError

NOTE = Problem('note', 'flat', 'set', 'one colour, expected pictures')
SKIP = Problem('skip', 'empty', 'a.png', 'empty, expected an image')
REFUSE = Problem('refuse', 'empty', 'b.png', 'empty, expected an image')


def test_table_puts_the_gravest_first():
  lines = problems.to_table([NOTE, SKIP, REFUSE]).splitlines()
  assert lines == [
    'refuse  empty  b.png: empty, expected an image',
    'skip    empty  a.png: empty, expected an image',
    'note    flat   set: one colour, expected pictures',
    '1 to refuse (1 empty); 1 to skip (1 empty); 1 to note (1 flat)',
  ]
  assert problems.to_table([]) == 'no problems found'


def test_table_is_bounded():
  many = [SKIP._replace(path=f'{i:02d}.png') for i in range(30)]
  lines = problems.to_table([*many, NOTE], shown=3).splitlines()
  assert len(lines) == 3 + 1 + 1 + 1
  assert lines[3] == 'skip    empty  and 27 more like these'
  assert lines[-1].startswith('30 to skip (30 empty)')


def test_json_and_csv_hold_all(tmp_path):
  odd = SKIP._replace(path='a\n"b",\udcff.png')
  problems.write_report(tmp_path / 'r.csv', [NOTE, odd])
  with open(tmp_path / 'r.csv', newline='', encoding='utf-8') as file:
    rows = list(csv.DictReader(file))
  assert [row['kind'] for row in rows] == ['empty', 'flat']
  assert rows[0]['path'] == 'a\n"b",\\udcff.png'
  assert problems.to_json([NOTE, odd]) == [odd._asdict(), NOTE._asdict()]


def test_one_line_that_can_be_printed():
  text = str(SKIP._replace(path='a\nb\udcff.png'))
  assert text == 'a\\nb\\udcff.png: empty, expected an image'


def test_from_error(tmp_path):
  path = tmp_path / 'label.png'
  path.touch()
  error = DataError(f'{path}: wrong, expected right', 'odd')
  expected = Problem('skip', 'odd', str(path), 'wrong, expected right')
  assert problems.from_error(error, 'skip', path) == expected
  # The message names another file than the one that was asked for.
  assert problems.from_error(error, 'skip', tmp_path / 'x.png') == expected
  bare = problems.from_error(UserError('so: it is'), 'refuse', 'x.png')
  assert bare == Problem('refuse', 'wrong', 'x.png', 'so: it is')


def test_notes_are_gathered_within_the_block_and_thread(tmp_path):
  Image.new('CMYK', (8, 8)).save(tmp_path / 'c.jpg')
  images.read_image(tmp_path / 'c.jpg', 3)  # nobody listens
  with problems.collect() as outer:
    with problems.collect() as inner:
      images.read_image(tmp_path / 'c.jpg', 3)
    other = threading.Thread(target=problems.mention, args=('k', 'p', 'm'))
    other.start()
    other.join()
  assert [p.kind for p in inner.problems] == ['cmyk']
  assert inner.modes == ['JPEG CMYK'] and outer.problems == []


def test_exit_codes(capsys):
  for error, code in ((UserError('a'), 2), (DataError('a', 'k'), 3)):
    with pytest.raises(SystemExit) as end, errors.friendly():
      raise error
    assert end.value.code == code
  assert capsys.readouterr().err == 'jaxseg: a\n' * 2


def test_digest():
  image = np.arange(12, dtype=np.uint8).reshape(3, 4)
  same = duplicates.digest(np.asfortranarray(image))
  assert duplicates.digest(image) == same
  for other in (image.T, image.reshape(4, 3), image + np.uint8(1)):
    assert duplicates.digest(other) != same
  assert duplicates.digest(image.view(np.int8)) != same


def test_pairs_across_and_within():
  digests = {'a': b'1', 'b': b'2', 'c': b'1', 'd': b'1'}
  left, right = ['a', 'b', 'gone'], ['c', 'b', 'd', 'lost']
  assert list(duplicates.same(digests, left, right)) == [('a', 'c'), ('a', 'd')]
  assert list(duplicates.repeats(digests, 'abcd')) == [('a', 'c'), ('a', 'd')]


def test_near_pairs_in_blocks(monkeypatch):
  monkeypatch.setattr(duplicates, '_BLOCK', 2)
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**63, 7, np.uint64)
  pictures = rng.integers(0, 255, (7, 256), np.uint8)
  other = hashes[[5, 0, 3]] ^ np.uint64(0b1111)  # 4 bits differ
  assert duplicates.near_pairs(
    (hashes, pictures), (other, pictures[[5, 0, 3]])
  ).tolist() == [[0, 1], [3, 2], [5, 0]]
  # One bit more; or the same bits of another picture.
  more = other ^ np.uint64(1 << 40)
  none = duplicates.near_pairs((hashes, pictures), (more, pictures[[5, 0, 3]]))
  assert none.shape == (0, 2)
  none = duplicates.near_pairs((hashes, pictures), (other, pictures[[1, 1, 1]]))
  assert none.shape == (0, 2)


def test_flat_pictures_are_not_alike():
  bits, small = duplicates.look(np.full((20, 30, 3), 7, np.uint8))
  assert bits == 0 and small.tolist() == [7] * 256
  one = np.array([bits]), small[None]
  assert len(duplicates.near_pairs(one, one)) == 0


def test_long_names_can_be_written(tmp_path):
  path = tmp_path / ('x' * 251 + '.csv')
  problems.write_report(path, [NOTE])
  assert os.listdir(tmp_path) == [path.name]
