"""Scores a trained workdir on named splits.

  python -m jaxseg.evaluate --workdir=W --splits=test,ood

Prints a table and writes W/evaluation/: metrics.json, table.md, report.html
and overlays/SPLIT/ID.png (image, each system's labels, the truth); see
jaxseg/results.py. What is done is kept: run it again after an interruption, or
with further splits. It is done anew where the checkpoint, the split or the
config has changed.

With --crf every system has a second row, NAME+CRF: a dense CRF corrects its
probabilities on the networks' grid, with the image they saw. --mean_field.*
are its settings, see jaxseg/ops/dense_crf.py.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from jaxseg import (
  errors,
  gallery,
  inference,
  mean_field,
  report,
  scoring,
  workdir,
  writers,
)
from jaxseg.config import parse_flags
from jaxseg.data import sources
from jaxseg.data import splits as data_splits
from jaxseg.data.inspection import checks
from jaxseg.errors import UserError
from jaxseg.ops.dense_crf import CRF


def evaluate(
  trained: workdir.Trained,
  source: sources.Source,
  splits: data_splits.Splits,
  config: ConfigDict,
  output: str | os.PathLike,
  systems: Sequence[str] | None = None,
  split_names: Sequence[str] | None = None,
  overwrite: bool = False,
  crf: CRF | None = None,
) -> report.Scores:
  """Scores each system on each split, at the labels' own resolution.

  Args:
    trained: from `jaxseg.workdir.load`.
    source: the data set.
    splits: of the training run.
    config: `seed`, `data`, `eval` and `mesh` are read.
    output: folder for the results.
    systems: names of systems (see `inference.systems`); None: all, those with
      test-time optimisation only if `config.eval.refine`.
    split_names: see `resolve_splits`; None: `config.eval.splits`.
    overwrite: do everything anew.
    crf: settings of a dense CRF; each of the systems is scored with it too.
      None: none is computed, but what an earlier call found is kept.

  Returns:
    {split: {system: `metrics.segmentation.summarize` + {'images',
    'seconds_per_image', 'confusion_matrix'}}} of all that was ever asked for
    and still holds; also in metrics.json.

  Raises:
    UserError: an unknown split or system; an image without a label, or for
      which the CRF's lattice has no room.
  """
  if split_names is None:
    split_names = config.eval.splits
  wanted = resolve_splits(splits, split_names, source)
  able = inference.systems(trained, crf=crf)
  chosen = _choose(able, systems, config.eval.refine)
  job = scoring.Job(trained, source, splits, config, output, crf)
  if not overwrite:
    job.results.read(job.ids, job.key)
  size = min(config.eval.batch_size, max(len(job.ids[s]) for s in wanted))
  programs = scoring.Programs(config, size)
  try:
    for split in wanted:
      job.score_majority(split)
      todo = [s for s in chosen if not job.results.has(split, s.name)]
      for rows in _with_one_network(todo):
        job.score(split, rows, programs)
      gallery.write_overlays(job.results, source, split, job.ids[split])
  finally:
    job.write_reports()
  scores = job.results.scores()
  writers.say(report.markdown(report.score_table(scores)))
  writers.say(f'report: {Path(output) / "report.html"}')
  return scores


def resolve_splits(
  splits: data_splits.Splits,
  names: Sequence[str],
  source: sources.Source | None = None,
) -> list[str]:
  """Expands 'ood' to every out-of-domain split and drops empty splits.

  Args:
    splits: of the training run.
    names: of splits, or 'ood'.
    source: the data set, to see that labelled images have a full mask, which
      those with drawn labels need not; None: not looked at.

  Raises:
    UserError: an unknown name, no image in any of them, or a labelled image
      that cannot be scored.
  """
  known = scoring.ids_by_split(splits)
  found = []
  for name in names:
    if name == 'ood' and name not in known:
      found += list(splits.ood)
    elif name in known:
      found.append(name)
    else:
      raise UserError(
        f'--splits (config.eval.splits): {name!r} is no split of this run, '
        f'expected some of {", ".join(dict.fromkeys([*known, "ood"]))}'
      )
  found = [name for name in dict.fromkeys(found) if known[name]]
  if not found:
    none = (
      f'--splits (config.eval.splits): no image in {", ".join(names) or "()"}, '
    )
    there = [name for name in known if known[name]]
    if there == ['labelled'] and source is not None and source.drawn:
      raise UserError(
        f'{none}since none has a full mask and does not train, expected some '
        'to score; add labels/NAME.png of a few images and list these as '
        "'test' in splits.json"
      )
    raise UserError(f'{none}expected some of {", ".join(there)}')
  if 'labelled' in found and source is not None:
    bare = [i for i in splits.labelled if not source.has_label(i)]
    if bare:
      raise UserError(
        f"--splits (config.eval.splits): {len(bare)} of the images 'labelled' "
        f'have no full mask (first {source.path(bare[0])}), expected one of '
        "each to score them; leave 'labelled' out or add labels/NAME.png"
      )
  return found


def _choose(able, names, refine):
  if names is None:
    return [s for s in able if refine or not s.refined]
  for name in names:
    if name not in [s.name for s in able]:
      raise UserError(
        f'--systems: {name!r} is no system of this run, expected some of '
        f'{", ".join(s.name for s in able)}'
      )
  # A network's name asks for its row with a CRF too, if there are such.
  asked = {*names, *(f'{name}+CRF' for name in names)}
  return [s for s in able if s.name in asked]


def _with_one_network(systems):
  """[[U-Net, U-Net+CRF], ...]."""
  groups = {}
  for system in systems:
    groups.setdefault((system.stage, system.refined), []).append(system)
  return list(groups.values())


def _add_ood(config, splits, args):
  """Opens the set with the out-of-domain sets named on the command line."""
  data = config.data
  added = [e for e in args.ood_sources or () if e not in data.ood_sources]
  data.ood_sources = (*data.ood_sources, *added)
  maps = [e for e in args.ood_classes or () if e not in data.ood_classes]
  data.ood_classes = (*data.ood_classes, *maps)
  source = sources.load(data)
  names = [f'ood_{entry.partition("=")[0]}' for entry in data.ood_sources]
  ood = splits.ood | {name: source.splits[name] for name in names}
  splits = splits._replace(ood=ood)
  further = [
    id_
    for entry in added
    for id_ in splits.ood[f'ood_{entry.partition("=")[0]}']
  ]
  if further:
    checks.check_further(source, splits.labelled, further, data)
  return source, splits


def _require(source, splits, names):
  """Refuses when images that are needed are there no longer."""
  known = {id_ for ids in source.splits.values() for id_ in ids}
  for name in ('labelled', *names):
    gone = [i for i in scoring.ids_by_split(splits)[name] if i not in known]
    if gone:
      raise UserError(
        f'{source.name}: {len(gone)} images of split {name!r} are gone '
        f'({", ".join(gone[:3])}), expected all that training found; put them '
        'back'
      )


def _define_flags(to=flags.FLAGS):
  def define(kind, name, default, text, **kwargs):
    kind(name, default, text, flag_values=to, **kwargs)

  define(flags.DEFINE_string, 'workdir', None, 'Folder of a training run.')
  many = flags.DEFINE_list
  define(many, 'splits', None, "E.g. test,ood; default: the config's.")
  define(many, 'systems', None, 'Rows of the table to compute; default: all.')
  several = flags.DEFINE_multi_string  # class names may hold commas
  define(several, 'ood_sources', None, 'A further set to score: NAME=SOURCE.')
  define(several, 'ood_classes', None, 'Its classes: NAME:theirs=ours,...')
  define(flags.DEFINE_bool, 'refine', None, 'Score test-time optimisation.')
  define(
    flags.DEFINE_string, 'checkpoint', 'newest',
    'Which: newest, best (where config.STAGE.keep_best is set), or a step.',
  )  # fmt: skip
  define(flags.DEFINE_bool, 'overwrite', False, 'Do everything anew.')
  mean_field.define_flags(to)
  whole = flags.DEFINE_integer
  define(whole, 'max_images', None, 'At most so many images a split; 0: all.')
  define(whole, 'batch_size', None, 'Images at a time.', lower_bound=1)


def main(argv: list[str]) -> None:
  """Runs the command line."""
  args = flags.FLAGS
  with errors.friendly():
    if len(argv) > 1:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    if not args.workdir:
      raise UserError('--workdir is missing; add --workdir=FOLDER')
    crf = mean_field.from_flags(args)
    config = workdir.load_config(args.workdir)
    splits = data_splits.load_splits(Path(args.workdir) / 'splits.json')
    for field in ('refine', 'max_images', 'batch_size', 'splits'):
      if args[field].value is not None:
        config.eval[field] = args[field].value
    source, splits = _add_ood(config, splits, args)
    # Before the slow part:
    wanted = resolve_splits(splits, config.eval.splits, source)
    _require(source, splits, wanted)
    output = Path(args.workdir) / 'evaluation'
    try:
      evaluate(
        workdir.load(args.workdir, checkpoint=args.checkpoint), source,
        splits, config, output,
        args.systems, overwrite=args.overwrite, crf=crf,
      )  # fmt: skip
    except KeyboardInterrupt:
      writers.say(
        f'\ninterrupted; what is done is in {output}: run the same command '
        'again to continue'
      )
      raise SystemExit(130) from None


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
