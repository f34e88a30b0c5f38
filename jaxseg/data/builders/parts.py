"""Medical sets: several archives, each counted where it is there."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from jaxseg.data.builders import base
from jaxseg.errors import DataError, UserError


@dataclasses.dataclass
class Config(base.Config):
  """A variant of a set of several archives.

  Attributes:
    optional: the number of examples of splits that may be absent as a whole,
      because their archive is not there.
    patients: the number of groups of each split that is there; for volumes,
      the slices of which nobody publishes a count of.
  """

  optional: dict[str, int] = dataclasses.field(default_factory=dict)
  patients: dict[str, int] = dataclasses.field(default_factory=dict)


class Builder(base.Builder, skip_registration=True):
  """A set of several archives; those that are there must be whole."""

  def check(self, root: Path, allow_partial: bool) -> dict[str, int]:
    """Counts the examples and patients of the archives that are there.

    Raises:
      UserError: as `base.Builder.check`.
    """
    counts = super().check(root, allow_partial)
    config, splits = self.builder_config, self.scan(root)
    wrong = []
    for name, expected in config.optional.items():
      if counts.get(name, expected) != expected:
        wrong.append(f'{counts[name]} examples in {name!r}, not {expected}')
    for name, expected in config.patients.items():
      found = len({r.group or r.id for r in splits.get(name, ())})
      if found not in (0, expected):
        wrong.append(f'{found} patients in {name!r}, not {expected}')
    if wrong and not allow_partial:
      raise UserError(
        f'{root}: {self.name} is not whole: {"; ".join(wrong)}; unpack what is '
        'missing, or prepare what is there with --allow_partial'
      )
    return counts


def find(root: Path, *names: str) -> Path | None:
  """Returns the first of some paths below `root` that is there, or None."""
  return next((root / n for n in names if (root / n).exists()), None)


def read_pixels(path: Path, mode: str = 'L') -> np.ndarray:
  """Reads an image file of any format.

  Args:
    path: of the file.
    mode: 'L' or 'RGB'.

  Returns:
    uint8 [H, W] or [H, W, 3].

  Raises:
    DataError: missing or damaged.
  """
  try:
    with Image.open(path) as image:
      return np.asarray(image.convert(mode))
  except Exception as error:  # decoders raise many types on damaged files
    raise DataError(
      f'{path}: the file cannot be read ({error}), expected an image; unpack '
      'or download its archive again',
      'damaged',
    ) from error


def mask(*paths: Path) -> np.ndarray:
  """Reads masks of two values, whatever the two are.

  Returns:
    bool [H, W]; the union.

  Raises:
    DataError: damaged; of different sizes.
  """
  masks = []
  for path in paths:
    pixels = read_pixels(path)
    masks.append(pixels > pixels.max() / 2)
    if masks[-1].shape != masks[0].shape:
      (h, w), (h0, w0) = masks[-1].shape, masks[0].shape
      raise DataError(
        f'{path}: the mask is {w}x{h} and {paths[0]} {w0}x{h0}, expected one '
        'size; unpack the archive again',
        'size_mismatch',
      )
  return np.any(masks, axis=0)


def binary_label(*paths: Path) -> np.ndarray:
  """Returns `mask` as class ids, uint8 [H, W] of 0 and 1."""
  return mask(*paths).astype(np.uint8)
