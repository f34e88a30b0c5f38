"""NIfTI and DICOM volumes as slices, read when asked for.

Whatever the file's own orientation, slices are cut in RAS+ (the first axis
runs to the patient's right, the second to the front, the third to the head)
and shown as radiologists see them, images and labels alike:

  axis 0, sagittal: head on top, front on the left; index 0 is leftmost
  axis 1, coronal: head on top, patient's right on the left; 0 is rearmost
  axis 2, axial: front on top, patient's right on the left; 0 is lowest

nibabel and pydicom are needed for this alone: `pip install nibabel pydicom`.
"""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxseg.data.formats import dicom, nifti, stacks
from jaxseg.errors import DataError, UserError

MAX_VOXELS = 2**30
WHOLE = 1e-4  # how far a stored label may be from a whole number


class Volume(NamedTuple):
  """A volume cut into slices.

  Attributes:
    path: the file or folder.
    shape: height and width of a slice and the number of slices.
    spacing: millimetres between rows, columns and slices; None: not known.
    slices: index -> [H, W] of values as the scanner means them (rescaled, e.g.
      Hounsfield units), finite, of any integer or floating-point type.
    notes: what is unusual, yet no mistake.
    stack: the volume as it is stored.
    axis: that slices are cut across.
  """

  path: str
  shape: tuple[int, int, int]
  spacing: tuple[float, float, float] | None
  slices: Callable[[int], np.ndarray]
  notes: tuple[str, ...]
  stack: stacks.Stack
  axis: int


def is_volume(path: str | os.PathLike) -> bool:
  """Tells whether a file or folder is, by name or magic number, a volume.

  A file is one if it ends in .nii or .nii.gz or is DICOM, a folder if a file
  in it is DICOM. Never raises; says nothing about whether it can be read.
  """
  path = pathlib.Path(path)
  try:
    if path.is_dir():
      names = sorted(n for n in os.listdir(path) if not n.startswith('.'))
      return any(dicom.is_dicom(path / name) for name in names)
    return path.name.lower().endswith(nifti.SUFFIXES) or dicom.is_dicom(path)
  except OSError:
    return False


def open_volume(path: str | os.PathLike, axis: int = 2) -> Volume:
  """Opens a volume; reads its headers only.

  A volume of one slice is cut into that slice, whatever the axis. Where the
  header does not tell the orientation, a note says so: NIfTI is then taken to
  be as its format's default says, DICOM to be stored as it is to be shown.

  Args:
    path: a .nii or .nii.gz file, a DICOM file of one or several frames, or a
      folder with the files of one DICOM series.
    axis: 0 (sagittal), 1 (coronal) or 2 (axial); see the module.

  Raises:
    UserError: nibabel or pydicom is not installed; another axis.
    DataError: a file that is missing, empty, damaged, no volume, of several
      frames in time, of colours, or too large; a folder of several series.
      Truncated files and values that are not finite are found by `slices`.
  """
  if axis not in (0, 1, 2):
    raise UserError(
      f'config.data.volume.axis is {axis}, expected 0 (sagittal), 1 (coronal) '
      'or 2 (axial); change --config.data.volume.axis'
    )
  path = pathlib.Path(path)
  stacks.require('nibabel', path)
  is_nifti = path.name.lower().endswith(nifti.SUFFIXES)
  stack = (nifti if is_nifti else dicom).open_stack(path)
  if np.prod(stack.shape, dtype=np.float64) > MAX_VOXELS:
    raise DataError(
      f'{path}: the volume has {"x".join(map(str, stack.shape))} voxels, '
      f'expected at most {MAX_VOXELS}; resample or crop it',
      kind='too_large',
    )
  return _cut(path, stack, axis)


def values(volume: Volume) -> np.ndarray:
  """Returns all values of a volume, [number of slices, H, W]."""
  return np.stack([volume.slices(i) for i in range(volume.shape[2])])


def encode_label(volume: Volume, label: np.ndarray) -> bytes:
  """Returns the labels of a volume as a .nii.gz file that lies over it.

  A NIfTI volume gives its own shape and geometry, to the bit; a DICOM series
  gives (columns, rows, slices) and the affine of its headers in RAS+.

  Args:
    volume: from `open_volume`.
    label: uint8 [number of slices, H, W], as `values` shows the volume.
  """
  # Backwards what `_slice` does.
  array = np.moveaxis(label.swapaxes(1, 2)[:, ::-1, ::-1], 0, volume.axis)
  return volume.stack.encode(stacks.as_stored(array, volume.stack))


def forget(volume: Volume) -> None:
  """Frees the memory that a volume's values take; they can be read again."""
  stacks.forget(volume.stack)


def whole_numbers(slice_: np.ndarray, path: str | os.PathLike) -> np.ndarray:
  """Returns the ids in a slice of a label volume, int64 [H, W], exactly.

  Args:
    slice_: [H, W], integers, or floating-point numbers that are whole.
    path: of the volume, for the message.

  Raises:
    DataError: values between whole numbers.
  """
  if slice_.dtype.kind in 'iub':
    return slice_.astype(np.int64)
  ids = np.rint(slice_)
  wrong = np.abs(slice_ - ids) > WHOLE
  if wrong.any():
    raise DataError(
      f'{path}: {np.count_nonzero(wrong)} values of a slice are not whole '
      f'numbers (for example {slice_[wrong][0]:.4g}), expected one class id '
      'per voxel; resample labels with nearest neighbour, and save '
      'probabilities as the number of the largest',
      kind='float_label',
    )
  return ids.astype(np.int64)


def _cut(path, stack, axis):
  """Returns the `Volume` of a `Stack`."""
  order = np.argsort(stacks.orientation(stack)[:, 0])  # stored axes as x, y, z
  shape = [stack.shape[i] for i in order]
  if shape.count(1) == 1:
    axis = shape.index(1)
  rows, columns = [i for i in (2, 1, 0) if i != axis]
  spacing, notes = None, list(stack.notes)
  if stack.has_spacing:
    sizes = np.linalg.norm(stack.affine[:3, :3], axis=0)[order]
    spacing = tuple(float(sizes[i]) for i in (rows, columns, axis))
    notes += _about_spacing(spacing, int(np.argmax(sizes)), shape[axis])
  else:
    notes.append(
      'the header gives no size of the voxels; they are taken to be cubes'
    )
  return Volume(
    path=str(path),
    shape=(shape[rows], shape[columns], shape[axis]),
    spacing=spacing,
    slices=functools.partial(_slice, stack, axis),
    notes=tuple(notes),
    stack=stack,
    axis=axis,
  )


def _about_spacing(spacing, longest, num_slices):
  """Notes on voxels that are far from cubes."""
  row, column, between = spacing
  if max(row, column) > 1.1 * min(row, column):
    fix = f'--config.data.volume.axis={longest} cuts across the longest side'
    yield (
      f'the pixels of a slice are {row:.3g} x {column:.3g} mm (height x '
      'width), so that shapes look stretched; '
      + (fix if num_slices > 1 else 'resample the image')
    )
  elif num_slices > 1 and between > 3 * max(row, column):
    yield (
      f'slices are {between:.3g} mm apart and their pixels '
      f'{max(row, column):.3g} mm wide, so that neighbouring slices differ much'
    )


def _slice(stack, axis, index):
  """Returns slice `index`, [H, W], upright; see the module."""
  array = np.take(stacks.cached(stack), index, axis)
  # The two axes left ascend; rows run down from the head (or the front),
  # columns from the patient's right (or the front).
  return np.ascontiguousarray(array[::-1, ::-1].T)
