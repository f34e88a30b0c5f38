"""Volumes of a folder as images: one id a slice."""

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data.formats import (
  dicom,
  images,
  intensity,
  labels,
  stacks,
  volumes,
)
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.formats.volumes import Volume
from jaxseg.data.problems import Problem, from_error
from jaxseg.errors import DataError, UserError

AXES = ('sa', 'co', 'ax')  # sagittal, coronal, axial


class Slices(NamedTuple):
  """The slices of all volumes.

  Attributes:
    images: id -> () -> uint8 [H, W, channels].
    labels: id -> () -> uint8 [H, W]; only of those that have a label.
    volumes: ids by volume.
    groups: volume by id; the first of them for DICOM files of one series that
      do not lie in a folder of their own.
    paths: where each slice is, for messages.
    problems: volumes that cannot be opened, or are unusual.
  """

  images: dict[str, Callable[[], np.ndarray]]
  labels: dict[str, Callable[[], np.ndarray]]
  volumes: dict[str, tuple[str, ...]]
  groups: dict[str, str]
  paths: dict[str, str]
  problems: list[Problem]


def cut(
  image_paths: Mapping[str, pathlib.Path],
  label_paths: Mapping[str, pathlib.Path],
  channels: int,
  intensity_: Intensity,
  options: Any,
  values: Mapping[int, int] | None,
) -> Slices:
  """Opens volumes and names their slices, 'NAME-ax012'.

  Args:
    image_paths: by name.
    label_paths: by name; those without an image are left out.
    channels: 1 or 3.
    intensity_: how values become 0..255, alike for all slices of a volume.
    options: `config.data.volume`.
    values: see `labels.decode_label`.

  Raises:
    UserError: a wrong option; nibabel or pydicom is not installed.
  """
  axis, step = options.axis, options.step
  if step < 1:
    raise UserError(
      f'config.data.volume.step is {step}, expected 1 or more; change '
      '--config.data.volume.step'
    )
  found = Slices({}, {}, {}, {}, {}, [])
  first_of_series = {}
  for name, path in image_paths.items():
    severity = 'refuse' if name in label_paths else 'skip'
    volume = _open(path, axis, severity, found)
    if volume is None:
      found.volumes[name] = ()
      continue
    label = None
    if name in label_paths:
      label = _open(label_paths[name], axis, 'refuse', found)
      if label is not None:
        label = label if _fits(volume, label, found) else None
    read = Reader(volume, channels, intensity_, label, values)
    ids = {
      f'{name}-{AXES[axis]}{i:03d}': i for i in range(0, volume.shape[2], step)
    }
    if options.skip_empty and label is not None:
      ids = _without_empty(ids, read)
    found.volumes[name] = tuple(ids)
    group = first_of_series.setdefault(series_of(path) or name, name)
    found.groups.update(dict.fromkeys(ids, group))
    for id_, i in ids.items():
      found.images[id_] = functools.partial(read.image, i)
      found.paths[id_] = f'{path} slice {i}'
      if label is not None:
        found.labels[id_] = functools.partial(read.label, i)
  return found


class Reader:
  """Slices of one volume as images, and of its label, if it has one.

  Args:
    volume: what to show.
    channels: 1 or 3.
    intensity_: how values become 0..255, alike for all slices.
    label: cut as the volume is.
    values: see `labels.decode_label`.
  """

  def __init__(
    self,
    volume: Volume,
    channels: int,
    intensity_: Intensity,
    label: Volume | None = None,
    values: Mapping[int, int] | None = None,
  ):
    self._volume = volume
    self._label = label
    self._channels = channels
    self._intensity = intensity_
    self._values = values
    self._limits = None

  def image(self, index: int) -> np.ndarray:
    """Returns slice `index`, uint8 [H, W, channels].

    Raises:
      DataError: the volume is damaged.
    """
    values = self._volume.slices(index)
    # A lock would keep readers from being sent to other processes; at worst,
    # two threads find the same limits.
    if self._limits is None:
      self._limits = self._find_limits()
    grey = intensity.to_8_bits(values, self._intensity, limits=self._limits)
    return images.to_channels(grey, self._channels)

  def label(self, index: int) -> np.ndarray:
    """Returns the class ids of slice `index`, uint8 [H, W].

    Raises:
      DataError: the label is damaged or holds what is no class id.
    """
    path = self._label.path
    numbers = volumes.whole_numbers(self._label.slices(index), path)
    name = f'{path} slice {index}'
    return labels.to_ids(numbers, name, self._values)

  def _find_limits(self):
    if self._intensity.mode == 'window':
      return self._intensity.window
    return intensity.limits(volumes.values(self._volume), self._intensity)


def _open(path, axis, severity, found):
  """Returns a volume, or None and one more problem."""
  try:
    volume = volumes.open_volume(path, axis)
  except DataError as error:
    found.problems.append(from_error(error, severity, path))
    return None
  found.problems.extend(
    Problem('note', 'volume', str(path), note) for note in volume.notes
  )
  return volume


def series_of(path: pathlib.Path) -> str | None:
  """Returns the series of a single DICOM file; None: not known, or another."""
  if path.is_dir() or not dicom.is_dicom(path):
    return None
  try:
    header = stacks.require('pydicom', path).dcmread(
      path, stop_before_pixels=True, force=True,
      specific_tags=['SeriesInstanceUID'],
    )  # fmt: skip
    return str(header.get('SeriesInstanceUID', '')) or None
  except Exception:  # it has been opened: an odd tag says nothing
    return None


def _fits(volume, label, found):
  """Whether a label is cut as its image is."""
  if volume.shape != label.shape:
    found.problems.append(
      Problem(
        'refuse',
        'size_mismatch',
        label.path,
        f'the label has slices of {_shape(label)} and the image of '
        f'{_shape(volume)} (height x width x number), expected one shape; '
        'resample the label to the image with nearest neighbour',
      )  # fmt: skip
    )
    return False
  if not _lies_alike(volume.stack, label.stack):
    found.problems.append(
      Problem(
        'refuse',
        'orientation',
        label.path,
        'its header says that its axes run another way than those of the image '
        'and end elsewhere, so that one would be mirrored or turned, expected '
        'the header of the image; if voxel by voxel it belongs to the image, '
        'save it with its affine: nibabel.Nifti1Image(label, image.affine)',
      )  # fmt: skip
    )
    return False
  if volume.spacing and label.spacing:
    if not np.allclose(volume.spacing, label.spacing, rtol=0.01):
      found.problems.append(
        Problem(
          'note',
          'spacing',
          label.path,
          f'the label has voxels of {label.spacing} mm and the image of '
          f'{volume.spacing} mm, expected the same; see that they fit',
        )  # fmt: skip
      )
  return True


def _lies_alike(*pair):
  """Whether both volumes have the same voxels in the same corners.

  Each is turned upright by its own header. Axes that run alike need no more:
  where they begin and end is then of no consequence.
  """
  axes, corners = [], []
  for stack in pair:
    axes.append(stacks.orientation(stack))
    turn = stacks.require('nibabel', stack.key[0]).orientations.inv_ornt_aff
    upright = stack.affine @ turn(axes[-1], stack.shape)
    last = np.take(stack.shape, np.argsort(axes[-1][:, 0])) - 1
    ends = [[*last * end, 1] for end in itertools.product((0, 1), repeat=3)]
    corners.append(np.array(ends) @ upright[:3].T)
  voxel = np.linalg.norm(upright[:3, :3], axis=0).max()
  apart = np.linalg.norm(corners[0] - corners[1], axis=1).max()
  return np.array_equal(*axes) or bool(apart < voxel)


def _shape(volume):
  return 'x'.join(map(str, volume.shape))


def _without_empty(ids: Mapping[str, int], read: Reader) -> dict[str, int]:
  """Leaves out slices whose label is all 0; unreadable ones stay."""

  def is_empty(index: int) -> bool:
    try:
      return not read.label(index).any()
    except UserError:  # told when the slice is checked
      return False

  with futures.ThreadPoolExecutor(2) as pool:
    empty: Iterable[bool] = pool.map(is_empty, ids.values())
    return {
      id_: i for (id_, i), e in zip(ids.items(), empty, strict=True) if not e
    }
