"""A process's dealings with the system: signals, the compilation cache."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax

from jaxseg import writers


class Interrupted(Exception):
  """Ctrl-C or SIGTERM; the state is saved."""

  exit_code = 75  # what schedulers take as: start me again


@contextlib.contextmanager
def interruptible() -> Iterator[list]:
  """Yields a list that a signal appends its name to; a second one kills."""
  stop = []

  def handler(number, frame):
    del frame
    if stop:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)
    stop.append(signal.Signals(number).name)
    writers.say(f'\n{stop[0]}: saving after this step ...')

  old = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield stop
  finally:
    for number, previous in old.items():
      signal.signal(number, previous)


def use_compilation_cache(folder: str) -> None:
  """Keeps compiled programs between runs.

  Args:
    folder: 'auto' for the user's cache folder, '' for none, or a path.
  """
  if folder == 'auto':
    if jax.config.jax_compilation_cache_dir:
      return  # the user's own choice, e.g. JAX_COMPILATION_CACHE_DIR
    cache = os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache'))
    folder = os.path.join(cache, 'jaxseg', 'xla')
  if folder:
    jax.config.update('jax_compilation_cache_dir', folder)
