"""From ids to batches: checks, training streams, evaluation batches."""

import functools
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np

from jaxseg.data import images, transforms
from jaxseg.data.sources import Source
from jaxseg.data.splits import Splits
from jaxseg.errors import UserError

Batch = dict[str, np.ndarray]

ERRORS_SHOWN = 5
# More steps than any run; grain wants an end to know how long a stream is.
MAX_STEPS = 2**31
READ_AHEAD = 4  # batches
MIN_SIDE = 8  # pixels; a smaller image shows nothing


class Examples:
  """Images and labels of a source at the resolution of the networks.

  Arrays are kept in `source.cache` when `config.data.cache` says so, whoever
  asks first; they are shared and read-only.
  """

  def __init__(self, source: Source, data_config: Any):
    self._source = source
    self._side = data_config.resolution
    self._cache = source.cache if data_config.cache else None

  def image(self, id_: str) -> np.ndarray:
    """Returns uint8 [R, R, C]; images of other shapes are squeezed."""
    return self._get('image', id_)

  def label(self, id_: str) -> np.ndarray:
    """Returns uint8 [R, R]; all void for an unlabelled image."""
    return self._get('label', id_)

  def original_label(self, id_: str) -> np.ndarray:
    """Returns uint8 [H, W], the label at its own resolution.

    Raises:
      UserError: an image without a label.
    """
    label = self._source.label(id_)
    if label is None:
      raise UserError(_no_mask(self._source, id_))
    return label

  def keep(self, kind: str, id_: str, original: np.ndarray) -> np.ndarray:
    """Resizes a decoded 'image' or 'label' and caches the result."""
    resize = images.resize_image if kind == 'image' else images.resize_label
    array = resize(original, self._side)
    array.flags.writeable = False
    if self._cache is not None:
      self._cache[kind, id_, self._side] = array
    return array

  def _get(self, kind, id_):
    if self._cache is not None and (kind, id_, self._side) in self._cache:
      return self._cache[kind, id_, self._side]
    if kind == 'image':
      return self.keep(kind, id_, self._source.image(id_))
    label = self._source.label(id_)
    if label is None:
      label = np.full((self._side, self._side), images.VOID, np.uint8)
    return self.keep(kind, id_, label)


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
  ids = list(dict.fromkeys([*splits.labelled, *splits.unlabelled]))
  ids += [i for i in dict.fromkeys(sum(scored, ())) if i not in set(ids)]
  found = np.zeros(256, bool)
  errors, labels = [], 0

  def check_one(id_):
    try:
      return _check_one(source, examples, id_, id_ in with_label)
    except UserError as error:
      return error

  with futures.ThreadPoolExecutor(_num_threads()) as pool:
    for result in _with_progress(pool.map(check_one, ids), len(ids)):
      if isinstance(result, UserError):
        errors.append(str(result))
      elif result is not None:
        found |= result
        labels += 1
  if errors:
    more = len(errors) - ERRORS_SHOWN
    raise UserError(
      '; '.join(errors[:ERRORS_SHOWN])
      + (f'; and {more} more files with mistakes' if more > 0 else '')
    )
  if list(np.flatnonzero(found)) == [0, images.VOID]:
    raise UserError(
      f'{source.name}: the {labels} label files hold only 0 and 255, and 255 '
      'means void here, expected class ids; save the white pixels of '
      'black-and-white masks as 1'
    )


def train_batches(
  source: Source,
  splits: Splits,
  config: Any,
  *,
  batch_size: int,
  unlabelled_batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> 'TrainBatches':
  """Returns an endless iterator over this process's part of each batch.

  The batch of step k is a pure function of the arguments and k. Both streams
  reshuffle each time they have gone through their images. All processes
  together see the same batches whatever their number.

  Args:
    source: the data set.
    splits: gives the labelled and the unlabelled ids.
    config: the experiment's; `config.data` is used.
    batch_size: labelled images a step, over all processes; 0: none.
    unlabelled_batch_size: unlabelled images a step, over all; 0: none.
    seed: of order and augmentation.
    start_step: the step of the first batch.
    process_index: this process, 0..process_count-1.
    process_count: processes that share each batch.

  Returns:
    Iterator of {'image': float32 [n, R, R, C] in [-1, 1], 'label': int32
    [n, R, R], 'unlabelled': float32 [m, R, R, C]}, without the keys of a
    stream that is off; n and m are the sizes above / process_count.

  Raises:
    UserError: a batch that the processes cannot share equally.
  """
  for name, size in (
    ('batch_size', batch_size),
    ('unlabelled_batch_size', unlabelled_batch_size),
  ):
    if size % process_count or size < 0:
      raise UserError(
        f'{name} is {size}, expected a multiple of the {process_count} '
        f'processes; change --config.STAGE.{name}'
      )
  examples = Examples(source, config.data)
  streams = []
  for ids, size, labelled in (
    (splits.labelled, batch_size, True),
    (splits.unlabelled, unlabelled_batch_size, False),
  ):
    if size:
      # Two streams of one seed would draw the same augmentations.
      stream_seed = 2 * seed + labelled
      length = MAX_STEPS * size
      ds = _stream(examples, ids, labelled, config.data, stream_seed, length)
      # Shared out last, so that order and augmentation do not depend on the
      # number of processes.
      ds = ds[process_index::process_count]
      collate = _collate_labelled if labelled else _collate_unlabelled
      streams.append(ds.batch(size // process_count, batch_fn=collate))
  if not streams:
    raise UserError(
      'batch_size and unlabelled_batch_size are both 0, expected images; '
      'change --config.STAGE.batch_size'
    )
  threads = 1 if config.data.cache else _num_threads()
  return TrainBatches(streams, start_step, threads)


class TrainBatches:
  """An endless iterator that knows its position; see `train_batches`."""

  def __init__(
    self, streams: Sequence[grain.MapDataset], start_step: int, threads: int
  ):
    # Threads read ahead, so that the devices do not wait for the host.
    options = grain.ReadOptions(threads, max(READ_AHEAD, threads))
    zipped = grain.experimental.ZipMapDataset(streams)
    self._iterator = iter(zipped.to_iter_dataset(options))
    self._iterator.set_state({'next_index': start_step})

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    return {k: v for part in next(self._iterator) for k, v in part.items()}

  def state(self) -> dict[str, int]:
    """Returns {'next_step': k}; `start_step=k` goes on from there."""
    return {'next_step': self._iterator.get_state()['next_index']}

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()


def eval_batches(
  source: Source, ids: Sequence[str], config: Any, batch_size: int
) -> Iterator[dict[str, Any]]:
  """Goes once through `ids`, in order, in batches of one size.

  The last batch is filled up with copies of its last image whose labels are
  void; 'valid' is False there and 'ids' empty.

  Args:
    source: the data set.
    ids: of images with or without label.
    config: the experiment's; `config.data` is used.
    batch_size: N.

  Yields:
    {'image': float32 [N, R, R, C] in [-1, 1], 'label': int32 [N, R, R],
    'ids': list of N str, 'valid': bool [N]}.
  """
  examples = Examples(source, config.data)

  def read(id_):
    return examples.image(id_), examples.label(id_)

  def batch(start):
    part = list(ids[start : start + batch_size])
    padding = batch_size - len(part)
    elements = list(readers.map(read, part))
    void = np.full_like(elements[-1][1], images.VOID)
    elements += [(elements[-1][0], void)] * padding
    return _collate_labelled(elements) | {
      'ids': part + [''] * padding,
      'valid': np.arange(batch_size) < len(part),
    }

  with (
    futures.ThreadPoolExecutor(_num_threads()) as readers,
    futures.ThreadPoolExecutor(1) as ahead,
  ):
    pending = None
    for start in range(0, len(ids), batch_size):
      following = ahead.submit(batch, start)
      if pending:
        yield pending.result()
      pending = following
    if pending:
      yield pending.result()


def _stream(examples, ids, labelled, data_config, seed, length):
  """Endless shuffled elements: (uint8 or float32 image, label or None)."""

  def read(position):
    epoch, i = divmod(position, len(ids))
    id_ = ids[_permutation(len(ids), seed, epoch)[i]]
    return examples.image(id_), examples.label(id_) if labelled else None

  def read_augmented(position, rng):
    image, label = read(position)
    return transforms.augment(
      _normalise(image), label, rng, data_config.augment
    )

  ds = grain.MapDataset.range(length).seed(seed)
  if transforms.is_identity(data_config.augment):
    return ds.map(read)
  return ds.random_map(read_augmented)


# Instead of grain's `shuffle`, which takes 2 ms an element for a set of 9
# images (0.6 ms for 30): it walks a cycle through at least 2^16 indices.
@functools.lru_cache(maxsize=16)
def _permutation(n, seed, epoch):
  return np.random.default_rng([seed, epoch]).permutation(n)


def _collate_labelled(elements):
  batch_images, labels = zip(*elements, strict=True)
  return {
    'image': _normalise(np.stack(batch_images)),
    'label': np.stack(labels).astype(np.int32),
  }


def _collate_unlabelled(elements):
  return {'unlabelled': _normalise(np.stack([image for image, _ in elements]))}


def _normalise(image):
  """Maps uint8 to float32 in [-1, 1]; leaves float32 as it is."""
  if image.dtype != np.uint8:
    return image
  return image * np.float32(1 / 127.5) - np.float32(1)


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
  """Returns which ids (bool [256]) the label holds; None: not needed."""
  image = source.image(id_)
  if min(image.shape[:2]) < MIN_SIDE:
    raise UserError(
      f'{source.path(id_)}: the image is {_size(image)}, expected at least '
      f'{MIN_SIDE} pixels a side; remove it'
    )
  examples.keep('image', id_, image)
  if not needs_label:
    return None
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
  return present


def _no_mask(source, id_):
  return (
    f'{source.path(id_)}: the image has no label file, expected one as it is '
    'in a labelled or scored split; add labels/NAME.png or list the image '
    'as unlabelled'
  )


def _size(array):
  return f'{array.shape[1]}x{array.shape[0]}'


def _num_threads():
  return min(8, os.cpu_count() or 1)


def _with_progress(results, total):
  """Passes results on; a line every 5 seconds when it takes over 2."""
  due = time.monotonic() + 2
  for done, result in enumerate(results, 1):
    if time.monotonic() > due and done < total:
      print(f'jaxseg: read {done} of {total} images', file=sys.stderr)
      due = time.monotonic() + 5
    yield result
