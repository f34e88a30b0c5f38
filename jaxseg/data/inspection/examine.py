"""One image and its label under the magnifier."""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from jaxseg.data import problems
from jaxseg.data.formats import images
from jaxseg.data.inspection import duplicates
from jaxseg.data.problems import Problem
from jaxseg.data.source import Source
from jaxseg.errors import DataError, UserError

MIN_SIDE = 8  # pixels; a smaller image shows nothing
ELONGATED = 4  # long by short side that is mentioned
FEW = 0.1  # share of a label that a suspicious id holds at most
TOUCHING = 0.9  # share of an id's pixels between lower and higher ones


class Seen(NamedTuple):
  """What is known of one image once it was read.

  Attributes:
    id: of the image.
    problems: found in its files.
    size: (height, width); None: it cannot be read.
    modes: how the file stores its pixels, where that is known.
    digest: stands for the pixels.
    look: see `duplicates.look`.
    flat: whether all pixels are equal.
    pixels: int64 [256], pixels of each id in the label; None: no label.
    label_digest: stands for the label.
    between: bool [256], ids that look interpolated, see `interpolated`.
    lost: bool [256], ids that are gone at the size that the networks see.
    palette: colour of each id in the label, where its file is indexed.
    colours: of a label file whose colours stand for no ids.
  """

  id: str
  problems: tuple[Problem, ...]
  size: tuple[int, int] | None = None
  modes: tuple[str, ...] = ()
  digest: bytes = b''
  look: tuple[np.uint64, np.ndarray] | None = None
  flat: bool = False
  pixels: np.ndarray | None = None
  label_digest: bytes = b''
  between: np.ndarray | None = None
  lost: np.ndarray | None = None
  palette: dict[int, tuple[int, ...]] = {}  # noqa: RUF012  never changed
  colours: tuple[tuple[int, ...], ...] = ()


def examine(
  source: Source,
  id_: str,
  *,
  severity: str,
  needs_label: bool,
  target: tuple[int, int] | None = None,
  keep: Callable[[str, str, np.ndarray], object] | None = None,
) -> Seen:
  """Reads one image, and its label if it needs one; never raises.

  Args:
    source: the data set.
    id_: of the image.
    severity: of mistakes in its files, 'refuse' or 'skip'.
    needs_label: whether the label is read, and must be there.
    target: (height, width) that the networks see; classes lost there are
      found.
    keep: takes ('image' or 'label', id, array) of what was read.
  """
  path = source.path(id_)
  found, seen = [], Seen(id_, ())
  with problems.collect() as mentioned:
    try:
      image = source.image(id_)
      seen = _see_image(seen, image, path)
      found += _unusual_shape(image, path)
      if needs_label:
        seen, label = _see_label(seen, source, id_, image, mentioned)
        if target:
          small = images.resize_label(label, target)
          seen = seen._replace(lost=(seen.pixels > 0) & (_count(small) == 0))
        if keep:
          keep('label', id_, label)
      if keep:
        keep('image', id_, image)
    except UserError as error:
      found.append(problems.from_error(error, severity, path))
    except (OSError, ValueError, MemoryError) as error:
      message = f'it cannot be read ({error}), expected an image; replace it'
      found.append(Problem(severity, 'unreadable', path, message))
  return seen._replace(
    problems=(*found, *mentioned.problems),
    modes=tuple(mentioned.modes),
    palette=mentioned.palette,
    colours=tuple(mentioned.colours),
  )


def _see_image(seen, image, path):
  if min(image.shape[:2]) < MIN_SIDE:
    raise DataError(
      f'{path}: the image is {_size(image)}, expected at least {MIN_SIDE} '
      'pixels a side; remove it',
      'too_small',
    )
  return seen._replace(
    size=image.shape[:2],
    digest=duplicates.digest(image),
    look=duplicates.look(image),
    flat=bool((image == image[0, 0]).all()),
  )


def _unusual_shape(image, path):
  if max(image.shape[:2]) > ELONGATED * min(image.shape[:2]):
    yield Problem(
      'note', 'elongated', path,
      f'the image is {_size(image)}, expected sides more alike; see that '
      'config.data.fit keeps what matters',
    )  # fmt: skip


def _see_label(seen, source, id_, image, mentioned):
  """Returns (what is seen now, the label); raises what is wrong with it."""
  path = (source.label_path or source.path)(id_)
  label = source.label(id_)
  if label is None:
    raise DataError(
      f'{path}: the image has no label file, expected one as it is in a '
      'labelled or scored split; add labels/NAME.png or list the image as '
      'unlabelled',
      'no_label',
    )
  if label.shape != image.shape[:2]:
    raise _size_mismatch(label, image, path, mentioned)
  pixels = _count(label)
  k = len(source.class_names)
  wrong = np.flatnonzero(pixels[k : images.VOID]) + k
  if len(wrong):
    raise _unknown_ids(label, pixels, wrong, k, path)
  return seen._replace(
    pixels=pixels,
    label_digest=duplicates.digest(label),
    between=interpolated(label, pixels),
  ), label


def _size_mismatch(label, image, path, mentioned):
  turned = any(p.kind == 'exif_rotation' for p in mentioned.problems)
  fix = 'resize the label to the image with nearest neighbour'
  if turned and label.shape == image.shape[1::-1]:
    fix = (
      'the label has the size that the image had before its EXIF tag turned '
      'it, so remove the tag from the image or turn the label alike'
    )
  return DataError(
    f'{path}: the label is {_size(label)} and the image {_size(image)} (width '
    f'x height), expected one size; {fix}',
    'size_mismatch',
  )


def _unknown_ids(label, pixels, wrong, k, path):
  """The error for ids of no class, with what may have been meant."""
  counts = [f'{i} in {pixels[i]} pixels' for i in wrong]
  kind, fix = 'unknown_ids', 'correct the label or the classes in classes.json'
  present = np.flatnonzero(pixels[: images.VOID])
  between = interpolated(label, pixels, void_is_void=False)
  if list(wrong) == [k] and present[0] > 0:
    kind, fix = (
      'one_based',
      (
        'the ids seem to count from 1; if so put '
        f'{one_based(k)} into classes.json'
      ),
    )
  elif between[wrong].all():
    kind, fix = (
      'interpolated_ids',
      (
        'they lie between other ids, as after smooth resizing or JPEG; export '
        'the label again, resized with nearest neighbour and saved as PNG'
      ),
    )
  return DataError(
    f'{path}: its label holds the ids {problems.some(counts)}, expected 0 to '
    f'{k - 1} ({k} classes) or 255 (void); {fix}',
    kind,
  )


def one_based(k: int) -> str:
  """Returns what classes.json holds for ids that count from 1."""
  return json.dumps({'values': {str(i + 1): i for i in range(k)}})


def interpolated(
  label: np.ndarray, pixels: np.ndarray, void_is_void: bool = True
) -> np.ndarray:
  """Finds ids that look as if a smooth resizing had made them.

  Between regions of ids a and c, linear interpolation leaves a thin line of
  ids b with a < b < c. So an id looks interpolated if it holds less than 10 %
  of the label and at least 90 % of its pixels have both a lower and a higher
  id within 2 pixels, which in a line of 3 pixels or more few have. Thinner
  classes that lie between a lower and a higher one look so too: this is a
  hint, no proof.

  Args:
    label: uint8 [H, W].
    pixels: int64 [256], of each id.
    void_is_void: whether 255 does not count as a higher id.

  Returns:
    bool [256].
  """
  found = np.zeros(256, bool)
  present = np.flatnonzero(pixels[:255] if void_is_void else pixels)
  if len(present) < 3:
    return found
  ids = np.where(label == 255, 0, label) if void_is_void else label
  low, high = ndimage.minimum_filter(ids, 5), ndimage.maximum_filter(ids, 5)
  touching = (low < ids) & (ids < high)
  some_touch = np.bincount(label[touching], minlength=256)
  for id_ in present[1:-1]:
    few = pixels[id_] < FEW * label.size
    found[id_] = few and some_touch[id_] >= TOUCHING * pixels[id_]
  return found


def _count(label):
  return np.bincount(label.ravel(), minlength=256)


def _size(array):
  return f'{array.shape[1]}x{array.shape[0]}'
