"""Where the files of an archive are when they are not where they belong."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

_ARCHIVE = re.compile(r'\.(zip|tar|tgz|7z|rar|tar\.\w+)$', re.IGNORECASE)
_DEPTH = 3  # folders below that are looked into
_MOST = 2000  # entries of one folder; those of images have more


def advice(path: Path) -> str:
  """Returns how a file or folder gets to where it is missing, or ''.

  Known are archives that are still packed, a folder in a folder of the same or
  another name, other cases of letters, and a --manual_dir one folder too deep.

  Args:
    path: what is missing, or a folder that holds nothing of use.
  """
  here = next(p for p in (path, *path.parents) if p.exists())
  if here.is_file():
    return f'{here} is a file; unpack it and name the folder it gives'
  packed = [p.name for p in _entries(here) if _ARCHIVE.search(p.name)]
  if packed:
    return f'{here} holds {", ".join(packed[:3])}, still packed; unpack it'
  doubled = [
    p for p in _entries(here) if p.is_dir() and (p / p.name).is_dir()
  ]  # fmt: skip
  if doubled:
    inner = doubled[0] / doubled[0].name
    return f'{inner} is there; move what it holds one folder up'
  if here == path:
    return ''
  wanted = path.relative_to(here).parts[0]
  if here.name == wanted:
    return f'{here} is one folder too deep; pass --manual_dir={here.parent}'
  for found in _below(here, _DEPTH):
    if found.name.casefold() == wanted.casefold():
      other = '' if found.parent == here else (
        f', or pass --manual_dir={found.parent} if all else is there'
      )  # fmt: skip
      return f'{found} is there; move it to {here / wanted}{other}'
  return ''


def _entries(folder: Path) -> list[Path]:
  try:
    with os.scandir(folder) as entries:
      names = [e.name for _, e in zip(range(_MOST), entries, strict=False)]
  except OSError:
    return []
  return [
    folder / n for n in sorted(names) if n != '__MACOSX' and n[:1] != '.'
  ]  # fmt: skip


def _below(folder: Path, depth: int) -> Iterator[Path]:
  """Yields what a folder holds, nearest first."""
  level = [folder]
  for _ in range(depth):
    level = [p for d in level for p in _entries(d)]
    yield from level
    level = [p for p in level if p.is_dir()]
