"""What pickles of PyTorch ask for: tensors, types and devices.

Source: as of `jaxseg.nets.torch_files`.
"""

import math

import ml_dtypes
import numpy as np

from jaxseg.nets.plain_data import Global, Unread, unread
from jaxseg.nets.plain_names import NUMPY, PYTHON, sizes

# A tensor may repeat elements of its storage, so that a tiny file could ask
# for any amount of memory: more bytes than this must be in the storage.
MAX_REPEATED = 1 << 20


def tensor(storage, offset, shape, strides, *rest):
  """The view of a storage that torch.Tensor.as_strided describes.

  Args:
    storage: [any number].
    offset: of the first element.
    shape: a tuple.
    strides: a tuple, in elements.
    *rest: requires_grad, hooks, and marks of negated or conjugated numbers.

  Returns:
    [*shape], read-only; `Unread` with such marks.

  Raises:
    ValueError: the storage is too small, or far smaller than the tensor.
  """
  if not isinstance(storage, np.ndarray) or storage.ndim != 1:
    raise ValueError('a tensor is without a storage')
  if not isinstance(shape, tuple) or not isinstance(strides, tuple):
    raise ValueError('a tensor is without a shape or strides')
  if len(rest) > 2 and rest[2]:
    return Unread('a negated or conjugated tensor')
  sizes((offset, *shape, *strides))
  if len(shape) != len(strides) or len(shape) > 32:
    raise ValueError('a tensor has too many sizes or strides')
  if 0 in shape:
    return np.zeros(shape, storage.dtype)
  last = sum((s - 1) * t for s, t in zip(shape, strides, strict=True))
  if offset + last >= storage.size:
    raise ValueError(
      f'a tensor of shape {shape} exceeds its storage of {storage.size}'
    )
  step = storage.itemsize
  if step * math.prod(shape) > max(step * storage.size, MAX_REPEATED):
    raise ValueError(f'a tensor of shape {shape} repeats too few elements')
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, [step * t for t in strides], writeable=False
  )


def _typed(storage, offset, shape, strides, grad, hooks, dtype, *marks):
  """As `tensor`, of a storage of bytes: of types that came later."""
  if dtype not in LATER:
    return Unread(f'a tensor of {dtype:.30}')
  if not isinstance(storage, np.ndarray) or storage.dtype != np.uint8:
    raise ValueError('a tensor is without a storage')
  typed = np.dtype(LATER[dtype])
  # NumPy takes no strided views of floats of 8 bits.
  whole = np.dtype(f'u{typed.itemsize}')
  count = storage.size // whole.itemsize
  if storage.flags.c_contiguous:
    numbers = storage[: count * whole.itemsize].view(whole)
  else:  # announced alone
    numbers = np.broadcast_to(np.zeros((), whole), (count,))
  found = tensor(numbers, offset, shape, strides, grad, hooks, *marks)
  return found if isinstance(found, Unread) else found.view(typed)


def _of_class(function, kind, arguments, *_):
  """A tensor with attributes; of other classes nothing is read."""
  is_known = isinstance(function, Global) and function.build in TENSORS
  if not is_known or kind != Global(value='torch.Tensor'):
    return Unread('a tensor of another class')
  if not isinstance(arguments, tuple):
    raise ValueError('a tensor is without arguments')
  return function.build(*arguments)


TENSORS = tensor, _typed


def _size(values=()):
  return tuple(sizes(values)) if isinstance(values, tuple | list) else ()


def _parameter(data, *_):
  return data


def _device(kind, *index):
  if not all(isinstance(x, str | int) for x in (kind, *index)):
    raise ValueError('a torch.device has no name')
  return ':'.join(map(str, (kind, *index)))


DTYPES = {
  'Double': '<f8', 'Float': '<f4', 'Half': '<f2',
  'BFloat16': ml_dtypes.bfloat16, 'Long': '<i8', 'Int': '<i4', 'Short': '<i2',
  'Char': 'i1', 'Byte': 'u1', 'Bool': '?', 'Untyped': 'u1',
  'ComplexFloat': '<c8', 'ComplexDouble': '<c16', 'QInt8': 'i1', 'QUInt8': 'u1',
  'QInt32': '<i4',
}  # fmt: skip

# Without a storage of their own.
LATER = {
  'torch.uint16': '<u2', 'torch.uint32': '<u4', 'torch.uint64': '<u8',
  'torch.float8_e4m3fn': ml_dtypes.float8_e4m3fn,
  'torch.float8_e4m3fnuz': ml_dtypes.float8_e4m3fnuz,
  'torch.float8_e5m2': ml_dtypes.float8_e5m2,
  'torch.float8_e5m2fnuz': ml_dtypes.float8_e5m2fnuz,
}  # fmt: skip

UNREAD = unread(
  'torch._C Generator',
  'torch._utils _rebuild_meta_tensor_no_storage',
  'torch._utils _rebuild_nested_tensor',
  'torch._utils _rebuild_qtensor',
  'torch._utils _rebuild_sparse_csr_tensor',
  'torch._utils _rebuild_sparse_tensor',
  'torch._utils _rebuild_wrapper_subclass',
  'torch.serialization _get_layout',
)

GLOBALS = {
  **PYTHON,
  **NUMPY,
  **UNREAD,
  ('torch', 'Tensor'): Global(value='torch.Tensor'),
  ('torch._tensor', '_rebuild_from_type_v2'): Global(_of_class),
  ('torch._utils', '_rebuild_tensor_v3'): Global(_typed),
  ('torch', 'Size'): Global(_size),
  ('torch', 'device'): Global(_device),
  ('torch._utils', '_rebuild_tensor'): Global(tensor),
  ('torch._utils', '_rebuild_tensor_v2'): Global(tensor),
  ('torch._utils', '_rebuild_parameter'): Global(_parameter),
  ('torch._utils', '_rebuild_parameter_with_state'): Global(_parameter),
  **{
    (module, f'{name}Storage'): Global(value=np.dtype(dtype))
    for module in ('torch', 'torch.cuda', 'torch.storage')
    for name, dtype in DTYPES.items()
  },
  # Types as settings.
  **{
    ('torch', name): f'torch.{name}'
    for name in (
      'float64',
      'float32',
      'float16',
      'bfloat16',
      'int64',
      'int32',
      'int16',
      'int8',
      'uint8',
      'bool',
      'complex64',
      'complex128',
      'per_channel_affine',
      'per_tensor_affine',
      *(name.removeprefix('torch.') for name in LATER),
    )
  },
}
