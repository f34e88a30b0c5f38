"""The contact sheet shows what a data set holds, mistakes included."""

import numpy as np
import pytest

from jaxseg.data.formats import images
from jaxseg.data.inspection import sheet
from jaxseg.data.inspection.checks import Statistics
from jaxseg.data.source import Source
from jaxseg.errors import DataError

PALETTE = np.array([[0, 0, 0], [250, 10, 20], [10, 200, 30]], np.uint8)
SIZE = (40, 80)


def image(id_):
  if id_ == 'broken':
    raise DataError('x/broken.png: the image is empty, expected ...; remove it')
  return np.full((*SIZE, 1), 100, np.uint8)


def label(id_):
  ids = np.zeros(SIZE if id_ != 'small' else (8, 8), np.uint8)
  ids[10:30, 20:60] = 7 if id_ == 'strange' else 2
  return ids


@pytest.fixture
def source():
  return Source(
    name='cells',
    class_names=('background', 'nucleus', 'wall'),
    palette=PALETTE,
    channels=1,
    splits={},
    budgets={},
    groups={},
    image=image,
    label=label,
    has_label=lambda id_: not id_.startswith('u'),
    path=lambda id_: f'x/{id_}.png',
    licence='CC BY 4.0',
  )


def statistics(pixels=(900, 90, 10), counts=(10, 9, 1), labels=10, void=0):
  class_pixels, class_images = np.zeros((2, 256), np.int64)
  class_pixels[:3], class_images[:3] = pixels, counts
  class_pixels[images.VOID] = void
  return Statistics(
    images=20, labels=labels, sizes={SIZE: 20}, modes={'L': 20},
    class_pixels=class_pixels, class_images=class_images,
    beside_class=class_images * 1000,
  )  # fmt: skip


def count(picture, colour):
  return np.count_nonzero((picture == colour).all(-1))


def rows_of(picture, colour, left, right):
  """Lengths of the runs of a colour in each bar between two columns."""
  found = (picture[:, left:right] == colour).all(-1).sum(1)
  return [int(n) for n in found if n]


def test_images_and_overlays(source):
  ids = {'train': ['a', 'b', 'c'], 'unlabelled': ['u1', 'u2']}
  picture = sheet.contact_sheet(source, ids, statistics())
  assert picture.dtype == np.uint8 and picture.shape[1:] == (1120, 3)
  side, shown = sheet.SIDE, sheet.SIDE * sheet.SIDE // 2
  grey = count(picture, [100] * 3)
  # Five images, and what the overlays of three leave of theirs: 3/4.
  np.testing.assert_allclose(grey, shown * (5 + 3 * 0.75), rtol=0.01)
  tinted = (100 + PALETTE[2].astype(int)) // 2
  inside = count(picture, tinted)
  np.testing.assert_allclose(inside, 3 * shown * 0.25, rtol=0.15)
  assert count(picture, PALETTE[2]) > 3 * side  # outlines and the legend
  assert count(picture, PALETTE[1]) > 100  # the legend alone


def test_bars_are_the_shares(source):
  picture = sheet.contact_sheet(source, {}, statistics())
  logarithmic = rows_of(picture, sheet.BAR, 270, 600)
  linear = rows_of(picture, sheet.BAR, 690, 1010)
  longest = {round(n, -1) for n in linear}
  assert max(linear) == pytest.approx(300, abs=2)
  assert {300, 270, 30} <= longest
  # 90 %, 9 % and 1 % on a scale of four decades.
  lengths = sorted(set(logarithmic), reverse=True)
  for share in (0.9, 0.09, 0.01):
    expected = 300 * (1 + np.log10(share) / 4)
    assert any(abs(n - expected) < 4 for n in lengths), share


def test_images_are_spread_evenly(source):
  asked = []
  spy = source._replace(image=lambda id_: asked.append(id_) or image('a'))
  ids = [f'u{i:02d}' for i in range(21)]
  sheet.contact_sheet(spy, {'all': ids}, statistics(), images_per_split=5)
  assert asked == ['u00', 'u05', 'u10', 'u15', 'u20']


def test_a_sheet_grows_by_rows(source):
  def height(n, split='a'):
    ids = {'all': [f'{split}{i}' for i in range(n)]}
    return len(sheet.contact_sheet(source, ids, statistics(), 100))

  assert height(1) == height(4) < height(5) == height(8)
  assert height(4, 'u') == height(8, 'u') < height(9, 'u')


def test_mistakes_are_shown_in_their_place(source):
  ids = {'train': ['broken', 'small', 'strange', 'good']}
  picture = sheet.contact_sheet(source, ids, statistics())
  bottom = picture[-(sheet.SIDE + 40) :, sheet.GAP : -sheet.GAP].astype(int)
  cells = np.array_split(bottom, 4, axis=1)
  red = [np.count_nonzero(c[..., 0] > c[..., 2] + 60) for c in cells]
  assert min(red[:3]) > 100 and red[3] == 0
  # Where the image can be read, it stands beside the complaint.
  grey = [count(c, [100] * 3) for c in cells]
  assert grey[0] == 0
  assert grey[1] == grey[2] == pytest.approx(sheet.SIDE**2 / 2, rel=0.05)


def test_a_class_that_never_appears_is_red_and_void_has_a_row(source):
  whole = sheet.contact_sheet(source, {}, statistics())
  absent = statistics(pixels=(900, 100, 0), counts=(10, 10, 0))
  picture = sheet.contact_sheet(source, {}, absent)
  assert count(picture, sheet.WRONG) > 0 == count(whole, sheet.WRONG)
  void = sheet.contact_sheet(source, {}, statistics(void=50))
  assert len(void) > len(whole)
  assert count(void, images.VOID_COLOUR) > 100


def test_a_set_without_labels(source):
  nothing = statistics(pixels=(0, 0, 0), counts=(0, 0, 0), labels=0)
  picture = sheet.contact_sheet(source, {'unlabelled': ['u' * 300]}, nothing)
  assert count(picture, [100] * 3) == pytest.approx(128 * 64, rel=0.01)


def test_forty_classes_and_odd_names(source):
  names = tuple(f'class {i} ' + 'é漢字' * i for i in range(40))
  many = source._replace(
    name='\u7d30\u80de ' * 60, class_names=names,
    palette=np.arange(120, dtype=np.uint8).reshape(40, 3),
  )  # fmt: skip
  picture = sheet.contact_sheet(many, {'a\nb': ['x\ny']}, statistics())
  assert len(picture) > 40 * 20
