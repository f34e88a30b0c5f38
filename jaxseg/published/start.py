"""Training that starts from converted weights: config.STAGE.init_from."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg.errors import UserError
from jaxseg.published import folder
from jaxseg.published.folder import Pretrained

# Methods whose `init` is given the generator, as of an earlier stage.
WITH_GENERATOR = ('semantic_gan_encoder',)
# Networks of a state: where in a folder their weights are.
SOURCES = {
  'g': ('g', 'g_ema'), 'd_r': ('d_r',), 'd_m': ('d_m',), 'e': ('e',),
}  # fmt: skip
OF_AVERAGE = {**SOURCES, 'g': ('g_ema', 'g')}
METHODS = ('semantic_gan', *WITH_GENERATOR, 'label_branch')


class Report(NamedTuple):
  """What became of each array, by name.

  Attributes:
    folder: where the weights come from.
    loaded: names.
    other_shape: (name, shape here, shape there): stays as it was drawn.
    fresh: of the networks here, not in the folder: stays as it was drawn.
    unused: of the folder, not in the networks here.
  """

  folder: str
  loaded: list[str]
  other_shape: list[tuple[str, tuple, tuple]]
  fresh: list[str]
  unused: list[str]


def is_folder(init_from: str) -> bool:
  """Whether it names a folder, perhaps one that is gone, and not a stage."""
  return os.sep in init_from or folder.is_one(init_from)


def resolve(config: ConfigDict, workdir: str | os.PathLike = '') -> ConfigDict:
  """A config that says what the folders hold, so that they may go later.

  A stage of a segmenter gets the folder as its `net.weights`.

  Args:
    config: the experiment's.
    workdir: of a training that may have begun.

  Raises:
    UserError: a folder that is missing, or of no use to the stage's method.
  """
  config = config.copy_and_resolve_references()
  for stage in config.stages:
    fields = config[stage]
    source = fields.init_from
    if not source or source in config.stages:
      continue
    if 'net' in fields.args:
      fields.args.net.weights, fields.init_from = source, ''
      continue
    where = f'config.{stage}.init_from is {source!r}'
    if fields.method not in METHODS:
      raise UserError(
        f'{where}, but {fields.method} cannot start from converted weights; '
        f'{", ".join(METHODS)} and segmenters can.'
      )
    if not folder.is_one(source):
      fields.init_networks = _recorded(workdir, stage)
    if not fields.init_networks or folder.is_one(source):
      card = folder.read_card(source)
      kept = {name: card[name] for name in ('networks', 'adds_w_avg')}
      fields.init_networks = json.dumps(kept, sort_keys=True)
    if not _networks(config, stage).keys() & {'g', 'g_ema'}:
      raise UserError(
        f'{where}, which holds {", ".join(_networks(config, stage))}, but '
        f'{fields.method} needs a generator; convert a file of kind stylegan2, '
        'semanticgan, psp, e4e or stylegan2-ada.'
      )
  return config


def generator_settings(config: ConfigDict, stage: str) -> dict[str, Any]:
  """Arguments for `semantic_gan.networks`, of the folder's generator.

  Raises:
    UserError: it draws no labels, or images of another size.
  """
  networks, fields = _networks(config, stage), config[stage]
  name = 'g_ema' if 'g_ema' in networks else 'g'
  settings = dict(networks[name]['settings'])
  size, channels = settings.pop('resolution'), settings.pop('channels')
  where = f'config.{stage}.init_from is {fields.init_from!r}'
  if not settings.pop('num_classes'):
    raise UserError(
      f'{where}, whose generator draws no labels, but {fields.method} needs '
      'them; train a stage of method label_branch on it instead.'
    )
  data = config.data
  if (size, channels) != (data.resolution, data.channels):
    raise UserError(
      f'{where}, whose generator draws {size} x {size} images of {channels} '
      f'channels, but config.data.resolution is {data.resolution} and '
      f'config.data.channels {data.channels}; set them to those.'
    )
  d_r = networks.get('d_r', {}).get('settings', {})
  group = {k: v for k, v in d_r.items() if k == 'stddev_group'}
  return settings | group | {'label_output': 'logits'}


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


def previous(config: ConfigDict, stage: str, weights: Pretrained) -> Any:
  """The folder's generator as the final state of a semantic_gan stage."""
  from jaxseg.methods import frozen

  del config, stage
  return _as_state(frozen.weights(weights))


def overlay(state: Any, weights: Pretrained, source: str) -> tuple[Any, Report]:
  """Replaces what the folder has in the same place and shape.

  Args:
    state: a fresh `TrainState`.
    weights: of the folder.
    source: its path, for messages.

  Returns:
    (state, report on the parameters).

  Raises:
    UserError: nothing fits.
  """
  report = Report(source, [], [], [], [])
  nets = weights.networks
  params = _fill(state.params, 'params', nets, SOURCES, report)
  silent = Report(source, [], [], [], [])
  ema = _fill(state.ema, 'params', nets, OF_AVERAGE, silent)
  extra = dict(state.extra)
  if 'spectral' in extra and 'd_m' in nets:
    vectors = {'d_m': extra['spectral']}
    vectors = _fill(vectors, 'spectral', nets, SOURCES, silent)
    extra['spectral'] = vectors['d_m']
  if not report.loaded:
    example = report.other_shape[0] if report.other_shape else None
    why = (
      f'{example[0]} has shape {example[1]} here and {example[2]} there'
      if example
      else f'it holds {", ".join(nets)}'
    )
    raise UserError(
      f'of the weights in {source} nothing fits ({why}); set the sizes of the '
      'networks to those that python -m jaxseg.pretrained show tells'
    )
  return state.replace(params=params, ema=ema, extra=extra), report


def tell(report: Report, stage: str, output: Path) -> None:
  """Says it in a line, and key by key in OUTPUT/init_from.txt."""
  from jaxseg import hosts, writers
  from jaxseg.data.formats.images import write_atomically

  lines = [f'weights of {report.folder}']
  lines += [f'loaded       {name}' for name in report.loaded]
  lines += [
    f'other shape  {name} {here} here, {there} there'
    for name, here, there in report.other_shape
  ]
  lines += [f'fresh        {name}' for name in report.fresh]
  lines += [f'unused       {name}' for name in report.unused]
  path = output / 'init_from.txt'
  if hosts.primary():
    write_atomically(path, '\n'.join([*lines, '']).encode())
  parts = [f'{len(report.loaded)} arrays from {report.folder}']
  for what, found in (
    ('of another shape', [name for name, *_ in report.other_shape]),
    ('fresh', report.fresh),
    ('unused', report.unused),
  ):
    if found:
      more = ', ...' if found[1:] else ''
      parts.append(f'{len(found)} {what} ({found[0]}{more})')
  writers.say(f'{stage}: {", ".join(parts)}; see {path}')


def _fill(trees, collection, nets, sources, report):
  """`trees` by network, with the folder's arrays where they fit."""
  filled = dict(trees)
  for name, tree in trees.items():
    there = next((n for n in sources.get(name, ()) if n in nets), None)
    if there is None:
      report.fresh.append(name)
      continue
    given = folder.flat(nets[there].variables.get(collection, {}))
    here = folder.flat(tree)
    new = {}
    for path, leaf in here.items():
      label = f'{name}/{path}'
      array = given.pop(path, None)
      new[path] = leaf
      if array is None:
        report.fresh.append(label)
      elif array.shape != leaf.shape:
        report.other_shape.append((label, leaf.shape, array.shape))
      else:
        new[path] = np.asarray(array, leaf.dtype)
        report.loaded.append(label)
    report.unused.extend(f'{there}/{path}' for path in given)
    filled[name] = _nested(new)
  return filled


def _nested(flat):
  from flax import traverse_util

  return traverse_util.unflatten_dict(flat, sep=folder.SEPARATOR)


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


def _networks(config, stage):
  return json.loads(config[stage].init_networks)['networks']


def _recorded(workdir, stage):
  """`init_networks` of a training that began when the folder was there."""
  path = Path(workdir) / 'config.json'
  if not workdir or not path.is_file():
    return ''
  return json.loads(path.read_text()).get(stage, {}).get('init_networks', '')
