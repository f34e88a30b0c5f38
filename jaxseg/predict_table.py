"""A table with a row for every file, kept while what made it stays the same."""

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseg.data.formats import images as image_files

# Seconds between writings of the table, which has a row for every file.
SAVE_EVERY = 2.0


class Table:
  """A CSV file, and a JSON file beside it that says what made its rows."""

  def __init__(
    self,
    path: Path,
    made_by: Path,
    fields: Sequence[str],
    identity: Mapping[str, Any],
  ):
    """Reads what is there, or drops it where something else made it.

    Args:
      path: of the table.
      made_by: of the JSON file.
      fields: names of the columns; the first is 'file'.
      identity: plain data; rows that another identity made do not count.
    """
    self.fields = list(fields)
    self._path, self._rows = path, {}
    self._saved = time.monotonic()
    if path.exists() and made_by.exists() and _read(made_by) == identity:
      with path.open(newline='', encoding='utf-8') as file:
        self._rows = {row['file']: row for row in csv.DictReader(file)}
    else:
      path.unlink(missing_ok=True)
      text = json.dumps(identity, indent=1) + '\n'
      image_files.write_atomically(made_by, text.encode())

  def row(self, file: str) -> dict[str, str] | None:
    """The row of a file, None if it has none."""
    return self._rows.get(file)

  def add(self, values: Sequence[Any]) -> None:
    """Adds a row, or replaces that of the same file."""
    self._rows[values[0]] = dict(zip(self.fields, values, strict=True))

  def save_at_times(self) -> None:
    """Writes the table if that was long ago."""
    if time.monotonic() - self._saved > SAVE_EVERY:
      self.save()
      self._saved = time.monotonic()

  def save(self) -> None:
    """Writes the table, whole or not at all."""
    text = io.StringIO()
    table = csv.DictWriter(text, self.fields, lineterminator='\n')
    table.writeheader()
    table.writerows(self._rows[file] for file in sorted(self._rows))
    image_files.write_atomically(self._path, text.getvalue().encode())


def _read(path):
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError:
    return None
