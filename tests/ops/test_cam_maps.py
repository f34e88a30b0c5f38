"""Class maps as labels: by hand, one pixel after the other, SciPy's median."""

import jax
import numpy as np
import pytest
import scipy.ndimage
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.errors import UserError
from jaxseg.ops import cam
from jaxseg.ops.cam import Cues

cues = jax.jit(cam.cues, static_argnums=3)


def test_segmentation_by_hand():
  maps = np.zeros((2, 1, 3, 2), np.float32)
  maps[0, 0, :, 0] = [4.0, 1.0, 0.2]
  maps[0, 0, :, 1] = [9.0, 9.0, 9.0]  # of a class that is not kept
  maps[1] = -1.0
  kept = np.array([[1, 0], [1, 1]], bool)
  p = np.asarray(cam.segmentation(maps, kept, 0.2))
  assert_allclose(p.sum(-1), 1, atol=1e-6)
  assert_array_equal(p.argmax(-1), [[[1, 1, 0]], [[0, 0, 0]]])
  # Scores .2 and 1/4 of the class's highest.
  assert_allclose(p[0, 0, 1], np.array([0.2, 0.25, 0.0]) / 0.45, atol=1e-4)
  assert_allclose(p[1], np.broadcast_to([1.0, 0, 0], (1, 3, 3)))


def by_pixel(maps, tags, saliency, foreground, background):
  """SEC's cues of one image, as loops."""
  h, w, c = maps.shape
  smooth = scipy.ndimage.median_filter(saliency, 3, mode='nearest')
  last = sorted(smooth.ravel())[round(background * h * w) - 1]
  regions = {0: smooth <= last} if tags[0] else {}
  for k in range(c):
    if tags[k + 1] and maps[..., k].max() > 0:
      regions[k + 1] = maps[..., k] > foreground * maps[..., k].max()
  label = np.full((h, w), 255)
  by_size = sorted(regions, key=lambda k: (regions[k].sum(), k))
  for k in reversed(by_size):
    label[regions[k]] = k
  return label


def test_cues_as_loops():
  rng = np.random.default_rng(0)
  smooth = lambda x: scipy.ndimage.gaussian_filter(x, (0, 1.5, 1.5, 0))
  maps = smooth(rng.normal(size=(5, 9, 8, 4))).astype(np.float32)
  maps[..., 3] = -np.abs(maps[..., 3])  # a class that is nowhere
  saliency = rng.uniform(size=(5, 9, 8)).astype(np.float32)
  tags = (rng.random((5, 5)) < 0.7).astype(np.float32)
  tags[:, 4], tags[0, 0], tags[1] = 1, 0, [1, 1, 1, 1, 1]
  for fg, bg in ((0.2, 0.1), (0.6, 0.3)):
    found = np.asarray(cues(maps, tags, saliency, Cues(fg, bg)))
    wanted = [
      by_pixel(*x, fg, bg) for x in zip(maps, tags, saliency, strict=True)
    ]
    assert found.dtype == np.int32
    assert_array_equal(found, wanted)
    assert {0, 1, 2, 3, 255} <= set(np.unique(found)) <= {0, 1, 2, 3, 255}


def test_the_smaller_region_wins():
  maps = np.zeros((1, 4, 4, 2), np.float32)
  maps[0, :, :3, 0] = 1.0  # 12 pixels
  maps[0, :2, 1:, 1] = 1.0  # 6 pixels
  saliency = np.ones((1, 4, 4), np.float32)
  saliency[0, 2:, 2:] = 0  # after the median the last row's corner is lowest
  tags = np.ones((1, 3), np.float32)
  found = np.asarray(cues(maps, tags, saliency, Cues(background=0.2)))[0]
  assert_array_equal(found[:2, 1:], 2)
  assert_array_equal(found[:2, 0], 1)
  assert_array_equal(found[2:, :2], 1)
  assert found[3, 3] == 0 and found[3, 2] == 0  # 0 claims fewer than 12
  only = np.asarray(cues(maps, np.array([[0.0, 1, 0]]), saliency, Cues()))[0]
  assert_array_equal(only[:, :3], 1)
  assert_array_equal(only[:, 3], 255)


def test_median_filter():
  x = np.random.default_rng(0).normal(size=(2, 6, 7)).astype(np.float32)
  wanted = [scipy.ndimage.median_filter(i, 3, mode='nearest') for i in x]
  assert_array_equal(cam.median_filter(x), wanted)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'foreground': 1.0}, 'x.foreground is 1.0, must be between 0 and 1'),
    ({'background': 0.0}, 'x.background is 0.0'),
    ({'saliency': 'edges'}, "x.saliency is 'edges', must be one of features"),
  ],
)
def test_mistakes_are_told(changes, message):
  with pytest.raises(UserError) as error:
    cam.check('x', Cues(**changes))
  assert message in str(error.value)
  cam.check('x', Cues())
