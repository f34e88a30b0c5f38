"""Draws labelled images out of a trained generator into a plain data folder.

  python -m jaxseg.synthesize --workdir=W --output=DIR --n=1000

DIR is read like any folder: --config.data.source=folder:DIR. See
jaxseg/synthesis_folder.py for what is in it, jaxseg/synthesis_filter.py for
what is kept: of the images drawn, those with the best scores (--keep), and with
--balance more of those that show rare classes. So many are drawn that about n
are kept. Look at DIR/contact_sheet.png before training on it.

Run it again after an interruption: what is done is kept, and the result is that
of an uninterrupted run. --shard=0/4 to 3/4 divide the work between four
processes, in one folder at the same time, or in folders that are then copied
into one; the set is that of one process.
"""

import re
import sys
from pathlib import Path

from absl import app, flags

from jaxseg import (
  errors,
  runtime,
  synthesis_filter,
  synthesis_folder,
  synthesis_report,
  workdir,
  writers,
)
from jaxseg.config import parse_flags
from jaxseg.errors import UserError
from jaxseg.synthesis_draw import choose
from jaxseg.synthesis_filter import Settings
from jaxseg.synthesis_run import check_share, synthesize

__all__ = ['Settings', 'main', 'synthesize']


def parse_shard(text: str) -> tuple[int, int]:
  """Returns (0, 4) of '0/4'.

  Raises:
    UserError: as `check_share`, and anything else.
  """
  match = re.fullmatch(r'(\d{1,6})/(\d{1,6})', text)
  if not match:
    raise UserError(
      f'--shard is {text!r}, expected i/n with i from 0 to n-1, such as 0/4; '
      'change it'
    )
  shard = int(match[1]), int(match[2])
  check_share(1, shard)
  return shard


def _define_flags(to=flags.FLAGS):
  def define(kind, name, default, text, **kwargs):
    kind(name, default, text, flag_values=to, **kwargs)

  string, number = flags.DEFINE_string, flags.DEFINE_float
  whole = flags.DEFINE_integer
  defaults = Settings()
  define(string, 'workdir', None, 'Folder of a training run.')
  define(string, 'output', None, 'Folder for images, labels and the table.')
  define(whole, 'n', 1000, 'Images to be kept, about.')
  define(string, 'stage', None, 'Stage that draws; default: one that judges.')
  define(
    string, 'checkpoint', 'newest',
    'Which: newest, best (where config.STAGE.keep_best is set), or a step.',
  )  # fmt: skip
  define(string, 'shard', '0/1', 'i/n: the share of this process, such as 0/4.')
  define(whole, 'seed', defaults.seed, 'Other seeds give other images.')
  define(
    number, 'truncation', None,
    'Typical (0) to varied (1) images; default: that of the stage.',
  )  # fmt: skip
  define(whole, 'batch_size', defaults.batch_size, 'Images at a time.')
  define(
    string, 'rank_by', defaults.rank_by,
    'The score: uncertainty or entropy of the label; or d_m or d_r, where the '
    'stage trained discriminators.',
  )  # fmt: skip
  define(
    number, 'keep', None,
    f'Share of the best scores that is kept; default: {synthesis_filter.KEEP}, '
    'or all where a limit is given.',
  )  # fmt: skip
  define(number, 'min_score', None, 'Lowest score that is kept.')
  define(number, 'max_entropy', None, 'Highest entropy that is kept, in nats.')
  define(
    number, 'balance', defaults.balance,
    '0: classes as they are drawn; up to 1: more images of rare ones.',
  )  # fmt: skip
  define(
    whole, 'calibrate', defaults.calibrate,
    'Images drawn first to find what is good, and which classes are rare.',
  )  # fmt: skip


def run(args):
  """Does what the flags ask for."""
  for name in ('workdir', 'output'):
    if not args[name].value:
      raise UserError(f'--{name} is missing; add --{name}=FOLDER')
  settings = Settings(**{name: args[name].value for name in Settings._fields})
  shard = parse_shard(args.shard)
  synthesis_filter.check(settings)
  check_share(args.n, shard)
  synthesis_folder.stored(Path(args.output))
  stages = (args.stage,) if args.stage else ()
  with runtime.interruptible() as stop:
    trained = workdir.load(args.workdir, stages, args.checkpoint)
    choose(trained, args.stage)
    num_classes = len(trained.class_names)
    real = synthesis_report.read_real(args.workdir, trained.config, num_classes)
    synthesize(
      trained, args.output, args.n, settings, stage=args.stage, shard=shard,
      real=real, stop=stop,
    )  # fmt: skip


def main(argv: list[str]) -> None:
  """Runs the command line."""
  with errors.friendly():
    if len(argv) > 1:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    try:
      run(flags.FLAGS)
    except runtime.Interrupted as error:
      writers.say(str(error))
      sys.exit(error.exit_code)


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
