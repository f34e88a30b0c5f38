"""One picture of a data set: samples with their labels, classes, sizes."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxseg import visualize
from jaxseg.data.formats.images import VOID, VOID_COLOUR
from jaxseg.data.inspection.checks import Statistics
from jaxseg.data.source import Source
from jaxseg.errors import UserError

SIDE = 128  # pixels of the longer side of an image
GAP = 16
WIDTH = 8 * (SIDE + GAP // 2)  # eight images, or four beside their overlays
INK, FAINT, PAPER = (20, 20, 20), (130, 130, 130), (255, 255, 255)
BAR, LINE, WRONG = (90, 120, 170), (225, 225, 225), (190, 30, 30)
LEAST = 1e-4  # the share of pixels where the logarithmic bars begin


def contact_sheet(
  source: Source,
  ids_by_split: Mapping[str, Sequence[str]],
  statistics: Statistics,
  images_per_split: int = 8,
) -> np.ndarray:
  """Draws a data set.

  On top are its name and licence, the classes with their colours and shares
  (of all labelled pixels, logarithmic; of the labelled images), and the sizes
  and modes of the images. Below are, for each split, images spread evenly over
  it, each with its overlay (background and void are not tinted), unlabelled
  ones alone. What cannot be read or drawn is said in its place.

  Args:
    source: the data set.
    ids_by_split: its ids, by the headings to be drawn.
    statistics: what `checks.inspect` counted.
    images_per_split: at most.

  Returns:
    uint8 [H, 1120, 3].
  """
  blocks = [
    _title(source, ids_by_split),
    _classes(source, statistics),
    _about(statistics),
  ]
  for name, ids in ids_by_split.items():
    if ids and images_per_split:
      blocks.append(_split(source, name, ids, images_per_split))
  height = sum(block.height for block in blocks) + GAP * (len(blocks) + 1)
  sheet = Image.new('RGB', (WIDTH + 2 * GAP, height), PAPER)
  top = GAP
  for block in blocks:
    sheet.paste(block, (GAP, top))
    top += block.height + GAP
  return np.asarray(sheet)


def _font(size):
  return ImageFont.load_default(size)


def _lines(rows):
  """Draws rows of (text, size, colour), long ones wrapped."""
  wrapped = []
  for text, size, colour in rows:
    letters = int(WIDTH / (0.5 * size))
    wrapped += [(t, size, colour) for t in textwrap.wrap(text, letters)]
  height = sum(size + 6 for _, size, _ in wrapped)
  block = Image.new('RGB', (WIDTH, height), PAPER)
  draw, top = ImageDraw.Draw(block), 0
  for text, size, colour in wrapped:
    draw.text((0, top), text, colour, _font(size))
    top += size + 6
  return block


def _title(source, ids_by_split):
  ids = {id_ for ids in ids_by_split.values() for id_ in ids}
  labelled = sum(source.has_label(id_) for id_ in ids)
  groups = {source.groups[id_] for id_ in ids if id_ in source.groups}
  kind = 'grey' if source.channels == 1 else 'RGB'
  facts = [f'{len(ids):,} images ({kind})', f'{labelled:,} with labels']
  facts.append(f'{len(source.class_names)} classes')
  if groups:
    facts.append(f'{len(groups):,} groups')
  rows = [(source.name, 28, INK), (', '.join(facts), 15, INK)]
  if source.licence:
    rows.append((source.licence, 13, FAINT))
  return _lines(rows)


def _classes(source, statistics):
  """A row for each class: colour, name, share of pixels and of images."""
  pixels = np.asarray(statistics.class_pixels, np.float64)
  rows = [
    (f'{i}  {name}', tuple(int(c) for c in colour), i)
    for i, (name, colour) in enumerate(
      zip(source.class_names, source.palette, strict=True)
    )
  ]
  if pixels[VOID]:
    rows.append(('void (not scored)', VOID_COLOUR, VOID))
  line, top = 20, 22
  block = Image.new('RGB', (WIDTH, top + line * len(rows)), PAPER)
  draw = ImageDraw.Draw(block)
  log, linear = (260, 300), (680, 300)  # left and width of the bars
  for share in (1e-4, 1e-3, 1e-2, 1e-1, 1):
    label = f'{100 * share:g} %' + ' of pixels' * (share == 1)
    _tick(draw, log[0] + log[1] * _log_length(share), label, top, block.height)
  for share in (0, 0.5, 1):
    label = f'{100 * share:g} %' + ' of labelled images' * (share == 1)
    _tick(draw, linear[0] + linear[1] * share, label, top, block.height)
  for j, (name, colour, i) in enumerate(rows):
    y = top + j * line
    draw.rectangle((0, y + 3, 14, y + 17), colour, INK)
    draw.text((22, y + 2), _short(name, 220, 13), INK, _font(13))
    share = pixels[i] / max(1, pixels.sum())
    _bar(draw, log, y, _log_length(share), share)
    share = statistics.class_images[i] / max(1, statistics.labels)
    _bar(draw, linear, y, share, share)
  return block


def _log_length(share):
  return max(0.0, 1 - np.log10(max(share, LEAST)) / np.log10(LEAST))


def _tick(draw, x, label, top, bottom):
  draw.line((x, top - 2, x, bottom), LINE)
  draw.text((x, top - 4), label, FAINT, _font(11), anchor='ms')


def _bar(draw, place, y, length, share):
  left, width = place
  right = left + width * length
  if length > 0:
    draw.rectangle((left, y + 4, right, y + 16), BAR)
  text = '0' if share == 0 else f'{100 * share:.{1 if share > 0.01 else 3}f} %'
  draw.text((right + 5, y + 3), text, INK if share else WRONG, _font(12))


def _about(statistics):
  """Sizes and modes of the images, the most frequent first."""

  def text(counts, name):
    most = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f'{name(key)} ({n:,})' for key, n in most[:8]]
    more = len(most) - len(shown)
    return ', '.join(shown) + (f' and {more:,} more' if more > 0 else '')

  sizes = text(statistics.sizes, lambda size: f'{size[1]}x{size[0]}')
  counted = f'{statistics.images:,} images, {statistics.labels:,} labels'
  rows = [
    (f'counted: {counted}', 13, INK),
    (f'sizes (width x height): {sizes or "none"}', 13, INK),
  ]
  if statistics.modes:
    rows.append((f'modes: {text(statistics.modes, str)}', 13, INK))
  return _lines(rows)


def _split(source, name, ids, most):
  """A heading and rows of images, spread evenly over the split."""
  count = min(most, len(ids))
  chosen = [
    ids[i] for i in np.linspace(0, len(ids) - 1, count).round().astype(int)
  ]
  labelled = sum(source.has_label(id_) for id_ in ids)
  heading = _lines(
    [(f'{name}: {len(ids):,} images, {labelled:,} with labels', 18, INK)]
  )
  cells = [_pair(source, id_) for id_ in chosen]
  # Eight columns; a pair takes two.
  rows, column = [[]], 0
  for cell in cells:
    span = cell.width // SIDE
    if column + span > 8:
      rows.append([])
      column = 0
    rows[-1].append((cell, column * (WIDTH // 8)))
    column += span
  heights = [max(cell.height for cell, _ in row) for row in rows]
  top = heading.height + 4
  block = Image.new('RGB', (WIDTH, top + sum(heights)), PAPER)
  block.paste(heading, (0, 0))
  for row, height in zip(rows, heights, strict=True):
    for cell, left in row:
      block.paste(cell, (left, top))
    top += height
  return block


def _pair(source, id_):
  """An image, its overlay if it has a label, and its name below."""
  parts, complaint = [], ''
  wanted = 2 if source.has_label(id_) else 1
  try:
    image = visualize.to_rgb(source.image(id_))
    size = _fitted(image)
    parts.append(_resized(image, size, Image.Resampling.LANCZOS))
    if wanted == 2:
      parts.append(_overlay(source, id_, image, size))
  except UserError as error:
    reason = str(error).removeprefix(f'{source.path(id_)}: ')
    complaint = '\n'.join(textwrap.wrap(reason, 22)[:8])
  height = SIDE if complaint else parts[0].height
  cell = Image.new('RGB', (wanted * SIDE, height + 22), PAPER)
  draw = ImageDraw.Draw(cell)
  for i, part in enumerate(parts):
    cell.paste(part, (i * SIDE, 0))
  draw.text((len(parts) * SIDE + 4, 2), complaint, WRONG, _font(11))
  draw.text((0, height + 2), _short(id_, cell.width, 11), FAINT, _font(11))
  return cell


def _overlay(source, id_, image, size):
  """The label over the image, both at the size shown: outlines stay thin."""
  label = source.label(id_)
  if label.shape != image.shape[:2]:
    raise UserError(
      f'the label is {label.shape[1]}x{label.shape[0]}, the image '
      f'{image.shape[1]}x{image.shape[0]}'
    )
  unknown = (label >= len(source.palette)) & (label != VOID)
  if unknown.any():
    raise UserError(f'the label holds {label[unknown][0]}, which is no class')
  small = _resized(image, size, Image.Resampling.LANCZOS)
  ids = np.asarray(_resized(label, size, Image.Resampling.NEAREST))
  drawn = visualize.overlay(np.asarray(small), ids, source.palette)
  return Image.fromarray(drawn)


def _fitted(image):
  """The size (width, height) whose longer side is `SIDE`."""
  height, width = image.shape[:2]
  scale = SIDE / max(height, width)
  return max(1, round(width * scale)), max(1, round(height * scale))


def _resized(array, size, method):
  return Image.fromarray(np.ascontiguousarray(array)).resize(size, method)


def _short(text, width, size):
  """Shortens a name in its middle until it fits."""
  text = ''.join(c if c.isprintable() else '?' for c in text)
  font, kept = _font(size), len(text)
  short = text
  while font.getlength(short) > width and kept > 2:
    kept -= 1
    short = f'{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}'
  return short
