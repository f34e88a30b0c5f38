"""All that can be wrong with a data set, found before any expensive work."""

import hashlib
import itertools
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxseg.data import annotated, fit, problems
from jaxseg.data import splits as data_splits
from jaxseg.data.examples import Examples
from jaxseg.data.inspection import (
  drawn_checks,
  leaks,
  set_checks,
  synthetic_checks,
)
from jaxseg.data.inspection.examine import Seen
from jaxseg.data.inspection.look import Role, look_through
from jaxseg.data.inspection.set_checks import Statistics as Statistics
from jaxseg.data.problems import Problem
from jaxseg.data.source import Source
from jaxseg.data.splits import Splits
from jaxseg.errors import DataError, UserError

ERRORS_SHOWN = 5
LINES_SHOWN = 20


def check(
  source: Source,
  splits: Splits,
  data_config: Any,
  report: str | os.PathLike | None = None,
) -> Splits:
  """Reads everything that will be used, before any expensive work.

  Refused are: images and labels of labelled and scored images that cannot be
  read, labels that are missing, of another size than their image, or with ids
  of no class; masks of 0 and 255 alone; labelled images that are void, or
  nearly all empty; images of another aspect while `config.data.fit` is '';
  an image that trains and, with the same pixels, is scored. Unlabelled images
  that cannot be read are left out, up to `config.data.max_bad_fraction` of
  them. All else is mentioned on stderr. What was read stays in the cache. The
  labels of labelled images are the drawn ones where people drew any; synthetic
  images are read as labelled ones.

  Args:
    source: the data set.
    splits: what will be used of it.
    data_config: `config.data`.
    report: a CSV file for all that was found, see `problems.write_report`.

  Returns:
    The splits without the unlabelled images that were left out, their hash
    and the content of all their files but those of other domains.

  Raises:
    UserError: a field of the config.
    DataError: names the first few mistakes and counts the others.
  """
  _check_config(source, splits, data_config)
  made, found = synthetic_checks.look_at(source, data_config)
  scored = _joined([splits.val, splits.test, *splits.ood.values()])
  labelled = set(splits.labelled)
  strict = labelled.union(scored)
  target = fit.size(data_config)
  trains = annotated.view(source, labelled)
  seen = look_through(
    trains,
    {
      id_: Role('refuse' if id_ in strict else 'skip', id_ in strict)
      for id_ in _joined([splits.labelled, splits.unlabelled, scored])
    }
    | dict.fromkeys(splits.labelled, drawn_checks.role(source)),
    target,
    _keep(source, labelled, data_config),
  )
  seen = drawn_checks.with_tags(source, seen)
  found += source.problems
  found += itertools.chain.from_iterable(s.problems for s in seen.values())
  bad = {i for i in splits.unlabelled if i not in strict and not seen[i].size}
  found += _too_many_bad(source, splits, bad, found, data_config)
  found += set_checks.about_labels(
    trains,
    [s for i, s in seen.items() if i in labelled],
    [seen[i] for i in scored if i not in labelled],
  )
  every = list(seen.values())
  found += set_checks.about_images(source, every, target)
  if not data_config.fit:
    found += set_checks.about_shapes(source, every, target=target)
  training = _joined([splits.labelled, splits.unlabelled])
  found += leaks.about_copies(
    synthetic_checks.with_paths(source), seen | made, [*training, *made],
    scored, data_config.allow_leaks,
  )  # fmt: skip
  if report is not None:
    problems.write_report(report, found)
  _refuse(found, report)
  tell(found, report)
  left = tuple(id_ for id_ in splits.unlabelled if id_ not in bad)
  kept = _joined([splits.labelled, left, splits.val, splits.test])
  content = _content({id_: seen[id_] for id_ in kept} | made)
  splits = splits._replace(unlabelled=left, content=content)
  return data_splits.rehash(splits)


def check_further(
  source: Source,
  labelled: Sequence[str],
  scored: Sequence[str],
  data_config: Any,
) -> None:
  """Refuses images that are scored after training as `check` would have.

  They are compared with the labelled images, not with the unlabelled: these
  may be many more than what is scored. Any shape will do: how images get that
  of the networks was decided in training.

  Args:
    source: the data set, the further sets beside it.
    labelled: ids that trained.
    scored: further ids.
    data_config: `config.data`.

  Raises:
    DataError: names the first few mistakes and counts the others.
  """
  target = fit.size(data_config)
  roles = dict.fromkeys(scored, Role('refuse', True))
  roles |= dict.fromkeys(labelled, drawn_checks.role(source))
  trains = annotated.view(source, set(labelled))
  keep = _keep(source, set(labelled), data_config)
  seen = look_through(trains, roles, target, keep)
  further = [seen[id_] for id_ in scored]
  found = list(itertools.chain.from_iterable(s.problems for s in further))
  trained = [seen[id_] for id_ in labelled]
  found += set_checks.about_labels(trains, trained, further)
  found += set_checks.about_images(source, further, target)
  found += leaks.about_copies(
    source, seen, labelled, scored, data_config.allow_leaks
  )
  _refuse(found, None)
  tell(found, None)


def inspect(
  source: Source,
  ids: Sequence[str] | None = None,
  *,
  target: tuple[int, int] | None = None,
  policy: str | None = None,
) -> tuple[list[Problem], Statistics]:
  """Reads a whole data set and finds everything at once; see `check`.

  Every label there is is read. Images that only train (not in 'val', 'test'
  or an 'ood' split) may lack one.

  Args:
    source: the data set.
    ids: of the images to look at; None: all in its splits.
    target: (height, width) that networks will see; classes lost there are
      found. None: not decided.
    policy: `config.data.fit`; None: not decided, so that other shapes than
      theirs, or squares, are only noted.

  Returns:
    The problems, the gravest first, and the counts.
  """
  if ids is None:
    ids = _joined(source.splits.values())
  wanted = set(ids)
  scored = [i for i in _joined(_scored(source)) if i in wanted]
  training = [i for i in _joined(_training(source)) if i in wanted]
  needed = set(scored)
  roles = {}
  for id_ in dict.fromkeys(ids):
    needs_label = id_ in needed or source.has_label(id_)
    roles[id_] = Role('refuse' if needs_label else 'skip', needs_label)
  seen = look_through(source, roles, target)
  found = [*source.problems]
  found += itertools.chain.from_iterable(s.problems for s in seen.values())
  every = list(seen.values())
  found += set_checks.about_labels(
    source,
    [s for s in every if s.id not in needed],
    [s for s in every if s.id in needed],
  )
  found += set_checks.about_images(source, every, target)
  if not policy:
    severity = 'note' if policy is None else 'refuse'
    found += set_checks.about_shapes(source, every, severity, target)
  if source.drawn is not None:
    found += drawn_checks.about_drawn(source, training, target)
  found += leaks.in_both(source, training, scored)
  found += leaks.about_copies(source, seen, training, scored)
  return problems.in_order(found), set_checks.statistics(every)


def tell(found: Sequence[Problem], report: str | os.PathLike | None) -> None:
  """Prints what was found to stderr, the first two of each sort."""
  by_kind = {}
  for problem in problems.in_order(found):
    by_kind.setdefault((problem.severity, problem.kind), []).append(problem)
  lines = []
  for (severity, _), group in by_kind.items():
    word = 'left out: ' * (severity == 'skip')
    lines += [f'{word}{problem}' for problem in group[:2]]
    if len(group) > 2:
      lines[-1] += f' (and {len(group) - 2} more like these)'
  for line in lines[:LINES_SHOWN]:
    print(f'jaxseg: {line}', file=sys.stderr)
  if report is not None and found:
    print(f'jaxseg: all is listed in {report}', file=sys.stderr)


def _keep(source, labelled, data_config):
  """Returns what caches full labels and images that were read."""
  keep = Examples(source, data_config).keep
  if source.drawn is None:
    return keep

  def keep_full(kind, id_, array):
    if kind == 'image' or id_ not in labelled:
      keep(kind, id_, array)

  return keep_full


def _too_many_bad(source, splits, bad, found, data_config) -> Iterator[Problem]:
  """Refuses when more unlabelled images are bad than may be."""
  never = sum(p.severity == 'skip' for p in source.problems)
  total, allowed = len(splits.unlabelled) + never, data_config.max_bad_fraction
  count = len(bad) + never
  if count > allowed * total:
    first = next(p for p in found if p.severity == 'skip')
    yield Problem(
      'refuse', 'too_many_bad', source.name,
      f'{count} of {total} unlabelled images cannot be used (first {first}), '
      f'expected at most {allowed:.2%} (config.data.max_bad_fraction); mend '
      'or remove them, or set --config.data.max_bad_fraction='
      f'{min(1, 1.01 * count / total):.2g}',
    )  # fmt: skip


def _refuse(found, report):
  """Raises the first few mistakes that are refused."""
  refused = [p for p in problems.in_order(found) if p.severity == 'refuse']
  if not refused:
    return
  more = len(refused) - ERRORS_SHOWN
  message = '; '.join(map(str, refused[:ERRORS_SHOWN]))
  if more > 0:
    message += f'; and {more} more mistakes ({problems.count(refused)})'
  if report is not None:
    message += f'; all are listed in {report}'
  raise DataError(message, refused[0].kind)


def _content(seen: Mapping[str, Seen]) -> str:
  """Stands for the pixels of images and labels."""
  parts = [
    id_.encode('utf-8', 'backslashreplace') + s.digest + s.label_digest
    for id_, s in sorted(seen.items())
  ]
  whole = b'\n'.join(parts)
  return hashlib.blake2b(whole, digest_size=8).hexdigest()


def _joined(parts):
  return list(dict.fromkeys(itertools.chain.from_iterable(parts)))


def _scored(source):
  return [v for k, v in source.splits.items() if _is_scored(k)]


def _training(source):
  return [v for k, v in source.splits.items() if not _is_scored(k)]


def _is_scored(name):
  return name in ('val', 'test') or name.startswith('ood')


def _check_config(source, splits, data_config):
  fit.check_size(data_config)
  if data_config.channels not in (1, 3):
    raise UserError(
      f'config.data.channels is {data_config.channels}, expected 1 (grey) or '
      '3 (RGB); change --config.data.channels'
    )
  training = _joined([splits.labelled, splits.unlabelled])
  scored = _joined([splits.val, splits.test, *splits.ood.values()])
  n = len(training) * (1 + data_config.workers) + len(scored)
  needed = n * math.prod(fit.size(data_config)) * (data_config.channels + 1)
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if data_config.cache and needed > 0.8 * total:
    raise UserError(
      f'config.data.cache would keep {needed / 2**30:.1f} GiB of images, '
      f'expected less than 80 % of the {total / 2**30:.1f} GiB of memory; '
      'set --config.data.cache=False or lower --config.data.resolution'
    )
