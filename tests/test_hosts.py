"""Several processes train together, on one machine: started, lost, resumed."""

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import faults_config
from jaxseg import hosts, parallel, train
from jaxseg import workdir as workdirs
from jaxseg.errors import UserError
from jaxseg.resources import NotEnough
from launch import commands

ROOT = Path(__file__).parents[1]
STEPS = 24


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """12 bright squares on noise, with labels."""
  path = tmp_path_factory.mktemp('bright') / 'data'
  faults_config.write_squares(path)
  return path


def command(folder, workdir, processes, *more):
  return [
    sys.executable, '-m', 'launch.local', f'--processes={processes}',
    '--grace=60', '--', sys.executable, '-m', 'jaxseg.train',
    f'--config=benchmarks/faults_config.py:{folder}', f'--workdir={workdir}',
    '--noevaluate', *more,
  ]  # fmt: skip


def environment():
  flags = os.environ['XLA_FLAGS'].split()
  one = [f for f in flags if 'force_host_platform_device_count' not in f]
  return os.environ | {'XLA_FLAGS': ' '.join(one)}


def launch(*args):
  return subprocess.Popen(
    command(*args), cwd=ROOT, env=environment(), text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip


def finished(process, seconds=600):
  output, _ = process.communicate(timeout=seconds)
  return process.returncode, output


def pids(process, count):
  """The processes' own numbers, as the launcher tells them."""
  found = []
  while len(found) < count:
    line = process.stdout.readline()
    assert line, 'the launcher ended'
    if line.startswith('[launch] process') and ' is pid ' in line:
      found.append(int(line.split()[-1]))
  return found


def wait_for(path, process, seconds=300):
  end = time.monotonic() + seconds
  while not path.exists():
    assert process.poll() is None, process.stdout.read()
    assert time.monotonic() < end, f'{path} did not appear'
    time.sleep(0.01)


def losses(workdir):
  lines = (workdir / 'unet' / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def assert_alike(one, other):
  one, other = losses(one), losses(other)
  assert [x['step'] for x in one] == list(range(1, STEPS + 1))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(
      list(a.values()), list(b.values()), rtol=2e-3, err_msg=str(a['step'])
    )


@pytest.fixture(scope='module')
def alone(folder, tmp_path_factory):
  """A workdir that one process trained."""
  workdir = tmp_path_factory.mktemp('alone')
  c = faults_config.get_config(str(folder))
  c.mesh.data = 1
  train.train(c, str(workdir), evaluate_after=False)
  return workdir


@pytest.fixture(scope='module')
def two(folder, tmp_path_factory):
  """A workdir that two processes trained, and what they said."""
  workdir = tmp_path_factory.mktemp('two')
  code, output = finished(launch(folder, workdir, 2))
  assert code == 0, output
  return workdir, output


def test_two_processes_do_what_one_does(alone, two):
  workdir, output = two
  assert_alike(alone, workdir)
  assert '2 x cpu in 2 processes' in output
  lines = [x for x in output.splitlines() if f'{STEPS}/{STEPS}' in x]
  assert len(lines) == 1 and lines[0].startswith('[0] ')
  states = [workdirs.load(w).stages['unet'].state for w in (alone, workdir)]
  assert [int(state.step) for state in states] == [STEPS, STEPS]


def test_one_is_killed_and_four_go_on(alone, folder, tmp_path):
  process = launch(folder, tmp_path, 2)
  victim = pids(process, 2)[1]
  wait_for(tmp_path / 'unet' / 'checkpoints' / '8', process)
  os.kill(victim, signal.SIGKILL)
  code, output = finished(process)
  assert code != 75 and commands.may_restart(code), output
  assert losses(tmp_path)[-1]['step'] < STEPS
  code, output = finished(launch(folder, tmp_path, 4))
  assert code == 0, output
  assert 'continues from step' in output
  assert_alike(alone, tmp_path)


def test_a_signal_to_one_saves_and_the_rest_is_bit_for_bit(
  two, folder, tmp_path
):
  process = launch(folder, tmp_path, 2)
  one = pids(process, 2)[1]
  wait_for(tmp_path / 'unet' / 'checkpoints' / '4', process)
  os.kill(one, signal.SIGTERM)
  code, output = finished(process)
  assert code == 75, output
  assert 'saved. Run the same command again' in output
  assert losses(tmp_path)[-1]['step'] < STEPS
  # Before the first step of a run that was continued, too.
  process = launch(folder, tmp_path, 2)
  one, said = pids(process, 2)[0], ''
  while 'continues from' not in said:
    said = process.stdout.readline()
    assert said
  os.kill(one, signal.SIGTERM)
  code, output = finished(process)
  assert code == 75, output
  code, output = finished(launch(folder, tmp_path, 2))
  assert code == 0, output
  assert losses(tmp_path) == losses(two[0])


def test_a_process_that_sleeps_does_not_hold_the_others_for_ever(
  folder, tmp_path
):
  process = launch(folder, tmp_path, 2, '--config.hang_timeout=4',
                   '--config.unet.total_steps=100000')  # fmt: skip
  one = pids(process, 2)[1]
  wait_for(tmp_path / 'unet' / 'checkpoints' / '4', process)
  os.kill(one, signal.SIGSTOP)
  end = time.monotonic() + 120
  stacks = tmp_path / 'stuck_0.txt'
  while not stacks.exists() and time.monotonic() < end:
    time.sleep(0.1)
  os.kill(one, signal.SIGCONT)
  code, output = finished(process)
  assert commands.may_restart(code), output
  assert 'config.hang_timeout' in output
  assert 'loop.py' in stacks.read_text()


def test_processes_that_differ_are_refused(folder, tmp_path):
  script = (
    'import sys; from absl import app; from jaxseg import hosts\n'
    'index = int(sys.argv[-1].split("=")[1])\n'
    'address = sys.argv[1].split("=")[1]\n'
    'hosts.start(address, 2, index)\n'
    'with hosts.leaving_together():\n'
    '  hosts.refuse_unlike({"jax": "1", "the config": str(index)})\n'
  )
  done = subprocess.run(
    [sys.executable, '-m', 'launch.local', '--processes=2', '--',
     sys.executable, '-c', script],
    cwd=ROOT, env=environment(), text=True, capture_output=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2, done.stdout
  told = done.stdout + done.stderr
  assert 'the config of process 1 is not that of process 0' in told


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('host:1', 0, -1), 'give all three'),
    (('', 2, 0), 'give all three'),
    (('host:1', 2, 2), 'process_id is 2, must be below'),
  ],
)
def test_flags_that_do_not_go_together(arguments, message):
  with pytest.raises(UserError, match=message):
    hosts.start(*arguments)


def test_one_process_needs_no_others():
  hosts.start()
  hosts.start('nowhere:1', 1, 0)
  assert not hosts.several() and hosts.primary()
  assert hosts.from_primary(5) == 5
  hosts.wait('nothing')
  hosts.refuse_unlike({'jax': '1'})


@pytest.mark.parametrize(
  ('processes', 'model', 'shares'),
  [
    # The process of each of 8 devices, in order.
    ([0, 0, 0, 0, 1, 1, 1, 1], 1, [(0, 2), (1, 2)]),
    ([0, 0, 0, 0, 1, 1, 1, 1], 4, [(0, 2), (1, 2)]),
    ([0, 0, 1, 1, 2, 2, 3, 3], 4, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ([0, 0, 1, 1, 2, 2, 3, 3], 8, [(0, 1)] * 4),
    ([0, 1, 0, 1, 0, 1, 0, 1], 1, None),
    ([0, 0, 0, 1, 1, 1, 1, 1], 2, None),
  ],
)
def test_processes_read_what_their_devices_need(
  monkeypatch, processes, model, shares
):
  devices = [types.SimpleNamespace(process_index=i) for i in processes]
  mesh = types.SimpleNamespace(
    devices=np.asarray(devices).reshape(-1, model), shape={'model': model}
  )
  found = []
  for i in sorted(set(processes)):
    monkeypatch.setattr(parallel.jax, 'process_index', lambda i=i: i)
    try:
      found.append(parallel.share(mesh))
    except UserError as error:
      found.append(str(error))
  if shares:
    assert found == shares
  else:
    assert any('config.mesh.model is' in str(x) for x in found)


@pytest.mark.parametrize(
  ('count', 'text', 'kind', 'code'),
  [
    (1, 'RESOURCE_EXHAUSTED: 3 GB', NotEnough, 5),
    (2, 'RESOURCE_EXHAUSTED: 3 GB', NotEnough, 5),
    (2, 'UNKNOWN: Gloo: connection closed', hosts.PeerLost, 7),
    (2, 'INVALID_ARGUMENT: shapes', jax.errors.JaxRuntimeError, None),
    (1, 'UNKNOWN: anything', jax.errors.JaxRuntimeError, None),
  ],
)
def test_errors_of_devices_are_understood(monkeypatch, count, text, kind, code):
  monkeypatch.setattr(hosts.jax, 'process_count', lambda: count)
  found = hosts._understood(jax.errors.JaxRuntimeError(text))
  assert type(found) is kind
  assert code is None or found.exit_code == code
