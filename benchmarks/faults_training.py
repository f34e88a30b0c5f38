"""Faults of trainings: signals, lost and stuck processes, nan, files gone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from benchmarks import faults_config
from jaxseg import workdir as workdirs
from jaxseg.data.formats.images import write_atomically
from launch import commands

ROOT = Path(__file__).parents[1]
MINUTES = 60.0
STEPS = 24


class Training:
  """A training in a process of its own, in a new folder of squares."""

  def __init__(self, folder: Path, *more: str, processes: int = 1, run='run'):
    if not (folder / 'data').exists():
      faults_config.write_squares(folder / 'data')
    self.workdir = folder / run
    start = [sys.executable, '-m']
    command = [
      *start, 'jaxseg.train',
      f'--config=benchmarks/faults_config.py:{folder / "data"}',
      f'--workdir={self.workdir}', '--noevaluate', *more,
    ]  # fmt: skip
    if processes > 1:
      launcher = [f'--processes={processes}', '--grace=60', '--']
      command = [*start, 'launch.local', *launcher, *command]
    env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
    self.log = folder / f'log_{len(list(folder.glob("log_*")))}.txt'
    with self.log.open('w') as log:
      self.process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT
      )

  def wait(self, seconds: float = 10 * MINUTES) -> int:
    """Returns the exit code."""
    return self.process.wait(seconds)

  def reach(self, step: int, seconds: float = 5 * MINUTES) -> None:
    """Waits for the checkpoint of a step."""
    path = self.workdir / 'unet' / 'checkpoints' / str(step)
    end = time.monotonic() + seconds
    while not path.exists():
      assert self.process.poll() is None, self.said()[-2000:]
      assert time.monotonic() < end, f'no {path}'
      time.sleep(0.005)

  def pid(self, index: int) -> int:
    """The number of a process that the launcher started."""
    while True:
      for line in self.said().splitlines():
        if line.startswith(f'[launch] process {index} is pid '):
          return int(line.split()[-1])
      time.sleep(0.01)

  def said(self) -> str:
    """All that was printed."""
    return self.log.read_text()

  def losses(self) -> list[dict]:
    """The lines of metrics.jsonl."""
    lines = (self.workdir / 'unet' / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]

  def state(self) -> list[np.ndarray]:
    """All numbers of the newest checkpoint."""
    state = workdirs.load(self.workdir).stages['unet'].state
    state = state.replace(rng=jax.random.key_data(state.rng))
    return [np.asarray(x) for x in jax.tree.leaves(state)]


def same(one: Training, other: Training) -> bool:
  """Whether two trainings ended with the same bits and records."""
  pairs = zip(one.state(), other.state(), strict=True)
  return one.losses() == other.losses() and all(
    a.tobytes() == b.tobytes() for a, b in pairs
  )


def straight(folder: Path, *more: str, **kwargs) -> Training:
  """A training that nothing disturbs."""
  training = Training(folder, *more, run='straight', **kwargs)
  assert training.wait() == 0, training.said()[-2000:]
  return training


def killed(folder: Path, trials: int) -> str:
  """kill -9 at random moments until the training is done."""
  more = ('--config.unet.total_steps=2000', '--config.unet.checkpoint_every=10')
  whole, draw, times = straight(folder, *more), random.Random(1), 0
  while True:
    training = Training(folder, *more)
    if times < 10:
      time.sleep(draw.uniform(3.0, 7.0))
      training.process.send_signal(signal.SIGKILL)
    code = training.wait()
    if code == 0:
      assert same(whole, training)
      return f'{times} kills; the same bits as without'
    assert code == -signal.SIGKILL, training.said()[-2000:]
    times += 1


def preempted(folder: Path, trials: int) -> str:
  """SIGTERM 20 times, each time started again, as schedulers do."""
  field = '--config.unet.'
  more = (f'{field}total_steps=2000', f'{field}checkpoint_every=9999')
  whole, draw, times, longest = straight(folder, *more), random.Random(2), 0, 0
  while True:
    training, start = Training(folder, *more), 0.0
    done = len(training.losses()) if times else 0
    wanted = done + draw.randrange(1, 40)
    path = training.workdir / 'unet' / 'metrics.jsonl'
    while times < 20 and training.process.poll() is None:
      if path.exists() and path.read_text().count('\n') >= wanted:
        start = time.monotonic()
        training.process.send_signal(signal.SIGTERM)
        break
      time.sleep(0.005)
    code = training.wait()
    if code == 0:
      assert same(whole, training)
      return f'{times} signals; exit 75, at most {longest:.1f} s; the same bits'
    assert code == 75, training.said()[-2000:]
    longest = max(longest, time.monotonic() - start)
    times += 1


def one_of_two_killed(folder: Path, trials: int) -> str:
  """SIGKILL to one of two processes; then four go on."""
  whole = straight(folder)
  training = Training(folder, processes=2)
  training.reach(8)
  os.kill(training.pid(1), signal.SIGKILL)
  start = time.monotonic()
  assert commands.may_restart(training.wait())
  seconds = time.monotonic() - start
  training = Training(folder, processes=4)
  assert training.wait() == 0, training.said()[-2000:]
  for a, b in zip(whole.losses(), training.losses(), strict=True):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=2e-3)
  return f'the other ended after {seconds:.1f} s; four processes: same losses'


def one_of_two_signalled(folder: Path, trials: int) -> str:
  """SIGTERM to one of two processes; then two go on."""
  whole = straight(folder, processes=2)
  training = Training(folder, processes=2)
  training.reach(4)
  os.kill(training.pid(1), signal.SIGTERM)
  assert training.wait() == 75, training.said()[-2000:]
  training = Training(folder, processes=2)
  assert training.wait() == 0 and same(whole, training)
  return 'both saved the same step, exit 75; the same bits'


def asleep(folder: Path, trials: int) -> str:
  """One of two processes is alive and does nothing."""
  training = Training(
    folder, '--config.hang_timeout=5', '--config.unet.total_steps=100000',
    processes=2,
  )  # fmt: skip
  training.reach(8)
  victim = training.pid(1)
  os.kill(victim, signal.SIGSTOP)
  stacks, end = training.workdir / 'stuck_0.txt', time.monotonic() + 120
  while not stacks.exists() and time.monotonic() < end:
    time.sleep(0.1)
  os.kill(victim, signal.SIGCONT)
  assert commands.may_restart(training.wait())
  assert 'hang_timeout' in training.said() and 'loop.py' in stacks.read_text()
  return 'the other ended itself with the stacks of its threads'


def two_in_one_workdir(folder: Path, trials: int) -> str:
  """A second training of the same workdir."""
  first = Training(folder, '--config.unet.total_steps=100000')
  first.reach(4)
  second = Training(folder, '--config.unet.total_steps=100000')
  assert second.wait() == 5 and first.process.poll() is None
  assert f'in use by process {first.process.pid}' in second.said()
  first.process.send_signal(signal.SIGTERM)
  assert first.wait() == 75
  return 'the second was refused with the number of the first'


def file_vanishes(folder: Path, trials: int) -> str:
  """A labelled image is deleted during training."""
  training = Training(
    folder, '--config.data.cache=False', '--config.unet.total_steps=100000'
  )
  training.reach(4)
  shutil.rmtree(folder / 'data' / 'images')
  assert training.wait() == 3, training.said()[-2000:]
  assert 'Traceback' not in training.said()
  last = training.losses()[-1]['step']
  kept = workdirs.load(training.workdir).stages['unet'].state.step
  assert int(kept) >= last, (kept, last)
  return 'ended with the name of the file; all steps were saved first'


def data_changed(folder: Path, trials: int) -> str:
  """An image is added between two runs."""
  training = Training(folder)
  training.reach(4)
  training.process.send_signal(signal.SIGTERM)
  training.wait()
  Image.new('L', (32, 32), 7).save(folder / 'data' / 'images' / '99.png')
  training = Training(folder)
  assert training.wait() == 2 and '99' in training.said(), training.said()
  return 'refused: the splits are no longer those of the workdir'


def config_changed(folder: Path, trials: int) -> str:
  """A setting is changed between two runs."""
  training = straight(folder)
  shutil.move(training.workdir, folder / 'run')
  training = Training(folder, '--config.unet.args.optimizer.lr=0.5')
  assert training.wait() == 2 and 'optimizer.lr was' in training.said()
  return 'refused with the name of the field, its old and new value'


def damaged_between(folder: Path, trials: int) -> str:
  """The newest checkpoint is damaged between two runs."""
  whole = straight(folder)
  shutil.copytree(whole.workdir, folder / 'run')
  newest = folder / 'run' / 'unet' / 'checkpoints' / str(STEPS)
  path = max(newest.rglob('*'), key=lambda p: p.is_file() * p.stat().st_size)
  path.write_bytes(path.read_bytes()[:-5])
  training = Training(folder)
  assert training.wait() == 0 and str(path) in training.said()
  assert same(whole, training)
  return 'the file was named, the step before used; in the end the same bits'


def stdout_closed(folder: Path, trials: int) -> str:
  """Nobody reads what is printed any more (a closed terminal)."""
  faults_config.write_squares(folder / 'data')
  command = (
    f'{sys.executable} -m jaxseg.train --noevaluate '
    f'--config=benchmarks/faults_config.py:{folder / "data"} '
    f'--workdir={folder / "run"} | head -n 2'
  )
  env = dict(os.environ, JAX_PLATFORMS='cpu')
  subprocess.run(command, shell=True, cwd=ROOT, env=env, check=True)
  end = time.monotonic() + MINUTES
  while time.monotonic() < end:
    path = folder / 'run' / 'unet' / 'checkpoints' / str(STEPS)
    if path.exists():
      return 'the training went on to its end'
    time.sleep(0.1)
  raise AssertionError('the training ended early')


def damaged_config(folder: Path, trials: int) -> str:
  """The workdir's records are half written by another program."""
  training = straight(folder)
  path = training.workdir / 'unet' / 'metrics.jsonl'
  expected = path.read_bytes()
  shutil.rmtree(training.workdir / 'unet' / 'checkpoints' / str(STEPS))
  path.write_bytes(expected[: len(expected) * 9 // 10] + b'{"step": 2')
  shutil.move(training.workdir, folder / 'run')
  training = Training(folder)
  assert training.wait() == 0
  steps = [line['step'] for line in training.losses()]
  assert steps[-4:] == list(range(STEPS - 3, STEPS + 1))
  return 'lines cut short were dropped, and written anew'


def coordinator_gone(folder: Path, trials: int) -> str:
  """A process finds no coordinator."""
  script = (
    'from jaxseg import hosts; from jaxseg.errors import friendly\n'
    'hosts.START_TIMEOUT = 5\n'
    'with friendly(): hosts.start("localhost:9", 2, 1)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', script], cwd=ROOT, capture_output=True, text=True,
    env=dict(os.environ, JAX_PLATFORMS='cpu'), check=False, timeout=120,
  )  # fmt: skip
  write_atomically(folder / 'log.txt', done.stderr.encode())
  assert done.returncode not in (0, 75), done.returncode
  return f'ended with code {done.returncode} after the time allowed'


CASES = {
  'killed': ('kill -9 of a training, 10 times', killed),
  'preempted': ('SIGTERM to a training, 20 times', preempted),
  'one_of_two_killed': ('one of two processes killed', one_of_two_killed),
  'one_of_two_signalled': ('SIGTERM to one of two', one_of_two_signalled),
  'asleep': ('a process alive but stuck', asleep),
  'coordinator_gone': ('coordinator cannot be reached', coordinator_gone),
  'two_in_one_workdir': ('two runs in one workdir', two_in_one_workdir),
  'file_vanishes': ('data file vanishes', file_vanishes),
  'data_changed': ('data changed before resuming', data_changed),
  'config_changed': ('config changed before resuming', config_changed),
  'damaged_between': ('newest checkpoint damaged', damaged_between),
  'damaged_records': ('records cut short', damaged_config),
  'stdout_closed': ('terminal closed', stdout_closed),
}
