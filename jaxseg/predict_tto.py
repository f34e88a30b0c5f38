"""Flags and settings of `predict_pretrained`: --tto.* and those beside it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxseg import config as jaxseg_config
from jaxseg.data import fit
from jaxseg.errors import UserError, friendly
from jaxseg.methods import inversion, perceptual

SCHEDULES = ('constant', 'ramp')
# The flags that `define_flags` defines.
NAMES = (
  'pretrained', 'fit', 'perceptual_kind', 'lpips_weights', 'tto', 'config',
)  # fmt: skip


class Settings(NamedTuple):
  """How the code of an image is optimised: Adam on w+.

  Steps, rate and schedule are those with which the first users of pSp beside
  SemanticGAN's method inverted faces; the weight of the squared error is that
  of SemanticGAN's released code (Li et al., CVPR 2021, give none).

  Attributes:
    steps: of Adam; 0: the encoder's code as it is.
    lr: learning rate.
    schedule: 'constant', or 'ramp', see `inversion.ramp_schedule`.
    lambda_l2: weight of the mean squared error beside the perceptual distance.
    lambda_encoder: weight of |w - E(G(w))|^2; anything but 0 runs the encoder
      in every step.
    optimize_noise: optimise the noise maps too. They are not written: codes
      alone then give another image.
    lambda_noise: weight of the noise maps' autocorrelation, when optimised.
    snapshots: steps to show between the first and the last.
  """

  steps: int = 100
  lr: float = 0.01
  schedule: str = 'constant'
  lambda_l2: float = 0.1
  lambda_encoder: float = 0.0
  optimize_noise: bool = False
  lambda_noise: float = 100.0
  snapshots: tuple[int, ...] = ()

  def arguments(self) -> dict[str, Any]:
    """Of `inversion.invert`."""
    found = self._asdict()
    del found['lr'], found['snapshots']
    return found | {'schedule': self.rate()}

  def rate(self) -> Callable[[Any], Any]:
    """The learning rate by step."""
    if self.schedule == 'ramp':
      return inversion.ramp_schedule(self.lr, self.steps)
    return lambda step: self.lr


def group(**changes: Any) -> ConfigDict:
  """The settings as a group of fields, `config.tto` and the --tto flags."""
  return ConfigDict(Settings(**changes)._asdict()).lock()


def from_group(fields: ConfigDict) -> Settings:
  """Checked settings.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  settings = Settings(**fields)
  for name in ('steps', 'lr', 'lambda_l2', 'lambda_encoder', 'lambda_noise'):
    value = getattr(settings, name)
    if not (math.isfinite(value) and value >= 0):
      raise UserError(f'--tto.{name} is {value}, must be 0 or more.')
  if settings.schedule not in SCHEDULES:
    raise UserError(
      f'--tto.schedule is {settings.schedule!r}, must be one of '
      f'{", ".join(SCHEDULES)}.'
    )
  for step in settings.snapshots:
    if type(step) is not int or not 0 <= step <= settings.steps:
      raise UserError(
        f'--tto.snapshots holds {step!r}, must be steps from 0 to --tto.steps='
        f'{settings.steps}.'
      )
  return settings


def shown_steps(settings: Settings) -> tuple[int, ...]:
  """The steps that are shown, ascending: 0, snapshots, the last."""
  return tuple(sorted({0, *settings.snapshots, settings.steps}))


def define_flags(to: flags.FlagValues) -> None:
  """Defines the flags of `NAMES`."""
  flags.DEFINE_string(
    'pretrained', None, 'Folder of converted weights, in place of --workdir.',
    flag_values=to,
  )  # fmt: skip
  flags.DEFINE_enum(
    'fit', None, fit.POLICIES[1:],
    'How images of other shapes become square; default: crop.', flag_values=to,
  )  # fmt: skip
  flags.DEFINE_enum(
    'perceptual_kind', 'auto', perceptual.KINDS,
    'The distance that is made small; auto: LPIPS where its weights are found.',
    flag_values=to,
  )  # fmt: skip
  flags.DEFINE_string(
    'lpips_weights', '', 'File or folder of LPIPS weights.', flag_values=to
  )
  with friendly():
    try:  # it reads the command line at once
      config_flags.DEFINE_config_dict(
        'tto', group(), 'Test-time optimisation, see jaxseg/predict_tto.py.',
        flag_values=to,
      )  # fmt: skip
    except (AttributeError, KeyError) as error:
      sentence = jaxseg_config.in_short(error, '--tto')
      fields = ', '.join(Settings._fields)
      raise UserError(f'{sentence} Its fields are {fields}.') from error
  config_flags.DEFINE_config_file(
    'config', None, 'File with defaults of --tto and --fit.', flag_values=to
  )


def is_given(args: flags.FlagValues, name: str) -> bool:
  """Whether a flag is on the command line."""
  if name == 'tto':
    return bool(config_flags.get_override_values(args['tto']))
  return bool(args[name].present)


def from_flags(
  args: flags.FlagValues,
) -> tuple[Settings, ConfigDict]:
  """What the flags ask for: (settings, `config.data`).

  Raises:
    UserError: as `from_group` and `config.check_data`.
  """
  config = args.config or jaxseg_config.default()
  data = config.data.copy_and_resolve_references()
  data.fit = args.fit or data.fit or 'crop'
  jaxseg_config.check_data(data)
  fields = config.tto if 'tto' in config else group()
  fields = fields.copy_and_resolve_references()
  fields.update(config_flags.get_override_values(args['tto']))
  return from_group(fields), data
