"""Lists, prepares, checks and shows data sets.

  python -m jaxseg.datasets list [NAME]
  python -m jaxseg.datasets prepare NAME --manual_dir=DIR
  python -m jaxseg.datasets check SOURCE [--json=FILE] [--csv=FILE]
  python -m jaxseg.datasets check SOURCE --drawn=scribbles --kind=scribbles
  python -m jaxseg.datasets show SOURCE --output=sheet.png

NAME is a public set of the list, or one of its configs, 'chest_xray:organs'.
SOURCE is a prepared NAME, 'digits', 'avatars', or a folder of your own. What a
config would say of it is said alike: --config.data.volume.axis=0; the most
frequent fields have short forms, --channels=1.

`check` reads every file and tells all that is wrong with them, gravest first;
with --drawn also the weak labels of that name, which `show` then shows.
Exit code 3: training would refuse the set; 2: a mistake on the command line.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags

from jaxseg import config as jaxseg_config
from jaxseg import errors, visualize, writers
from jaxseg.data import (
  annotated,
  builders,
  fit,
  prepared,
  problems,
  sources,
)
from jaxseg.data.formats import files
from jaxseg.data.inspection import checks, sheet, tables
from jaxseg.data.problems import Problem
from jaxseg.errors import DataError, UserError

SAMPLE = 1000  # images that `show` counts
SHORT_FIELDS = (
  'channels', 'resolution', 'width', 'fit', 'group_by', 'data_dir',
)  # fmt: skip
# What each command takes, besides --config.data.FIELD.
COMMANDS = {
  'list': ('data_dir',),
  'prepare': (
    'data_dir',
    'manual_dir',
    'allow_partial',
    'overwrite',
    'max_side',
  ),
  'check': (*SHORT_FIELDS, 'axis', 'drawn', 'kind', 'json', 'csv'),
  'show': (*SHORT_FIELDS, 'axis', 'drawn', 'kind', 'output', 'images'),
}


def prepare_set(
  spec: str,
  manual_dir: str,
  data_dir: str = '',
  *,
  allow_partial: bool = False,
  overwrite: bool = False,
  max_side: int = 0,
) -> Path:
  """Prepares a public set and says how to use it; see `prepared.prepare`.

  Raises:
    UserError: an unknown set, another layout, other counts, a damaged file.
  """
  builder = prepared.find_builder(spec, data_dir)
  if prepared.is_prepared(spec, data_dir) and not overwrite:
    writers.say(
      f'{spec} is already prepared; --overwrite does it anew from --manual_dir'
    )
    folder = Path(builder.data_dir)
  else:
    if not manual_dir:
      raise UserError(
        '--manual_dir is missing, expected the folder of the unpacked '
        f'archives; {tables.one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}'
      )
    folder = prepared.prepare(
      spec, manual_dir, data_dir, allow_partial=allow_partial,
      overwrite=overwrite, max_side=max_side,
    )  # fmt: skip
  where = f' --config.data.data_dir={data_dir}' if data_dir else ''
  look = f' --data_dir={data_dir}' if data_dir else ''
  writers.say(
    f'{spec} is in {folder}\n'
    f'train on it:  --config.data.source={spec}{where}\n'
    f'look at it:   python -m jaxseg.datasets show {spec}{look} '
    '--output=sheet.png'
  )
  return folder


class Report(NamedTuple):
  """What `check` found.

  Attributes:
    problems: all that is wrong or unusual.
    statistics: what was counted; None: the set cannot be opened.
    class_names: of the set.
  """

  problems: list[Problem]
  statistics: checks.Statistics | None
  class_names: tuple[str, ...]


def check_source(data_config: Any) -> Report:
  """Reads every file of a set and lists all that is wrong.

  Args:
    data_config: `config.data`.

  Raises:
    UserError: a wrong option.
  """
  try:
    source = sources.load(data_config)
  except DataError as error:
    path = data_config.source.removeprefix('folder:')
    return Report([problems.from_error(error, 'refuse', path)], None, ())
  writers.say(_source_line(source))
  found, statistics = checks.inspect(
    source, target=fit.size(data_config), policy=data_config.fit
  )
  found = problems.in_order(
    [*found, *_too_many_bad(source, found, data_config)]
  )
  return Report(found, statistics, source.class_names)


def _too_many_bad(source, found, data_config):
  """Tells that training would not leave out so many unlabelled images."""
  bad = len({p.path for p in found if p.severity == 'skip'})
  total = sum(
    len(ids)
    for name, ids in source.splits.items()
    if name not in ('val', 'test') and not name.startswith('ood')
  ) + sum(p.severity == 'skip' for p in source.problems)
  if bad > data_config.max_bad_fraction * total:
    yield Problem(
      'refuse', 'too_many_bad', source.name,
      f'{bad} of {total} images for training cannot be used, expected at most '
      f'{data_config.max_bad_fraction:.2%} (config.data.max_bad_fraction); '
      'mend or remove them',
    )  # fmt: skip


def _source_line(source):
  splits = ', '.join(f'{len(v):,} {k}' for k, v in source.splits.items())
  return f'{source.name}: {splits}'


def show_source(
  data_config: Any, output: str | os.PathLike, images_per_split: int = 8
) -> np.ndarray:
  """Draws the contact sheet of a set and writes it as PNG.

  Images that train are shown with what people drew, where they did.

  Args:
    data_config: `config.data`.
    output: the file.
    images_per_split: see `sheet.contact_sheet`.

  Returns:
    uint8 [H, W, 3], what was written.

  Raises:
    UserError: the set cannot be opened, the file cannot be written.
  """
  if not str(output).lower().endswith('.png'):
    raise UserError(
      f'--output is {str(output)!r}, expected a file that ends in .png; add '
      '--output=sheet.png'
    )
  source = annotated.shown(sources.load(data_config))
  ids = list(dict.fromkeys(i for part in source.splits.values() for i in part))
  step = max(1, -(-len(ids) // SAMPLE))
  _, statistics = checks.inspect(source, ids[::step])
  picture = sheet.contact_sheet(
    source, source.splits, statistics, images_per_split
  )
  with _writing(output):
    files.write_atomically(output, visualize.encode(picture))
  writers.say(
    f'{_source_line(source)}\n{output}: {picture.shape[1]}x{picture.shape[0]}'
    + (f'; shares are of one image in {step}' if step > 1 else '')
  )
  return picture


@contextlib.contextmanager
def _writing(path: str | os.PathLike) -> Iterator[None]:
  """Makes a file's folder; tells in one sentence why it cannot be written."""
  try:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    yield
  except OSError as error:
    raise UserError(
      f'{path}: cannot be written ({error.strerror}), expected a file in a '
      'folder that is writable; name another'
    ) from error


def find_source(text: str) -> str:
  """Returns `config.data.source` of what was typed.

  Args:
    text: a name of a set, 'folder:PATH' or PATH. A set comes first: the folder
      'acdc' is './acdc'.

  Raises:
    UserError: neither a set nor a folder.
  """
  kind = text.partition(':')[0]
  if kind in ('digits', 'avatars', 'folder', *builders.BUILDERS):
    return text
  if Path(text).expanduser().exists() or os.sep in text:
    return f'folder:{text}'
  raise UserError(
    f'{text!r} is neither a folder nor the name of a set, expected a path, '
    f"'digits', 'avatars' or one of {', '.join(builders.BUILDERS)}; correct it"
  )


def _define_flags(to=flags.FLAGS):
  def define(kind, name, default, text, **kwargs):
    kind(name, default, text, flag_values=to, **kwargs)

  with errors.friendly():
    try:  # reads the command line at once
      config_flags.DEFINE_config_dict(
        'config', jaxseg_config.default(), flag_values=to, lock_config=True
      )
    except (AttributeError, KeyError) as error:
      raise UserError(jaxseg_config.in_short(error)) from error
  string, whole = flags.DEFINE_string, flags.DEFINE_integer
  define(string, 'manual_dir', None, 'Folder of the unpacked archives.')
  define(string, 'data_dir', None, 'Folder of prepared sets.')
  yes = flags.DEFINE_bool
  define(yes, 'allow_partial', False, 'Prepare a set of which some is missing.')
  define(yes, 'overwrite', False, 'Prepare anew.')
  define(
    whole, 'max_side', 0, 'Prepare larger images reduced to this; 0: as is.',
    lower_bound=0,
  )  # fmt: skip
  define(string, 'json', None, 'File for the report of `check`, as JSON.')
  define(string, 'csv', None, 'File for the report of `check`, as CSV.')
  define(string, 'output', None, 'File for the contact sheet, PNG.')
  define(whole, 'images', 8, 'Images a split on the sheet.', lower_bound=0)
  define(whole, 'channels', None, 'Short for --config.data.channels.')
  define(whole, 'resolution', None, 'Short for --config.data.resolution.')
  define(whole, 'width', None, 'Short for --config.data.width.')
  define(string, 'fit', None, 'Short for --config.data.fit.')
  define(string, 'group_by', None, 'Short for --config.data.group_by.')
  define(whole, 'axis', None, 'Short for --config.data.volume.axis.')
  define(string, 'drawn', None, 'Short for --config.data.weak.drawn.')
  define(string, 'kind', None, 'Short for --config.data.weak.kind.')


def _data_config(args, text) -> ConfigDict:
  """Returns `config.data` of the command line."""
  data = args.config.data
  data.source = find_source(text)
  for name in SHORT_FIELDS:
    if args[name].value is not None:
      data[name] = args[name].value
  if args.axis is not None:
    data.volume.axis = args.axis
  for name in ('drawn', 'kind'):
    if args[name].value is not None:
      data.weak[name] = args[name].value
  jaxseg_config.check_data(data)
  return data


def _command(args, words):
  """Returns (command, what it is for); refuses flags it does not take."""
  usage = 'python -m jaxseg.datasets ' + '|'.join(COMMANDS)
  if not words or words[0] not in COMMANDS:
    found = repr(words[0]) if words else 'nothing'
    raise UserError(f'found {found}, expected a command; {usage}')
  command, *rest = words
  if len(rest) > 1 or (not rest and command != 'list'):
    what = 'NAME' if command in ('list', 'prepare') else 'SOURCE'
    found = f'{len(rest)} words' if rest else 'nothing'
    raise UserError(
      f'{command}: found {found} after it, expected one {what}; '
      f'python -m jaxseg.datasets {command} {what}'
    )
  every = {name for names in COMMANDS.values() for name in names}
  for name in sorted(every - set(COMMANDS[command])):
    if args[name].present:
      raise UserError(
        f'--{name} is no flag of {command}, expected one of '
        f'--{", --".join(COMMANDS[command])}; remove it'
      )
  return command, rest[0] if rest else ''


def main(argv: list[str]) -> int:
  """Runs the command line; returns 3 if training would refuse the set."""
  args = flags.FLAGS
  with errors.friendly():
    command, what = _command(args, argv[1:])
    if command == 'list':
      data_dir = args.data_dir or ''
      writers.say(
        tables.describe_set(what, data_dir)
        if what
        else tables.list_sets(data_dir)
      )
    elif command == 'prepare':
      prepare_set(
        what, args.manual_dir, args.data_dir or '',
        allow_partial=args.allow_partial, overwrite=args.overwrite,
        max_side=args.max_side,
      )  # fmt: skip
    elif command == 'check':
      return _check(args, what)
    else:
      if not args.output:
        raise UserError('--output is missing; add --output=sheet.png')
      show_source(_data_config(args, what), args.output, args.images)
  return 0


def _check(args, what):
  data = _data_config(args, what)
  report = check_source(data)
  writers.say(tables.problem_table(report.problems))
  if report.statistics is not None:
    writers.say('\n' + tables.statistics_table(*report[1:]))
  if args.json:
    content = tables.report_json(data.source, *report)
    with _writing(args.json):
      text = json.dumps(content, indent=1)
      files.write_atomically(args.json, text.encode())
  if args.csv:
    with _writing(args.csv):
      problems.write_report(args.csv, report.problems)
  return 3 if any(p.severity == 'refuse' for p in report.problems) else 0


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=jaxseg_config.parse_flags)
