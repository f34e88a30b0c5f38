"""The training state on disk: Orbax, written whole or not at all, verified.

Orbax writes in the background and makes a checkpoint visible when it is
complete. It restores a flipped bit without noticing and knows no way back from
a damaged checkpoint, so here every one carries checksums (`manifest`), which
are verified before it is used, and the newest intact one is.
"""

import logging as python_logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxseg import hosts, manifest, writers
from jaxseg.errors import UserError
from jaxseg.method import TrainState

UNFINISHED = '.orbax-checkpoint-tmp'  # in the names of folders being written
SAVE_TIMEOUT = 600  # seconds that processes wait for each other in a save
PATIENCE = 1800.0  # seconds that the last save waits for room on the disk


class CheckpointError(UserError):
  """No checkpoint can be used."""

  exit_code = 4


class CannotSave(UserError):
  """The disk took no checkpoint for so long that the training gave up."""

  exit_code = 5


class Checkpoints:
  """The checkpoints of a stage; close it, or use it in a `with`."""

  def __init__(
    self,
    directory: str | os.PathLike,
    keep: int = 2,
    keep_best: int = 0,
    read_only: bool = False,
  ):
    """Opens the folder, made if need be, and clears away unfinished saves.

    Args:
      directory: of this stage alone.
      keep: how many of the newest stay.
      keep_best: how many of those with the highest score stay as well.
      read_only: nothing is made or removed; another process may be saving.
    """
    self.directory = Path(os.path.abspath(directory))
    self.unsaved = False  # whether the last save failed
    self._keep, self._keep_best = keep, keep_best
    self._read_only = read_only
    self._saving = None  # the step that is being written
    # Orbax logs dozens of lines a save, in which the progress would drown, and
    # pages for an error that it raises as well.
    python_logging.getLogger('absl').addFilter(_not_orbax)
    self._open()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *error) -> None:
    self.close()

  def close(self) -> None:
    """Waits for the save in progress; a failed one was told of before."""
    try:
      self._manager.close()
    except (OSError, ValueError, RuntimeError):
      pass

  def steps(self) -> list[int]:
    """Finished steps of each checkpoint, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The newest; None: there is none."""
    return max(self.steps(), default=None)

  def best_step(self) -> int | None:
    """That with the highest score; None: there is none."""
    return self._manager.best_step() if self._keep_best else None

  def save(
    self, state: TrainState, data: dict, score: float | None = None
  ) -> bool:
    """Begins to save a state under its step; training may go on at once.

    Where that fails, for instance because the disk is full, the checkpoints
    before stay, a line says so, and `unsaved` is true until a save succeeds.

    Args:
      state: any layout on devices.
      data: where in the data it is, as JSON.
      score: by which `keep_best` chooses; higher is better.

    Returns:
      whether it began. Errors of the disk can come later, see `wait`.
    """
    step = int(state.step)
    sums = {
      'arrays': manifest.of_arrays(state),
      'data': manifest.of_json(data),
    }
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave(data),
      checksums=ocp.args.JsonSave(sums),
    )
    metrics = None
    if score is not None:  # nan, of no valid pixel, would count as the best
      score = score if np.isfinite(score) else -np.inf
      metrics = {'score': float(score)}
    self.wait()
    self._clear()  # threads of a failed save may have written on
    self._saving = step
    if hosts.several() and not self._room(state):
      self._tell('the disk is full')
      return False
    try:
      self._manager.save(step, args=args, metrics=metrics)
    except (OSError, ValueError, RuntimeError) as error:
      self._failed(error)
      return False
    self.unsaved = False
    return True

  def wait(self) -> bool:
    """Waits until all is on the disk; returns whether it is.

    Every process must call it.
    """
    error = None
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as raised:
      error = raised
    if hosts.any_of(error is not None):
      self._failed(error or OSError('another process could not write'))
    return not self.unsaved

  def poll(self) -> None:
    """Notices whether a save has failed meanwhile; of one process alone."""
    if not hosts.several() and not self._manager.is_saving_in_progress():
      self.wait()

  def save_and_wait(
    self, state, data, score=None, patience=PATIENCE, sleep=time.sleep
  ) -> None:
    """Saves the last state of a run, waiting for room if need be.

    Raises:
      CannotSave: there was none for `patience` seconds.
    """
    end = time.monotonic() + patience
    step = int(state.step)
    while True:
      if step in self.steps() and self.wait():
        return
      if self.save(state, data, score) and self.wait():
        return
      if time.monotonic() >= end:
        raise CannotSave(
          f'step {step} could not be saved in {self.directory} for '
          f'{writers.duration(patience)}; the checkpoints before are intact. '
          'Make room and run the same command again.'
        )
      sleep(min(10.0, patience / 10))

  def restore(
    self, like: TrainState, step: int | None = None
  ) -> tuple[TrainState, dict]:
    """Reads (state, position in the data), verified.

    Without `step` it is the newest intact one: damaged ones are told of and,
    unless this is read only, moved to `damaged_checkpoints/` beside the folder.

    Args:
      like: ShapeDtypeStructs with shardings, for any devices, see `abstract`.
      step: which.

    Raises:
      CheckpointError: none is intact, or they are of another model.
    """
    steps = self.steps()[::-1] if step is None else [step]
    if not steps:
      raise CheckpointError(
        f'{self.directory} holds no checkpoint; train this stage first.'
      )
    damaged = {}
    for candidate in steps:
      problem, found = self._read(candidate, like)
      if not problem:
        if damaged and not self._read_only:
          self._set_aside(list(damaged))
        return found
      damaged[candidate] = problem
      writers.say(f'checkpoint {candidate} is damaged: {problem}')
    told = '; '.join(f'step {s}: {problem}' for s, problem in damaged.items())
    raise CheckpointError(
      f'{self.directory} holds no intact checkpoint ({told}). Nothing was '
      'changed; put back a copy of that folder, or train in a new workdir.'
    )

  def _open(self):
    self._clear()
    # With a score alone the newest would be deleted when it is not the best.
    policies = [checkpoint_managers.LatestN(self._keep)]
    best = {}
    if self._keep_best:
      score = lambda metrics: metrics['score']
      best = dict(best_fn=score, best_mode='max')
      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=score,
          n=self._keep_best,
          keep_checkpoints_without_metrics=False,
        )
      )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
      create=not self._read_only,
      enable_async_checkpointing=True,
      async_options=ocp.AsyncOptions(
        timeout_secs=SAVE_TIMEOUT, post_finalization_callback=self._finish
      ),
      **best,
    )
    self._manager = ocp.CheckpointManager(self.directory, options=options)
    # Signals are agreed upon by `hosts` alone, with numbers of its own.
    self._manager.reached_preemption = lambda step: False

  def _clear(self):
    """Removes what killed and failed saves left."""
    if not self._read_only and hosts.primary():
      for left in self.directory.glob(f'*{UNFINISHED}*'):
        shutil.rmtree(left, ignore_errors=True)

  def _finish(self):
    """Called in the background when all is written and not yet visible."""
    if hosts.primary():
      for folder in self.directory.glob(f'*{UNFINISHED}*'):
        manifest.write_files(folder)

  def _failed(self, error):
    """Tells of a failed save and clears away what it left."""
    if isinstance(error, jax.errors.JaxRuntimeError):
      raise error  # of the devices or the other processes, not of the disk
    self.close()
    self._open()
    self._tell(str(error).strip().splitlines()[0][:200])

  def _room(self, state):
    """Whether the disk has room, as process 0 sees it."""
    free = shutil.disk_usage(self.directory).free
    return bool(hosts.from_primary(free > num_bytes(state)))

  def _tell(self, first):
    self.unsaved = True
    kept = self.latest_step()
    writers.say(
      f'step {self._saving} could not be saved in {self.directory}: {first}. '
      f'{"There is none before" if kept is None else f"Step {kept} is kept"}, '
      'training goes on, and saving is tried again.'
    )

  def _read(self, step, like):
    """(what is wrong, None) or (None, (state, data)); raises as `restore`."""
    folder = self.directory / str(step)
    wrong = manifest.changed_files(folder) if hosts.primary() else []
    count = hosts.from_primary(-1 if wrong is None else len(wrong))
    if count > 0:
      return '; '.join(wrong[:3]) or 'see process 0', None
    try:
      state, data, leaves = self._read_items(folder, step, like)
    except jax.errors.JaxRuntimeError:
      raise  # of the devices or the other processes
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
      first = str(error).strip().splitlines()[0][:300]
      if count < 0:  # no checksums of the files: they may be damaged
        return f'{folder} cannot be read ({first})', None
      raise CheckpointError(
        f'{folder} cannot be read as this stage: {first} Use the config it was '
        'trained with.'
      ) from error
    if leaves:
      changed = manifest.changed_arrays(state, leaves['arrays'])
      if leaves['data'] != manifest.of_json(data):
        changed.append('the position in the data')
      if changed:
        more = f' and {len(changed) - 1} more' if changed[1:] else ''
        return f'{folder}/state: {changed[0]}{more} is not as saved', None
    return None, (state, data)

  def _read_items(self, folder, step, like):
    items = dict(
      state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
    )
    if (folder / 'checksums').is_dir():
      items['checksums'] = ocp.args.JsonRestore()
    found = self._manager.restore(step, args=ocp.args.Composite(**items))
    return found['state'], found['data'], found.get('checksums')

  def _set_aside(self, steps):
    """Moves damaged checkpoints away: their steps will be saved anew."""
    if hosts.primary():
      for step in steps:
        aside = self.directory.parent / 'damaged_checkpoints'
        aside.mkdir(exist_ok=True)
        names = [str(step), *(f'{step}_{n}' for n in range(2, 1000))]
        name = next(n for n in names if not (aside / n).exists())
        shutil.move(self.directory / str(step), aside / name)
    hosts.wait(f'damaged checkpoints of {self.directory}, {steps}')
    self._manager.reload()


def _not_orbax(record: python_logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname


def abstract(state: TrainState, shardings: Any) -> TrainState:
  """Shapes and dtypes of a state, placed: what `restore` wants as `like`.

  Args:
    state: of arrays or ShapeDtypeStructs.
    shardings: one for all leaves, or a tree like `state`.
  """
  if isinstance(shardings, jax.sharding.Sharding):
    one = shardings
    shardings = jax.tree.map(lambda x: one, state)
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    state,
    shardings,
  )


def num_bytes(state: TrainState) -> int:
  """Returns the size of a state, as arrays or ShapeDtypeStructs."""
  return sum(
    int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(state)
  )
