"""Which generated images are kept: by quality, and for balanced classes.

What is decided of an image must not depend on which others a process happens to
draw, or several processes would not make the same set as one. So the rule is
fixed before, from the same few candidates everywhere (number 0 and up), and is
then a function of an image's own measures and number.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.errors import UserError
from jaxseg.synthesis_draw import Drawn

KEEP = 0.9  # share that is kept if nothing else is said, as in DatasetGAN
SHOWN = 0.002  # share of the pixels from which on an image shows a class
RAREST = 0.1  # probability of acceptance that balancing does not go below
NEGATED = ('entropy', 'uncertainty')  # measures of which less is better
KEPT = 'kept'


class Settings(NamedTuple):
  """What is asked for.

  Attributes:
    seed: of all images; 0 to 2**31 - 1.
    truncation: psi; None: that of the stage's settings.
    batch_size: images at a time.
    rank_by: the measure that is the score, of 'entropy' and 'uncertainty' the
      negative. On digits 'uncertainty' told right labels from wrong ones better
      than 'd_m' did, and left the classes more alike.
    keep: share of the best scores that is kept, in (0, 1]; None: 0.9, or all
      where one of the next two says what is kept.
    min_score: lowest score that is kept, in place of `keep`.
    max_entropy: highest 'entropy' that is kept, in nats.
    balance: 0: classes are as frequent as they are drawn; 1: an image is
      accepted in inverse proportion to how many show its rarest class.
    calibrate: candidates that the rule is made from.
  """

  seed: int = 0
  truncation: float | None = None
  batch_size: int = 32
  rank_by: str = 'uncertainty'
  keep: float | None = None
  min_score: float | None = None
  max_entropy: float | None = None
  balance: float = 0.0
  calibrate: int = 256


class Rule(NamedTuple):
  """What decides; plain data, so that it can be written down.

  Attributes:
    rank_by: see `Settings`.
    min_score: lowest score that is kept; None: any.
    max_entropy: highest entropy that is kept; None: any.
    shown: share of the good candidates that show each class, K numbers.
    accept: probability that a good image with this rarest class is accepted, K
      numbers.
    rate: share of the candidates that is kept in the end.
  """

  rank_by: str
  min_score: float | None
  max_entropy: float | None
  shown: tuple[float, ...]
  accept: tuple[float, ...]
  rate: float


def check(settings: Settings) -> None:
  """Refuses values that cannot work.

  Raises:
    UserError: names the flag.
  """
  s = settings
  share = s.keep if s.keep is not None else KEEP
  wrong = [
    ('seed', s.seed, 0 <= s.seed < 2**31, 'a number from 0 to 2147483647'),
    ('batch_size', s.batch_size, s.batch_size >= 1, '1 or more'),
    ('keep', s.keep, 0 < share <= 1, 'a share above 0, up to 1 (all)'),
    ('balance', s.balance, 0 <= s.balance <= 1, 'a number from 0 to 1'),
    ('calibrate', s.calibrate, s.calibrate >= 16, '16 images or more'),
    (
      'truncation', s.truncation, s.truncation is None or s.truncation >= 0,
      'a number from 0 up, such as 0.7, and 1 for none',
    ),
    (
      'max_entropy', s.max_entropy, s.max_entropy is None or s.max_entropy > 0,
      'a number above 0, in nats',
    ),
  ]  # fmt: skip
  for name, value, fine, expected in wrong:
    if not fine:
      raise UserError(f'--{name} is {value}, expected {expected}; change it')
  if s.keep is not None and s.min_score is not None:
    raise UserError(
      f'--keep={s.keep} and --min_score={s.min_score} were both given, '
      'expected one of them, as both say which scores are kept; leave one out'
    )


def check_measure(rank_by: str, stage: str, names: Sequence[str]) -> None:
  """Refuses a score that a stage does not have.

  Raises:
    UserError: names those that there are.
  """
  if rank_by not in names:
    raise UserError(
      f'--rank_by={rank_by}: stage {stage} does not have that measure, '
      f'expected one of {", ".join(names)}; change it, or choose the stage '
      'that trained the generator for those of its discriminators'
    )


def score(name: str, measures: Mapping[str, Any]) -> Any:
  """Returns the measure that is the score, higher is better."""
  return -measures[name] if name in NEGATED else measures[name]


def shown(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns bool [N, K]: which classes labels [N, H, W] show."""
  return fractions(labels, num_classes) >= SHOWN


def fractions(labels: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns float64 [N, K]: shares of the classes among pixels not void."""
  counts = np.stack(
    [np.bincount(x.ravel(), minlength=256)[:num_classes] for x in labels]
  )
  return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def make_rule(
  draw: Callable[[np.ndarray], Drawn],
  settings: Settings,
  num_classes: int,
) -> Rule:
  """Draws the first candidates and makes the rule from them.

  Nothing is drawn where all are kept.

  Args:
    draw: from `synthesis_draw.compile_draw`.
    settings: what is asked for.
    num_classes: K.

  Raises:
    UserError: no candidate would be kept.
  """
  s, rank_by = settings, settings.rank_by
  limited = s.min_score is not None or s.max_entropy is not None
  keep = s.keep or (1.0 if limited else KEEP)
  if keep == 1 and not limited and not s.balance:
    ones = (1.0,) * num_classes
    return Rule(rank_by, None, None, ones, ones, 1.0)
  parts = [
    draw(np.arange(i, min(i + s.batch_size, s.calibrate)))
    for i in range(0, s.calibrate, s.batch_size)
  ]
  scores, entropies = (
    np.nan_to_num(np.concatenate(x), nan=worst)
    for x, worst in (
      ([score(rank_by, part.measures) for part in parts], -np.inf),
      ([part.measures['entropy'] for part in parts], np.inf),
    )
  )
  shows = np.concatenate([shown(p.labels, num_classes) for p in parts])
  lowest = s.min_score
  if lowest is None and keep < 1:
    lowest = float(np.sort(scores)[-math.ceil(keep * len(scores))])
  good = np.ones(len(scores), bool) if lowest is None else scores >= lowest
  if s.max_entropy is not None:
    good &= entropies <= s.max_entropy
  if not good.any():
    raise UserError(
      f'none of the first {len(good)} images passes --min_score={s.min_score} '
      f'and --max_entropy={s.max_entropy}, expected some: {rank_by} as a score '
      f'goes from {scores.min():.3g} to {scores.max():.3g} and the entropy '
      f'from {entropies.min():.3g} to {entropies.max():.3g}; change the limits'
    )
  frequency = shows[good].mean(0)
  accept = acceptance(frequency, s.balance)
  probability = [accept[_rarest(frequency, x)] for x in shows[good]]
  rate = float(np.sum(probability) / len(good))
  return Rule(
    rank_by, lowest, s.max_entropy, tuple(frequency.tolist()),
    tuple(accept.tolist()), rate,
  )  # fmt: skip


def acceptance(frequency: np.ndarray, balance: float) -> np.ndarray:
  """Returns the probability that an image with this rarest class is accepted.

  It is (lowest frequency / frequency)**balance, and at least 0.1, so that no
  more than ten images are drawn for one.

  Args:
    frequency: [K], share of images that show a class; that of classes which
      none shows counts as no lowest one.
    balance: see `Settings`.
  """
  seen = np.maximum(frequency, 1e-9)
  ratio = frequency[frequency > 0].min() / seen
  return np.clip(ratio**balance, RAREST, 1.0)


def _rarest(frequency, shows):
  """The class, of those that an image shows, that the fewest images show."""
  return int(np.where(shows, frequency, np.inf).argmin())


def decide(
  rule: Rule,
  seed: int,
  index: int,
  measures: Mapping[str, float],
  shows: np.ndarray,
) -> str:
  """Returns 'kept', or why an image is not: 'score', 'entropy', 'balance'.

  Args:
    rule: from `make_rule`.
    seed: of the images.
    index: number of the image.
    measures: its own.
    shows: bool [K], from `shown`.
  """
  value = score(rule.rank_by, measures)
  if rule.min_score is not None and not value >= rule.min_score:
    return 'score'
  if rule.max_entropy is not None and not (
    measures['entropy'] <= rule.max_entropy
  ):
    return 'entropy'
  accept = rule.accept[_rarest(np.asarray(rule.shown), shows)]
  if accept < 1 and np.random.default_rng([seed, index]).random() >= accept:
    return 'balance'
  return KEPT
