"""Pictures of an evaluation: overlays, and examples for the report."""

import math
from collections.abc import Sequence

from jaxseg import report, visualize
from jaxseg.data.source import Source
from jaxseg.inference import System
from jaxseg.results import Results

OVERLAY_SIDE = 512  # larger overlays are shrunk


def write_overlays(
  results: Results, source: Source, split: str, ids: Sequence[str]
) -> None:
  """Writes overlays/SPLIT/ID.png: image, labels of each system, truth.

  Only those that are missing or older than a mask they show.
  """
  systems = results.done(split)
  for id_ in ids:
    path = results.output / 'overlays' / split / f'{id_}.png'
    masks = [results.path('masks', split, s, id_) for s in systems]
    newest = max((mask.stat().st_mtime_ns for mask in masks), default=0)
    if path.exists() and path.stat().st_mtime_ns >= newest:
      continue
    image = source.image(id_)
    labels = [results.read_mask(split, s, id_) for s in systems]
    cells = [visualize.to_rgb(image)] + [
      visualize.overlay(image, label, results.palette)
      for label in [*labels, source.label(id_)]
    ]
    small = [visualize.thumbnail(cell, OVERLAY_SIDE) for cell in cells]
    visualize.write_png(path, visualize.grid([small]))


def worst_examples(
  results: Results, source: Source, split: str, count: int
) -> list[report.Example]:
  """Returns the images on which `judge(systems)` has the lowest mIoU.

  Args:
    results: of the evaluation.
    source: gives images and true labels.
    split: one that was scored.
    count: at most so many.
  """
  systems = results.done(split)
  if not systems:
    return []
  tables = {s.name: results.read_per_image(split, s) for s in systems}
  judged = tables[judge(systems).name]

  def score(id_):
    miou = judged[id_]['miou']
    return math.inf if miou is None else miou

  return [
    report.Example(
      id_,
      '; '.join(_note(name, table[id_]) for name, table in tables.items()),
      _pictures(results, source, split, id_),
    )
    for id_ in sorted(judged, key=score)[:count]
  ]


def judge(systems: Sequence[System]) -> System:
  """Returns the last system with test-time optimisation, else the last."""
  return ([s for s in systems if s.refined] or systems)[-1]


def _pictures(results, source, split, id_):
  """Input, reconstructions, predictions and truth of one image."""
  image = visualize.to_rgb(source.image(id_))
  found, labels = [report.Picture('input', image, False)], {}
  for system in results.done(split):
    image = results.read_reconstruction(split, system, id_)
    if image is not None:
      caption = f'reconstruction, {system.name}'
      found.append(report.Picture(caption, image, False))
    mask = results.read_mask(split, system, id_)
    labels[f'predicted, {system.name}'] = mask
  labels['true'] = source.label(id_)
  return found + [
    report.Picture(name, visualize.colorize(label, results.palette), True)
    for name, label in labels.items()
  ]


def _note(name, row):
  shown = {
    'mIoU': 'miou', 'Dice without background': 'dice_foreground',
    'trust': 'trust',
  }  # fmt: skip
  parts = [f'{k} {row[v]:.3f}' for k, v in shown.items() if row[v] is not None]
  return f'{name}: {", ".join(parts)}'
