"""The loop of one stage: steps, records, pictures, checkpoints.

And what to do when something goes wrong on the way.
"""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import guard, hosts, parallel, runtime, visualize, writers
from jaxseg.checkpoints import Checkpoints
from jaxseg.errors import UserError
from jaxseg.method import Method, TrainState
from jaxseg.metrics import segmentation
from jaxseg.watchdog import Watchdog

MAX_SKIPPED = 10  # steps in a row without effect; then the state itself is bad
IN_FLIGHT = 2  # dispatches; more would only keep batches in memory


class Run(NamedTuple):
  """What a stage is trained with.

  Attributes:
    config: the experiment's.
    stage: its name.
    workdir: of the experiment.
    method: its functions.
    data: `train.Data`.
    mesh: of all processes' devices.
    shardings: of its state, a tree.
    ckpts: its checkpoints.
    watchdog: expects a beat at every step.
    stop: a list that a signal appends its name to.
  """

  config: ConfigDict
  stage: str
  workdir: Path
  method: Method
  data: Any
  mesh: jax.sharding.Mesh
  shardings: TrainState
  ckpts: Checkpoints
  watchdog: Watchdog
  stop: list


class Spoilt(Exception):
  """The state gives nothing finite any more: `step`, and the terms."""

  def __init__(self, step: int, terms: list[str]):
    super().__init__(step, terms)
    self.step, self.terms = step, terms


class Loop:
  """The loop of one stage, from one state to its last or to `Spoilt`."""

  def __init__(self, run: Run, retries: int):
    """Compiles nothing yet.

    Args:
      run: see `Run`.
      retries: how often the stage went back to a checkpoint before.
    """
    self.run_, self.retries = run, retries
    self.fields = run.config[run.stage]
    self.steps = self.fields.steps_per_dispatch
    step = guard.guarded(run.method.train_step)
    same = parallel.replicated(run.mesh)
    self.step = jax.jit(
      guard.several(step) if self.steps > 1 else step,
      donate_argnums=(0, 1),
      out_shardings=(run.shardings, same, same),
    )
    jitted = lambda function: function and jax.jit(function, out_shardings=same)
    self.pictures = jitted(run.method.pictures)
    # Read now: files that go away later must not end the training here.
    self.picture_batch = self.pictures and run.data.picture_batch(
      run.config, run.mesh
    )
    self.predict = jitted(run.method.predict and labels(run.method))
    self.skipped, self.overflow_told = 0, False
    self.progress = self.writer = self.batches = None

  def run(self, state: TrainState) -> TrainState:
    """Returns the state after total_steps.

    Raises:
      Spoilt: nothing finite comes any more.
      runtime.Interrupted: stopped by a signal, after saving.
      UserError: data that cannot be read any more, after saving.
    """
    run, fields, first = self.run_, self.fields, int(state.step)
    if first % self.steps:
      raise UserError(
        f'config.{run.stage}.steps_per_dispatch is {self.steps}, but the '
        f'checkpoint is of step {first}, no multiple of it; set it to 1 or to '
        f'a divisor of {first}.'
      )
    self.progress = writers.Progress(
      run.stage, fields.total_steps,
      fields.batch_size + fields.unlabelled_batch_size, first,
    )  # fmt: skip
    with (
      contextlib.closing(
        writers.create(run.workdir / run.stage, first, hosts.primary())
      ) as self.writer,
      contextlib.closing(
        run.data.batches(run.config, run.stage, first, self.retries, run.mesh)
      ) as self.batches,
    ):
      return self.run_steps(state)

  def run_steps(self, state: TrainState) -> TrainState:
    fields, run = self.fields, self.run_
    health = jax.device_put(guard.healthy(), parallel.replicated(run.mesh))
    first, total, running = int(state.step), fields.total_steps, []
    for step in range(first + self.steps, total + 1, self.steps):
      try:
        batch = self.next_batch()
      except (UserError, OSError) as error:
        self.save_before(error, state)
        raise
      state, health, metrics = self.step(state, health, batch)
      running = [*running, metrics][-IN_FLIGHT:]
      jax.block_until_ready(running[0])
      if step == first + self.steps:
        jax.block_until_ready(metrics)
        self.progress.mark(step)  # compilation is over
      run.watchdog.beat()
      self.after_step(step, state, health, metrics, step == total)
    return state

  def after_step(self, step, state, health, metrics, last):
    """Records, pictures and checkpoints that are due."""
    fields, run = self.fields, self.run_
    log = itstime(step, fields.log_every, last)
    if log:
      self.log(step, health, metrics)
      run.ckpts.poll()
    stop = bool(run.stop) or hosts.preempted()
    due = itstime(step, fields.checkpoint_every, last)
    if due or stop or (log and run.ckpts.unsaved):
      with self.progress.pause(), run.watchdog.pause():
        self.save(state, health, metrics, wait=last or stop)
    if itstime(step, fields.picture_every, last):
      with self.progress.pause(), run.watchdog.pause():
        self.draw(step, state)
    if stop:
      name = run.stop[0] if run.stop else 'SIGTERM'
      raise runtime.Interrupted(
        f'{name} at {run.stage} step {step}: saved. Run the same command again '
        'to continue.'
      )

  def next_batch(self):
    """The next batches, placed; those of several steps are stacked."""
    batches = [next(self.batches) for _ in range(self.steps)]
    if self.steps == 1:
      return parallel.put_batch(batches[0], self.run_.mesh)
    stacked = {
      name: np.stack([batch[name] for batch in batches]) for name in batches[0]
    }
    return parallel.put_batch(stacked, self.run_.mesh, steps=True)

  def log(self, step, health, metrics) -> None:
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.check(health, values)
    self.writer.write_scalars(step, values)
    self.tell_overflow(step, values)
    hidden = 'r1', 'r1_m', 'path', *overflows(values)
    shown = {k: v for k, v in values.items() if k not in hidden}
    writers.say(self.progress.line(step, shown))

  def tell_overflow(self, step, values) -> None:
    """Says once that terms that follow edges are wrong."""
    part = max([0.0, *overflows(values).values()])
    if not part > 0 or self.overflow_told:
      return
    self.overflow_told = True
    fields = [
      f'config.{self.run_.stage}.args.{name}.max_vertices'
      for name, value in self.fields.args.items()
      if isinstance(value, ConfigDict) and 'max_vertices' in value
    ]
    writers.say(
      f'{self.run_.stage} step {step}: the lattice has no room for the colours '
      f'of {part:.2%} of the images, whose terms that follow edges are wrong '
      f'or left out; raise {" or ".join(fields)} (0: one for each pixel, at '
      'least 16384)'
    )

  def check(self, health, metrics) -> None:
    """Tells of steps without effect; raises Spoilt when all are."""
    health = jax.tree.map(int, jax.device_get(health))
    terms = guard.names(health.terms, metrics)
    if health.skipped > self.skipped:
      writers.say(
        f'{self.run_.stage} step {health.step}: '
        f'{", ".join(terms)} not finite, the step was left out '
        f'({health.skipped} so far)'
      )
      self.skipped = health.skipped
    if health.row >= MAX_SKIPPED:
      raise Spoilt(health.step, terms)

  def save(self, state, health, metrics, wait=False) -> None:
    """Never saves a state that holds nan: the one before stays the newest."""
    self.check(health, metrics)
    if not bool(guard.all_finite((state.params, state.ema, state.extra))):
      raise Spoilt(int(state.step), ['the updated state'])
    self.writer.flush()
    score = self.score(state) if self.fields.keep_best else None
    ckpts = self.run_.ckpts
    data = self.batches.state() | {'retries': self.retries}
    if wait:
      ckpts.save_and_wait(state, data, score)
    else:
      ckpts.save(state, data, score)

  def save_before(self, error, state) -> None:
    """Saves what was computed before data could not be read."""
    ckpts = self.run_.ckpts
    if hosts.several():
      return  # the others wait for this process in the middle of a step
    if ckpts.wait() and int(state.step) in ckpts.steps():
      return
    writers.say(
      f'{self.run_.stage}: {error}; saving step {int(state.step)} ...'
    )
    data = {'next_step': int(state.step), 'retries': self.retries}
    good = guard.all_finite((state.params, state.ema, state.extra))
    if bool(good) and ckpts.save(state, data):
      ckpts.wait()

  def score(self, state) -> float:
    """Mean IoU on the validation images, at the size that networks see."""
    run, total = self.run_, 0
    for batch in run.data.validation_batches(run.config, run.mesh):
      found = self.predict(state, batch['image'])
      total = total + segmentation.confusion_matrix(
        batch['label'], hosts.whole(found), run.data.num_classes
      )
    scores = segmentation.summarize(total, run.data.source.class_names)
    self.writer.write_scalars(int(state.step), {'val_miou': scores['miou']})
    writers.say(f'{run.stage} step {int(state.step)}: val_miou '
                f'{scores["miou"]:.4f}')  # fmt: skip
    return scores['miou']

  def draw(self, step, state) -> None:
    if not self.pictures:
      return
    images = self.pictures(state, self.picture_batch)
    images = {name: hosts.whole(x) for name, x in images.items()}
    palette = self.run_.data.source.palette
    grid = visualize.grid(
      [
        visualize.colorize(x, palette) if x.ndim == 3 else x
        for x in images.values()
      ]
    )
    self.writer.write_images(step, {'samples': grid})


def overflows(values: dict[str, float]) -> dict[str, float]:
  """Of the metrics, the parts of images for which a lattice is too small."""
  return {k: v for k, v in values.items() if 'lattice_overflow' in k}


def labels(method: Method):
  """(state, images) -> the likeliest classes, int32 [N, H, W]."""
  return lambda state, images: method.predict(
    state, images
  ).probabilities.argmax(-1)


def itstime(step: int, every: int, last: bool) -> bool:
  """True every `every` steps and at the last; never when `every` is 0."""
  return every > 0 and (step % every == 0 or last)
