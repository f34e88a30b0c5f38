"""Bytes of image files to whole, upright Pillow images, or a reason why not."""

import io
import os
import warnings
from typing import NamedTuple

from PIL import Image, ImageOps

from jaxseg.data import problems
from jaxseg.errors import DataError

MAX_PIXELS = 150_000_000
_ORIENTATION = 0x0112  # EXIF tag
_SUFFIXES = {
  '.png': 'PNG',
  '.jpg': 'JPEG',
  '.jpeg': 'JPEG',
  '.tif': 'TIFF',
  '.tiff': 'TIFF',
  '.webp': 'WEBP',
  '.bmp': 'BMP',
}


class Opened(NamedTuple):
  """A decoded image file.

  Attributes:
    image: whole and upright.
    orientation: the EXIF tag it had, 1 to 8.
    deep_colour: whether the file has 16 bits a channel of colour, of which
      `image` keeps the upper 8.
  """

  image: Image.Image
  orientation: int
  deep_colour: bool


def open_image(
  data: bytes, name: str, formats: tuple[str, ...], what: str
) -> Opened:
  """Decodes one image file whole and turns it upright by its EXIF tag.

  The format is found by content; only the headers of files too large are
  read. A JPEG with further pictures behind it (MPO) gives its first.

  Args:
    data: the file's content.
    name: of the file, for messages.
    formats: Pillow's names of the formats allowed.
    what: 'image' or 'label', for messages.

  Raises:
    DataError: 'empty', 'not_an_image', 'lossy', 'frames', 'too_large',
      'truncated' or 'damaged'.
  """
  _refuse_what_is_no_image(data, name, what)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow warns of sizes refused below
    opened = _decoded(data, name, formats, what)
  image, orientation = opened.image, opened.orientation
  suffix = os.path.splitext(name)[1].lower()
  stored = 'JPEG' if image.format == 'MPO' else image.format
  if _SUFFIXES.get(suffix, stored) != stored:
    problems.mention(
      'extension',
      name,
      f'the {what} file is a {stored}, expected what its name says; it is '
      'read all the same',
    )
  if what == 'image':
    problems.mention_mode(f'{stored} {image.mode}')
  if orientation in range(2, 9):
    problems.mention(
      'exif_rotation',
      name,
      f'the {what} is turned or mirrored as its EXIF tag says (orientation '
      f'{orientation}); see that its '
      f'{"label" if what == "image" else "image"} fits',
    )
  return opened


def _decoded(data, name, formats, what):
  """Returns the whole image; see `open_image`."""
  try:
    image = Image.open(io.BytesIO(data), formats=formats)
    stored = image.format
    _refuse_frames(image, name, what)
    if image.width * image.height > MAX_PIXELS:
      raise _too_large(f'{image.width}x{image.height}', name, what)
    deep = _is_deep_colour(image)
    if stored == 'PNG':  # checks the checksums, which decoding skips
      image.verify()
      image = Image.open(io.BytesIO(data), formats=formats)
    # TIFFs are turned by loading, PNGs know their tag only after it.
    before = _orientation(image)
    image.load()
    orientation = before if stored == 'TIFF' else _orientation(image)
    if orientation in range(2, 9) and stored != 'TIFF':
      image = ImageOps.exif_transpose(image)
    image.format = stored
    return Opened(image, orientation, deep)
  except DataError:
    raise
  except Image.UnidentifiedImageError:
    raise _foreign(data, name, formats, what) from None
  except Image.DecompressionBombError as error:
    digits = ''.join(c for c in str(error).split('pixels')[0] if c.isdigit())
    raise _too_large(digits, name, what) from error
  except Exception as error:  # decoders raise many types on damaged files
    cut = 'truncated' in str(error).lower() or isinstance(error, EOFError)
    raise DataError(
      f'{name}: the {what} file is damaged or cut off ({error}), expected a '
      'file that decodes whole; copy or download it again, or remove it',
      'truncated' if cut else 'damaged',
    ) from error


def _orientation(image):
  try:
    return image.getexif().get(_ORIENTATION, 1)
  except Exception:  # a damaged tag says nothing
    return 1


def _refuse_frames(image, name, what):
  frames = getattr(image, 'n_frames', 1)
  if image.format == 'MPO' or frames == 1:
    return
  raise DataError(
    f'{name}: the {what} file holds {frames} frames, expected one; save each '
    'frame as a file of its own',
    'frames',
  )


def _too_large(size, name, what):
  return DataError(
    f'{name}: the {what} is {size} pixels, expected at most '
    f'{MAX_PIXELS // 10**6} million; make it smaller',
    'too_large',
  )


def _is_deep_colour(image):
  """Whether Pillow drops the lower 8 of 16 bits a channel."""
  raw = [str(part) for tile in image.tile for part in _parts(tile.args)]
  return image.mode in ('RGB', 'RGBA', 'LA') and any(';16' in r for r in raw)


def _parts(args):
  return args if isinstance(args, list | tuple) else (args,)


def _refuse_what_is_no_image(data, name, what):
  """Knows what is found in place of an image after a failed copy."""
  head = data[:512].lstrip().lower()
  if not data:
    found, fix, kind = 'empty (0 bytes)', 'copy or download it again', 'empty'
  elif head.startswith(b'version https://git-lfs'):
    found, kind = 'a git-LFS pointer, not the image', 'not_an_image'
    fix = 'run `git lfs pull`'
  elif head.startswith((b'<!doctype html', b'<html')):
    found, fix = 'a web page (HTML)', 'download it again'
    kind = 'not_an_image'
  elif not any(data[:4096]):
    found, fix = 'all zero bytes', 'copy or download it again'
    kind = 'not_an_image'
  else:
    return
  raise DataError(
    f'{name}: the {what} file is {found}, expected an image; {fix}', kind
  )


def _foreign(data, name, formats, what):
  """The error for a file that none of the allowed decoders knows."""
  fix, kind = 'convert or replace the file', 'not_an_image'
  if data[:3] == b'\xff\xd8\xff':
    found, kind = 'a JPEG (lossy, it changes class ids)', 'lossy'
    fix = 'export the labels again as PNG from what they were made with'
  elif data[:4] == b'RIFF' and data[8:12] == b'WEBP':
    found, kind = 'a WebP (it may be lossy and change class ids)', 'lossy'
    fix = 'export the labels again as PNG from what they were made with'
  elif data[:4] == b'GIF8':
    found = 'a GIF'
  elif data[4:8] == b'ftyp':
    found, fix = 'a HEIC or AVIF photo, or a film', 'convert it to JPEG or PNG'
  elif data[:4] == b'PK\3\4':
    found, fix = 'a ZIP archive', 'unpack it'
  elif b'\0' not in data[:512] and data[:512].isascii():
    found = 'text, not an image'
  else:
    found = 'no image of a known kind'
  return DataError(
    f'{name}: the {what} file is {found}, expected {", ".join(formats)}; {fix}',
    kind,
  )
