"""Trains the stages of a config, one after the other, in one workdir.

  python -m jaxseg.train --config=configs/quickstart.py --workdir=runs/digits

Run the same command again to continue where it stopped.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from clu import parameter_overview
from ml_collections import ConfigDict, config_flags

from jaxseg import (
  checkpoints,
  evaluate,
  parallel,
  runtime,
  visualize,
  writers,
)
from jaxseg import (
  workdir as workdirs,
)
from jaxseg.config import check, parse_flags
from jaxseg.data import pipeline, sources
from jaxseg.data import splits as data_splits
from jaxseg.data.formats.images import write_atomically
from jaxseg.data.inspection import checks
from jaxseg.errors import UserError, friendly
from jaxseg.method import Batch, Method, TrainState
from jaxseg.methods import perceptual, segmenting_checks

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of this run.')
_EVALUATE = flags.DEFINE_bool('evaluate', True, 'Evaluate at the end.')


class Diverged(UserError):
  """A loss became nan or infinite."""

  exit_code = 6


class Data:
  """The source with its splits, checked, and the batches drawn from it."""

  def __init__(self, config: ConfigDict, workdir: str):
    self.source = sources.load(config.data)
    self.splits = data_splits.make_splits(self.source, config.data, config.seed)
    if any(config[s].unlabelled_batch_size for s in config.stages):
      data_splits.require_unlabelled(self.splits)
    folder = Path(workdir)
    self.splits = checks.check(
      self.source, self.splits, config.data, folder / 'data_problems.csv'
    )
    data_splits.refuse_other(folder / 'splits.json', self.splits)

  @property
  def num_classes(self) -> int:
    return len(self.source.class_names)

  def batches(self, config: ConfigDict, stage: str, start_step: int):
    fields = config[stage]
    return pipeline.train_batches(
      self.source, self.splits, config,
      batch_size=fields.batch_size,
      unlabelled_batch_size=fields.unlabelled_batch_size,
      # Each stage sees its own order.
      seed=config.seed + config.stages.index(stage),
      start_step=start_step,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )  # fmt: skip

  def picture_batch(self, config: ConfigDict) -> Batch:
    """The eight images that every sample grid shows."""
    ids = self.splits.val or self.splits.labelled
    ids = ids[:: max(1, len(ids) // 8)][:8]  # sets may be sorted by class
    batch = next(pipeline.eval_batches(self.source, ids, config, len(ids)))
    return {name: jnp.asarray(batch[name]) for name in ('image', 'label')}


def train(
  config: ConfigDict, workdir: str, evaluate_after: bool = True
) -> None:
  """Trains every stage that is not finished, then evaluates.

  Args:
    config: see `jaxseg.config`.
    workdir: created when missing.
    evaluate_after: whether to score config.eval.splits at the end.

  Raises:
    UserError: bad input, found before anything is trained.
    Interrupted: stopped by a signal, after saving.
    Diverged: a loss is no longer finite; the last good checkpoint stays.
  """
  check(config)
  config = perceptual.resolve_kinds(config)
  mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
  for stage in config.stages:
    for field in ('batch_size', 'unlabelled_batch_size'):
      parallel.check_batch_size(
        f'config.{stage}.{field}', config[stage][field], mesh
      )
  check_weights(config, workdir)
  runtime.use_compilation_cache(config.compilation_cache)
  try:
    os.makedirs(workdir, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be made ({error.strerror}), expected a '
      'folder in a place where you may write; choose another.'
    ) from error
  workdirs.refuse_other_config(workdir, config)
  data = Data(config, workdir)
  check_transfers(config, data.num_classes)
  evaluate.resolve_splits(data.splits, config.eval.splits)
  # Only now: what was refused must not tie the workdir to its config.
  workdirs.save_config(workdir, config)
  data_splits.save_splits(Path(workdir) / 'splits.json', data.splits)
  workdirs.save_classes(workdir, data.source.class_names, data.source.palette)
  writers.say(
    f'{data.source.name}: {len(data.splits.labelled)} labelled, '
    f'{len(data.splits.unlabelled)} unlabelled images, '
    f'{data.num_classes} classes; {mesh.size} x {jax.devices()[0].device_kind}'
  )
  # Of the other stages nothing stays on the devices.
  wanted = {config[stage].init_from for stage in config.stages}
  finished: dict[str, TrainState] = {}
  with runtime.interruptible() as stop:
    for stage in config.stages:
      start = time.monotonic()
      try:
        state = train_stage(config, stage, workdir, data, mesh, finished, stop)
        if stage in wanted:
          finished[stage] = state
        del state
      finally:
        workdirs.add_seconds(workdir, stage, time.monotonic() - start)
  if evaluate_after:
    trained = workdirs.load(workdir)
    evaluate.evaluate(
      trained, data.source, data.splits, config, Path(workdir) / 'evaluation'
    )


def check_weights(config: ConfigDict, workdir: str) -> None:
  """Reads the weights that stages begin with, before hours are spent on others.

  Those of stages that have begun, or begin from another, may be gone.

  Raises:
    UserError: a file that is missing, damaged, or of another network.
  """
  for stage in config.stages:
    folder = workdirs.checkpoint_folder(workdir, stage)
    begun = folder.is_dir() and any(folder.iterdir())
    fields = config[stage]
    # A student that does not start from its teacher reads its own.
    continues = fields.init_from and fields.args.get('from_teacher', True)
    if not begun and not continues:
      segmenting_checks.check_weights(fields)


def check_transfers(config: ConfigDict, num_classes: int) -> None:
  """Lets segmenters start from an earlier stage, without computing anything.

  Raises:
    UserError: that stage has no such network, or a stage's class weights are
      of another number of classes.
  """
  for stage in config.stages:
    segmenting_checks.check_classes(
      f'config.{stage}', config[stage], num_classes
    )
    if config[stage].init_from and 'net' in config[stage].args:
      workdirs.abstract_state(config, stage, num_classes)


def train_stage(
  config: ConfigDict,
  stage: str,
  workdir: str,
  data: Data,
  mesh: jax.sharding.Mesh,
  finished: dict[str, TrainState],
  stop: list,
) -> TrainState:
  """Runs one stage from its newest checkpoint, or from its start."""
  fields = config[stage]
  method = workdirs.make_method(config, stage, data.num_classes)
  sharding = parallel.replicated(mesh)
  folder = workdirs.checkpoint_folder(workdir, stage)
  with (
    jax.set_mesh(mesh),
    checkpoints.manager(folder, fields.keep_checkpoints) as ckpts,
  ):
    state = start_state(
      config, stage, method, data, ckpts, sharding, finished, folder.parent
    )
    first_step = int(state.step)
    if first_step >= fields.total_steps:
      return state
    with contextlib.closing(
      writers.create(Path(workdir) / stage, first_step)
    ) as writer:
      loop = Loop(config, stage, workdir, method, data, mesh, writer, ckpts)
      return loop.run(state, stop)


def start_state(
  config, stage, method, data, ckpts, sharding, finished, folder
) -> TrainState:
  """Own checkpoint > final state of `init_from` > fresh."""
  if ckpts.latest_step() is not None:
    like = workdirs.abstract_state(config, stage, data.num_classes)
    state, _ = checkpoints.restore(ckpts, checkpoints.abstract(like, sharding))
    step, total = int(state.step), config[stage].total_steps
    verb = 'finished at' if step >= total else 'continues from'
    writers.say(f'{stage}: {verb} step {step}')
    return state
  rng = jax.random.fold_in(
    jax.random.key(config.seed), config.stages.index(stage)
  )
  init = jax.jit(method.init, out_shardings=sharding)
  previous = finished.get(config[stage].init_from)
  state = init(rng, previous)
  if method.pretrained:
    state = jax.device_put(method.pretrained(state, previous), sharding)
  overview = parameter_overview.get_parameter_overview(state.params)
  write_atomically(Path(folder) / 'parameters.txt', overview.encode())
  sizes = ', '.join(
    f'{name} {sum(x.size for x in jax.tree.leaves(tree)):,}'
    for name, tree in state.params.items()
  )
  writers.say(f'{stage}: parameters {sizes}')
  return state


class Loop:
  """The loop of one stage: steps, records, pictures, checkpoints."""

  def __init__(
    self, config, stage, workdir, method: Method, data, mesh, writer, ckpts
  ):
    self.config, self.stage, self.fields = config, stage, config[stage]
    self.workdir, self.data, self.mesh = workdir, data, mesh
    self.writer, self.ckpts = writer, ckpts
    sharding = parallel.replicated(mesh)
    self.step = jax.jit(
      watched(method.train_step),
      donate_argnums=(0, 1),
      out_shardings=sharding,
    )
    self.pictures = method.pictures and jax.jit(
      method.pictures, out_shardings=sharding
    )
    self.picture_batch = data.picture_batch(config)

  def run(self, state: TrainState, stop: list) -> TrainState:
    """Returns the state after total_steps; raises as `train` does."""
    fields, first = self.fields, int(state.step)
    progress = writers.Progress(
      self.stage, fields.total_steps,
      fields.batch_size + fields.unlabelled_batch_size, first,
    )  # fmt: skip
    with contextlib.closing(
      self.data.batches(self.config, self.stage, first)
    ) as batches:
      return self.run_steps(state, stop, batches, progress)

  def run_steps(self, state, stop, batches, progress) -> TrainState:
    fields, first = self.fields, int(state.step)
    bad = jax.device_put(
      jnp.full((), -1, jnp.int32), parallel.replicated(self.mesh)
    )
    for step in range(first + 1, fields.total_steps + 1):
      batch = parallel.put_batch(next(batches), self.mesh)
      state, bad, metrics = self.step(state, bad, batch)
      last = step == fields.total_steps
      if step == first + 1:
        jax.block_until_ready(metrics)
        progress.mark(step)  # compilation is over
      if itstime(step, fields.log_every, last):
        self.log(step, bad, metrics, progress)
      if stop or itstime(step, fields.checkpoint_every, last):
        with progress.pause():
          self.save(state, bad, metrics, batches)
      if itstime(step, fields.picture_every, last):
        with progress.pause():
          self.draw(step, state)
      if stop:
        self.ckpts.wait_until_finished()
        raise runtime.Interrupted(
          f'{stop[0]} at {self.stage} step {step}: saved. Run the same command '
          'again to continue.'
        )
    self.ckpts.wait_until_finished()
    return state

  def log(self, step, bad, metrics, progress) -> None:
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.check_finite(bad, values)
    self.writer.write_scalars(step, values)
    shown = {k: v for k, v in values.items() if k not in ('r1', 'r1_m', 'path')}
    writers.say(progress.line(step, shown))

  def check_finite(self, bad, values) -> None:
    """Stops when a step since the last check had a loss that is not finite."""
    if int(bad) < 0:
      return
    terms = [k for k, v in values.items() if not np.isfinite(v)]
    self.ckpts.wait_until_finished()
    good = self.ckpts.latest_step()
    raise Diverged(
      f'{self.stage} diverged at step {int(bad)}: '
      f'{", ".join(terms) or "a loss"} is not finite. The last good checkpoint '
      f'is {"the start" if good is None else f"of step {good}"}; lower '
      f'the learning rates in config.{self.stage}.args'
      f'{" (or raise r1_gamma)" if "r1_gamma" in self.fields.args else ""} and '
      'train in a new workdir.'
    )

  def save(self, state, bad, metrics, batches) -> None:
    """Never saves a state that holds nan: the one before stays the newest."""
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    self.check_finite(bad, values)
    if not bool(all_finite(state.params)):
      bad = state.step
      self.check_finite(bad, {'the updated parameters': np.nan})
    self.writer.flush()
    checkpoints.save(self.ckpts, state, batches.state())

  def draw(self, step, state) -> None:
    if not self.pictures:
      return
    images = jax.device_get(self.pictures(state, self.picture_batch))
    palette = self.data.source.palette
    grid = visualize.grid(
      [
        visualize.colorize(x, palette) if x.ndim == 3 else x
        for x in images.values()
      ]
    )
    self.writer.write_images(step, {'samples': grid})


def watched(train_step):
  """`train_step` that also carries the first step with a nan or infinity."""

  def step(state, bad, batch):
    state, metrics = train_step(state, batch)
    finite = jnp.stack([jnp.isfinite(v).all() for v in metrics.values()]).all()
    bad = jnp.where((bad < 0) & ~finite, state.step, bad)
    return state, bad, metrics

  return step


@jax.jit
def all_finite(tree) -> jax.Array:
  """Whether every number of a tree is finite."""
  return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()


def itstime(step: int, every: int, last: bool) -> bool:
  """True every `every` steps and at the last; never when `every` is 0."""
  return every > 0 and (step % every == 0 or last)


def main(argv: list[str]) -> None:
  """Entry point of `python -m jaxseg.train`."""
  with friendly():
    if argv[1:]:
      raise UserError(f'unknown argument {argv[1]!r}; see --help.')
    if _CONFIG.value is None:
      raise UserError('--config is missing, e.g. configs/quickstart.py.')
    if not _WORKDIR.value:
      raise UserError('--workdir is missing, e.g. --workdir=runs/digits.')
    try:
      train(_CONFIG.value, _WORKDIR.value, _EVALUATE.value)
    except runtime.Interrupted as error:
      writers.say(str(error))
      sys.exit(error.exit_code)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
