"""The permutohedral lattice point by point, with a dict of vertices.

Written from Adams, Baek and Davis 2010, in double precision, independently of
`jaxseg.ops.permutohedral`: the remainder-0 vertex is found by rounding and
repaired by moving the coordinates that were rounded most.
"""

import numpy as np


def corners(feature):
  """The simplex of a point: [(vertex as a tuple, barycentric weight)]."""
  dims = len(feature)
  basis = np.zeros((dims + 1, dims))  # columns: an orthogonal basis
  for i in range(dims):
    basis[: i + 1, i] = 1
    basis[i + 1, i] = -(i + 1)
    basis[:, i] /= np.sqrt((i + 1) * (i + 2))
  y = basis @ np.asarray(feature, np.float64) * np.sqrt(2 / 3) * (dims + 1)
  size = dims + 1
  nearest = np.round(y / size) * size
  excess = round(nearest.sum() / size)
  order = np.argsort(-(y - nearest), kind='stable')
  if excess > 0:
    nearest[order[-excess:]] -= size
  elif excess < 0:
    nearest[order[:-excess]] += size
  difference = y - nearest
  order = np.argsort(-difference, kind='stable')
  ordered = difference[order]
  found = []
  for k in range(size):
    vertex = nearest + k
    vertex[order[size - k :]] -= size
    if k:
      weight = (ordered[dims - k] - ordered[size - k]) / size
    else:
      weight = 1 - (ordered[0] - ordered[-1]) / size
    found.append((tuple(vertex.astype(int)), weight))
  return found


def filtered(features, values):
  """(filtered values [P, V], number of vertices)."""
  simplices = [corners(feature) for feature in features]
  table = {}
  for simplex, value in zip(simplices, values, strict=True):
    for vertex, weight in simplex:
      table[vertex] = table.get(vertex, 0) + weight * value
  dims = features.shape[1]
  zero = np.zeros_like(values[0])
  for axis in range(dims + 1):
    step = np.ones(dims + 1, int)
    step[axis] -= dims + 1
    table = {
      v: x
      + table.get(tuple(v + step), zero) / 2
      + table.get(tuple(v - step), zero) / 2
      for v, x in table.items()
    }
  found = [sum(w * table[v] for v, w in simplex) for simplex in simplices]
  return np.stack(found) / (1 + 2.0**-dims), len(table)
