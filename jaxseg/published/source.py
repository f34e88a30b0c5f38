"""An opened file of published weights: named arrays, none of them read yet.

Keys are the file's own; those of nested dictionaries are joined by '/', such as
'g_ema/conv1.conv.weight'.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxseg.errors import UserError
from jaxseg.nets.plain_data import Unread

# Of images; a few bytes could tell of a network of any size.
MAX_RESOLUTION = 4096

Turn = Callable[[np.ndarray], np.ndarray]


class WeightsError(UserError):
  """Weights that are damaged or of another network; exit code 4."""

  exit_code = 4


class Tensor(NamedTuple):
  """An array of a file.

  Attributes:
    shape: in the file.
    dtype: in the file.
    read: returns it, perhaps as a view of the mapped file.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  read: Callable[[], np.ndarray]


class Entry(NamedTuple):
  """An array as a network here needs it.

  Attributes:
    shape: there.
    read: returns a fresh float32 array in C order.
    key: its name in the file.
  """

  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]
  key: str


class Source:
  """The arrays of a file, or of a part of it; remembers which were taken."""

  def __init__(
    self,
    path: str,
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any] | None = None,
  ):
    """Wraps what a reader found.

    Args:
      path: of the file, for messages.
      tensors: by key.
      values: what else the file holds, by key: plain data.
    """
    self.path, self.tensors, self.values = path, tensors, values or {}
    self.prefix, self._taken = '', set()

  def under(self, prefix: str) -> 'Source':
    """The part whose keys begin with `prefix`, which is then left out."""
    part = Source(self.path, self.tensors, self.values)
    part.prefix, part._taken = self.prefix + prefix, self._taken
    return part

  def __contains__(self, key: str) -> bool:
    return self.prefix + key in self.tensors

  def keys(self) -> Iterator[str]:
    """Of the arrays."""
    for key in self.tensors:
      if key.startswith(self.prefix):
        yield key.removeprefix(self.prefix)

  def count(self, pattern: str) -> int:
    """How many numbers the group of a full match takes: 0, 1, ... without gap.

    Raises:
      WeightsError: one of them is left out.
    """
    found = (re.fullmatch(pattern, key) for key in self.keys())
    numbers = {int(match[1]) for match in found if match}
    missing = set(range(len(numbers))) - numbers
    if missing:
      place = re.sub(r'\(.*?\)', str(min(missing)), pattern, count=1)
      raise self.missing(place.replace('\\', ''))
    return len(numbers)

  def missing(self, key: str) -> WeightsError:
    """The error to raise for a key that is not there."""
    value = self.values.get(self.prefix + key)
    if isinstance(value, Unread):
      return WeightsError(
        f'the weights {self.path} hold {self.prefix}{key} as {value.name}, '
        'which is not read, expected an array; save it as a dense one'
      )
    near = [k for k in self.tensors if k.startswith(self.prefix)][:3]
    found = f'such as {", ".join(near)}' if near else 'none'
    return WeightsError(
      f'the weights {self.path} hold no {self.prefix}{key}, found '
      f'{len(self.tensors)} arrays, of this network {found}; is the file of '
      'another kind?'
    )

  def shape(self, key: str, axes: int | None = None) -> tuple[int, ...]:
    """The shape of an array.

    Args:
      key: its name.
      axes: how many are expected; None: any number.

    Raises:
      WeightsError: no such array, or another number of axes.
    """
    if key not in self:
      raise self.missing(key)
    shape = self.tensors[self.prefix + key].shape
    if axes is not None and len(shape) != axes:
      raise WeightsError(
        f'the weights {self.path} hold {self.prefix}{key} of shape {shape}, '
        f'expected {axes} axes; is the file of another kind?'
      )
    return shape

  def entry(
    self, key: str, shape: Sequence[int | None], turn: Turn | None = None
  ) -> Entry:
    """Takes an array.

    Args:
      key: its name.
      shape: that the file must have; None: any size.
      turn: reorders its axes, e.g. `hwio`; no arithmetic.

    Raises:
      WeightsError: no such array, or one of another shape or without floats.
    """
    got = self.shape(key)
    fits = len(got) == len(shape) and all(
      want in (None, size) for want, size in zip(shape, got, strict=True)
    )
    name = self.prefix + key
    if 0 in got:
      raise WeightsError(
        f'the weights {self.path} hold {name} of shape {got}, expected numbers '
        'in it; is the file damaged?'
      )
    if not fits:
      wanted = ', '.join('any' if s is None else str(s) for s in shape)
      raise WeightsError(
        f'the weights {self.path} hold {name} of shape {got}, expected '
        f'({wanted}) beside the other arrays; is the file damaged, or of '
        'another kind?'
      )
    tensor = self.tensors[name]
    if not _is_float(tensor.dtype):
      raise WeightsError(
        f'the weights {self.path} hold {name} as {tensor.dtype}, expected '
        'floating-point numbers; save them as float32'
      )
    self._taken.add(name)
    turn = turn or (lambda array: array)
    view = turn(np.broadcast_to(np.float32(0), got))
    return Entry(view.shape, lambda: self._read(name, turn), name)

  def side(self, doublings: int) -> int:
    """Side of the images of a network that doubles 4 x 4 that often.

    Raises:
      WeightsError: they are larger than any network here is made for.
    """
    if doublings > MAX_RESOLUTION.bit_length() - 3:
      raise WeightsError(
        f'the weights {self.path} hold a network {self.prefix}* of images of '
        f'side 4 * 2**{doublings}, expected at most {MAX_RESOLUTION}; is the '
        'file damaged?'
      )
    return 4 * 2**doublings

  def take(self, key: str) -> None:
    """Notes that an array is known, and needed nowhere."""
    self._taken.add(self.prefix + key)

  def left(self) -> list[str]:
    """Keys of this part that nobody took."""
    return sorted({self.prefix + key for key in self.keys()} - self._taken)

  def unread(self) -> list[str]:
    """What else the file holds of types that are not read, by key."""
    return [
      f'{key} ({value.name})'
      for key, value in self.values.items()
      if isinstance(value, Unread)
    ]

  def _read(self, name, turn):
    view = turn(self.tensors[name].read())
    with np.errstate(over='ignore'):  # told below
      array = np.array(view, np.float32, order='C')
    if not np.isfinite(array).all():
      raise WeightsError(
        f'the weights {self.path} hold numbers in {name} that are not finite; '
        'take an earlier checkpoint of that training'
      )
    return array


def shown(value: Any) -> str:
  """A value of a file in a message: a scalar, cut short, or else its type.

  The text of lists that share parts may be far longer than the file.
  """
  is_short = not isinstance(value, int) or value.bit_length() <= 64
  if isinstance(value, bool | int | float | None) and is_short:
    return repr(value)
  if isinstance(value, str):
    return repr(value[:50])
  return f'something of type {type(value).__name__}'


def _is_float(dtype):
  # bfloat16 is no NumPy kind of its own.
  return np.issubdtype(dtype, np.floating) or dtype.name == 'bfloat16'


def hwio(kernel: np.ndarray) -> np.ndarray:
  """[O, I, h, w] -> [h, w, I, O]."""
  return kernel.transpose(2, 3, 1, 0)


def conv(
  source: Source, name: str, features: int | None, fan_in: int | None,
  size: int | None, bias: bool = True,
) -> dict[str, Entry]:  # fmt: skip
  """{'kernel', 'bias'} of `name`.weight [features, fan_in, size, size]."""
  found = {
    'kernel': source.entry(
      f'{name}.weight', (features, fan_in, size, size), hwio
    )
  }
  if bias:
    features = found['kernel'].shape[-1]
    found['bias'] = source.entry(f'{name}.bias', (features,))
  return found


def dense(
  source: Source, name: str, features: int | None, fan_in: int | None
) -> dict[str, Entry]:
  """{'kernel', 'bias'} of `name`.weight [features, fan_in]."""
  kernel = source.entry(f'{name}.weight', (features, fan_in), np.transpose)
  bias = source.entry(f'{name}.bias', (kernel.shape[-1],))
  return {'kernel': kernel, 'bias': bias}


def batch_norm(
  source: Source, name: str, features: int | None
) -> tuple[dict[str, Entry], dict[str, Entry]]:
  """Parameters {'scale', 'bias'} and statistics {'mean', 'var'} of `name`."""
  scale = source.entry(f'{name}.weight', (features,))
  get = lambda what: source.entry(f'{name}.{what}', scale.shape)
  source.take(f'{name}.num_batches_tracked')
  return (
    {'scale': scale, 'bias': get('bias')},
    {'mean': get('running_mean'), 'var': get('running_var')},
  )
