"""Training that starts from converted weights: config.STAGE.init_from."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.errors import UserError
from jaxseg.published import folder
from jaxseg.published.folder import Pretrained

# Methods whose `init` is given the generator, as of an earlier stage.
WITH_GENERATOR = ('semantic_gan_encoder',)
# Methods that learn on a folder's generator, and from nothing else.
ON_FOLDER = ('label_branch',)
METHODS = ('semantic_gan', *WITH_GENERATOR, *ON_FOLDER)


# Of a card, what training needs when the folder is gone.
KEPT = ('networks', 'adds_w_avg', 'label_output')


def is_folder(init_from: str) -> bool:
  """Whether it names a folder, perhaps one that is gone, and not a stage."""
  return os.sep in init_from or folder.is_one(init_from)


def as_weights(config: ConfigDict) -> ConfigDict:
  """A copy where a segmenter's folder is its `net.weights`.

  Raises:
    UserError: both name weights.
  """
  config = config.copy_and_resolve_references()
  for stage in config.stages:
    fields = config.get(stage)
    if not isinstance(fields, ConfigDict) or 'net' not in fields.get(
      'args', {}
    ):
      continue
    source, net = fields.init_from, fields.args.net
    if not source or source in config.stages or not is_folder(source):
      continue
    if net.weights not in ('', source):
      raise UserError(
        f'config.{stage}.init_from is {source!r} and config.{stage}.args.net.'
        f'weights is {net.weights!r}, but both begin its encoder; clear one.'
      )
    net.weights, fields.init_from = source, ''
  return config


def resolve(config: ConfigDict, workdir: str | os.PathLike = '') -> ConfigDict:
  """A config that says what the folders hold, so that they may go later.

  Args:
    config: the experiment's, checked.
    workdir: of a training that may have begun.

  Raises:
    UserError: a folder that is missing, or of no use to the stage's method.
  """
  config = as_weights(config)
  for stage in config.stages:
    fields = config[stage]
    source = fields.init_from
    if not source or source in config.stages:
      if fields.method in ON_FOLDER:
        card_arguments(config, stage)
      continue
    if fields.method not in METHODS:
      raise UserError(
        f'config.{stage}.init_from is {source!r}, but {fields.method} cannot '
        f'start from converted weights; {", ".join(METHODS)} and segmenters '
        'can.'
      )
    there = folder.is_one(source)
    fields.init_networks = '' if there else _recorded(workdir, stage)
    if not fields.init_networks:
      card = folder.read_card(source)
      kept = {name: card[name] for name in KEPT}
      fields.init_networks = json.dumps(kept, sort_keys=True)
    _check_generator(config, stage)
  return config


def check_folders(config: ConfigDict, stages: Iterable[str]) -> None:
  """Reads the folders that stages start from, before hours are spent.

  Args:
    config: the experiment's.
    stages: those that have not begun.

  Raises:
    UserError: a folder that is gone or damaged.
  """
  for source in sorted({config[stage].init_from for stage in stages}):
    if source and source not in config.stages:
      folder.load(source, ())


def _check_generator(config, stage):
  """Refuses a folder whose generator does not go with the config."""
  networks, fields = _networks(config, stage), config[stage]
  where = f'config.{stage}.init_from is {fields.init_from!r}'
  if not networks.keys() & {'g', 'g_ema'}:
    raise UserError(
      f'{where}, which holds {", ".join(networks)}, but {fields.method} needs '
      'a generator; convert a file of kind stylegan2, semanticgan, psp, e4e or '
      'stylegan2-ada.'
    )
  if fields.method == 'semantic_gan':
    return  # takes what fits, and tells
  settings = networks[_generator(networks)]['settings']
  data = config.data
  check_size(where, settings, data.resolution, data.channels)
  if fields.method not in WITH_GENERATOR:
    return
  if not settings['num_classes']:
    raise UserError(
      f'{where}, whose generator draws no labels, but {fields.method} needs '
      'them; train a stage of method label_branch on it instead.'
    )
  if fields.args.perceptual_kind == 'discriminator' and 'd_r' not in networks:
    raise UserError(
      f'{where}, which holds no discriminator, but config.{stage}.args.'
      "perceptual_kind is 'discriminator' (or 'auto' without LPIPS weights); "
      "give args.lpips_weights, or set it to 'random'."
    )


def check_size(
  where: str, settings: Mapping[str, Any], resolution: int, channels: int
) -> None:
  """Refuses a generator of other images than the config's.

  Args:
    where: the weights, for the message.
    settings: of the generator.
    resolution: of config.data.
    channels: likewise.

  Raises:
    UserError: names both sizes and the fields.
  """
  size, found = settings['resolution'], settings['channels']
  if (size, found) != (resolution, channels):
    raise UserError(
      f'{where}, whose generator draws {size} x {size} images of {found} '
      f'channels, but config.data.resolution is {resolution} and '
      f'config.data.channels {channels}; set them to those.'
    )


def generator_settings(
  config: ConfigDict, stage: str, num_classes: int
) -> dict[str, Any]:
  """Arguments for `semantic_gan.networks`, of the folder's generator.

  Raises:
    UserError: it draws labels of another number of classes.
  """
  networks = _networks(config, stage)
  settings = dict(networks[_generator(networks)]['settings'])
  del settings['resolution'], settings['channels']
  found = settings.pop('num_classes')
  if found != num_classes:
    raise UserError(
      f'config.{stage}.init_from is {config[stage].init_from!r}, whose '
      f'generator draws labels of {found} classes, but the data have '
      f'{num_classes}; take data of those classes, or train a stage of method '
      'label_branch on it instead.'
    )
  d_r = networks.get('d_r', {}).get('settings', {})
  group = {k: v for k, v in d_r.items() if k == 'stddev_group'}
  label_output = json.loads(config[stage].init_networks)['label_output']
  return settings | group | {'label_output': label_output}


def card_arguments(config: ConfigDict, stage: str) -> dict[str, Any]:
  """`make`'s arguments 'card' and 'folder'.

  Raises:
    UserError: the stage starts from no folder.
  """
  fields = config[stage]
  if not fields.init_networks:
    raise UserError(
      f'config.{stage}.init_from is {fields.init_from!r}, but {fields.method} '
      'needs a folder of converted weights; make one: python -m '
      'jaxseg.pretrained convert --kind=KIND --source=FILE --output=FOLDER'
    )
  return {'card': json.loads(fields.init_networks), 'folder': fields.init_from}


def abstract_previous(config: ConfigDict, stage: str) -> Any:
  """Shapes of what `previous` returns."""
  from jaxseg.methods import frozen

  settings = json.loads(config[stage].init_networks)
  nets = frozen.build(settings)
  return _as_state(frozen.abstract_weights(nets))


def previous(weights: Pretrained) -> Any:
  """The folder's generator as the final state of a semantic_gan stage."""
  from jaxseg.methods import frozen

  return _as_state(frozen.weights(weights))


def _as_state(weights: Mapping[str, Any]) -> Any:
  from jaxseg.method import TrainState

  params = {'d_r': weights['d_r']} if 'd_r' in weights else {}
  nothing = jax.ShapeDtypeStruct((), np.int32)
  step = np.zeros((), np.int32) if not _is_abstract(weights) else nothing
  return TrainState(
    step=step, rng=step, params=params, opt_state={},
    ema={'g': weights['g']}, extra={},
  )  # fmt: skip


def _is_abstract(tree):
  return any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(tree))


def placed(config: ConfigDict, stage: str) -> tuple[str, ...]:
  """Networks of the folder that `previous` hands over whole."""
  fields = config[stage]
  if fields.method not in WITH_GENERATOR:
    return ()
  d_r = ('d_r',) if fields.args.perceptual_kind == 'discriminator' else ()
  return (_generator(_networks(config, stage)), *d_r)


def _generator(networks):
  """The average, where there is one."""
  return 'g_ema' if 'g_ema' in networks else 'g'


def _networks(config, stage):
  return json.loads(config[stage].init_networks)['networks']


def _recorded(workdir, stage):
  """`init_networks` of a training that began when the folder was there."""
  path = Path(workdir) / 'config.json'
  if not workdir or not path.is_file():
    return ''
  return json.loads(path.read_text()).get(stage, {}).get('init_networks', '')
