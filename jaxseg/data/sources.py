"""Where examples come from: a folder of PNGs, or sets inside pip wheels."""

import json
import os
import pathlib
import re
from concurrent import futures

import numpy as np

from jaxseg.data import images, quickstart
from jaxseg.data.source import Source, voc_palette
from jaxseg.errors import UserError

# Labels read to infer the class ids of a folder without meta.json.
MAX_INFERENCE_LABELS = 2000


def load(spec: str, channels: int) -> Source:
  """Opens a data set; images are read when asked for.

  Args:
    spec: 'digits', 'avatars' or 'folder:PATH'.
    channels: 1 or 3; images are converted to it.

  Raises:
    UserError: an unknown spec, a folder in another layout, a missing extra.
  """
  if channels not in (1, 3):
    raise UserError(
      f'config.data.channels is {channels}, expected 1 (grey) or 3 (RGB); '
      'change --config.data.channels'
    )
  kind, _, path = spec.partition(':')
  if spec == 'digits':
    return _in_memory('digits', channels, *quickstart.digits())
  if spec == 'avatars':
    return _in_memory('avatars', channels, *quickstart.avatars())
  if kind == 'folder' and path:
    return _folder(pathlib.Path(path).expanduser(), channels)
  raise UserError(
    f'config.data.source is {spec!r}, expected one of '
    "'digits', 'avatars', 'folder:PATH'; change --config.data.source"
  )


def _in_memory(name, channels, class_names, palette, arrays):
  """Wraps {split: (prefix, images, labels)}; ids are prefix_00000 and on."""
  images_, labels, splits = {}, {}, {}
  for split, (ids, x, y) in arrays.items():
    splits[split] = tuple(ids)
    images_.update(zip(ids, x, strict=True))
    labels.update(zip(ids, y, strict=True))
  return Source(
    name=name,
    class_names=class_names,
    palette=voc_palette(len(class_names)) if palette is None else palette,
    channels=channels,
    splits=splits,
    budgets={},
    groups={},
    image=lambda id_: images.to_channels(images_[id_], channels),
    label=labels.get,
    has_label=labels.__contains__,
    path=lambda id_: f'{name}:{id_}',
    cache={},
    in_memory=True,
  )


def _folder(root, channels):
  """A folder with images/, labels/ and, if there, splits and meta.json."""
  image_paths = _listing(root, 'images', images.IMAGE_SUFFIXES)
  label_paths = {}
  if (root / 'labels').exists():
    label_paths = _listing(root, 'labels', images.LABEL_SUFFIXES)
  orphans = [p for id_, p in label_paths.items() if id_ not in image_paths]
  if orphans:
    raise UserError(
      f'{root}: {len(orphans)} label files have no image of the same name '
      f'({_some(orphans)}), expected images/NAME.png for each '
      'labels/NAME.png; rename or remove them'
    )
  meta = _read_json(root / 'meta.json')
  void = meta.get('void', images.VOID)

  def label(id_):
    if id_ not in label_paths:
      return None
    ids = images.read_label(label_paths[id_])
    return (
      ids
      if void == images.VOID
      else np.where(ids == void, np.uint8(images.VOID), ids)
    )

  class_names = _class_names(root, meta, void, label, label_paths)
  splits, budgets, groups = _splits(root, image_paths, label_paths)
  return Source(
    name=str(meta.get('name', root.resolve().name)),
    class_names=class_names,
    palette=_palette(root, meta, len(class_names), label_paths),
    channels=channels,
    splits=splits,
    budgets=budgets,
    groups=groups,
    image=lambda id_: images.read_image(image_paths[id_], channels),
    label=label,
    has_label=label_paths.__contains__,
    path=lambda id_: str(image_paths[id_]),
    cache={},
  )


def _listing(root, kind, suffixes):
  """Returns {stem: path} of the files of a kind, hidden ones left out."""
  folder = root / kind
  layout = f'expected {root}/images/NAME.png and {root}/labels/NAME.png'
  if not root.is_dir():
    what = 'not a folder' if root.exists() else 'missing'
    raise UserError(
      f'{root}: the data folder is {what}, {layout}; change '
      '--config.data.source=folder:PATH'
    )
  if not folder.is_dir():
    found = sorted(p.name for p in root.iterdir())
    raise UserError(
      f'{root}: there is no folder {kind!r} in it (it holds '
      f'{_some(found) or "nothing"}), {layout}; move the files there'
    )
  names = sorted(n for n in os.listdir(folder) if not n.startswith('.'))
  paths = [folder / n for n in names if n.lower().endswith(suffixes)]
  if not paths and kind == 'images':
    raise UserError(
      f'{folder}: there are no images in it (it holds '
      f'{_some(names) or "nothing"}), expected files ending in '
      f'{", ".join(suffixes)}; copy the images there'
    )
  by_stem = {}
  for path in paths:
    if path.stem in by_stem:
      raise UserError(
        f'{path}: {by_stem[path.stem].name} beside it has the same stem, '
        'expected one file a name; rename or remove one'
      )
    by_stem[path.stem] = path
  return by_stem


def _class_names(root, meta, void, label, label_paths):
  """Returns the names in meta.json, else names made from the ids found."""
  path = root / 'meta.json'
  if not isinstance(void, int) or not 0 <= void <= 255:
    raise UserError(
      f'{path}: "void" is {void!r}, expected an id from 0 to 255; correct it'
    )
  names = meta.get('classes')
  if names is None:
    k = _infer_num_classes(label, label_paths)
    names = ['background'] + [f'class {i}' for i in range(1, k)]
  elif (
    not isinstance(names, list)
    or not 2 <= len(names) <= images.VOID
    or not all(isinstance(name, str) for name in names)
  ):
    raise UserError(
      f'{path}: "classes" is {str(names)[:80]}, expected a list of 2 to 255 '
      'names in the order of their ids; correct it'
    )
  if void < len(names):
    raise UserError(
      f'{path}: "void" is {void}, which is also the id of class '
      f'{names[void]!r}, expected an id that no class has; use 255'
    )
  return tuple(names)


def _infer_num_classes(label, label_paths):
  """Returns 1 + the largest id in (at most 2000 of) the label files."""
  ids = list(label_paths)
  ids = ids[:: max(1, -(-len(ids) // MAX_INFERENCE_LABELS))]

  def largest(id_):
    classes = label(id_)
    return int(np.max(classes, initial=0, where=classes != images.VOID))

  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    return max(2, 1 + max(pool.map(largest, ids), default=1))


def _palette(root, meta, k, label_paths):
  """Returns meta.json's colours, the label files' own, or VOC's."""
  if 'palette' in meta:
    palette = np.asarray(meta['palette'])
    if (
      palette.dtype.kind not in 'iu'
      or palette.shape != (k, 3)
      or palette.min() < 0
      or palette.max() > 255
    ):
      raise UserError(
        f'{root / "meta.json"}: "palette" is {str(meta["palette"])[:80]}, '
        f'expected {k} colours [red, green, blue] of 0 to 255; correct it'
      )
    return palette.astype(np.uint8)
  if label_paths:
    palette = images.label_palette(next(iter(label_paths.values())))
    # A palette that repeats colours was not made to tell classes apart.
    if palette is not None and len(np.unique(palette[:k], axis=0)) == k:
      return palette[:k]
  return voc_palette(k)


def _splits(root, image_paths, label_paths):
  """Returns (splits, budgets, groups) of splits.json, or a default."""
  path = root / 'splits.json'
  content = _read_json(path)
  if not content:
    unlabelled = tuple(i for i in image_paths if i not in label_paths)
    splits = {'all': tuple(i for i in image_paths if i in label_paths)}
    return splits | ({'unlabelled': unlabelled} if unlabelled else {}), {}, {}
  budgets = content.pop('budgets', {})
  groups = content.pop('groups', {})
  if not isinstance(budgets, dict) or not isinstance(groups, dict):
    raise UserError(
      f'{path}: "budgets" and "groups" must be objects, expected '
      '{"9": [ids], ...} and {"id": "group", ...}; correct them'
    )
  for name, ids in [*content.items(), *budgets.items()]:
    _check_ids(path, name, ids, image_paths)
  for number, ids in budgets.items():
    if not re.fullmatch(r'[1-9]\d*', number) or len(ids) != int(number):
      raise UserError(
        f'{path}: budget {number!r} lists {len(ids)} ids, expected its name '
        'to be their number; correct it'
      )
  return (
    {name: tuple(ids) for name, ids in content.items()},
    {name: tuple(ids) for name, ids in budgets.items()},
    {id_: str(group) for id_, group in groups.items()},
  )


def _check_ids(path, name, ids, image_paths):
  if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
    raise UserError(
      f'{path}: split {name!r} is {str(ids)[:80]}, expected a list of image '
      'names without suffix; correct it'
    )
  unknown = [i for i in ids if i not in image_paths]
  if unknown:
    raise UserError(
      f'{path}: split {name!r} names {len(unknown)} images that are not in '
      f'images/ ({_some(unknown)}), expected names without suffix; add the '
      'files or remove the names'
    )
  if len(set(ids)) != len(ids):
    twice = sorted({i for i in ids if ids.count(i) > 1})
    raise UserError(
      f'{path}: split {name!r} names {_some(twice)} more than once, expected '
      'each once; remove the repeats'
    )


def _read_json(path):
  """Returns the object in a JSON file; {} when there is no such file."""
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text('utf-8-sig'))
  except (OSError, ValueError) as error:
    raise UserError(
      f'{path}: the file is not readable JSON ({error}), expected an object '
      '{...}; correct or remove it'
    ) from error
  if not isinstance(content, dict):
    raise UserError(
      f'{path}: the file holds a {type(content).__name__}, expected an object '
      '{...}; correct or remove it'
    )
  return content


def _some(items, n=5):
  """Names the first few of many."""
  text = ', '.join(str(item) for item in items[:n])
  return text + (f' and {len(items) - n} more' if len(items) > n else '')
