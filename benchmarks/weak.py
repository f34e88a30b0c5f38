"""What weak labels cost: the same segmenter from masks, scribbles and tags.

  python -m benchmarks.weak --config=configs/weak.py:table,digits,all \
    --workdir=runs/weak_digits
  python -m benchmarks.weak --workdir=runs/weak_acdc --seeds=0,1,2 \
    --config=configs/weak.py:table,folder:data/cardiac_mr,all,laptop \
    --config.data.weak.drawn=scribbles --config.data.channels=1

The comparison of Tang et al. (ECCV 2018): full supervision; partial cross
entropy (PCE) alone, with each term of the regularizer and with two; and, of
tags, the classifier's activation maps (CAM) and SEC. All have the network, the
optimiser and the number of steps of the config's stage, and the same images.
Each training is a workdir of its own; what is done is kept: run it again to
continue, or with further seeds. WORKDIR/table.md, written after each training,
has the means over seeds and their standard deviations.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from benchmarks import over_seeds, trainings
from jaxseg import runtime, writers
from jaxseg.config import parse_flags
from jaxseg.data import sources, splits
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError, friendly
from jaxseg.losses.regularized import TERMS
from jaxseg.results import MAJORITY

SYSTEMS = {  # name: row
  'full': 'Full supervision',
  'pce': 'PCE',
  'crf': 'PCE + CRF',
  'entropy': 'PCE + entropy',
  'ncut': 'PCE + NC',
  'crf_entropy': 'PCE + CRF + entropy',
  'tags': 'SEC',
}


def run_config(
  config: ConfigDict, system: str, seed: int, weights: dict[str, float]
) -> ConfigDict:
  """The config of one training.

  Args:
    config: with the stages `weak`, `cam` and `sec`.
    system: a key of SYSTEMS.
    seed: of data order and weights and, where the data set does not say which
      images have a label, of that.
    weights: of the regularizer's terms, where a system has them.
  """
  c = config.copy_and_resolve_references()
  with c.unlocked():
    c.seed = seed
    if system == 'tags':
      c.stages = ('cam', 'sec')
      c.data.weak.kind, c.data.weak.drawn = 'tags', ''
    else:
      c.stages = ('weak',)
      c.weak.label = SYSTEMS[system]
      terms = {'full': (), 'pce': ()}.get(system, system.split('_'))
      for term in TERMS:
        value = weights[term] if term in terms else 0.0
        c.weak.args.regularizer[term] = value
    if system == 'full':
      c.data.weak.kind = c.data.weak.drawn = ''
    for name in [n for n in ('weak', 'cam', 'sec') if n not in c.stages]:
      del c[name]
  return c.lock()


SAME = (
  'total_steps', 'batch_size', 'log_every', 'checkpoint_every', 'picture_every',
)  # fmt: skip
SAME_ARGS = ('net', 'optimizer', 'ema_half_life')


def alike(config: ConfigDict) -> ConfigDict:
  """The config whose stages for tags have what its stage `weak` has.

  Raises:
    UserError: it lacks a stage, or its labels are no scribbles.
  """
  if not {'weak', 'cam', 'sec'} <= set(config.stages):
    raise UserError(
      f'--config has the stages {", ".join(config.stages)}, expected those of '
      'configs/weak.py:table,SET.'
    )
  if config.data.weak.kind != 'scribbles':
    raise UserError(
      f'--config.data.weak.kind is {config.data.weak.kind!r}, must be '
      "'scribbles', whose losses are compared."
    )
  c = config.copy_and_resolve_references()
  with c.unlocked():
    for stage in ('cam', 'sec'):
      for name in SAME:
        c[stage][name] = c.weak[name]
      for name in SAME_ARGS:
        c[stage].args[name] = config.weak.args[name]
  return c.lock()


def check_images(config: ConfigDict, seeds: Sequence[int]) -> None:
  """Refuses a set of which masks and drawn scribbles are of other images.

  Raises:
    UserError: the labelled or the scored images differ.
  """
  if not config.data.weak.drawn:
    return
  found = {}
  for system in ('full', 'pce'):
    data = run_config(config, system, 0, dict.fromkeys(TERMS, 0.0)).data
    source = sources.load(data)
    for seed in seeds:
      s = splits.make_splits(source, data, seed)
      found[system, seed] = (set(s.labelled), set(s.test), dict(s.ood))
  for seed in seeds:
    if found['full', seed] != found['pce', seed]:
      few = found['full', seed][0] ^ found['pce', seed][0]
      raise UserError(
        f'{source.name}: images with a mask and images with a drawn scribble '
        f'are not the same ({len(few)} have one of them, such as '
        f'{", ".join(sorted(few)[:3]) or "scored ones"}), but full supervision '
        'is to be compared on the same images; list in splits.json those that '
        'have both.'
      )


def plan(folder: Path, seeds: Sequence[int]) -> list[tuple[str, int, Path]]:
  """(system, seed, workdir) of all trainings, seed by seed."""
  return [
    (system, seed, folder / f'seed_{seed}' / system)
    for seed in seeds
    for system in SYSTEMS
  ]


def table(runs: Sequence[tuple[str, int, Path]]) -> str:
  """Markdown of what is done: mIoU, then Dice without the background."""
  done = [str(path) for _, _, path in runs if (path / trainings.DONE).is_file()]
  texts = []
  for metric, title in (
    ('miou', 'mIoU'), ('dice_foreground', 'Dice without background'),
  ):  # fmt: skip
    values = over_seeds.collect(done, metric)
    values.pop(MAJORITY, None)
    order = (*list(SYSTEMS.values())[:-1], 'CAM', 'SEC')
    rows = {name: values[name] for name in order if name in values}
    texts.append(f'{title}\n\n{over_seeds.table(rows)}\n')
  return '\n'.join(texts)


def main(argv: list[str]) -> None:
  """Trains what is missing, writes the table after each, prints it."""
  args = flags.FLAGS
  with friendly():
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    for name in ('config', 'workdir'):
      if not args[name].value:
        raise UserError(f'--{name} is missing; see --help.')
    seeds = trainings.parse_numbers('seeds', args.seeds, 0, 2**31)
    folder, config = Path(args.workdir), alike(args.config)
    weights = {'crf': args.crf, 'entropy': args.entropy, 'ncut': args.ncut}
    weights = dict.fromkeys(TERMS, 0.0) | weights
    runs = plan(folder, seeds)
    check_images(config, seeds)

    def show():
      write_atomically(folder / 'table.md', table(runs).encode())

    try:
      diverged = trainings.run_all(
        [
          (path, run_config(config, system, seed, weights))
          for system, seed, path in runs
        ],
        show,
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
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
  for term, default in (('crf', 0.5), ('entropy', 0.1), ('ncut', 0.1)):
    flags.DEFINE_float(term, default, f'Weight of the {term} term.', 0.0)


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
