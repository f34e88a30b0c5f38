"""Many trainings, one after the other: what is done is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxseg import train, workdir, writers
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError
from jaxseg.stage import Diverged

# Marks a workdir that is trained and evaluated; it holds its config.
DONE = 'done.json'


def run_all(
  trainings: Sequence[tuple[Path, ConfigDict]], show: Callable[[], None]
) -> list[str]:
  """Trains and scores what is missing; calls `show` after each.

  Args:
    trainings: (workdir, config) of each.
    show: such as writing a table.

  Returns:
    what diverged, a sentence each.
  """
  diverged = []
  for i, (folder, config) in enumerate(trainings):
    # All that the scores depend on, but for the data, which a workdir checks.
    text = config.to_json_best_effort(sort_keys=True, indent=1)
    marker = folder / DONE
    if marker.is_file() and marker.read_text() == text:
      continue
    if folder.is_dir():
      workdir.refuse_other_config(folder, config)
    writers.say(f'{i + 1} of {len(trainings)}: {folder}')
    try:
      train.train(config, str(folder))
      write_atomically(marker, text.encode())
    except Diverged as error:
      diverged.append(f'{folder}: {error}')
    jax.clear_caches()  # of programs that no later training has
    show()
  return diverged


def parse_numbers(
  flag: str, texts: Sequence[str], low: int, high: int
) -> list[int]:
  """Whole numbers of a flag, each once.

  Raises:
    UserError: another text, or a number outside low to high.
  """
  for text in texts:
    if not text.isdecimal() or not low <= int(text) <= high:
      raise UserError(
        f'--{flag} holds {text!r}, must be whole numbers from {low} to {high} '
        'with commas between them.'
      )
  return list(dict.fromkeys(int(text) for text in texts))
