"""What is wrong with a data set as a whole, once all its files were read."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxseg.data import fit
from jaxseg.data.formats.images import VOID
from jaxseg.data.inspection import colour_checks
from jaxseg.data.inspection.examine import Seen, one_based
from jaxseg.data.problems import Problem, some
from jaxseg.data.source import Source

MAX_EMPTY = 0.9  # share of labels that may be all 0
FEW_BETWEEN = 8  # ids that may look interpolated
DOMINANT = 0.999  # share of the pixels of one class
FIT_CHOICES = (
  '--config.data.fit=crop (the centre), pad (with void) or squeeze (sides '
  'scaled apart)'
)


class Statistics(NamedTuple):
  """Counts over a data set.

  Attributes:
    images: that can be read.
    labels: that can be read.
    sizes: images by (height, width).
    modes: images by how their file stores pixels, where that is known.
    class_pixels: int64 [256], pixels of each id in all labels.
    class_images: int64 [256], labels that hold each id.
    beside_class: int64 [256], pixels that are not void in those labels.
  """

  images: int
  labels: int
  sizes: dict[tuple[int, int], int]
  modes: dict[str, int]
  class_pixels: np.ndarray
  class_images: np.ndarray
  beside_class: np.ndarray


def statistics(seen: Sequence[Seen]) -> Statistics:
  """Counts what was seen."""
  read = [s for s in seen if s.size]
  pixels = [s.pixels for s in read if s.pixels is not None]
  pixels = np.array(pixels, np.int64).reshape(-1, 256)
  return Statistics(
    images=len(read),
    labels=len(pixels),
    sizes=dict(Counter(s.size for s in read).most_common()),
    modes=dict(Counter(m for s in read for m in s.modes).most_common()),
    class_pixels=pixels.sum(0),
    class_images=(pixels > 0).sum(0),
    beside_class=((pixels > 0) * pixels[:, :VOID].sum(1, keepdims=True)).sum(0),
  )


def about_labels(
  source: Source, labelled: Sequence[Seen], scored: Sequence[Seen]
) -> Iterator[Problem]:
  """Yields what is odd about the labels taken together.

  Args:
    source: the data set.
    labelled: images whose labels train.
    scored: images whose labels are compared with.
  """
  yield from colour_checks.about_colours(source, [*labelled, *scored])
  train, both = statistics(labelled), statistics([*labelled, *scored])
  found = set(np.flatnonzero(both.class_pixels).tolist())
  if found == {0, VOID}:
    yield Problem(
      'refuse', 'black_and_white', source.name,
      f'the {both.labels} label files hold only 0 and 255, and 255 means void '
      'here, expected class ids; if the white pixels of black-and-white masks '
      'are class 1, put {"values": {"255": 1}} into classes.json',
    )  # fmt: skip
    return
  yield from _about_files(source, labelled, 'labelled', train)
  yield from _about_files(source, scored, 'scored', statistics(scored))
  yield from _mixed_white(source, [*labelled, *scored], both)
  yield from _interpolated(source, [*labelled, *scored], both)
  if not train.labels:
    return
  yield from _classes_missing(source, train, both)
  shares = train.class_pixels[:VOID] / max(1, train.class_pixels[:VOID].sum())
  if shares.max() > DOMINANT:
    yield Problem(
      'note', 'dominant_class', source.name,
      f'{shares.max():.2%} of the labelled pixels are '
      f'{_name(source, int(shares.argmax()))}, expected classes less uneven; '
      'losses that weight classes (Dice) or larger crops may help',
    )  # fmt: skip
  if train.labels == 1:
    yield Problem(
      'note', 'one_label', source.name,
      'only one labelled image trains, expected some; each batch repeats it',
    )  # fmt: skip


def _about_files(source, seen, kind, counts):
  """Labels that say little: all 0, all void, or classes lost when resized."""
  empty = [s.id for s in seen if _only(s, 0)]
  if empty:
    many = kind == 'labelled' and len(empty) > MAX_EMPTY * counts.labels
    yield Problem(
      'refuse' if many else 'note', 'empty_labels', source.name,
      f'{len(empty)} of {counts.labels} {kind} images show nothing but '
      f'{_name(source, 0)} ({some(empty)}), expected classes in most; see '
      'whether their label files are whole',
    )  # fmt: skip
  for s in seen:
    if _only(s, VOID):
      yield Problem(
        'refuse' if kind == 'labelled' else 'note', 'all_void',
        source.path(s.id),
        'its label is all void (255), expected classes; remove the label file '
        'or draw it',
      )  # fmt: skip
  lost = [s.lost for s in seen if s.lost is not None]
  lost = np.array(lost, bool).reshape(-1, 256).sum(0)[:VOID]
  for i in np.flatnonzero(lost > counts.class_images[:VOID] / 2):
    yield Problem(
      'note', 'lost_class', source.name,
      f'{_name(source, i)} vanishes in {lost[i]} of {counts.class_images[i]} '
      f'{kind} images at the resolution of the networks, expected some pixels '
      'of it; raise --config.data.resolution',
    )  # fmt: skip


def _only(seen, id_):
  """Whether the label shows one id; void beside it does not count."""
  if seen.pixels is None or not seen.pixels[id_]:
    return False
  return np.count_nonzero(seen.pixels[:VOID]) == (id_ != VOID)


def _classes_missing(source, train, both):
  """Classes that no labelled image shows, and ids that begin at 1."""
  k = len(source.class_names)
  names = [
    _name(source, i) + ' (only in scored images)' * bool(both.class_pixels[i])
    for i in range(k)
    if not train.class_pixels[i]
  ]
  if names:
    yield Problem(
      'note', 'class_missing', source.name,
      f'no labelled image shows {some(names, 20)}; more labels or another seed '
      'may',
    )  # fmt: skip
  if k > 2 and not both.class_pixels[0] and both.class_pixels[1:k].all():
    yield Problem(
      'note', 'one_based', source.name,
      f'no label holds 0, all other ids to {k - 1} occur, expected ids from '
      f'0; if they count from 1 put {one_based(k - 1)} into '
      'classes.json',
    )  # fmt: skip


def _mixed_white(source, seen, both):
  """Some masks of 0 and 255 among others of 0 and 1."""
  if len(source.class_names) != 2:
    return
  with_label = [s for s in seen if s.pixels is not None]
  white = [s for s in with_label if s.pixels[VOID] and not s.pixels[1]]
  white = [s.id for s in white if s.pixels[0]]
  mixed = [s for s in with_label if s.pixels[VOID] and s.pixels[1]]
  if white and not mixed and both.class_pixels[1]:
    few = len(white) <= both.class_images[1]
    yield Problem(
      'note' if few else 'refuse', 'black_and_white', source.name,
      f'{len(white)} labels hold 0 and 255 ({some(white)}), the others 0 and '
      '1, and 255 means void, expected one coding; if white is class 1, put '
      '{"values": {"1": 1, "255": 1}} into classes.json',
    )  # fmt: skip


def _interpolated(source, seen, both):
  """Ids that look interpolated in nearly all labels that hold them."""
  between = [s.between for s in seen if s.between is not None]
  between = np.array(between, bool).reshape(-1, 256).sum(0)
  found = np.flatnonzero(between >= 0.9 * np.maximum(both.class_images, 1))
  present = np.count_nonzero(both.class_images[:VOID])
  if len(found) > max(FEW_BETWEEN, present / 4):
    yield Problem(
      'refuse', 'interpolated_ids', source.name,
      f'the labels hold {present} ids, {len(found)} of them only in thin '
      'lines between lower and higher ids, as in photographs or after JPEG or '
      'smooth resizing, expected class ids; export the labels again as PNG, '
      'resized with nearest neighbour',
    )  # fmt: skip
    return
  for i in found:
    yield Problem(
      'note', 'interpolated_ids', source.name,
      f'{_name(source, i)} occurs only in thin lines between lower and higher '
      f'ids in {between[i]} of {both.class_images[i]} labels, as after smooth '
      'resizing, expected a class with an area; see that labels are resized '
      'with nearest neighbour',
    )  # fmt: skip


def about_images(
  source: Source, seen: Sequence[Seen], target: tuple[int, int] | None
) -> Iterator[Problem]:
  """Yields notes on images of one colour, and on those to be enlarged.

  Args:
    source: the data set.
    seen: its images.
    target: (height, width) that the networks see; None: not decided.
  """
  flat = [s.id for s in seen if s.flat]
  if flat:
    yield Problem(
      'note', 'flat', source.name,
      f'{len(flat)} of {len(seen)} images have one colour only '
      f'({some(flat)}), expected pictures; remove them',
    )  # fmt: skip
  height, width = target or (0, 0)
  small = [
    s.id for s in seen if s.size and (s.size[0] < height or s.size[1] < width)
  ]
  if small:
    yield Problem(
      'note', 'small_images', source.name,
      f'{len(small)} of {len(seen)} images are smaller than the '
      f'{width}x{height} of the networks ({some(small)}), expected '
      'at least that; they are enlarged',
    )  # fmt: skip


def about_shapes(
  source: Source,
  seen: Sequence[Seen],
  severity: str = 'refuse',
  target: tuple[int, int] | None = None,
) -> Iterator[Problem]:
  """Yields which images have another shape than the networks see, if any.

  Args:
    source: the data set.
    seen: its images.
    severity: of the problem.
    target: (height, width) that the networks see; None: some square.
  """
  sizes = Counter(s.size for s in seen if s.size)
  other = {
    size: n
    for size, n in sizes.most_common()
    if not fit.same_aspect(size, target or 1)
  }
  if not other:
    return
  kind, are, squares = 'not_square', 'not square', 'squares'
  if target and target[0] != target[1]:
    size = f'{target[1]}x{target[0]}'
    kind, are = 'other_aspect', f'of another aspect than the {size} of networks'
    squares = 'the same'
  shown = [f'{w}x{h} ({n})' for (h, w), n in other.items()]
  yield Problem(
    severity, kind, source.name,
    f'{sum(other.values())} of {sizes.total()} images are {are} '
    f'({some(shown)}), expected {squares}, or a choice of how they become so; '
    f'set {FIT_CHOICES}',
  )  # fmt: skip


def _name(source, id_):
  names = source.class_names
  return repr(names[id_]) if id_ < len(names) else f'id {id_}'
