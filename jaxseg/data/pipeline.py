"""From ids to batches: training streams, evaluation batches."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import grain
import numpy as np
from absl import flags

from jaxseg.data import streams, synthetic
from jaxseg.data.examples import Examples, num_threads
from jaxseg.data.formats import images
from jaxseg.data.inspection.checks import check as check
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
  together see the same batches whatever their number. Of the labelled images
  `config.data.synthetic.part` are those of its folder, with full labels, or
  boxes made of these where labels are boxes.

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
    Iterator of {'image': float32 [n, H, W, C] in [-1, 1], 'label': int32
    [n, H, W], 'unlabelled': float32 [m, H, W, C]} and what `streams` adds to
    them, without the keys of a stream that is off; n and m are the sizes above
    / process_count.

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
  workers = config.data.workers
  if workers:  # each fills a cache of its own, rather than be sent this one
    source = source._replace(cache={})
  examples = Examples(source._replace(synthetic=None), config.data)
  labelled = streams.labelled
  if source.synthetic is not None and batch_size:
    generated = _generated(source, config.data)
    labelled = functools.partial(labelled, generated=generated)
  parts = []
  for make, what, ids, size in (
    (labelled, 'labelled', splits.labelled, batch_size),
    (
      streams.unlabelled,
      'unlabelled',
      splits.unlabelled,
      unlabelled_batch_size,
    ),
  ):
    if size:
      if not ids:
        raise UserError(
          f'{source.name} has no {what} images to train on, expected '
          'at least one; change --config.data or set the batch size of that '
          'stream to 0'
        )
      # Two streams of one seed would draw the same augmentations.
      stream_seed = 2 * seed + (what == 'labelled')
      ds = make(examples, ids, config.data, stream_seed, MAX_STEPS * size)
      # Shared out last, so that order and augmentation do not depend on the
      # number of processes.
      if process_count > 1:
        ds = _Share(ds, size, process_index, process_count)
      parts.append(ds.batch(size // process_count, batch_fn=streams.collate))
  if not parts:
    raise UserError(
      'batch_size and unlabelled_batch_size are both 0, expected images; '
      'change --config.STAGE.batch_size'
    )
  # With all in memory, a second thread only waits for Python's lock.
  threads = 1 if config.data.cache else num_threads()
  return TrainBatches(parts, start_step, threads, workers)


def _generated(source, data_config):
  """Returns the synthetic images of the labelled stream."""
  made = source.synthetic()
  if data_config.workers:
    made = made._replace(cache={})
  return streams.Generated(
    Examples(made, data_config, full=True),
    synthetic.ids(made),
    data_config.synthetic.part,
  )


class _Share(grain.MapDataset):
  """The part of each batch, a block of its elements, that one process reads.

  A block, so that the whole batch is in one order whatever the number of
  processes: groups of the minibatch deviation and CutMix partners depend on it.
  """

  def __init__(self, parent: grain.MapDataset, size: int, index: int, of: int):
    super().__init__(parent)
    self._size, self._index, self._of = size, index, of

  def __len__(self) -> int:
    return len(self._parent) // self._of

  def __getitem__(self, index: int):
    if isinstance(index, slice):
      return self.slice(index)
    mine = self._size // self._of
    batch, i = divmod(index, mine)
    return self._parent[batch * self._size + self._index * mine + i]


class TrainBatches:
  """An endless iterator that knows its position; see `train_batches`."""

  def __init__(
    self,
    parts: Sequence[grain.MapDataset],
    start_step: int,
    threads: int,
    workers: int = 0,
  ):
    zipped = grain.experimental.ZipMapDataset(parts)[start_step:]
    # Threads read ahead, so that the devices do not wait for the host.
    options = grain.ReadOptions(threads, max(READ_AHEAD, threads))
    batches = zipped.to_iter_dataset(options)
    if workers:
      if not flags.FLAGS.is_parsed():  # grain's workers want absl's flags
        flags.FLAGS.mark_as_parsed()
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(workers, per_worker_buffer_size=2),
        _start_worker,
      )
    self._iterator = iter(batches)
    self._next_step = start_step

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    batch = {k: v for part in next(self._iterator) for k, v in part.items()}
    self._next_step += 1
    return batch

  def state(self) -> dict[str, int]:
    """Returns {'next_step': k}; `start_step=k` goes on from there."""
    return {'next_step': self._next_step}

  def close(self) -> None:
    """Stops reading ahead."""
    self._iterator.close()


def _start_worker(index: int, count: int) -> None:
  """Ties a worker's life to its parent's alone.

  A signal to the whole process group (Ctrl-C, a cluster's notice) must leave
  the parent its batches until it has saved; a killed parent no orphans.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)

  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


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
    {'image': float32 [N, H, W, C] in [-1, 1], 'label': int32 [N, H, W],
    'ids': list of N str, 'valid': bool [N]}.
  """
  examples = Examples(source, config.data)

  def read(id_):
    return {'image': examples.image(id_), 'label': examples.label(id_)}

  def batch(start):
    part = list(ids[start : start + batch_size])
    padding = batch_size - len(part)
    elements = list(readers.map(read, part))
    void = np.full_like(elements[-1]['label'], images.VOID)
    elements += [elements[-1] | {'label': void}] * padding
    return streams.collate(elements) | {
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
