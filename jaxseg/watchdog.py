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
    """Sets it up; it watches from the first beat on.

    Args:
      seconds: how long a beat may fail to come; 0: for ever.
      folder: gets stuck_NAME.txt, the stacks of all threads.
      name: of this process.
      leave: ends the process.
    """
    self._seconds, self._leave = seconds, leave
    self._path = Path(folder) / f'stuck_{name}.txt'
    self._last = None  # of time.monotonic; None: nothing is expected
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> 'Watchdog':
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *error) -> None:
    self._over.set()
    if self._seconds:
      self._thread.join()

  def beat(self) -> None:
    """Says that a step was done."""
    self._last = time.monotonic()

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Within, nothing is expected: what compiles, or writes to a slow disk."""
    watching, self._last = self._last is not None, None
    try:
      yield
    finally:
      self._last = time.monotonic() if watching else None

  def _watch(self):
    while not self._over.wait(min(1.0, self._seconds / 4)):
      last = self._last
      if last is not None and time.monotonic() - last > self._seconds:
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
      f'jaxseg: no step was done for {self._seconds:.0f} s '
      f'(config.hang_timeout): this process or one it waits for is stuck; '
      f'{where}. Run the same command again to continue from the newest '
      'checkpoint; raise config.hang_timeout if steps take so long.',
      file=sys.stderr,
      flush=True,
    )
