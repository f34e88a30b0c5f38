"""What came out of a generator: classes beside the real ones, copies, a sheet.

People look at pictures, and at whether a class is missing: both are made of
every folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import visualize, writers
from jaxseg.data import sources
from jaxseg.data import splits as data_splits
from jaxseg.data.examples import Examples
from jaxseg.errors import UserError
from jaxseg.synthesis_filter import KEPT, SHOWN, fractions, score

SIDE = 32  # of the images that are compared, in pixels
MAX_REAL = 500  # labelled images that are looked at, the first so many
COLUMNS = 12  # of the contact sheet
CELL = 96, 256  # the smallest and largest side of its images


class Real(NamedTuple):
  """The labelled training images, M of them.

  Attributes:
    ids: their names.
    vectors: float32 [M, D], from `vectors`.
    fractions: [M, K] of the pixels of each class.
  """

  ids: tuple[str, ...]
  vectors: np.ndarray
  fractions: np.ndarray


def read_real(
  workdir: str | Path, config: ConfigDict, num_classes: int
) -> Real | None:
  """Reads the labelled images of a training; None if they are there no longer.

  Args:
    workdir: of the training, for its splits.json.
    config: of the training.
    num_classes: K.
  """
  data = ConfigDict(config.data)
  data.cache = False  # each is looked at once
  try:
    ids = data_splits.load_splits(Path(workdir) / 'splits.json').labelled
    ids = ids[:MAX_REAL]
    examples = Examples(sources.load(data), data)
    near = [vectors(examples.image(id_)[None]) for id_ in ids]
    labels = (examples.training_label(id_)[None] for id_ in ids)
    shares = [fractions(label, num_classes) for label in labels]
    return Real(ids, np.concatenate(near), np.concatenate(shares))
  except (UserError, OSError, KeyError, ValueError, ImportError) as error:
    writers.say(
      f'the labelled training images cannot be read ({error}): nothing is '
      'compared with them'
    )
    return None


def vectors(images: np.ndarray) -> np.ndarray:
  """Returns float32 [N, D] in [-1, 1]: uint8 images at 32 x 32 pixels."""
  small = [
    image
    if image.shape[:2] == (SIDE, SIDE)
    else np.asarray(
      Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
      .resize((SIDE, SIDE), Image.Resampling.BOX)
    )
    for image in images
  ]  # fmt: skip
  return np.stack(small).reshape(len(small), -1) / np.float32(127.5) - 1


def nearest(
  real: np.ndarray, found: np.ndarray, other: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (which of `real` is nearest to each of `found`, how far it is).

  Args:
    real: [M, D], from `vectors`.
    found: [N, D].
    other: `found` is `real`: the nearest of the others.

  Returns:
    integers [N] and float64 [N], the root of the mean squared difference.
  """
  squares = np.stack([np.square(real - x).mean(1) for x in found])
  if other:
    np.fill_diagonal(squares, np.inf)
  return squares.argmin(1), np.sqrt(squares.min(1))


def summarize(
  rows: Sequence[Mapping[str, str]], names: Sequence[str], real: Real | None
) -> dict[str, Any]:
  """Counts what was drawn and what was kept.

  Args:
    rows: of synthesis.csv.
    names: of the classes.
    real: the labelled images, if they can be read.

  Returns:
    plain data: 'drawn', 'kept', 'dropped' by reason, 'classes' with the share
    of pixels and of images that show each class, of all drawn, of those kept
    and of the real ones; 'distance' to the nearest real image.
  """
  kept = [row for row in rows if row['outcome'] == KEPT]
  reasons = [row['outcome'] for row in rows if row['outcome'] != KEPT]
  summary = {
    'drawn': len(rows),
    'kept': len(kept),
    'dropped': {r: reasons.count(r) for r in sorted(set(reasons))},
    'classes': {name: {} for name in names},
  }
  parts = {'drawn': _table(rows, names), 'kept': _table(kept, names)}
  if real:
    parts['real'] = real.fractions
  for part, pixels in parts.items():
    for k, name in enumerate(names):
      summary['classes'][name][part] = {
        'pixels': _mean(pixels[:, k]), 'images': _mean(pixels[:, k] >= SHOWN)
      }  # fmt: skip
  far = [float(row['distance']) for row in kept if row.get('distance')]
  if far:
    summary['distance'] = {'min': min(far), 'mean': _mean(far)}
    if real and len(real.ids) > 1:
      _, apart = nearest(real.vectors, real.vectors, other=True)
      summary['distance']['real_mean'] = _mean(apart)
  return summary


def text(summary: Mapping[str, Any]) -> str:
  """Returns the summary as lines for the console."""
  lines = []
  first = next(iter(summary['classes'].values()))
  parts = [part for part in ('real', 'drawn', 'kept') if part in first]
  width = max(5, *(len(name) for name in summary['classes']))
  heads = [f'{part:>8} {"images":>7}' for part in parts]
  head = f'{"class":<{width}}' + ''.join(heads)
  lines.append(f'{head}   % of pixels, of images')
  for name, shares in summary['classes'].items():
    cells = [
      f'{100 * shares[p]["pixels"]:8.2f} {100 * shares[p]["images"]:7.1f}'
      for p in parts
    ]
    lines.append(f'{name:<{width}}' + ''.join(cells))
  if 'distance' in summary:
    d = summary['distance']
    apart = f' (real images are {d["real_mean"]:.3f} apart)'
    lines.append(
      f'nearest labelled image: {d["mean"]:.3f} on average, {d["min"]:.3f} at '
      f'the least{apart if "real_mean" in d else ""}'
    )
  dropped = ', '.join(f'{c} by {r}' for r, c in summary['dropped'].items())
  lines.append(
    f'{summary["kept"]} of {summary["drawn"]} images kept'
    f'{f"; dropped: {dropped}" if dropped else ""}'
  )
  return '\n'.join(lines)


def for_sheet(
  rows: Sequence[Mapping[str, str]], rank_by: str
) -> list[list[Mapping[str, str]]]:
  """Chooses what the contact sheet shows: rows of rows of synthesis.csv.

  Returns:
    the best that are kept, those in the middle, the worst, and the worst of
    those that are not kept; empty ones are left out.
  """
  value = lambda row: float(score(rank_by, {rank_by: float(row[rank_by])}))
  ranked = sorted(rows, key=value, reverse=True)
  kept = [row for row in ranked if row['outcome'] == KEPT]
  dropped = [row for row in ranked if row['outcome'] != KEPT]
  if len(kept) > 3 * COLUMNS:
    middle = (len(kept) - COLUMNS) // 2
    kept = kept[:COLUMNS] + kept[middle : middle + COLUMNS] + kept[-COLUMNS:]
  lines = [kept[i : i + COLUMNS] for i in range(0, len(kept), COLUMNS)]
  return [line for line in [*lines, dropped[-COLUMNS:]] if line]


def sheet(
  lines: Sequence[Sequence[Mapping[str, str]]],
  pictures: Mapping[str, tuple[np.ndarray, np.ndarray]],
  rank_by: str,
  names: Sequence[str],
  palette: np.ndarray,
) -> np.ndarray:
  """Draws the contact sheet, uint8 [H, W, 3].

  Args:
    lines: from `for_sheet`.
    pictures: (image [h, w, 1 or 3], label [h, w]), uint8, by id.
    rank_by: the measure whose score is written above each image.
    names: of the classes.
    palette: uint8 [K, 3].
  """
  parts = []
  for line in lines:
    shown_ = [_cells(*pictures[row['id']], palette) for row in line]
    captions = [
      f'{"kept" if row["outcome"] == KEPT else "dropped"} '
      f'{score(rank_by, {rank_by: float(row[rank_by])}):.2f}'
      for row in line
    ]
    top = visualize.captioned([a for a, _ in shown_], captions, CELL[0])
    parts += [top, visualize.grid([[b for _, b in shown_]], CELL[0])]
  column = _stack(parts, 0)
  return _stack([column, visualize.legend(names, palette)], 1)


def _cells(image, label, palette):
  """(image, overlay) at a size to look at."""
  large = visualize.upscale(visualize.to_rgb(image), CELL[0])
  label = visualize.upscale(label, CELL[0])
  overlay = visualize.overlay(large, label, palette)
  return tuple(visualize.thumbnail(x, CELL[1]) for x in (large, overlay))


def _stack(parts, axis):
  """Puts pictures below (0) or beside (1) each other, on white."""
  side = max(part.shape[1 - axis] for part in parts)
  padded = []
  for part in parts:
    pads = [(0, 2), (0, 2), (0, 0)]
    pads[1 - axis] = 0, side - part.shape[1 - axis]
    padded.append(np.pad(part, pads, constant_values=255))
  return np.concatenate(padded, axis)


def _table(rows, names):
  """Shares of the pixels, [N, K], of rows of the table."""
  pixels = [[float(row[f'fraction_{n}']) for n in names] for row in rows]
  return np.reshape(pixels, (len(rows), len(names)))


def _mean(values):
  return round(float(np.mean(values)), 6) if len(values) else 0.0
