"""Scores of systems on splits: what one evaluation has to do, and does.

`jaxseg.evaluate` says what is wanted; `jaxseg.results` holds what is done.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

import jaxseg
from jaxseg import gallery, inference, mean_field, report, workdir, writers
from jaxseg.data import annotated, fit, pipeline, sources
from jaxseg.data import splits as data_splits
from jaxseg.errors import UserError
from jaxseg.inference import System
from jaxseg.metrics import segmentation
from jaxseg.ops.dense_crf import CRF
from jaxseg.results import MAJORITY, Results

SAY_EVERY = 5.0  # seconds between progress lines


def draw(ids: Sequence[str], most: int, seed: int) -> list[str]:
  """Returns at most `most` (0: all) of the ids, drawn by seed, in order."""
  if not most or most >= len(ids):
    return list(ids)
  chosen = np.random.default_rng([seed, len(ids)]).permutation(len(ids))[:most]
  return [ids[i] for i in sorted(chosen)]


def ids_by_split(splits: data_splits.Splits) -> dict[str, Sequence[str]]:
  """Returns {split: ids} of all that can be scored."""
  names = ('labelled', 'val', 'test')
  return {name: getattr(splits, name) for name in names} | dict(splits.ood)


class Programs:
  """What runs the systems, compiled once for all splits."""

  def __init__(self, config: ConfigDict, batch_size: int):
    self.batch_size = batch_size
    self._config = config
    self._networks, self._crf = {}, None

  def network(self, system: System) -> Callable:
    """Of the system's network, see `inference.compile_system`."""
    system = system._replace(crf=None)
    key = system.stage, system.refined
    if key not in self._networks:
      writers.say(f'{system.name.removesuffix("+CRF")}: compiling ...')
      self._networks[key] = inference.compile_system(
        system, self._config, self.batch_size
      )
    return self._networks[key]

  def crf(self, settings: CRF) -> Callable:
    """Of the dense CRF that follows, see `inference.compile_crf`."""
    self._crf = self._crf or inference.compile_crf(
      settings, self._config, self.batch_size
    )
    return self._crf


class _Tally:
  """What is found out about one system on one split."""

  def __init__(self, classes):
    self.total = np.zeros((classes, classes), np.int64)
    self.rows, self.seconds = {}, []


class Job:
  """One call of `jaxseg.evaluate.evaluate`, whose arguments it takes."""

  def __init__(
    self,
    trained: workdir.Trained,
    source: sources.Source,
    splits: data_splits.Splits,
    config: ConfigDict,
    output: str | os.PathLike,
    crf: CRF | None,
  ):
    self.trained, self.source = trained, source
    self.splits, self.config = splits, config
    self.names, self.palette = list(trained.class_names), trained.palette
    self.crf = mean_field.remember(Path(output) / 'mean_field.json', crf)
    systems = inference.systems(trained, crf=self.crf)
    self.results = Results(output, systems, self.names, self.palette)
    self.weights = {s.stage: inference.fingerprint(s.state) for s in systems}
    self.original_label = pipeline.Examples(source, config.data).original_label
    self.ids = {
      split: draw(ids, config.eval.max_images, config.seed)
      for split, ids in ids_by_split(splits).items()
    }

  def key(self, split: str, system: System | None) -> str:
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
    """Adds the scores of a confusion matrix to the results."""
    scores = segmentation.summarize(cm, self.names) | {
      'images': len(self.ids[split]),
      'seconds_per_image': seconds,
      'confusion_matrix': cm.tolist(),
    }
    name = system.name if system else MAJORITY
    self.results.keep(split, name, self.key(split, system), scores)

  def truth(self, id_):
    """The label at its own size, void where the networks see nothing."""
    return self.seen(self.original_label(id_))

  def seen(self, label):
    data = self.config.data
    return fit.seen(label, fit.size(data), data.fit)

  def counts(self, id_):
    """Pixels of each class in the label of an image."""
    return self.count(self.truth(id_), self.source.path(id_))

  def count(self, label, path):
    try:
      return segmentation.class_counts(label, len(self.names))
    except ValueError as error:
      raise UserError(f'{path}: {error}; correct the label file') from None

  def trained_counts(self, id_):
    """Pixels of each class that train; a tag counts once an image."""
    drawn = self.source.drawn
    if drawn is None:
      return self.counts(id_)
    if drawn.tags is not None:
      return drawn.tags[id_].astype(np.int64)
    label = annotated.view(self.source).label(id_)
    return self.count(self.seen(label), drawn.paths[id_])

  def score_majority(self, split: str) -> None:
    """Scores the class that most training pixels have, unless it is done."""
    if self.results.has(split, MAJORITY):
      return
    train = sum(self.trained_counts(id_) for id_ in self.splits.labelled)
    truth = sum(self.counts(id_) for id_ in self.ids[split])
    cm = segmentation.majority_class_baseline(train, truth)
    self.keep(split, None, cm, math.nan)

  def score(
    self, split: str, systems: Sequence[System], programs: Programs
  ) -> None:
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
    if prediction.reconstruction is not None and not system.crf:
      image = prediction.reconstruction[j]
      self.results.write_reconstruction(split, system, id_, image)
    return segmentation.confusion_matrix(label, mask, len(self.names))

  def write_reports(self) -> None:
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
    """Of a split's examples in the report."""
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
    if self.crf:
      settings = self.crf._asdict().items()
      facts['dense CRF'] = ', '.join(f'{k} {v}' for k, v in settings)
    facts['versions'] = (
      f'jaxseg {jaxseg.__version__}, jax {jax.__version__}, '
      f'numpy {np.__version__}, Python {platform.python_version()}'
    )
    return facts | {'device': jax.devices()[0].device_kind}
