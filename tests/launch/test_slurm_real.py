"""A real Slurm: train, SIGTERM, requeue, resume; a killed task; scancel.

launch/README.md says how to run it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

if os.environ.get('JAXSEG_TEST_SLURM') != '1':
  pytest.skip(
    'needs a Slurm, see launch/README.md; JAXSEG_TEST_SLURM is not 1',
    allow_module_level=True,
  )
if not shutil.which('sbatch'):
  pytest.skip('sbatch is not installed', allow_module_level=True)

STEPS = 150
# Hosts and tests may be busy; nothing here is about speed.
PATIENCE = 600


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  """16 grey squares on darker noise with their labels."""
  path = tmp_path_factory.mktemp('squares')
  (path / 'images').mkdir()
  (path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for i in range(16):
    image = rng.integers(0, 80, (32, 32), np.uint8)
    top, left = rng.integers(2, 16, 2)
    label = np.zeros((32, 32), np.uint8)
    label[top : top + 12, left : left + 12] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(path / 'images' / f'{i:02d}.png')
    Image.fromarray(label).save(path / 'labels' / f'{i:02d}.png')
  return path


def training(images, workdir):
  """Arguments of a U-Net's training that a test can interrupt."""
  return [
    f'--config=tests/tiny_config.py:{images}', f'--workdir={workdir}',
    "--config.stages=('unet',)", f'--config.unet.total_steps={STEPS}',
    '--config.unet.checkpoint_every=25', '--config.unet.picture_every=0',
    '--config.mesh.data=-1', '--noevaluate',
  ]  # fmt: skip


class Job:
  """A training in the queue, in two tasks of one device each."""

  def __init__(self, root, images, workdir):
    nodes = len(call('sinfo', '-h', '-N', '-o', '%N').split())
    tasks = ['--nodes=2'] if nodes > 1 else ['--tasks_per_node=2']
    self.workdir = workdir
    self.log = workdir.with_suffix('.log')
    workdir.mkdir()
    done = subprocess.run(
      [sys.executable, '-m', 'launch.slurm.submit', *tasks,
       f'--python={sys.executable}', '--time=30', '--sbatch=--parsable',
       f'--sbatch=--output={self.log}', '--', *training(images, workdir)],
      cwd=root, env=one_device(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    self.id = done.stdout.strip()

  def show(self, field):
    shown = call('scontrol', 'show', 'job', self.id)
    return re.search(rf'\b{field}=(\S+)', shown)[1]

  def steps(self):
    """The steps that were recorded, in this order."""
    try:
      text = (self.workdir / 'unet/metrics.jsonl').read_text()
    except FileNotFoundError:
      return []
    return [json.loads(line)['step'] for line in text.splitlines()]

  def wait(self, what, true):
    """Waits for it, or fails with the log."""
    end = time.monotonic() + PATIENCE
    while not true():
      assert self.show('JobState') not in ('FAILED', 'TIMEOUT'), self.text()
      assert time.monotonic() < end, f'not {what}:\n{self.text()}'
      time.sleep(0.2)

  def wait_for_step(self, step):
    self.wait(f'at step {step}', lambda: max(self.steps(), default=0) >= step)

  def wait_for(self, state):
    self.wait(state, lambda: self.show('JobState') == state)

  def text(self):
    return self.log.read_text() if self.log.exists() else ''


def call(*command):
  return subprocess.run(command, capture_output=True, text=True).stdout


def one_device():
  flags = os.environ.get('XLA_FLAGS', '')
  flags = re.sub(r'--xla_force_host_platform_device_count=\d+', '', flags)
  return os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}


@pytest.fixture
def job(root, images, tmp_path):
  job = Job(root, images, tmp_path / 'run')
  yield job
  call('scancel', job.id)


@pytest.fixture(scope='module')
def straight(root, images, tmp_path_factory):
  """Records of the same training, two processes, never interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  subprocess.run(
    [sys.executable, '-m', 'launch.local', '--processes=2', '--',
     sys.executable, '-m', 'jaxseg.train', *training(images, workdir)],
    cwd=root, env=one_device(), check=True, timeout=PATIENCE,
  )  # fmt: skip
  return (workdir / 'unet/metrics.jsonl').read_text()


def assert_went_on(job, straight, restarts):
  """It is done, and its records are those of the uninterrupted training."""
  job.wait_for('COMPLETED')
  assert job.show('ExitCode') == '0:0'
  assert job.show('Restarts') == str(restarts)
  starts = re.findall(r'continues from step (\d+)', job.text())
  assert len(starts) == restarts and int(starts[0]) >= 25
  assert job.steps() == list(range(1, STEPS + 1))
  assert (job.workdir / 'unet/metrics.jsonl').read_text() == straight


def test_saved_requeued_and_went_on(job, straight):
  job.wait_for_step(60)
  call('scancel', '--signal=TERM', job.id)
  job.wait('requeued', lambda: 'exit code 75, restart 1: saved' in job.text())
  assert_went_on(job, straight, restarts=1)


def test_goes_on_after_a_killed_task(job, straight):
  job.wait_for_step(60)
  own = [f'--workdir={job.workdir}', '--noevaluate']
  killed = 0
  for pid in filter(str.isdigit, os.listdir('/proc')):
    with open(f'/proc/{pid}/cmdline', 'rb') as f:
      words = f.read().decode().split('\0')
    if words[0] == sys.executable and set(own) <= set(words):
      with open(f'/proc/{pid}/environ', 'rb') as f:
        if 'SLURM_PROCID=1' in f.read().decode().split('\0'):
          os.kill(int(pid), 9)
          killed += 1
  assert killed == 1
  job.wait('requeued', lambda: 'restart 1: a process was lost' in job.text())
  assert_went_on(job, straight, restarts=1)


def test_cancelled_for_good(job):
  job.wait_for_step(60)
  call('scancel', job.id)
  job.wait_for('CANCELLED')
  job.wait('ended', lambda: 'train.sbatch: cancelled, exit' in job.text())
  saved = max(
    int(p.name) for p in (job.workdir / 'unet').rglob('*') if p.name.isdigit()
  )
  assert saved >= max(job.steps())
  time.sleep(8)  # a requeued job would start after five
  assert job.show('JobState') == 'CANCELLED'
