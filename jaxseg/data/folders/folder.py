"""A user's own folder of images, labels and volumes as a data set."""

import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxseg.data.folders import drawn, layout, listing, slices
from jaxseg.data.folders.class_list import ClassList, read_classes
from jaxseg.data.folders.split_lists import read_splits
from jaxseg.data.formats import images
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.problems import Problem, printable, some
from jaxseg.data.source import Source, voc_palette
from jaxseg.errors import DataError, UserError

# Labels read to infer the class ids of a folder without class names.
MAX_INFERENCE_LABELS = 2000
# Ids below the largest that no label shows; more look like grey levels.
MOST_ABSENT = 16


def load(
  root: str | os.PathLike,
  channels: int,
  *,
  intensity: Intensity = Intensity(),  # noqa: B008  immutable
  volume: Any = None,
  group_by: str = '',
  weak: Any = None,
) -> Source:
  """Opens a folder; images are read when asked for.

  It holds images/ and labels/ with files of the same stem, images/ alone, or
  the images themselves; an image without a label file is unlabelled. Beside
  them may lie classes.json (see `class_list`) and splits.json or text lists
  (see `split_lists`). Files that cannot be used become the source's
  problems.

  Args:
    root: the folder.
    channels: 1 or 3; images are converted to it.
    intensity: how stored values become 0..255.
    volume: `config.data.volume`; None: every axial slice.
    group_by: see `config.data.group_by`; groups in splits.json come first.
    weak: `config.data.weak`; what it names as drawn labels the images that
      train, see `drawn`. None: `labels/` does.

  Raises:
    UserError: a wrong option.
    DataError: there is nothing to start with: no folder, no image, a JSON
      file that is damaged or laid out differently.
  """
  root = pathlib.Path(root)
  found, label_files = _list(root)
  classes = read_classes(root)
  options = volume or ConfigDict({'axis': 2, 'step': 1, 'skip_empty': False})
  cut = slices.cut(
    found.volumes, label_files.volumes, channels, intensity, options,
    classes.values,
  )  # fmt: skip
  paths = {id_: str(p) for id_, p in found.files.items()} | cut.paths
  read_label = _label_reader(label_files.files, cut.labels, classes)
  has_label = (cut.labels.keys() | label_files.files.keys()).__contains__
  marks = drawn.scan(root, weak, found.volumes, classes, options)
  problems = [*found.problems, *label_files.problems, *cut.problems]
  problems += listing.orphans(
    label_files.files, found.files.keys(), found.volumes
  )
  problems += listing.orphans(
    label_files.volumes, found.volumes.keys(), found.files
  )
  problems += layout.unread_labels(root)
  problems += layout.unused_drawings(root, weak)
  problems += layout.masks_among(
    root / 'images' if (root / 'images').is_dir() else root, found.files.keys()
  )
  to_infer = [functools.partial(read_label, i) for i in paths if has_label(i)]
  to_infer += marks.labels.values() if marks else []
  names = classes.names or _infer_names(to_infer, root, problems)

  def read_image(id_):
    if id_ in cut.images:
      return cut.images[id_]()
    return images.read_image(found.files[id_], channels, intensity)

  annotated = drawn.open_drawn(marks, paths, names, read_image, problems)
  labelled = lambda id_: (
    has_label(id_) or (annotated is not None and id_ in annotated.paths)
  )
  lists = read_splits(
    root, tuple(paths), labelled, cut.volumes,
    _groups(paths, cut.groups, group_by, problems),
  )  # fmt: skip

  return Source(
    name=classes.name or root.resolve().name,
    class_names=names,
    palette=_palette(classes, len(names), label_files.files),
    channels=channels,
    splits=lists.splits,
    budgets=lists.budgets,
    groups=lists.groups,
    image=read_image,
    label=read_label,
    has_label=has_label,
    path=paths.__getitem__,
    cache={},
    problems=tuple(problems + lists.problems),
    licence=classes.licence,
    drawn=annotated,
  )


def _list(root):
  """Returns the listings of the images and of the labels."""
  expected = f'expected {root}/images/NAME.png and {root}/labels/NAME.png'
  if not root.is_dir():
    what, fix = 'missing', "correct the path behind 'folder:'"
    if os.path.lexists(root):
      what, fix = 'a file', f'unpack it, or {fix}'
    raise DataError(
      f'{root}: the data folder is {what}, {expected}; {fix}',
      'no_folder',
    )
  bare = not any((root / kind).is_dir() for kind in ('images', 'labels'))
  folder = root if bare else root / 'images'
  try:
    labels = listing.Listing({}, {}, [])
    if (root / 'labels').is_dir():
      labels = listing.scan(root / 'labels', 'label')
    if not folder.is_dir():
      raise DataError(
        f'{root}: there is a folder labels and none of images, {expected}; '
        f'{layout.advice(root, root)}',
        'no_folder',
      )
    found = listing.scan(folder, 'image')
    names = sorted(os.listdir(folder))
    fix = layout.advice(root, folder)
  except OSError as error:
    raise DataError(
      f'{error.filename}: the folder cannot be read ({error.strerror}), '
      f'{expected}; check its permissions',
      'unreadable',
    ) from error
  if not found.files and not found.volumes:
    raise DataError(
      f'{folder}: there are no images in it (it holds '
      f'{printable(some(names)) or "nothing"}), expected files ending in '
      f'{", ".join(images.IMAGE_SUFFIXES)} or volumes; {fix}',
      'no_images',
    )
  return found, labels


def _label_reader(paths, of_slices, classes):
  """Returns id -> uint8 [H, W] or None."""

  def read(id_: str) -> np.ndarray | None:
    if id_ in of_slices:
      return of_slices[id_]()
    if id_ not in paths:
      return None
    label = images.read_label(paths[id_], classes.colours, classes.values)
    if not classes.has_void and (label == images.VOID).any():
      if images.VOID not in (classes.values or {}).values():
        raise DataError(
          f'{paths[id_]}: the label holds 255 in '
          f'{np.count_nonzero(label == images.VOID)} pixels and classes.json '
          'says that there is no void, expected class ids; put "values": '
          '{"255": 1} there if white is class 1, or "void": 255',
          'unknown_ids',
        )
    return label

  return read


def _infer_names(
  readers: Sequence[Callable[[], np.ndarray]],
  root: pathlib.Path,
  problems: list[Problem],
) -> tuple[str, ...]:
  """Returns names up to the largest id in (at most 2000 of) the labels.

  Grey levels that stand for classes, such as 0, 128 and 255, become a problem.
  """
  readers = readers[:: max(1, -(-len(readers) // MAX_INFERENCE_LABELS))]

  def held(read):
    try:
      label = read()
    except UserError:  # told when the file is checked
      return np.zeros(256, bool)
    return np.bincount(label.ravel(), minlength=256) > 0

  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    found = np.any([np.zeros(256, bool), *pool.map(held, readers)], axis=0)
  present = np.flatnonzero(found[: images.VOID]).tolist()
  k = max([1, *present]) + 1
  if k - len(present) > max(MOST_ABSENT, len(present)):
    line = json.dumps({'values': {str(v): i for i, v in enumerate(present)}})
    void = ' (255 too, if it is no void)' * bool(found[images.VOID])
    problems.append(
      Problem(
        'refuse',
        'grey_levels',
        str(root / 'labels'),
        f'the labels hold only {len(present)} of the ids 0 to {k - 1} '
        f'({some(present, 8)}), expected class ids without gaps; if these are '
        f'grey levels of classes, put {line}{void} into classes.json, and if '
        'they come of JPEG or smooth resizing, export the labels again',
      )  # fmt: skip
    )
  return ('background', *(f'class {i}' for i in range(1, k)))


def _palette(classes: ClassList, k: int, paths: Mapping[str, pathlib.Path]):
  """Returns the colours of classes.json, the label files' own, or VOC's."""
  if classes.palette is not None and len(classes.palette) == k:
    return classes.palette
  for path in list(paths.values())[:1]:
    try:
      palette = images.label_palette(path)
    except UserError:  # told when the file is checked
      break
    # A palette that repeats colours was not made to tell classes apart.
    if palette is not None and len(np.unique(palette[:k], axis=0)) == k:
      return palette[:k]
  return voc_palette(k)


def _groups(
  paths: Mapping[str, str],
  of_volume: Mapping[str, str],
  group_by: str,
  problems: list[Problem],
) -> dict[str, str]:
  """Returns groups by id: those of the expression, else the volumes."""
  groups = dict(of_volume)
  if not group_by:
    return groups
  field = f'config.data.group_by is {group_by!r}'
  fix = 'change --config.data.group_by'
  try:
    expression = re.compile(group_by)
  except re.error as error:
    raise UserError(
      f'{field}, which is no regular expression ({error}), expected one like '
      f"'^(patient[0-9]+)'; {fix}"
    ) from error
  if not expression.groups:
    raise UserError(
      f'{field}, expected a regular expression with a group in parentheses, '
      f"like '^(patient[0-9]+)'; {fix}"
    )
  without = []
  for id_ in paths:
    match = expression.search(id_)
    if match and match[1] is not None:
      groups[id_] = match[1]
    else:
      without.append(id_)
  if len(without) == len(paths):
    raise UserError(
      f'{field}, which is found in no name of an image '
      f'({printable(some(without, 3))}), expected one that is in each; {fix}'
    )
  one = len(paths) > 1 and len(set(groups.values())) == 1
  if one and not (of_volume or without):
    raise UserError(
      f'{field}, which gives all {len(paths)} images the one group '
      f'{next(iter(groups.values()))!r}, expected several; {fix}'
    )
  if without:
    problems.append(
      Problem(
        'note',
        'no_group',
        os.path.dirname(paths[without[0]]),
        f'{len(without)} names have no group of config.data.group_by '
        f'({some(without)}), expected one each; they count as groups of one',
      )  # fmt: skip
    )
  return groups
