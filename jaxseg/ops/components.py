"""Connected components of label maps, under jit and on any device.

Each pixel starts with its own index; sweeps down, up, right and left carry the
smallest index of a component through it, until a round of four changes nothing.
A sweep goes the whole way along its direction, so that what matters is how
often a component turns back, not its length: blobs need two or three rounds, a
spiral one for each turn.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg import parallel

NONE = jnp.iinfo(jnp.int32).max  # the label of background
# Column offsets, in the row above, of the neighbours that a sweep looks at.
_BEHIND = {4: (0,), 8: (-1, 0, 1)}


def largest_component(mask: jax.Array, connectivity: int = 8) -> jax.Array:
  """The largest connected component of each mask.

  Args:
    mask: bool [N, H, W].
    connectivity: 4 (edges) or 8 (edges and corners).

  Returns:
    bool [N, H, W]; of components of one size that whose first pixel, row by
    row, comes first; all False for an empty mask.

  Raises:
    ValueError: another connectivity.
  """
  return largest_components(mask, 2, connectivity) > 0


def largest_components(
  ids: jax.Array, num_classes: int, connectivity: int = 8
) -> jax.Array:
  """The largest connected component of each class; the rest becomes 0.

  Args:
    ids: integers or bool [N, H, W], of classes 0 to K - 1; 0 is background.
    num_classes: K.
    connectivity: see `largest_component`, as for ties and absent classes.

  Returns:
    int32 [N, H, W].

  Raises:
    ValueError: another connectivity.
  """
  n, h, w = ids.shape
  ids = ids.astype(jnp.int32)
  labels = parallel.on_each_device(
    functools.partial(label, connectivity=connectivity), ids
  ).reshape(n, h * w)
  flat = ids.reshape(n, h * w)
  # A component's size stands at its first pixel; background has no place.
  sizes = jax.vmap(lambda x: jnp.zeros(h * w, jnp.int32).at[x].add(1))(labels)
  keep = jnp.zeros(flat.shape, bool)
  for k in range(1, num_classes):
    first = jnp.where(flat == k, sizes, 0).argmax(-1)
    keep |= (flat == k) & (labels == first[:, None])
  return jnp.where(keep, flat, 0).reshape(n, h, w)


def label(ids: jax.Array, connectivity: int = 8) -> jax.Array:
  """Labels connected pixels of equal, non-zero id.

  Args:
    ids: integers or bool [N, H, W]; 0 is background.
    connectivity: see `largest_component`.

  Returns:
    int32 [N, H, W]: row * W + column of the first pixel, row by row, of the
    component; `NONE` on background.

  Raises:
    ValueError: another connectivity.
  """
  if connectivity not in _BEHIND:
    raise ValueError(f'connectivity is {connectivity}, must be 4 or 8')
  n, h, w = ids.shape
  ids = ids.astype(jnp.int32)
  rows, columns = ids.transpose(1, 0, 2), ids.transpose(2, 0, 1)
  own = jnp.arange(h * w, dtype=jnp.int32).reshape(h, 1, w)
  start = jnp.where(rows > 0, jnp.broadcast_to(own, rows.shape), NONE)
  sweep = functools.partial(_sweep, behind=_BEHIND[connectivity])

  def one_round(state):
    before, _ = state
    labels = sweep(sweep(before, rows), rows, reverse=True)
    labels = labels.transpose(2, 1, 0)
    labels = sweep(sweep(labels, columns), columns, reverse=True)
    labels = labels.transpose(2, 1, 0)
    return labels, (labels != before).any()

  # Labels only fall, and not below 0: the loop ends.
  labels, _ = lax.while_loop(lambda state: state[1], one_round, (start, True))
  return labels.transpose(1, 0, 2)


def _sweep(labels, ids, behind, reverse=False):
  """Takes the smallest label among the line behind, line after line.

  Args:
    labels: int32 [H, N, W], swept along the first axis.
    ids: of the same shape.
    behind: offsets along W of the neighbours.
    reverse: from the last line to the first.
  """

  def step(line_behind, line):
    labels, ids = line
    for offset in behind:
      other, other_ids = (
        _shift(x, offset, fill)
        for x, fill in zip(line_behind, (NONE, 0), strict=True)
      )
      other = jnp.minimum(labels, other)
      labels = jnp.where(other_ids == ids, other, labels)
    return (labels, ids), labels

  edge = (jnp.full_like(labels[0], NONE), jnp.zeros_like(ids[0]))
  return lax.scan(step, edge, (labels, ids), reverse=reverse)[1]


def _shift(x, offset, fill):
  """x[..., i + offset], `fill` beyond the ends; offset is -1, 0 or 1."""
  if not offset:
    return x
  end = jnp.full_like(x[..., :1], fill)
  if offset > 0:
    return jnp.concatenate([x[..., 1:], end], axis=-1)
  return jnp.concatenate([end, x[..., :-1]], axis=-1)
