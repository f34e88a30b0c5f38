"""Compiles a stage's training step for devices that need not be there.

  python -m jaxseg.plan_compile FOLDER STAGE

A program of its own: how many virtual devices a process has, and whether it
looks for a TPU, is settled before JAX starts. FOLDER holds config.json and
plan.json; the answer is written to FOLDER/STAGE.json.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import guard, ops, parallel, plan_costs, plan_hlo
from jaxseg import workdir as workdirs
from jaxseg.data import fit
from jaxseg.errors import UserError

# The program is read, not run: machine code need not be good.
FOR_READING = {
  'xla_backend_optimization_level': 0,
  'xla_llvm_disable_expensive_passes': True,
}


class Measured(NamedTuple):
  """One stage's training step on a mesh; of each device unless said otherwise.

  Attributes:
    parameters: numbers by network, of the whole model.
    state: bytes by part (params, opt_state, ema, extra), sharded.
    checkpoint: bytes of the whole state.
    batch: bytes of one batch.
    flops: {dtype: FLOP} of all devices together, on average over the steps.
    moved: bytes that their operands and results have, likewise.
    once: FLOP of all devices as XLA's cost analysis counts them.
    branches: see `plan_costs.Counted`.
    xla_flops: of all devices by XLA's own analysis, elementwise ones too, terms
      on padding left out; None without compilation, and for a TPU.
    peak: bytes in use at most; None without compilation, or if too many.
    traffic: bytes of memory traffic, as XLA counts them; None likewise.
    kinds: see `plan_hlo.Exchange`; None without compilation.
    sent_bytes: likewise.
    collectives: likewise.
    unknown: likewise.
    too_much: the compiler's words if the program does not fit; else ''.
    seconds: of compilation.
  """

  parameters: dict[str, int]
  state: dict[str, int]
  checkpoint: int
  batch: int
  flops: dict[str, float]
  moved: float
  once: float
  branches: list[list[float] | None]
  xla_flops: float | None = None
  peak: float | None = None
  traffic: float | None = None
  kinds: dict[str, float] | None = None
  sent_bytes: float = 0.0
  collectives: float = 0.0
  unknown: int = 0
  too_much: str = ''
  seconds: float = 0.0


def batch_shapes(
  config: ConfigDict, stage: str, num_classes: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a stage's batches, as `data.streams` makes them."""
  fields, data = config[stage], config.data
  size, n, m = fit.size(data), fields.batch_size, fields.unlabelled_batch_size
  views, channels = data.strong.views, data.channels
  shapes = {}
  if n:
    shapes['image'] = (n, *size, channels), jnp.float32
    shapes['label'] = (n, *size), jnp.int32
    if data.weak.kind == 'tags':
      shapes['tags'] = (n, num_classes), jnp.float32
  if m:
    shapes['unlabelled'] = (m, *size, channels), jnp.float32
  if m and views:
    shapes['unlabelled_strong'] = (m, views, *size, channels), jnp.float32
    shapes['cutmix'] = (m, views, *size), jnp.float32
  return {k: jax.ShapeDtypeStruct(*v) for k, v in shapes.items()}


def measure(
  config: ConfigDict,
  stage: str,
  num_classes: int,
  mesh: Mesh,
  *,
  platform: str,
  compiled: bool = True,
) -> Measured:
  """Traces, and compiles, one training step.

  Args:
    config: the experiment's.
    stage: one of its stages.
    num_classes: K.
    mesh: of the devices to compile for.
    platform: 'tpu', 'gpu' or 'cpu': which forms of the operations are traced.
    compiled: whether to compile; without, memory and exchange stay unknown.
  """
  state = workdirs.abstract_state(config, stage, num_classes)
  shardings = parallel.state_shardings(state, mesh)
  replicated, over_data = parallel.replicated(mesh), parallel.over_data(mesh)
  batch = batch_shapes(config, stage, num_classes)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  placed = (
    jax.tree.map(place, state, shardings),
    jax.tree.map(lambda x: place(x, replicated), guard.healthy()),
    jax.tree.map(lambda x: place(x, over_data), batch),
  )
  train_step = workdirs.make_method(config, stage, num_classes).train_step
  form = 'fast' if platform == 'cpu' else 'lax'
  with jax.set_mesh(mesh), ops.implementation(form):
    traced = jax.jit(guard.guarded(train_step)).trace(*placed)
  leaves, states = jax.tree.leaves(placed), jax.tree.leaves(placed[0])
  step = next(i for i, x in enumerate(states) if x is placed[0].step)
  counted = plan_costs.count(traced.jaxpr, step)
  found = Measured(
    parameters={k: _count(v) for k, v in state.params.items()},
    state=_state_bytes(state, shardings),
    checkpoint=sum(map(_bytes, jax.tree.leaves(state))),
    batch=sum(map(_bytes, jax.tree.leaves(batch))) // mesh.shape['data'],
    flops=counted.flops,
    moved=counted.moved,
    once=counted.once,
    branches=counted.branches,
  )
  if not compiled:
    return found
  outputs = [*jax.tree.leaves(shardings)]
  outputs += [replicated] * (len(traced.jaxpr.out_avals) - len(outputs))
  start = time.monotonic()
  with jax.set_mesh(mesh):
    lowered = jax.jit(
      core.jaxpr_as_fun(counted.jaxpr),
      donate_argnums=tuple(range(len(states))),
      out_shardings=outputs,
    ).lower(*leaves)
    cpu = mesh.devices.flat[0].platform == 'cpu'
    found = _compile(found, lowered, FOR_READING if cpu else None)
  return found._replace(seconds=time.monotonic() - start)


def _compile(found, lowered, options):
  """`found` with what only the compiled program tells."""
  try:
    program = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    return found._replace(too_much=' '.join(str(error).split()))
  memory = program.memory_analysis()
  # A TPU's program tells its peak, with temp 0; others what lives before,
  # after and in between.
  together = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  peak = max(getattr(memory, 'peak_memory_in_bytes', 0), together)
  exchange = plan_hlo.exchanges(program.as_text(), found.branches)
  return found._replace(
    xla_flops=(lowered.cost_analysis() or {}).get('flops'),
    peak=float(peak),
    traffic=(program.cost_analysis() or {}).get('bytes accessed'),
    **exchange._asdict(),
  )


def _count(tree):
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _bytes(x):
  return math.prod(x.shape) * x.dtype.itemsize


def _state_bytes(state, shardings):
  """Bytes on each device, by part of the state."""
  return {
    part: sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
      for x, s in zip(
        jax.tree.leaves(getattr(state, part)),
        jax.tree.leaves(getattr(shardings, part)),
        strict=True,
      )
    )
    for part in ('params', 'opt_state', 'ema', 'extra')
  }


def devices_of(topology: str, count: int) -> list:
  """The devices to compile for: a TPU slice's, or virtual CPU devices."""
  if not topology:
    return jax.devices('cpu')[:count]
  from jax.experimental import topologies

  options = {}
  if count == 1:  # hosts have four chips unless told otherwise
    options['chips_per_host_bounds'] = (1, 1, 1)
  return topologies.get_topology_desc(
    topology, platform='tpu', **options
  ).devices


def main(folder: str, stage: str) -> None:
  """Answers one request; see the module's docstring."""
  request = json.loads((Path(folder) / 'plan.json').read_text())
  config = workdirs.load_config(folder)
  devices = devices_of(request['topology'], request['count'])
  try:
    answer = measure(
      config, stage, request['num_classes'],
      parallel.make_mesh(config.mesh.data, config.mesh.model, devices),
      platform=request['platform'], compiled=request['compiled'],
    )._asdict()  # fmt: skip
  except UserError as error:
    answer = {'error': str(error)}
  (Path(folder) / f'{stage}.json').write_text(json.dumps(answer))


if __name__ == '__main__':
  main(*sys.argv[1:])
