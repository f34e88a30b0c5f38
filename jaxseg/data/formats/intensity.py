"""Stored pixel values of any depth to the 0..255 of the networks' images."""

import math
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxseg.errors import UserError

MODES = ('auto', 'percentile', 'window', 'equalize')
# Percentiles of larger arrays, whole volumes, are those of an even sample.
MAX_VALUES = 2**24


class Intensity(NamedTuple):
  """How stored values become 0..255, the fields of `config.data.intensity`.

  Attributes:
    mode: 'auto' keeps 8-bit images and maps deeper ones by `percentiles`;
      'percentile' maps all by them; 'window' maps `window`; 'equalize'
      flattens the histogram, of the luma of colour images.
    percentiles: (low, high) in [0, 100] that become 0 and 255.
    window: (low, high) in stored units that become 0 and 255, e.g. in HU.
    gamma: exponent that follows, of values in [0, 1].
  """

  mode: str = 'auto'
  percentiles: tuple[float, float] = (0.5, 99.5)
  window: tuple[float, float] = (0.0, 0.0)
  gamma: float = 1.0


def from_config(c: Any) -> Intensity:
  """Returns `config.data.intensity`, checked.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  where = 'config.data.intensity'
  if c.mode not in MODES:
    raise UserError(
      f'{where}.mode is {c.mode!r}, must be one of {", ".join(MODES)}.'
    )
  low, high = _pair(f'{where}.percentiles', c.percentiles)
  if not 0 <= low < high <= 100:
    raise UserError(
      f'{where}.percentiles is {(low, high)}, must be two increasing numbers '
      'from 0 to 100, such as (0.5, 99.5).'
    )
  window = _pair(f'{where}.window', c.window)
  if c.mode == 'window' and window[0] >= window[1]:
    raise UserError(
      f'{where}.window is {window}, must be (lowest, highest) stored value '
      "shown when mode is 'window', such as (-160.0, 240.0) HU."
    )
  if c.mode != 'window' and window != (0, 0):
    raise UserError(
      f'{where}.window is {window} but mode is {c.mode!r}, which has no '
      f"window; set {where}.mode to 'window', or the window to (0.0, 0.0)."
    )
  if not (math.isfinite(c.gamma) and c.gamma > 0):
    raise UserError(
      f'{where}.gamma is {c.gamma}, must be above 0; 1 changes nothing, 0.5 '
      'brightens.'
    )
  return Intensity(c.mode, (low, high), window, float(c.gamma))


def to_8_bits(
  image: np.ndarray,
  intensity: Intensity,
  *,
  limits: tuple[float, float] | None = None,
) -> np.ndarray:
  """Maps stored values to 0..255.

  With mode 'equalize' and gamma 0.5 it is the chest X-ray transform of Li et
  al. 2021 (SemanticGAN's released loader).

  Args:
    image: uint8, or any other integer, boolean or float array, finite; [H, W]
      or [H, W, C].
    intensity: how.
    limits: the (low, high) that become 0 and 255, in place of this image's
      percentiles; those of its volume, see `limits`.

  Returns:
    uint8 of the same shape.

  Raises:
    ValueError: NaN or infinite values.
  """
  _check_finite(image)
  shallow = image.dtype == np.uint8
  if shallow and intensity.mode in ('auto', 'equalize') and limits is None:
    scaled = image
  else:
    low, high = limits or _limits(image, intensity)
    # An image of one value becomes black, whatever the value.
    scaled = (image.astype(np.float64) - low) / max(high - low, 1e-12)
    scaled = np.clip(scaled, 0, 1)
  if intensity.mode == 'equalize':
    scaled = _equalize(_quantise(scaled))
  if intensity.gamma == 1:
    return _quantise(scaled)
  if scaled.dtype == np.uint8:
    table = np.linspace(0, 1, 256) ** intensity.gamma
    return _quantise(table)[scaled]
  return _quantise(scaled**intensity.gamma)


def limits(values: np.ndarray, intensity: Intensity) -> tuple[float, float]:
  """Returns the stored values that become 0 and 255.

  For slices of one volume, so that a tissue has one grey in all of them.

  Args:
    values: the volume, any shape, finite.
    intensity: its window in mode 'window'; otherwise its percentiles of
      `values`, except that uint8 stays 0..255 in modes 'auto' and 'equalize'.

  Raises:
    ValueError: NaN or infinite values.
  """
  _check_finite(values)
  if values.dtype == np.uint8 and intensity.mode in ('auto', 'equalize'):
    return 0.0, 255.0
  return _limits(values, intensity)


def _check_finite(values):
  if not np.isfinite(values).all():
    count = np.count_nonzero(~np.isfinite(values))
    raise ValueError(f'{count} of {values.size} values are NaN or infinite')


def _limits(values, intensity):
  if intensity.mode == 'window':
    return intensity.window
  sample = values.ravel()[:: -(-values.size // MAX_VALUES)]
  low, high = np.percentile(sample.astype(np.float64), intensity.percentiles)
  if low == high:  # nearly constant: the few other pixels are all there is
    low, high = values.min(), values.max()
  return float(low), float(high)


def _quantise(scaled):
  """Maps [0, 1] to uint8; leaves uint8 as it is."""
  if scaled.dtype == np.uint8:
    return scaled
  return np.round(255 * scaled).astype(np.uint8)


def _equalize(image):
  """Flattens the histogram of uint8 [H, W] or [H, W, C], the luma's."""
  if image.ndim == 3 and image.shape[-1] == 3:
    colour = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    colour[..., 0] = cv2.equalizeHist(colour[..., 0])
    return cv2.cvtColor(colour, cv2.COLOR_YCrCb2RGB)
  planes = image.reshape(*image.shape[:2], -1)
  planes = [
    cv2.equalizeHist(np.ascontiguousarray(p))
    for p in np.moveaxis(planes, -1, 0)
  ]
  return np.stack(planes, axis=-1).reshape(image.shape)


def _pair(where, value):
  value = tuple(value)
  if len(value) != 2 or not all(math.isfinite(v) for v in value):
    raise UserError(f'{where} is {value}, must be two finite numbers.')
  return float(value[0]), float(value[1])
