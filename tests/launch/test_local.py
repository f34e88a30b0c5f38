"""The launcher of one machine: exit codes, signals, restarts, no orphans."""

import os
import re
import signal
import sys
import time

import pytest

# Stub programs; ME is the process's number.
HEAD = """
import os, signal, subprocess, sys, time
flags = dict(a.lstrip('-').split('=') for a in sys.argv[1:])
ME = int(flags['process_id'])
"""
SLEEPS = HEAD + "print('ready', os.getpid(), flush=True); time.sleep(60)"
SAVES = (
  HEAD
  + """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print('ready', os.getpid(), flush=True)
time.sleep(60)
"""
)


@pytest.fixture
def local(start):
  def local(program, *arguments, processes=2, wait=True, **kwargs):
    return start(
      'launch.local', f'--processes={processes}', *arguments, '--',
      sys.executable, '-S', '-c', program, wait=wait, **kwargs,
    )  # fmt: skip

  return local


def ready(process, n: int) -> dict[int, int]:
  """Reads `[i] ready PID` of n processes; returns {i: pid}."""
  pids = {}
  while len(pids) < n:
    line = process.stdout.readline()
    assert line, 'it ended before all were ready'
    found = re.fullmatch(r'\[(\d)\] ready (\d+)\n', line)
    pids[int(found[1])] = int(found[2])
  return pids


def alive(pid: int) -> bool:
  """Whether a process runs; one that nobody waited for yet does not."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  with open(f'/proc/{pid}/stat') as f:
    return f.read().rpartition(')')[2].split()[0] != 'Z'


def gone(pids) -> bool:
  """Whether all are gone within ten seconds."""
  end = time.monotonic() + 10
  while any(map(alive, pids)) and time.monotonic() < end:
    time.sleep(0.02)
  return not any(map(alive, pids))


def test_every_process_knows_its_number_and_the_port(local):
  done = local(HEAD + 'print(flags); print("e", file=sys.stderr)', processes=3)
  assert done.returncode == 0
  lines = sorted(done.stdout.splitlines())
  ports = {re.search(r"localhost:(\d+)'", line)[1] for line in lines}
  assert len(ports) == 1
  for i, line in enumerate(lines):
    assert line.startswith(f'[{i}] ')
    assert f"'num_processes': '3', 'process_id': '{i}'" in line
    assert f'[{i}] e\n' in done.stderr


def test_virtual_devices_replace_those_of_the_environment(local):
  env = os.environ | {
    'XLA_FLAGS': '--a=1 --xla_force_host_platform_device_count=8 --b=2',
    'JAX_PLATFORMS': 'cpu',
  }
  program = HEAD + "print(os.environ['XLA_FLAGS'])"
  done = local(program, '--devices_per_process=2', processes=1, env=env)
  want = '--a=1 --b=2 --xla_force_host_platform_device_count=2'
  assert done.stdout == f'[0] {want}\n'


def test_gpus_are_shared_out_evenly(local):
  env = os.environ | {'CUDA_VISIBLE_DEVICES': '4,5,6,7', 'JAX_PLATFORMS': ''}
  done = local('', '--dry-run', env=env)
  assert re.findall(r'DEVICES=(\S+)', done.stdout) == ['4,5', '6,7']
  done = local('', '--dry-run', '--devices_per_process=1', env=env)
  assert re.findall(r'DEVICES=(\S+)', done.stdout) == ['4', '5']
  done = local('', '--dry-run', processes=3, env=env)
  assert done.returncode == 2
  assert '4 GPUs (4,5,6,7) cannot be shared out evenly' in done.stderr


@pytest.mark.parametrize(
  'program, code',
  [
    ('sys.exit(75 * ME)', 75),
    ('sys.exit(75)', 75),
    ('time.sleep(0.3 * ME); sys.exit([3, 75][ME])', 3),
    ('time.sleep(0.6 * (1 - ME)); sys.exit([3, 6][ME])', 6),
    ('os.kill(os.getpid(), signal.SIGKILL) if ME else None', 137),
  ],
)
def test_exit_code(local, program, code):
  assert local(HEAD + program).returncode == code


def test_a_dead_peer_ends_the_others(local):
  program = HEAD + (
    'if ME: sys.exit(4)\n'
    'signal.signal(signal.SIGTERM, lambda *_: (print("TERM"), sys.exit(75)))\n'
    'time.sleep(60)'
  )
  done = local(program, '--grace=0.5')
  assert done.returncode == 4
  assert done.stdout == '[0] TERM\n'
  assert 'process 1 ended with code 4' in done.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_go_on_to_all_and_end_the_restarts(local, number):
  program = SAVES.replace('SIGTERM', signal.Signals(number).name)
  process = local(program, '--restarts=3', wait=False)
  pids = ready(process, 2)
  process.send_signal(number)
  assert process.wait(timeout=20) == 75
  assert gone(pids.values())


def test_all_start_again_on_another_port(local, tmp_path):
  program = HEAD + (
    f'path = {str(tmp_path)!r} + f"/{{ME}}"\n'
    'n = os.path.getsize(path) if os.path.exists(path) else 0\n'
    'open(path, "a").write("x")\n'
    'print(n, flags["coordinator"], flush=True)\n'
    'time.sleep(0 if ME else 0.5)\n'
    'if ME and n == 0: os.kill(os.getpid(), signal.SIGKILL)\n'
    'if n < 2: sys.exit([75, 7][n])'
  )
  done = local(program, '--restarts=5')
  assert done.returncode == 0, done.stderr
  starts = re.findall(r'\[\d\] (\d) localhost:(\d+)', done.stdout)
  assert sorted(n for n, _ in starts) == list('001122')
  assert len({port for _, port in starts}) == 3
  assert 'code 137: all start again, 4 restarts left' in done.stderr
  assert 'code 7: all start again, 3 restarts left' in done.stderr


@pytest.mark.parametrize('code', [1, 2, 6])
def test_what_would_come_back_is_not_started_again(local, code):
  done = local(HEAD + f'print("x"); sys.exit({code})', '--restarts=3')
  assert (done.returncode, done.stdout.count('x')) == (code, 2)


def test_restarts_are_counted(local):
  done = local(HEAD + 'print("x"); sys.exit(7)', '--restarts=2', processes=1)
  assert (done.returncode, done.stdout.count('x')) == (7, 3)


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_no_orphan_survives_the_launcher(local):
  process = local(SLEEPS, wait=False)
  pids = ready(process, 2)
  process.kill()
  process.wait()
  assert gone(pids.values())


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_children_of_a_killed_process_are_ended(local):
  program = HEAD + (
    'child = subprocess.Popen(["sleep", "60"])\n'
    'print("ready", child.pid, flush=True)\n'
    'os.kill(os.getpid(), signal.SIGKILL)'
  )
  process = local(program, wait=False)
  pids = ready(process, 2)
  assert process.wait(timeout=20) == 137
  assert gone(pids.values())


def test_mistakes_are_one_sentence(start):
  for arguments, message in (
    (['--processes=2'], 'the program is missing after `--`'),
    (['--processes=0', '--', 'true'], '--processes=0, expected 1 or more.'),
    (['--processes=x', '--', 'true'], "invalid int value: 'x'"),
    (['--restarts=1', '--', 'true'], 'required: --processes'),
    (['--processes=1', '--', 'no_such_program'], "'no_such_program' cannot be"),
  ):
    done = start('launch.local', *arguments)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
