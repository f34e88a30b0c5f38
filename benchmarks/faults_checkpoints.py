"""Faults of checkpoints: damage, kills while saving, full and slow disks."""

import contextlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg import checkpoints, manifest, method, parallel
from jaxseg.checkpoints import CheckpointError, Checkpoints

LEAVES = 24


def state(step: int, megabytes: float = 0.5) -> method.TrainState:
  """Normal random numbers that follow from the step."""
  rng = np.random.default_rng(step)
  size = int(megabytes * 1e6 / 4 / 3 / LEAVES)  # parameters and two moments
  params = {
    f'layer_{i}': jnp.asarray(rng.standard_normal(size), jnp.float32)
    for i in range(LEAVES)
  }
  made = method.new_state(
    jax.random.key(step), {'g': params}, {'g': optax.adam(1e-3)}
  )
  moments = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype),
    made.opt_state,
  )
  return made.replace(step=jnp.asarray(step, jnp.int32), opt_state=moments)


def like(megabytes: float = 0.5) -> method.TrainState:
  """What `restore` wants."""
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0, megabytes)
  )
  return checkpoints.abstract(
    shapes, parallel.replicated(parallel.make_mesh(1))
  )


def save(
  folder: Path, steps: range | list[int], megabytes: float = 0.5
) -> None:
  """Saves these steps."""
  with Checkpoints(folder) as ckpts:
    for step in steps:
      assert ckpts.save(state(step, megabytes), {'next_step': step})
      assert ckpts.wait()


def is_right(found: tuple, megabytes: float = 0.5) -> bool:
  """Whether what was restored is what was saved under that step."""
  restored, data = found
  expected = manifest.of_arrays(state(data['next_step'], megabytes))
  return not manifest.changed_arrays(restored, expected)


def files(folder: Path) -> list[Path]:
  """All files below a folder, in order."""
  return sorted(p for p in folder.rglob('*') if p.is_file())


@contextlib.contextmanager
def quiet():
  """Without what `jaxseg` says on the way."""
  with open(os.devnull, 'w') as nothing, contextlib.redirect_stdout(nothing):
    yield


def flips(folder: Path, trials: int) -> str:
  """One bit of one file of the newest checkpoint, files by their size."""
  save(folder / 'good', [1, 2])
  draw, wanted = random.Random(0), like()
  paths = files(folder / 'good' / '2')
  sizes = [p.stat().st_size for p in paths]
  fell_back = harmless = 0
  for trial in range(trials or 1000):
    copy = shutil.copytree(folder / 'good', folder / 'copy' / 'run')
    path = copy / draw.choices(paths, sizes)[0].relative_to(folder / 'good')
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with quiet(), Checkpoints(copy) as ckpts:
      found = ckpts.restore(wanted)
    assert is_right(found), f'flip {trial} in {path} was silent'
    fell_back += found[1]['next_step'] == 1
    harmless += found[1]['next_step'] == 2
    shutil.rmtree(copy.parent)
  return (
    f'0 silent of {trials or 1000}; {fell_back} fell back to the step before, '
    f'{harmless} changed nothing that is read'
  )


def damage(folder: Path, trials: int) -> str:
  """Every file of the newest checkpoint truncated, zeroed, deleted in turn."""
  save(folder / 'good', [1, 2])
  wanted, fell_back, count = like(), 0, 0
  for path in files(folder / 'good' / '2'):
    for kind in ('truncated', 'zeroed', 'deleted'):
      copy = shutil.copytree(folder / 'good', folder / 'copy' / 'run')
      target = copy / path.relative_to(folder / 'good')
      content = target.read_bytes()
      if kind == 'deleted':
        target.unlink()
      else:
        half = content[: len(content) // 2]
        target.write_bytes(half if kind == 'truncated' else bytes(len(content)))
      with quiet(), Checkpoints(copy) as ckpts:
        found = ckpts.restore(wanted)
      assert is_right(found), f'{path} {kind}'
      fell_back += found[1]['next_step'] == 1
      count += 1
      shutil.rmtree(copy.parent)
  return f'{count} damages, 0 silent; {fell_back} fell back'


def all_damaged(folder: Path, trials: int) -> str:
  """No checkpoint is intact."""
  save(folder / 'good', [1, 2])
  for step in '12':
    max(
      files(folder / 'good' / step), key=lambda p: p.stat().st_size
    ).write_bytes(b'damaged')
  before = files(folder / 'good')
  with quiet(), Checkpoints(folder / 'good') as ckpts:
    try:
      ckpts.restore(like())
    except CheckpointError as error:
      assert error.exit_code == 4 and files(folder / 'good') == before
      return 'told what is wrong with each; nothing deleted, no fresh start'
  raise AssertionError('it restored something')


SAVER = """
import itertools, sys
from pathlib import Path
from benchmarks import faults_checkpoints as f
from jaxseg.checkpoints import Checkpoints
folder = Path(sys.argv[1])
with Checkpoints(folder) as ckpts:
  first = 1
  if ckpts.steps():
    found = ckpts.restore(f.like(16))
    assert f.is_right(found, 16), 'wrong numbers were restored'
    assert not list(folder.glob('*tmp*')), 'an unfinished save was left'
    first += found[1]['next_step']
  print('saving', flush=True)
  for step in itertools.count(first):
    ckpts.save(f.state(step, 16), {'next_step': step})
"""


def kills(folder: Path, trials: int) -> str:
  """SIGKILL at a random moment of saving again and again (16 MB)."""
  draw, count, lost, unfinished = random.Random(0), trials or 100, 0, 0
  for trial in range(count):
    process = subprocess.Popen(
      [sys.executable, '-c', SAVER, str(folder / 'run')],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    assert line == 'saving\n', process.stderr.read()[-2000:]
    time.sleep(draw.uniform(0.0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    unfinished += bool(list((folder / 'run').glob('*tmp*')))
    with quiet(), Checkpoints(folder / 'run', read_only=True) as ckpts:
      steps = ckpts.steps()
      if steps:
        try:
          found = ckpts.restore(like(16), steps[-1])
          assert is_right(found, 16), f'kill {trial}: other numbers'
        except CheckpointError:
          lost += 1
  assert not lost, f'{lost} of {count} newest checkpoints could not be read'
  return (
    f'{count} of {count} newest checkpoints whole; {unfinished} kills left an '
    'unfinished one, cleared by the next start'
  )


def cost(folder: Path, trials: int) -> str:
  """Saving with checksums beside saving without, in turns (300 MB)."""
  megabytes, times = 300, {True: [], False: []}
  whole = state(1, megabytes)
  of_arrays, write_files = manifest.of_arrays, manifest.write_files
  try:
    for turn in range(20):
      with_sums = bool(turn % 2)
      if not with_sums:
        manifest.of_arrays = lambda tree: {}
        manifest.write_files = lambda folder: None
      with Checkpoints(folder / str(turn)) as ckpts:
        start = time.perf_counter()
        ckpts.save(whole, {'next_step': 1})
        ckpts.wait()
        times[with_sums].append(time.perf_counter() - start)
      manifest.of_arrays, manifest.write_files = of_arrays, write_files
      shutil.rmtree(folder / str(turn))
  finally:
    manifest.of_arrays, manifest.write_files = of_arrays, write_files
  waits = []
  for _ in range(5):
    start = time.perf_counter()
    manifest.of_arrays(whole)
    waits.append(time.perf_counter() - start)
  arrays = statistics.median(waits)
  with_sums, without = (statistics.median(times[x][1:]) for x in (True, False))
  return (
    f'{with_sums / without - 1:+.1%} time to a finished checkpoint (medians of '
    f'10 in turns); the training step waits {arrays / without:.1%} of it'
  )


def full_disk(folder: Path, trials: int) -> str:
  """A disk of 12 MB fills up while saving, and later has room again."""
  disk = folder / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    return 'skipped: a disk can only be mounted by root'
  try:
    save(disk / 'run', [1], 2)
    free = shutil.disk_usage(disk).free
    (disk / 'other').write_bytes(bytes(free - 500_000))
    with quiet(), Checkpoints(disk / 'run') as ckpts:
      for step in (2, 3, 4):
        ckpts.save(state(step, 2), {'next_step': step})
        assert not ckpts.wait() and ckpts.steps() == [1], step
      assert is_right(ckpts.restore(like(2)), 2)
      (disk / 'other').unlink()
      assert ckpts.save(state(5, 2), {'next_step': 5}) and ckpts.wait()
      assert ckpts.restore(like(2))[1] == {'next_step': 5}
  finally:
    subprocess.run(['umount', '-l', str(disk)], check=False)
  return '3 saves failed, the old checkpoint stayed, saving resumed'


def read_only_disk(folder: Path, trials: int) -> str:
  """The disk becomes read-only while training, and writable again."""
  disk = folder / 'disk'
  disk.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=20m', 'tmpfs', str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    return 'skipped: a disk can only be mounted by root'
  remount = lambda how: subprocess.run(
    ['mount', '-o', f'remount,{how}', str(disk)], check=True
  )
  try:
    save(disk / 'run', [1], 2)
    with quiet(), Checkpoints(disk / 'run') as ckpts:
      remount('ro')
      ckpts.save(state(2, 2), {'next_step': 2})
      assert not ckpts.wait() and ckpts.unsaved
      assert is_right(ckpts.restore(like(2)), 2)
      remount('rw')
      assert ckpts.save(state(3, 2), {'next_step': 3}) and ckpts.wait()
      assert ckpts.restore(like(2))[1] == {'next_step': 3}
  finally:
    subprocess.run(['umount', '-l', str(disk)], check=False)
  return (
    'the save failed with a line, the old checkpoint stayed, saving resumed'
  )


def clock(folder: Path, trials: int) -> str:
  """The clock jumps back: newer checkpoints look older."""
  save(folder / 'run', [1, 2])
  for path in [folder / 'run' / '2', *files(folder / 'run' / '2')]:
    os.utime(path, (1e9, 1e9))
  with Checkpoints(folder / 'run') as ckpts:
    assert ckpts.restore(like())[1] == {'next_step': 2}
    assert ckpts.save(state(3), {'next_step': 3}) and ckpts.wait()
    assert ckpts.steps() == [2, 3]
  return 'the newest by step was used and kept'


def other_model(folder: Path, trials: int) -> str:
  """The checkpoint is of networks of another size."""
  save(folder / 'run', [1])
  with Checkpoints(folder / 'run') as ckpts:
    try:
      ckpts.restore(like(0.7))
    except CheckpointError as error:
      assert 'config' in str(error) and ckpts.steps() == [1]
      return 'refused in a sentence; nothing deleted'
  raise AssertionError('it restored something')


CASES = {
  'flips': ('one bit of a checkpoint flipped', flips),
  'damage': ('a file truncated, zeroed, deleted', damage),
  'all_damaged': ('every checkpoint damaged', all_damaged),
  'kills': ('kill -9 while saving', kills),
  'full_disk': ('disk full while saving', full_disk),
  'read_only_disk': ('disk read-only while saving', read_only_disk),
  'clock': ('clock jumps back', clock),
  'other_model': ('checkpoint of another model', other_model),
  'cost': ('cost of the checksums', cost),
}
