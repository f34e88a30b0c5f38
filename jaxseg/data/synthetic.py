"""Generated images with labels among those that train."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxseg.data.folders import folder
from jaxseg.data.formats import intensity
from jaxseg.data.source import Source
from jaxseg.errors import UserError

# Positions of a stream among which the synthetic ones are drawn; over so many
# their part is exact.
BLOCK = 64
_UNIT = 2**20  # parts are fractions of it, so that sums have no rounding
# Ids of synthetic images where they stand beside others.
PREFIX = 'synthetic/'


def check(synthetic_config: Any) -> None:
  """Refuses values without meaning in `config.data.synthetic`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  part = synthetic_config.part
  if not (math.isfinite(part) and 0 <= part <= 1):
    raise UserError(
      f'config.data.synthetic.part is {part}, must be from 0 to 1: 0.5 for '
      'half of each labelled batch, 1 for no real labels.'
    )


def opener(source: Source, data_config: Any) -> Callable[[], Source] | None:
  """Returns what opens `config.data.synthetic.folder`, once; None: none is.

  Scoring needs no synthetic images, so that a run is scored without them too.
  What is returned raises UserError: no such folder, other classes than those
  of `source`, no labelled image.
  """
  if not data_config.synthetic.folder or not data_config.synthetic.part:
    return None
  return functools.cache(functools.partial(_open, source, data_config))


def ids(source: Source) -> tuple[str, ...]:
  """Returns the labelled images of an opened folder, whatever their split."""
  every = dict.fromkeys(i for part in source.splits.values() for i in part)
  return tuple(id_ for id_ in every if source.has_label(id_))


def _open(real, data_config):
  name = data_config.synthetic.folder
  path = pathlib.Path(name.removeprefix('folder:')).expanduser()
  field = f'config.data.synthetic.folder is {name!r}'
  if not path.is_dir():
    raise UserError(
      f'{field}, and there is no such folder, expected one of generated images '
      'as `python -m jaxseg.synthesize` writes it; correct '
      '--config.data.synthetic.folder'
    )
  source = folder.load(
    path, data_config.channels,
    intensity=intensity.from_config(data_config.intensity),
    volume=data_config.volume,
  )  # fmt: skip
  if source.class_names != real.class_names:
    raise UserError(
      f'{field} with the classes {", ".join(source.class_names)}, but those of '
      f'{real.name} are {", ".join(real.class_names)}, expected the same in '
      'the same order; correct its classes.json or name another folder'
    )
  if not ids(source):
    raise UserError(
      f'{field}, in which no image has a label, expected labels/NAME.png for '
      'each images/NAME.png; name another folder'
    )
  return source


def mixed(position: int, seed: int, part: float) -> tuple[bool, int]:
  """Returns where an element of a mixed stream comes from.

  Of each `BLOCK` positions the same part is synthetic, at places drawn from
  the seed.

  Args:
    position: in the stream, from 0.
    seed: of the draw.
    part: of the elements that are synthetic, in [0, 1].

  Returns:
    Whether it is synthetic; how many elements of its kind have gone before it
    or come before it in its block, each number once.
  """
  block, i = divmod(position, BLOCK)
  turn = block * BLOCK + int(_permutation(seed, block)[i])
  share = round(part * _UNIT)
  before = turn * share // _UNIT
  synthetic = (turn + 1) * share // _UNIT > before
  return synthetic, before if synthetic else turn - before


@functools.lru_cache(maxsize=64)
def _permutation(seed, block):
  return np.random.default_rng([seed, block, 3]).permutation(BLOCK)
