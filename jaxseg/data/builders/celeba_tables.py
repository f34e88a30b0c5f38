"""CelebA's tables: which of its images, and so which person, is shown."""

from collections.abc import Sequence
from pathlib import Path

from jaxseg.errors import DataError

# First CelebA numbers, counted from 0, of val and test in the official
# g_partition.py of CelebAMask-HQ.
FIRST_VAL, FIRST_TEST = 162771, 182638


def read_mapping(path: Path) -> dict[int, tuple[int, str]]:
  """Reads CelebA-HQ-to-CelebA-mapping.txt: 'idx orig_idx orig_file' a line.

  Returns:
    {CelebA-HQ number: (number in CelebA from 0, file name in CelebA)}.

  Raises:
    DataError: another table.
  """
  rows = _rows(path, 3, 'idx orig_idx orig_file')
  try:
    return {int(a): (int(b), name) for a, b, name in rows[1:]}
  except ValueError as error:
    raise DataError(
      f'{path}: the table cannot be read ({error}), expected numbers; unpack '
      'the archive again'
    ) from error


def partition(ids: Sequence[int], mapping: Path) -> dict[str, list[int]]:
  """Splits CelebA-HQ as CelebA is split, by person.

  Args:
    ids: CelebA-HQ numbers; those the table does not have are left out.
    mapping: see `read_mapping`.
  """
  numbers = read_mapping(mapping)
  splits = {'train': [], 'val': [], 'test': []}
  for i in ids:
    if i in numbers:
      number, _ = numbers[i]
      later = (number >= FIRST_VAL) + (number >= FIRST_TEST)
      splits[('train', 'val', 'test')[later]].append(i)
  return splits


def persons(identity: Path, mapping: Path) -> dict[int, str]:
  """Reads who is shown, from identity_CelebA.txt: '000001.jpg 2880' a line.

  Returns:
    {CelebA-HQ number: 'person-2880'}; {} where one of the tables is absent.

  Raises:
    DataError: another table.
  """
  if not identity.exists() or not mapping.exists():
    return {}
  person = dict(_rows(identity, 2, '000001.jpg 2880'))
  return {
    i: f'person-{person[name]}'
    for i, (_, name) in read_mapping(mapping).items()
    if name in person
  }


def _rows(path, columns, example):
  """Returns the words of each line that has any."""
  try:
    lines = path.read_text('utf-8-sig').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(
      f'{path}: the table cannot be read ({error}), expected text; download '
      'it again'
    ) from error
  rows = [line.split() for line in lines if line.split()]
  wrong = [row for row in rows if len(row) != columns]
  if wrong:
    raise DataError(
      f'{path}: a line of the table is {" ".join(wrong[0])[:80]!r}, expected '
      f'{columns} columns as in {example!r}; download it again'
    )
  return rows
