"""Opens data sets by the names that configs and command lines use."""

import difflib
import pathlib
from typing import Any

import numpy as np

from jaxseg.data import prepared, quickstart, synthetic
from jaxseg.data.builders import BUILDERS
from jaxseg.data.folders import folder
from jaxseg.data.formats import images, intensity
from jaxseg.data.source import Source, voc_palette
from jaxseg.errors import DataError, UserError


def load(data_config: Any) -> Source:
  """Opens a data set and the out-of-domain sets beside it.

  Images are read when asked for. The out-of-domain set 'NAME=SOURCE' becomes
  the split 'ood_NAME', its ids 'NAME__ID', its labels in the classes of the
  main set.

  Args:
    data_config: `config.data`.

  Raises:
    UserError: an unknown source, a folder in another layout, a missing extra.
  """
  if data_config.channels not in (1, 3):
    raise UserError(
      f'config.data.channels is {data_config.channels}, expected 1 (grey) or '
      '3 (RGB); change --config.data.channels'
    )
  drawn = data_config.weak.drawn
  if drawn and not data_config.source.startswith('folder:'):
    raise UserError(
      f'config.data.weak.drawn is {drawn!r}, but config.data.source is '
      f'{data_config.source!r}, expected folder:PATH with the annotations in '
      'it; remove --config.data.weak.drawn'
    )
  source = _open(
    data_config.source, 'config.data.source', data_config,
    data_config.group_by, data_config.weak,
  )  # fmt: skip
  maps = _named(data_config.ood_classes, ':', 'ood_classes')
  sets = _named(data_config.ood_sources, '=', 'ood_sources')
  unknown = sorted(set(maps) - set(sets))
  if unknown:
    raise UserError(
      f'config.data.ood_classes names {unknown[0]!r}, expected a name of '
      f'config.data.ood_sources ({", ".join(sets) or "empty"}); correct it'
    )
  for name, spec in sets.items():
    other = _open(spec, 'config.data.ood_sources', data_config)
    source = _join(source, name, other, maps.get(name, ''))
  return source._replace(synthetic=synthetic.opener(source, data_config))


def _open(spec, field, data_config, group_by='', weak=None):
  """Opens one set; groups and annotations of those that are scored are none."""
  channels = data_config.channels
  values = intensity.from_config(data_config.intensity)
  kind, _, path = spec.partition(':')
  if spec == 'digits':
    return _in_memory('digits', channels, *quickstart.digits())
  if spec == 'avatars':
    return _in_memory('avatars', channels, *quickstart.avatars())
  if kind == 'folder' and path:
    return folder.load(
      pathlib.Path(path).expanduser(), channels,
      intensity=values, volume=data_config.volume,
      group_by=group_by, weak=weak,
    )  # fmt: skip
  if kind in BUILDERS:
    return prepared.open_prepared(
      spec, channels, intensity=values, data_dir=data_config.data_dir
    )
  raise UserError(
    f"{field} is {spec!r}, expected one of 'digits', 'avatars', "
    f"'folder:PATH', {', '.join(map(repr, BUILDERS))}; "
    f'{_meant(spec) or f"change --{field}"}'
  )


def _meant(spec):
  """Says what a source that is none was probably meant to be, or ''."""
  kind, colon, rest = spec.partition(':')
  if spec and pathlib.Path(spec).expanduser().exists():
    return f"write 'folder:{spec}' for that folder"
  known = ('digits', 'avatars', 'folder', *BUILDERS)
  near = difflib.get_close_matches(kind.lower(), known, 1, 0.7) or [
    name for name in BUILDERS if kind and name.startswith(kind.lower())
  ]
  if not near:
    return ''
  if near[0] == 'folder':
    return f'write {"folder:" + (rest or "PATH")!r}'
  return f'write {near[0] + colon + rest!r}'


def _named(entries, separator, field):
  """Returns {name: rest} of ('name=rest', ...)."""
  found = {}
  for entry in entries:
    name, _, rest = entry.partition(separator)
    if not rest or not name.isidentifier() or name in found:
      raise UserError(
        f'config.data.{field} holds {entry!r}, expected '
        f"'NAME{separator}...' with a new NAME of letters and digits each; "
        f'correct --config.data.{field}'
      )
    found[name] = rest
  return found


def class_map(
  theirs: tuple[str, ...], ours: tuple[str, ...], changes: str = ''
) -> np.ndarray:
  """Returns uint8 [256]: their class id -> ours, or 255 (void).

  Args:
    theirs: class names of the other set.
    ours: class names of the training set.
    changes: 'their name=our name,...'; other classes keep their name and are
      void where we have none of it.

  Raises:
    UserError: a name that neither set has, or no class in common.
  """
  renamed = {name: name for name in theirs}
  for entry in filter(None, changes.split(',')):
    their, equals, our = (part.strip() for part in entry.partition('='))
    if not equals:
      raise UserError(
        f'config.data.ood_classes holds {entry!r}, expected their class = our '
        f"class, such as '{theirs[-1]}={ours[-1]}'; correct it"
      )
    for name, known in ((their, theirs), (our, (*ours, 'void'))):
      if name not in known:
        raise UserError(
          f'config.data.ood_classes has the class {name!r} in {entry!r}, '
          f'expected one of {", ".join(known)}; correct it'
        )
    renamed[their] = our
  table = np.full(256, images.VOID, np.uint8)
  for i, name in enumerate(theirs):
    if renamed[name] in ours:
      table[i] = ours.index(renamed[name])
  if (table == images.VOID).all():
    raise UserError(
      f'config.data.ood_classes: the classes {", ".join(theirs)} have none in '
      f'common with {", ".join(ours)}; say which is which, e.g. '
      f"'NAME:{theirs[-1]}={ours[-1]}'"
    )
  return table


def _join(source, name, other, changes):
  """Returns `source` with the labelled images of `other` as a split."""
  k = len(other.class_names)
  table = class_map(other.class_names, source.class_names, changes)
  every = dict.fromkeys(id_ for ids in other.splits.values() for id_ in ids)
  ids = {f'{name}__{id_}': id_ for id_ in every if other.has_label(id_)}
  split = f'ood_{name}'
  if split in source.splits or set(ids) & _ids(source):
    raise UserError(
      f'config.data.ood_sources: {source.name} already has the split '
      f'{split!r}, expected a new name; rename {name!r}'
    )
  if not ids:
    raise UserError(
      f'config.data.ood_sources: {other.name} has no labelled image, expected '
      'labels to score; add them or remove it'
    )

  def mapped(id_):
    label = other.label(ids[id_])
    if label is None:
      return None
    strange = np.unique(label[(label >= k) & (label < images.VOID)])
    if len(strange):
      raise DataError(
        f'{other.path(ids[id_])}: its label holds the ids '
        f'{strange[:5].tolist()}, expected 0 to {k - 1} or 255 (void); correct '
        f'the label or the classes of {other.name}',
        kind='unknown_ids',
      )
    return table[label]

  def either(ours, theirs):
    return lambda id_: theirs(ids[id_]) if id_ in ids else ours(id_)

  return source._replace(
    splits=source.splits | {split: tuple(ids)},
    groups=source.groups
    | {
      id_: f'{name}__{other.groups.get(theirs, theirs)}'
      for id_, theirs in ids.items()
    },
    image=either(source.image, other.image),
    label=lambda id_: mapped(id_) if id_ in ids else source.label(id_),
    has_label=either(source.has_label, other.has_label),
    path=either(source.path, other.path),
    in_memory=source.in_memory and other.in_memory,
    # What is left out there is no image that trains here.
    problems=source.problems
    + tuple(
      p._replace(severity='note') if p.severity == 'skip' else p
      for p in other.problems
    ),
  )


def _ids(source):
  return {id_ for ids in source.splits.values() for id_ in ids}


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
