"""What is wrong with the files of a data set: a list of single sentences."""

import contextlib
import contextvars
import csv
import dataclasses
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxseg.data.formats.files import write_atomically
from jaxseg.errors import UserError

SEVERITIES = ('refuse', 'skip', 'note')


class Problem(NamedTuple):
  """One mistake or surprise in one file, or in a set as a whole.

  Attributes:
    severity: 'refuse' (training must not start), 'skip' (the file is left
      out) or 'note' (used, yet worth knowing).
    kind: a short name, the same for all problems of a sort.
    path: the file or folder, or the set's name.
    message: one sentence: what was found, what was expected, how to mend it.
  """

  severity: str
  kind: str
  path: str
  message: str

  def __str__(self) -> str:
    return printable(f'{self.path}: {self.message}')


@dataclasses.dataclass
class Findings:
  """What the readers mention while files are read; see `collect`."""

  problems: list[Problem] = dataclasses.field(default_factory=list)
  modes: list[str] = dataclasses.field(default_factory=list)  # of image files
  # Of a label file: colour by id, and colours that stand for no ids.
  palette: dict[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
  colours: list[tuple[int, ...]] = dataclasses.field(default_factory=list)


_findings = contextvars.ContextVar('findings', default=None)


@contextlib.contextmanager
def collect() -> Iterator[Findings]:
  """Gathers what this thread's readers mention within the `with` block.

  Readers return arrays; what they corrected on the way (an orientation, an
  extension) is of interest only to those who look through a whole set.
  """
  findings = Findings()
  token = _findings.set(findings)
  try:
    yield findings
  finally:
    _findings.reset(token)


def mention(kind: str, path: str | os.PathLike, message: str) -> None:
  """Adds a note to the findings that are being collected, if any are."""
  findings = _findings.get()
  if findings is not None:
    findings.problems.append(Problem('note', kind, str(path), message))


def mention_mode(mode: str) -> None:
  """Adds how an image file stores its pixels, such as 'PNG RGB'."""
  findings = _findings.get()
  if findings is not None:
    findings.modes.append(mode)


def mention_palette(palette: dict[int, tuple[int, ...]]) -> None:
  """Says which colour each id of an indexed label file has."""
  findings = _findings.get()
  if findings is not None:
    findings.palette.update(palette)


def mention_colours(colours: Iterable[tuple[int, ...]]) -> None:
  """Says which colours a label file holds that stand for no ids."""
  findings = _findings.get()
  if findings is not None:
    findings.colours.extend(colours)


def from_error(
  error: UserError, severity: str, path: str | os.PathLike
) -> Problem:
  """Turns an error into a problem.

  Args:
    error: its message may begin with the file and a colon.
    severity: of the problem.
    path: the file that is meant when the message names none.
  """
  message, kind = str(error), getattr(error, 'kind', 'wrong')
  if message.startswith(f'{path}: '):
    return Problem(severity, kind, str(path), message[len(f'{path}: ') :])
  named, colon, rest = message.partition(': ')
  if colon and '\0' not in named and os.path.lexists(named):
    return Problem(severity, kind, named, rest)
  return Problem(severity, kind, str(path), message)


def to_table(problems: Iterable[Problem], shown: int = 20) -> str:
  """Returns one line a problem, the gravest first, and a line that counts.

  Args:
    problems: in any order.
    shown: of each severity and kind at most; the others are counted.
  """
  problems = in_order(problems)
  if not problems:
    return 'no problems found'
  width = max(len(p.kind) for p in problems)
  lines = []
  for _, group in itertools.groupby(problems, lambda p: p[:2]):
    group = list(group)
    start = f'{group[0].severity:6}  {group[0].kind:{width}}  '
    lines += [start + str(p) for p in group[:shown]]
    if len(group) > shown:
      lines.append(f'{start}and {len(group) - shown} more like these')
  return '\n'.join([*lines, count(problems)])


def count(problems: Iterable[Problem]) -> str:
  """Returns how many there are of each severity and kind, in one line."""
  counts = Counter((p.severity, p.kind) for p in in_order(problems))
  parts = []
  for severity in SEVERITIES:
    kinds = [f'{n} {k}' for (s, k), n in counts.items() if s == severity]
    total = sum(n for (s, _), n in counts.items() if s == severity)
    if kinds:
      parts.append(f'{total} to {severity} ({", ".join(kinds)})')
  return '; '.join(parts)


def in_order(problems: Iterable[Problem]) -> list[Problem]:
  """Sorts by severity, the gravest first, then by kind and path."""
  return sorted(problems, key=lambda p: (SEVERITIES.index(p[0]), *p[1:]))


def to_json(problems: Iterable[Problem]) -> list[dict[str, str]]:
  """Returns one object a problem, with the fields of `Problem`."""
  return [problem._asdict() for problem in in_order(problems)]


def write_report(path: str | os.PathLike, problems: Sequence[Problem]) -> None:
  """Writes all problems as CSV: severity, kind, path, message."""
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(Problem._fields)
  table.writerows(in_order(problems))
  # File names may hold bytes that are no UTF-8; they are written as \udcxx.
  write_atomically(path, text.getvalue().encode('utf-8', 'backslashreplace'))


def printable(text: str) -> str:
  """Escapes what would break a line or cannot be encoded."""
  text = text.replace('\n', '\\n').replace('\r', '\\r')
  return text.encode('utf-8', 'backslashreplace').decode()


def some(items: Sequence, n: int = 5) -> str:
  """Names the first few of many."""
  text = ', '.join(str(item) for item in items[:n])
  return text + (f' and {len(items) - n} more' if len(items) > n else '')
