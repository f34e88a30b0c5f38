import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data import transforms
from jaxseg.errors import UserError


@pytest.fixture
def example():
  """A smooth shape, and the image drawn from its label."""
  y, x = np.indices((64, 64))
  label = ((y - 28) ** 2 + 2 * (x - 36) ** 2 < 300).astype(np.uint8)
  label[40:50, 10:30] = 2
  return np.float32(label[..., None]) - 1, label


def rng(seed=0):
  return np.random.default_rng(seed)


def set_all(augment, **values):
  for name, value in values.items():
    augment[name] = value
  return augment


def test_identity(config, example):
  augment = config.data.augment
  assert transforms.is_identity(augment)
  image, label = transforms.augment(*example, rng(), augment)
  np.testing.assert_array_equal(image, example[0])
  np.testing.assert_array_equal(label, example[1])
  for name in transforms.FIELDS:
    assert name in augment
    changed = set_all(config.copy_and_resolve_references().data.augment)
    changed[name] = True if name.startswith('flip') else 0.1
    assert not transforms.is_identity(changed)
  assert set(transforms.FIELDS) == set(augment)


def test_flip(config, example):
  augment = set_all(config.data.augment, flip=True)
  flipped = 0
  for seed in range(40):
    image, label = transforms.augment(*example, rng(seed), augment)
    if np.array_equal(label, example[1][:, ::-1]):
      np.testing.assert_array_equal(image, example[0][:, ::-1])
      flipped += 1
    else:
      np.testing.assert_array_equal(image, example[0])
  assert 10 < flipped < 30


@pytest.mark.parametrize('seed', range(4))
def test_image_and_label_stay_aligned(config, example, seed):
  augment = set_all(
    config.data.augment, flip=True, shift=0.1, scale=0.2, rotate=30.0
  )
  image, label = transforms.augment(*example, rng(seed), augment)
  assert not np.array_equal(label, example[1])
  assert set(np.unique(label)) <= {0, 1, 2}  # no void, no new ids
  # Inside the regions, where linear resampling mixes nothing, they agree.
  inner = ndimage.minimum_filter(label, 5) == ndimage.maximum_filter(label, 5)
  assert inner.mean() > 0.6
  np.testing.assert_allclose(
    image[inner][:, 0], label[inner] - np.float32(1), atol=1e-5
  )


def test_shift_is_a_fraction_of_the_side(config):
  image = np.zeros((64, 64, 1), np.float32)
  image[28:36, 28:36] = 1
  augment = set_all(config.data.augment, shift=0.25)
  moved, _ = transforms.augment(image, None, rng(3), augment)
  expected = 0.25 * 64 * rng(3).uniform(-1, 1, 7)[1:3]
  offset = np.array(ndimage.center_of_mass(moved[..., 0])) - 31.5
  np.testing.assert_allclose(offset, expected, atol=0.05)


def test_scale_and_rotation_are_about_the_centre(config, example):
  label = example[1]
  area = (label == 1).sum()
  augment = set_all(config.data.augment, scale=0.3)
  _, scaled = transforms.augment(*example, rng(1), augment)
  factor = 1 + 0.3 * rng(1).uniform(-1, 1, 7)[3]
  np.testing.assert_allclose((scaled == 1).sum(), area * factor**2, rtol=0.05)
  augment = set_all(config.data.augment, scale=0.0, rotate=90.0)
  image, turned = transforms.augment(*example, rng(1), augment)
  np.testing.assert_allclose((turned == 1).sum(), area, rtol=0.05)


def test_colour_leaves_the_label(config, example):
  augment = set_all(config.data.augment, brightness=0.5, contrast=0.5)
  image, label = transforms.augment(*example, rng(2), augment)
  np.testing.assert_array_equal(label, example[1])
  assert image.min() >= -1 and image.max() <= 1
  assert np.abs(image - example[0]).max() > 0.05
  u = rng(2).uniform(-1, 1, 7)
  mean = example[0].mean()
  expected = mean + (example[0] - mean) * (1 + 0.5 * u[6]) + 0.5 * u[5]
  np.testing.assert_allclose(image, expected.clip(-1, 1), atol=1e-6)


def colours(seed=0):
  """Random colours, float32 [32, 32, 3] in [-1, 1]."""
  return rng(seed).uniform(-1, 1, (32, 32, 3)).astype(np.float32)


def drawn(seed):
  """The numbers that `augment` draws, see there."""
  return rng(seed).uniform(-1, 1, 15)


def test_vertical_flip(config, example):
  augment = set_all(config.data.augment, flip=True, flip_vertical=True)
  seen = set()
  for seed in range(30):
    image, label = transforms.augment(*example, rng(seed), augment)
    np.testing.assert_array_equal(image[..., 0], label - np.float32(1))
    steps = [
      (a, b)
      for a in (1, -1)
      for b in (1, -1)
      if np.array_equal(label, example[1][::a, ::b])
    ]
    seen |= set(steps)
  assert len(seen) == 4


def test_flips_within_a_resampling_are_the_same_flips(config, example):
  """An affine matrix with a mirror moves as a mirror does."""
  augment = set_all(config.data.augment, flip=True, flip_vertical=True)
  for seed in range(8):
    flipped, label = transforms.augment(*example, rng(seed), augment)
    augment.rotate = 1e-9
    turned, turned_label = transforms.augment(*example, rng(seed), augment)
    augment.rotate = 0.0
    np.testing.assert_allclose(turned, flipped, atol=1e-4)
    np.testing.assert_array_equal(turned_label, label)


@pytest.mark.parametrize(
  'strengths',
  [
    dict(shift=0.2),
    dict(scale=0.3),
    dict(rotate=180.0),
    dict(shear=30.0),
    dict(elastic=0.03),
    dict(
      flip=True,
      flip_vertical=True,
      shift=0.1,
      scale=0.2,
      rotate=45.0,
      shear=15.0,
      elastic=0.02,
    ),
  ],
  ids=lambda s: '+'.join(s),
)
@pytest.mark.parametrize('shape', [(96, 96), (80, 112)])
def test_no_drift_between_image_and_label(config, strengths, shape):
  """The label's regions lie where the image's do, to a part of a pixel."""
  y, x = np.indices(shape)
  centre = np.array(shape) / 2 + (-3, 5)
  label = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 22**2).astype(np.uint8)
  image = 2 * np.float32(label[..., None]) - 1
  augment = set_all(config.data.augment, **strengths)
  offsets = []
  for seed in range(40):
    moved, moved_label = transforms.augment(image, label, rng(seed), augment)
    weight = moved[..., 0] / 2 + 0.5
    np.testing.assert_allclose(moved_label.sum(), weight.sum(), rtol=0.04)
    a, b = map(ndimage.center_of_mass, (weight, moved_label))
    offsets.append(np.subtract(a, b))
    assert ((weight > 0.5) != moved_label).mean() < 0.015
  # The nearest pixel is up to half a pixel away, to every side alike.
  assert np.abs(offsets).max() < 0.52
  assert np.abs(np.mean(offsets, axis=0)).max() < 0.15


def test_as_scipy_resamples(config):
  """The affine part against `scipy.ndimage`, with a matrix of its own."""
  image = ndimage.gaussian_filter(colours(), (2, 2, 0)) * 3
  augment = set_all(
    config.data.augment, shift=0.2, scale=0.3, rotate=40.0, shear=20.0
  )
  for seed in range(4):
    u = drawn(seed)
    angle, shear = np.deg2rad(40 * u[4]), np.tan(np.deg2rad(20 * u[8]))
    # Rows, columns; turned, then sheared, from output to input.
    turn = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix = np.array([[1, 0], [-shear, 1]]) @ turn / (1 + 0.3 * u[3])
    offset = 15.5 - matrix @ (15.5 + 0.2 * 32 * u[1:3])
    expected = [
      ndimage.affine_transform(c, matrix, offset, order=1, mode='nearest')
      for c in np.moveaxis(image, -1, 0)
    ]
    moved, _ = transforms.augment(image, None, rng(seed), augment)
    expected = np.clip(np.stack(expected, -1), -1, 1)
    np.testing.assert_allclose(moved.clip(-1, 1), expected, atol=2e-4)


def test_elastic_bends_by_its_strength(config):
  """The image of its own coordinates shows where each pixel comes from."""
  y, x = np.indices((64, 64))
  image = np.float32(np.stack([y, x, 0 * x], -1)) / 64
  augment = set_all(config.data.augment, elastic=0.03)
  moves = []
  for seed in range(40):
    bent, _ = transforms.augment(image, None, rng(seed), augment)
    moves.append((bent - image)[20:44, 20:44, :2])  # inside the border
  assert 0.015 < np.std(moves) < 0.035
  assert np.abs(np.diff(moves, axis=1)).max() < 0.01  # smooth


def test_saturation_and_hue_keep_luma_and_value(config):
  image = 0.5 * colours()
  weights = np.array([0.299, 0.587, 0.114])
  augment = set_all(config.data.augment, saturation=0.5)
  seen, _ = transforms.augment(image, None, rng(1), augment)
  np.testing.assert_allclose(seen @ weights, image @ weights, atol=1e-5)
  ratio = np.ptp(seen, axis=-1) / np.ptp(image, axis=-1)
  np.testing.assert_allclose(ratio, 1 + 0.5 * drawn(1)[9], rtol=1e-3)
  augment = set_all(config.data.augment, saturation=0.0, hue=0.5)
  seen, _ = transforms.augment(image, None, rng(1), augment)
  np.testing.assert_allclose(seen.max(-1), image.max(-1), atol=1e-4)
  np.testing.assert_allclose(seen.min(-1), image.min(-1), atol=1e-4)
  assert np.abs(seen - image).max() > 0.1


def test_gamma(config):
  augment = set_all(config.data.augment, gamma=0.5)
  image = colours()
  for seed in range(4):
    seen, _ = transforms.augment(image, None, rng(seed), augment)
    exponent = 1.5 ** drawn(seed)[11]
    expected = 2 * (image / 2 + 0.5) ** exponent - 1
    np.testing.assert_allclose(seen, expected, atol=1e-5)


def test_noise_and_blur(config):
  flat = np.zeros((64, 64, 3), np.float32)
  augment = set_all(config.data.augment, noise=0.2)
  for seed in range(4):
    seen, _ = transforms.augment(flat, None, rng(seed), augment)
    expected = 0.2 * abs(drawn(seed)[13])
    np.testing.assert_allclose(seen.std(), expected, rtol=0.05)
    assert not np.array_equal(seen[..., 0], seen[..., 1])
  augment = set_all(config.data.augment, noise=0.0, blur=3.0)
  dot = np.zeros((65, 65, 1), np.float32)
  dot[32, 32] = 1
  for seed in range(4):
    seen, _ = transforms.augment(dot, None, rng(seed), augment)
    spread = (seen[..., 0].sum(0) * (np.arange(65) - 32) ** 2).sum()
    expected = 3 * abs(drawn(seed)[12])
    np.testing.assert_allclose(np.sqrt(spread), expected, atol=0.15)


def test_grey_images_have_no_hue(config, example):
  augment = set_all(config.data.augment, saturation=0.5, hue=0.5)
  image, label = transforms.augment(*example, rng(), augment)
  np.testing.assert_array_equal(image, example[0])


def test_range_holds_with_everything_on(config, example):
  for name in transforms.FIELDS:
    config.data.augment[name] = True if name.startswith('flip') else 0.2
  for seed in range(10):
    for image in (example[0], np.repeat(example[0], 3, axis=-1)):
      seen, label = transforms.augment(
        image, example[1], rng(seed), config.data.augment
      )
      assert seen.shape == image.shape and seen.dtype == np.float32
      assert -1 <= seen.min() and seen.max() <= 1
      assert label.dtype == np.uint8 and label.shape == (64, 64)
      assert set(np.unique(label)) <= {0, 1, 2}


def test_the_count_of_draws_does_not_depend_on_the_fields(config, example):
  ends = set()
  for name in (None, *transforms.FIELDS):
    augment = config.copy_and_resolve_references().data.augment
    if name:
      augment[name] = True if name.startswith('flip') else 0.1
    generator = rng(4)
    transforms.augment(*example, generator, augment)
    ends.add(generator.integers(2**62))
  assert len(ends) == 1


def test_deterministic_fields_of_noise(config, example):
  augment = set_all(config.data.augment, noise=0.1, elastic=0.02)
  a, b = (
    transforms.augment(
      *example, np.random.Generator(np.random.Philox(7)), augment
    )
    for _ in range(2)
  )
  np.testing.assert_array_equal(a[0], b[0])
  np.testing.assert_array_equal(a[1], b[1])


@pytest.mark.parametrize(
  'name, value',
  [
    *[('scale', 1.0), ('shear', 85.0), ('hue', 0.7), ('shift', 2.0)],
    *[('brightness', 10.0), ('noise', 10.0), ('blur', 1000.0)],
  ],
)
def test_mistakes_are_named(config, name, value):
  transforms.check(config.data.augment)
  config.data.augment[name] = value
  with pytest.raises(UserError, match=f'augment.{name} is {value}, must be'):
    transforms.check(config.data.augment)


def test_deterministic_and_typed(config, example):
  augment = set_all(config.data.augment, flip=True, shift=0.1, contrast=0.1)
  original = example[0].copy()
  a, b, c = (
    transforms.augment(*example, rng(s), augment)[0] for s in (5, 5, 6)
  )
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)
  assert a.dtype == np.float32 and a.shape == (64, 64, 1)
  np.testing.assert_array_equal(example[0], original)
