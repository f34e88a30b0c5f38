"""Converted weights laid over a fresh state, and what became of each array."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jaxseg import hosts, writers
from jaxseg.data.formats.images import write_atomically
from jaxseg.errors import UserError
from jaxseg.method import TrainState
from jaxseg.optimizers import RangerState
from jaxseg.published import folder
from jaxseg.published.folder import Pretrained

# Networks of a state: where in a folder their weights are, and of which arch.
SOURCES = {
  'g': ('g', 'g_ema'), 'd_r': ('d_r',), 'd_m': ('d_m',), 'e': ('e',),
}  # fmt: skip
OF_AVERAGE = {**SOURCES, 'g': ('g_ema', 'g')}
ARCHS = {
  'g': 'stylegan2_generator',
  'd_r': 'stylegan2_discriminator',
  'd_m': 'multiscale_discriminator',
  'e': 'fpn_encoder',
}


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


def overlay(
  state: TrainState,
  weights: Pretrained,
  source: str,
  placed: Iterable[str] = (),
) -> tuple[TrainState, Report]:
  """Replaces what the folder has in the same place and shape.

  Args:
    state: a fresh one.
    weights: of the folder.
    source: its path, for messages.
    placed: networks of the folder that the state holds already.

  Returns:
    (state, report on the parameters).

  Raises:
    UserError: nothing fits.
  """
  report, silent = (Report(source, [], [], [], []) for _ in range(2))
  nets, used = weights.networks, set(placed)
  for name in sorted(used):
    report.loaded.extend(
      folder.flat(nets[name].variables['params'], f'{name}/')
    )
  params = _fill(state.params, 'params', nets, SOURCES, report, used)
  ema = _fill(state.ema, 'params', nets, OF_AVERAGE, silent, used)
  extra = dict(state.extra)
  if 'spectral' in extra:
    vectors = {'d_m': extra['spectral']}
    vectors = _fill(vectors, 'spectral', nets, SOURCES, silent, used)
    extra['spectral'] = vectors['d_m']
  for name in sorted(nets.keys() - used):
    report.unused.extend(folder.flat(nets[name].variables, f'{name}/'))
  if not report.loaded:
    raise _nothing_fits(report, nets)
  opt_state = {
    name: _restarted(tree, params[name])
    for name, tree in state.opt_state.items()
  }
  return state.replace(
    params=params, ema=ema, extra=extra, opt_state=opt_state
  ), report


def tell(report: Report, stage: str, output: Path) -> None:
  """Says it in a line, and key by key in OUTPUT/init_from.txt."""
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


def _fill(trees, collection, nets, sources, report, used):
  """`trees` by network, with the folder's arrays where they fit."""
  filled = {}
  for name, tree in trees.items():
    there = next(
      (
        n for n in sources.get(name, ())
        if n in nets and nets[n].arch == ARCHS[name]
      ), None,
    )  # fmt: skip
    given = _arrays(nets[there], collection) if there else {}
    used |= {there} - {None}
    new = folder.flat(tree)
    for path, leaf in new.items():
      label, array = f'{name}/{path}', given.pop(path, None)
      if array is None:
        report.fresh.append(label)
      elif array.shape != leaf.shape:
        report.other_shape.append((label, leaf.shape, array.shape))
      else:
        # A copy: parameters and their average are donated apart.
        new[path] = np.array(array, leaf.dtype)
        report.loaded.append(label)
    report.unused.extend(f'{there}/{path}' for path in given)
    filled[name] = traverse_util.unflatten_dict(new, sep=folder.SEPARATOR)
  return filled


def _arrays(network, collection):
  """Arrays by path; scales of batch statistics are none of group norm's."""
  found = folder.flat(network.variables.get(collection, {}))
  if network.settings.get('norm') != 'batch':
    return found
  norm = lambda path: path.split(folder.SEPARATOR)[-2].startswith('norm')
  return {path: array for path, array in found.items() if not norm(path)}


def _restarted(opt_state, params):
  """Ranger's slow weights begin where the weights do."""
  is_ranger = lambda x: isinstance(x, RangerState)
  slow = lambda: jax.tree.map(np.array, params)
  return jax.tree.map(
    lambda x: x._replace(slow=slow()) if is_ranger(x) else x,
    opt_state, is_leaf=is_ranger,
  )  # fmt: skip


def _nothing_fits(report, nets):
  why = f'it holds {", ".join(nets)}'
  if report.other_shape:
    name, here, there = report.other_shape[0]
    why = f'{name} has shape {here} here and {there} there'
  return UserError(
    f'of the weights in {report.folder} nothing fits ({why}); set the sizes of '
    'the networks to those that python -m jaxseg.pretrained show tells.'
  )
