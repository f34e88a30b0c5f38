"""Ends a process that stands still, and says where it stood.

A host that is alive but stuck (a hung disk, a lost collective) makes all the
others wait; nothing in JAX notices, and a cluster bills for it. This thread
does.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

EXIT_CODE = 7


class Watchdog:
  """Expects `beat` every so often; use it in a `with`."""

  def __init__(
    self,
    seconds: float,
    folder: str | os.PathLike,
    name: str = '0',
    leave: Callable[[int], None] = os._exit,
  ):
    """Sets it up; until the first beat, and in pauses, it is more patient.

    Args:
      seconds: how long a beat may fail to come; 0: for ever. Compilations and
        saves may take ten times as long, and at least an hour.
      folder: gets stuck_NAME.txt, the stacks of all threads.
      name: of this process.
      leave: ends the process.
    """
    self._seconds, self._leave = seconds, leave
    self._patient = max(3600.0, 10 * seconds)
    self._path = Path(folder) / f'stuck_{name}.txt'
    self._last = time.monotonic()
    self._allowed = self._patient
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> 'Watchdog':
    self._last = time.monotonic()
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._over.set()
    if self._seconds:
      self._thread.join()

  def beat(self) -> None:
    """Says that a step was done."""
    self._last, self._allowed = time.monotonic(), self._seconds

  def rest(self) -> None:
    """As before the first beat: what follows compiles anew."""
    self._last, self._allowed = time.monotonic(), self._patient

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Around what compiles, or writes to a slow disk."""
    allowed = self._allowed
    self.rest()
    try:
      yield
    finally:
      self._last, self._allowed = time.monotonic(), allowed

  def _watch(self):
    tick = min(1.0, self._seconds / 4)
    before = time.monotonic()
    while not self._over.wait(tick):
      now = time.monotonic()
      if now - before > 2 * tick + 1:  # the whole process was suspended
        self._last = now
      before = now
      if now - self._last > self._allowed:
        self._report()
        self._leave(EXIT_CODE)
        return

  def _report(self):
    where = f'the stacks of its threads are in {self._path}'
    try:
      with self._path.open('w') as file:
        faulthandler.dump_traceback(file)
    except OSError:
      where = 'the stacks of its threads are above'
      faulthandler.dump_traceback(sys.stderr)
    print(
      f'jaxseg: no step was done for {self._allowed:.0f} s '
      f'(config.hang_timeout): this process or one it waits for is stuck; '
      f'{where}. Run the same command again to continue from the newest '
      'checkpoint; raise config.hang_timeout if steps take so long.',
      file=sys.stderr,
      flush=True,
    )
