"""Gaussian filters of many dimensions in time linear in the points.

The permutohedral lattice (Adams, Baek and Davis 2010) as dense conditional
random fields use it (Kraehenbuehl and Koltun 2011): each point lies in a
simplex of F + 1 lattice vertices, splats its values onto them, the vertices
are blurred along F + 1 axes, and the point gathers from the same vertices.
Results are those of the released C++ code; its hash table of vertices is a
sorted table of keys here, so that shapes are static on any device.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EMPTY = np.uint32(2**32 - 1)  # sorts behind every key
TOO_WIDE = 2**31 - 1
_LEAST = 2**14  # vertices; noise needs several a pixel


class Lattice(NamedTuple):
  """The lattice of P points with F features; M vertices have a place.

  Attributes:
    ids: int32 [F + 1, P], the vertices of each point, 0 to M - 1.
    weights: float32 [F + 1, P], barycentric, their sum is 1.
    neighbours: int32 [F + 1, 2, M], of each vertex along each axis; M: none.
    vertices: int32 scalar, how many are needed; `TOO_WIDE`: the features span
      too wide a range for their keys.
    overflow: bool scalar: more are needed than M, and results are wrong.
  """

  ids: jax.Array
  weights: jax.Array
  neighbours: jax.Array
  vertices: jax.Array
  overflow: jax.Array


def capacity(points: int, dims: int, max_vertices: int = 0) -> int:
  """Number of vertices with a place.

  Args:
    points: P.
    dims: F.
    max_vertices: 0: one a point and at least 16384, enough for photographs of
      128x128 pixels or more; never more than (F + 1) P, which always suffices.

  Raises:
    ValueError: `max_vertices` is negative.
  """
  if max_vertices < 0:
    raise ValueError(f'max_vertices is {max_vertices}, must be 0 or more')
  return min((dims + 1) * points, max_vertices or max(points, _LEAST))


def build(features: jax.Array, max_vertices: int = 0) -> Lattice:
  """Builds the lattice for Gaussians of standard deviation 1.

  Args:
    features: float [P, F]; no gradient reaches them.
    max_vertices: see `capacity`.

  Returns:
    the lattice, for any number of calls of `filter`.

  Raises:
    ValueError: see `capacity`.
  """
  points, dims = features.shape
  count = capacity(points, dims, max_vertices)
  features = lax.stop_gradient(features.astype(jnp.float32))
  cells, ranks, weights = _embed(features)
  keys, strides, fits = _keys(cells, ranks)
  ordered = jnp.sort(keys.ravel())
  is_new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
  places = jnp.cumsum(is_new.astype(jnp.int32)) - 1
  vertices = places[-1] + 1
  table = (
    jnp.full(count, EMPTY)
    .at[places]
    .set(ordered, mode='drop', indices_are_sorted=True)
  )
  ids = jnp.searchsorted(table, keys).astype(jnp.int32)
  vertices = jnp.where(fits, vertices, TOO_WIDE)
  return Lattice(
    jnp.minimum(ids, count - 1),
    weights,
    _neighbours(table, strides),
    vertices,
    vertices > count,
  )


def filter(lattice: Lattice, values: jax.Array) -> jax.Array:
  """Filters values.

  Args:
    lattice: from `build`.
    values: float [P, V].

  Returns:
    float32 [P, V], near sum over j of exp(-|f_i - f_j|^2 / 2) v_j but for a
    factor: on photographs about half of it, and within 0.1 of it in relative
    L2 norm after scaling. Its matrix is not quite symmetric; the gradient with
    respect to the values is, as published, the same filter and not its
    transpose.
  """
  return _filter(lattice, values.astype(jnp.float32))


@jax.custom_vjp
def _filter(lattice, values):
  axes, _, count = lattice.neighbours.shape

  # Loops that are not unrolled compile in a fraction of the time.
  def splat(table, corner):
    ids, weights = corner
    return table.at[ids].add(weights[:, None] * values), None

  def blur(table, neighbours):
    before, after = neighbours
    blurred = table[:-1] + (table[before] + table[after]) / 2
    return table.at[:-1].set(blurred), None

  def gather(found, corner):
    ids, weights = corner
    return found + weights[:, None] * table[ids], None

  corners = lattice.ids, lattice.weights
  table = jnp.zeros((count + 1, values.shape[-1]))  # the last: no vertex
  table, _ = lax.scan(splat, table, corners)
  table, _ = lax.scan(blur, table, lattice.neighbours)
  found, _ = lax.scan(gather, jnp.zeros_like(values), corners)
  return found / (1 + 2.0 ** (1 - axes))


def _forward(lattice, values):
  return _filter(lattice, values), lattice


def _backward(lattice, cotangent):
  return None, _filter(lattice, cotangent)


_filter.defvjp(_forward, _backward)


def _embed(features):
  """Where each point is: in which cell, in which simplex of it, and where.

  Returns:
    (int32 [F + 1, P], the nearest vertex of remainder 0, divided by F + 1;
    int32 [F + 1, P], order of the coordinates' distances to it, 0 is the
    largest; float32 [F + 1, P], barycentric coordinates).
  """
  dims = features.shape[1]
  size = dims + 1
  # Along axis i of an orthogonal basis of the plane whose coordinates sum to 0;
  # the blur then has a standard deviation of 1.
  i = np.arange(dims)
  scales = np.sqrt(2 / 3) * size / np.sqrt((i + 1) * (i + 2))
  scaled = features.T * scales.astype(np.float32)[:, None]
  elevated, total = [], jnp.zeros_like(scaled[0])
  for axis in range(dims, 0, -1):
    elevated.append(total - axis * scaled[axis - 1])
    total += scaled[axis - 1]
  elevated = jnp.stack([total, *reversed(elevated)])
  nearest = jnp.round(elevated / size)
  rest = elevated / size - nearest
  # Of equal coordinates the first has the lower rank.
  earlier = np.tri(size, k=-1, dtype=bool)[..., None]
  larger = (rest[None] > rest[:, None]) | (
    (rest[None] == rest[:, None]) & earlier
  )
  ranks = larger.sum(1, dtype=jnp.int32)
  # Rounding may have left the plane: move the coordinates that lost least.
  cells = nearest.astype(jnp.int32)
  ranks += cells.sum(0)
  wrap = (ranks < 0).astype(jnp.int32) - (ranks >= size)
  ranks, cells = ranks + size * wrap, cells + wrap
  rest = elevated / size - cells
  at = lambda rank: jnp.where(ranks == rank, rest, 0).sum(0)
  ordered = [at(rank) for rank in range(size)]
  weights = [ordered[dims - k] - ordered[dims - k + 1] for k in range(1, size)]
  first = 1 + ordered[dims] - ordered[0]
  return cells, ranks, jnp.stack([first, *weights])


def _keys(cells, ranks):
  """Numbers the vertices.

  Vertex r of a simplex has coordinates (F + 1) q_i + r, where q_i is the cell,
  or one less for those of the r largest ranks. As they sum to 0, r and all but
  the last q_i tell which vertex it is: the digits of its key, r the lowest.

  Returns:
    (uint32 [F + 1, P]; uint32 [F], what one more of q_i adds to a key; bool
    scalar, whether 32 bits suffice).
  """
  size = len(cells)
  lowest = cells[:-1].min(1) - 2  # one less by rank, one less for neighbours
  ranges = cells[:-1].max(1) + 2 - lowest
  fits = size * jnp.prod(ranges.astype(jnp.float32)) < 0.9999 * 2.0**32
  strides = [jnp.uint32(size)]
  for length in ranges[:-1]:
    strides.append(strides[-1] * length.astype(jnp.uint32))
  strides = jnp.stack(strides)
  keys = []
  for r in range(size):
    digits = cells[:-1] - (ranks[:-1] > size - 1 - r) - lowest[:, None]
    digits = digits.astype(jnp.uint32) * strides[:, None]
    keys.append(r + digits.sum(0, dtype=jnp.uint32))
  return jnp.stack(keys), strides, fits


def _neighbours(table, strides):
  """Both neighbours of each vertex along each axis, int32 [F + 1, 2, M].

  Along axis i all coordinates but i grow by 1, and that falls by F.
  """
  count, dims = len(table), len(strides)
  remainder = table % np.uint32(dims + 1)
  is_vertex = table != EMPTY
  own = jnp.arange(count, dtype=jnp.int32)

  def along(stride):
    # The remainder grows by 1 and q_i falls; at F it becomes 0 again and all
    # other q_i grow. Of the last axis there is no digit.
    others = strides.sum(dtype=jnp.uint32) - stride
    step = jnp.where(remainder < dims, 1 - stride, others - dims)
    wanted = table + step
    after = jnp.searchsorted(table, wanted).astype(jnp.int32)
    after = jnp.minimum(after, count - 1)
    after = jnp.where(is_vertex & (table[after] == wanted), after, count)
    before = jnp.full(count + 1, count).at[after].set(own)[:-1]
    return jnp.stack([before, after])

  return lax.map(along, jnp.append(strides, jnp.uint32(0)))
