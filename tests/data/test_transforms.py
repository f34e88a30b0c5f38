import numpy as np
import pytest
from scipy import ndimage

from jaxseg.data import transforms


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
