"""The fields of an experiment, each once, with a comment; locked.

A config file's `get_config(arg)` starts from `default()`, adds its stages with
`stage(method, ...)` and changes fields. Every field can be overridden on the
command line, `--config.gan.total_steps=5000`; unknown fields and wrong types
are refused.
"""

import inspect
import math
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxseg import methods
from jaxseg.errors import UserError, friendly

RESOLUTIONS = (32, 64, 128, 256, 512, 1024)


def default() -> ConfigDict:
  """Returns the fields that do not depend on the method, locked."""
  c = ConfigDict()
  c.seed = 0  # seeds the split, the data order and every random draw
  c.stages = ()  # names of the stages, in order; each is a field, see stage()

  c.data = ConfigDict()
  c.data.source = ''  # 'digits', 'avatars' or 'folder:PATH'
  c.data.resolution = 64  # side of the square the networks see, a power of 2
  c.data.channels = 3  # 1 (grey) or 3 (RGB)
  c.data.num_labelled = 30  # labels the methods may use; 0: all there are
  c.data.unlabelled = ()  # further splits that give images without labels
  c.data.unlabelled_includes_labelled = True  # D_r also sees labelled images
  c.data.ood = ()  # out-of-domain splits to evaluate; (): every 'ood*' split
  c.data.val_fraction = 0.1  # used only where the source has no 'val' split
  c.data.test_fraction = 0.2  # used only where the source has no 'test' split
  c.data.cache = True  # keep decoded, resized images in memory

  c.data.augment = ConfigDict()  # random, image and label together
  c.data.augment.flip = False  # mirror left-right, probability 1/2
  c.data.augment.shift = 0.0  # at most this fraction of the side
  c.data.augment.scale = 0.0  # factor drawn from [1-scale, 1+scale]
  c.data.augment.rotate = 0.0  # at most this many degrees
  c.data.augment.brightness = 0.0  # image only; added, in units of [-1, 1]
  c.data.augment.contrast = 0.0  # image only; factor from [1-c, 1+c]

  c.eval = ConfigDict()
  c.eval.splits = ('test', 'ood')  # 'ood' stands for every data.ood split
  c.eval.batch_size = 32
  c.eval.max_images = 0  # per split, drawn by the seed; 0: all
  c.eval.refine = True  # also score test-time optimisation ("Ours")
  c.eval.report_images = 12  # rows of each split in the HTML report

  c.mesh = ConfigDict()
  c.mesh.data = -1  # devices that share a batch; -1: all local devices
  c.mesh.model = 1

  c.compilation_cache = 'auto'  # 'auto': user cache folder; '': off; or a path
  return c.lock()


def stage(method: str, **overrides: Any) -> ConfigDict:
  """Returns the fields of one stage: the loop's, and the method's own.

  Args:
    method: a key of `jaxseg.methods.METHODS`.
    **overrides: loop fields (below) or keyword arguments of the method's
      `make`; its signature is the schema.

  Raises:
    KeyError: an unknown method or field.
  """
  c = ConfigDict()
  c.method = method
  c.init_from = ''  # an earlier stage whose final state this one starts from
  c.total_steps = 1000
  c.batch_size = 8  # labelled images a step, over all devices
  c.unlabelled_batch_size = 0  # unlabelled images a step; 0: none are read
  c.label = ''  # the name in tables; '': the stage's name
  c.log_every = 50
  c.checkpoint_every = 500
  c.keep_checkpoints = 2
  c.picture_every = 500
  signature = inspect.signature(methods.METHODS[method].make)
  c.args = ConfigDict(
    {
      name: p.default
      for name, p in signature.parameters.items()
      if p.default is not p.empty
    }
  )
  for key, value in overrides.items():
    group = c if key in c else c.args
    if key not in group:
      raise KeyError(
        f'stage({method!r}) has no field {key!r}; it has '
        f'{sorted(c)} and {sorted(c.args)}'
      )
    group[key] = value
  return c.lock()


def add_stages(config: ConfigDict, **stages: ConfigDict) -> ConfigDict:
  """Returns `config` with these stages, in this order, locked again."""
  with config.unlocked():
    config.stages = tuple(stages)
    for name, fields in stages.items():
      config[name] = fields
  return config.lock()


def check(config: ConfigDict) -> None:
  """Refuses values that cannot work, before anything expensive starts.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  size = config.data.resolution
  if size not in RESOLUTIONS:
    raise UserError(
      f'config.data.resolution is {size}, must be a power of two from '
      f'{RESOLUTIONS[0]} to {RESOLUTIONS[-1]}; '
      f'{min(RESOLUTIONS, key=lambda r: abs(r - size))} is the nearest.'
    )
  if config.data.channels not in (1, 3):
    raise UserError(
      f'config.data.channels is {config.data.channels}, must be 1 (grey) or 3 '
      '(RGB).'
    )
  if not config.stages:
    raise UserError(
      'config.stages is empty; a config adds stages with add_stages(), as '
      'configs/quickstart.py does.'
    )
  for i, name in enumerate(config.stages):
    fields = config[name]
    if fields.init_from and fields.init_from not in config.stages[:i]:
      raise UserError(
        f'config.{name}.init_from is {fields.init_from!r}, must be an earlier '
        f'stage: {", ".join(config.stages[:i]) or "there is none"}.'
      )
  _check_numbers(config, 'config')


_AT_LEAST_ONE = ('total_steps', 'batch_size', 'log_every', 'keep_checkpoints')
_MAY_BE_NEGATIVE = ('mesh.data',)


def _check_numbers(fields: ConfigDict, path: str) -> None:
  """Every number is finite and not negative; counts are at least 1."""
  for name, value in fields.items():
    where = f'{path}.{name}'
    if isinstance(value, ConfigDict):
      _check_numbers(value, where)
    elif isinstance(value, bool) or not isinstance(value, int | float):
      continue
    elif not math.isfinite(value):
      raise UserError(f'{where} is {value}, must be a finite number.')
    elif value < (name in _AT_LEAST_ONE) and not where.endswith(
      _MAY_BE_NEGATIVE
    ):
      least = 'at least 1' if name in _AT_LEAST_ONE else '0 or more'
      raise UserError(f'{where} is {value}, must be {least}.')


def parse_flags(argv: list[str]) -> list[str]:
  """absl's flag parser, its errors turned into one sentence and exit code 2.

  For `app.run(main, flags_parser=parse_flags)`: a misspelt field, a wrong
  type or a missing config file then ends without a traceback.
  """
  with friendly():
    try:
      rest = flags.FLAGS(tuple(argv))
      if 'config' in flags.FLAGS and flags.FLAGS['config'].value is not None:
        # A file that cannot be loaded is only told of when it is used.
        flags.FLAGS['config'].value.keys()
      return rest
    except OSError as error:
      named = [a for a in argv if a.startswith(('--config=', '-config='))]
      raise UserError(
        f'{named[-1] if named else "--config"} cannot be loaded: is there such '
        'a file? The configs are in configs/, e.g. '
        '--config=configs/quickstart.py.'
      ) from error
    except (
      flags.Error,
      AttributeError,
      KeyError,
      TypeError,
      ValueError,
    ) as error:
      message = ' '.join(str(error).split()).strip('"\'')
      hint = (
        ' Fields and their defaults are listed in jaxseg/config.py, the '
        "method's own in the signature of its make()."
      )
      raise UserError(message + hint * ('config' in message)) from error
