"""Where numbers and pictures go: metrics.jsonl, TensorBoard, the console.

`Writer` has the method names and arguments of `clu.metric_writers`'
MetricWriter, so the two are interchangeable; clu's own package imports
TensorFlow, this does not.
"""

import collections
import contextlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxseg import visualize
from jaxseg.data.formats import images as image_files


def create(
  workdir_stage: str | os.PathLike, first_step: int = 0, write: bool = True
) -> 'Writer | NoWriter':
  """Opens the records of a stage, made if need be.

  What an earlier, interrupted run wrote after `first_step` is dropped, so the
  records of a resumed run are those of an uninterrupted one.

  Args:
    workdir_stage: folder of the stage; gets metrics.jsonl, samples/ and
      TensorBoard's event files.
    first_step: finished steps of the state that is resumed; 0: a new run.
    write: False: of a process that is not to write; nothing is opened.
  """
  return Writer(workdir_stage, first_step) if write else NoWriter()


class NoWriter:
  """Has the methods of a `Writer` and writes nothing."""

  def __getattr__(self, name: str):
    return lambda *args, **kwargs: None


class Writer:
  """Writes scalars, images, texts and hyperparameters of one stage.

  A disk that is full, or gone, stops no training: what cannot be written is
  told of once; numbers are kept in memory and written when there is room.
  """

  def __init__(self, workdir_stage: str | os.PathLike, first_step: int = 0):
    # Imported late: it loads torch where that is installed, which is slow.
    from tensorboardX import SummaryWriter

    self._folder = Path(workdir_stage)
    self._folder.mkdir(parents=True, exist_ok=True)
    path = self._folder / 'metrics.jsonl'
    truncate_jsonl(path, first_step)
    self._jsonl = path.open('ab', buffering=0)
    self._pending = b''  # lines that could not be written yet
    self._told = False
    self._tensorboard = SummaryWriter(
      str(self._folder),
      purge_step=first_step + 1,
      # A run resumed within the same second must not overwrite the file.
      filename_suffix=f'.{first_step:08d}',
    )

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes numbers of one step.

    A line of metrics.jsonl holds 'step' and the numbers, float32 in their
    shortest exact form, nan and infinity as null.
    """
    line = {'step': int(step)}
    for name, value in scalars.items():
      value = _number(value)
      self._event('add_scalar', name, value, int(step))
      line[name] = value if math.isfinite(value) else None
    self._pending += (json.dumps(line) + '\n').encode()
    self._write_pending()

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes pictures as samples/NAME_STEP.png and to TensorBoard.

    Args:
      step: finished steps.
      images: uint8 [H, W, C] or [N, H, W, C]; N images go side by side.

    Raises:
      TypeError: not uint8.
    """
    for name, image in images.items():
      image = np.asarray(image)
      if image.dtype != np.uint8:
        raise TypeError(f'picture {name!r}: {image.dtype}, expected uint8')
      image = visualize.to_rgb(
        visualize.grid([image], min_side=1) if image.ndim == 4 else image
      )
      stem = re.sub(r'[^\w.-]+', '_', name)
      file = f'{stem}_{int(step):07d}.png'
      with self._forgiving():
        visualize.write_png(self._folder / 'samples' / file, image)
      self._event('add_image', name, image, int(step), dataformats='HWC')

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes Markdown texts to TensorBoard."""
    for name, text in texts.items():
      self._event('add_text', name, text, int(step))

  def write_histograms(
    self,
    step: int,
    arrays: Mapping[str, np.ndarray],
    num_buckets: Mapping[str, int] | None = None,
  ) -> None:
    """Writes histograms to TensorBoard, of 30 buckets unless told."""
    for name, array in arrays.items():
      self._event(
        'add_histogram', name, np.asarray(array, np.float64), int(step),
        bins=(num_buckets or {}).get(name, 30),
      )  # fmt: skip

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes flat hyperparameters for TensorBoard's HPARAMS page."""
    from tensorboardX.summary import hparams as summaries

    simple = {
      name: value if isinstance(value, bool | int | float) else str(value)
      for name, value in hparams.items()
    }
    for summary in summaries(simple, {}):
      self._tensorboard.file_writer.add_summary(summary)

  def flush(self) -> None:
    """Brings everything to the disk; call it before a checkpoint."""
    self._write_pending()
    with self._forgiving():
      os.fsync(self._jsonl.fileno())
    with self._forgiving():
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes; may be called twice."""
    if not self._jsonl.closed:
      self.flush()
      self._jsonl.close()
      with self._forgiving():
        self._tensorboard.close()

  def _write_pending(self):
    """Writes whole lines or nothing."""
    with self._forgiving():
      size = os.fstat(self._jsonl.fileno()).st_size
      try:
        written = self._jsonl.write(self._pending)
      except OSError:
        written = 0
        raise
      finally:
        if written < len(self._pending):
          os.ftruncate(self._jsonl.fileno(), size)
        else:
          self._pending = b''

  def _event(self, method, *args, **kwargs):
    """Adds to TensorBoard's file, unless its thread has died of the disk."""
    worker = self._tensorboard.file_writer.event_writer._worker
    if worker.is_alive():  # else its queue would fill, and this would wait
      getattr(self._tensorboard, method)(*args, **kwargs)
    else:
      self._tell('its TensorBoard file cannot be written')

  @contextlib.contextmanager
  def _forgiving(self):
    try:
      yield
    except OSError as error:
      self._tell(error.strerror or str(error))

  def _tell(self, problem):
    if not self._told:
      self._told = True
      say(f'{self._folder}: {problem}; training goes on, records may be late')


def truncate_jsonl(path: str | os.PathLike, last_step: int) -> None:
  """Drops lines beyond `last_step`, and a line cut short by a crash.

  Args:
    path: a metrics.jsonl; nothing happens where there is none.
    last_step: the last step to keep.
  """
  path = Path(path)
  if not path.exists():
    return
  data = path.read_bytes()
  kept = b''.join(
    line
    for line in data.splitlines(keepends=True)
    if line.endswith(b'\n') and _step(line) <= last_step
  )
  if kept != data:
    image_files.write_atomically(path, kept)


def say(text: str, end: str = '\n') -> None:
  """Prints at once; does nothing once nobody reads (`| head`)."""
  try:
    print(text, end=end, flush=True)
  except (BrokenPipeError, ValueError):
    # Else the interpreter's own flush at exit fails again, with code 120.
    with contextlib.suppress(OSError, ValueError, AttributeError):
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
  """The line that tells how far a run is and when it will be done.

  Speed is measured over the last ten lines; `pause` leaves out what is not
  training.
  """

  def __init__(
    self,
    name: str,
    total_steps: int,
    images_per_step: float = 1,
    first_step: int = 0,
    clock=time.monotonic,
  ):
    self._name = name
    self._total = total_steps
    self._images_per_step = images_per_step
    self._clock = clock
    self._paused = 0.0
    self._marks = collections.deque([(first_step, clock())], maxlen=11)

  def mark(self, step: int) -> None:
    """Starts the measurement anew; call it when compilation is over."""
    self._marks.clear()
    self._marks.append((step, self._now()))

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Does not count the time spent within."""
    start = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - start

  def line(self, step: int, metrics: Mapping[str, Any] | None = None) -> str:
    """Returns e.g. `gan  1200/40000  3.0%  212 img/s  1h12m left  d_r 1.31`.

    Args:
      step: finished steps.
      metrics: scalars to show, in this order.
    """
    self._marks.append((step, self._now()))
    (old_step, old_time), (_, now) = self._marks[0], self._marks[-1]
    rate = (step - old_step) / (now - old_time) if now > old_time else 0.0
    width = len(str(self._total))
    parts = [
      self._name,
      f'{step:>{width}}/{self._total}',
      f'{100 * step / max(1, self._total):.1f}%',
    ]
    if rate > 0:
      parts.append(f'{_short(rate * self._images_per_step)} img/s')
      parts.append(f'{duration((self._total - step) / rate)} left')
    shown = (f'{k} {_short(_number(v))}' for k, v in (metrics or {}).items())
    return '  '.join([*parts, ' '.join(shown)]).rstrip()

  def _now(self):
    return self._clock() - self._paused


def duration(seconds: float) -> str:
  """Returns 45s, 12m05s, 1h12m or 2d03h."""
  seconds = max(0, round(seconds))
  minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
  if days:
    return f'{days}d{hours % 24:02d}h'
  if hours:
    return f'{hours}h{minutes % 60:02d}m'
  if minutes:
    return f'{minutes}m{seconds % 60:02d}s'
  return f'{seconds}s'


def _short(value):
  return f'{value:.0f}' if 100 <= abs(value) < 1e6 else f'{value:.3g}'


def _number(value):
  """A Python float; float32 0.1 stays 0.1 and is still exact."""
  value = np.asarray(value).reshape(())
  if value.dtype.itemsize < 8 and value.dtype.kind not in 'biu':
    return float(str(value.astype(np.float32)[()]))
  return value.item()


def _step(line):
  try:
    return json.loads(line)['step']
  except (ValueError, KeyError, TypeError):
    return math.inf
