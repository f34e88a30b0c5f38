"""Times the conversion of full-size published files, and its peak memory.

  python -m benchmarks.conversion --conversion_size=1024

The files are made with random weights, then converted in a process of their
own. README.md beside this file says more.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from benchmarks import speed, weight_files
from jaxseg.errors import UserError, friendly

_KINDS = flags.DEFINE_list(
  'conversion_kinds', list(weight_files.WRITERS), 'Kinds of files.'
)
_SIZE = flags.DEFINE_integer(
  'conversion_size', 1024, 'Side of the images that the networks draw.'
)
_WIDEST = flags.DEFINE_integer(
  'conversion_widest', 512, 'Channels of the widest layers.'
)
_FOLDER = flags.DEFINE_string(
  'conversion_folder', '', 'Where files are made; default: the temporary one.'
)

INTERVAL = 0.01  # seconds between looks at the memory
MB = 1e6
CHILD = 'import sys; from benchmarks import conversion as c; c.child(sys.argv)'


class Cost(NamedTuple):
  """Of one conversion.

  Attributes:
    seconds: wall time.
    peak: bytes at the most, pages of mapped files among them.
    start: bytes before, without mapped files: Python and JAX; nan: not known.
    private: bytes at the most, without mapped files.
  """

  seconds: float
  peak: float
  start: float
  private: float


def child(argv: list[str]) -> None:
  """Converts a file and prints its `Cost` as JSON: argv[1:] of `measure`."""
  from jaxseg import pretrained

  kind, source, output = argv[1:]
  peaks = {'RssAnon': float('nan')}
  start, done = _memory('RssAnon'), threading.Event()
  watcher = threading.Thread(target=_watch, args=(peaks, done))
  watcher.start()
  begun = time.perf_counter()
  try:
    with friendly():
      pretrained.convert(kind, source, output)
  finally:
    seconds = time.perf_counter() - begun
    done.set()
    watcher.join()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  peak *= 1 if sys.platform == 'darwin' else 1024
  print(json.dumps(Cost(seconds, peak, start, peaks['RssAnon'])))


def _watch(peaks, done):
  while not done.wait(INTERVAL):
    now = _memory('RssAnon')
    if not peaks['RssAnon'] >= now:  # nan at first
      peaks['RssAnon'] = now


def _memory(field):
  """Bytes by /proc/self/status, where there is one."""
  try:
    status = Path('/proc/self/status').read_text()
  except OSError:
    return float('nan')
  line = next(line for line in status.splitlines() if line.startswith(field))
  return 1024.0 * int(line.split()[1])


def measure(kind: str, source: Path, output: Path) -> Cost:
  """Converts a file in a process of its own.

  Raises:
    UserError: it failed; with what it said last.
  """
  done = subprocess.run(
    [sys.executable, '-c', CHILD, kind, str(source), str(output)],
    capture_output=True, text=True, cwd=Path(__file__).parents[1],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['nothing was said'])[-1]
    raise UserError(f'the conversion of {source} failed: {last}')
  return Cost(*json.loads(done.stdout.splitlines()[-1]))


def row(kind: str, size: int, cost: Cost) -> list[str]:
  """Cells of a conversion of a file of `size` bytes."""
  return [
    kind, f'{size / MB:.0f}', f'{cost.seconds:.1f}',
    *(f'{n / MB:.0f}' for n in (cost.peak, cost.start, cost.private)),
    f'{cost.peak / size:.2f}', f'{(cost.private - cost.start) / size:.2f}',
  ]  # fmt: skip


HEAD = [
  'kind', 'file, MB', 'seconds', 'peak, MB', 'own memory before, MB',
  'own memory at the most, MB', 'peak / file', 'growth of own memory / file',
]  # fmt: skip


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  unknown = sorted(set(_KINDS.value) - set(weight_files.WRITERS))
  if unknown or not _KINDS.value:
    raise UserError(
      f'--conversion_kinds has {", ".join(unknown) or "no kind"}; valid, '
      f'separated by commas: {", ".join(weight_files.WRITERS)}.'
    )
  size = _SIZE.value
  if size < 32 or size & (size - 1):
    raise UserError(
      f'--conversion_size is {size}, must be a power of two from 32.'
    )
  widest = _WIDEST.value
  if widest < 128 or widest % 128:
    raise UserError(
      f'--conversion_widest is {widest}, must be a multiple of 128, as pSp '
      'divides it so often.'
    )
  rows = [HEAD, ['---'] + ['--:'] * (len(HEAD) - 1)]
  for kind in _KINDS.value:
    with tempfile.TemporaryDirectory(dir=_FOLDER.value or None) as folder:
      source = Path(folder) / 'weights'
      weight_files.WRITERS[kind](source, size, _WIDEST.value)
      cost = measure(kind, source, Path(folder) / 'converted')
      rows.append(row(kind, source.stat().st_size, cost))
  return (
    f'Networks of {size} px, widest layer {_WIDEST.value}; {speed.machine()}'
    f'\n\n{speed.markdown(rows)}'
  )


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  app.run(main)
