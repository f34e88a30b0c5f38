"""The tables of CycleGAN for semi-supervised segmentation, on any data.

  python -m benchmarks.cyclegan --config=configs/cyclegan.py:digits \
    --workdir=runs/cyclegan_tables
  python -m benchmarks.cyclegan --config=configs/cyclegan.py:acdc,,laptop \
    --config.data.source=folder:data/cardiac_mr \
    "--config.data.group_by=([a-z]+_[0-9]+)" --paper=acdc \
    --workdir=runs/cyclegan_acdc --fractions=10,20,50 --ablation=20

Trains and scores `full` with all labels, `partial` and `cyclegan` with each
fraction of them, and at one fraction the four that lack a term of the loss
(Mondal et al. 2019, tables 1 and 2). Fields that are given for one stage must
be given for all. Each training is a workdir of its own; what is done is kept:
run it again to continue, or with further fractions and seeds, several at a time
with different --seeds. WORKDIR/table.md, written after each training, has means
over seeds, with standard deviations, beside the paper's numbers.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import cyclegan_tables, trainings
from benchmarks.cyclegan_tables import ABLATION, PAPER, Run
from jaxseg import runtime, writers
from jaxseg.config import parse_flags
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError, friendly

STAGES = ('full', 'partial', 'cyclegan', *ABLATION)
# Fields of args that supervised stages share with `cyclegan`, and those in
# which stages of the ablation differ from it.
SHARED = ('net', 'loss', 'optimizer', 'ema_half_life')
WEIGHTS = ('lambda_2', 'lambda_3', 'lambda_4', 'lambda_5')


def plan(
  folder: Path, fractions: Sequence[int], ablation: int, seeds: Sequence[int]
) -> list[Run]:
  """Lists all trainings, seed by seed, those of the ablation last.

  Args:
    folder: of the benchmark.
    fractions: labels of each, in % of those of the training images.
    ablation: the fraction of the ablation; 0: none.
    seeds: of data order and weights and, where the data set does not say which
      images have a label, of that.
  """
  percents = sorted({*fractions, *([ablation] if ablation else [])})
  first = [('full', 100)]
  first += [(s, p) for p in percents for s in ('partial', 'cyclegan')]
  more = [(stage, ablation) for stage in ABLATION if ablation]
  return [
    Run(folder / f'seed_{seed}' / f'{percent}_{stage}', percent, seed, stage)
    for listed in (first, more)
    for seed in seeds
    for stage, percent in listed
  ]


def run_config(config: ConfigDict, run: Run) -> ConfigDict:
  """The config of one training, scored on all images.

  Each stage is alone: those of one seed begin with the same segmenter and see
  the labelled images in the same order.
  """
  c = config.copy_and_resolve_references()
  with c.unlocked():
    c.seed, c.stages = run.seed, (run.stage,)
    c.data.num_labelled = 0
    c.data.labelled_fraction = run.percent / 100 if run.percent < 100 else 0.0
    c.eval.max_images = 0
  return c.lock()


def check_alike(config: ConfigDict) -> None:
  """Refuses stages that differ in more than what they are compared for.

  Raises:
    UserError: names the field.
  """
  for stage in STAGES:
    if stage not in config:
      raise UserError(
        f'--config has no stage {stage!r}, expected those of '
        'configs/cyclegan.py.'
      )
    here, there = config[stage], config.cyclegan
    names = SHARED
    if stage in ABLATION:
      names = sorted(set(there.args) - set(WEIGHTS))
    found, expected = (_compared(fields, names) for fields in (here, there))
    for name, value in expected.items():
      if found[name] != value:
        raise UserError(
          f'config.{stage}.{name} is {found[name]!r}, expected that of '
          f'config.cyclegan, {value!r}: else their scores would not be '
          'comparable; set it for all stages.'
        )


def _compared(fields, names):
  """{field: value} of a stage: the loop's, and those of args named."""
  found = {n: fields[n] for n in ('total_steps', 'batch_size')}
  for name in names:
    value = fields.args[name]
    group = value if isinstance(value, ConfigDict) else {'': value}
    for key, part in group.items():
      found[f'args.{name}.{key}'.rstrip('.')] = part
  return found


def main(argv: list[str]) -> None:
  """Trains what is missing, writes the table after each, prints it."""
  args = flags.FLAGS
  with friendly():
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    for name in ('config', 'workdir'):
      if not args[name].value:
        raise UserError(f'--{name} is missing; see --help.')
    config, folder = args.config, Path(args.workdir)
    check_alike(config)
    fractions = trainings.parse_numbers('fractions', args.fractions, 1, 99)
    seeds = trainings.parse_numbers('seeds', args.seeds, 0, 2**31)
    source = config.data.source.partition(':')[0]
    paper = args.paper or (source if source in PAPER else '')
    runs = plan(folder, fractions, args.ablation, seeds)

    def show():
      text = cyclegan_tables.tables(runs, paper)
      write_atomically(folder / 'table.md', text.encode())

    try:
      diverged = trainings.run_all(
        [(run.folder, run_config(config, run)) for run in runs], show
      )
    except runtime.Interrupted as error:
      writers.say(str(error))
      sys.exit(error.exit_code)
    show()
    print((folder / 'table.md').read_text())
    if diverged:
      raise UserError('these have no scores: ' + '; '.join(diverged))


def _define_flags():
  # --config and --workdir are those of jaxseg.train.
  flags.DEFINE_list('fractions', ['10', '20', '30', '50'], 'Labels, in %.')
  flags.DEFINE_integer(
    'ablation', 20, 'Labels of the ablation, in %; 0: none.', 0, 99
  )
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
  flags.DEFINE_enum(
    'paper', '', ['', *PAPER], "Data set of the paper's table to show beside, "
    'and of its metric; default: that of the config, if it has one.',
  )  # fmt: skip


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
