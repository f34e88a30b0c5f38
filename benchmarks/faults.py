"""Disturbs trainings in every way that clusters do, and counts the survivors.

  python -m benchmarks.faults --scratch=/tmp/faults
  python -m benchmarks.faults --cases=flips,kills --trials=1000

Prints a table in Markdown; exits with 1 unless all survived. Cases that need
root (a disk of its own that fills up) say so where it is missing. Each case is
a function of an empty folder that returns what was found, or raises.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from absl import app, flags

from benchmarks import faults_checkpoints, faults_resume, faults_training
from jaxseg import runtime
from jaxseg.errors import UserError, friendly

_CASES = flags.DEFINE_list('cases', None, 'Some of those listed; default: all.')
_TRIALS = flags.DEFINE_integer(
  'trials', 0, 'Of flips and kills; 0: 1,000 and 100.', lower_bound=0
)
_SCRATCH = flags.DEFINE_string('scratch', '', 'Folder for what is destroyed.')

CASES = faults_checkpoints.CASES | faults_training.CASES | faults_resume.CASES


def run(name: str, scratch: Path, trials: int) -> tuple[str, str]:
  """Returns (survived, lost or skipped; what was found) of a case."""
  what, function = CASES[name]
  folder = scratch / name
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  start = time.monotonic()
  try:
    found = function(folder, trials)
    result = 'skipped' if found.startswith('skipped') else 'survived'
  except runtime.Interrupted:  # of a training in this process: stop here
    raise
  except Exception as error:  # one case must not end the others
    traceback.print_exc()
    lines = str(error).strip().splitlines() or [type(error).__name__]
    result, found = 'LOST', lines[0][:300]
  seconds = time.monotonic() - start
  print(f'{name}: {result} ({seconds:.0f} s): {found}', file=sys.stderr)
  return result, f'{what} | {found}'


def main(argv: list[str]) -> None:
  """Prints the table."""
  if argv[1:]:
    raise app.UsageError(f'unexpected argument {argv[1]}')
  with friendly():
    names = _CASES.value or list(CASES)
    unknown = sorted(set(names) - set(CASES))
    if unknown:
      raise UserError(
        f'--cases has {", ".join(unknown)}; valid: {", ".join(CASES)}.'
      )
  scratch = Path(_SCRATCH.value or tempfile.mkdtemp(prefix='faults_'))
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(scratch / 'xla'))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  rows = {name: run(name, scratch, _TRIALS.value) for name in names}
  results = [result for result, _ in rows.values()]
  print('| fault | what is done | result | found |\n| - | - | - | - |')
  for name, (result, text) in rows.items():
    what, found = text.split(' | ', 1)
    print(f'| {name} | {what} | {result} | {found} |')
  survived = results.count('survived')
  print(f'\n{survived} of {len(results) - results.count("skipped")} survived.')
  sys.exit('LOST' in results)


if __name__ == '__main__':
  app.run(main)
