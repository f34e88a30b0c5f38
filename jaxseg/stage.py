"""One stage: where it starts, its loop, and its way back when it diverges."""

from pathlib import Path

import jax
import numpy as np
from clu import parameter_overview
from flax import serialization
from ml_collections import ConfigDict

from jaxseg import checkpoints, hosts, parallel, runtime, writers
from jaxseg import workdir as workdirs
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError
from jaxseg.loop import Loop, Run, Spoilt
from jaxseg.method import TrainState
from jaxseg.published import folder, overlay, start
from jaxseg.published.folder import Pretrained
from jaxseg.watchdog import Watchdog

MAX_RETRIES = 3  # times that a stage goes back to a checkpoint
# What runs once on a CPU is compiled fast rather than well.
ONCE = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


class Diverged(UserError):
  """A stage gave nothing finite any more, however often it was tried."""

  exit_code = 6


def train_stage(
  config: ConfigDict,
  stage: str,
  workdir: str,
  data,
  mesh: jax.sharding.Mesh,
  finished: dict[str, TrainState],
  stop: list,
) -> TrainState:
  """Runs one stage from its newest checkpoint, or from its start.

  Args:
    config: the experiment's.
    stage: its name.
    workdir: of the experiment.
    data: `train.Data`.
    mesh: of all devices.
    finished: final states of earlier stages.
    stop: see `runtime.interruptible`.

  Where it gives nothing finite any more it goes back to the checkpoint, and on
  in another order of the data, with other random numbers.
  """
  fields = config[stage]
  method = workdirs.make_method(config, stage, data.num_classes)
  like = workdirs.abstract_state(config, stage, data.num_classes)
  shardings = parallel.state_shardings(like, mesh)
  like = checkpoints.abstract(like, shardings)
  folder = workdirs.checkpoint_folder(workdir, stage)
  name = str(jax.process_index())
  retries = 0
  with (
    jax.set_mesh(mesh),
    checkpoints.Checkpoints(
      folder, fields.keep_checkpoints, fields.keep_best
    ) as ckpts,
    Watchdog(config.hang_timeout, workdir, name) as watchdog,
  ):
    run = Run(
      config, stage, Path(workdir), method, data, mesh, shardings, ckpts,
      watchdog, stop,
    )  # fmt: skip
    while True:
      state, stored = start_state(run, like, finished)
      if int(state.step) >= fields.total_steps:
        return state
      if retries > stored:
        state = reseeded(state, retries)
      retries = max(retries, stored)
      try:
        return Loop(run, retries).run(state)
      except Spoilt as spoilt:
        del state
        watchdog.rest()
        retries = retry(run, spoilt, retries)


def weights_of(config: ConfigDict, stage: str) -> Pretrained | None:
  """The converted weights that a stage starts from, if it does."""
  source = config[stage].init_from
  if not source or source in config.stages:
    return None
  return folder.load(source)


def retry(run: Run, spoilt: Spoilt, retries: int) -> int:
  """Returns how often the stage will have gone back now.

  Raises:
    Diverged: it did so too often.
  """
  run.ckpts.wait()
  good = run.ckpts.latest_step()
  back = 'the start' if good is None else f'step {good}'
  args = run.config[run.stage].args
  told = (
    f'{run.stage} diverged at step {spoilt.step}: '
    f'{", ".join(spoilt.terms) or "a loss"} is not finite'
  )
  if retries == MAX_RETRIES:
    raise Diverged(
      f'{told}, and so it was after going back {MAX_RETRIES} times. The last '
      f'good checkpoint is {"the start" if good is None else f"of {back}"}; '
      f'lower the learning rates in config.{run.stage}.args'
      f'{" (or raise r1_gamma)" if "r1_gamma" in args else ""} and train in a '
      'new workdir.'
    )
  writers.say(
    f'{told}; back to {back}, with the data in another order '
    f'({retries + 1} of {MAX_RETRIES} times)'
  )
  return retries + 1


def reseeded(state: TrainState, retries: int) -> TrainState:
  """The same state with other random numbers to come."""
  fold = jax.jit(jax.random.fold_in, out_shardings=state.rng.sharding)
  return state.replace(rng=fold(state.rng, np.uint32(2**31 + retries)))


def absorbed(run: Run, state: TrainState) -> TrainState:
  """The state after the method has looked at the labelled images.

  Raises:
    Interrupted: by a signal; nothing of it is kept.
  """
  config, stage = run.config, run.stage
  most = config[stage].args.max_images
  images, labels = run.data.labelled(config, most)
  count = len(run.data.splits.labelled)
  if count > most:
    writers.say(
      f'{stage}: of {count} labelled images the first {most} are used '
      f'(config.{stage}.args.max_images)'
    )

  def alive():
    run.watchdog.rest()
    if run.stop:
      raise runtime.Interrupted(
        f'{run.stop[0]} before the first step of {stage}. Run the same command '
        'again to begin it anew.'
      )

  state = run.method.absorb(state, images, labels, alive)
  return jax.device_put(state, run.shardings)


def start_state(run: Run, like: TrainState, finished) -> tuple[TrainState, int]:
  """Own checkpoint > final state of `init_from` > fresh; and its retries."""
  config, stage, method = run.config, run.stage, run.method
  if run.ckpts.latest_step() is not None:
    state, data = run.ckpts.restore(like)
    step, total = int(state.step), config[stage].total_steps
    verb = 'finished at' if step >= total else 'continues from'
    writers.say(f'{stage}: {verb} step {step}')
    return state, data.get('retries', 0)
  rng = jax.random.fold_in(
    jax.random.key(config.seed), config.stages.index(stage)
  )
  init = jax.jit(
    lambda bits, previous: method.init(
      jax.random.wrap_key_data(bits), previous
    ),
    out_shardings=run.shardings,
    compiler_options=ONCE if jax.default_backend() == 'cpu' else None,
  )
  previous = finished.get(config[stage].init_from)
  weights = None if method.pretrained else weights_of(config, stage)
  if weights and config[stage].method in start.WITH_GENERATOR:
    previous = start.previous(weights)
  # As NumPy array, which belongs to no device of one process.
  state = init(np.asarray(jax.random.key_data(rng)), previous)
  if method.pretrained:
    state = jax.device_put(method.pretrained(state, previous), run.shardings)
  elif weights:
    state, report = overlay.overlay(
      state, weights, config[stage].init_from, start.placed(config, stage)
    )
    state = jax.device_put(state, run.shardings)
    overlay.tell(report, stage, run.workdir / stage)
  if method.absorb:
    state = absorbed(run, state)
  if hosts.primary():
    # Means of arrays that several processes hold would need them all.
    overview = parameter_overview.get_parameter_overview(
      serialization.to_state_dict(state.params),  # lists become dicts
      include_stats=not hosts.several(),
    )
    folder = run.workdir / stage
    write_atomically(folder / 'parameters.txt', overview.encode())
  sizes = ', '.join(
    f'{name} {sum(x.size for x in jax.tree.leaves(tree)):,}'
    for name, tree in state.params.items()
  )
  writers.say(f'{stage}: parameters {sizes}')
  return state, 0
