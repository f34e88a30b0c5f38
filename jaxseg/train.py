"""Trains the stages of a config, one after the other, in one workdir.

  python -m jaxseg.train --config=configs/quickstart.py --workdir=runs/digits

Run the same command again to continue where it stopped. On clusters see
launch/; `--plan` tells what a training needs, and starts none.
"""

import contextlib
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

import jaxseg
from jaxseg import (
  checkpoints,
  evaluate,
  hosts,
  parallel,
  resources,
  runtime,
  writers,
)
from jaxseg import (
  workdir as workdirs,
)
from jaxseg.config import check, parse_flags
from jaxseg.data import pipeline, sources
from jaxseg.data import splits as data_splits
from jaxseg.data import weak as weak_labels
from jaxseg.data.examples import Examples
from jaxseg.data.inspection import checks
from jaxseg.errors import UserError, friendly
from jaxseg.method import Batch, TrainState
from jaxseg.methods import accumulation, perceptual, segmenting_checks
from jaxseg.published import start
from jaxseg.stage import train_stage

_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of this run.')
_EVALUATE = flags.DEFINE_bool('evaluate', True, 'Evaluate at the end.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', '', 'HOST:PORT of process 0, where several train together.'
)
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', 0, 'How many there are.')
_PROCESS_ID = flags.DEFINE_integer('process_id', -1, 'Which this is, from 0.')
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Let JAX find the other processes (TPU pods, Slurm).'
)
_PLAN = flags.DEFINE_bool('plan', False, 'Tell what it needs; train nothing.')
_DEVICES = flags.DEFINE_string(
  'devices', '', 'Of --plan: KIND:COUNT, e.g. tpu-v5e:64, gpu-h100:8, cpu:2.'
)
_CLASSES = flags.DEFINE_integer(
  'classes', None, 'Of --plan, where the data are not here.', lower_bound=2
)
_PLAN_COMPILE = flags.DEFINE_bool(
  'plan_compile', True, 'Of --plan: compile; else lower bounds, faster.'
)


class Data:
  """The source with its splits, checked, and the batches drawn from it."""

  def __init__(self, config: ConfigDict, workdir: str):
    self.source = sources.load(config.data)
    self.splits = data_splits.make_splits(self.source, config.data, config.seed)
    if any(config[s].unlabelled_batch_size for s in config.stages):
      data_splits.require_unlabelled(self.splits)
    folder = Path(workdir)
    report = folder / 'data_problems.csv' if hosts.primary() else None
    self.splits = checks.check(self.source, self.splits, config.data, report)
    data_splits.refuse_other(folder / 'splits.json', self.splits)
    for stage in config.stages:
      if config[stage].keep_best and not self.splits.val:
        raise UserError(
          f'config.{stage}.keep_best is {config[stage].keep_best}, but '
          f'{self.source.name} has no validation images; set '
          'config.data.val_fraction, or keep_best to 0.'
        )

  @property
  def num_classes(self) -> int:
    return len(self.source.class_names)

  def batches(
    self, config: ConfigDict, stage: str, start_step: int, retries: int, mesh
  ):
    fields = config[stage]
    index, count = parallel.share(mesh)
    return pipeline.train_batches(
      self.source, self.splits, config,
      batch_size=fields.batch_size,
      unlabelled_batch_size=fields.unlabelled_batch_size,
      # Each stage sees its own order, and another one at each retry.
      seed=config.seed + config.stages.index(stage) + 1_000_003 * retries,
      start_step=start_step,
      process_index=index,
      process_count=count,
    )  # fmt: skip

  def labelled(
    self, config: ConfigDict, most: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """The first labelled images [M, H, W, C], with labels to train on."""
    ids = self.splits.labelled[:most]
    batch = next(pipeline.eval_batches(self.source, ids, config, len(ids)))
    read = Examples(self.source, config.data).training_label
    return batch['image'], np.stack([read(id_) for id_ in ids])

  def picture_batch(self, config: ConfigDict, mesh) -> Batch:
    """The eight images that every sample grid shows.

    Where labels are weak half of them are training images with these.
    """
    # Sets may be sorted by class.
    spread = lambda ids, n: ids[:: max(1, len(ids) // n)][:n]
    ids = spread(self.splits.val or self.splits.labelled, 8)
    weak = ()
    if config.data.weak.kind and not weak_labels.gives_tags(config.data.weak):
      weak = spread(self.splits.labelled, 4)
      ids = (*weak, *ids[: 8 - len(weak)])
    batch = next(pipeline.eval_batches(self.source, ids, config, len(ids)))
    batch = {name: batch[name] for name in ('image', 'label')}
    read = Examples(self.source, config.data).training_label
    for i, id_ in enumerate(weak):
      batch['label'][i] = read(id_)
    return jax.device_put(batch, parallel.replicated(mesh))

  def validation_batches(self, config: ConfigDict, mesh):
    """Yields the validation images with their labels, padded with void."""
    devices = mesh.shape['data']
    size = min(config.eval.batch_size, len(self.splits.val))
    size = -(-size // devices) * devices
    ids = self.splits.val
    for batch in pipeline.eval_batches(self.source, ids, config, size):
      image = jax.device_put(batch['image'], parallel.over_data(mesh))
      yield batch | {'image': image}


def train(
  config: ConfigDict, workdir: str, evaluate_after: bool = True
) -> None:
  """Trains every stage that is not finished, then evaluates.

  Every process of a training calls it with the same arguments.

  Args:
    config: see `jaxseg.config`.
    workdir: created when missing; seen by all processes.
    evaluate_after: whether to score config.eval.splits at the end.

  Raises:
    UserError: bad input, found before anything is trained.
    Interrupted: stopped by a signal, after saving.
    Diverged: losses are no longer finite; the last good checkpoint stays.
  """
  check(config)
  config = start.resolve(perceptual.resolve_kinds(config), workdir)
  mesh = make_mesh(config)
  check_weights(config, workdir)
  runtime.use_compilation_cache(config.compilation_cache)
  try:
    os.makedirs(workdir, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be made ({error.strerror}), expected a '
      'folder in a place where you may write; choose another.'
    ) from error
  with runtime.locked(workdir):
    with runtime.interruptible() as stop:
      data = prepare(config, workdir, mesh)
      train_stages(config, workdir, data, mesh, stop)
    if evaluate_after:
      evaluate_stages(config, workdir, data)


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
  """Returns the mesh of all processes' devices.

  Raises:
    UserError: more devices than there are; a batch that they cannot share.
  """
  mesh = parallel.make_mesh(config.mesh.data, config.mesh.model)
  if hosts.several() and mesh.size != jax.device_count():
    raise UserError(
      f'config.mesh is data {mesh.shape["data"]} x model '
      f'{mesh.shape["model"]}, but the {jax.process_count()} processes have '
      f'{jax.device_count()} devices, and all must take part; set '
      'config.mesh.data=-1 and config.mesh.model to a divisor of their number.'
    )
  for stage in config.stages:
    for field in ('batch_size', 'unlabelled_batch_size'):
      parallel.check_batch_size(
        f'config.{stage}.{field}', config[stage][field], mesh,
        accumulation.parts_of(config[stage]),
      )  # fmt: skip
  return mesh


def prepare(config: ConfigDict, workdir: str, mesh) -> Data:
  """Opens and checks all that the training needs; writes the workdir's head.

  Raises:
    UserError: as `train`.
  """
  workdirs.refuse_other_config(workdir, config)
  data = Data(config, workdir)
  hosts.refuse_unlike({
    'the config': config.to_json_best_effort(),
    'jaxseg': jaxseg.__version__,
    'jax': jax.__version__,
    'the data': f'{data.splits.hash} {data.source.class_names}',
  })  # fmt: skip
  check_transfers(config, data.num_classes)
  check_resources(config, workdir, data.num_classes, mesh)
  evaluate.resolve_splits(data.splits, config.eval.splits, data.source)
  # Only now: what was refused must not tie the workdir to its config.
  if hosts.primary():
    workdirs.save_config(workdir, config)
    data_splits.save_splits(Path(workdir) / 'splits.json', data.splits)
    workdirs.save_classes(workdir, data.source.class_names, data.source.palette)
  hosts.wait('workdir')
  processes = jax.process_count()
  writers.say(
    f'{data.source.name}: {len(data.splits.labelled)} labelled, '
    f'{len(data.splits.unlabelled)} unlabelled images, '
    f'{data.num_classes} classes; {mesh.size} x {jax.devices()[0].device_kind}'
    f'{f" in {processes} processes" if processes > 1 else ""}'
  )
  return data


def train_stages(config, workdir, data, mesh, stop) -> None:
  """Trains every stage that is not finished."""
  # Of the other stages nothing stays on the devices.
  wanted = {config[stage].init_from for stage in config.stages}
  finished: dict[str, TrainState] = {}
  for stage in config.stages:
    if stop:
      raise runtime.Interrupted(
        f'{stop[0]} before {stage}. Run the same command again to continue.'
      )
    start = time.monotonic()
    try:
      state = train_stage(config, stage, workdir, data, mesh, finished, stop)
      if stage in wanted:
        finished[stage] = state
      del state
    finally:
      if hosts.primary():
        with contextlib.suppress(OSError, ValueError):  # of a full disk
          workdirs.add_seconds(workdir, stage, time.monotonic() - start)


def evaluate_stages(config, workdir, data) -> None:
  """Scores all stages, on process 0; the others wait."""
  trained = workdirs.load(workdir)
  if hosts.primary():
    output = Path(workdir) / 'evaluation'
    evaluate.evaluate(trained, data.source, data.splits, config, output)
  hosts.wait('evaluation')


def check_weights(config: ConfigDict, workdir: str) -> None:
  """Reads the weights that stages begin with, before hours are spent on others.

  Those of stages that have begun, or begin from another, may be gone.

  Raises:
    UserError: a file that is missing, damaged, or of another network.
  """
  waiting = []
  for stage in config.stages:
    folder = workdirs.checkpoint_folder(workdir, stage)
    begun = folder.is_dir() and any(folder.iterdir())
    waiting += [] if begun else [stage]
    fields = config[stage]
    # A student that does not start from its teacher reads its own.
    continues = fields.init_from in config.stages and fields.args.get(
      'from_teacher', True
    )
    if not begun and not continues:
      segmenting_checks.check_weights(fields)
  start.check_folders(config, waiting)


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
    if config[stage].init_from in config.stages and 'net' in config[stage].args:
      workdirs.abstract_state(config, stage, num_classes)


def check_resources(
  config: ConfigDict, workdir: str, num_classes: int, mesh
) -> None:
  """Refuses what the disk or the memory cannot hold.

  Raises:
    NotEnough: says what is missing.
  """
  needs, sizes = {}, {}
  for stage in config.stages:
    state = workdirs.abstract_state(config, stage, num_classes)
    shardings = parallel.state_shardings(state, mesh)
    size = checkpoints.num_bytes(state)
    fields = config[stage]
    needs[stage] = size, fields.keep_checkpoints + fields.keep_best + 1
    sizes[stage] = checkpoints.num_bytes(
      jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(s.shard_shape(x.shape), x.dtype),
        state, shardings,
      )
    )  # fmt: skip
  resources.check_disk(workdir, needs)
  here = jax.process_index()
  count = sum(device.process_index == here for device in mesh.devices.flat)
  resources.check_memory(sizes, count, resources.memory())


def tell_plan() -> None:
  """Prints what the flags ask for, see `jaxseg.plan`."""
  from jaxseg import plan

  if not _DEVICES.value:
    raise UserError('--devices is missing, e.g. --plan --devices=tpu-v5e:64.')
  check(_CONFIG.value)
  config = start.resolve(perceptual.resolve_kinds(_CONFIG.value))
  writers.say(
    plan.report(config, _DEVICES.value, _CLASSES.value, _PLAN_COMPILE.value)
  )


def main(argv: list[str]) -> None:
  """Entry point of `python -m jaxseg.train`."""
  with friendly():
    if argv[1:]:
      raise UserError(f'unknown argument {argv[1]!r}; see --help.')
    if _CONFIG.value is None:
      raise UserError('--config is missing, e.g. configs/quickstart.py.')
    if _PLAN.value:
      tell_plan()
      return
    if not _WORKDIR.value:
      raise UserError('--workdir is missing, e.g. --workdir=runs/digits.')
    hosts.start(
      _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
      _DISTRIBUTED.value,
    )  # fmt: skip
    with hosts.leaving_together():
      try:
        train(_CONFIG.value, _WORKDIR.value, _EVALUATE.value)
      except runtime.Interrupted as error:
        writers.say(str(error))
        sys.exit(error.exit_code)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
