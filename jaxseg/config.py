"""The fields of an experiment, each once, with a comment; locked.

A config file's `get_config(arg)` starts from `default()`, adds its stages with
`stage(method, ...)` and changes fields. Every field can be overridden on the
command line, `--config.gan.total_steps=5000`; unknown fields and wrong types
are refused.
"""

import inspect
import math
import os
import re
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jaxseg import methods
from jaxseg.data import drawing, fit, synthetic, transforms, views, weak
from jaxseg.data.formats import intensity
from jaxseg.errors import UserError, friendly
from jaxseg.published import start

WORKERS_PER_CORE = 8
NOT_SCORED = ('semantic_gan',)  # methods that only generate


def default() -> ConfigDict:
  """Returns the fields that do not depend on the method, locked."""
  c = ConfigDict()
  c.seed = 0  # seeds the split, the data order and every random draw
  c.stages = ()  # names of the stages, in order; each is a field, see stage()

  c.data = ConfigDict()
  # 'digits', 'avatars', 'folder:PATH', or the name of a prepared set, see
  # `python -m jaxseg.datasets list`.
  c.data.source = ''
  c.data.data_dir = ''  # of prepared sets; '': $TFDS_DATA_DIR or its default
  # Of what the networks see, multiples of 4 from 32 to 1024: the height, and
  # the width; 0: as wide as high. GANs draw squares with a power of 2.
  c.data.resolution = 64
  c.data.width = 0
  c.data.channels = 3  # 1 (grey) or 3 (RGB)
  # How images of another aspect get that of the networks: 'crop' (the centre),
  # 'pad' (with void) or 'squeeze'; '': they are refused.
  c.data.fit = ''
  c.data.num_labelled = 30  # labels the methods may use; 0: all there are
  # Part of the training labels that the methods may use, such as 0.2; then
  # num_labelled does not count. 0: it does.
  c.data.labelled_fraction = 0.0
  c.data.labelled_by = 'image'  # what both count: 'image' or 'group' (patient)
  c.data.unlabelled = ()  # further splits that give images without labels
  c.data.unlabelled_includes_labelled = True  # D_r also sees labelled images
  c.data.ood = ()  # out-of-domain splits to evaluate; (): every 'ood*' split
  c.data.ood_sources = ()  # further sets to evaluate, 'NAME=SOURCE'
  # Their classes by name, 'NAME:left lung=lung,heart=background'; those not
  # named here keep their name, and are void if training has no such class.
  c.data.ood_classes = ()
  # Regular expression whose first group, found in an image's name, is its
  # patient, sequence, ...; only where the source does not know its groups.
  c.data.group_by = ''
  c.data.val_fraction = 0.1  # used only where the source has no 'val' split
  c.data.test_fraction = 0.2  # used only where the source has no 'test' split
  c.data.max_bad_fraction = 0.01  # of unlabelled images that may be unreadable
  c.data.allow_leaks = False  # the same image in training and in a scored split
  c.data.cache = True  # keep decoded, resized images in memory
  # Processes that read and augment, each with a cache of its own; 0: threads of
  # this process, which is faster until it keeps a core busy.
  c.data.workers = 0

  c.data.intensity = ConfigDict()  # how stored values become 0..255
  # 'auto': 8-bit as it is, deeper by percentiles; 'percentile'; 'window';
  # 'equalize' (histogram)
  c.data.intensity.mode = 'auto'
  c.data.intensity.percentiles = (0.5, 99.5)
  c.data.intensity.window = (0.0, 0.0)  # (lowest, highest) shown, e.g. in HU
  c.data.intensity.gamma = 1.0  # exponent after that, of values in [0, 1]

  c.data.volume = ConfigDict()  # NIfTI and DICOM volumes become slices
  c.data.volume.axis = 2  # 0 sagittal, 1 coronal, 2 axial (RAS+)
  c.data.volume.step = 1  # every step-th slice
  c.data.volume.skip_empty = False  # leave out slices whose label is all 0

  c.data.weak = ConfigDict()  # weak labels, for training
  c.data.weak.kind = ''  # '', scribbles, clicks, boxes, polygons or tags
  c.data.weak.density = 1.0  # of scribble length, clicks, polygon vertices
  c.data.weak.seed = 0  # of where they are drawn
  c.data.weak.width = 3  # of scribbles and clicks, in pixels of resolution
  # Where in a folder:PATH those are that people drew, 'scribbles', 'boxes.csv';
  # '': they are made from the full masks. See `jaxseg/data/folders/drawn.py`.
  c.data.weak.drawn = ''
  c.data.weak.refine = ''  # 'grabcut': boxes become masks

  c.data.synthetic = ConfigDict()  # generated images with labels, for training
  c.data.synthetic.folder = ''  # as jaxseg.synthesize writes it; '': none
  c.data.synthetic.part = 0.5  # of each labelled batch; 1: no others

  c.data.augment = ConfigDict()  # random, image and label together
  c.data.augment.flip = False  # mirror left-right, probability 1/2
  c.data.augment.flip_vertical = False  # mirror top-bottom, probability 1/2
  c.data.augment.shift = 0.0  # at most this fraction of the side
  c.data.augment.scale = 0.0  # factor drawn from [1-scale, 1+scale]
  c.data.augment.rotate = 0.0  # at most this many degrees
  c.data.augment.shear = 0.0  # at most this many degrees
  c.data.augment.elastic = 0.0  # displacement, fraction of the side (std)
  c.data.augment.brightness = 0.0  # image only; added, in units of [-1, 1]
  c.data.augment.contrast = 0.0  # image only; factor from [1-c, 1+c]
  c.data.augment.saturation = 0.0  # image only; factor from [1-s, 1+s]
  c.data.augment.hue = 0.0  # image only; at most this fraction of a turn
  c.data.augment.gamma = 0.0  # image only; exponent from [1/(1+g), 1+g]
  c.data.augment.noise = 0.0  # image only; largest std, in units of [-1, 1]
  c.data.augment.blur = 0.0  # image only; largest std, in pixels
  c.data.augment.copy_paste = 0.0  # probability of another image's objects

  c.data.strong = ConfigDict()  # the strong view of unlabelled images
  c.data.strong.views = 0  # strong views an image; 0: none are made
  c.data.strong.brightness = 0.5  # UniMatch's colour jitter, see `views.strong`
  c.data.strong.contrast = 0.5
  c.data.strong.saturation = 0.5
  c.data.strong.hue = 0.25
  c.data.strong.jitter_probability = 0.8
  c.data.strong.grey_probability = 0.2
  c.data.strong.blur_probability = 0.5
  c.data.strong.blur = 2.0  # largest std, in pixels
  c.data.strong.cutmix_probability = 0.5
  c.data.strong.cutmix_area = (0.02, 0.4)  # of the image

  c.eval = ConfigDict()
  c.eval.splits = ('test', 'ood')  # 'ood' stands for every data.ood split
  c.eval.batch_size = 32
  c.eval.max_images = 0  # per split, drawn by the seed; 0: all
  c.eval.refine = True  # also score test-time optimisation ("Ours")
  c.eval.report_images = 12  # rows of each split in the HTML report

  c.mesh = ConfigDict()
  # Devices that share a batch; -1: all, of all processes.
  c.mesh.data = -1
  # Devices that share what is large of the parameters and of the optimiser's
  # state; 1: each holds all.
  c.mesh.model = 1

  # Seconds without a finished step after which a process that stands still
  # ends itself with code 7; 0: never.
  c.hang_timeout = 300.0

  c.compilation_cache = 'auto'  # 'auto': user cache folder; '': off; or a path
  return c.lock()


def stage(method: str, **overrides: Any) -> ConfigDict:
  """Returns the fields of one stage: the loop's, and the method's own.

  Args:
    method: a key of `jaxseg.methods.METHODS`.
    **overrides: loop fields (below) or keyword arguments of the method's
      `make`; its signature is the schema. Settings that `make` takes as a
      NamedTuple (`net`, `loss`, `optimizer`) are groups of fields, changed by
      a dict: `net={'width': 16}`.

  Raises:
    KeyError: an unknown method or field.
  """
  c = ConfigDict()
  c.method = method
  # An earlier stage whose final state this one starts from, or a folder of
  # converted weights, see jaxseg/pretrained.py: of a generator, or of an
  # encoder that becomes a segmenter's net.weights.
  c.init_from = ''
  c.init_networks = ''  # filled in: what that folder holds, as JSON
  c.total_steps = 1000
  c.batch_size = 8  # labelled images a step, over all devices
  c.unlabelled_batch_size = 0  # unlabelled images a step; 0: none are read
  c.label = ''  # the name in tables; '': the stage's name
  c.log_every = 50
  c.checkpoint_every = 500
  c.keep_checkpoints = 2  # the newest so many
  # And so many with the highest mIoU on the validation images, which are then
  # scored at every checkpoint; 0: none are.
  c.keep_best = 0
  c.picture_every = 500
  # Steps in one program: fewer calls, for small networks on fast devices.
  c.steps_per_dispatch = 1
  signature = inspect.signature(methods.METHODS[method].make)
  c.args = ConfigDict(
    {
      name: _group(p.default)
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
    if isinstance(group[key], ConfigDict):
      group[key].lock().update(value)
    else:
      group[key] = value
  return c.lock()


def _group(default: Any) -> Any:
  """A NamedTuple of settings becomes a group of fields."""
  return (
    ConfigDict(default._asdict()) if hasattr(default, '_asdict') else default
  )


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
  check_data(config.data)
  config = start.as_weights(config)
  if not config.stages:
    raise UserError(
      'config.stages is empty; a config adds stages with add_stages(), as '
      'configs/quickstart.py does.'
    )
  groups = {n: c for n, c in config.items() if isinstance(c, ConfigDict)}
  known = [name for name, fields in groups.items() if 'method' in fields]
  for i, name in enumerate(config.stages):
    if name not in known:
      raise UserError(
        f'config.stages names {name!r}, must be some of {", ".join(known)}.'
      )
    fields = config[name]
    if fields.init_from and not (
      fields.init_from in config.stages[:i] or start.is_folder(fields.init_from)
    ):
      raise UserError(
        f'config.{name}.init_from is {fields.init_from!r}, must be an earlier '
        f'stage: {", ".join(config.stages[:i]) or "there is none"}; or a '
        'folder of converted weights, see jaxseg/pretrained.py.'
      )
    _check_same_input(config, name)
    _check_dispatch(f'config.{name}', fields)
    method_check = getattr(methods.METHODS[fields.method], 'check', None)
    if method_check:
      method_check(f'config.{name}', fields, config.data)
  _check_numbers(config, 'config')


def _check_dispatch(where: str, fields: ConfigDict) -> None:
  """Nothing is due in the middle of a program; what scores can predict."""
  steps = fields.steps_per_dispatch
  for name in ('total_steps', 'log_every', 'checkpoint_every', 'picture_every'):
    if fields[name] % max(1, steps):
      raise UserError(
        f'{where}.{name} is {fields[name]}, must be a multiple of '
        f'{where}.steps_per_dispatch, {steps}.'
      )
  if fields.keep_best and fields.method in NOT_SCORED:
    raise UserError(
      f'{where}.keep_best is {fields.keep_best}, but {fields.method} labels no '
      'images, so no checkpoint is the best; set it to 0.'
    )


def _check_same_input(config: ConfigDict, name: str) -> None:
  """A stage and the one it starts from expect the same kind of images."""
  source = config[name].init_from
  if source not in config.stages:
    return
  here, there = (config[n].args.get('net') for n in (name, source))
  if here and there and bool(here.weights) != bool(there.weights):
    raise UserError(
      f'config.{name}.args.net.weights is {here.weights!r} and '
      f'config.{source}.args.net.weights is {there.weights!r}, but networks '
      'that began with ImageNet weights expect images standardised as there; '
      'set both or neither.'
    )
  if not (here and there):
    return
  if here.norm == 'frozen' and there.norm not in ('batch', 'frozen'):
    raise UserError(
      f"config.{name}.args.net.norm is 'frozen', but config.{source}.args.net."
      f"norm is {there.norm!r}, which leaves no statistics; set it to 'batch'."
    )
  if config[name].method not in ('self_training', 'bcp', 'sec'):
    return
  # What the teacher learned with it must label with; shapes do not tell.
  alike = lambda field, value: (
    'batch' if (field, value) == ('norm', 'frozen') else value
  )
  for field in set(here) - {
    'dtype',
    'dropout',
    'joint_norm',
    'remat',
    'weights',
  }:
    if alike(field, here[field]) != alike(field, there[field]):
      raise UserError(
        f'config.{name}.args.net.{field} is {here[field]!r}, but that of its '
        f'teacher, config.{source}.args.net.{field}, is {there[field]!r}; give '
        'both stages the same args.net.'
      )
  heads = [config[n].args.get('head') for n in (name, source)]
  if heads[0] and heads[1] and heads[0] != heads[1]:
    here, there = (dict(head.items()) for head in heads)
    raise UserError(
      f'config.{name}.args.head is {here}, but that of its classifier, '
      f'config.{source}.args.head, is {there}; give both stages the same.'
    )


def check_data(data: ConfigDict) -> None:
  """Refuses values of `config.data` that cannot work; opens no file.

  Raises:
    UserError: as `check`.
  """
  where = 'config.data'
  fit.check_size(data)
  _check_numbers(data, where)
  for value, name, allowed in (
    (data.channels, 'channels', (1, 3)),
    (data.fit, 'fit', fit.POLICIES),
    (data.labelled_by, 'labelled_by', ('image', 'group')),
    (data.volume.axis, 'volume.axis', (0, 1, 2)),
  ):
    if value not in allowed:
      raise UserError(
        f'{where}.{name} is {value!r}, must be one of '
        f'{", ".join(map(repr, allowed))}.'
      )
  most = WORKERS_PER_CORE * (os.cpu_count() or 1)
  if data.workers > most:
    raise UserError(
      f'{where}.workers is {data.workers}, must be at most {most}, '
      f'{WORKERS_PER_CORE} for each core: each is a process of its own.'
    )
  drawing.check_fraction(data)
  intensity.from_config(data.intensity)
  for module, name in (
    (transforms, 'augment'), (views, 'strong'), (weak, 'weak'),
    (synthetic, 'synthetic'),
  ):  # fmt: skip
    module.check(data[name])
  if data.weak.kind and data.augment.copy_paste:
    raise UserError(
      f'{where}.weak.kind is {data.weak.kind!r} and {where}.augment.copy_paste '
      'is on, but objects can only be cut out along full masks; set one of '
      'them to nothing.'
    )


_AT_LEAST_ONE = (
  'total_steps', 'batch_size', 'log_every', 'keep_checkpoints', 'model',
  'steps_per_dispatch',
)  # fmt: skip
_MAY_BE_NEGATIVE = ('mesh.data',)
_PAIRS = ('.percentiles', '.window', '.cutmix_area')


def _check_numbers(fields: ConfigDict, path: str) -> None:
  """Every number is finite and not negative; counts are at least 1; lists."""
  for name, value in fields.items():
    where = f'{path}.{name}'
    if isinstance(value, ConfigDict):
      _check_numbers(value, where)
    elif isinstance(value, tuple) and where.startswith('config.data.'):
      _check_entries(value, where)
    elif isinstance(value, bool) or not isinstance(value, int | float):
      continue
    elif not math.isfinite(value):
      raise UserError(f'{where} is {value}, must be a finite number.')
    elif value < (name in _AT_LEAST_ONE) and not where.endswith(
      _MAY_BE_NEGATIVE
    ):
      least = 'at least 1' if name in _AT_LEAST_ONE else '0 or more'
      raise UserError(f'{where} is {value}, must be {least}.')


def _check_entries(value: tuple, where: str) -> None:
  """Lists in config.data hold texts, but for pairs of numbers."""
  numbers = where.endswith(_PAIRS)
  kind = int | float if numbers else str
  for entry in value:
    if not isinstance(entry, kind) or isinstance(entry, bool) or entry == '':
      example = '(0.5, 99.5)' if numbers else "('a', 'b')"
      raise UserError(
        f'{where} holds {entry!r}, must be '
        f'{"numbers" if numbers else "texts"}, such as {example}.'
      )


def in_short(error: Exception, flag: str = '--config') -> str:
  """Returns what went wrong with a flag in one line, without a traceback.

  Args:
    error: of the flag's parser.
    flag: whose field is unknown, where one is.
  """
  if isinstance(error, AttributeError | KeyError):
    # "'NAME'\\nDid you mean "OTHER" ...", perhaps quoted twice.
    name, meant = re.match(
      r'\W*(\w*)(?:.*Did you mean \W*(\w+))?', str(error), re.DOTALL
    ).groups()
    hint = f', did you mean {meant!r}?' if meant else '.'
    return f'{flag} has no field {name!r}{hint}'
  told, found, trace = str(error).partition('Error whilst parsing config file')
  if found:  # the last line is of the config file's own error
    return told + trace.strip().splitlines()[-1].partition(': ')[2] + '.'
  return ' '.join(str(error).split())


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
    except BrokenPipeError:  # of a --help that is read in part
      raise
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
      message = in_short(error)
      hint = (
        ' Fields and their defaults are listed in jaxseg/config.py, the '
        "method's own in the signature of its make()."
      )
      raise UserError(message + hint * ('config' in message)) from error
