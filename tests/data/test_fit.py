"""Squares of images of any shape, and back."""

import numpy as np
import pytest

from jaxseg.data import fit

TALL = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4)


def test_crop_takes_the_centre():
  assert fit.region((6, 4), 'crop') == (1, 0, 4, 4)
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
  assert fit.region((6, 4), 'squeeze') == (0, 0, 6, 4)
  np.testing.assert_array_equal(fit.label(TALL, 2, 'squeeze'), TALL[1::3, 1::2])


def test_without_a_policy_only_near_squares_are_squeezed():
  assert fit.region((110, 100), '') == (0, 0, 110, 100)
  assert fit.region((6, 4), '') == fit.region((6, 4), 'pad') == (0, -1, 6, 6)


@pytest.mark.parametrize('policy', fit.POLICIES)
@pytest.mark.parametrize('shape', [(6, 4), (4, 6), (5, 5), (7, 4), (4, 7)])
def test_undo_puts_every_pixel_back(policy, shape):
  label = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
  r = fit.region(shape, policy)
  part = fit.label(label, max(r[2:]), policy) if r[2] == r[3] else label
  back = fit.undo(part, shape, policy, 255)
  known = back != 255
  np.testing.assert_array_equal(back[known], label[known])
  covered = min(shape) ** 2 if policy == 'crop' else label.size
  assert known.sum() == covered
  np.testing.assert_array_equal(fit.seen(label, policy), back)
