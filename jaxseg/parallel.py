"""One mesh of devices, and where arrays live on it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError

# Smaller arrays are not worth the communication: 64 KiB of float32.
MIN_SIZE = 2**14


def make_mesh(
  data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns a mesh with axes 'data' and 'model' over the first devices.

  Args:
    data: devices that share a batch; -1: all that `model` leaves.
    model: devices that share large parameters.
    devices: those to choose from; None: all, of every process.

  Raises:
    UserError: more devices asked for than there are.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  if data == -1:
    data = max(1, count // model)
  if data < 1 or model < 1 or data * model > count:
    raise UserError(
      f'config.mesh asks for data {data} x model {model} devices, but there '
      f'are {count}; set config.mesh.data=-1 to use all of them.'
    )
  chosen = np.asarray(devices[: data * model]).reshape(data, model)
  return Mesh(chosen, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
  """The first axis is split over 'data'."""
  return NamedSharding(mesh, PartitionSpec('data'))


def state_shardings(tree: Any, mesh: Mesh, min_size: int = MIN_SIZE) -> Any:
  """Where the leaves of a `TrainState` live: whole, or split over 'model'.

  One rule of sizes, as arrays of one shape must stay together: a parameter, its
  moments in the optimiser, its gradient and its average are then split alike,
  and the update needs no communication. The axis is the last that divides
  evenly, in kernels the output channels: each device computes its part of
  them, where a split of the input channels would add up over devices.

  Args:
    tree: of arrays or `jax.ShapeDtypeStruct`s.
    mesh: from `make_mesh`; with 'model' of 1 everything is whole.
    min_size: arrays of fewer elements are whole; so are keys.

  Returns:
    the same tree of `NamedSharding`s.
  """
  count = mesh.shape['model']

  def place(leaf):
    is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if count == 1 or is_key or math.prod(leaf.shape) < min_size:
      return replicated(mesh)
    for axis in reversed(range(len(leaf.shape))):
      if leaf.shape[axis] % count == 0:
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, 'model'))
    return replicated(mesh)

  return jax.tree.map(place, tree)


def share(mesh: Mesh) -> tuple[int, int]:
  """Returns (which part of each batch this process reads, of how many).

  Processes whose devices lie in the same rows of the mesh read the same part.

  Raises:
    UserError: `mesh.model` does not go with the devices of a process.
  """
  mine = jax.process_index()
  rows = [
    i
    for i, row in enumerate(mesh.devices)
    if any(device.process_index == mine for device in row)
  ]
  first, count = rows[0], len(rows)
  if rows != list(range(first, first + count)) or first % count or (
    len(mesh.devices) % count
  ):  # fmt: skip
    raise UserError(
      f'config.mesh.model is {mesh.shape["model"]}, which does not fit the '
      f'devices of a process (process {mine} has rows {rows} of the mesh); it '
      'must divide their number or be a multiple of it.'
    )
  return rows[0] // len(rows), len(mesh.devices) // len(rows)


def put_batch(
  batch: dict[str, np.ndarray], mesh: Mesh, steps: bool = False
) -> dict[str, jax.Array]:
  """Places this process's part of a global batch on its devices.

  Args:
    batch: arrays whose first axis is that of the images.
    mesh: see `make_mesh`.
    steps: the first axis is that of several steps, the images are the second.
  """
  axes = (None, 'data') if steps else ('data',)
  sharding = NamedSharding(mesh, PartitionSpec(*axes))
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in batch.items()
  }


def split_batch(x: Any) -> Any:
  """Inside jit: asks that arrays drawn on the device be split over 'data'.

  Without a mesh (a notebook, a test) nothing changes.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or 'data' not in mesh.axis_names:
    return x
  size = mesh.shape['data']

  def constrain(leaf):
    if leaf.ndim == 0 or leaf.shape[0] % size:
      return leaf
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec('data'))

  return jax.tree.map(constrain, x)


def on_each_device(
  function: Callable[[jax.Array], jax.Array], batch: jax.Array
) -> jax.Array:
  """Inside jit: a function of images one by one, without communication.

  For loops that end when all images are done: each device ends on its own.
  Without a mesh, or where the devices cannot share the batch evenly, it is
  `function(batch)`.

  Args:
    function: [n, ...] -> [n, ...] for any n, each image by itself.
    batch: [N, ...].
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or 'data' not in mesh.axis_names:
    return function(batch)
  if batch.shape[0] % mesh.shape['data']:
    return function(batch)
  spec = PartitionSpec('data')
  # A loop's counters and flags start alike on all devices: no need to tell.
  return jax.shard_map(
    function, in_specs=spec, out_specs=spec, check_vma=False
  )(batch)


def check_batch_size(field: str, size: int, mesh: Mesh, parts: int = 1) -> None:
  """Refuses a batch that the devices cannot share evenly.

  Args:
    field: its name, for the message.
    size: images a step; 0: none.
    mesh: from `make_mesh`.
    parts: of a step, see `jaxseg.methods.accumulation`; each is shared.

  Raises:
    UserError: the devices would have unequal shares.
  """
  devices = mesh.shape['data']
  each = devices * parts
  if size % each:
    nearest = max(each, round(size / each) * each)
    in_parts = f' in {parts} parts' if parts > 1 else ''
    raise UserError(
      f'{field} is {size}, which {devices} devices cannot share evenly'
      f'{in_parts}; set {field}={nearest} or config.mesh.data to a divisor of '
      f'{size // parts if size % parts == 0 else nearest}.'
    )
