"""The folder of generated images, filled by one process or by several at once.

FOLDER/
  images/ID.png  labels/ID.png  classes.json  splits.json   as any data folder
  synthesis.csv      a row for every image drawn: scores, classes, whether kept
  synthesis.json     what was asked for, what decides, what came out of it
  contact_sheet.png  the best, the worst and some that were not kept
  records/           the rows, a file for every batch; it says: that is done

Every file is written whole or not at all, the record of a batch after its
images. Processes share nothing but this folder, or not even that: folders of
several machines may be copied into one.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import visualize
from jaxseg.data.examples import num_threads
from jaxseg.data.formats import images as image_files
from jaxseg.data.problems import some
from jaxseg.errors import UserError
from jaxseg.synthesis_draw import Drawn
from jaxseg.synthesis_filter import KEPT

Row = dict[str, str]
OWN = 'synthesis.json'


def id_of(seed: int, index: int) -> str:
  """Returns the name of an image; seeds differ, so folders can be joined."""
  return f'g{seed}_{index:07d}'


def stored(folder: Path) -> dict[str, Any]:
  """Returns what synthesis.json holds, {} for a new folder.

  Raises:
    UserError: the folder holds other things, or a file of that name.
  """
  if folder.exists() and not folder.is_dir():
    raise UserError(
      f'--output={folder}: a file has that name, expected a folder, new or '
      'made by the same command; choose another'
    )
  path = folder / OWN
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    pass
  except ValueError as error:
    raise UserError(
      f'{path}: the file is damaged ({error}), expected what python -m '
      'jaxseg.synthesize wrote; remove the folder or choose another --output'
    ) from error
  found = folder.iterdir() if folder.exists() else ()
  names = sorted(p.name for p in found if not p.name.startswith('.'))
  if names:
    raise UserError(
      f'--output={folder}: the folder holds other things ({some(names, 3)}), '
      'expected a new or empty folder, or one made by the same command; choose '
      'another'
    )
  return {}


def refuse_other(
  folder: Path, old: Mapping[str, Any], settings: Mapping[str, Any], n: int
) -> None:
  """Refuses to go on in a folder that was begun with other settings.

  More images may be asked for, not fewer.

  Args:
    folder: of the images.
    old: from `stored`; {} is fine.
    settings: plain data.
    n: images asked for.

  Raises:
    UserError: names the first setting that differs.
  """
  if not old:
    return
  before = old.get('settings', {})
  different = [name for name in settings if before.get(name) != settings[name]]
  if different:
    name = different[0]
    raise UserError(
      f'--output={folder} was begun with another {name}, {before.get(name)!r}, '
      f'and it is now {settings[name]!r}; choose another --output, or the old '
      'one to go on'
    )
  if n < old.get('n', 0):
    raise UserError(
      f'--n is {n}, but {folder} was begun with --n={old["n"]}, expected as '
      'many or more; choose another --output'
    )


def begin(
  folder: Path,
  content: Mapping[str, Any],
  names: Sequence[str],
  palette: np.ndarray,
) -> None:
  """Makes the folder, with classes.json and synthesis.json, if need be."""
  try:
    for name in ('images', 'labels', 'records'):
      (folder / name).mkdir(parents=True, exist_ok=True)
    classes = {'classes': list(names)}
    if len(np.unique(palette, axis=0)) == len(names):
      classes['colors'] = palette.tolist()
    _write_json(folder / 'classes.json', classes)
    _write_json(folder / OWN, content)
  except OSError as error:
    raise UserError(
      f'--output={folder} cannot be written ({error.strerror}), expected a '
      'folder where you may write; choose another'
    ) from error


def write_batch(
  folder: Path,
  batch: int,
  rows: Sequence[Row],
  drawn: Drawn,
  palette: np.ndarray,
) -> None:
  """Writes what is kept of a batch, then its record.

  Args:
    folder: from `begin`.
    batch: its number.
    rows: of all its images, with 'id' and 'outcome'.
    drawn: the images.
    palette: uint8 [K, 3].
  """

  def write(i):
    if rows[i]['outcome'] == KEPT:
      file, image = f'{rows[i]["id"]}.png', drawn.images[i]
      image = image[..., 0] if image.shape[-1] == 1 else image
      visualize.write_png(folder / 'images' / file, image)
      label = folder / 'labels' / file
      image_files.write_label(label, drawn.labels[i], palette)

  with futures.ThreadPoolExecutor(num_threads()) as pool:
    list(pool.map(write, range(len(rows))))
  _write_csv(_record(folder, batch), rows)


def done(folder: Path, candidates: int, batch_size: int) -> dict[int, int]:
  """Returns {number of a batch: its images}, of those that are done.

  A batch is done if its record has as many rows as it is to have, and all that
  it kept is there.
  """
  images, labels = (
    {path.stem for path in (folder / name).glob('*.png')}
    for name in ('images', 'labels')
  )
  found = {}
  for batch, rows in _records(folder).items():
    kept = {row['id'] for row in rows if row['outcome'] == KEPT}
    wanted = min(batch_size, candidates - batch * batch_size)
    if len(rows) >= wanted and kept <= images & labels:
      found[batch] = len(rows)
  return found


def merge(folder: Path) -> list[Row]:
  """Writes synthesis.csv and splits.json of all that is recorded so far.

  Returns:
    the rows, by number.
  """
  records = _records(folder)
  rows = [row for batch in sorted(records) for row in records[batch]]
  _write_csv(folder / 'synthesis.csv', rows)
  kept = [row['id'] for row in rows if row['outcome'] == KEPT]
  _write_json(folder / 'splits.json', {'train': kept})
  return rows


def count_records(folder: Path) -> int:
  """Returns how many batches have a record."""
  return sum(1 for _ in (folder / 'records').glob('batch_*.csv'))


def read(folder: Path, id_: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (uint8 image [H, W, 3], uint8 label [H, W]) of what was kept."""
  image = image_files.read_image(folder / 'images' / f'{id_}.png', 3)
  return image, image_files.read_label(folder / 'labels' / f'{id_}.png')


def save(folder: Path, content: Mapping[str, Any]) -> None:
  """Writes synthesis.json."""
  _write_json(folder / OWN, content)


def _record(folder, batch):
  return folder / 'records' / f'batch_{batch:07d}.csv'


def _records(folder) -> dict[int, list[Row]]:
  """The rows by batch; a record that cannot be read does not count."""
  found = {}
  for path in (folder / 'records').glob('batch_*.csv'):
    try:
      with path.open(newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
      if rows and all(row['id'] and row['outcome'] for row in rows):
        found[int(path.stem.removeprefix('batch_'))] = rows
    except (OSError, ValueError, KeyError, csv.Error):
      continue
  return found


def _write_csv(path, rows):
  text = io.StringIO()
  fields = list(rows[0]) if rows else ['id', 'outcome']
  table = csv.DictWriter(text, fields, restval='', lineterminator='\n')
  table.writeheader()
  table.writerows(rows)
  image_files.write_atomically(path, text.getvalue().encode())


def _write_json(path, content):
  text = json.dumps(content, indent=1) + '\n'
  image_files.write_atomically(path, text.encode())
