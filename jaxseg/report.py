"""Scores as text, and as one HTML file that needs nothing else."""

import base64
import html
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxseg import visualize
from jaxseg.data.formats.images import write_atomically

DASH = '–'  # a class that is not there, a number that does not exist
SIDE = 192  # pictures in the report have at most this many pixels a side

Scores = Mapping[str, Mapping[str, Mapping]]  # split -> system -> scores
Table = tuple[list[str], list[list[str]]]  # header, rows

_CSS = """
:root { color-scheme: light dark; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; padding: 0;
  list-style: none; }
.legend span { display: inline-block; width: 1em; height: 1em;
  margin-right: .4em; border: 1px solid var(--line);
  vertical-align: -.1em; }
.example { border-top: 1px solid var(--line); padding: .6rem 0; }
.example h3 { font-size: 1rem; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; width: min(10rem, 44vw); font-size: .85rem; }
figure img { width: 100%; display: block; }
img.small { image-rendering: pixelated; }
"""


_SMALL = ' class="small"'  # magnified: its pixels stay squares


class Picture(NamedTuple):
  """One picture of an example.

  Attributes:
    caption: shown below it.
    image: uint8 [H, W, 3].
    is_label: flat colours, which must not be blurred.
  """

  caption: str
  image: np.ndarray
  is_label: bool


class Example(NamedTuple):
  """One image of a split in the report.

  Attributes:
    name: its id.
    note: its scores, one line.
    pictures: input, reconstruction, predictions, truth.
  """

  name: str
  note: str
  pictures: Sequence[Picture]


def score_table(scores: Scores) -> Table:
  """Lists the scores of each system on each split.

  Args:
    scores: {split: {system: `metrics.segmentation.summarize` + {'images',
      'seconds_per_image'}}}.
  """
  header = [
    'split', 'system', 'mIoU', 'Dice', 'Dice without background',
    'pixel accuracy', 'images', 's/image',
  ]  # fmt: skip
  keys = ('miou', 'dice', 'dice_foreground', 'pixel_accuracy')
  rows = [
    [split, system, *(_score(s[key]) for key in keys), str(s['images']),
     _seconds(s['seconds_per_image'])]
    for split, systems in scores.items()
    for system, s in systems.items()
  ]  # fmt: skip
  return header, rows


def class_table(scores: Scores, kind: str) -> Table:
  """Lists the score of each class; `kind` is 'iou' or 'dice_per_class'."""
  names, rows = [], []
  for split, systems in scores.items():
    for system, s in systems.items():
      names = list(s[kind])
      rows.append([split, system, *(_score(v) for v in s[kind].values())])
  return ['split', 'system', *names], rows


def markdown(table: Table) -> str:
  """Returns an aligned Markdown table, as readable printed as rendered."""
  header, rows = table
  cells = [[c.replace('|', '\\|') for c in row] for row in (header, *rows)]
  widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

  def line(row):
    parts = [
      c.ljust(w) if i < 2 else c.rjust(w)
      for i, (c, w) in enumerate(zip(row, widths, strict=True))
    ]
    return f'| {" | ".join(parts)} |'

  rule = [
    '-' * w if i < 2 else '-' * (w - 1) + ':' for i, w in enumerate(widths)
  ]
  return '\n'.join([line(cells[0]), line(rule), *map(line, cells[1:])])


def write_tables(path: str | os.PathLike, scores: Scores) -> None:
  """Writes the tables of scores and of classes as Markdown."""
  parts = [
    markdown(score_table(scores)),
    'IoU per class\n\n' + markdown(class_table(scores, 'iou')),
    'Dice per class\n\n' + markdown(class_table(scores, 'dice_per_class')),
  ]
  write_atomically(path, ('\n\n'.join(parts) + '\n').encode())


def write(
  path: str | os.PathLike,
  title: str,
  facts: Mapping[str, str],
  scores: Scores,
  examples: Mapping[str, Sequence[Example]],
  class_names: Sequence[str],
  palette: np.ndarray,
) -> None:
  """Writes the report: no script, no other file, light and dark.

  Args:
    path: the HTML file.
    title: its heading.
    facts: what was run, name to value.
    scores: see `score_table`.
    examples: {heading: examples in the order to show}.
    class_names: K names.
    palette: uint8 [K, 3].
  """
  parts = [
    f'<h1>{_text(title)}</h1>',
    _html_table(score_table(scores)),
    '<h2>IoU per class</h2>',
    _html_table(class_table(scores, 'iou')),
    '<h2>Dice per class</h2>',
    _html_table(class_table(scores, 'dice_per_class')),
    '<h2>Classes</h2>',
    _legend(class_names, palette),
  ]
  for heading, shown in examples.items():
    parts.append(f'<h2>{_text(heading)}</h2>')
    parts += [_example(example) for example in shown]
  parts += ['<h2>What was run</h2>', '<dl>']
  parts += [
    f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>'
    for name, value in facts.items()
  ]
  parts.append('</dl>')
  body = '\n'.join(parts)
  Path(path).parent.mkdir(parents=True, exist_ok=True)
  write_atomically(
    path,
    f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_text(title)}</title>\n<style>{_CSS}</style>\n{body}\n'
    '</html>\n'.encode(),
  )


def _example(example):
  figures = ''.join(
    f'<figure><img alt="{_text(p.caption)}" src="{_data_uri(p)}"'
    f'{_SMALL if max(p.image.shape) <= 96 else ""}>'
    f'<figcaption>{_text(p.caption)}</figcaption></figure>'
    for p in example.pictures
  )
  return (
    f'<div class="example"><h3>{_text(example.name)}</h3>'
    f'<p>{_text(example.note)}</p><div class="row">{figures}</div></div>'
  )


def _data_uri(picture):
  image = visualize.thumbnail(picture.image, SIDE, not picture.is_label)
  # JPEG smears flat colours and gains nothing on tiny pictures.
  photo = not picture.is_label and max(image.shape) > 64
  kind = 'JPEG' if photo else 'PNG'
  data = base64.b64encode(visualize.encode(image, kind)).decode()
  return f'data:image/{kind.lower()};base64,{data}'


def _html_table(table):
  header, rows = table
  head = ''.join(f'<th>{_text(cell)}</th>' for cell in header)
  body = ''.join(
    f'<tr>{"".join(f"<td>{_text(cell)}</td>" for cell in row)}</tr>'
    for row in rows
  )
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _legend(class_names, palette):
  items = ''.join(
    f'<li><span style="background:#{bytes(map(int, color)).hex()}"></span>'
    f'{_text(name)}</li>'
    for name, color in zip(class_names, palette, strict=True)
  )
  return f'<ul class="legend">{items}</ul>'


def _text(value):
  return html.escape(str(value), quote=True)


def _score(value):
  return DASH if math.isnan(value) else f'{value:.4f}'


def _seconds(value):
  return DASH if math.isnan(value) else f'{value:.3g}'
