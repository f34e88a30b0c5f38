"""Image and label files to uint8 arrays, and back, whatever wrote them."""

import io
import os

import cv2
import numpy as np
from PIL import Image, ImageOps

from jaxseg.data import problems
from jaxseg.data.formats import decode, files
from jaxseg.data.formats.files import write_atomically as write_atomically
from jaxseg.data.formats.intensity import Intensity, to_8_bits
from jaxseg.data.formats.labels import LABEL_FORMATS as LABEL_FORMATS
from jaxseg.data.formats.labels import LABEL_SUFFIXES as LABEL_SUFFIXES
from jaxseg.data.formats.labels import VOID as VOID
from jaxseg.data.formats.labels import decode_label as decode_label
from jaxseg.data.formats.labels import label_palette as label_palette
from jaxseg.data.formats.labels import read_label as read_label
from jaxseg.errors import DataError

# Pillow picks a decoder by content; the list keeps its 40 other parsers out.
IMAGE_FORMATS = ('PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP')
IMAGE_SUFFIXES = ('.png', '.jpg', '.jpeg', '.tif', '.tiff', '.webp', '.bmp')
VOID_COLOUR = (224, 224, 192)
_AS_STORED = Intensity()


def read_image(
  path: str | os.PathLike, channels: int, intensity: Intensity = _AS_STORED
) -> np.ndarray:
  """Reads one image file; see `decode_image`.

  Raises:
    DataError: as `files.read_bytes` and `decode_image`.
  """
  data = files.read_bytes(path, 'image')
  return decode_image(data, str(path), channels, intensity)


def decode_image(
  data: bytes, name: str, channels: int, intensity: Intensity = _AS_STORED
) -> np.ndarray:
  """Decodes one image file of any common kind.

  The EXIF orientation is applied. Palettes become colours, transparency is
  composited over black, colour becomes luma (ITU-R 601) for `channels=1` and
  grey is repeated for `channels=3`. Deeper than 8 bits (16-bit grey and
  colour, 32-bit, float) are mapped as `intensity` says; so are 8-bit images
  if its mode is not 'auto'. Colour profiles are not applied. What is changed
  is mentioned, see `problems.collect`.

  Args:
    data: content of a PNG, JPEG, TIFF, WebP or BMP file.
    name: of the file, for messages.
    channels: 1 or 3.
    intensity: how stored values become 0..255.

  Returns:
    uint8 [H, W, channels].

  Raises:
    DataError: as `decode.open_image`; 'not_finite'.
  """
  opened = decode.open_image(data, name, IMAGE_FORMATS, 'image')
  image = opened.image
  _tell_of_profile(image, name)
  if image.mode in ('I', 'F') or image.mode.startswith('I;'):
    deep = _finite(np.asarray(image), name)
    image = Image.fromarray(to_8_bits(deep, intensity))
  elif opened.deep_colour:
    image = _deep_colour(data, name, opened, intensity)
  else:
    image = _over_black(image, name)
    # Images that were deep have been mapped already.
    return to_8_bits(_to_array(image, name, channels), intensity)
  return _to_array(_over_black(image, name), name, channels)


def _to_array(image, name, channels):
  if image.mode == 'CMYK':
    problems.mention(
      'cmyk', name, 'the image is CMYK, expected RGB; it was converted'
    )
  if channels == 1 and image.mode not in ('1', 'L', 'P', 'LA'):
    rgb = np.asarray(image.convert('RGB'))
    if (rgb != rgb[..., :1]).any():
      problems.mention(
        'colour_as_grey',
        name,
        'the image has colours, expected grey as config.data.channels is 1; '
        'its luma is used',
      )
  array = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return array.reshape(*array.shape[:2], channels)


def _finite(values, name):
  wrong = np.count_nonzero(~np.isfinite(values))
  if wrong:
    raise DataError(
      f'{name}: {wrong} pixels are NaN or infinite, expected finite values; '
      'replace them',
      'not_finite',
    )
  return values


def _over_black(image, name):
  """Returns an image without transparency."""
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  if image.getextrema()[3][0] == 255:
    return image.convert('RGB')
  problems.mention(
    'transparent',
    name,
    'the image has transparent pixels, expected opaque ones; they are shown '
    'over black',
  )
  black = Image.new('RGBA', image.size, (0, 0, 0, 255))
  return Image.alpha_composite(black, image).convert('RGB')


def _deep_colour(data, name, opened, intensity):
  """16 bits a channel, which only OpenCV reads whole."""
  found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if found is None or found.ndim != 3 or found.dtype != np.uint16:
    problems.mention(
      'deep_colour',
      name,
      'the image has 16 bits a channel of a kind that cannot be read whole, '
      'expected 8; the upper 8 are used',
    )
    return opened.image
  colour = to_8_bits(np.ascontiguousarray(found[..., 2::-1]), intensity)
  if found.shape[-1] == 4:
    alpha = (found[..., 3:] >> 8).astype(np.uint8)
    colour = np.concatenate([colour, alpha], axis=-1)
  image = Image.fromarray(colour)
  if opened.image.format == 'TIFF':  # which OpenCV has turned already
    return image
  image.getexif()[0x0112] = opened.orientation
  return ImageOps.exif_transpose(image)


def _tell_of_profile(image, name):
  profile = image.info.get('icc_profile') or b''
  known = b'sRGB' in profile or 'sRGB'.encode('utf-16-be') in profile
  if profile and not known and image.mode not in ('1', 'L', 'I', 'I;16'):
    problems.mention(
      'colour_profile',
      name,
      'the image has a colour profile other than sRGB, expected none; it is '
      'not applied, so colours may look paler',
    )


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
