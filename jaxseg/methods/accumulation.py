"""One update from a batch whose images are differentiated part by part.

The memory of a step is that of a part; the gradient is the mean over parts, and
so is everything else that a loss reports: metrics and batch statistics. Where a
loss is a mean over images the step is that of the whole batch. Parts count
alike, however many of their pixels are void, and what looks at several images
at once sees those of its part: the Dice loss, batch normalisation, the running
mean of path lengths, and the neighbours whose boxes UniMatch and the first
stage of BCP show.

Part i of k holds the images i, i + k, i + 2k, ...: every device keeps its own
images, and groups of D_r's minibatch standard deviation, images n / g apart,
stay together as long as a part holds whole groups.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.method import PyTree
from jaxseg.parallel import split_batch


def over_parts(
  function: Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]],
  batch: PyTree,
  rng: jax.Array,
  parts: int,
) -> tuple[PyTree, PyTree]:
  """A function of a batch, of one part at a time.

  Args:
    function: (part, key) -> (float arrays to be averaged, arrays [n / k, ...]
      of the part's images).
    batch: a tree of arrays [n, ...]; k divides the n of each.
    rng: key; part i is given `fold_in(rng, i)`.
    parts: k; 1: the result is `function(batch, rng)`.

  Returns:
    (means over parts, arrays [n, ...] in the order of the batch).
  """
  if parts == 1:
    return function(batch, rng)

  def take(x, i):
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:])
    return jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)

  def one(total, i):
    part = split_batch(jax.tree.map(lambda x: take(x, i), batch))
    averaged, each = function(part, jax.random.fold_in(rng, i))
    total = jax.tree.map(lambda t, x: t + x / parts, total, averaged)
    return total, each

  example = jax.tree.map(lambda x: x[: x.shape[0] // parts], batch)
  averaged, _ = jax.eval_shape(function, example, rng)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), averaged)
  means, each = jax.lax.scan(one, zeros, jnp.arange(parts))
  join = lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])
  return means, split_batch(jax.tree.map(join, each))


def gradient(
  loss_fn: Callable[..., tuple[jax.Array, tuple[PyTree, PyTree]]],
  params: PyTree,
  batch: PyTree,
  rng: jax.Array,
  parts: int,
) -> tuple[PyTree, PyTree, PyTree]:
  """Gradient of the mean of a loss over the parts of a batch.

  Args:
    loss_fn: (params, part, key) -> (scalar, as `over_parts`' function).
    params: what is differentiated.
    batch: see `over_parts`, as the next two.
    rng: key.
    parts: k.

  Returns:
    (gradient, means over parts, arrays of all images).
  """

  def one(part, key):
    grads, (averaged, each) = jax.grad(loss_fn, has_aux=True)(params, part, key)
    return (grads, averaged), each

  (grads, averaged), each = over_parts(one, batch, rng, parts)
  return grads, averaged, each


def parts_of(fields: Any) -> int:
  """k, from a stage's fields."""
  args = fields.args
  if 'optimizer' in args and 'accumulate' not in args:
    args = args.optimizer
  return args.get('accumulate', 1)  # a method without it takes its batch whole


def check(where: str, fields: Any) -> None:
  """Refuses batches that cannot be cut into parts of one size.

  Args:
    where: 'config.STAGE'.
    fields: its fields.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  parts = parts_of(fields)
  field = f'{where}.args.{"" if "accumulate" in fields.args else "optimizer."}'
  if parts < 1:
    raise UserError(f'{field}accumulate is {parts}, must be at least 1.')
  for name in ('batch_size', 'unlabelled_batch_size'):
    size = fields[name]
    if size % parts:
      raise UserError(
        f'{field}accumulate is {parts}, but {where}.{name} is {size}, which '
        f'cannot be cut into {parts} equal parts; set {where}.{name}='
        f'{max(parts, round(size / parts) * parts)}, or accumulate to a '
        f'divisor of {size}.'
      )
