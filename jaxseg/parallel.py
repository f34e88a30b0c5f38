"""One mesh of devices, and where arrays live on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxseg.errors import UserError


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
  """Returns a mesh with axes 'data' and 'model' over the first devices.

  Args:
    data: devices that share a batch; -1: all that `model` leaves.
    model: devices that share large parameters.

  Raises:
    UserError: more devices asked for than there are.
  """
  count = jax.device_count()
  if data == -1:
    data = max(1, count // model)
  if data < 1 or model < 1 or data * model > count:
    raise UserError(
      f'config.mesh asks for data {data} x model {model} devices, but there '
      f'are {count}; set config.mesh.data=-1 to use all of them.'
    )
  devices = np.asarray(jax.devices()[: data * model]).reshape(data, model)
  return Mesh(devices, ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
  """Every device holds the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
  """The first axis is split over 'data'."""
  return NamedSharding(mesh, PartitionSpec('data'))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Places this process's part of a global batch on its devices."""
  sharding = over_data(mesh)
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


def check_batch_size(field: str, size: int, mesh: Mesh) -> None:
  """Raises UserError unless the devices can share a batch evenly."""
  devices = mesh.shape['data']
  if size % devices:
    nearest = max(devices, round(size / devices) * devices)
    raise UserError(
      f'{field} is {size}, which {devices} devices cannot share evenly; '
      f'set {field}={nearest} or config.mesh.data to a divisor of {size}.'
    )
