"""Pictures show what the arrays say."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxseg import visualize

PALETTE = np.array([[0, 0, 0], [200, 0, 0], [0, 100, 50]], np.uint8)


def test_to_uint8_covers_the_range():
  image = np.array([-1, 0, 1, -3, 9, np.nan], np.float32)
  np.testing.assert_array_equal(
    visualize.to_uint8(image), [0, 128, 255, 0, 255, 0]
  )
  levels = np.arange(256, dtype=np.uint8)
  assert visualize.to_uint8(levels) is levels
  back = visualize.to_uint8(levels.astype(np.float32) / 127.5 - 1)
  np.testing.assert_array_equal(back, levels)
  with pytest.raises(TypeError, match='int64'):
    visualize.to_uint8(np.zeros(3, np.int64))


def test_colorize_paints_each_class_and_void():
  label = np.array([[0, 1], [2, 255]], np.int32)
  np.testing.assert_array_equal(
    visualize.colorize(label, PALETTE),
    [[[0, 0, 0], [200, 0, 0]], [[0, 100, 50], [224, 224, 192]]],
  )
  with pytest.raises(ValueError, match='palette of 3'):
    visualize.colorize(np.array([[3]]), PALETTE)
  with pytest.raises(ValueError, match='palette of 3'):
    visualize.colorize(np.array([[-1]]), PALETTE)


def test_overlay_tints_inside_outlines_and_spares_background_and_void():
  image = np.full((5, 6, 1), 100, np.uint8)
  label = np.zeros((5, 6), np.uint8)
  label[1:4, 1:4] = 1
  label[:, 5] = 255
  out = visualize.overlay(image, label, PALETTE, alpha=0.5)
  assert out.shape == (5, 6, 3) and out.dtype == np.uint8
  assert out[2, 2].tolist() == [150, 50, 50]  # inside: half and half
  assert out[1, 1].tolist() == [200, 0, 0]  # border: full colour
  for background in ((0, 0), (0, 5), (2, 5), (2, 4)):
    assert out[background].tolist() == [100, 100, 100]
  with pytest.raises(ValueError, match='differ'):
    visualize.overlay(image, label[:4], PALETTE)


def test_upscale_repeats_pixels():
  image = np.arange(6, dtype=np.uint8).reshape(2, 3)
  big = visualize.upscale(image, 7)
  assert big.shape == (6, 9)
  np.testing.assert_array_equal(big[::3, ::3], image)
  np.testing.assert_array_equal(big[2::3, 2::3], image)
  assert visualize.upscale(image, 3) is not None
  np.testing.assert_array_equal(visualize.upscale(image, 1), image)


def test_grid_places_every_image():
  rows = [
    [np.full((4, 4), 10, np.uint8), np.full((4, 4, 1), 20, np.uint8)],
    [np.full((4, 4, 3), 1.0, np.float32)],
  ]
  out = visualize.grid(rows, min_side=8, gap=2)
  assert out.shape == (18, 18, 3)
  assert (out[:8, :8] == 10).all() and (out[:8, 10:] == 20).all()
  assert (out[10:, :8] == 255).all()
  with pytest.raises(ValueError, match='at least one'):
    visualize.grid([[]])


def test_sample_grid_has_labels_below_images():
  images = np.linspace(-1, 1, 3 * 2 * 2, dtype=np.float32).reshape(3, 2, 2, 1)
  labels = np.array([0, 1, 2])[:, None, None] * np.ones((3, 2, 2), np.int32)
  out = visualize.sample_grid(images, labels, PALETTE, columns=2, min_side=2)
  assert out.shape == (4 * 4 - 2, 2 * 4 - 2, 3)
  np.testing.assert_array_equal(out[:2, :2], visualize.to_rgb(images[0]))
  assert (out[4:6, :2] == PALETTE[0]).all()
  assert (out[4:6, 4:6] == PALETTE[1]).all()
  np.testing.assert_array_equal(out[8:10, :2], visualize.to_rgb(images[2]))
  assert (out[12:14, :2] == PALETTE[2]).all()
  again = visualize.sample_grid(images, labels, PALETTE, columns=2, min_side=2)
  assert visualize.encode(out) == visualize.encode(again)


def test_picture_grid_takes_images_or_ids():
  ids = np.ones((3, 2, 2), np.int32)
  out = visualize.picture_grid(ids, PALETTE, columns=2, min_side=2)
  assert out.shape == (6, 6, 3)
  assert (out[:2, :2] == PALETTE[1]).all()
  images = np.zeros((3, 2, 2, 3), np.float32)
  assert visualize.picture_grid(images, PALETTE)[0, 0].tolist() == [128] * 3


def test_legend_shows_each_colour_and_grows_with_names():
  out = visualize.legend(['background', 'lung', 'x'], PALETTE)
  for color in PALETTE[1:]:
    assert (out == color).all(-1).sum() > 50
  longer = visualize.legend(['background', 'a much longer name', 'x'], PALETTE)
  assert longer.shape[1] > out.shape[1] and longer.shape[0] == out.shape[0]


def test_thumbnail_keeps_shape_and_label_colours():
  label = visualize.colorize(np.arange(40 * 20).reshape(40, 20) % 3, PALETTE)
  small = visualize.thumbnail(label, 10, smooth=False)
  assert small.shape == (10, 5, 3)
  assert {tuple(c) for c in small.reshape(-1, 3)} <= set(map(tuple, PALETTE))
  assert visualize.thumbnail(label, 100) is label


def test_write_png_round_trip_leaves_nothing_else(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
  path = tmp_path / 'new' / 'a.png'
  visualize.write_png(path, image)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
  assert [p.name for p in path.parent.iterdir()] == ['a.png']
  jpeg = Image.open(io.BytesIO(visualize.encode(image, 'JPEG')))
  assert jpeg.format == 'JPEG' and jpeg.size == (4, 5)
