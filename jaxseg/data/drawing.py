"""Who is drawn: whole groups, each class early, the few within the many."""

import contextlib
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any

import numpy as np

from jaxseg.data import problems
from jaxseg.data.examples import num_threads
from jaxseg.data.source import Source
from jaxseg.errors import DataError, UserError

# Label files read to find out which images show which classes; those of a
# prepared set are known without.
MAX_STRATIFY_LABELS = 5000

Ids = tuple[str, ...]


def grouped(source: Source, ids: Iterable[str]) -> dict[str, list[str]]:
  """Returns {group: ids}, in the order of the ids."""
  groups = {}
  for id_ in ids:
    groups.setdefault(source.groups.get(id_, id_), []).append(id_)
  return groups


def take(
  source: Source,
  pool: Sequence[str],
  fraction: float,
  budget: Ids,
  rng: np.random.Generator,
) -> tuple[Ids, Ids]:
  """Splits `pool` into (labels of a fraction of the groups, the rest).

  Groups of `budget` are not taken, nor those of other official budgets while
  that is possible.
  """
  groups = grouped(source, filter(source.has_label, pool))
  count = round(fraction * len(groups))
  kept = set(grouped(source, budget))
  # The other budgets too, while that is possible: each number of labels is
  # then scored on the same images.
  for ids in sorted(source.budgets.values(), key=len):
    more = kept.union(grouped(source, ids))
    if len(set(groups) - more) > count:
      kept = more
  able = [g for g in groups if g not in kept]
  able = [able[i] for i in rng.permutation(len(able))]
  # Rounded, yet never none of a set that has groups to spare.
  count = max(count, int(fraction > 0 and len(able) > 3))
  taken = {id_ for g in able[:count] for id_ in groups[g]}
  return (
    tuple(id_ for id_ in pool if id_ in taken),
    tuple(id_ for id_ in pool if id_ not in taken),
  )


def check_fraction(data_config: Any) -> None:
  """Refuses `config.data.labelled_fraction` outside of [0, 1].

  Raises:
    UserError: names it.
  """
  fraction = data_config.labelled_fraction
  if not 0 <= fraction <= 1:
    raise UserError(
      f'config.data.labelled_fraction is {fraction}, must be from 0 to 1: 0.2 '
      'for 20 % of the labels; 0 for config.data.num_labelled of them.'
    )


def number_labelled(
  source: Source, pool: Sequence[str], data_config: Any
) -> int:
  """Returns how many images or groups may use their labels; 0: all.

  Args:
    source: the data set.
    pool: ids that train.
    data_config: `config.data`; a `labelled_fraction` above 0 is that part,
      rounded, of the images or groups in `pool` with labels, but at least one.
  """
  fraction = data_config.labelled_fraction
  if not fraction:
    return data_config.num_labelled
  able = [id_ for id_ in pool if source.has_label(id_)]
  by_group = data_config.labelled_by == 'group'
  there = len(grouped(source, able)) if by_group else len(able)
  asked = max(1, round(fraction * there))
  return 0 if asked >= there else asked


def labelled(
  source: Source,
  pool: Sequence[str],
  data_config: Any,
  n: int,
  budget: Ids,
  seed: int,
) -> Ids:
  """Returns the ids whose labels may be used: `budget`, else drawn.

  Args:
    source: the data set.
    pool: ids that train.
    data_config: `config.data`.
    n: see `number_labelled`.
    budget: of `n` images or groups, or ().
    seed: of the draw.

  Raises:
    UserError: fewer labels than are asked for; a budget outside `pool`.
  """
  by_group = data_config.labelled_by == 'group'
  able = [id_ for id_ in pool if source.has_label(id_)]
  if not able:
    raise UserError(
      f'{source.name} has no labelled image to train on, expected at least '
      f'one; {_why_no_labels(source)}'
    )
  groups = list(grouped(source, able).values())
  there = len(groups) if by_group else len(able)
  if n > there:
    raise UserError(
      f'config.data.num_labelled is {n}, but {source.name} has {there} '
      f'labelled {data_config.labelled_by}s to train on, expected no more '
      'than that; lower --config.data.num_labelled, or set it to 0 for all'
    )
  if n == 0:
    return tuple(able)
  missing = sorted(set(budget) - set(able))
  if missing:
    raise UserError(
      f'{source.path(missing[0])}: the image is in budget {str(n)!r} but not '
      'among the labelled images to train on, expected budgets to be parts of '
      "split 'train'; correct splits.json"
    )
  if budget:
    return budget
  ordered = _stratified_order(source, groups, seed, n)
  if by_group:
    return tuple(id_ for group in ordered[:n] for id_ in group)
  drawn = []
  for group in ordered:
    if len(drawn) < n:
      drawn += _in_fair_order(source, group, seed, n - len(drawn))
  return tuple(drawn[:n])


def _in_fair_order(source, ids, seed, n):
  """Orders a group: the first slices of a volume alone may show nothing."""
  if len(ids) == 1:
    return ids
  ordered = _stratified_order(source, [[id_] for id_ in ids], seed, n)
  return [id_ for (id_,) in ordered]


def _why_no_labels(source):
  """Names the first problem of label files, else says where they belong."""
  reasons = [
    p
    for p in source.problems
    if p.severity == 'refuse' or p.kind == 'no_labels'
  ]
  if not reasons and source.drawn is not None:
    return (
      'of the images that train, annotate some where config.data.weak.drawn '
      'says'
    )
  if not reasons:
    return 'put masks named as the images into labels/'
  more = len(reasons) - 1
  return f'{problems.in_order(reasons)[0]}' + f' (and {more} more)' * bool(more)


def budget(source: Source, data_config: Any, n: int) -> Ids:
  """Returns the official ids for n images or groups, or ()."""
  ids = source.budgets.get(str(n), ())
  by_group = data_config.labelled_by == 'group'
  held = len(grouped(source, ids)) if by_group else len(ids)
  return ids if held == n else ()


def _stratified_order(source, groups, seed, n):
  """Orders groups of ids so that each of the first n beginnings is fair.

  The next group is one that shows the class that is furthest behind its
  frequency, the rarest first; so each class comes once before any comes
  twice, and then in proportion.
  """
  rng = np.random.default_rng([seed, 2])
  groups = [groups[i] for i in rng.permutation(len(groups))]
  k = len(source.class_names)
  known = source.in_memory or source.classes_in
  limit = np.inf if known else MAX_STRATIFY_LABELS
  # Whole groups, as long as their labels stay within the limit.
  read = np.cumsum([len(group) for group in groups])
  some = groups[: max(1, np.searchsorted(read, limit, 'right'))]
  with futures.ThreadPoolExecutor(num_threads()) as pool:
    shown = list(pool.map(lambda g: _classes_shown(source, g)[:k], some))
  shown = np.array(shown)
  return [groups[i] for i in _fair_order(shown, len(groups), n)]


def _classes_shown(source, ids):
  """Returns bool [256]: which class ids the labels of a group hold."""
  if source.classes_in:
    return np.any([source.classes_in(id_) for id_ in ids], 0)
  row = np.zeros(256, bool)
  for id_ in ids:
    # A damaged file is told of, with all others, when the set is checked.
    with contextlib.suppress(DataError):
      row |= np.bincount(source.label(id_).ravel(), minlength=256) > 0
  return row


def _fair_order(shown, total, n):
  """Orders 0..total-1, n with care; shown: bool [m, K], classes of 0..m-1."""
  left = np.ones(len(shown), bool)
  frequency = shown.mean(0)
  count = np.zeros(shown.shape[1])
  order = []
  while left.any() and len(order) < n:
    open_ = (shown & left[:, None]).any(0)
    if not open_.any():
      break
    behind = np.where(open_, count / np.maximum(frequency, 1e-9), np.inf)
    rarest = np.where(behind == behind.min(), frequency, np.inf)
    pick = int(np.flatnonzero(left & shown[:, rarest.argmin()])[0])
    order.append(pick)
    left[pick] = False
    count += shown[pick]
  order += list(np.flatnonzero(left))
  return order + list(range(len(shown), total))
