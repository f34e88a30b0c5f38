"""From ids to batches: training streams, evaluation batches."""

import functools
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np

from jaxseg.data import images, transforms
from jaxseg.data.checks import check as check
from jaxseg.data.examples import Examples, num_threads
from jaxseg.data.source import Source
from jaxseg.data.splits import Splits
from jaxseg.errors import UserError

Batch = dict[str, np.ndarray]

# More steps than any run; grain wants an end to know how long a stream is.
MAX_STEPS = 2**31
READ_AHEAD = 4  # batches


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
      if not ids:
        raise UserError(
          f'{source.name} has no {"" if labelled else "un"}labelled images to '
          'train on, expected at least one; change --config.data or set the '
          'batch size of that stream to 0'
        )
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
  threads = 1 if config.data.cache else num_threads()
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
    futures.ThreadPoolExecutor(num_threads()) as readers,
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
