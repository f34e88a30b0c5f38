"""What can be wrong with a data set, found before any expensive work."""

import itertools
import os
import sys
import time
from concurrent import futures
from typing import Any

import numpy as np

from jaxseg.data import images
from jaxseg.data.examples import Examples, num_threads
from jaxseg.data.sources import Source
from jaxseg.data.splits import Splits
from jaxseg.errors import UserError

ERRORS_SHOWN = 5
MIN_SIDE = 8  # pixels; a smaller image shows nothing
MAX_ASPECT = 1.1  # long by short side that still goes unmentioned


def check(source: Source, splits: Splits, data_config: Any) -> None:
  """Reads everything that will be used, before any expensive work.

  Every image and label of every split must decode; labels must have their
  image's size and hold only ids of classes and 255 (void); labelled images
  and those that are scored must have a label. What was read stays in the
  cache.

  Raises:
    UserError: names the first few mistakes and counts the others.
  """
  _check_config(source, splits, data_config)
  examples = Examples(source, data_config)
  scored = [splits.val, splits.test, *splits.ood.values()]
  with_label = set(splits.labelled).union(*scored)
  used = [splits.labelled, splits.unlabelled, *scored]
  ids = list(dict.fromkeys(itertools.chain.from_iterable(used)))
  found = np.zeros(256, bool)  # ids in any label
  shown = np.zeros(256, bool)  # ids in those that train
  errors, num_labels, aspects = [], 0, []
  labelled = set(splits.labelled)

  def check_one(id_):
    try:
      return _check_one(source, examples, id_, id_ in with_label)
    except UserError as error:
      return error

  with futures.ThreadPoolExecutor(num_threads()) as pool:
    results = _with_progress(pool.map(check_one, ids), len(ids))
    for id_, result in zip(ids, results, strict=True):
      if isinstance(result, UserError):
        errors.append(str(result))
        continue
      present, aspect = result
      aspects.append(aspect)
      if present is not None:
        num_labels += 1
        found |= present
        if id_ in labelled:
          shown |= present
  if errors:
    more = len(errors) - ERRORS_SHOWN
    raise UserError(
      '; '.join(errors[:ERRORS_SHOWN])
      + (f'; and {more} more files with mistakes' if more > 0 else '')
    )
  if list(np.flatnonzero(found)) == [0, images.VOID]:
    raise UserError(
      f'{source.name}: the {num_labels} label files hold only 0 and 255, and '
      '255 means void here, expected class ids; save the white pixels of '
      'black-and-white masks as 1'
    )
  _tell(source, data_config, shown, np.array(aspects))


def _tell(source, data_config, shown, aspects):
  """Mentions what is allowed, yet may surprise."""
  never = [n for n, s in zip(source.class_names, shown, strict=False) if not s]
  if never:
    print(
      f'jaxseg: no labelled image shows {", ".join(never)}; more labels or '
      'another seed may',
      file=sys.stderr,
    )
  count = np.count_nonzero(aspects > MAX_ASPECT)
  if count:
    print(
      f'jaxseg: {count} of {len(aspects)} images are not square (up to '
      f'{aspects.max():.1f}:1); the networks see them squeezed to '
      f'{data_config.resolution}x{data_config.resolution}',
      file=sys.stderr,
    )


def _check_config(source, splits, data_config):
  side = data_config.resolution
  if side & (side - 1) or not 32 <= side <= 1024:
    raise UserError(
      f'config.data.resolution is {side}, expected a power of two from 32 to '
      '1024; change --config.data.resolution'
    )
  if data_config.channels not in (1, 3):
    raise UserError(
      f'config.data.channels is {data_config.channels}, expected 1 (grey) or '
      '3 (RGB); change --config.data.channels'
    )
  n = len(splits.unlabelled) + len(splits.labelled)
  needed = n * side**2 * (data_config.channels + 1)
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if data_config.cache and needed > 0.8 * total:
    raise UserError(
      f'config.data.cache would keep {needed / 2**30:.1f} GiB of images, '
      f'expected less than 80 % of the {total / 2**30:.1f} GiB of memory; '
      'set --config.data.cache=False or lower --config.data.resolution'
    )


def _check_one(source, examples, id_, needs_label):
  """Returns (ids in the label, bool [256] or None; long by short side)."""
  image = source.image(id_)
  if min(image.shape[:2]) < MIN_SIDE:
    raise UserError(
      f'{source.path(id_)}: the image is {_size(image)}, expected at least '
      f'{MIN_SIDE} pixels a side; remove it'
    )
  examples.keep('image', id_, image)
  aspect = max(image.shape[:2]) / min(image.shape[:2])
  if not needs_label:
    return None, aspect
  label = examples.original_label(id_)
  if label.shape != image.shape[:2]:
    raise UserError(
      f'{source.path(id_)}: the label is {_size(label)} and the image '
      f'{_size(image)} (width x height), expected one size; resize the label '
      'to the image with nearest neighbour'
    )
  present = np.bincount(label.ravel(), minlength=256) > 0
  k = len(source.class_names)
  wrong = np.flatnonzero(present[: images.VOID][k:]) + k
  if len(wrong):
    raise UserError(
      f'{source.path(id_)}: its label holds the ids '
      f'{", ".join(map(str, wrong[:5]))}, expected 0 to {k - 1} '
      f'({k} classes) or 255 (void); correct the label or the classes in '
      'meta.json'
    )
  examples.keep('label', id_, label)
  return present, aspect


def _size(array):
  return f'{array.shape[1]}x{array.shape[0]}'


def _with_progress(results, total):
  """Passes results on; a line every 5 seconds when it takes over 2."""
  due = time.monotonic() + 2
  for done, result in enumerate(results, 1):
    if time.monotonic() > due and done < total:
      print(f'jaxseg: read {done} of {total} images', file=sys.stderr)
      due = time.monotonic() + 5
    yield result
