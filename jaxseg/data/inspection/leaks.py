"""The same image, or one much like it, in training and in scoring."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxseg.data.inspection import duplicates
from jaxseg.data.inspection.examine import Seen
from jaxseg.data.problems import Problem, some
from jaxseg.data.source import Source

SHOWN_PAIRS = 100


def in_both(
  source: Source, training: Sequence[str], scored: Sequence[str]
) -> Iterator[Problem]:
  """Yields images that, themselves or by their group, train and are scored."""
  trains = set(training)
  groups = {source.groups[id_] for id_ in training if id_ in source.groups}
  for id_ in scored:
    group = source.groups.get(id_)
    if id_ in trains or group in groups:
      what = 'the image' if id_ in trains else f'its group {group!r}'
      yield Problem(
        'refuse', 'leak', source.path(id_),
        f'{what} is both in a split that trains and in one that is scored, '
        'expected one side; correct splits.json',
      )  # fmt: skip


def about_copies(
  source: Source,
  seen: Mapping[str, Seen],
  training: Sequence[str],
  scored: Sequence[str],
  allow_leaks: bool = False,
) -> Iterator[Problem]:
  """Yields the same, or nearly the same, image in training and scoring.

  Args:
    source: the data set.
    seen: what was read, by id; images of one colour do not count.
    training: ids.
    scored: ids.
    allow_leaks: see `config.data.allow_leaks`.
  """
  usable = {i: s for i, s in seen.items() if s.size and not s.flat}
  digests = {id_: s.digest for id_, s in usable.items()}
  pairs = list(duplicates.same(digests, training, scored))
  for train, score in pairs:
    labels = usable[train].label_digest, usable[score].label_digest
    other = ' (and another label)' * (all(labels) and labels[0] != labels[1])
    yield Problem(
      'note' if allow_leaks else 'refuse', 'leak', source.path(score),
      f'the image is scored, and {source.path(train)} that trains has the '
      f'same pixels{other}, expected different images; remove one, put both '
      'in one group, or allow it with --config.data.allow_leaks=True',
    )  # fmt: skip
  known = set(pairs)
  near = [p for p in _near(usable, training, scored) if p not in known]
  for train, score in near[:SHOWN_PAIRS]:
    yield Problem(
      'note', 'near_duplicate', source.path(score),
      f'the image is scored and looks like {source.path(train)}, which '
      'trains, expected different images; look at both',
    )  # fmt: skip
  if len(near) > SHOWN_PAIRS:
    yield Problem(
      'note', 'near_duplicate', source.name,
      f'{len(near)} pairs of scored and training images look alike, expected '
      f'none; the first {SHOWN_PAIRS} are listed',
    )  # fmt: skip
  yield from _repeats(source, usable, digests, training, 'training')
  yield from _repeats(source, usable, digests, scored, 'scored')


def _near(usable, training, scored):
  left = [id_ for id_ in dict.fromkeys(training) if id_ in usable]
  right = [id_ for id_ in dict.fromkeys(scored) if id_ in usable]
  if not left or not right:
    return []
  looks = [
    tuple(map(np.array, zip(*(usable[i].look for i in ids), strict=True)))
    for ids in (left, right)
  ]
  return [(left[a], right[b]) for a, b in duplicates.near_pairs(*looks)]


def _repeats(source, usable, digests, ids, what):
  """The same image twice on one side, with the same or another label."""
  pairs = list(duplicates.repeats(digests, dict.fromkeys(ids)))
  if pairs:
    shown = [f'{b} as {a}' for a, b in pairs]
    yield Problem(
      'note', 'duplicates', source.name,
      f'{len(pairs)} {what} images are the same as others there '
      f'({some(shown)}), expected different ones; they count twice',
    )  # fmt: skip
  for a, b in pairs:
    labels = usable[a].label_digest, usable[b].label_digest
    if all(labels) and labels[0] != labels[1]:
      yield Problem(
        'note', 'two_labels', source.path(b),
        f'{source.path(a)} is the same image with another label, expected '
        'one; look at both',
      )  # fmt: skip
