"""Weak labels that people drew, beside the images of a folder.

`config.data.weak.drawn` names them inside of the folder, `weak.kind` says what
they are:

  scribbles, clicks, polygons   a folder of label images ID.png, read as those
      of labels/ are, where 255 is not annotated; scribbles also ID.xml, as
      ScribbleSup has them
  boxes   a CSV file, see `tables.read_boxes`, or a folder of PASCAL VOC's
      ID.xml
  tags    a CSV or JSON file, see `readers.read_tags`; the background is shown
      by every image, named or not
"""

import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data.annotations import readers, tables
from jaxseg.data.folders import listing, slices
from jaxseg.data.folders.class_list import ClassList
from jaxseg.data.formats import images
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.problems import Problem, printable, some
from jaxseg.data.source import Box, Drawn
from jaxseg.errors import DataError, UserError

FIELD = 'config.data.weak.drawn'
# What each kind may be: a folder, or a file with one of these suffixes.
_FILES = {'boxes': ('.csv',), 'tags': ('.csv', '.json')}
_SUFFIX = re.compile(r'\.[A-Za-z]{2,5}$')


class Marks(NamedTuple):
  """Annotations that were found; what does not need the classes is read.

  Attributes:
    path: the file, or the folder of files.
    kind: `config.data.weak.kind`.
    labels: id -> () -> uint8 [H, W], of label images and volumes.
    paths: files by id, of label images, volumes and XML.
    xml: the XML files among them.
    problems: files that cannot be used.
  """

  path: pathlib.Path
  kind: str
  labels: dict[str, Callable[[], np.ndarray]]
  paths: dict[str, str]
  xml: dict[str, pathlib.Path]
  problems: list[Problem]


def scan(
  root: pathlib.Path,
  weak: Any,
  volumes: Mapping[str, pathlib.Path],
  classes: ClassList,
  options: Any,
) -> Marks | None:
  """Finds the annotations that `config.data.weak` names.

  Args:
    root: the folder with the images.
    weak: `config.data.weak`; None: none are drawn.
    volumes: of images, by name.
    classes: of the folder; 255 is not annotated whatever they say of it.
    options: `config.data.volume`.

  Returns:
    What was found; None: nothing is named.

  Raises:
    UserError: there is nothing of that name, or not what the kind needs.
  """
  if weak is None or not weak.drawn:
    return None
  path = _inside(root, weak.drawn)
  _check_kind(root, path, weak.drawn, weak.kind)
  marks = Marks(path, weak.kind, {}, {}, {}, [])
  if not path.is_dir():
    return marks
  names = sorted(os.listdir(path))
  if weak.kind in ('scribbles', 'boxes'):
    marks.xml.update(
      (unicodedata.normalize('NFC', n[:-4]), path / n)
      for n in names
      if n.lower().endswith('.xml') and not n.startswith('.')
    )
    marks.paths.update((id_, str(p)) for id_, p in marks.xml.items())
  if weak.kind == 'boxes':
    if not marks.xml:
      raise UserError(
        f'{FIELD} is {weak.drawn!r}, a folder that holds '
        f'{printable(some(names, 3)) or "nothing"}, expected ID.xml with the '
        'boxes of each image, as of PASCAL VOC; name a CSV file of boxes, or '
        'change --config.data.weak.kind'
      )
    return marks
  return _label_files(marks, volumes, classes, options)


def _label_files(marks, volumes, classes, options):
  """Adds label images and volumes."""
  files = listing.scan(marks.path, 'label')
  values = {k: v for k, v in (classes.values or {}).items() if k != images.VOID}
  for id_, path in files.files.items():
    marks.paths[id_] = str(path)
    marks.labels[id_] = functools.partial(
      images.read_label, path, classes.colours, values or None
    )
  options = options.copy_and_resolve_references()
  options.skip_empty = False
  cut = slices.cut(
    {n: p for n, p in volumes.items() if n in files.volumes}, files.volumes,
    1, Intensity(), options, values or None,
  )  # fmt: skip
  for name, ids in cut.volumes.items():
    for id_ in ids:
      # Of a volume, people annotate some slices.
      if id_ in cut.labels and _is_annotated(cut.labels[id_]):
        marks.labels[id_] = cut.labels[id_]
        marks.paths[id_] = (
          f'{files.volumes[name]} slice {int(id_.rpartition("-")[2][2:])}'
        )
  about_files = [p for p in files.problems if not _of_xml(p, marks)]
  about_volumes = [
    p for p in cut.problems if p.path.startswith(str(marks.path))
  ]
  missing = listing.orphans(files.volumes, volumes.keys(), {})
  marks.problems.extend([*about_files, *about_volumes, *missing])
  return marks


def _is_annotated(read):
  try:
    return (read() != images.VOID).any()
  except UserError:  # told when the slice is checked
    return True


def _of_xml(problem, marks):
  """Whether files that are no label images are annotations all the same."""
  return bool(marks.xml) and problem.kind in ('no_labels', 'other_files')


def open_drawn(
  marks: Marks | None,
  ids: Collection[str],
  class_names: tuple[str, ...],
  read_image: Callable[[str], np.ndarray],
  problems: list[Problem],
) -> Drawn | None:
  """Returns the annotations of the images; adds what is wrong with them.

  Args:
    marks: from `scan`.
    ids: of all images.
    class_names: in the order of their ids.
    read_image: id -> uint8 [H, W, C].
    problems: annotations without an image are added.

  Raises:
    DataError: a damaged CSV or JSON file, an unknown class in it.
  """
  if marks is None:
    return None
  problems += marks.problems
  if marks.path.is_dir():
    of_files = {
      id_: pathlib.Path(path)
      for id_, path in marks.paths.items()
      if id_ in marks.xml or not _is_slice(path)
    }
    problems += listing.orphans(of_files, ids, {})
    paths = {id_: p for id_, p in marks.paths.items() if id_ in ids}
    if marks.kind == 'boxes':
      read = functools.partial(_xml_boxes, marks.xml, class_names)
      return Drawn(marks.kind, paths, boxes=_checked(read, paths, read_image))
    label = functools.partial(_read_label, marks, class_names, read_image)
    return Drawn(marks.kind, paths, label=label)
  reader = tables.read_boxes if marks.kind == 'boxes' else readers.read_tags
  content = _by_id(reader(marks.path, class_names), ids, marks, problems)
  paths = dict.fromkeys(content, str(marks.path))
  if marks.kind == 'boxes':
    boxes = _checked(content.__getitem__, paths, read_image)
    return Drawn(marks.kind, paths, boxes=boxes)
  for tags in content.values():
    tags[0] = 1
  return Drawn(marks.kind, paths, tags=content)


def _is_slice(path):
  return re.search(r' slice \d+$', path) is not None


def _inside(root, name):
  """Returns the path of a name in the folder."""
  path = pathlib.Path(os.path.normpath(root / name))
  if not path.is_relative_to(os.path.normpath(root)) or path == root:
    raise UserError(
      f'{FIELD} is {name!r}, expected the name of a file or folder inside of '
      f"{root}, such as 'scribbles'; copy the annotations there"
    )
  if not path.exists():
    try:
      there = [n for n in sorted(os.listdir(root)) if not n.startswith('.')]
    except OSError:
      there = []
    raise UserError(
      f'{FIELD} is {name!r}, expected the name of a file or folder inside of '
      f'{root}, which holds {printable(some(there, 12)) or "nothing"}; correct '
      f'--{FIELD}'
    )
  return path


def _check_kind(root, path, name, kind):
  """Refuses a file where a folder is needed, and the reverse."""
  is_folder = path.is_dir()
  suffixes = _FILES.get(kind, ())
  good = kind != 'tags' if is_folder else name.lower().endswith(suffixes)
  if suffixes and good or (is_folder and not suffixes):
    return
  wanted = ' or '.join(
    ['a folder of label images'] * (not suffixes)
    + [f'a file ending in {" or ".join(suffixes)}'] * bool(suffixes)
    + ['a folder of XML files'] * (kind == 'boxes')
  )
  raise UserError(
    f'{FIELD} is {name!r}, a {"folder" if is_folder else "file"} in {root}, '
    f'and config.data.weak.kind is {kind!r}, for which {wanted} is expected; '
    'correct one of them'
  )


def _read_label(marks, class_names, read_image, id_):
  """Returns uint8 [H, W] of a label image, volume or XML file."""
  if id_ in marks.labels:
    return marks.labels[id_]()
  size = read_image(id_).shape[:2]
  return readers.read_scribble_xml(marks.xml[id_], class_names, size)


def _xml_boxes(xml, class_names, id_):
  return readers.read_voc_boxes(xml[id_], class_names)[0]


def _checked(read, paths, read_image):
  """Returns id -> boxes; those beyond the image are refused."""

  def boxes(id_: str) -> list[Box]:
    found = read(id_)
    height, width = read_image(id_).shape[:2]
    for class_id, _, _, bottom, right in found:
      if bottom > height or right > width:
        raise DataError(
          f'{paths[id_]}: a box (class {class_id}) of {id_} reaches to row '
          f'{bottom} and column {right} of an image of {width}x{height}, '
          'expected boxes inside (top, left, bottom, right from 0, 0 to '
          'height, width); see that they were drawn on that image and that '
          'rows and columns are not swapped',
          'size_mismatch',
        )
    return found

  return boxes


def _by_id(content, ids, marks, problems):
  """Returns {id: value} of {name as written: value}."""
  found, missing, twice = {}, [], []
  for name, value in content.items():
    id_ = _id(name, ids)
    if id_ is None:
      missing.append(name)
    elif id_ in found and marks.kind == 'boxes':
      found[id_] = found[id_] + value
    elif id_ in found:
      twice.append(name)
    else:
      found[id_] = value
  for names, kind, what, fix in (
    (missing, 'missing', 'no images in images/', 'add the images'),
    (twice, 'listed_twice', 'images named before in another way', 'join them'),
  ):
    if names:
      problems.append(
        Problem(
          'refuse',
          kind,
          str(marks.path),
          f'{len(names)} names in it are {what} ({some(names, 20)}), expected '
          f'names of images, with or without suffix; {fix} or remove the lines',
        )  # fmt: skip
      )
  return found


def _id(name, ids):
  """Returns the id that a name means, or None."""
  name = unicodedata.normalize('NFC', name.replace('\\', '/'))
  name = name.removeprefix('images/')
  return next((n for n in (name, _SUFFIX.sub('', name)) if n in ids), None)
