"""Pickles of plain data, run by a machine that can do nothing else.

A pickle is a program that may call any function of any module. This machine
knows the opcodes that build plain containers, and calls only the functions it
was given; what it is made to hold stays in proportion to the pickle.

Source: the opcodes, as Python's module `pickletools` describes them.
"""

import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

# Bytes of a pickle: names and shapes, the numbers of arrays lie elsewhere.
MAX_BYTES = 8 << 20

CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
TUPLES = ('EMPTY_TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3')
# Opcodes that push their argument.
LITERALS = {
  'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT',
  'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE',
  'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES',
  'SHORT_BINBYTES', 'BINBYTES8',
}  # fmt: skip


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


def run(
  stream: BinaryIO,
  names: Mapping[tuple[str, str], Global],
  persistent: Callable[[tuple], Any] | None = None,
) -> Any:
  """Reads one pickle, of any protocol.

  Args:
    stream: at the pickle's first byte; afterwards just behind its last.
    names: (module, name) -> what may be asked for.
    persistent: makes an object out of a persistent id; it must not trust it.

  Returns:
    dict, list, tuple, str, bytes, int, float, bool, None, and what `names` and
    `persistent` gave. The containers may share parts.

  Raises:
    ValueError: an opcode, a name or a key outside these, or too long a pickle.
    Exception: of any other kind, from a damaged pickle.
  """
  machine, begin = _Machine(names, persistent), stream.tell()
  for opcode, argument, position in pickletools.genops(stream):
    if position - begin > MAX_BYTES:
      raise ValueError(f'its pickle has more than {MAX_BYTES} bytes')
    machine.step(opcode.name, argument)
  return machine.pop()


def mapping(pairs: Iterable[tuple[Any, Any]] = ()) -> dict:
  """A dictionary whose keys are strings, numbers or None."""
  result = {}
  for key, value in pairs:
    # Among others, hashing a deeply nested tuple would overflow the stack.
    if not isinstance(key, str | bytes | int | float | None):
      raise ValueError(f'a key of a dictionary is a {type(key).__name__}')
    result[key] = value
  return result


class _Machine:
  """A stack, a memo, and the opcodes that build plain data."""

  def __init__(self, names, persistent):
    self.names, self.persistent = names, persistent
    self.stack, self.below, self.memo = [], [], {}

  def step(self, name, argument):
    if name in LITERALS:
      self.push(argument)
    elif name in CONSTANTS:
      self.push(CONSTANTS[name])
    elif name in ('GLOBAL', 'STACK_GLOBAL'):
      self.push(self.look_up(argument))
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      key = len(self.memo) if name == 'MEMOIZE' else argument
      self.memo[key] = self.stack[-1]
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      self.push(self.memo[argument])
    elif name in ('BINPERSID', 'REDUCE', 'NEWOBJ', 'BUILD'):
      getattr(self, name.lower())()
    elif name == 'MARK':
      self.below.append(self.stack)
      self.stack = []
    elif name == 'POP':
      self.pop()
    elif name == 'POP_MARK':
      self.to_mark()
    elif name not in ('PROTO', 'FRAME', 'STOP'):
      self.contain(name)

  def contain(self, name):
    """Opcodes of tuples, lists and dictionaries."""
    if name in TUPLES:
      items = [self.pop() for _ in range(TUPLES.index(name))]
      self.push(tuple(items[::-1]))
    elif name == 'TUPLE':
      self.push(tuple(self.to_mark()))
    elif name in ('EMPTY_LIST', 'LIST'):
      self.push([] if name == 'EMPTY_LIST' else self.to_mark())
    elif name in ('APPEND', 'APPENDS'):
      items = [self.pop()] if name == 'APPEND' else self.to_mark()
      self.top(list).extend(items)
    elif name in ('EMPTY_DICT', 'DICT'):
      items = [] if name == 'EMPTY_DICT' else self.to_mark()
      self.push(mapping(_pairs(items)))
    elif name == 'SETITEM':
      value, key = self.pop(), self.pop()
      self.top(dict).update(mapping([(key, value)]))
    elif name == 'SETITEMS':
      items = self.to_mark()
      self.top(dict).update(mapping(_pairs(items)))
    else:
      raise ValueError(f'its pickle has the opcode {name}')

  def push(self, value):
    self.stack.append(value)

  def pop(self):
    return self.stack.pop()

  def to_mark(self):
    """What was pushed since the last mark."""
    items, self.stack = self.stack, self.below.pop()
    return items

  def top(self, kind):
    if not isinstance(self.stack[-1], kind):
      raise ValueError(f'its pickle fills a {kind.__name__} that is none')
    return self.stack[-1]

  def look_up(self, argument):
    if argument is None:
      name, module = self.pop(), self.pop()
    else:
      module, name = argument.split(' ', 1)
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError('its pickle asks for something without a name')
    if (module, name) not in self.names:
      raise ValueError(f'it asks for {module}.{name}, which is not allowed')
    return self.names[module, name]

  def reduce(self):
    arguments, function = self.pop(), self.pop()
    if not isinstance(function, Global) or function.build is None:
      raise ValueError('its pickle calls what is no function')
    self.push(function.build(*arguments))

  newobj = reduce

  def build(self):
    """Fills `Attributes`; leaves out those of a dictionary."""
    state = self.pop()
    if isinstance(self.top(dict), Attributes):
      self.top(dict).update(mapping(state.items()))

  def binpersid(self):
    if self.persistent is None:
      raise ValueError('its pickle asks for an object outside it')
    self.push(self.persistent(self.pop()))


def _pairs(items):
  return zip(items[::2], items[1::2], strict=True)
