"""What the launchers share: their command line, exit codes, shell quoting.

Nothing here imports JAX: launchers also run on login nodes and laptops.
"""

import argparse
import shlex
import sys
from typing import NoReturn

PREEMPTED = 75  # stopped by a signal after saving: start me again
PEER_LOST = 7  # another process was lost, or this one was stuck


def refuse(message: str) -> NoReturn:
  """Ends with exit code 2 and one sentence on stderr."""
  print(f'launch: {message}', file=sys.stderr)
  sys.exit(2)


def may_restart(code: int) -> bool:
  """Whether a training that ended with `code` is to be started again.

  Code 1 (a traceback) and 2 to 6 (config, data, checkpoint, resources,
  divergence) would only come back.
  """
  return code in (PREEMPTED, PEER_LOST) or code >= 128


class Parser(argparse.ArgumentParser):
  """A parser whose mistakes are one sentence, exit code 2."""

  def __init__(self, description: str):
    super().__init__(
      description=description,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    self.add_argument(
      '--dry-run',
      '--dry_run',
      action='store_true',
      help='print what would be started, start nothing',
    )

  def error(self, message: str) -> NoReturn:
    refuse(f'{message}; see --help.')

  def parse(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns the launcher's own arguments and those after `--`."""
    if '--' not in argv:
      return self.parse_args(argv), []
    end = argv.index('--')
    return self.parse_args(argv[:end]), argv[end + 1 :]


def shell_line(command: list[str], env: dict[str, str] | None = None) -> str:
  """The command as one would type it, `NAME=value` pairs first."""
  pairs = [f'{name}={shlex.quote(v)}' for name, v in (env or {}).items()]
  return ' '.join([*pairs, shlex.join(command)])


def value(arguments: list[str], name: str) -> str | None:
  """What `--name=` is given as, the last time."""
  starts = (f'--{name}=', f'-{name}=')
  given = [a.partition('=')[2] for a in arguments if a.startswith(starts)]
  return given[-1] if given else None


def training_arguments(arguments: list[str]) -> list[str]:
  """The arguments of `jaxseg.train`, which need a config and a workdir."""
  for name in ('config', 'workdir'):
    if not value(arguments, name):
      refuse(
        f'--{name}= is missing among the arguments after `--`, e.g. '
        '-- --config=configs/quickstart.py --workdir=runs/digits.'
      )
  return arguments
