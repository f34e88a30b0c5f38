"""Which images train, with and without labels, and which are scored."""

import hashlib
import json
import os
from typing import Any, NamedTuple

import numpy as np

from jaxseg.data import annotated, drawing
from jaxseg.data.formats import images
from jaxseg.data.source import Source
from jaxseg.errors import UserError

Ids = drawing.Ids


class Splits(NamedTuple):
  """Ids by what they are used for.

  Attributes:
    labelled: images whose labels the methods may use.
    unlabelled: images whose labels they never see.
    val: labelled images for choices during training.
    test: labelled in-domain images, scored at the end.
    ood: out-of-domain images by split name, scored at the end.
    hash: of all ids above, in order; equal splits have equal hashes.
    content: of the pixels of all images and labels above, once they were read.
  """

  labelled: Ids
  unlabelled: Ids
  val: Ids
  test: Ids
  ood: dict[str, Ids]
  hash: str
  content: str = ''


def make_splits(source: Source, data_config: Any, seed: int) -> Splits:
  """Draws the splits of an experiment.

  Groups (patients, sequences) are never torn apart between training and
  scoring: unlabelled images of a group that is drawn to be scored are left
  out. Labelled images are drawn group by group in one order that depends
  on the seed alone, so that the first 30 of 150 are the 30; the order keeps
  every class as frequent as in the whole and starts with each class once, and
  so does that within a group of which only a part is needed. Where people
  drew weak labels, the images that have one are the labelled ones. An
  official budget of exactly `num_labelled` images (or groups, as
  `labelled_by` says), or of what `labelled_fraction` comes to, is preferred.

  Args:
    source: the data set.
    data_config: `config.data`.
    seed: of the draw.

  Raises:
    UserError: unknown split names, too few labelled images, an image or a
      group both in training and in scoring.
  """
  if seed < 0:
    raise UserError(
      f'config.seed is {seed}, expected 0 or more; change --config.seed'
    )
  splits = dict(source.splits)
  _check_names(source, data_config)
  n, budget = _asked_for(source, data_config, seed)
  pool, scored = _take_scored(source, data_config, budget, seed)
  splits |= scored
  drawn = set(drawing.grouped(source, [i for v in scored.values() for i in v]))
  labelled = drawing.labelled(
    annotated.view(source), pool, data_config, n, budget, seed
  )
  extra = [s for s in splits if s in ('unlabelled', 'unlabeled')]
  extra += [s for s in data_config.unlabelled if s not in extra]
  unlabelled = list(pool) + [id_ for s in extra for id_ in splits[s]]
  if not data_config.allow_leaks:  # other images of patients drawn above
    unlabelled = [i for i in unlabelled if source.groups.get(i, i) not in drawn]
  if not data_config.unlabelled_includes_labelled:
    known = set(labelled)
    unlabelled = [id_ for id_ in unlabelled if id_ not in known]
  ood = tuple(data_config.ood) or [s for s in splits if s.startswith('ood')]
  result = Splits(
    labelled=labelled,
    unlabelled=tuple(dict.fromkeys(unlabelled)),
    val=splits['val'],
    test=splits['test'],
    ood={name: splits[name] for name in ood},
    hash='',
  )
  _refuse_leaks(source, result, data_config.allow_leaks)
  return rehash(result)


def _asked_for(source, data_config, seed):
  """Returns (how many images or groups may use their labels, official ids)."""
  n = data_config.num_labelled
  if not data_config.labelled_fraction:
    return n, drawing.budget(source, data_config, n)

  def fraction_of_pool(budget):
    pool, _ = _take_scored(source, data_config, budget, seed)
    return drawing.number_labelled(annotated.view(source), pool, data_config)

  n = fraction_of_pool(())
  budget = drawing.budget(source, data_config, n)
  # Not to score the budget's images may leave others to train on.
  return n, budget if fraction_of_pool(budget) == n else ()


def _take_scored(source, data_config, budget, seed):
  """Returns what trains, and {split: ids} of those that have to be drawn."""
  rng = np.random.default_rng([seed, 1])
  pool = source.splits.get('train', source.splits.get('all', ()))
  taken = {}
  for name in ('test', 'val'):
    if name not in source.splits:
      fraction = data_config[f'{name}_fraction']
      taken[name], pool = drawing.take(source, pool, fraction, budget, rng)
  if source.drawn is not None and not data_config.allow_leaks:
    # Groups were taken by their full masks; other images of them may have
    # been annotated.
    groups = drawing.grouped(source, [i for v in taken.values() for i in v])
    pool = tuple(i for i in pool if source.groups.get(i, i) not in groups)
  return pool, taken


def rehash(splits: Splits) -> Splits:
  """Returns the splits with the hash of their ids."""
  return splits._replace(hash=_hash(splits))


def require_unlabelled(splits: Splits) -> None:
  """Refuses splits without unlabelled images, for stages that need them."""
  if not splits.unlabelled:
    raise UserError(
      'the data set gives no unlabelled images, which this method learns '
      'from, expected at least one; add images without a label file, name '
      'more splits in --config.data.unlabelled or lower '
      '--config.data.num_labelled or labelled_fraction'
    )


def save_splits(path: str | os.PathLike, splits: Splits) -> None:
  """Writes the splits as JSON, whole or not at all."""
  text = json.dumps(splits._asdict(), indent=1)
  images.write_atomically(path, text.encode())


def load_splits(path: str | os.PathLike) -> Splits:
  """Reads what `save_splits` wrote.

  Raises:
    UserError: a missing, damaged or edited file.
  """
  try:
    with open(path, encoding='utf-8') as f:
      content = json.load(f)
    fields = {k: tuple(content[k]) for k in Splits._fields[:4]}
    ood = {name: tuple(ids) for name, ids in content['ood'].items()}
    splits = Splits(
      **fields,
      ood=ood,
      hash=content['hash'],
      content=content.get('content', ''),
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path}: the splits cannot be read ({error!r}), expected the file that '
      'training wrote; train into a new workdir'
    ) from error
  if splits.hash != _hash(splits):
    raise UserError(
      f'{path}: the ids have hash {_hash(splits)}, expected {splits.hash} as '
      'the file says; it was edited, so train into a new workdir'
    )
  return splits


def refuse_other(path: str | os.PathLike, splits: Splits) -> None:
  """Refuses to go on in a workdir whose images were others.

  Out-of-domain sets may come and go: they train nothing.

  Args:
    path: what `save_splits` wrote when the workdir began; may be missing.
    splits: those of now, checked.

  Raises:
    UserError: names images that came or went, or says that pixels changed.
  """
  if not os.path.exists(path):
    return
  before = load_splits(path)
  for name in ('labelled', 'unlabelled', 'val', 'test'):
    old, new = getattr(before, name), getattr(splits, name)
    if old != new:
      gone, come = sorted(set(old) - set(new)), sorted(set(new) - set(old))
      raise UserError(
        f'{path}: the {name} images, or their order, are others than when this '
        'workdir began: '
        f'{len(gone)} are gone ({", ".join(gone[:3]) or "none"}) and '
        f'{len(come)} are new ({", ".join(come[:3]) or "none"}), expected the '
        'same; put the files back or train into a new workdir'
      )
  if before.content and before.content != splits.content:
    raise UserError(
      f'{path}: the pixels of some images or labels, drawn and synthetic ones '
      'too, are others than when this '
      'workdir began, expected the same; put the files back or train into a '
      'new workdir'
    )


def _hash(splits):
  text = json.dumps(splits._replace(hash='', content='')[:-1])
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_names(source, data_config):
  for field in ('unlabelled', 'ood'):
    for name in data_config[field]:
      if name not in source.splits:
        raise UserError(
          f'config.data.{field} names the split {name!r}, which '
          f'{source.name} does not have, expected some of '
          f'{sorted(source.splits)}; correct it, or for none add '
          f'"--config.data.{field}=()"'
        )
  if not {'train', 'all'} & set(source.splits):
    raise UserError(
      f'{source.name} has the splits {sorted(source.splits)}, expected one '
      "named 'train'; add it to splits.json, or remove that file to have the "
      'splits drawn'
    )
  for field in ('val_fraction', 'test_fraction'):
    if not 0 <= data_config[field] < 1:
      raise UserError(
        f'config.data.{field} is {data_config[field]}, expected a number from '
        f'0 up to 1; change --config.data.{field}'
      )
  if data_config.labelled_by not in ('image', 'group'):
    raise UserError(
      f'config.data.labelled_by is {data_config.labelled_by!r}, expected '
      "'image' or 'group'; change --config.data.labelled_by"
    )
  if data_config.labelled_by == 'group' and not source.groups:
    raise UserError(
      f"config.data.labelled_by is 'group', but {source.name} tells no groups, "
      'so that each image would count as one, expected patients or sequences; '
      'name them in splits.json or by --config.data.group_by, or set '
      '--config.data.labelled_by=image'
    )
  drawing.check_fraction(data_config)
  if data_config.num_labelled < 0:
    raise UserError(
      f'config.data.num_labelled is {data_config.num_labelled}, expected 0 '
      '(all) or more; change --config.data.num_labelled'
    )


def _refuse_leaks(source, splits, allow):
  """Refuses an id or a group both in training and in scoring.

  `allow` admits groups and, as in transductive learning, scored images
  without their labels; never labels that are scored.
  """
  training = set(splits.labelled) | (set() if allow else set(splits.unlabelled))
  groups = {source.groups.get(id_, id_) for id_ in training}
  scored = {'val': splits.val, 'test': splits.test} | splits.ood
  for name, ids in scored.items():
    both = [id_ for id_ in ids if id_ in training]
    if both:
      raise UserError(
        f'{source.name}: {len(both)} images of split {name!r} also train '
        f'(first {source.path(both[0])}), expected disjoint splits; correct '
        'splits.json, --config.data.unlabelled or --config.data.ood, or let '
        'images without their labels cross with --config.data.allow_leaks'
      )
    if allow:
      continue
    crossing = [i for i in ids if source.groups.get(i, i) in groups]
    if crossing:
      group = source.groups.get(crossing[0], crossing[0])
      raise UserError(
        f'{source.name}: group {group!r} is both in training and in split '
        f'{name!r} ({source.path(crossing[0])}), expected each patient or '
        'sequence on one side; correct splits.json, or set '
        '--config.data.allow_leaks'
      )
