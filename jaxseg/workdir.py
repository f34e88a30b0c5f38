"""What a training run leaves on disk, and how to open it again.

WORKDIR/
  config.json  splits.json  classes.json  timing.json
  STAGE/checkpoints/  STAGE/metrics.jsonl  STAGE/samples/  (and TensorBoard)
  evaluation/  metrics.json, table.md, report.html, overlays/
"""

import inspect
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import checkpoints, hosts, parallel
from jaxseg.config import default
from jaxseg.config import stage as default_stage
from jaxseg.data import fit
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError
from jaxseg.method import Method, TrainState
from jaxseg.methods import METHODS
from jaxseg.published import start

# Fields that may differ when a run is continued, and those below them: they
# change neither the model nor what a step computes.
FREE_FIELDS = (
  'eval.', 'mesh.', 'compilation_cache', 'hang_timeout', 'data.cache',
  'data.workers',
  'data.max_bad_fraction', 'data.data_dir', 'data.ood_',
)  # fmt: skip
FREE_STAGE_FIELDS = (
  'total_steps', 'log_every', 'checkpoint_every', 'keep_checkpoints',
  'keep_best', 'picture_every', 'steps_per_dispatch', 'label',
  # Not refine_lr and the lambdas: label_branch finds its codes with them.
  'args.refine_steps', 'args.refine_noise', 'args.refine_regularizer',
)  # fmt: skip


class Stage(NamedTuple):
  """One trained stage.

  Attributes:
    method: its functions.
    state: its newest checkpoint.
    label: its name in tables.
  """

  method: Method
  state: TrainState
  label: str


class Trained(NamedTuple):
  """An opened workdir.

  Attributes:
    config: the resolved config it was trained with.
    class_names: K names.
    palette: uint8 [K, 3].
    stages: the stages that have a checkpoint, in order.
  """

  config: ConfigDict
  class_names: tuple[str, ...]
  palette: np.ndarray
  stages: dict[str, Stage]


def make_method(config: ConfigDict, stage: str, num_classes: int) -> Method:
  """Builds a stage's method from its config fields.

  Raises:
    UserError: fields that the method does not have, of a workdir that another
      version trained; or as its `make`.
  """
  fields = config[stage]
  make = METHODS[fields.method].make
  schema = inspect.signature(make).parameters
  args = fields.args.to_dict()
  # Groups of settings are NamedTuples in the signature.
  groups = {name: v for name, v in args.items() if isinstance(v, dict)}
  known = set(schema)
  for name in groups.keys() & known:
    known |= {f'{name}.{field}' for field in schema[name].default._fields}
  unknown = sorted(_flat(args).keys() - known)
  if unknown:
    raise UserError(
      f'config.{stage}.args.{unknown[0]} is not a setting of {fields.method}; '
      'was this workdir trained with another version of jaxseg? Use that one, '
      'or train anew.'
    )
  args |= {name: type(schema[name].default)(**v) for name, v in groups.items()}
  if 'gan' in schema and fields.init_from in config.stages:
    args['gan'] = config[fields.init_from].args.to_dict()
  elif 'gan' in schema and fields.init_from:
    args['gan'] = start.generator_settings(config, stage, num_classes)
  if 'card' in schema:
    args |= start.card_arguments(config, stage)
  if 'total_steps' in schema:
    args['total_steps'] = fields.total_steps
  if 'image_size' in schema:
    args['image_size'] = fit.size(config.data)
  return make(
    num_classes=num_classes,
    resolution=min(fit.size(config.data)),
    channels=config.data.channels,
    **args,
  )


def abstract_state(
  config: ConfigDict, stage: str, num_classes: int
) -> TrainState:
  """Shapes and dtypes of a stage's state, without computing anything."""
  previous, source = None, config[stage].init_from
  if source in config.stages:
    previous = abstract_state(config, source, num_classes)
  elif source and config[stage].method in start.WITH_GENERATOR:
    previous = start.abstract_previous(config, stage)
  init = make_method(config, stage, num_classes).init
  return jax.eval_shape(init, jax.random.key(config.seed), previous)


def checkpoint_folder(workdir: str | os.PathLike, stage: str) -> Path:
  """Where a stage's checkpoints are."""
  return Path(workdir) / stage / 'checkpoints'


def load(
  workdir: str | os.PathLike,
  stages: tuple[str, ...] = (),
  checkpoint: str = 'newest',
) -> Trained:
  """Opens a trained workdir; a training may be going on in it.

  Where several processes train, all must call it; each gets a copy of its own.

  Args:
    workdir: as given to the training command.
    stages: only these; (): every stage that has a checkpoint.
    checkpoint: 'newest'; 'best': that with the highest validation mIoU, of
      stages with `keep_best`, and the newest of others; or a step.

  Raises:
    UserError: not a workdir, an unknown stage or checkpoint, or none at all.
  """
  config = _lpips_from_checkpoint(load_config(workdir))
  names, palette = load_classes(workdir)
  unknown = sorted(set(stages) - set(config.stages))
  if unknown:
    raise UserError(
      f'{workdir} has no stage {unknown[0]!r}; its stages are '
      f'{", ".join(config.stages)}.'
    )
  found = {}
  for stage in stages or config.stages:
    state = _load_state(workdir, config, stage, len(names), checkpoint)
    if state is not None:
      method = make_method(config, stage, len(names))
      found[stage] = Stage(method, state, config[stage].label or stage)
  if not found:
    raise UserError(
      f'{workdir} holds no checkpoint yet; train first: python -m '
      f'jaxseg.train --config=... --workdir={workdir}'
    )
  return Trained(config, names, palette, found)


def _load_state(workdir, config, stage, num_classes, checkpoint):
  """A stage's state on this process's first device; None: there is none."""
  folder = checkpoint_folder(workdir, stage)
  if not folder.is_dir():
    return None
  mesh = parallel.make_mesh() if hosts.several() else parallel.make_mesh(1)
  fields = config[stage]
  with checkpoints.Checkpoints(
    folder, fields.keep_checkpoints, fields.keep_best, read_only=True
  ) as ckpts:
    if ckpts.latest_step() is None:
      return None
    step = None
    if checkpoint == 'best' and fields.keep_best:
      step = ckpts.best_step()
    elif checkpoint not in ('best', 'newest'):
      step = int(checkpoint) if checkpoint.isdigit() else -1
    if step is not None and step not in ckpts.steps():
      raise UserError(
        f'{folder} has no checkpoint {checkpoint!r}, expected newest, best or '
        f'one of {", ".join(map(str, ckpts.steps()))}.'
      )
    like = abstract_state(config, stage, num_classes)
    like = checkpoints.abstract(like, parallel.replicated(mesh))
    state, _ = ckpts.restore(like, step)
  return hosts.own(state) if hosts.several() else state


def _lpips_from_checkpoint(config):
  """LPIPS weights are in the checkpoint; 'random' has the same shapes."""
  for stage in config.stages:
    args = config[stage].args
    if 'perceptual_kind' in args:
      args.perceptual_kind = args.perceptual_kind.replace('lpips', 'random')
  return config


def refuse_other_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
  """Refuses to go on in a workdir that belongs to another config.

  Raises:
    UserError: names the first field that differs.
  """
  path = Path(workdir) / 'config.json'
  if not path.exists():
    return
  old, new = _flat(_to_dict(load_config(workdir))), _flat(_to_dict(config))
  old = _stage_defaults(old) | old
  different = [
    name
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name) and not _is_free(name, config)
  ]
  if different:
    name = different[0]
    if name.endswith('.init_networks'):
      source = new[name.replace('init_networks', 'init_from')]
      raise UserError(
        f'{workdir} was trained from other weights than {source} now holds; '
        'choose another --workdir, or put the old folder there to continue.'
      )
    raise UserError(
      f'{workdir} was trained with another config: {name} was '
      f'{old.get(name)!r} and is now {new.get(name)!r}'
      f'{f" ({len(different)} fields differ)" if different[1:] else ""}; '
      'choose another --workdir, or the old value to continue.'
    )


def save_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
  """Writes config.json."""
  text = json.dumps(_to_dict(config), indent=2, sort_keys=True)
  write_atomically(Path(workdir) / 'config.json', text.encode())


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """Reads config.json; fields it does not know yet have their defaults.

  Raises:
    UserError: there is none.
  """
  path = Path(workdir) / 'config.json'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist, so {workdir} is not the workdir of a training '
      'run; give the folder that was given to python -m jaxseg.train.'
    )
  config = default().unlock()
  with config.ignore_type():  # JSON has lists for tuples
    config.update(ConfigDict(json.loads(path.read_text())))
  for stage in config.stages:
    if config[stage].method in METHODS:
      now = default_stage(config[stage].method)
      for field in set(now) - set(config[stage]):
        config[stage][field] = now[field]
  return config


def _to_dict(config):
  return json.loads(config.to_json_best_effort())


def save_classes(
  workdir: str | os.PathLike, names: tuple[str, ...], palette: np.ndarray
) -> None:
  """Writes classes.json: class names and their colours."""
  content = {'class_names': list(names), 'palette': palette.tolist()}
  write_atomically(
    Path(workdir) / 'classes.json', json.dumps(content, indent=1).encode()
  )


def load_classes(
  workdir: str | os.PathLike,
) -> tuple[tuple[str, ...], np.ndarray]:
  """Reads classes.json."""
  content = json.loads((Path(workdir) / 'classes.json').read_text())
  palette = np.asarray(content['palette'], np.uint8)
  return tuple(content['class_names']), palette


def add_seconds(workdir: str | os.PathLike, stage: str, seconds: float) -> None:
  """Adds to the time a stage took over all its runs, in timing.json."""
  path = Path(workdir) / 'timing.json'
  times = json.loads(path.read_text()) if path.exists() else {}
  times[stage] = round(times.get(stage, 0.0) + seconds, 1)
  write_atomically(path, json.dumps(times, indent=1).encode())


def _stage_defaults(flat):
  """What settings are that a method did not have yet when it was trained."""
  defaults = {}
  for name, method in flat.items():
    name, _, field = name.partition('.')
    if field == 'method' and method in METHODS:
      defaults |= _flat(_to_dict(default_stage(method)), name)
  return defaults


def _flat(tree: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(tree, dict):
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat.update(_flat(value, f'{prefix}.{key}' if prefix else key))
  return flat


def _is_free(name: str, config: ConfigDict) -> bool:
  if name.startswith(FREE_FIELDS):
    return True
  stage, _, field = name.partition('.')
  if field == 'total_steps' and stage in config.stages:
    # Some methods' learning rates and ramp-ups end with the last step.
    make = METHODS[config[stage].method].make
    return 'total_steps' not in inspect.signature(make).parameters
  return any(f'{field}.'.startswith(f'{free}.') for free in FREE_STAGE_FIELDS)
