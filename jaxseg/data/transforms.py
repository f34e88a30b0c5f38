"""Random augmentation of an image together with its label, in NumPy."""

from typing import Any

import numpy as np
from scipy import ndimage

FIELDS = ('flip', 'shift', 'scale', 'rotate', 'brightness', 'contrast')


def is_identity(augment_config: Any) -> bool:
  """Whether every strength in `config.data.augment` is zero."""
  return not any(augment_config[name] for name in FIELDS)


def augment(
  image: np.ndarray,
  label: np.ndarray | None,
  rng: np.random.Generator,
  augment_config: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
  """Mirrors, moves and recolours one image, and moves its label alike.

  Shift, scale and rotation are one resampling: the image linearly, the label
  to the nearest pixel. Outside its border, image and label alike go on with
  their border pixels, so that no void pixel is invented and the label stays
  that of the image seen. The result depends only on the arguments and the
  state of `rng`, from which always 7 numbers are drawn.

  Args:
    image: float32 [H, W, C] in [-1, 1].
    label: integer [H, W], or None.
    rng: source of randomness.
    augment_config: `config.data.augment`.

  Returns:
    (image, label) of the same shapes, dtypes and ranges.
  """
  a = augment_config
  u = rng.uniform(-1, 1, 7)
  if a.flip and u[0] < 0:
    image = image[:, ::-1]
    label = None if label is None else label[:, ::-1]
  if a.shift or a.scale or a.rotate:
    matrix, offset = _inverse_affine(
      image.shape[:2],
      shift=a.shift * u[1:3],
      scale=1 + a.scale * u[3],
      angle=np.deg2rad(a.rotate * u[4]),
    )
    image = np.stack(
      [
        ndimage.affine_transform(c, matrix, offset, order=1, mode='nearest')
        for c in np.moveaxis(image, -1, 0)
      ],
      axis=-1,
    )
    if label is not None:
      label = ndimage.affine_transform(
        label, matrix, offset, order=0, mode='nearest'
      )
  if a.contrast:
    mean = image.mean()
    image = mean + (image - mean) * (1 + a.contrast * u[6])
  if a.brightness:
    image = image + a.brightness * u[5]
  if a.contrast or a.brightness:
    image = np.clip(image, -1, 1)
  return np.ascontiguousarray(image, np.float32), label


def _inverse_affine(shape, shift, scale, angle):
  """Returns (matrix, offset) from output to input pixels, about the centre."""
  cos, sin = np.cos(angle), np.sin(angle)
  matrix = np.array([[cos, -sin], [sin, cos]]) / scale
  centre = (np.array(shape) - 1) / 2
  return matrix, centre - matrix @ (centre + shift * np.array(shape))
