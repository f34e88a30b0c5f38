"""How the images of a DICOM series lie in the patient."""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.errors import DataError


class Frame(NamedTuple):
  """One image of a series: a file, or a frame of one."""

  path: pathlib.Path
  index: int
  number: int | None  # InstanceNumber
  position: np.ndarray | None  # [3], LPS millimetres
  directions: np.ndarray | None  # [2, 3], along a row and down a column
  spacing: np.ndarray | None  # [2], between rows and between columns
  size: tuple[int, int]


def arrange(
  path: pathlib.Path, frames: Sequence[Frame]
) -> tuple[list[Frame], np.ndarray, list[str]]:
  """Sorts frames by their position along the normal of their plane.

  Where a frame does not tell its place, they are sorted by InstanceNumber or
  name, and taken as axial slices stored as radiologists see them.

  Args:
    path: of the series, for messages.
    frames: at least one.

  Returns:
    The frames in order; the affine [4, 4] from (row, column, slice) to RAS+
    millimetres (1 mm where the spacing is unknown); notes.

  Raises:
    DataError: frames of several sizes or directions, or at one position.
  """
  sizes = sorted({f.size for f in frames})
  if len(sizes) > 1:
    found = ', '.join(f'{w}x{h}' for h, w in sizes)
    raise DataError(
      f'{path}: the images of the series have several sizes ({found}), '
      'expected one; remove the scouts and reports',
      kind='size_mismatch',
    )
  spacing = frames[0].spacing if frames[0].spacing is not None else np.ones(2)
  directions = [f.directions for f in frames if f.directions is not None]
  if any(np.abs(d - directions[0]).max() > 0.01 for d in directions):
    raise DataError(
      f'{path}: the images of the series lie in several directions, expected '
      'parallel slices; move those of each direction to a folder of its own',
      kind='several_directions',
    )
  placed = len(directions) == len(frames) and all(
    f.position is not None for f in frames
  )
  if not placed:
    return _as_stored(frames, spacing)
  normal = np.cross(*directions[0])
  along = np.array([f.position @ normal for f in frames])
  order = np.argsort(along, kind='stable')
  gaps = np.diff(along[order])
  notes = _check_gaps(path, gaps)
  affine = np.eye(4)
  affine[:3, 0] = directions[0][1] * spacing[0]
  affine[:3, 1] = directions[0][0] * spacing[1]
  frames = [frames[i] for i in order]
  affine[:3, 2] = normal
  if len(frames) > 1:  # not along the normal where the gantry was tilted
    extent = frames[-1].position - frames[0].position
    affine[:3, 2] = extent / (len(frames) - 1)
  affine[:3, 3] = frames[0].position
  affine[:2] *= -1  # DICOM's axes run left and back, RAS right and front
  return frames, affine, notes


def _as_stored(frames, spacing):
  """The order and the axes of images that do not tell where they lie."""
  notes = []
  if len(frames) > 1:
    by = 'their stored order'
    if len({f.path for f in frames}) == len(frames):
      by = 'file name'
      if len({f.number for f in frames} - {None}) == len(frames):
        by = 'InstanceNumber'
        frames = sorted(frames, key=lambda f: f.number)
        missing = frames[-1].number - frames[0].number + 1 - len(frames)
        if missing:
          notes.append(f'{missing} InstanceNumbers are missing in between')
    notes.append(
      'the images do not say where they lie in the patient; slices are in the '
      f'order of {by}, and axis 2 shows them as they are stored'
    )
  affine = np.diag([0.0, 0, 1, 1])
  affine[1, 0], affine[0, 1] = -spacing[0], -spacing[1]
  return frames, affine, notes


def _check_gaps(path, gaps):
  """Returns notes; gaps in millimetres between neighbouring slices."""
  if not len(gaps):
    return []
  middle = np.median(gaps)
  if gaps.min() < 0.01:
    raise DataError(
      f'{path}: {np.count_nonzero(gaps < 0.01)} images lie where another does '
      '(time points, echoes or b-values), expected one image a position; move '
      'those of each time or echo to a folder of its own',
      kind='several_volumes',
    )
  if gaps.max() > 1.5 * middle:
    missing = int(np.sum(np.rint(gaps / middle) - 1))
    return [
      f'slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart: about '
      f'{missing} are missing'
    ]
  if gaps.max() > 1.1 * gaps.min():
    return [f'slices lie {gaps.min():.3g} to {gaps.max():.3g} mm apart']
  return []
