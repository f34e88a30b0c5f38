"""Files that `jaxseg.predict` labels: images and volumes alike, as pictures."""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxseg import visualize, writers
from jaxseg.data.folders import listing, slices
from jaxseg.data.formats import images as image_files
from jaxseg.data.formats import intensity, volumes
from jaxseg.errors import DataError, UserError

VOLUME = '.nii.gz'  # of label volumes
SHOWN = 12  # slices of a volume on its contact sheet, at most
SHEET_COLUMNS, SHEET_SIDE = 4, 256


class Opened(NamedTuple):
  """A file as pictures: one image, or every slice of a volume.

  Attributes:
    count: number of pictures.
    read: index -> uint8 [H, W, channels], as in training. Raises `DataError`.
    save: (path, masks, palette) -> None; writes the mask, uint8 [H, W] of each
      picture, whole or not at all.
    close: () -> None; frees the memory.
  """

  count: int
  read: Callable[[int], np.ndarray]
  save: Callable[[Path, Sequence[np.ndarray], np.ndarray], None]
  close: Callable[[], None]


def open_file(path: Path, config: ConfigDict) -> Opened:
  """Opens an image or a volume; reads no more than a volume's headers.

  Args:
    path: one of `list_files`.
    config: the run's; `data.channels`, `data.intensity` and
      `data.volume.axis` are read.

  Raises:
    DataError: a volume that cannot be read.
    UserError: nibabel or pydicom is not installed; a wrong option.
  """
  channels = config.data.channels
  values = intensity.from_config(config.data.intensity)
  if _is_image(path.name):
    return Opened(
      count=1,
      read=lambda _: image_files.read_image(path, channels, values),
      save=lambda to, masks, palette: image_files.write_label(
        to, masks[0], palette
      ),
      close=lambda: None,
    )
  volume = volumes.open_volume(path, config.data.volume.axis)
  return Opened(
    count=volume.shape[2],
    read=slices.Reader(volume, channels, values).image,
    save=functools.partial(_save_volume, volume),
    close=functools.partial(volumes.forget, volume),
  )


def list_files(folder: Path) -> list[str]:
  """Names the images, NIfTI and DICOM files and DICOM folders in a folder.

  Raises:
    UserError: the folder is missing or holds none.
  """
  if not folder.is_dir():
    what = 'a file' if folder.exists() else 'missing'
    raise UserError(
      f'--images={folder}: the folder is {what}, expected a folder of images'
    )
  files = [
    path.name
    for path in folder.iterdir()
    if not path.name.startswith('.')
    and (_is_image(path.name) or listing.is_volume(path))
  ]
  if not files:
    kinds = ', '.join(image_files.IMAGE_SUFFIXES)
    raise UserError(
      f'--images={folder}: the folder holds no image, expected files ending '
      f'in {kinds}, .nii, .nii.gz or .dcm, or folders with a DICOM series each '
      '(other subfolders are not read)'
    )
  return files


def names_of(images: Path, output: Path) -> dict[str, str]:
  """`output_names` of the files of a folder.

  Args:
    images: the folder.
    output: where masks are to be written.

  Raises:
    UserError: the folder is missing, holds no image or is the output folder.
  """
  names = output_names(list_files(images))
  if output.resolve() == images.resolve():
    raise UserError(
      f'--output={output} is the folder of the images, expected another one: '
      'masks would overwrite images of the same name'
    )
  return names


@contextlib.contextmanager
def skipping(file: str, bad: list[str]) -> Iterator[None]:
  """Tells of a file that cannot be read, and notes its name in `bad`."""
  try:
    yield
  except DataError as error:
    writers.say(f'skipped: {error}')
    bad.append(file)


def loose_slices(folder: Path, files: Sequence[str]) -> list[str]:
  """Names the DICOM files that are of one series with another of the files."""
  names = [file for file in files if not _is_image(file)]
  series = {name: slices.series_of(folder / name) for name in names}
  sizes = collections.Counter(series.values())
  return [name for name in names if series[name] and sizes[series[name]] > 1]


def output_names(files: Sequence[str]) -> dict[str, str]:
  """Maps file names to mask names: the same stem, '.png' or '.nii.gz'.

  Files that share a stem (a.jpg, a.png) keep their suffix: a.jpg.png,
  a.png.png. Upper and lower case count as the same, as on some disks. All
  stems of masks differ, so that overlays can have them too.
  """
  files = sorted(files)
  stems = collections.Counter(_stem(file).casefold() for file in files)
  names, taken = {}, set()
  for unique in (True, False):
    for file in files:
      stem = _stem(file)
      if (stems[stem.casefold()] == 1) != unique:
        continue
      name = stem if unique else file
      while name.casefold() in taken:
        name += '_'
      taken.add(name.casefold())
      names[file] = name + ('.png' if _is_image(file) else VOLUME)
  return {file: names[file] for file in files}


def overlay_path(mask: Path) -> Path:
  """Returns overlays/NAME.png beside the mask NAME.png or NAME.nii.gz."""
  name = mask.name
  if name.endswith(VOLUME):
    name = name.removesuffix(VOLUME) + '.png'
  return mask.parent / 'overlays' / name


def reconstruction_path(mask: Path) -> Path:
  """Returns reconstructions/NAME.png beside the mask, as `overlay_path`."""
  return mask.parent / 'reconstructions' / overlay_path(mask).name


def shown(count: int) -> list[int]:
  """Returns which of a file's pictures are drawn: at most `SHOWN`, evenly."""
  cells = min(count, SHOWN)
  return [int((i + 0.5) * count / cells) for i in range(cells)]


def draw(
  pictures: Sequence[np.ndarray],
  masks: Sequence[np.ndarray],
  palette: np.ndarray,
) -> np.ndarray:
  """Draws the overlay of one picture, or a contact sheet of several.

  Args:
    pictures: uint8 [H, W, C] each.
    masks: uint8 [H, W] each.
    palette: uint8 [K, 3].

  Returns:
    uint8 [H', W', 3]; of one picture, its own size.
  """
  drawn = [
    visualize.overlay(picture, mask, palette)
    for picture, mask in zip(pictures, masks, strict=True)
  ]
  return sheet(drawn)


def sheet(drawn: Sequence[np.ndarray]) -> np.ndarray:
  """Returns one picture as it is, a contact sheet of several; uint8 RGB."""
  if len(drawn) == 1:
    return drawn[0]
  drawn = [visualize.thumbnail(image, SHEET_SIDE) for image in drawn]
  rows = range(0, len(drawn), SHEET_COLUMNS)
  return visualize.grid([drawn[i : i + SHEET_COLUMNS] for i in rows])


def changed(path: Path) -> int:
  """Returns when a file, or any file of a folder, was last written, in ns."""
  inside = [p for p in path.iterdir() if p.exists()] if path.is_dir() else []
  return max(p.stat().st_mtime_ns for p in (path, *inside))


def _is_image(name):
  return name.lower().endswith(image_files.IMAGE_SUFFIXES)


def _stem(name):
  return Path(name).stem if _is_image(name) else listing.volume_stem(name)


def _save_volume(volume, path, masks, palette):
  del palette  # a label volume has no colours
  data = volumes.encode_label(volume, np.stack(masks))
  image_files.write_atomically(path, data)
