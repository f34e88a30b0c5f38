"""What pickles are read as: plain data, and stand-ins for what is not read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# Of a tuple that is a key: items, and characters of one.
MAX_KEY = 16, 100


@dataclass(frozen=True)
class Global:
  """What a name in a pickle stands for.

  Attributes:
    build: makes plain data out of plain data; None: it must not be called.
    value: anything that the one who knows the name wants to find again.
  """

  build: Callable[..., Any] | None = None
  value: Any = None


class Attributes(dict):
  """The attributes of an object, as plain data."""


@dataclass(eq=False)
class Unfilled:
  """An object that gets its content from the opcode BUILD.

  Attributes:
    fill: takes the content, returns the plain data that the object is then.
    keys: where the memo has it.
  """

  fill: Callable[[Any], Any]
  keys: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Unread:
  """In the place of an object that is harmless, but needed by nobody here.

  Attributes:
    name: of what made it; with what, is forgotten.
  """

  name: str


def unread(*names: str) -> dict[tuple[str, str], Global]:
  """Names, 'module name' each, of whose objects nothing is read."""

  def forgetful(name):
    return Global(lambda *_: Unread(name.replace(' ', '.')))

  return {tuple(name.split(' ')): forgetful(name) for name in names}


def mapping(pairs: Iterable[tuple[Any, Any]] = ()) -> dict:
  """A dictionary whose keys are strings, numbers or None; tuples of these are
  written as one string."""
  result = {}
  for key, value in pairs:
    _check_key(key)
    result[str(key) if isinstance(key, tuple) else key] = value
  return result


def members(items: Iterable[Any] = ()) -> set:
  """A set of strings, numbers, None or tuples of these."""
  return set(mapping((item, None) for item in items))


def _check_key(key, is_within=False):
  count, length = MAX_KEY
  if isinstance(key, tuple) and not is_within and 0 < len(key) <= count:
    for item in key:
      _check_key(item, True)
      if isinstance(item, str | bytes) and len(item) > length:
        raise ValueError('a key of a dictionary is a tuple of long strings')
    return
  # Among others, hashing a deeply nested tuple would overflow the stack.
  if not isinstance(key, str | bytes | int | float | None):
    raise ValueError(f'a key of a dictionary is a {type(key).__name__}')
  # Many long integers of one hash would take forever.
  if isinstance(key, int) and key.bit_length() > 64:
    raise ValueError('a key of a dictionary has more than 64 bits')
