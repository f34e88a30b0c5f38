"""A dense CRF after a network: --crf, --mean_field.* and the program behind."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxseg import config as jaxseg_config
from jaxseg.data.formats import images as image_files
from jaxseg.errors import UserError, friendly
from jaxseg.method import Prediction
from jaxseg.ops import dense_crf, permutohedral
from jaxseg.ops.dense_crf import CRF

FLAG = '--mean_field'
_LEAST = 1e-10  # of a probability, before its logarithm

Run = Callable[[np.ndarray], tuple[Any, float]]


def runner(
  settings: CRF, compile_: Callable[[Callable, Sequence[int]], Run]
) -> Callable[[Prediction, np.ndarray], tuple[Prediction, float]]:
  """Makes the function that follows a network's.

  Args:
    settings: of the random field; with `max_vertices` of 0 the lattice grows
      until an image fits.
    compile_: (function, shape) -> program, see `inference.compile_batches`;
      the function is of ((), arrays float32 [n, *shape]).

  Returns:
    (prediction of n images, images float32 [n, H, W, C] in [-1, 1]) ->
    (the prediction with other probabilities, seconds per image). The trust
    stays what the method thinks of the image. It raises UserError where an
    image needs a larger lattice than the settings allow.
  """
  most, program = settings.max_vertices, None

  def run(prediction, images):
    nonlocal most, program
    probabilities = np.asarray(prediction.probabilities)
    both = np.concatenate([probabilities, images], -1)
    while True:
      if program is None:
        program = _compile(
          settings._replace(max_vertices=most), probabilities.shape, compile_,
          images.shape[-1],
        )  # fmt: skip
      (found, shortage), seconds = program(both)
      if not shortage.any():
        return prediction._replace(probabilities=found), seconds
      most, program = _enlarged(settings, int(shortage.max())), None

  return run


def _compile(settings, shape, compile_, channels):
  classes = shape[-1]

  def function(_, both):
    logits = jnp.log(jnp.maximum(both[..., :classes], _LEAST))
    return dense_crf.mean_field_and_shortage(
      logits, both[..., classes:], settings
    )

  return compile_(function, (*shape[1:-1], classes + channels))


def _enlarged(settings, needed):
  """Room for an image that needs so many vertices, and for some more."""
  if needed == permutohedral.TOO_WIDE:
    raise UserError(
      f'{FLAG}.bilateral_xy={settings.bilateral_xy:g} and {FLAG}.bilateral_rgb='
      f'{settings.bilateral_rgb:g} are too small for the lattice; make them '
      f'larger or set {FLAG}.filter=exact.'
    )
  if settings.max_vertices:
    raise UserError(
      f'{FLAG}.max_vertices is {settings.max_vertices}, but an image needs '
      f'{needed}; set it to that or more, or to 0 to let it grow.'
    )
  return needed + needed // 4


def remember(path: Path, settings: CRF | None) -> CRF | None:
  """Writes settings to a file; without any, reads those it holds.

  Args:
    path: of a JSON file.
    settings: None: those of an earlier call.

  Returns:
    the settings; None where there are none, or they are of another version.
  """
  if settings is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(settings._asdict(), indent=1) + '\n'
    image_files.write_atomically(path, text.encode())
    return settings
  try:
    return CRF(**json.loads(path.read_text(encoding='utf-8')))
  except (OSError, ValueError, TypeError):
    return None


def group() -> ConfigDict:
  """The settings as a group of fields, the --mean_field flags."""
  return ConfigDict(CRF()._asdict()).lock()


def define_flags(to: flags.FlagValues) -> None:
  """Defines --crf and --mean_field.*."""
  flags.DEFINE_bool(
    'crf', False, 'Let a dense CRF follow; --mean_field.* are its settings.',
    flag_values=to,
  )  # fmt: skip
  with friendly():
    try:  # it reads the command line at once
      config_flags.DEFINE_config_dict(
        'mean_field', group(), 'The dense CRF, see jaxseg/ops/dense_crf.py.',
        flag_values=to,
      )  # fmt: skip
    except (AttributeError, KeyError) as error:
      sentence = jaxseg_config.in_short(error, FLAG)
      fields = ', '.join(CRF._fields)
      raise UserError(f'{sentence} Its fields are {fields}.') from error


def from_flags(args: flags.FlagValues) -> CRF | None:
  """The settings; None without --crf.

  Raises:
    UserError: as `dense_crf.check`; settings without --crf.
  """
  changes = config_flags.get_override_values(args['mean_field'])
  if not args.crf:
    if changes:
      name = f'{FLAG}.{next(iter(changes))}'
      raise UserError(
        f'{name} was given without --crf, expected both; leave it out or add '
        '--crf'
      )
    return None
  settings = CRF()._replace(**changes)
  dense_crf.check(settings, FLAG)
  return settings
