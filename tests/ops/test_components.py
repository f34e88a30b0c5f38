import jax
import numpy as np
import pytest
from scipy import ndimage

from jaxseg import parallel
from jaxseg.ops import components

STRUCTURE = {4: None, 8: np.ones((3, 3))}
H, W = 23, 31


def spiral(h, w):
  """One path of width 1 with gaps of width 1, from the edge to the centre."""
  mask = np.zeros((h + 4, w + 4), bool)
  mask[:2] = mask[-2:] = mask[:, :2] = mask[:, -2:] = True  # a wall
  (y, x), (dy, dx) = (2, 2), (0, 1)
  mask[y, x] = True
  while True:
    for _ in range(2):  # straight on, or turned once
      if not mask[y + dy, x + dx] and (
        not mask[y + 2 * dy, x + 2 * dx] or not 1 < y + 2 * dy < h + 2
        or not 1 < x + 2 * dx < w + 2
      ):  # fmt: skip
        break
      dy, dx = dx, -dy
    else:
      return mask[2:-2, 2:-2]
    y, x = y + dy, x + dx
    mask[y, x] = True


def snake(h, w):
  mask = np.zeros((h, w), bool)
  mask[::2] = True
  mask[1::4, -1] = mask[3::4, 0] = True
  return mask


def diagonals(h, w):
  y, x = np.mgrid[:h, :w]
  zigzag = np.abs((y + x) % 12 - 6) == np.abs((y - x) % 12 - 6)
  return zigzag & ((y + x) % 2 == 0)


def masks():
  rng = np.random.default_rng(0)
  noise = [rng.uniform(size=(H, W)) < p for p in (0.2, 0.4, 0.5, 0.6, 0.8)]
  smooth = ndimage.gaussian_filter(rng.normal(size=(2, H, W)), (0, 2, 2)) > 0
  paths = [spiral(H, W), snake(H, W), snake(W, H).T, diagonals(H, W)]
  return np.stack([
    *noise, *smooth, *paths, *(p[::-1, ::-1] for p in paths),
    np.zeros((H, W), bool), np.ones((H, W), bool),
  ])  # fmt: skip


def expected_largest(mask, connectivity):
  found, count = ndimage.label(mask, STRUCTURE[connectivity])
  if not count:
    return mask
  # SciPy, too, numbers components by their first pixel.
  return found == 1 + np.bincount(found.ravel())[1:].argmax()


def test_the_paths_are_long():
  for path in (spiral(H, W), snake(H, W)):
    assert ndimage.label(path)[1] == 1
    # Of width 1: each pixel but two ends has two neighbours along the path.
    neighbours = ndimage.convolve(
      path.astype(int), [[0, 1, 0], [1, 0, 1], [0, 1, 0]], mode='constant'
    )
    assert sorted(np.unique(neighbours[path])) == [1, 2]
    assert path.sum() > 0.4 * path.size


@pytest.mark.parametrize('connectivity', [4, 8])
def test_against_scipy(connectivity):
  mask = masks()
  function = jax.jit(
    components.largest_component, static_argnames='connectivity'
  )
  found = np.asarray(function(mask, connectivity=connectivity))
  assert found.dtype == bool
  for i, m in enumerate(mask):
    np.testing.assert_array_equal(
      found[i], expected_largest(m, connectivity), err_msg=str(i)
    )


@pytest.mark.parametrize('connectivity', [4, 8])
def test_labels_are_first_pixels(connectivity):
  mask = masks()
  function = jax.jit(components.label, static_argnames='connectivity')
  found = np.asarray(function(mask, connectivity=connectivity))
  for m, labels in zip(mask, found, strict=True):
    reference, count = ndimage.label(m, STRUCTURE[connectivity])
    assert (labels[~m] == components.NONE).all()
    for k in range(1, count + 1):
      first = np.flatnonzero(reference == k)[0]
      assert (labels[reference == k] == first).all()


def test_each_class_keeps_its_own():
  rng = np.random.default_rng(1)
  ids = rng.integers(0, 4, (6, 16, 16)).repeat(2, 1).repeat(2, 2)
  # Class 2 is absent: the component of pixel 0 is not to be taken for it.
  ids[0] = np.where(ids[0] == 2, 1, ids[0])
  ids[0, :4, :4] = 0
  ids[0, :2, :2] = 3
  found = jax.jit(components.largest_components, static_argnums=1)(ids, 4)
  expected = np.zeros_like(ids)
  for i in range(len(ids)):
    for k in (1, 2, 3):
      expected[i][expected_largest(ids[i] == k, 8)] = k
  np.testing.assert_array_equal(found, expected)
  assert not expected[0, 0, 0] and (expected[1] == 2).any()


def test_ties_go_to_the_first_pixel():
  mask = np.zeros((2, 4, 8), bool)
  mask[0, 2:, :2] = True
  mask[0, 1:3, 5:7] = True  # starts one row above, of the same size
  mask[1, 0, 6:] = mask[1, 3, 0] = mask[1, 3, 2:4] = True
  found = np.asarray(jax.jit(components.largest_component)(mask))
  np.testing.assert_array_equal(found[0, :, :4], False)
  np.testing.assert_array_equal(found[0, :, 4:], mask[0, :, 4:])
  np.testing.assert_array_equal(np.argwhere(found[1]), [[0, 6], [0, 7]])


def test_corners_connect_only_with_eight():
  mask = np.eye(6, dtype=bool)[None]
  eight = components.largest_component(mask, 8)
  four = components.largest_component(mask, 4)
  np.testing.assert_array_equal(eight, mask)
  np.testing.assert_array_equal(np.argwhere(four[0]), [[0, 0]])


def test_other_connectivity_is_refused():
  with pytest.raises(ValueError, match='connectivity is 6'):
    components.label(np.zeros((1, 4, 4), int), 6)


def test_devices_do_not_wait_for_one_another():
  """The loop's end is no collective, of which only one may run at a time."""
  mask = masks()[:16]
  mesh = parallel.make_mesh(8)
  with jax.set_mesh(mesh):
    sharded = jax.device_put(mask, parallel.over_data(mesh))
    program = jax.jit(components.largest_component).lower(sharded).compile()
    found = np.asarray(program(sharded))
    uneven = jax.jit(components.largest_component)(mask[:3])
  assert 'all-reduce' not in program.as_text()
  for i, m in enumerate(mask):
    np.testing.assert_array_equal(found[i], expected_largest(m, 8))
  np.testing.assert_array_equal(uneven, found[:3])
