"""Slices of NIfTI volumes and their label volumes, as records."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxseg.data.builders.base import Record
from jaxseg.data.formats import intensity as intensities
from jaxseg.data.formats import nifti, stacks
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.formats.volumes import whole_numbers
from jaxseg.errors import DataError

# The orientation of which slices come out as they are stored.
_STORED = np.diag([-1.0, -1, 1, 1])


def records(
  image: Path,
  label: Path,
  *,
  name: str,
  group: str,
  intensity: Intensity,
  ids: Sequence[tuple[int, int]],
  upright: bool = True,
  step: int = 1,
) -> list[Record]:
  """Lists the slices of a volume; reads headers only.

  Voxels of image and label belong together by their index, as in all published
  code: the label's own header is not asked how it lies in the patient.

  Args:
    image: a .nii or .nii.gz file.
    label: the same, of the same shape.
    name: of the volume; slices are `name_s000` and on.
    group: the patient.
    intensity: how values become 0..255, by limits of the whole volume.
    ids: (stored value, class id or 255) of the label's values.
    upright: cut axial slices and show them as `formats.volumes` does, by the
      image's header; False: the third stored axis, y down and x right.
    step: every step-th slice.

  Raises:
    UserError: nibabel is not installed.
    DataError: a missing or damaged file, different shapes.
  """
  stack, label_shape = nifti.open_stack(image), nifti.open_stack(label).shape
  if stack.shape != label_shape:
    raise DataError(
      f'{label}: the label volume is {"x".join(map(str, label_shape))} and '
      f'its image {"x".join(map(str, stack.shape))} ({image}), expected one '
      'shape; unpack the archive again',
      'size_mismatch',
    )
  like = image if upright else None
  axes = stacks.orientation(
    stack if upright else stack._replace(affine=_STORED)
  )
  third = int(np.argmax(axes[:, 0] == 2))
  return [
    Record(
      f'{name}_s{i:03d}',
      functools.partial(_image_slice, image, like, intensity, i),
      functools.partial(_label_slice, label, like, tuple(ids), i),
      group,
    )
    for i in range(0, stack.shape[third], step)
  ]


def class_ids(
  values: np.ndarray, ids: Sequence[tuple[int, int]], path: Path
) -> np.ndarray:
  """Maps stored values to class ids, uint8 of the same shape.

  Raises:
    DataError: a value that is not in `ids`; values between whole numbers.
  """
  values = whole_numbers(values, path)
  result = np.zeros(values.shape, np.uint8)
  known = np.zeros(values.shape, bool)
  for stored, id_ in ids:
    here = values == stored
    result[here] = id_
    known |= here
  if not known.all():
    raise DataError(
      f'{path}: the label holds the values '
      f'{np.unique(values[~known])[:5].tolist()}, expected '
      f'{[stored for stored, _ in ids]}; unpack the archive again',
      'unknown_ids',
    )
  return result


def _array(path, like):
  """Returns [number of slices, H, W], oriented as the header of `like` says."""
  stack = nifti.open_stack(path)
  affine = nifti.open_stack(like).affine if like else _STORED
  stack = stack._replace(affine=affine, key=(*stack.key, str(like)))
  return stacks.cached(stack)[::-1, ::-1].T


# Slices are asked for in order: the volumes of one example are kept.
@functools.lru_cache(maxsize=1)
def _image(path, like, intensity):
  values = _array(path, like)
  limits = intensities.limits(values, intensity)
  return np.stack(
    [intensities.to_8_bits(v, intensity, limits=limits) for v in values]
  )


@functools.lru_cache(maxsize=1)
def _label(path, like, ids):
  return np.stack([class_ids(v, ids, path) for v in _array(path, like)])


def _image_slice(path, like, intensity, index):
  return _image(path, like, intensity)[index]


def _label_slice(path, like, ids, index):
  return _label(path, like, ids)[index]
