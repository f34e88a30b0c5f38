import numpy as np
import pytest

from jaxseg.data.formats import intensity
from jaxseg.data.formats.intensity import (
  Intensity,
  from_config,
  limits,
  to_8_bits,
)
from jaxseg.errors import UserError


@pytest.fixture
def deep():
  """12-bit values in 16 bits, with a burnt-in marker."""
  image = np.random.default_rng(0).integers(100, 900, (40, 30), np.uint16)
  image[0, :3] = 4095
  return image


def test_default_is_the_config_s(config):
  assert from_config(config.data.intensity) == Intensity()
  assert set(Intensity._fields) == set(config.data.intensity)


def test_8_bits_stay_and_are_not_changed(deep):
  image = deep.astype(np.uint8)
  np.testing.assert_array_equal(to_8_bits(image, Intensity()), image)
  before = image.copy()
  for mode in intensity.MODES:
    window = (10.0, 90.0) if mode == 'window' else (0.0, 0.0)
    to_8_bits(image, Intensity(mode, window=window, gamma=0.5))
  np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize('dtype', [np.uint16, np.int32, np.float32])
def test_deep_images_by_percentiles(deep, dtype):
  values = deep.astype(np.float64)
  low, high = np.quantile(values, (0.005, 0.995))
  expected = np.round(255 * np.clip((values - low) / (high - low), 0, 1))
  mapped = to_8_bits(deep.astype(dtype), Intensity())
  assert mapped.dtype == np.uint8
  np.testing.assert_array_equal(mapped, expected)
  assert limits(deep.astype(dtype), Intensity()) == (low, high)
  wider = to_8_bits(deep, Intensity(percentiles=(0.0, 100.0)))
  assert wider[0, 0] == 255 and wider[1:].max() < 64


def test_percentiles_of_8_bits():
  image = np.arange(50, 150, dtype=np.uint8).reshape(10, 10)
  mapped = to_8_bits(image, Intensity('percentile', (0.0, 100.0)))
  assert mapped.min() == 0 and mapped.max() == 255
  assert (np.diff(mapped.ravel().astype(int)) >= 2).all()


def test_nearly_constant_and_constant():
  image = np.full((50, 50), 1000, np.uint16)
  np.testing.assert_array_equal(to_8_bits(image, Intensity()), 0)
  image[3, 4] = 3000  # beyond the percentiles, yet all there is to see
  mapped = to_8_bits(image, Intensity())
  assert mapped[3, 4] == 255 and np.count_nonzero(mapped) == 1
  assert limits(image, Intensity()) == (1000, 3000)


def test_window():
  hounsfield = np.array([[-1000, -160, 40, 240, 1500]], np.int16)
  mapped = to_8_bits(hounsfield, Intensity('window', window=(-160.0, 240.0)))
  np.testing.assert_array_equal(mapped, [[0, 0, 128, 255, 255]])


def test_equalize_flattens_the_histogram():
  rng = np.random.default_rng(0)
  dark = np.clip(rng.normal(40, 12, (128, 128)), 0, 255).astype(np.uint8)
  flat = to_8_bits(dark, Intensity('equalize'))
  quartiles = np.percentile(flat, (25, 50, 75))
  np.testing.assert_allclose(quartiles, (64, 128, 191), atol=8)
  order = np.argsort(dark.ravel(), kind='stable')
  assert (np.diff(flat.ravel()[order].astype(int)) >= 0).all()
  deep = to_8_bits(dark.astype(np.float32) / 1000, Intensity('equalize'))
  np.testing.assert_allclose(deep.astype(int), flat, atol=8)
  grey = to_8_bits(dark[..., None], Intensity('equalize'))
  np.testing.assert_array_equal(grey[..., 0], flat)


def test_equalize_keeps_hues():
  rng = np.random.default_rng(0)
  luma = rng.integers(20, 60, (64, 64, 1))
  image = (luma + np.array([12, 0, -12])).astype(np.uint8)
  equal = to_8_bits(image, Intensity('equalize')).astype(int)
  assert equal.max() - equal.min() > 200
  inside = (equal.min(-1) > 0) & (equal.max(-1) < 255)
  assert (equal[inside, 0] > equal[inside, 2]).all()  # still reddish


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_gamma_comes_last(dtype):
  image = np.arange(256, dtype=dtype).reshape(16, 16)
  mode = Intensity('percentile', (0.0, 100.0), gamma=0.5)
  for mapped in (
    to_8_bits(image, mode),
    to_8_bits(image.astype(np.uint8), Intensity(gamma=0.5)),
  ):
    expected = np.round(255 * np.sqrt(image / 255))
    np.testing.assert_array_equal(mapped, expected)


def test_limits_of_a_volume_rule_its_slices(deep):
  volume = np.stack([deep, deep // 4])
  low, high = limits(volume, Intensity())
  mapped = to_8_bits(volume[1], Intensity(), limits=(low, high))
  assert mapped[1:].max() < 80  # alone they would reach 255
  bytes_ = volume.astype(np.uint8)
  assert limits(bytes_, Intensity()) == (0, 255)
  same = to_8_bits(bytes_[0], Intensity(), limits=(0.0, 255.0))
  np.testing.assert_array_equal(same, bytes_[0])
  window = Intensity('window', window=(0.0, 500.0))
  assert limits(volume, window) == (0, 500)


def test_percentiles_of_a_sample_of_many_values(monkeypatch):
  values = np.random.default_rng(0).normal(size=(100, 100, 10))
  whole = limits(values, Intensity())
  monkeypatch.setattr(intensity, 'MAX_VALUES', 20_000)
  sample = limits(values, Intensity())
  assert sample != whole
  np.testing.assert_allclose(sample, whole, atol=0.15)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('mode', ['auto', 'percentile', 'equalize'])
def test_values_that_are_no_numbers_are_refused(bad, mode):
  image = np.zeros((8, 8), np.float32)
  image[2, 3] = bad
  with pytest.raises(ValueError, match='1 of 64 values'):
    to_8_bits(image, Intensity(mode))
  with pytest.raises(ValueError, match='1 of 64 values'):
    to_8_bits(image, Intensity(mode), limits=(0.0, 1.0))
  with pytest.raises(ValueError, match='1 of 64 values'):
    limits(image, Intensity(mode))


@pytest.mark.parametrize(
  'field, values, said',
  [
    ('mode', dict(mode='windows'), 'one of auto, percentile, window'),
    ('percentiles', dict(percentiles=(99.0, 1.0)), 'increasing'),
    ('percentiles', dict(percentiles=(0.5, 99.5, 100.0)), 'two finite'),
    ('window', dict(mode='window'), 'lowest, highest'),
    ('window', dict(window=(0.0, 80.0)), "to 'window'"),
    ('gamma', dict(gamma=0.0), 'above 0'),
  ],
)
def test_mistakes_are_named(config, field, values, said):
  for name, value in values.items():
    config.data.intensity[name] = value
  with pytest.raises(UserError, match=said) as error:
    from_config(config.data.intensity)
  assert f'config.data.intensity.{field}' in str(error.value)
