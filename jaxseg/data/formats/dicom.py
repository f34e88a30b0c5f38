"""DICOM series and multi-frame files through pydicom."""

import contextlib
import functools
import os
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxseg.data.formats import nifti
from jaxseg.data.formats.dicom_geometry import Frame, arrange
from jaxseg.data.formats.stacks import Stack, require, stamp
from jaxseg.errors import DataError, UserError

SUFFIXES = ('.dcm', '.dicom', '.ima')
DECODERS = 'pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg'
MAX_FRAMES = 100_000
SHOWN = 5

# Files bend the standard in a hundred harmless ways, each with a warning.
warnings.filterwarnings('ignore', module='pydicom')


def is_dicom(path: pathlib.Path) -> bool:
  """Tells whether a file is DICOM, by its name or magic number."""
  try:
    if not path.is_file():
      return False
    return path.name.lower().endswith(SUFFIXES) or _has_magic(path)
  except OSError:
    return False


def open_stack(path: pathlib.Path) -> Stack:
  """Reads the headers of a DICOM file or of a folder with one series.

  Raises:
    UserError: pydicom is not installed.
    DataError: nothing there, no DICOM image, several series or volumes,
      colours, a compression without a decoder, damaged headers.
  """
  pydicom = require('pydicom', path)
  stamps, datasets, others, frames, series = [], [], [], [], {}
  for file in _files(path):
    if not file.is_file():
      others.append(file.name)
      continue
    stamps.append(stamp(file))
    with _reading(file):  # values are parsed when they are asked for
      dataset = _header(pydicom, file)
      if dataset is None:
        others.append(file.name)
        continue
      _check_pixels(pydicom, file, dataset)
      frames += _frames(file, dataset)
      datasets.append(dataset)
      uid = str(dataset.get('SeriesInstanceUID', ''))
      about = str(dataset.get('SeriesDescription', 'no description'))
      series.setdefault(uid, []).append(about)
  if not datasets:
    raise DataError(
      f'{path}: there is no DICOM image here (found '
      f'{_some(others) or "nothing"}), expected the files of one series; copy '
      'them here',
      kind='not_a_volume',
    )
  _check_series(path, series)
  frames, affine, notes = arrange(path, frames)
  others = [name for name in others if name != 'DICOMDIR']
  if others:
    notes.append(f'what is no DICOM image is left out: {_some(others)}')
  if _inverted(*datasets):
    notes.append('MONOCHROME1 (low values bright): the values are inverted')
  return Stack(
    key=(str(path), *stamps),
    shape=(*frames[0].size, len(frames)),
    affine=affine,
    has_spacing=all(f.spacing is not None for f in frames),
    read=functools.partial(_read, frames),
    encode=functools.partial(_encode, affine),
    notes=tuple(notes),
  )


def _files(path):
  if not path.is_dir():
    stamp(path)  # is it there?
    return [path]
  try:
    names = sorted(n for n in os.listdir(path) if not n.startswith('.'))
  except OSError as error:
    raise DataError(
      f'{path}: the folder cannot be read ({error.strerror}), expected the '
      'files of a DICOM series; change its permissions',
      kind='unreadable',
    ) from error
  return [path / name for name in names]


def _has_magic(path):
  with path.open('rb') as file:
    return file.read(132)[128:] == b'DICM'


def _header(pydicom, path):
  """Returns an image's header; None: a report, or no DICOM at all."""
  magic = _has_magic(path)
  # Files from before 1996 lack the magic number: their names must tell.
  if not magic and not path.name.lower().endswith(SUFFIXES):
    return None
  dataset = _load(pydicom, path, force=not magic, stop_before_pixels=True)
  if 'Rows' in dataset and 'Columns' in dataset:
    return dataset
  meta = dataset.file_meta.get('MediaStorageSOPClassUID')
  uid = dataset.get('SOPClassUID', meta)
  if uid is None or 'Image Storage' in uid.name:
    raise EOFError('it says nothing of an image')
  return None


def _load(pydicom, path, **options):
  dataset = pydicom.dcmread(path, **options)
  if 'TransferSyntaxUID' not in dataset.file_meta:
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
  return dataset


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
  """Turns whatever pydicom and its decoders raise into a `DataError`."""
  try:
    yield
  except (UserError, MemoryError):
    raise
  except Exception as error:
    raise _damaged(path, error) from error


def _damaged(path, error):
  if isinstance(error, PermissionError):
    return DataError(
      f'{path}: the file cannot be opened ({error.strerror}), expected a '
      'readable file; change its permissions',
      kind='unreadable',
    )
  reason = ' '.join(str(error).split())[:120] or type(error).__name__
  return DataError(
    f'{path}: the DICOM file is damaged or cut short ({reason}), expected a '
    'whole file; export or copy it again',
    kind='truncated',
  )


def _check_series(path, series):
  if len(series) > 1:
    found = [
      f'{len(texts)} files of {uid or "no UID"} ({texts[0]})'
      for uid, texts in series.items()
    ]
    raise DataError(
      f'{path}: the folder holds {len(series)} DICOM series, {_some(found)}, '
      'expected one; move the files of each SeriesInstanceUID to a folder of '
      'its own',
      kind='several_series',
    )


def _check_pixels(pydicom, path, dataset):
  """Refuses what cannot be decoded, or is no grey image."""
  kind = str(dataset.get('PhotometricInterpretation', 'MONOCHROME2'))
  if dataset.get('SamplesPerPixel', 1) != 1 or 'MONOCHROME' not in kind:
    raise DataError(
      f'{path}: the DICOM image holds colours ({kind}), expected one grey '
      'value per pixel; save it as PNG',
      kind='colours',
    )
  syntax = dataset.file_meta.TransferSyntaxUID
  if not syntax.is_compressed:
    return
  try:
    able = pydicom.pixels.get_decoder(syntax).is_available
  except NotImplementedError:
    raise DataError(
      f'{path}: the pixels are compressed as {syntax.name}, which cannot be '
      'decoded, expected an image or a common compression; export it '
      'uncompressed, for example with dcmdjpeg or gdcmconv --raw',
      kind='compressed',
    ) from None
  if not able:
    raise DataError(
      f'{path}: the pixels are compressed as {syntax.name}, expected a '
      f'decoder for it, none is installed; {DECODERS}',
      kind='compressed',
    )


def _frames(path, dataset):
  """Lists the frames of a file: one, unless it says otherwise."""

  def vector(item, name, length):
    value = item.get(name)
    if value is None or len(value) != length:
      return None
    value = np.array([float(v) for v in value])
    return value if np.all(np.isfinite(value)) else None

  frames = []
  number = dataset.get('InstanceNumber')
  count = int(dataset.get('NumberOfFrames') or 1)
  if not 0 < count <= MAX_FRAMES:
    raise ValueError(f'{count} frames')
  for i in range(count):
    place = _group(dataset, i, 'PlanePositionSequence')
    turn = _group(dataset, i, 'PlaneOrientationSequence')
    measures = _group(dataset, i, 'PixelMeasuresSequence')
    directions = vector(turn, 'ImageOrientationPatient', 6)
    spacing = vector(measures, 'PixelSpacing', 2)
    if spacing is not None and not np.all(spacing > 0):
      spacing = None
    frames.append(
      Frame(
        path=path,
        index=i,
        number=None if number is None else int(number),
        position=vector(place, 'ImagePositionPatient', 3),
        directions=None if directions is None else directions.reshape(2, 3),
        spacing=spacing,
        size=(int(dataset.Rows), int(dataset.Columns)),
      )
    )
  return frames


def _group(dataset: Any, index: int, name: str) -> Any:
  """Returns where a frame's attributes are: a functional group or the file."""
  for groups, i in (
    (dataset.get('PerFrameFunctionalGroupsSequence'), index),
    (dataset.get('SharedFunctionalGroupsSequence'), 0),
  ):
    if groups and i < len(groups) and groups[i].get(name):
      return groups[i][name][0]
  return dataset


def _inverted(*datasets):
  return any(
    d.get('PhotometricInterpretation') == 'MONOCHROME1' for d in datasets
  )


def _read(frames: Sequence[Frame]) -> np.ndarray:
  """Decodes and rescales all frames, [rows, columns, slices]."""
  pydicom = require('pydicom', frames[0].path)
  decoded = {}
  for path in {f.path for f in frames}:
    with _reading(path):
      dataset = _load(pydicom, path, force=True)
      pixels = dataset.pixel_array.reshape(-1, *frames[0].size)
      if _inverted(dataset):
        bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation
        pixels = (-1 if signed else 2**bits - 1) - pixels.astype(np.int64)
      decoded[path] = [
        _rescale(pydicom, dataset, i, p) for i, p in enumerate(pixels)
      ]
  return np.stack([decoded[f.path][f.index] for f in frames], -1)


def _encode(affine, label):
  # Columns run along the first axis where others read DICOM (ITK, dcm2niix).
  columns_first = label.swapaxes(0, 1)
  return nifti.encode_label(columns_first, affine[:, [1, 0, 2, 3]])


def _rescale(pydicom, dataset, index, pixels):
  """Applies the slope and intercept, or the table, of a frame."""
  group = _group(dataset, index, 'PixelValueTransformationSequence')
  pixels = pydicom.pixels.apply_modality_lut(pixels, group)
  if pixels.dtype.kind == 'f' and np.array_equal(pixels, np.rint(pixels)):
    return pixels.astype(np.int32)
  return pixels


def _some(items):
  """Names the first few of many."""
  more = len(items) - SHOWN
  return ', '.join(items[:SHOWN]) + (f' and {more} more' if more > 0 else '')
