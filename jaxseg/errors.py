"""The one exception a user is meant to see."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
  """A mistake in the input, told in one sentence.

  The sentence names the file or the config field, what was found, what was
  expected and how to mend it. Command lines print it without a traceback and
  exit with `exit_code` 2.
  """

  exit_code = 2


@contextlib.contextmanager
def friendly() -> Iterator[None]:
  """Turns a `UserError` into one line on stderr and exit code 2."""
  try:
    yield
  except UserError as error:
    print(f'jaxseg: {error}', file=sys.stderr)
    sys.exit(error.exit_code)
