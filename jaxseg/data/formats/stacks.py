"""Volumes as their files store them, each read once and kept for a while."""

import collections
import importlib
import os
import threading
from collections.abc import Callable
from concurrent import futures
from types import ModuleType
from typing import NamedTuple

import numpy as np

from jaxseg.errors import DataError, UserError

CACHE_BYTES = 2**30  # of decoded volumes kept in memory


class Stack(NamedTuple):
  """What the header of a volume says, before its values are read.

  Attributes:
    key: of the cache; differs where the files do.
    shape: of the array that `read` returns.
    affine: [4, 4], from indices to RAS+ millimetres.
    has_spacing: whether the affine's lengths are known.
    read: () -> [X, Y, Z], integer or floating point.
    encode: uint8 [X, Y, Z], one label a voxel -> a .nii.gz file with the
      volume's geometry.
    notes: what is unusual, yet no mistake.
  """

  key: tuple
  shape: tuple[int, ...]
  affine: np.ndarray
  has_spacing: bool
  read: Callable[[], np.ndarray]
  encode: Callable[[np.ndarray], bytes]
  notes: tuple[str, ...]


def require(name: str, path: str | os.PathLike) -> ModuleType:
  """Imports nibabel or pydicom.

  Raises:
    UserError: it is not installed.
  """
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f'{path}: NIfTI and DICOM volumes need packages that are not installed '
      f'({name}); pip install nibabel pydicom'
    ) from error


def stamp(path: str | os.PathLike) -> tuple[str, int, int]:
  """Returns what changes with a file: its path, time and size.

  Raises:
    DataError: no such file, not readable, or empty.
  """
  try:
    status = os.stat(path)
  except OSError as error:
    raise DataError(
      f'{path}: the volume cannot be opened ({error.strerror}), expected a '
      '.nii or .nii.gz file or a folder of DICOM files; check the name and '
      'the permissions',
      kind='missing' if isinstance(error, FileNotFoundError) else 'unreadable',
    ) from error
  if not status.st_size:
    raise DataError(
      f'{path}: the file is empty (0 bytes), expected a volume; copy or '
      'download it again',
      kind='empty',
    )
  return str(path), status.st_mtime_ns, status.st_size


_lock = threading.Lock()
_cache: collections.OrderedDict[tuple, futures.Future] = (
  collections.OrderedDict()
)


def _after_fork():
  """A child must not wait for what a thread of its parent was reading."""
  global _lock
  _lock = threading.Lock()
  _cache.clear()


os.register_at_fork(after_in_child=_after_fork)


def orientation(stack: Stack) -> np.ndarray:
  """Returns nibabel's orientation of the stored axes, [3, 2]."""
  return require('nibabel', stack.key[0]).io_orientation(stack.affine)


def cached(stack: Stack) -> np.ndarray:
  """Returns the values of a volume along RAS+ axes, [X, Y, Z], read-only.

  Each volume is read once, by one thread, and the `CACHE_BYTES` used last are
  kept. A `DataError` is kept too: a damaged volume is not read for each of its
  slices.

  Raises:
    DataError: what `Stack.read` raises; values that are not finite.
  """
  with _lock:
    future = _cache.get(stack.key)
    mine = future is None
    if mine:
      future = _cache[stack.key] = futures.Future()
    _cache.move_to_end(stack.key)
  if mine:
    try:
      future.set_result(_read(stack))
    except BaseException as error:
      future.set_exception(error)
      if not isinstance(error, DataError):
        with _lock:
          _cache.pop(stack.key, None)
    _evict()
  return future.result()


def forget(stack: Stack) -> None:
  """Does not keep the values of a volume any longer."""
  with _lock:
    _cache.pop(stack.key, None)


def as_stored(array: np.ndarray, stack: Stack) -> np.ndarray:
  """Returns an array along RAS+ axes, [X, Y, Z], along the stored ones."""
  nibabel = require('nibabel', stack.key[0])
  upright = np.array([[0, 1], [1, 1], [2, 1]])
  back = nibabel.orientations.ornt_transform(upright, orientation(stack))
  return nibabel.apply_orientation(array, back)


def _evict():
  with _lock:
    sizes = {
      key: future.result().nbytes
      for key, future in _cache.items()
      if future.done() and not future.exception()
    }
    total = sum(sizes.values())
    for key in list(sizes)[:-1]:
      if total <= CACHE_BYTES:
        break
      total -= sizes[key]
      del _cache[key]


def _read(stack):
  nibabel = require('nibabel', stack.key[0])
  array = stack.read()
  if array.dtype.kind == 'f':
    array = array.astype(np.float32, copy=False)
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
      raise DataError(
        f'{stack.key[0]}: {bad} of {array.size} voxels are NaN or infinite, '
        'expected finite numbers; replace them, for example by the lowest '
        'value with numpy.nan_to_num',
        kind='nan',
      )
  array = nibabel.apply_orientation(array, orientation(stack))
  array.flags.writeable = False
  return array
