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

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

import jaxseg
from jaxseg import (
  errors,
  gallery,
  inference,
  mean_field,
  report,
  workdir,
  writers,
)
from jaxseg.config import parse_flags
from jaxseg.data import fit, pipeline, sources
from jaxseg.data import splits as data_splits
from jaxseg.data.inspection import checks
from jaxseg.errors import UserError
from jaxseg.metrics import segmentation
from jaxseg.ops.dense_crf import CRF
from jaxseg.results import MAJORITY, Results

SAY_EVERY = 5.0  # seconds between progress lines


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
  wanted = resolve_splits(splits, split_names)
  able = inference.systems(trained, crf=crf)
  chosen = _choose(able, systems, config.eval.refine)
  job = _Job(trained, source, splits, config, output, crf)
  if not overwrite:
    job.results.read(job.ids, job.key)
  size = min(config.eval.batch_size, max(len(job.ids[s]) for s in wanted))
  programs = _Programs(config, size)
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
  splits: data_splits.Splits, names: Sequence[str]
) -> list[str]:
  """Expands 'ood' to every out-of-domain split and drops empty splits.

  Raises:
    UserError: an unknown name, or no image in any of them.
  """
  known = _ids_by_split(splits)
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
    raise UserError(
      f'--splits (config.eval.splits): no image in {", ".join(names) or "()"},'
      f' expected some of {", ".join(name for name in known if known[name])}'
    )
  return found


def draw(ids: Sequence[str], most: int, seed: int) -> list[str]:
  """Returns at most `most` (0: all) of the ids, drawn by seed, in order."""
  if not most or most >= len(ids):
    return list(ids)
  chosen = np.random.default_rng([seed, len(ids)]).permutation(len(ids))[:most]
  return [ids[i] for i in sorted(chosen)]


class _Programs:
  """What runs the systems, compiled once for all splits."""

  def __init__(self, config, batch_size):
    self.batch_size = batch_size
    self._config = config
    self._networks, self._crf = {}, None

  def network(self, system):
    system = system._replace(crf=None)
    key = system.stage, system.refined
    if key not in self._networks:
      writers.say(f'{system.name}: compiling ...')
      self._networks[key] = inference.compile_system(
        system, self._config, self.batch_size
      )
    return self._networks[key]

  def crf(self, settings):
    self._crf = self._crf or inference.compile_crf(
      settings, self._config, self.batch_size
    )
    return self._crf


class _Tally:
  """What is found out about one system on one split."""

  def __init__(self, classes):
    self.total = np.zeros((classes, classes), np.int64)
    self.rows, self.seconds = {}, []


class _Job:
  """One call of `evaluate`."""

  def __init__(self, trained, source, splits, config, output, crf):
    self.trained, self.source = trained, source
    self.splits, self.config = splits, config
    self.names, self.palette = list(trained.class_names), trained.palette
    crf = mean_field.remember(Path(output) / 'mean_field.json', crf)
    systems = inference.systems(trained, crf=crf)
    self.results = Results(output, systems, self.names, self.palette)
    self.weights = {s.stage: inference.fingerprint(s.state) for s in systems}
    self.original_label = pipeline.Examples(source, config.data).original_label
    self.ids = {
      split: draw(ids, config.eval.max_images, config.seed)
      for split, ids in _ids_by_split(splits).items()
    }

  def key(self, split, system):
    """What a result depends on, as a short hash."""
    data = self.config.data
    parts = [self.names, self.splits.hash, self.ids[split], data.source]
    # Ids say nothing of which set they are of, nor how its classes are mapped.
    named = (split.removeprefix('ood_') + '=', split.removeprefix('ood_') + ':')
    parts += [
      entry
      for entry in (*data.ood_sources, *data.ood_classes)
      if entry.startswith(named)
    ]
    if system:
      stage = self.trained.config.get(system.stage)
      args = json.loads(stage.args.to_json_best_effort()) if stage else None
      parts += [data.resolution, data.channels, data.fit]
      parts += [data.width] if data.width else []
      parts += [self.weights[system.stage]]
      parts += [system.name, system.refined, args]
      # The size of a lattice changes no result, as all that is needed fits.
      if system.crf:
        parts += [system.crf._replace(max_vertices=0)._asdict()]
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

  def keep(self, split, system, cm, seconds):
    scores = segmentation.summarize(cm, self.names) | {
      'images': len(self.ids[split]),
      'seconds_per_image': seconds,
      'confusion_matrix': cm.tolist(),
    }
    name = system.name if system else MAJORITY
    self.results.keep(split, name, self.key(split, system), scores)

  def truth(self, id_):
    """The label at its own size, void where the networks see nothing."""
    data = self.config.data
    return fit.seen(self.original_label(id_), fit.size(data), data.fit)

  def counts(self, id_):
    """Pixels of each class in the label of an image."""
    label = self.truth(id_)
    try:
      return segmentation.class_counts(label, len(self.names))
    except ValueError as error:
      raise UserError(
        f'{self.source.path(id_)}: {error}; correct the label file'
      ) from None

  def score_majority(self, split):
    if self.results.has(split, MAJORITY):
      return
    train, truth = (
      sum(self.counts(id_) for id_ in ids)
      for ids in (self.splits.labelled, self.ids[split])
    )
    cm = segmentation.majority_class_baseline(train, truth)
    self.keep(split, None, cm, math.nan)

  def score(self, split, systems, programs):
    """Labels a split; writes masks, reconstructions and per-image scores.

    All systems are of one network, which runs once.
    """
    run = programs.network(systems[0])
    self.results.save()  # forgets the old result: its masks go now
    ids, config = self.ids[split], self.config
    tallies = [_Tally(len(self.names)) for _ in systems]
    shown = ' and '.join(system.name for system in systems)
    progress = writers.Progress(f'{split}  {shown}', len(ids))
    said = time.monotonic()
    for batch in pipeline.eval_batches(
      self.source, ids, config, programs.batch_size
    ):
      images = batch['image'][batch['valid']]
      network = run(images)
      for system, tally in zip(systems, tallies, strict=True):
        prediction, seconds = network
        if system.crf:
          follow = programs.crf(system.crf)
          prediction, more = follow(prediction, images)
          seconds += more
        tally.seconds.append(seconds)
        self.score_batch(split, system, batch['ids'], prediction, tally)
      if time.monotonic() - said > SAY_EVERY:
        said = time.monotonic()
        last = tallies[-1]
        miou = segmentation.summarize(last.total, self.names)['miou']
        writers.say(progress.line(len(last.rows), {'mIoU': miou}))
    for system, tally in zip(systems, tallies, strict=True):
      self.results.write_per_image(split, system, tally.rows)
      self.keep(split, system, tally.total, float(np.mean(tally.seconds)))

  def score_batch(self, split, system, ids, prediction, tally):
    """Scores the images of a batch."""
    for j, id_ in enumerate(ids[: len(prediction.probabilities)]):
      cm = self.score_image(split, system, id_, prediction, j)
      tally.total += cm
      trust = None if prediction.trust is None else prediction.trust[j]
      scores = segmentation.summarize(cm, self.names)
      tally.rows[id_] = scores | {'trust': trust}

  def score_image(self, split, system, id_, prediction, j):
    """Writes the pictures of image j of a batch; returns its matrix."""
    label = self.truth(id_)
    mask = inference.label_image(
      prediction.probabilities[j], label.shape, self.config
    )
    self.results.write_mask(split, system, id_, mask)
    if prediction.reconstruction is not None:
      image = prediction.reconstruction[j]
      self.results.write_reconstruction(split, system, id_, image)
    return segmentation.confusion_matrix(label, mask, len(self.names))

  def write_reports(self):
    """Writes table.md and report.html of all that is done."""
    scores, output = self.results.scores(), self.results.output
    if not scores:
      return
    report.write_tables(output / 'table.md', scores)
    report.write(
      output / 'report.html',
      f'{self.source.name}, {len(self.splits.labelled)} labelled images',
      self.facts(),
      scores,
      {
        self.heading(split): gallery.worst_examples(
          self.results, self.source, split, self.config.eval.report_images
        )
        for split in scores
        if self.results.done(split)
      },
      self.names,
      self.palette,
    )

  def heading(self, split):
    system = gallery.judge(self.results.done(split))
    return f'{split}: worst of {system.name} first'

  def facts(self):
    """What was run, for the report."""
    data = self.config.data
    height, width = fit.size(data)
    facts = {
      'data': data.source,
      'labelled images': len(self.splits.labelled),
      'unlabelled images': len(self.splits.unlabelled),
      'hash of the splits': self.splits.hash,
      'seed': self.config.seed,
      'resolution': f'{width}x{height}x{data.channels}',
    }
    for name, (_, state, label) in self.trained.stages.items():
      stage = self.trained.config.get(name)
      method = f'{stage.method}, ' if stage else ''
      facts[f'stage {name}'] = f'{label}: {method}{int(state.step)} steps'
    facts['versions'] = (
      f'jaxseg {jaxseg.__version__}, jax {jax.__version__}, '
      f'numpy {np.__version__}, Python {platform.python_version()}'
    )
    return facts | {'device': jax.devices()[0].device_kind}


def _ids_by_split(splits):
  names = ('labelled', 'val', 'test')
  return {name: getattr(splits, name) for name in names} | dict(splits.ood)


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
    gone = [i for i in _ids_by_split(splits)[name] if i not in known]
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
    _require(source, splits, resolve_splits(splits, config.eval.splits))
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
