"""A process's dealings with the system: signals, the compilation cache."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxseg import hosts, writers
from jaxseg.errors import UserError
from jaxseg.resources import NotEnough

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None


class Interrupted(Exception):
  """Ctrl-C or SIGTERM; the state is saved."""

  exit_code = 75  # what schedulers take as: start me again


class Locked(UserError):
  """Another process trains in this workdir."""

  exit_code = 5


@contextlib.contextmanager
def interruptible() -> Iterator[list]:
  """Yields a list that a signal appends its name to; a second one kills.

  With several processes signals are agreed upon instead, see
  `hosts.preempted`, and the list stays empty.
  """
  stop = []
  if hosts.several():
    hosts.pass_on_interrupts()
    try:
      yield stop
    finally:
      hosts.end_of_interrupts()
    return

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


@contextlib.contextmanager
def locked(workdir: str | os.PathLike) -> Iterator[None]:
  """Keeps other processes from training in the same workdir.

  The system gives the lock back when this process ends, however it ends. Where
  the file system knows no locks there is none. Of several processes that train
  together the first has it.

  Raises:
    Locked: names the process that has it.
  """
  if not hosts.primary():
    yield
    return
  path = Path(workdir) / '.lock'
  try:
    file = path.open('a+')
  except OSError as error:
    raise NotEnough(
      f'--workdir={workdir} cannot be written ({error.strerror}), expected a '
      'folder where you may write; choose another.'
    ) from error
  with file:
    try:
      if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise Locked(
        f'--workdir={workdir} is in use by {file.read().strip() or "another"}; '
        'wait for that training, stop it, or choose another workdir.'
      ) from None
    except OSError:
      pass  # no locks here
    with contextlib.suppress(OSError):  # of a full disk others will tell
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()}')
      file.flush()
    yield
