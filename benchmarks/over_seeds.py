"""Means over runs that differ in their seed, from their evaluations.

  python -m benchmarks.over_seeds --metric=miou runs/baselines/digits_*

Prints a Markdown table: a row for each system, a column for each split, the
mean over the workdirs and, from two on, the standard deviation; a system that
some of them lack says in how many it is.
"""

import json
import statistics
from pathlib import Path

from absl import app, flags

from jaxseg.errors import UserError, friendly

METRICS = ('miou', 'dice', 'dice_foreground', 'pixel_accuracy')

_METRIC = flags.DEFINE_enum('metric', 'miou', METRICS, 'What is averaged.')

# Values of every run: {system: {split: [score, ...]}}.
Values = dict[str, dict[str, list[float]]]


def collect(workdirs: list[str], metric: str) -> Values:
  """Reads the scores of every run.

  Args:
    workdirs: trained and evaluated, at least one.
    metric: one of METRICS.

  Raises:
    UserError: a workdir without an evaluation.
  """
  values: Values = {}
  for workdir in workdirs:
    path = Path(workdir) / 'evaluation' / 'metrics.json'
    if not path.is_file():
      raise UserError(
        f'{path} does not exist, expected the scores of a trained workdir; '
        f'make them: python -m jaxseg.evaluate --workdir={workdir}'
      )
    for split, systems in json.loads(path.read_text())['results'].items():
      for system, found in systems.items():
        scores = values.setdefault(system, {}).setdefault(split, [])
        scores.append(found['scores'][metric])
  return values


def table(values: Values) -> str:
  """Markdown: mean and spread of each system on each split."""
  splits = list(dict.fromkeys(s for by in values.values() for s in by))
  rows = [
    f'| | {" | ".join(splits)} |',
    '| --- |' + ' --: |' * len(splits),
  ]
  runs = {system: max(map(len, by.values())) for system, by in values.items()}
  for system, by_split in values.items():
    cells = [cell(by_split.get(split, [])) for split in splits]
    few = f' (in {runs[system]})' if runs[system] < max(runs.values()) else ''
    rows.append(f'| {system}{few} | {" | ".join(cells)} |')
  return '\n'.join(rows)


def cell(scores: list[float]) -> str:
  """'.413 ± .012' of several, '.413' of one, '' of none."""
  if not scores:
    return ''
  show = lambda x: f'{x:.3f}'.removeprefix('0')
  mean = show(statistics.mean(scores))
  if len(scores) == 1:
    return mean
  return f'{mean} ± {show(statistics.stdev(scores))}'


def main(argv: list[str]) -> None:
  """Prints the table."""
  with friendly():
    if len(argv) < 2:
      raise UserError('no workdir is given, e.g. runs/baselines/digits_0.')
    print(table(collect(argv[1:], _METRIC.value)))


if __name__ == '__main__':
  app.run(main)
