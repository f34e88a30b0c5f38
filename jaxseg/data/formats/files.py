"""Reading and writing whole files, on disks that are not always at rest."""

import errno
import os
import pathlib
import stat
import tempfile
import time

from jaxseg.errors import DataError

MAX_BYTES = 2**31
ATTEMPTS = 4  # at a file that changes, or a network disk that stumbles
WAIT = 0.2  # seconds before the second attempt; doubled each time
_PASSING = (errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT)
# A pipe would be waited for; O_BINARY is for Windows.
_FLAGS = os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)


def read_bytes(path: str | os.PathLike, what: str = 'image') -> bytes:
  """Reads a regular file whole; never waits for a pipe.

  A file that changes while it is read (a copy in progress) and passing
  errors of network disks are tried again, for about 1.4 seconds in all.

  Args:
    path: the file; links are followed.
    what: 'image' or 'label', for the message.

  Raises:
    DataError: 'missing', 'link', 'not_a_file', 'unreadable', 'too_large' or
      'changing'.
  """
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(WAIT * 2 ** (attempt - 1))
    try:
      data = _read_once(path, what)
    except OSError as error:
      if error.errno in _PASSING and attempt + 1 < ATTEMPTS:
        continue
      raise _explained(error, path, what) from error
    if data is not None:
      return data
  raise DataError(
    f'{path}: the {what} file changes while it is read, expected a file at '
    'rest; wait until it has been copied',
    'changing',
  )


def _read_once(path, what):
  """Returns the content, or None when the file changed meanwhile."""
  handle = os.open(path, _FLAGS)
  try:
    before = os.fstat(handle)
    _refuse_unusual(before, path, what)
    with open(handle, 'rb', closefd=False) as file:
      data = file.read()
    after = os.fstat(handle)
  finally:
    os.close(handle)
  same = before.st_size == after.st_size == len(data)
  return data if same and before.st_mtime_ns == after.st_mtime_ns else None


def _refuse_unusual(status, path, what):
  """Refuses what is no file, before it is waited for, and huge files."""
  if not stat.S_ISREG(status.st_mode):
    found = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a pipe or device'
    raise DataError(
      f'{path}: the {what} is not a regular file but {found}, expected one '
      'file; move it elsewhere',
      'not_a_file',
    )
  if status.st_size > MAX_BYTES:
    raise DataError(
      f'{path}: the {what} file has {status.st_size / 2**30:.1f} GiB, '
      f'expected at most {MAX_BYTES / 2**30:.0f}; make it smaller',
      'too_large',
    )


def _explained(error, path, what):
  """Turns an error of the operating system into a `DataError`."""
  if error.errno == errno.ELOOP:
    found, fix, kind = 'a link that leads to itself', 'remove it', 'link'
  elif error.errno == errno.ENOENT and os.path.islink(path):
    target = os.readlink(path)
    found, kind = f'a link to {target}, which is missing', 'link'
    fix = 'copy the file itself or mend the link'
  elif error.errno in (errno.ENOENT, errno.ENOTDIR):
    found, fix, kind = 'missing', 'check the path', 'missing'
  elif error.errno in (errno.EISDIR, errno.ENXIO):
    found, kind = 'not a regular file', 'not_a_file'
    fix = 'move it elsewhere'
  else:
    found, kind = f'unreadable ({error.strerror})', 'unreadable'
    fix = 'check its permissions and the disk'
  return DataError(
    f'{path}: the {what} file is {found}, expected a readable file; {fix}',
    kind,
  )


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
  """Writes `data` so that a reader or a crash never sees half a file."""
  path = pathlib.Path(path)
  # Not the whole name: it may already be as long as names can be.
  handle, temporary = tempfile.mkstemp(
    dir=path.parent, prefix='.' + path.name[:16]
  )
  try:
    with os.fdopen(handle, 'wb') as f:
      f.write(data)
    mask = os.umask(0)  # mkstemp makes private files; give the usual rights
    os.umask(mask)
    os.chmod(temporary, 0o666 & ~mask)
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
