"""Pickles of plain data, run by a machine that can do nothing else.

A pickle is a program that may call any function of any module. This machine
knows the opcodes that build plain containers, and calls only the functions it
was given; what it is made to do and to hold stays in proportion to the pickle.
Long strings of bytes are views of the file.

Source: the opcodes, as Python's module `pickletools` describes them.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from jaxseg.nets.plain_data import (
  Attributes,
  Global,
  Unfilled,
  Unread,
  mapping,
  members,
)

# Bytes of a pickle: names and shapes. Long literals, such as the numbers of
# arrays, do not count.
MAX_BYTES = 8 << 20
LONG_LITERAL = 1 << 16
# What an opcode or an item of a copy costs, as they may take memory, in bytes.
COST = 16

CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
TUPLES = ('EMPTY_TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3')
# Opcodes that push their argument.
LITERALS = {
  'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT',
  'BINFLOAT', 'STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE',
  'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8', 'BINBYTES',
  'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8',
}  # fmt: skip


class View:
  """A stream over a buffer, which hands out long parts without copying them."""

  def __init__(self, data: Any):
    """data: anything that has the buffer interface, such as bytes."""
    self.data, self.at = memoryview(data), 0

  def read(self, size: int) -> bytes | memoryview:
    """The next `size` bytes, or as many as are left."""
    part = self.data[self.at : self.at + size]
    self.at += len(part)
    return part if len(part) >= LONG_LITERAL else bytes(part)

  def readline(self) -> bytes:
    """The next line, cut at the length of a long literal."""
    part = bytes(self.data[self.at : self.at + LONG_LITERAL])
    part = part[: part.find(b'\n') + 1 or None]
    self.at += len(part)
    return part

  def tell(self) -> int:
    """The place of the next byte."""
    return self.at


class Budget:
  """What pickles may cost, in bytes."""

  def __init__(self):
    self.left = MAX_BYTES

  def spend(self, cost: int) -> None:
    """Raises ValueError if that is more than is left."""
    self.left -= cost
    if self.left < 0:
      raise ValueError(
        f'its pickle has more than {MAX_BYTES} bytes of structure'
      )


def run(
  stream: View,
  names: Mapping[tuple[str, str], Any],
  persistent: Callable[[tuple], Any] | None = None,
  budget: Budget | None = None,
) -> Any:
  """Reads one pickle, of any protocol.

  Args:
    stream: at the pickle's first byte; afterwards just behind its last.
    names: (module, name) -> what is found there: a `Global` or plain data.
    persistent: makes an object out of a persistent id; it must not trust it.
    budget: shared with other pickles; None: one of its own.

  Returns:
    dict, list, tuple, set, frozenset, str, bytes, memoryview (of bytes), int,
    float, bool, None, and what `names` and `persistent` gave. The containers
    may share parts.

  Raises:
    ValueError: an opcode, a name or a key outside these, or too long a pickle.
    Exception: of any other kind, from a damaged pickle.
  """
  budget = budget or Budget()
  machine, last = _Machine(names, persistent, budget), stream.tell()
  for opcode, argument, position in pickletools.genops(stream):
    budget.spend(position - last)
    last = position
    if isinstance(argument, str | bytes | bytearray | memoryview):
      if len(argument) >= LONG_LITERAL:
        # It may be copied once, as bytes written as str are.
        last, budget.left = stream.tell(), budget.left + len(argument)
    machine.step(opcode.name, argument)
  return machine.pop()


class _Machine:
  """A stack, a memo, and the opcodes that build plain data."""

  def __init__(self, names, persistent, budget):
    self.names, self.persistent, self.budget = names, persistent, budget
    self.stack, self.below, self.memo = [], [], {}

  def step(self, name, argument):
    if name in LITERALS:
      self.push(argument)
    elif name in CONSTANTS:
      self.push(CONSTANTS[name])
    elif name in ('GET', 'BINGET', 'LONG_BINGET'):
      self.push(self.memo[argument])
    else:
      self.budget.spend(COST)
      self.work(name, argument)

  def work(self, name, argument):
    """Opcodes that take memory."""
    if name in ('GLOBAL', 'STACK_GLOBAL'):
      self.push(self.look_up(argument))
    elif name in ('PUT', 'BINPUT', 'LONG_BINPUT', 'MEMOIZE'):
      key = len(self.memo) if name == 'MEMOIZE' else argument
      self.memo[key] = self.stack[-1]
      if isinstance(self.stack[-1], Unfilled):
        self.stack[-1].keys.append(key)
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
    """Opcodes of tuples, lists, dictionaries and sets."""
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
    elif name == 'EMPTY_SET':
      self.push(set())
    elif name == 'ADDITEMS':
      items = members(self.to_mark())
      self.top(set).update(items)
    elif name == 'FROZENSET':
      self.push(frozenset(members(self.to_mark())))
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
    """The container to fill; of what is not read, one to forget."""
    if isinstance(self.stack[-1], Unread):
      return kind()
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
    if not isinstance(arguments, tuple):
      raise ValueError('its pickle calls a function without arguments')
    # The function may copy them.
    copied = len(arguments)
    for argument in arguments:
      if isinstance(argument, list | tuple | dict | set | frozenset):
        copied += len(argument)
      elif isinstance(argument, str):
        self.budget.spend(len(argument))
    self.budget.spend(COST * copied)
    self.push(function.build(*arguments))

  newobj = reduce

  def build(self):
    """Fills `Attributes` and `Unfilled`; leaves out those of a dictionary."""
    state, target = self.pop(), self.stack[-1]
    if isinstance(target, Unread):
      return
    if isinstance(target, Unfilled):
      self.stack[-1] = target.fill(state)
      keys, target.keys = target.keys, []
      for key in keys:
        if self.memo[key] is target:
          self.memo[key] = self.stack[-1]
    elif isinstance(self.top(dict), Attributes):
      self.budget.spend(COST * len(state))
      target.update(mapping(state.items()))

  def binpersid(self):
    if self.persistent is None:
      raise ValueError('its pickle asks for an object outside it')
    self.push(self.persistent(self.pop()))


def _pairs(items):
  return zip(items[::2], items[1::2], strict=True)
