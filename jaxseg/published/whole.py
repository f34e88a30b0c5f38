"""A folder that is written whole, or not at all."""

import contextlib
import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxseg import manifest
from jaxseg.errors import UserError
from jaxseg.published.card import CARD, WEIGHTS


@contextlib.contextmanager
def written(output: str | os.PathLike) -> Iterator[Path]:
  """Gives a folder to write to, which then becomes `output`.

  What killed processes left of writing to the same folder is removed.

  Args:
    output: absolute; must not exist, or be empty: then it stays that folder,
      which may be a mount or somebody's working directory.

  Yields:
    the folder for weights.safetensors, files.json and pretrained.json; it is
    removed if anything is raised.

  Raises:
    UserError: it cannot be written.
  """
  output = Path(output)
  _remove_partial(output)
  place = output if os.path.isdir(output) else output.parent
  partial = place / f'.{output.name}.partial-{_host()}-{os.getpid()}'
  new = [folder for folder in partial.parents if not os.path.exists(folder)]
  try:
    partial.mkdir(parents=True)
    yield partial
    if place == output:
      _move(partial, output)
    else:
      partial.rename(output)
  except OSError as error:
    raise UserError(
      f'--output={output} cannot be written ({error.strerror or error}); '
      'choose a folder with room where you may write'
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
    if not os.path.isdir(output):
      for parent in new:
        with contextlib.suppress(OSError):
          parent.rmdir()


def refuse_existing(output: str | os.PathLike) -> None:
  """Refuses a folder in which something lies.

  Raises:
    UserError: names it.
  """
  try:
    exists = os.path.lexists(output)
    taken = exists and not (
      os.path.isdir(output)
      and all(_is_dead(name) for name in os.listdir(output))
    )
  except OSError as error:
    raise UserError(
      f'--output={output} cannot be looked into ({error.strerror}); choose a '
      'folder where you may write'
    ) from error
  if taken:
    raise UserError(
      f'--output={output} exists, expected a new folder; remove it or choose '
      'another'
    )


def _move(partial, output):
  """Moves the files into an empty folder, the one that makes it whole last."""
  names = (WEIGHTS, manifest.FILES, CARD)
  try:
    for name in names:
      os.rename(partial / name, output / name)
    partial.rmdir()
  except BaseException:
    for name in names:
      with contextlib.suppress(OSError):
        os.unlink(output / name)
    raise


def _host():
  return re.sub(r'[^\w.]', '_', platform.node())[:32]


def _is_dead(name):
  """Whether a process of this host left that half-written folder behind."""
  match = re.fullmatch(rf'\..*\.partial-{re.escape(_host())}-(\d+)', name)
  if not match:
    return False
  try:
    os.kill(int(match[1]), 0)
  except ProcessLookupError:
    return True
  except (OSError, OverflowError):  # another user's, or no process ever
    return False
  return False


def _remove_partial(output):
  """Removes what killed processes left of conversions to this folder."""
  for place in (output, output.parent):
    with contextlib.suppress(OSError):
      for name in os.listdir(place):
        if name.startswith(f'.{output.name}.partial-') and _is_dead(name):
          shutil.rmtree(place / name, ignore_errors=True)
