"""What is wrong with weak labels that people drew."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxseg.data import annotated
from jaxseg.data.formats.images import VOID
from jaxseg.data.inspection import duplicates, look
from jaxseg.data.inspection.examine import Seen
from jaxseg.data.problems import Problem, some
from jaxseg.data.source import Source
from jaxseg.errors import UserError

COMPARED = 100  # annotations that are compared with full masks
MOST_APART = 0.1  # share of their pixels that may have another class there


def role(source: Source) -> look.Role:
  """How labelled images that train are looked at."""
  drawn = source.drawn
  if drawn is None:
    return look.Role('refuse', True)
  return look.Role('refuse', drawn.tags is None, drawn.kind == 'polygons')


def with_tags(source: Source, seen: Mapping[str, Seen]) -> dict[str, Seen]:
  """Adds the tags to what was seen, as a digest of the label."""
  tags = (source.drawn.tags if source.drawn else None) or {}
  return {
    id_: s._replace(label_digest=duplicates.digest(tags[id_]))
    if id_ in tags and not s.label_digest
    else s
    for id_, s in seen.items()
  }


def about_drawn(
  source: Source, training: Sequence[str], target: tuple[int, int] | None
) -> Iterator[Problem]:
  """Yields what is odd about the annotations of the images that train.

  Args:
    source: the data set, its images checked already.
    training: ids of the images that may train.
    target: (height, width) that networks will see; None: not decided.
  """
  drawn = source.drawn
  ids = [id_ for id_ in training if id_ in drawn.paths]
  where = f'{source.name} ({drawn.kind})'
  if not ids:
    yield Problem(
      'refuse', 'no_annotations', where,
      f'none of {len(training)} images that train has one, expected some; see '
      'that they are named as the images, and which images the splits name',
    )  # fmt: skip
    return
  if len(ids) < len(training):
    yield Problem(
      'note', 'no_annotations', where,
      f'{len(training) - len(ids)} of {len(training)} images that train have '
      'none, expected that of images without labels; they count as unlabelled',
    )  # fmt: skip
  if drawn.tags is not None:
    shown = np.sum([drawn.tags[id_] for id_ in ids], 0)
  else:
    trains = annotated.view(source)
    seen = look.look_through(trains, dict.fromkeys(ids, role(source)), target)
    found = [p for s in seen.values() for p in s.problems]
    of_annotations = set(drawn.paths.values())
    yield from (p for p in found if p.path in of_annotations)
    for s in seen.values():
      if s.pixels is not None and not s.pixels[:VOID].any():
        yield Problem(
          'refuse', 'all_void', drawn.paths[s.id],
          'nothing is annotated in it (all is 255), expected classes; remove '
          'the file or draw it',
        )  # fmt: skip
    pixels = [s.pixels for s in seen.values() if s.pixels is not None]
    shown = np.sum([np.zeros(256, int), *pixels], 0)
    yield from _apart(source, trains, ids, where)
  for name, count in zip(source.class_names, shown, strict=False):
    if not count:
      what = 'is a tag of no image' if drawn.tags else 'has no annotated pixel'
      yield Problem(
        'note', 'class_missing', where,
        f'the class {name!r} {what}{" in any image" * (not drawn.tags)}, '
        'expected each class in some; it cannot be learned',
      )  # fmt: skip


def _apart(source, trains, ids, where):
  """Notes that annotations and full masks contradict each other."""
  both = [id_ for id_ in ids if source.has_label(id_)]
  apart = {}
  for id_ in both[:: max(1, -(-len(both) // COMPARED))]:
    try:
      weak, full = trains.label(id_), source.label(id_)
    except UserError:  # told above
      continue
    if weak.shape == full.shape:
      known = (weak != VOID) & (full != VOID)
      apart[id_] = (weak != full)[known].sum(), known.sum()
  wrong, total = np.sum([(0, 0), *apart.values()], 0)
  if source.drawn.kind != 'boxes' and wrong > MOST_APART * total:
    worst = sorted(apart, key=lambda i: -apart[i][0] / max(1, apart[i][1]))
    yield Problem(
      'note', 'contradictions', where,
      f'{wrong / total:.0%} of the annotated pixels have another class in the '
      f'full masks (most in {some(worst, 3)}), expected nearly none; see '
      'whether one of both is shifted, mirrored or of other ids',
    )  # fmt: skip
