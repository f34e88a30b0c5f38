"""Which pixels each tap of a convolution's kernel sees; products by taps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Geometry(NamedTuple):
  """Static shape of a convolution from `size` to `out`."""

  k: int
  stride: int
  low: int  # zeros before the first row and column
  size: tuple[int, int]
  out: tuple[int, int]
  dilation: int = 1


def zeros_around(geo: Geometry) -> list[tuple[int, int]]:
  """Zeros before and after each axis; negative: pixels that no tap reads."""
  reach = geo.dilation * (geo.k - 1) + 1
  return [
    (geo.low, (o - 1) * geo.stride + reach - geo.low - s)
    for s, o in zip(geo.size, geo.out, strict=True)
  ]


class Tap(NamedTuple):
  """The part of the images that one tap of the kernel sees."""

  i: int  # row and column in the kernel
  j: int
  out: tuple[slice, slice]  # outputs for which the tap lies inside
  size: tuple[slice, slice]  # the inputs it meets there, as many


@functools.cache
def visible_taps(geo: Geometry) -> tuple[Tap, ...]:
  """All taps that see a pixel, row by row."""
  rows, columns = _seen(geo, 0), _seen(geo, 1)
  return tuple(
    Tap(i, j, (row[0], column[0]), (row[1], column[1]))
    for i, row in rows.items()
    for j, column in columns.items()
  )


def _seen(geo: Geometry, axis: int) -> dict[int, tuple[slice, slice]]:
  """Tap -> its outputs and inputs along one axis; without those outside."""
  seen = {}
  for t in range(geo.k):
    offset = t * geo.dilation - geo.low  # input = stride output + offset
    first = max(0, -(offset // geo.stride))
    last = min(geo.out[axis] - 1, (geo.size[axis] - 1 - offset) // geo.stride)
    if first <= last:
      start, stop = (geo.stride * o + offset for o in (first, last))
      outputs = slice(first, last + 1)
      seen[t] = outputs, slice(start, stop + 1, geo.stride)
  return seen


def pad_to(
  y: jax.Array, at: tuple[slice, slice], size: tuple[int, int]
) -> jax.Array:
  """Puts y at the rows and columns `at` of zeros [N, *size, C]."""
  config = [
    (a.start, s - a.stop, (a.step or 1) - 1)
    for a, s in zip(at, size, strict=True)
  ]
  config = [(0, 0, 0), *config, (0, 0, 0)]
  return lax.pad(y, jnp.zeros((), y.dtype), config)


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
  """The dtype of sums over taps: at least float32."""
  return jnp.promote_types(dtype, jnp.float32)


def product(
  x: jax.Array, w: jax.Array, contract: tuple[tuple[int, ...], tuple[int, ...]]
) -> jax.Array:
  """Sum of products over the axes `contract`, in the dtype of sums."""
  # Not all layouts of a bfloat16 product with a float32 sum exist on CPUs.
  dtype = accumulator(x.dtype)
  x, w = x.astype(dtype), w.astype(dtype)
  return lax.dot_general(x, w, (contract, ((), ())))


def outer(x: jax.Array, g: jax.Array) -> jax.Array:
  """Sum over all pixels of x g^T: [N, h, w, I], [N, h, w, O] -> [I, O]."""
  # XLA copies the first factor, transposed and on one thread: the smaller one.
  pixels = (0, 1, 2), (0, 1, 2)
  if x.shape[-1] <= g.shape[-1]:
    return product(x, g, pixels)
  return product(g, x, pixels).T


def padded(geo: Geometry, x: jax.Array) -> jax.Array:
  """[N, *size, C] with `zeros_around`."""
  pads = [(0, 0, 0), *((*p, 0) for p in zeros_around(geo)), (0, 0, 0)]
  return lax.pad(x, jnp.zeros((), x.dtype), pads)
