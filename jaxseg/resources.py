"""Whether disk and memory are enough, found out before anything starts."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from jaxseg.errors import UserError

RECORDS = 64 << 20  # bytes of metrics, pictures and the report


class NotEnough(UserError):
  """The disk, the memory or the devices do not suffice."""

  exit_code = 5


def check_disk(
  workdir: str | os.PathLike, needs: Mapping[str, tuple[int, int]]
) -> None:
  """Refuses a workdir whose checkpoints will not fit on its disk.

  Args:
    workdir: exists.
    needs: stage -> (bytes of its state, checkpoints that will be there at once:
      those kept, and the one being written). What is there already counts as
      room.

  Raises:
    NotEnough: names how much is missing, and what asks for it.
  """
  need = RECORDS
  for stage, (size, count) in needs.items():
    need += max(0, size * count - _size(Path(workdir) / stage / 'checkpoints'))
  free = shutil.disk_usage(workdir).free
  if free < need:
    largest = max(needs, key=lambda stage: needs[stage][0] * needs[stage][1])
    size, count = needs[largest]
    raise NotEnough(
      f'--workdir={workdir} has {human(free)} free, expected {human(need)} for '
      f'checkpoints ({largest} alone: {count} of {human(size)}); make room, '
      f'choose another disk, or lower config.{largest}.keep_checkpoints.'
    )


def check_memory(
  sizes: Mapping[str, int], devices: int, limit: int | None = None
) -> None:
  """Refuses a state that the memory cannot even hold.

  Args:
    sizes: stage -> bytes of its state on one device.
    devices: of this host; on CPUs they share the host's memory.
    limit: bytes for all of these, see `memory`; None: unknown, nothing is
      refused.

  Raises:
    NotEnough: names the stage, and what there is.
  """
  if limit is None or not sizes:
    return
  largest = max(sizes, key=sizes.get)
  # The state, and the gradients and values that a step cannot do without.
  need = 3 * sizes[largest] // 2 * devices
  if need > limit:
    raise NotEnough(
      f'stage {largest} needs at least {human(need)} of memory on '
      f'{devices} device{"s" if devices > 1 else ""}, but there are '
      f'{human(limit)}; make its networks narrower, spread it with '
      'config.mesh.model, or use larger devices.'
    )


def memory() -> int | None:
  """Returns the bytes that all local devices may use; None: unknown."""
  devices = jax.local_devices()
  if devices[0].platform != 'cpu':
    stats = devices[0].memory_stats() or {}
    limit = stats.get('bytes_limit')
    return limit and limit * len(devices)
  try:
    lines = Path('/proc/meminfo').read_text().splitlines()
  except OSError:
    return None
  found = dict(line.split(':', 1) for line in lines)
  return min(int(found['MemAvailable'].split()[0]) * 1024, _container())


def _container():
  """Bytes left by the limit of a container or a Slurm job; else infinite."""
  folder = Path('/sys/fs/cgroup')
  try:
    limit = int((folder / 'memory.max').read_text())
    return limit - int((folder / 'memory.current').read_text())
  except (OSError, ValueError):
    return float('inf')


def human(size: float) -> str:
  """Returns e.g. '312 MB' (10^6 bytes)."""
  for unit in ('bytes', 'kB', 'MB', 'GB'):
    if abs(size) < 1000:
      return f'{size:.3g} {unit}' if size < 100 else f'{size:.0f} {unit}'
    size /= 1000
  return f'{size:.3g} TB'


def _size(folder):
  return sum(p.stat().st_size for p in folder.rglob('*') if p.is_file())
