"""What a folder in another layout was meant to be, and how to mend it."""

import os
import pathlib
import re
from collections.abc import Collection, Iterator
from typing import Any

from jaxseg.data.formats import images
from jaxseg.data.problems import Problem, printable, some

_ARCHIVE = re.compile(r'\.(zip|tar|tgz|tbz|7z|rar|tar\.\w+)$', re.IGNORECASE)
# Other names that folders of images and of labels go by.
_MEANT = {
  'images': re.compile(
    r'(images?|imgs?|jpegimages|photos?|pictures?|inputs?|scans?)(tr|train)?',
    re.IGNORECASE,
  ),
  'labels': re.compile(
    r'(labels?|masks?|gts?|ground_?truths?|annotations?|annots?|targets?|'
    r'segmentations?|segmentationclass|segs?)(tr|train)?',
    re.IGNORECASE,
  ),
}
# Usual names of what people drew, and its `config.data.weak.kind`.
_DRAWN = {
  'scribbles': 'scribbles', 'clicks': 'clicks', 'polygons': 'polygons',
  'boxes': 'boxes', 'boxes.csv': 'boxes', 'tags.csv': 'tags',
  'tags.json': 'tags',
}  # fmt: skip
_MASK = re.compile(
  r'(.+)[_\-. ](masks?|seg|segmentation|labels?|gt|ground_?truth|annotation|'
  r'lesion|superpixels)',
  re.IGNORECASE,
)


def advice(root: pathlib.Path, folder: pathlib.Path) -> str:
  """Returns how to mend a data folder in which no images were found.

  Args:
    root: the data folder.
    folder: where its images were looked for, root/images or root.

  Raises:
    OSError: one of them cannot be listed.
  """
  packed = [n for n in sorted(os.listdir(folder)) if _ARCHIVE.search(n)]
  if packed:
    return f'unpack {printable(some(packed, 3))}'
  renamed = [
    f'{name!r} to {kind!r}'
    for kind in _MEANT
    for name in _named(root, kind)[:1]
  ]
  if renamed:
    return f'rename the folder {" and ".join(renamed)}'
  inner = [d for d in _folders(root) if (d / 'images').is_dir()]
  if len(inner) == 1:
    return f'name the folder inside, folder:{printable(str(inner[0]))}'
  if inner:
    names = [d.name for d in inner]
    return (
      f'put the files of {printable(some(names, 3))} into one images/ and one '
      f'labels/, and their names into {names[0]}.txt and the like, one a line'
    )
  below = [d for d in _folders(folder) if _first_image(d)]
  if below:
    first = _first_image(below[0])
    return (
      'subfolders are not read, so move their files up, such as '
      f'{printable(f"{below[0].name}/{first} to {below[0].name}_{first}")}, '
      'labels alike'
    )
  deeper = [d for d in _folders(folder) if _folders(d)]
  if deeper:
    return (
      f'{printable(deeper[0].name)} holds folders only '
      f'({printable(some([d.name for d in _folders(deeper[0])], 3))}), so move '
      'the files of each series, or each image, up to where one folder holds '
      'one volume'
    )
  return 'copy the images there'


def unread_labels(root: pathlib.Path) -> Iterator[Problem]:
  """Yields a note if labels seem to be in a folder of another name."""
  if (root / 'labels').is_dir():
    return
  for name in _named(root, 'labels')[:1]:
    yield Problem(
      'note', 'no_labels', str(root / name),
      'the folder is not read and there is none of the name labels, so no '
      "image has a label; if it holds them, rename it 'labels'",
    )  # fmt: skip


def unused_drawings(root: pathlib.Path, weak: Any) -> Iterator[Problem]:
  """Yields a note if weak labels are made although some seem to be drawn.

  Args:
    root: the data folder.
    weak: `config.data.weak`; None: the set only scores.
  """
  if weak is None or not weak.kind or weak.drawn:
    return
  names = [n for n in _DRAWN if (root / n).exists()]
  # Those of the kind that is asked for first.
  names.sort(key=lambda n: _DRAWN[n] != weak.kind)
  if not names:
    return
  first = names[0]
  kind = f'--config.data.weak.kind={_DRAWN[first]} and '
  yield Problem(
    'note', 'no_labels', str(root / first),
    f'{some(names)}: not used, though people may have drawn it; {weak.kind} '
    'are made from the full masks in labels/; to train on what was drawn set '
    f'{kind * (_DRAWN[first] != weak.kind)}--config.data.weak.drawn={first}',
  )  # fmt: skip


def masks_among(
  folder: pathlib.Path, ids: Collection[str]
) -> Iterator[Problem]:
  """Yields whether images are named as masks of others, such as ID_mask."""
  found = []
  for id_ in ids:
    match = _MASK.fullmatch(id_)
    if match and match[1] in ids:
      found.append(f'{id_} beside {match[1]}')
  if found:
    yield Problem(
      'refuse', 'masks_in_images', str(folder),
      f'{len(found)} files are named as masks of other images '
      f'({some(found, 3)}), expected photographs alone; move the masks into a '
      'folder labels and name them as their images, or remove them',
    )  # fmt: skip


def _named(root, kind):
  """Names of folders in `root` that may have been meant as `kind`."""
  if (root / kind).is_dir():
    return []
  names = [d.name for d in _folders(root)]
  return [n for n in names if _MEANT[kind].fullmatch(n)]


def _folders(folder):
  return [
    d
    for d in sorted(folder.iterdir())
    if d.is_dir() and d.name != '__MACOSX' and not d.name.startswith('.')
  ]


def _first_image(folder):
  """Returns the name of an image in a folder, or None."""
  try:
    names = sorted(os.listdir(folder))
  except OSError:
    return None
  return next(
    (n for n in names if n.lower().endswith(images.IMAGE_SUFFIXES)), None
  )
