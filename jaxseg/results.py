"""The folder of an evaluation: what is done, and whether it still holds.

OUTPUT/
  metrics.json  table.md  report.html
  overlays/SPLIT/ID.png
  masks/SPLIT/STAGE/ID.png  reconstructions/SPLIT/STAGE/ID.png
  per_image/SPLIT/STAGE.csv
with STAGE_refined beside STAGE for test-time optimisation, and either with
_crf behind for a dense CRF.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxseg import visualize
from jaxseg.data.formats import images as image_files
from jaxseg.inference import System

MAJORITY = 'majority class'
PER_IMAGE = ('miou', 'dice', 'dice_foreground', 'pixel_accuracy')


class Results:
  """Scores in memory and on disk, written after each system and split."""

  def __init__(
    self,
    output: str | os.PathLike,
    systems: Sequence[System],
    class_names: Sequence[str],
    palette: np.ndarray,
  ):
    self.output = Path(output)
    self.systems = list(systems)
    self.class_names, self.palette = list(class_names), palette
    self._entries = {}  # {split: {system: {'key', 'scores'}}}

  def read(
    self,
    ids: Mapping[str, Sequence[str]],
    key: Callable[[str, System | None], str],
  ) -> None:
    """Takes over from disk what still holds.

    Args:
      ids: {split: ids} of all splits there are.
      key: (split, system; None: majority class) -> hash of what the result
        depends on.
    """
    stored = _read_json(self.output / 'metrics.json').get('results', {})
    for split in [name for name in ids if name in stored]:
      for system in (None, *self.systems):
        name = system.name if system else MAJORITY
        entry = stored[split].get(name)
        if not entry or entry.get('key') != key(split, system):
          continue
        if system and not self._is_complete(split, system, ids[split]):
          continue
        entry['scores'] = _restore_nan(entry['scores'])
        self._entries.setdefault(split, {})[name] = entry

  def has(self, split: str, name: str) -> bool:
    """Whether a system was scored on a split."""
    return name in self._entries.get(split, {})

  def done(self, split: str) -> list[System]:
    """The systems that were scored on a split."""
    return [s for s in self.systems if self.has(split, s.name)]

  def scores(self) -> dict[str, dict[str, dict]]:
    """Returns {split: {system: scores}}, the majority class first."""
    order = [MAJORITY, *(system.name for system in self.systems)]
    return {
      split: {n: rows[n]['scores'] for n in order if n in rows}
      for split, rows in self._entries.items()
    }

  def keep(self, split: str, name: str, key: str, scores: dict) -> None:
    """Adds a result and writes metrics.json."""
    self._entries.setdefault(split, {})[name] = {'key': key, 'scores': scores}
    self.save()

  def save(self) -> None:
    """Writes metrics.json; a number that does not exist is null."""
    content = {
      'class_names': self.class_names,
      'results': _without_nan(self._entries),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    _write(self.output / 'metrics.json', text)

  def path(self, kind: str, split: str, system: System, id_: str) -> Path:
    """Where a picture of an image is; `kind` as at the top of this file."""
    return self.output / kind / split / _folder(system) / f'{id_}.png'

  def write_mask(
    self, split: str, system: System, id_: str, mask: np.ndarray
  ) -> None:
    """Writes class ids, uint8 [H, W], as an indexed PNG."""
    path = self.path('masks', split, system, id_)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_files.write_label(path, mask, self.palette)

  def read_mask(self, split: str, system: System, id_: str) -> np.ndarray:
    """Reads what `write_mask` wrote."""
    return image_files.read_label(self.path('masks', split, system, id_))

  def write_reconstruction(
    self, split: str, system: System, id_: str, image: np.ndarray
  ) -> None:
    """Writes an image, float [R, R, C] in [-1, 1]."""
    path = self.path('reconstructions', split, system, id_)
    visualize.write_png(path, visualize.to_rgb(image))

  def read_reconstruction(
    self, split: str, system: System, id_: str
  ) -> np.ndarray | None:
    """Returns uint8 [R, R, 3], or None where there is none."""
    path = self.path('reconstructions', split, system, id_)
    return np.asarray(Image.open(path)) if path.exists() else None

  def write_per_image(
    self, split: str, system: System, rows: Mapping[str, Mapping[str, Any]]
  ) -> None:
    """Writes {id: {name: score or None}} as CSV; nan and None are empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(['id', *PER_IMAGE, 'trust'])
    for id_, row in rows.items():
      table.writerow([id_, *(_cell(row[n]) for n in (*PER_IMAGE, 'trust'))])
    _write(self._csv(split, system), text.getvalue())

  def read_per_image(
    self, split: str, system: System
  ) -> dict[str, dict[str, float | None]]:
    """Returns {id: {name: score, None where there is none}}."""
    with self._csv(split, system).open(newline='', encoding='utf-8') as file:
      return {
        row.pop('id'): {n: float(v) if v else None for n, v in row.items()}
        for row in csv.DictReader(file)
      }

  def _csv(self, split, system):
    return self.output / 'per_image' / split / f'{_folder(system)}.csv'

  def _is_complete(self, split, system, ids):
    paths = (self.path('masks', split, system, id_) for id_ in ids)
    return self._csv(split, system).exists() and all(p.exists() for p in paths)


def _write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  image_files.write_atomically(path, text.encode())


def _folder(system):
  refined = '_refined' if system.refined else ''
  return f'{system.stage}{refined}{"_crf" if system.crf else ""}'


def _cell(value):
  missing = value is None or math.isnan(value)
  return '' if missing else f'{float(value):.6g}'


def _read_json(path):
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError):  # none, or not ours: everything is done anew
    return {}


def _without_nan(tree):
  if isinstance(tree, dict):
    return {name: _without_nan(value) for name, value in tree.items()}
  return None if isinstance(tree, float) and math.isnan(tree) else tree


def _restore_nan(tree):
  if isinstance(tree, dict):
    return {name: _restore_nan(value) for name, value in tree.items()}
  return math.nan if tree is None else tree
