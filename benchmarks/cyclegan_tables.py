"""Tables 1 and 2 of Mondal et al. (2019), out of evaluated workdirs."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.trainings import DONE
from jaxseg.metrics import segmentation
from jaxseg.results import MAJORITY

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
ROWS = {
  'full': 'Full', 'partial': 'Partial', 'cyclegan': 'CycleGAN',
  'no_cycle_s': 'without L_cycle^S', 'no_cycle_i': 'without L_cycle^I',
  'no_disc_s': 'without L_disc^S', 'no_disc_i': 'without L_disc^I',
}  # fmt: skip
# What the published code scores (void, a class of Cityscapes there, is none
# here); of other sets as of VOC, all but the background.
ALL_CLASSES = ('cityscapes', 'acdc')


class Run(NamedTuple):
  """One training: one stage with some of the labels."""

  folder: Path
  percent: int
  seed: int
  stage: str


class Score(NamedTuple):
  """Of one training on one split."""

  miou: float
  dice: float  # mean without background
  published: float  # mIoU of the published code
  labelled: int  # images with a label
  images: int  # images that are scored


# {(stage, percent): {split: {seed: Score}}}
Scores = dict[tuple[str, int], dict[str, dict[int, Score]]]


def read(run: Run, scored: slice) -> dict[str, Score]:
  """{split: Score} of a training that is done, else {}.

  Args:
    run: the training.
    scored: classes of the published metric.
  """
  if not (run.folder / DONE).is_file():
    return {}
  labelled = json.loads((run.folder / 'splits.json').read_text())['labelled']
  path = run.folder / 'evaluation' / 'metrics.json'
  results = json.loads(path.read_text())['results']
  number = lambda value: math.nan if value is None else value
  found = {}
  for split, systems in results.items():
    name = next(name for name in systems if name != MAJORITY)
    scores = systems[name]['scores']
    cm = np.array(scores['confusion_matrix'])
    found[split] = Score(
      number(scores['miou']),
      number(scores['dice_foreground']),
      segmentation.cut_miou(cm, scored),
      len(labelled),
      scores['images'],
    )
  return found


def collect(runs: Sequence[Run], scored: slice) -> Scores:
  """The scores of all trainings that are done."""
  scores = {}
  for run in runs:
    for split, score in read(run, scored).items():
      by_split = scores.setdefault((run.stage, run.percent), {})
      by_split.setdefault(split, {})[run.seed] = score
  return scores


def tables(runs: Sequence[Run], paper: str) -> str:
  """Markdown: both tables for each split, of what is done.

  Args:
    runs: the trainings.
    paper: key of PAPER, whose numbers and metric are shown; or ''.
  """
  whole = paper in ALL_CLASSES
  scores = collect(runs, slice(None) if whole else slice(1, None))
  parts = []
  for split in dict.fromkeys(s for by in scores.values() for s in by):
    images = {
      s.images for by in scores.values() for s in by.get(split, {}).values()
    }
    seeds = sorted({
      seed for by in scores.values() for seed in by.get(split, {})
    })  # fmt: skip
    in_domain = not split.startswith('ood')  # the paper has no others
    beside = PAPER.get(paper) if in_domain else None
    parts += [
      f'### {split}',
      f'{" or ".join(map(str, sorted(images)))} images; mean and, of several, '
      f'standard deviation over seeds {", ".join(map(str, seeds))}. The '
      f"published code's mIoU: {'all classes' if whole else 'no background'}.",
      fraction_table(scores, split, beside),
    ]
    percents = {p for stage, p in scores if stage in ABLATION}
    parts += [
      ablation_table(scores, split, percent, in_domain)
      for percent in sorted(percents)
    ]
  return '\n\n'.join(parts) + '\n'


def fraction_table(
  scores: Scores, split: str, paper: dict[int, tuple] | None
) -> str:
  """Markdown: a row for each number of labels and system, as table 1.

  The gain is that over Partial of the same seed.

  Args:
    scores: from `collect`.
    split: which.
    paper: the paper's numbers of this data set; None: it has none.
  """
  head = [
    'labels', 'images with one', 'system', 'mIoU', 'gain', 'Dice',
    "published code's mIoU",
  ]  # fmt: skip
  rows = [head + ["the paper's"] * bool(paper)]
  order = ('full', 'partial', 'cyclegan')
  keys = [k for k in scores if k[0] in order and split in scores[k]]
  most = max((len(scores[k][split]) for k in keys), default=0)
  for stage, percent in sorted(keys, key=lambda k: (-k[1], order.index(k[0]))):
    found = scores[stage, percent][split]
    beside = scores.get(('partial', percent), {}).get(split, {})
    labelled = sorted({str(s.labelled) for s in found.values()}, key=int)
    gains = [found[k].miou - beside[k].miou for k in found if k in beside]
    few = f' (in {len(found)})' if len(found) < most else ''
    row = [
      f'{percent} %', ', '.join(labelled), ROWS[stage] + few,
      mean_of(found, 'miou'), spread(gains, '+') if stage == 'cyclegan' else '',
      mean_of(found, 'dice'), mean_of(found, 'published'),
    ]  # fmt: skip
    if paper:
      known = paper.get(percent, ())
      i = int(stage == 'cyclegan')
      row.append(short(known[i]) if i < len(known) else '')
    rows.append(row)
  return markdown(rows, texts=3)


def ablation_table(
  scores: Scores, split: str, percent: int, paper: bool
) -> str:
  """Markdown: the loss with all its terms and without one, as table 2.

  The change is that against all terms with the same seed.

  Args:
    scores: from `collect`.
    split: which.
    percent: of the labels.
    paper: whether the paper's numbers are shown.
  """
  head = [
    f'loss, {percent} % labels', 'mIoU', 'change', 'Dice',
    "published code's mIoU",
  ]  # fmt: skip
  rows = [head + ["the paper's (VOC, 20 %)"] * paper]
  every = scores.get(('cyclegan', percent), {}).get(split, {})
  for stage in ('cyclegan', *ABLATION):
    found = scores.get((stage, percent), {}).get(split, {})
    changes = [found[k].miou - every[k].miou for k in found if k in every]
    few = f' (in {len(found)})' if len(found) < len(every) else ''
    rows.append([
      ('all terms' if stage == 'cyclegan' else ROWS[stage]) + few,
      mean_of(found, 'miou'),
      spread(changes, '+') if stage != 'cyclegan' else '',
      mean_of(found, 'dice'),
      mean_of(found, 'published'),
      *[short(PAPER_ABLATION[stage])] * paper,
    ])  # fmt: skip
  return markdown(rows)


def markdown(rows: Sequence[Sequence[str]], texts: int = 1) -> str:
  """A table, the first row its head, the first `texts` columns no numbers."""
  line = lambda row: f'| {" | ".join(row)} |'
  ruler = [*['---'] * texts, *['--:'] * (len(rows[0]) - texts)]
  return '\n'.join(map(line, [rows[0], ruler, *rows[1:]]))


def mean_of(found: dict[int, Score], field: str) -> str:
  """'.413 ± .012' over seeds; '.413' of one."""
  return spread([getattr(score, field) for score in found.values()])


def spread(values: Sequence[float], plus: str = '') -> str:
  """Mean and standard deviation, '' of none; `plus`: sign of positive ones."""
  if not values:
    return ''
  mean = statistics.mean(values)
  text = ('-' if mean < 0 else plus) + short(abs(mean))
  if len(values) > 1:
    text += f' ± {short(statistics.stdev(values))}'
  return text


def short(value: float) -> str:
  """'.254' of 0.254."""
  return f'{value:.3f}'.removeprefix('0')
