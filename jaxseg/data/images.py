"""Image and label files to uint8 arrays, and back, whatever wrote them."""

import io
import os
import pathlib
import tempfile
import warnings

import numpy as np
from PIL import Image, ImageOps

from jaxseg.errors import UserError

# Pillow picks a decoder by content; the list keeps its 40 other parsers out.
IMAGE_FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP')
LABEL_FORMATS = ('PNG', 'TIFF', 'BMP')  # lossless: JPEG invents class ids
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.webp', '.bmp')
LABEL_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp')
MAX_PIXELS = 150_000_000
VOID = 255
VOID_COLOUR = (224, 224, 192)
# Share of the pixels cut off at either end of a 16-bit or float image: a
# burnt-in marker must not decide how dark the anatomy becomes.
RANGE_TAIL = 0.005


def read_image(path: str | os.PathLike, channels: int) -> np.ndarray:
  """Reads one image file of any common kind.

  The EXIF orientation is applied. Palettes become colours, transparency is
  composited over black, colour becomes luma (ITU-R 601) for `channels=1` and
  grey is repeated for `channels=3`. Images deeper than 8 bits (16-bit and
  32-bit grey, float) are mapped linearly so that their own 0.5th and 99.5th
  percentiles become 0 and 255; 16-bit colour keeps its upper byte.

  Args:
    path: a PNG, JPEG, TIFF, WebP or BMP file, recognised by its content.
    channels: 1 or 3.

  Returns:
    uint8 [H, W, channels].

  Raises:
    UserError: a file that is missing, empty, damaged, no image, too large or
      of several frames.
  """
  image = _open(path, IMAGE_FORMATS, 'image')
  if image.mode in ('I', 'F') or image.mode.startswith('I;'):
    image = Image.fromarray(_to_8_bits(np.asarray(image), path))
  if image.has_transparency_data:
    image = image.convert('RGBA')
    black = Image.new('RGBA', image.size, (0, 0, 0, 255))
    image = Image.alpha_composite(black, image).convert('RGB')
  image = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return image.reshape(*image.shape[:2], channels)


def read_label(path: str | os.PathLike) -> np.ndarray:
  """Reads one file of class ids.

  Indexed ('P') files give their indices, not their colours; grey files their
  values; 1-bit files 0 and 1.

  Args:
    path: a PNG, TIFF or BMP file.

  Returns:
    uint8 [H, W], 255 = void.

  Raises:
    UserError: as `read_image`; a colour or lossy file; ids above 255.
  """
  image = _open(path, LABEL_FORMATS, 'label')
  deep = image.mode == 'I' or image.mode.startswith('I;')
  if image.mode not in ('1', 'L', 'P') and not deep:
    raise UserError(
      f'{path}: the label file holds colours (mode {image.mode}), expected '
      'one class id per pixel; save it as an indexed or grey PNG whose pixel '
      'values are class ids'
    )
  label = np.asarray(image)
  if deep and (label.min() < 0 or label.max() > 255):
    raise UserError(
      f'{path}: the label file holds the value {label.max()}, expected class '
      'ids from 0 to 255; save it as an 8-bit PNG whose pixel values are '
      'class ids'
    )
  return label.astype(np.uint8)


def label_palette(path: str | os.PathLike) -> np.ndarray | None:
  """Returns the colours (uint8 [n, 3]) of an indexed file, else None."""
  image = _open(path, LABEL_FORMATS, 'label')
  if image.mode != 'P':
    return None
  return np.array(image.getpalette('RGB'), np.uint8).reshape(-1, 3)


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
  """Converts uint8 [H, W] or [H, W, 1 or 3] to uint8 [H, W, channels]."""
  image = image.reshape(*image.shape[:2], -1)
  if image.shape[-1] == channels:
    return image
  if channels == 3:
    return np.repeat(image, 3, axis=-1)
  return np.asarray(Image.fromarray(image).convert('L'))[..., None]


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
  """Resizes with antialiasing (Lanczos); other shapes are squeezed.

  Args:
    image: uint8 [H, W, C].
    size: the new (height, width), or one number for both.

  Returns:
    uint8 [height, width, C].
  """
  height, width = (size, size) if isinstance(size, int) else size
  if image.shape[:2] == (height, width):
    return image
  squeezed = image[..., 0] if image.shape[-1] == 1 else image
  resized = Image.fromarray(np.ascontiguousarray(squeezed)).resize(
    (width, height), Image.Resampling.LANCZOS
  )
  return np.asarray(resized).reshape(height, width, image.shape[-1])


def resize_label(label: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
  """Resizes class ids, uint8 [H, W], to the nearest; see `resize_image`."""
  height, width = (size, size) if isinstance(size, int) else size
  if label.shape == (height, width):
    return label
  image = Image.fromarray(np.ascontiguousarray(label))
  return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def write_label(
  path: str | os.PathLike, label: np.ndarray, palette: np.ndarray
) -> None:
  """Writes an indexed PNG, whole or not at all.

  Args:
    path: where to; a file of that name is replaced.
    label: integer [H, W], class ids 0..K-1 or 255 (void).
    palette: uint8 [K, 3], the colour of each class in image viewers.
  """
  colours = np.zeros((256, 3), np.uint8)
  colours[: len(palette)] = palette
  if len(palette) <= VOID:
    colours[VOID] = VOID_COLOUR
  image = Image.fromarray(np.asarray(label).astype(np.uint8))
  image.putpalette(colours.tobytes())
  data = io.BytesIO()
  image.save(data, 'PNG')
  write_atomically(path, data.getvalue())


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` so that a reader or a crash never sees half a file."""
  path = pathlib.Path(path)
  handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.' + path.name)
  try:
    with os.fdopen(handle, 'wb') as f:
      f.write(data)
    mask = os.umask(0)  # mkstemp makes private files; give the usual rights
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise


def _open(path, formats, kind):
  """Returns the whole decoded Pillow image, upright."""
  data = _read_bytes(path, kind)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # Pillow warns of sizes refused below
    image = _decoded(path, data, formats, kind)
  return ImageOps.exif_transpose(image)


def _decoded(path, data, formats, kind):
  try:
    image = Image.open(io.BytesIO(data), formats=formats)
    if getattr(image, 'n_frames', 1) > 1:
      raise UserError(
        f'{path}: the {kind} file holds {image.n_frames} frames, expected '
        'one; save each frame as a file of its own'
      )
    if image.width * image.height > MAX_PIXELS:
      raise UserError(
        f'{path}: the {kind} is {image.width}x{image.height} pixels, '
        f'expected at most {MAX_PIXELS // 10**6} million; make it smaller'
      )
    if image.format == 'PNG':  # checks the checksums, which decoding skips
      image.verify()
      image = Image.open(io.BytesIO(data), formats=formats)
    image.load()
    return image
  except UserError:
    raise
  except Image.UnidentifiedImageError:
    found = _foreign_format(data)
    raise UserError(
      f'{path}: the {kind} file is {found}, expected '
      f'{", ".join(formats)}; convert or replace the file'
    ) from None
  except Exception as error:  # decoders raise many types on damaged files
    raise UserError(
      f'{path}: the {kind} file is damaged or cut off ({error}), expected a '
      'file that decodes whole; copy or download it again, or remove it'
    ) from error


def _read_bytes(path, kind):
  """Returns the content, or says why it cannot be an image."""
  if not os.path.isfile(path):
    what = 'not a regular file' if os.path.exists(path) else 'missing'
    raise UserError(
      f'{path}: the {kind} file is {what}, expected an image file; check the '
      'path'
    )
  try:
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(
      f'{path}: the {kind} file cannot be read ({error.strerror}), expected a '
      'readable file; check its permissions'
    ) from error
  head = data[:512].lstrip().lower()
  if not data:
    found, fix = 'empty (0 bytes)', 'copy or download it again'
  elif head.startswith(b'version https://git-lfs'):
    found, fix = 'a git-LFS pointer, not the image', 'run `git lfs pull`'
  elif head.startswith((b'<!doctype html', b'<html')):
    found, fix = 'a web page (HTML)', 'download it again'
  else:
    return data
  raise UserError(
    f'{path}: the {kind} file is {found}, expected an image; {fix}'
  )


def _foreign_format(data):
  """Names what is in a file that none of the allowed decoders knows."""
  if data[:3] == b'\xff\xd8\xff':
    return 'a JPEG (lossy, it changes class ids)'
  if data[:4] == b'RIFF' and data[8:12] == b'WEBP':
    return 'a WebP'
  if data[:4] == b'GIF8':
    return 'a GIF'
  if b'\0' not in data[:512] and data[:512].isascii():
    return 'text, not an image'
  return 'no image of a known kind'


def _to_8_bits(image, path):
  """Maps the robust range of a deep grey image to 0..255."""
  image = image.astype(np.float64)
  if not np.isfinite(image).all():
    raise UserError(
      f'{path}: {np.count_nonzero(~np.isfinite(image))} pixels are NaN or '
      'infinite, expected finite values; replace them'
    )
  low, high = np.quantile(image, (RANGE_TAIL, 1 - RANGE_TAIL))
  if low == high:  # nearly constant: the few other pixels are all there is
    low, high = image.min(), image.max()
  scaled = (image - low) / max(high - low, 1e-12)
  return np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
