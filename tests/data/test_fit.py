"""Images of any shape as the networks see them, and back."""

import numpy as np
import pytest

from jaxseg import config as jaxseg_config
from jaxseg.data import fit

TALL = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)


def test_crop_takes_the_centre():
  assert fit.region((6, 4), 8, 'crop') == (1, 0, 4, 4)
  np.testing.assert_array_equal(fit.label(TALL, 4, 'crop'), TALL[1:5])
  cropped = fit.image(TALL.T[..., None], 4, 'crop')
  np.testing.assert_array_equal(cropped[..., 0], TALL.T[:, 1:5])


def test_pad_adds_black_and_void():
  square = fit.label(TALL, 6, 'pad')
  np.testing.assert_array_equal(square[:, 1:5], TALL)
  assert (square[:, [0, 5]] == 255).all()
  image = fit.image(TALL[..., None] + 1, 6, 'pad')[..., 0]
  np.testing.assert_array_equal(image[:, 1:5], TALL + 1)
  assert (image[:, [0, 5]] == 0).all()


def test_squeeze_shows_all():
  assert fit.region((6, 4), 8, 'squeeze') == (0, 0, 6, 4)
  np.testing.assert_array_equal(fit.label(TALL, 2, 'squeeze'), TALL[1::3, 1::2])


def test_without_a_policy_only_near_squares_are_squeezed():
  assert fit.region((110, 100), 8, '') == (0, 0, 110, 100)
  padded = fit.region((6, 4), 8, 'pad')
  assert fit.region((6, 4), 8, '') == padded == (0, -1, 6, 6)


@pytest.mark.parametrize('policy', fit.POLICIES)
@pytest.mark.parametrize('shape', [(6, 4), (4, 6), (5, 5), (7, 4), (4, 7)])
def test_undo_puts_every_pixel_back(policy, shape):
  label = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
  r = fit.region(shape, 8, policy)
  part = fit.label(label, max(r[2:]), policy) if r[2] == r[3] else label
  back = fit.undo(part, shape, 8, policy, 255)
  known = back != 255
  np.testing.assert_array_equal(back[known], label[known])
  covered = min(shape) ** 2 if policy == 'crop' else label.size
  assert known.sum() == covered
  np.testing.assert_array_equal(fit.seen(label, 8, policy), back)


@pytest.mark.parametrize(
  ('shape', 'size', 'policy', 'expected'),
  [
    # Cityscapes as the networks see it: the same aspect, nothing to decide.
    ((1024, 2048), (128, 256), 'crop', (0, 0, 1024, 2048)),
    ((1024, 2048), (128, 256), 'pad', (0, 0, 1024, 2048)),
    ((1024, 2048), (128, 256), '', (0, 0, 1024, 2048)),
    # Too tall for 1:2, a square: half of its rows, or as many columns again.
    ((100, 100), (32, 64), 'crop', (25, 0, 50, 100)),
    ((100, 100), (32, 64), 'pad', (0, -50, 100, 200)),
    ((100, 100), (32, 64), '', (0, -50, 100, 200)),
    ((100, 100), (32, 64), 'squeeze', (0, 0, 100, 100)),
    # Too wide for 3:2 (height by width), the sides rounded: 90 / 1.5 = 60
    # columns stay of 100; around 100 columns are 150 rows.
    ((90, 100), (96, 64), 'crop', (0, 20, 90, 60)),
    ((90, 100), (96, 64), 'pad', (-30, 0, 150, 100)),
    ((10, 31), (32, 64), 'crop', (0, 5, 10, 20)),
    ((10, 31), (32, 64), 'pad', (-3, 0, 16, 31)),  # 15.5 rows, rounded
    # 1 : 2.2 is 1.1 times as wide as 1 : 2, 1 : 2.22 more than that.
    ((100, 220), (32, 64), '', (0, 0, 100, 220)),
    ((100, 222), (32, 64), '', (-6, 0, 111, 222)),
    ((110, 200), (32, 64), '', (0, 0, 110, 200)),
  ],
)
def test_regions_of_rectangles(shape, size, policy, expected):
  assert fit.region(shape, size, policy) == expected
  assert fit.same_aspect(shape, size) == (shape == (1024, 2048))


def test_crop_and_pad_of_a_rectangle():
  label = np.arange(16, dtype=np.uint8).reshape(4, 4)
  np.testing.assert_array_equal(fit.label(label, (2, 4), 'crop'), label[1:3])
  padded = fit.label(label, (4, 8), 'pad')
  np.testing.assert_array_equal(padded[:, 2:6], label)
  assert (padded[:, [0, 1, 6, 7]] == 255).all()
  image = fit.image(label[..., None], (4, 2), 'crop')[..., 0]
  np.testing.assert_array_equal(image, label[:, 1:3])
  seen = fit.seen(label, (2, 4), 'crop')
  np.testing.assert_array_equal(seen[1:3], label[1:3])
  assert (seen[[0, 3]] == 255).all()


@pytest.mark.parametrize('policy', fit.POLICIES)
@pytest.mark.parametrize('size', [(4, 8), (12, 8)])
@pytest.mark.parametrize('shape', [(6, 4), (4, 6), (5, 5), (8, 19)])
def test_a_rectangle_and_back(policy, size, shape):
  """Each pixel that was seen is at its place again, all others are void."""
  label = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
  r = fit.region(shape, size, policy)
  inside = np.full((r.height, r.width), 255, np.uint8)
  for y in range(r.height):
    for x in range(r.width):
      there = r.top + y, r.left + x
      if 0 <= there[0] < shape[0] and 0 <= there[1] < shape[1]:
        inside[y, x] = label[there]
  back = fit.undo(inside, shape, size, policy, 255)
  known = back != 255
  np.testing.assert_array_equal(back[known], label[known])
  np.testing.assert_array_equal(fit.seen(label, size, policy), back)
  if policy != 'crop':
    assert known.all()
  if policy in ('crop', 'pad'):  # one side is rounded to whole pixels
    off = r.height - r.width * size[0] / size[1]
    assert min(abs(off), abs(off * size[1] / size[0])) <= 0.5


def test_size_of_a_config():
  data = jaxseg_config.default().data
  assert fit.size(data) == (64, 64)
  data.resolution, data.width = 128, 256
  assert fit.size(data) == (128, 256)
  fit.check_size(data)
