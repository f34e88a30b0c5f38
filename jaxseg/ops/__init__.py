"""Array operations the field shares, each in a fast and a plain form.

`implementation('lax')` chooses plain `lax` forms, 'fast' the forms that are
quick on CPUs (also in second-order gradients); the default 'auto' is 'fast' on
CPUs and 'lax' elsewhere. Both give the same numbers up to rounding. The choice
is read when a function is traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_implementation = contextvars.ContextVar('implementation', default='auto')


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
  """Chooses 'auto', 'fast' or 'lax' for everything traced inside."""
  if name not in ('auto', 'fast', 'lax'):
    raise ValueError(f"implementation {name!r} is not 'auto', 'fast' or 'lax'")
  token = _implementation.set(name)
  try:
    yield
  finally:
    _implementation.reset(token)


def is_fast() -> bool:
  """Whether the fast forms are to be traced now."""
  name = _implementation.get()
  if name == 'auto':
    return jax.default_backend() == 'cpu'
  return name == 'fast'
