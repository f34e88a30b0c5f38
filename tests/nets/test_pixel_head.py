"""Labels of pixels, against NumPy and `jax.image.resize`."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets import pixel_head

SIZES, CHANNELS, K, R = (4, 8, 16), (5, 3, 2), 3, 16


@pytest.fixture(scope='module')
def maps():
  rng = np.random.default_rng(0)
  return [
    rng.normal(size=(2, s, s, c)).astype(np.float32)
    for s, c in zip(SIZES, CHANNELS, strict=True)
  ]


def init(members, seed=0):
  params = pixel_head.init(
    jax.random.key(seed), list(CHANNELS), K, members, (6, 4)
  )
  rng = np.random.default_rng(seed)
  params['bias'] = [
    rng.normal(size=b.shape).astype(np.float32) for b in params['bias']
  ]
  return params


def everywhere(n=2):
  row, column = np.mgrid[:R, :R].reshape(2, -1)
  return np.tile(row, (n, 1)), np.tile(column, (n, 1))


def enlarged(x):
  shape = (x.shape[0], R, R, x.shape[-1])
  return np.asarray(jax.image.resize(x, shape, 'bilinear'))


def test_pixels_are_those_of_the_enlarged_maps(maps):
  found = pixel_head.at_pixels(maps, *everywhere(), R)
  for x, map_ in zip(found, maps, strict=True):
    assert_allclose(x.reshape(2, R, R, -1), enlarged(map_), atol=1e-6)


def test_logits_of_one_pixel_by_hand(maps):
  params, (i, row, column) = init(2), (1, 3, 12)
  pixel = np.concatenate([enlarged(x)[i, row, column] for x in maps])
  at = np.full((2, 1), row), np.full((2, 1), column)
  features = pixel_head.at_pixels(maps, *at, R)
  # Both members look at the second image.
  found = pixel_head.pixel_logits(
    params, [x[np.array([i, i])] for x in features]
  )
  assert found.shape == (2, 1, K)
  for member in range(2):
    x = pixel @ np.concatenate([k[member] for k in params['first']])
    for kernel, bias in zip(params['dense'], params['bias'][:-1], strict=True):
      x = np.maximum(x + bias[member], 0) @ np.asarray(kernel[member])
    x = x + params['bias'][-1][member]
    assert_allclose(found[member, 0], x, atol=1e-5)


def test_whole_images_are_their_pixels(maps):
  params = init(3)
  found = pixel_head.probabilities(params, maps, R)
  features = pixel_head.at_pixels(maps, *everywhere(), R)
  expected = 0
  for member in range(3):
    one = jax.tree.map(lambda x, m=member: x[m : m + 1], params)
    for i in range(2):
      logits = pixel_head.pixel_logits(one, [x[i : i + 1] for x in features])
      probabilities = np.zeros((2, R * R, K))
      probabilities[i] = jax.nn.softmax(logits[0])
      expected = expected + probabilities / 3
  assert_allclose(found, expected.reshape(2, R, R, K), atol=1e-5)


def test_drawn_pixels_are_of_their_images_and_differ_by_member():
  size, members, pixels = 8, 3, 5
  row, column = np.mgrid[:size, :size]
  place = (row * size + column)[None] + 100 * np.arange(2)[:, None, None]
  maps = [place[..., None].astype(np.float32)]
  features, label = pixel_head.draw_pixels(
    jax.random.key(0), maps, place.astype(np.int32), members, pixels
  )
  assert label.shape == (members, 2 * pixels)
  assert_array_equal(features[0][..., 0], label)
  # Half of each member's pixels are of either image.
  assert_array_equal(label // 100, np.repeat([[0, 1]], pixels, 1).repeat(3, 0))
  assert len({tuple(x) for x in np.asarray(label)}) == members


def test_only_labelled_pixels_are_drawn():
  label = np.full((3, 8, 8), 255, np.int32)
  label[0, 2, 3], label[0, 7, 7], label[1, 0, 0] = 4, 5, 6
  place = np.arange(64.0).reshape(1, 8, 8, 1).repeat(3, 0).astype(np.float32)
  features, found = pixel_head.draw_pixels(
    jax.random.key(0), [place], label, 2, 20
  )
  found = np.asarray(found).reshape(2, 3, 20)
  assert set(found[:, 0].ravel()) == {4, 5}
  assert set(found[:, 1].ravel()) == {6}
  assert set(found[:, 2].ravel()) == {255}  # an image without any
  at = np.asarray(features[0]).reshape(2, 3, 20)
  assert set(at[:, 0].ravel()) == {19.0, 63.0}


def test_standardised_maps_have_no_mean_and_unit_deviation(maps):
  mean, square = pixel_head.moments([3 * x + 1 for x in maps])
  std = [np.sqrt(b - a * a) for a, b in zip(mean, square, strict=True)]
  found = pixel_head.standardize([3 * x + 1 for x in maps], mean, std)
  for x in found:
    assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-5)
    assert_allclose(x.std((0, 1, 2)), 1, atol=1e-4)
  flat = pixel_head.standardize([np.ones((1, 2, 2, 1))], [1.0], [0.0])
  assert_array_equal(flat[0], 0)
