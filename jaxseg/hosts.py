"""Several processes, one training: how they start, agree and wait.

One process runs on each host (or each GPU); all run the same program on their
part of every batch. Process 0 alone writes records, pictures and words.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from jaxseg.errors import UserError
from jaxseg.resources import NotEnough

WEEK = 7 * 24 * 3600
# What the processes agree upon is numbered: all ask for it in the same order,
# and no number may come twice in the life of a process.
_NUMBERS = itertools.count(1)
_WAITS = itertools.count(1)
START_TIMEOUT = 300  # seconds to find the other processes


class PeerLost(UserError):
  """Another process of this training ended or stands still."""

  exit_code = 7


def start(
  coordinator: str = '',
  num_processes: int = 0,
  process_id: int = -1,
  distributed: bool = False,
) -> None:
  """Joins the other processes; must come before anything that uses a device.

  Without arguments it does so in a Slurm step of several tasks, and else
  leaves this process alone.

  Args:
    coordinator: HOST:PORT of process 0.
    num_processes: how many there are.
    process_id: which this is, from 0.
    distributed: let JAX find all three (TPU pods, Slurm, Open MPI, Kubernetes).

  Raises:
    UserError: flags that do not go together.
    PeerLost: the others did not come.
  """
  given = (bool(coordinator), num_processes > 0, process_id >= 0)
  if any(given) and not all(given):
    raise UserError(
      f'--coordinator={coordinator} --num_processes={num_processes} '
      f'--process_id={process_id}: give all three, such as --coordinator='
      'host0:1234 --num_processes=2 --process_id=0, or --distributed to let '
      'them be found.'
    )
  if all(given) and process_id >= num_processes:
    raise UserError(
      f'--process_id is {process_id}, must be below --num_processes, '
      f'{num_processes}; the first process is 0.'
    )
  if all(given) and num_processes == 1:
    return
  if not (all(given) or distributed or _in_slurm_step()):
    return
  arguments = (coordinator, num_processes, process_id) if all(given) else ()
  try:
    jax.distributed.initialize(*arguments, initialization_timeout=START_TIMEOUT)
  except (RuntimeError, ValueError) as error:
    first = str(error).strip().splitlines()[0][:300]
    raise PeerLost(
      f'the processes of this training did not find each other within '
      f'{START_TIMEOUT} s ({first}); check that all were started and can reach '
      f'{coordinator or "the first host"}.'
    ) from error
  if not primary():
    # Errors still go to stderr.
    sys.stdout = open(os.devnull, 'w')  # noqa: SIM115


def _in_slurm_step():
  needed = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID')
  tasks = os.environ.get('SLURM_STEP_NUM_TASKS', '1')
  return all(name in os.environ for name in needed) and int(tasks) > 1


@contextlib.contextmanager
def leaving_together() -> Iterator[None]:
  """With several processes, an error ends this one at once.

  The usual end of a program waits for the others, which wait for this one.
  """
  try:
    yield
  except (Exception, KeyboardInterrupt) as error:
    error = _understood(error)
    if not several():
      raise error from None
    if isinstance(error, UserError):
      told, code = str(error), error.exit_code
    else:
      told, code = ''.join(traceback.format_exception(error)), 1
    print(f'jaxseg: process {jax.process_index()}: {told}', file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _understood(error):
  """An error of the devices as what it means for the user."""
  if not isinstance(error, jax.errors.JaxRuntimeError):
    return error
  first = str(error).strip().splitlines()[0][:300]
  if 'RESOURCE_EXHAUSTED' in first:
    return NotEnough(
      f'the memory of a device does not suffice ({first}); lower batch_size, '
      'set accumulate, remat or dtype=bfloat16, or spread the state with '
      'config.mesh.model.'
    )
  if not several() or first.startswith(('INVALID_ARGUMENT', 'UNIMPLEMENTED')):
    return error
  return PeerLost(
    f'another process of this training was lost ({first}); run the same '
    'command again to continue from the newest checkpoint.'
  )


def several() -> bool:
  """Whether this training has more than one process."""
  return jax.process_count() > 1


def primary() -> bool:
  """Whether this is the process that writes."""
  return jax.process_index() == 0


def preempted() -> bool:
  """Whether all processes shall stop now.

  True in all of them at the same time, once one had a SIGTERM. Every process
  must ask at every step.
  """
  if not several():
    return False
  return multihost_utils.reached_preemption_sync_point(next(_NUMBERS))


def pass_on_interrupts() -> None:
  """Makes Ctrl-C the signal of which `preempted` tells."""
  signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))


def end_of_interrupts() -> None:
  """Lets signals end this process again: nothing asks `preempted` any more."""
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  signal.signal(signal.SIGINT, signal.default_int_handler)


def wait(name: str, seconds: int = WEEK) -> None:
  """Returns when all processes have come here; does nothing for one alone.

  Args:
    name: for messages.
    seconds: how long the others may take.
  """
  if several():
    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(
      f'{name} {next(_WAITS)}', timeout=seconds, processes=everyone
    )


def any_of(here: bool) -> bool:
  """Whether it is so in any process; every process must ask."""
  if not several():
    return here
  return bool(multihost_utils.process_allgather(np.int32(here)).any())


def from_primary(value: int) -> int:
  """Returns the value of process 0, in every process."""
  if not several():
    return value
  return int(multihost.broadcast_one_to_all(np.int32(value)))


def refuse_unlike(facts: Mapping[str, str]) -> None:
  """Refuses processes that differ in what must be alike.

  Args:
    facts: what it is ('the config', 'jax') -> its value here, any text.

  Raises:
    UserError: names the processes and what differs between them.
  """
  if not several():
    return
  digest = lambda text: hashlib.sha256(text.encode()).digest()[:8]
  mine = np.stack(
    [np.frombuffer(digest(facts[name]), np.int32) for name in sorted(facts)]
  )
  every = np.asarray(multihost_utils.process_allgather(mine))
  for name, found in zip(sorted(facts), np.moveaxis(every, 1, 0), strict=True):
    unlike = [i for i, value in enumerate(found) if (value != found[0]).any()]
    if unlike:
      raise UserError(
        f'{name} of process {unlike[0]} is not that of process 0 (here, process'
        f' {jax.process_index()}: {facts[name][:80]}); all hosts need the same '
        'code, packages, config and data.'
      )


def whole(x: jax.Array) -> np.ndarray:
  """Returns all of an array, whichever devices and processes hold it.

  Every process must call it for the same arrays in the same order.
  """
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if not (x.is_fully_addressable or x.is_fully_replicated):
    everywhere = NamedSharding(x.sharding.mesh, PartitionSpec())
    x = _identity(everywhere)(x)
  if not x.is_fully_addressable:
    x = x.addressable_data(0)
  return np.asarray(x)


@functools.cache
def _identity(sharding):
  return jax.jit(lambda x: x, out_shardings=sharding)


def own(tree: Any) -> Any:
  """Copies of arrays on this process's first device, for it alone to use."""
  device = jax.local_devices()[0]

  def copy(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = jax.device_put(whole(x), device)
    return (
      jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
      if is_key
      else data
    )

  return jax.tree.map(copy, tree)
