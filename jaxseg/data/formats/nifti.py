"""NIfTI files through nibabel."""

import functools
import gzip
import pathlib
import zlib

import numpy as np

from jaxseg.data.formats.stacks import Stack, require, stamp
from jaxseg.errors import DataError

SUFFIXES = ('.nii', '.nii.gz')
# The fields that say where voxels lie; others may name the patient.
_GEOMETRY = (
  'pixdim', 'xyzt_units', 'qform_code', 'quatern_b', 'quatern_c', 'quatern_d',
  'qoffset_x', 'qoffset_y', 'qoffset_z', 'sform_code', 'srow_x', 'srow_y',
  'srow_z',
)  # fmt: skip


def open_stack(path: pathlib.Path) -> Stack:
  """Reads the header of a .nii or .nii.gz file.

  Raises:
    UserError: nibabel is not installed.
    DataError: a file that is missing, empty, no NIfTI volume, of several
      frames or of colours.
  """
  nibabel = require('nibabel', path)
  key = stamp(path)
  if not path.is_file():
    raise DataError(
      f'{path}: this is no file, expected a NIfTI volume; remove or rename it',
      kind='not_a_volume',
    )
  try:
    image = nibabel.load(path)
    affine, dtype = image.affine, np.dtype(image.get_data_dtype())
    zooms = np.array(image.header.get_zooms()[:3], np.float64)
    geometry = {name: image.header[name].copy() for name in _GEOMETRY}
  except PermissionError as error:
    raise DataError(
      f'{path}: the file cannot be opened ({error.strerror}), expected a '
      'readable file; change its permissions',
      kind='unreadable',
    ) from error
  except Exception as error:  # nibabel raises a dozen kinds for damaged files
    raise _not_nifti(path, error) from error
  _check_kind(path, image.shape, dtype)
  shape = (*image.shape, 1, 1)[:3]
  zooms = np.array((*zooms, 1, 1)[:3])
  good = bool(np.all(np.isfinite(zooms)) and np.all(zooms > 0))
  notes = []
  if not _invertible(affine) or not (
    int(image.header.get('sform_code', 1))
    or int(image.header.get('qform_code', 1))
  ):
    notes.append(
      'the header does not say how the volume lies in the patient; its axes '
      'are taken to run left, front, head'
    )
  if not _invertible(affine):
    known = zooms if good else np.ones(3)
    affine = np.diag([-1.0, 1, 1, 1]) * [*known, 1]
  read = functools.partial(_read_nifti, path, shape)
  encode = functools.partial(_encode, type(image), image.shape, geometry)
  return Stack(key, shape, affine, good, read, encode, tuple(notes))


def encode_label(label: np.ndarray, affine: np.ndarray) -> bytes:
  """Returns a .nii.gz file.

  Args:
    label: uint8 [X, Y, Z].
    affine: [4, 4], from indices to the scanner's RAS+ millimetres.
  """
  kind = require('nibabel', 'label').Nifti1Image
  header = kind.header_class()
  header.set_xyzt_units('mm')
  header.set_data_shape(label.shape)
  header.set_qform(affine, 1)  # without its shear, which sform has
  header.set_sform(affine, 1)
  geometry = {name: header[name] for name in _GEOMETRY}
  return _encode(kind, label.shape, geometry, label)


def _encode(kind, shape, geometry, label):
  header = kind.header_class()
  header.set_data_dtype(np.uint8)
  header.set_data_shape(shape)
  for name, value in geometry.items():
    header[name] = value
  # Without an affine, nibabel keeps the header's geometry to the bit.
  image = kind(label.reshape(shape), None, header)
  return gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)


def _invertible(affine):
  finite = bool(np.all(np.isfinite(affine)))
  return finite and np.linalg.matrix_rank(affine[:3, :3]) == 3


def _check_kind(path, shape, dtype):
  """Refuses what is no three-dimensional volume of numbers."""
  if np.prod(shape[3:], dtype=np.float64) != 1:
    raise DataError(
      f'{path}: the file holds {int(np.prod(shape[3:], dtype=np.float64))} '
      f'frames or channels ({"x".join(map(str, shape))}), expected one volume '
      '(three axes); save each as its own file, for example with '
      'nibabel.four_to_three',
      kind='four_d',
    )
  if len(shape) < 2 or 0 in shape:
    raise DataError(
      f'{path}: the volume has the shape {tuple(shape)}, expected three axes '
      'that are not empty; export it again',
      kind='not_a_volume',
    )
  if dtype.kind not in 'iufb':
    raise DataError(
      f'{path}: the volume holds colours or complex numbers ({dtype}), '
      'expected one number per voxel; export it as grey values or class ids',
      kind='colours',
    )


def _not_nifti(path, error):
  """Words nibabel's complaint."""
  with path.open('rb') as file:
    start = file.read(64)
  if start.startswith(b'\x1f\x8b') and path.suffix.lower() == '.gz':
    try:
      with gzip.open(path) as file:
        file.read(348)
    except (EOFError, OSError, zlib.error) as reason:
      return _truncated(path, reason)
  if start.startswith(b'version https://git-lfs'):
    return DataError(
      f'{path}: the file is a Git LFS pointer, expected a volume; git lfs pull',
      kind='lfs_pointer',
    )
  is_text = b'\0' not in start and start.isascii()
  what = 'text or a web page' if is_text else 'something else'
  if start.startswith(b'\x1f\x8b'):
    what = 'gzip data' + ', yet is not named .nii.gz' * (path.suffix != '.gz')
  return DataError(
    f'{path}: the file is no readable NIfTI volume, it holds {what} '
    f'({_one_line(error)}), expected a .nii or .nii.gz file; download or '
    'export it again',
    kind='not_a_volume',
  )


def _truncated(path, error):
  return DataError(
    f'{path}: the file is damaged or cut short ({_one_line(error)}), expected '
    'a whole NIfTI volume; copy or download it again',
    kind='truncated',
  )


def _one_line(error):
  return ' '.join(str(error).split())[:120] or type(error).__name__


def _read_nifti(path, shape):
  nibabel = require('nibabel', path)
  try:
    # Mapped into memory, a file that shrinks later would crash the process.
    array = np.asarray(nibabel.load(path, mmap=False).dataobj)
  except (OSError, EOFError, ValueError, zlib.error) as error:
    raise _truncated(path, error) from error
  return array.reshape(shape)
