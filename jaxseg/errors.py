"""The exceptions a user is meant to see."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
  """A mistake in the input, told in one sentence.

  The sentence names the file or the config field, what was found, what was
  expected and how to mend it. Command lines print it without a traceback and
  exit with `exit_code`: 2 for a mistake in the config or on the command line.
  """

  exit_code = 2


class DataError(UserError):
  """A mistake in a data file; exit code 3.

  Attributes:
    kind: what sort of mistake, a short name such as 'truncated', 'empty',
      'size_mismatch' or 'unknown_ids'.
  """

  exit_code = 3

  def __init__(self, message: str, kind: str = 'damaged'):
    super().__init__(message)
    self.kind = kind


@contextlib.contextmanager
def friendly() -> Iterator[None]:
  """Turns a `UserError` into its sentence on stderr and its exit code."""
  try:
    yield
  except UserError as error:
    print(f'jaxseg: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
