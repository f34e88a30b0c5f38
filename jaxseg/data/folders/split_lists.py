"""splits.json, or train.txt and the like: which images are for what."""

import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from jaxseg.data.folders.class_list import read_json
from jaxseg.data.formats import files
from jaxseg.data.problems import Problem, some
from jaxseg.errors import DataError

_LISTS = ('train', 'val', 'test', 'unlabelled', 'unlabeled')
_SUFFIX = re.compile(r'\.(nii\.gz|[A-Za-z]{2,5})$')
_EXPECTED = 'expected names of images, with or without suffix'


class SplitLists(NamedTuple):
  """Ids by split, by budget; groups by id; see `source.Source`."""

  splits: dict[str, tuple[str, ...]]
  budgets: dict[str, tuple[str, ...]]
  groups: dict[str, str]
  problems: list[Problem]


def read_splits(
  root: pathlib.Path,
  ids: Sequence[str],
  has_label: Callable[[str], bool],
  volumes: Mapping[str, Sequence[str]],
  groups: Mapping[str, str],
) -> SplitLists:
  """Reads splits.json, else the text lists, of a folder.

  splits.json is {"train": [names], "ood_x": [names], ..., "budgets": {"9":
  [names]}, "groups": {"name": "group"}}; a budget's number counts its images
  or its groups. Text lists are train.txt, val.txt,
  test.txt, unlabelled.txt and ood_NAME.txt with one name a line. The name of
  a volume stands for all its slices. Without either, 'all' has the labelled
  images and 'unlabelled' the others.

  Args:
    root: the folder.
    ids: of all images.
    has_label: id -> bool.
    volumes: ids of the slices of each volume.
    groups: by id, where splits.json says nothing else.

  Raises:
    DataError: 'json', or 'splits' where the layout is another; names that
      are wrong become problems.
  """
  path = root / 'splits.json'
  texts = _text_lists(root)
  found = []
  if path.exists():
    content = read_json(path)
    paths = dict.fromkeys(content, path)
    if texts:
      found.append(
        Problem(
          'note',
          'splits',
          str(path),
          f'{some([p.name for p in texts.values()])} lie beside it, expected '
          'one kind of list; only splits.json is used',
        )  # fmt: skip
      )
  else:
    content = {name: _read_lines(p) for name, p in texts.items()}
    paths = texts
  if not content:
    splits = {'all': tuple(i for i in ids if has_label(i))}
    unlabelled = tuple(i for i in ids if not has_label(i))
    splits |= {'unlabelled': unlabelled} if unlabelled else {}
    return SplitLists(splits, {}, dict(groups), found)
  budgets, own_groups = _budgets_and_groups(path, content, found)
  names = _Names(root, ids, volumes)
  splits = {
    name: names.ids(paths[name], f'split {name!r}', entries, found)
    for name, entries in content.items()
  }
  budgets = {
    number: names.ids(path, f'budget {number!r}', entries, found)
    for number, entries in budgets.items()
  }
  groups = {**groups, **names.groups(own_groups)}
  for number, part in budgets.items():
    _check_budget(path, number, part, groups, found)
  used = {id_ for part in splits.values() for id_ in part}
  unused = [id_ for id_ in ids if id_ not in used]
  if unused:
    found.append(
      Problem(
        'note',
        'unused',
        str(path if path.exists() else root),
        f'{len(unused)} images are in no split ({some(unused)}), expected '
        'each in one; they are not used',
      )  # fmt: skip
    )
  return SplitLists(splits, budgets, groups, found)


def _budgets_and_groups(path, content, found):
  """Takes both, and what is no list, out of the content of splits.json."""
  budgets = content.pop('budgets', {})
  groups = content.pop('groups', {})
  if not isinstance(budgets, dict) or not isinstance(groups, dict):
    raise DataError(
      f'{path}: "budgets" and "groups" must be objects, expected '
      '{"9": [ids], ...} and {"id": "group", ...}; correct them',
      'splits',
    )
  for name in [n for n, v in content.items() if not isinstance(v, list)]:
    if name in _LISTS or name.startswith('ood'):
      continue
    del content[name]
    found.append(
      Problem(
        'note',
        'splits',
        str(path),
        f'{name!r} is no list of image names, expected only those, "budgets" '
        'and "groups"; it is not used',
      )  # fmt: skip
    )
  for name, entries in [*content.items(), *budgets.items()]:
    if not isinstance(entries, list) or not all(
      isinstance(entry, str) for entry in entries
    ):
      raise DataError(
        f'{path}: split {name!r} is {str(entries)[:80]}, expected a list of '
        'image names; correct it',
        'splits',
      )
  return budgets, groups


def _check_budget(path, number, ids, groups, found):
  """A budget's name says how many images, or patients, it has."""
  in_groups = len({groups.get(id_, id_) for id_ in ids})
  if number not in (str(len(ids)), str(in_groups)):
    found.append(
      Problem(
        'refuse',
        'budget',
        str(path),
        f'budget {number!r} lists {len(ids)} images of {in_groups} groups, '
        'expected its name to be the number of either; correct it',
      )  # fmt: skip
    )


def _text_lists(root):
  """Returns {split: path} of the text lists in a folder."""
  try:
    names = sorted(n for n in os.listdir(root) if n.lower().endswith('.txt'))
  except OSError:
    return {}
  stems = {n[:-4]: root / n for n in names}
  return {
    stem: path
    for stem, path in stems.items()
    if stem in _LISTS or re.fullmatch(r'ood\w*', stem)
  }


def _read_lines(path):
  """Returns the lines that are not blank, whatever editor wrote them."""
  data = files.read_bytes(path, 'list')
  if data.startswith((b'\xff\xfe', b'\xfe\xff')):
    text = data.decode('utf-16', 'replace')
  else:  # as names of files are read
    text = data.decode('utf-8-sig', 'surrogateescape')
  return [line.strip() for line in text.splitlines() if line.strip()]


class _Names:
  """What the names in lists mean."""

  def __init__(self, root, ids, volumes):
    self._root = root
    self._ids = set(ids)
    self._volumes = volumes
    self._folded = {i.casefold(): i for i in (*ids, *volumes)}

  def ids(self, path, where, entries, found):
    """Returns the ids of a list; adds what is wrong to `found`."""

    def refuse(kind, message):
      found.append(Problem('refuse', kind, str(path), f'{where} {message}'))

    ids, missing = [], []
    for entry in entries:
      known = self._known(entry)
      if known is None and self._outside(entry):
        refuse(
          'outside',
          f'names {entry!r}, which is outside of {self._root}, {_EXPECTED}; '
          'copy the image into images/ and list its name alone',
        )
      elif known is None:
        missing.append(entry)
      else:
        ids += known
    if missing:
      refuse('missing', self._about_missing(missing))
    twice = sorted(i for i, n in Counter(ids).items() if n > 1)
    if twice:
      refuse(
        'listed_twice',
        f'names {some(twice)} more than once, expected each once; remove the '
        'repeats',
      )
    return tuple(dict.fromkeys(ids))

  def groups(self, groups):
    """Returns the group of each id."""
    return {
      id_: str(group)
      for entry, group in groups.items()
      for id_ in self._known(entry) or ()
    }

  def _known(self, entry):
    """Returns the ids that an entry means, or None."""
    name = unicodedata.normalize('NFC', entry.replace('\\', '/'))
    place, _, last = name.rpartition('/')
    if place and self._relative(name) is None:
      return None
    place = os.path.dirname(self._relative(name) or name)
    if place not in ('', 'images', 'labels'):
      return None
    for id_ in (last, _SUFFIX.sub('', last)):
      if id_ in self._ids:
        return (id_,)
      if id_ in self._volumes:
        return tuple(self._volumes[id_])
    return None

  def _relative(self, name):
    """Returns the path below the folder, or None outside of it."""
    root = os.path.abspath(self._root)
    path = os.path.normpath(os.path.join(root, name))
    inside = path.startswith(os.path.join(root, ''))
    return os.path.relpath(path, root).replace('\\', '/') if inside else None

  def _outside(self, entry):
    return self._relative(entry.replace('\\', '/')) is None

  def _about_missing(self, missing):
    """Names all of them: a list can be long, yet one may matter."""
    stems = [_SUFFIX.sub('', m).casefold() for m in missing]
    similar = [self._folded[s] for s in stems if s in self._folded]
    hint = f' (upper and lower case differ: {some(similar)})' * bool(similar)
    return (
      f'names {len(missing)} images that are not in images/: '
      f'{some(missing, 20)}{hint}, {_EXPECTED}; add the files or remove the '
      'names'
    )
