"""Pictures for people: colours for classes, overlays, grids, a legend.

NumPy and Pillow only; the same input gives the same bytes.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg.data.formats.images import VOID, VOID_COLOUR, write_atomically

_INK, _PAPER = (20, 20, 20), (255, 255, 255)


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Maps float images in [-1, 1] to uint8 0..255; uint8 passes unchanged.

  Values outside are clipped, nan becomes 0.

  Raises:
    TypeError: neither floating point nor uint8.
  """
  images = np.asarray(images)
  if images.dtype == np.uint8:
    return images
  if images.dtype.kind != 'f' and images.dtype.name != 'bfloat16':
    raise TypeError(f'an image is float or uint8, found {images.dtype}')
  scaled = np.nan_to_num((images.astype(np.float32) + 1) * 127.5, nan=0.0)
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
  """Makes an image [H, W], [H, W, 1] or [H, W, 3] into uint8 [H, W, 3]."""
  image = to_uint8(image)
  if image.ndim == 2:
    image = image[..., None]
  return np.broadcast_to(image, (*image.shape[:2], 3))


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """Paints class ids.

  Args:
    label: integers [..., H, W]; 255 = void, painted a pale grey.
    palette: uint8 [K, 3].

  Returns:
    uint8 [..., H, W, 3].

  Raises:
    ValueError: a class id outside the palette.
  """
  label = np.asarray(label)
  palette = np.asarray(palette, np.uint8)
  known = label[label != VOID]
  if known.size and not 0 <= known.min() <= known.max() < len(palette):
    raise ValueError(
      f'class ids {known.min()} to {known.max()} do not fit a palette of '
      f'{len(palette)} colours'
    )
  table = np.full((256, 3), VOID_COLOUR, np.uint8)
  table[: min(len(palette), VOID)] = palette[:VOID]
  return table[label]


def overlay(
  image: np.ndarray,
  label: np.ndarray,
  palette: np.ndarray,
  alpha: float = 0.5,
) -> np.ndarray:
  """Tints an image by class; background (0) and void stay as they are.

  The border of each region is drawn in full colour, so that regions as pale
  as the image can still be seen.

  Args:
    image: float [-1, 1] or uint8, [H, W] or [H, W, C].
    label: integers [H, W].
    palette: uint8 [K, 3].
    alpha: share of the class colour, 0 to 1.

  Returns:
    uint8 [H, W, 3].
  """
  image, label = to_rgb(image), np.asarray(label)
  if image.shape[:2] != label.shape:
    raise ValueError(f'image {image.shape[:2]} and label {label.shape} differ')
  tinted = (label != 0) & (label != VOID)
  weight = np.where(tinted, alpha, 0.0)
  weight[tinted & _border(label)] = 1.0
  mixed = image + weight[..., None] * (
    colorize(label, palette).astype(np.float64) - image
  )
  return np.rint(mixed).astype(np.uint8)


def upscale(image: np.ndarray, min_side: int) -> np.ndarray:
  """Repeats pixels until the longer side is at least `min_side`."""
  factor = max(1, -(-min_side // max(1, *image.shape[:2])))
  return image.repeat(factor, 0).repeat(factor, 1)


def grid(
  rows: Sequence[Sequence[np.ndarray]], min_side: int = 96, gap: int = 2
) -> np.ndarray:
  """Lays images out in rows, small ones magnified, on white.

  Args:
    rows: images [H, W] or [H, W, C], float [-1, 1] or uint8; rows may be of
      different length, images of different size.
    min_side: small images grow, by whole factors, until their longer side
      has this many pixels.
    gap: pixels between images.

  Returns:
    uint8 [H', W', 3].

  Raises:
    ValueError: no image at all.
  """
  cells = [[upscale(to_rgb(image), min_side) for image in row] for row in rows]
  cells = [row for row in cells if row]
  if not cells:
    raise ValueError('a grid needs at least one image')
  height = max(image.shape[0] for row in cells for image in row)
  width = max(image.shape[1] for row in cells for image in row)
  columns = max(len(row) for row in cells)
  canvas = np.full(
    (
      len(cells) * (height + gap) - gap,
      columns * (width + gap) - gap,
      3,
    ),
    _PAPER,
    np.uint8,
  )
  for i, row in enumerate(cells):
    for j, image in enumerate(row):
      top, left = i * (height + gap), j * (width + gap)
      canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
  return canvas


def captioned(
  images: Sequence[np.ndarray], captions: Sequence[str], min_side: int = 96
) -> np.ndarray:
  """Lays images of one size out in a row, a line of text above each.

  Args:
    images: as of `grid`.
    captions: as many.
    min_side: see `grid`.

  Returns:
    uint8 [H', W', 3]; the last rows are `grid([images], min_side)`.
  """
  row = grid([images], min_side)
  step = (row.shape[1] + 2) // len(images)
  size = max(12, step // 24)
  canvas = Image.new('RGB', (row.shape[1], size + 8), _PAPER)
  draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
  for i, text in enumerate(captions):
    draw.text((i * step + 4, 2), text, _INK, font)
  return np.concatenate([np.asarray(canvas), row])


def sample_grid(
  images: np.ndarray,
  labels: np.ndarray,
  palette: np.ndarray,
  columns: int = 8,
  min_side: int = 96,
) -> np.ndarray:
  """Shows images with their labels below: a row of each, and again.

  Args:
    images: [N, H, W, C], float [-1, 1] or uint8.
    labels: integers [N, H, W].
    palette: uint8 [K, 3].
    columns: images in a row.
    min_side: see `grid`.

  Returns:
    uint8 [H', W', 3].
  """
  painted = colorize(labels, palette)
  rows = []
  for i in range(0, len(images), columns):
    rows += [images[i : i + columns], painted[i : i + columns]]
  return grid(rows, min_side)


def picture_grid(
  picture: np.ndarray,
  palette: np.ndarray,
  columns: int = 8,
  min_side: int = 96,
) -> np.ndarray:
  """Lays out one entry of `Method.pictures`.

  Args:
    picture: images [n, H, W, C], float [-1, 1] or uint8; or class ids
      [n, H, W] of any integer type, which are painted.
    palette: uint8 [K, 3].
    columns: images in a row.
    min_side: see `grid`.

  Returns:
    uint8 [H', W', 3].
  """
  picture = np.asarray(picture)
  if picture.ndim == 3:
    picture = colorize(picture, palette)
  rows = [picture[i : i + columns] for i in range(0, len(picture), columns)]
  return grid(rows, min_side)


def legend(
  class_names: Sequence[str], palette: np.ndarray, size: int = 14
) -> np.ndarray:
  """Draws a coloured square and a name for each class, one below another.

  Args:
    class_names: K names.
    palette: uint8 [K, 3].
    size: height of the letters in pixels.

  Returns:
    uint8 [H, W, 3].
  """
  font = ImageFont.load_default(size)
  line, pad = size + 8, 6
  width = max(int(font.getlength(name)) for name in class_names)
  shape = (width + line + 3 * pad, line * len(class_names) + pad)
  canvas = Image.new('RGB', shape, _PAPER)
  draw = ImageDraw.Draw(canvas)
  for i, (name, color) in enumerate(zip(class_names, palette, strict=True)):
    top = pad + i * line
    box = (pad, top, pad + line - pad, top + line - pad)
    draw.rectangle(box, tuple(int(c) for c in color), _INK)
    draw.text((line + pad, top), name, _INK, font)
  return np.asarray(canvas)


def thumbnail(image: np.ndarray, side: int, smooth: bool = True) -> np.ndarray:
  """Shrinks an image whose longer side exceeds `side`; colours of labels
  (`smooth=False`) are not mixed."""
  scale = side / max(image.shape[:2])
  if scale >= 1:
    return image
  size = [max(1, round(n * scale)) for n in image.shape[1::-1]]
  method = Image.Resampling.BOX if smooth else Image.Resampling.NEAREST
  return np.asarray(Image.fromarray(to_rgb(image)).resize(size, method))


def encode(image: np.ndarray, kind: str = 'PNG') -> bytes:
  """Returns the bytes of a PNG or JPEG file of a uint8 image."""
  buffer = io.BytesIO()
  options = {'quality': 85} if kind == 'JPEG' else {}
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
  return buffer.getvalue()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
  """Writes a uint8 image as PNG, whole or not at all; makes its folder."""
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  write_atomically(path, encode(image))


def _border(label):
  """True where a pixel's right, left, upper or lower neighbour differs."""
  border = np.zeros(label.shape, bool)
  down = label[1:] != label[:-1]
  right = label[:, 1:] != label[:, :-1]
  border[1:] |= down
  border[:-1] |= down
  border[:, 1:] |= right
  border[:, :-1] |= right
  return border
