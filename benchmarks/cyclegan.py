"""The tables of CycleGAN for semi-supervised segmentation, on any data.

  python -m benchmarks.cyclegan --config=configs/cyclegan.py:acdc,20%,laptop \
    --config.data.source=folder:data/cardiac_mr --workdir=runs/cyclegan_acdc \
    --fractions=10,20,50 --ablation=20 --seeds=0,1,2

Trains and scores `full` with all labels, `partial` and `cyclegan` with each
fraction of them, and at one fraction the four that lack a term of the loss
(Mondal et al. 2019, tables 1 and 2). What is done is kept: run it again to
continue, or with further fractions and seeds. Fields of the config that are
given hold for all runs. WORKDIR/table.md, written after each run, has means
over seeds, with standard deviations, beside the paper's numbers.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from benchmarks.over_seeds import cell
from jaxseg import runtime, train, writers
from jaxseg.config import parse_flags
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError, friendly
from jaxseg.metrics import segmentation

ABLATION = ('no_cycle_s', 'no_cycle_i', 'no_disc_s', 'no_disc_i')
# Table 1 of the paper, mIoU by the published code's metric: {labels in %:
# (Partial, Ours)}, and Full.
PAPER = {
  'voc2012': {
    50: (0.4108, 0.4197), 30: (0.3237, 0.3514), 20: (0.2688, 0.2981),
    10: (0.2158, 0.2543), 100: (0.5543,),
  },
  'cityscapes': {
    50: (0.4856, 0.4997), 30: (0.4502, 0.4654), 20: (0.4112, 0.4321),
    10: (0.3636, 0.3923), 100: (0.5551,),
  },
  'acdc': {
    50: (0.8863, 0.8890), 30: (0.8785, 0.8804), 20: (0.8642, 0.8688),
    10: (0.8418, 0.8463), 100: (0.8982,),
  },
}  # fmt: skip
# Table 2, VOC with 20 % of the labels.
PAPER_ABLATION = {
  'cyclegan': 0.2981, 'no_cycle_s': 0.2627, 'no_cycle_i': 0.2733,
  'no_disc_s': 0.2614, 'no_disc_i': 0.2543,
}  # fmt: skip
# Classes that the published code scores, of those that are not void.
SCORED = {'cityscapes': slice(None), 'acdc': slice(None)}
WITHOUT_BACKGROUND = slice(1, None)


class Run(NamedTuple):
  """One training run: some stages with some labels."""

  folder: Path
  percent: int
  seed: int
  stages: tuple[str, ...]


class Score(NamedTuple):
  """Of one stage of one run on one split."""

  miou: float
  dice: float  # mean without background
  published: float


# {(stage, percent): {split: {seed: Score}}}
Scores = dict[tuple[str, int], dict[str, dict[int, Score]]]


def plan(
  workdir: Path, fractions: Sequence[int], ablation: int, seeds: Sequence[int]
) -> list[Run]:
  """Lists all runs, seed by seed.

  Args:
    workdir: of the benchmark.
    fractions: labels of each run, in % of those of the training images.
    ablation: the fraction of the ablation; 0: none.
    seeds: of split, data order and weights.
  """
  runs = []
  for seed in seeds:
    folder = workdir / f'seed_{seed}'
    runs.append(Run(folder / 'full', 100, seed, ('full',)))
    for percent in sorted({*fractions, *([ablation] if ablation else [])}):
      stages = ('partial', 'cyclegan')
      runs.append(Run(folder / f'{percent}', percent, seed, stages))
    if ablation:
      path = folder / f'{ablation}_ablation'
      runs.append(Run(path, ablation, seed, ABLATION))
  return runs


def run_config(config: ConfigDict, run: Run) -> ConfigDict:
  """The config of one run."""
  c = config.copy_and_resolve_references()
  with c.unlocked():
    c.seed, c.stages = run.seed, run.stages
    c.data.num_labelled = 0
    c.data.labelled_fraction = run.percent / 100 if run.percent < 100 else 0.0
  return c.lock()


def read(run: Run, config: ConfigDict, scored: slice) -> dict:
  """{stage: {split: Score}} of what is evaluated, {} if nothing is."""
  path = run.folder / 'evaluation' / 'metrics.json'
  if not path.is_file():
    return {}
  stages = {config[stage].label or stage: stage for stage in run.stages}
  found = {}
  for split, systems in json.loads(path.read_text())['results'].items():
    for name, result in systems.items():
      if name in stages:
        scores = result['scores']
        published = segmentation.cut_miou(
          np.array(scores['confusion_matrix']), scored
        )
        found.setdefault(stages[name], {})[split] = Score(
          scores['miou'], scores['dice_foreground'], published
        )
  return found


def collect(runs: Sequence[Run], config: ConfigDict, scored: slice) -> Scores:
  """The scores of all runs that are done."""
  scores = {}
  for run in runs:
    for stage, by_split in read(run, config, scored).items():
      for split, score in by_split.items():
        by_seed = scores.setdefault((stage, run.percent), {})
        by_seed.setdefault(split, {})[run.seed] = score
  return scores


def tables(
  runs: Sequence[Run], config: ConfigDict, ablation: int, paper: str
) -> str:
  """Markdown: both tables for each split, of what is done.

  Args:
    runs: from `plan`.
    config: the stages' labels are read.
    ablation: its fraction in %; 0: none.
    paper: key of PAPER, whose numbers and metric are shown beside; or ''.
  """
  scores = collect(runs, config, SCORED.get(paper, WITHOUT_BACKGROUND))
  parts = []
  for split in dict.fromkeys(s for by in scores.values() for s in by):
    parts += [f'### {split}', fraction_table(scores, split, PAPER.get(paper))]
    if ablation:
      parts.append(ablation_table(scores, split, ablation))
  return '\n\n'.join(parts) + '\n'


def fraction_table(
  scores: Scores, split: str, paper: dict[int, tuple] | None
) -> str:
  """Markdown: a row for each number of labels, as the paper's table 1."""
  columns = ['labels', 'system', 'mIoU', 'gain', 'Dice', 'published metric']
  rows = [columns + (["the paper's"] if paper else [])]
  keys = [k for k in scores if k[0] in ('full', 'partial', 'cyclegan')]
  order = {'full': 0, 'partial': 1, 'cyclegan': 2}
  for stage, percent in sorted(keys, key=lambda k: (-k[1], order[k[0]])):
    found = scores[stage, percent].get(split, {})
    beside = scores.get(('partial', percent), {}).get(split, {})
    row = [f'{percent} %', {'cyclegan': 'CycleGAN'}.get(stage, stage.title())]
    row.append(cell([s.miou for s in found.values()]))
    gains = [found[k].miou - beside[k].miou for k in found if k in beside]
    row.append(signed(gains) if stage == 'cyclegan' else '')
    row.append(cell([s.dice for s in found.values()]))
    row.append(cell([s.published for s in found.values()]))
    if paper:
      known = paper.get(percent, ())
      i = int(stage == 'cyclegan')
      row.append(short(known[i]) if i < len(known) else '')
    rows.append(row)
  return markdown(rows)


def ablation_table(scores: Scores, split: str, percent: int) -> str:
  """Markdown: the loss with all its terms and without one, as table 2."""
  rows = [
    [f'loss, {percent} % labels', 'mIoU', 'Dice', 'published metric',
     "the paper's (VOC, 20 %)"],
  ]  # fmt: skip
  names = {'cyclegan': 'all terms'} | {
    stage: f'without L_{stage[3:-2]}^{stage[-1].upper()}' for stage in ABLATION
  }
  for stage, name in names.items():
    found = scores.get((stage, percent), {}).get(split, {}).values()
    columns = [cell([s[i] for s in found]) for i in range(len(Score._fields))]
    rows.append([name, *columns, short(PAPER_ABLATION[stage])])
  return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A table, the first row its head."""
  line = lambda row: f'| {" | ".join(row)} |'
  ruler = ['---', *['--:'] * (len(rows[0]) - 1)]
  return '\n'.join(map(line, [rows[0], ruler, *rows[1:]]))


def short(value: float) -> str:
  """'.254' of .254."""
  return f'{value:.3f}'.removeprefix('0')


def signed(values: Sequence[float]) -> str:
  """'+.021 ± .010', '-.003', '' of none."""
  if not values:
    return ''
  mean = statistics.mean(values)
  text = ('+' if mean >= 0 else '-') + short(abs(mean))
  if len(values) > 1:
    text += f' ± {short(statistics.stdev(values))}'
  return text


def parse_numbers(flag: str, texts: Sequence[str], low: int, high: int):
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


def done(run: Run, config: ConfigDict) -> bool:
  """Whether all stages of a run are trained and scored."""
  return set(read(run, config, WITHOUT_BACKGROUND)) == set(run.stages)


def main(argv: list[str]) -> None:
  """Trains what is missing, and writes the table after each run."""
  args = flags.FLAGS
  with friendly():
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    for name in ('config', 'workdir'):
      if not args[name].value:
        raise UserError(f'--{name} is missing; see --help.')
    config, workdir = args.config, Path(args.workdir)
    missing = {'full', 'partial', 'cyclegan', *ABLATION} - set(config)
    if missing:
      raise UserError(
        f'--config has no stage {min(missing)!r}, expected those of '
        'configs/cyclegan.py.'
      )
    fractions = parse_numbers('fractions', args.fractions, 1, 99)
    seeds = parse_numbers('seeds', args.seeds, 0, 2**31)
    source = config.data.source.partition(':')[0]
    paper = args.paper or (source if source in PAPER else '')
    runs = plan(workdir, fractions, args.ablation, seeds)
    try:
      for i, run in enumerate(runs):
        c = run_config(config, run)
        if not done(run, c):
          writers.say(f'run {i + 1} of {len(runs)}: {run.folder}')
          train.train(c, str(run.folder))
          jax.clear_caches()  # of programs that no later run has
        text = tables(runs, config, args.ablation, paper)
        write_atomically(workdir / 'table.md', text.encode())
    except runtime.Interrupted as error:
      writers.say(str(error))
      sys.exit(error.exit_code)
    print(text)


def _define_flags():
  # --config and --workdir are those of jaxseg.train.
  flags.DEFINE_list('fractions', ['10', '20', '30', '50'], 'Labels, in %.')
  flags.DEFINE_integer(
    'ablation', 20, 'Labels of the ablation, in %; 0: none.', 0, 99
  )
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
  flags.DEFINE_enum(
    'paper', '', ['', *PAPER], "The paper's table to show beside; '': of the "
    'data set, if it has one.',
  )  # fmt: skip


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
