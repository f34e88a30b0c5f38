"""Starts the processes of one training on this machine, and watches them.

  python -m launch.local --processes=4 --restarts=3 -- \\
    python -m jaxseg.train --config=configs/quickstart.py --workdir=runs/digits

Every process gets `--coordinator`, `--num_processes` and `--process_id`; its
lines are printed behind its number. SIGTERM and SIGINT go on to all. The exit
code is 0, 75 (stopped after saving: start me again) or that of the first
process that ended badly, 128+n for signal n.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from launch import commands

_DEVICES = '--xla_force_host_platform_device_count'
_POLL_SECONDS = 0.05
# Between SIGTERM and SIGKILL for those whose peer is dead.
_KILL_SECONDS = 10.0

# Leads the processes' group and holds the reading end of a pipe whose writing
# end only the launcher has: however the launcher dies, the group dies too.
_GUARD = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
os.write(1, b'.')
os.read(0, 1)
os.killpg(0, signal.SIGKILL)
"""


def parser() -> commands.Parser:
  """The launcher's own arguments."""
  p = commands.Parser(__doc__)
  p.add_argument('--processes', type=int, required=True)
  p.add_argument(
    '--devices_per_process',
    type=int,
    help='virtual devices of a CPU, or GPUs; default: what JAX finds on a '
    'CPU, an even share of the GPUs',
  )
  p.add_argument(
    '--restarts',
    type=int,
    default=0,
    help='how often all are started again after exit 7, 75 or a signal',
  )
  p.add_argument(
    '--grace',
    type=float,
    default=120.0,
    help='seconds the others have to end after one ended badly',
  )
  return p


def visible_gpus() -> list[str]:
  """The GPUs that JAX would use; none where JAX_PLATFORMS has no GPU."""
  platforms = os.environ.get('JAX_PLATFORMS', '')
  if platforms and not re.search('cuda|gpu|rocm', platforms):
    return []
  chosen = os.environ.get('CUDA_VISIBLE_DEVICES')
  if chosen is not None:
    return [g for g in chosen.split(',') if g.strip() and g.strip() != '-1']
  try:
    found = subprocess.run(
      ['nvidia-smi', '-L'], capture_output=True, text=True, timeout=30
    ).stdout
  except (OSError, subprocess.TimeoutExpired):
    return []
  return [
    str(i)
    for i, _ in enumerate(re.findall(r'^GPU \d+', found, flags=re.MULTILINE))
  ]


def environments(
  processes: int, devices: int | None, gpus: Sequence[str]
) -> list[dict[str, str]]:
  """What each process's environment has in place of the launcher's."""
  if not gpus:
    if devices is None:
      return [{} for _ in range(processes)]
    old = re.sub(rf'{_DEVICES}=\S*', '', os.environ.get('XLA_FLAGS', ''))
    flags = ' '.join([*old.split(), f'{_DEVICES}={devices}'])
    return [{'XLA_FLAGS': flags} for _ in range(processes)]
  each = devices or len(gpus) // processes
  if each * processes > len(gpus) or (not devices and len(gpus) % processes):
    commands.refuse(
      f'--processes={processes}: {len(gpus)} GPUs ({",".join(gpus)}) cannot be '
      f'shared out{f" {devices} each" if devices else " evenly"}; choose '
      'another number, or JAX_PLATFORMS=cpu.'
    )
  return [
    {'CUDA_VISIBLE_DEVICES': ','.join(gpus[i * each : (i + 1) * each])}
    for i in range(processes)
  ]


def free_port() -> int:
  """A port that nobody listens on now."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def distributed(command: list[str], port: int, n: int, i: int) -> list[str]:
  """The command of process i of n."""
  return [
    *command,
    f'--coordinator=localhost:{port}',
    f'--num_processes={n}',
    f'--process_id={i}',
  ]


def say(message: str) -> None:
  print(f'[launch] {message}', file=sys.stderr, flush=True)


def pump(stream, prefix: bytes, out) -> None:
  """Copies lines behind a prefix; reads on when nobody takes them any more."""
  for line in stream:
    end = b'' if line.endswith(b'\n') else b'\n'
    with contextlib.suppress(OSError, ValueError):
      # One write per line: those of several processes do not mix.
      os.write(out, prefix + line + end)


def shell_code(returncode: int) -> int:
  """As a shell gives it: 128+n for signal n."""
  return 128 - returncode if returncode < 0 else returncode


class Attempt:
  """All processes of one start; none is left once it is closed."""

  def __init__(self, command: list[str], envs: list[dict[str, str]]):
    self.guard = subprocess.Popen(
      [sys.executable, '-S', '-E', '-c', _GUARD],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      process_group=0,
    )
    self.guard.stdout.read(1)  # it ignores signals from here on
    self.processes: list[subprocess.Popen] = []
    self.pumps: list[threading.Thread] = []
    port = free_port()
    try:
      for i, env in enumerate(envs):
        self.start(i, distributed(command, port, len(envs), i), env)
    except BaseException:
      self.close()
      raise

  def start(self, i: int, command: list[str], env: dict[str, str]) -> None:
    try:
      process = subprocess.Popen(
        command,
        env=os.environ | {'PYTHONUNBUFFERED': '1'} | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=self.guard.pid,
      )
    except OSError as error:
      commands.refuse(
        f'{command[0]!r} cannot be started ({error.strerror}), expected a '
        'program after `--`, e.g. -- python -m jaxseg.train ...'
      )
    self.processes.append(process)
    say(f'process {i} is pid {process.pid}')
    for stream, out in ((process.stdout, 1), (process.stderr, 2)):
      thread = threading.Thread(
        target=pump, args=(stream, b'[%d] ' % i, out), daemon=True
      )
      thread.start()
      self.pumps.append(thread)

  def signal(self, number: int) -> None:
    """Sends a signal to those that run."""
    for process in self.processes:
      process.send_signal(number)  # does nothing once it was waited for

  def close(self) -> None:
    """Ends what is left, children of the processes included."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.guard.pid, signal.SIGKILL)
    for process in (*self.processes, self.guard):
      process.wait()
    for thread in self.pumps:
      thread.join(timeout=5)
    for stream in (self.guard.stdin, self.guard.stdout):
      stream.close()


def watch(attempt: Attempt, signals: list[int], grace: float) -> int:
  """Waits for all processes and returns the exit code of the whole.

  Args:
    attempt: the running processes.
    signals: the launcher's own, appended by a handler; sent on from here.
    grace: seconds from the first bad end, or signal, to the others' SIGTERM.
  """
  ends: dict[int, int] = {}
  sent, deadline, terminated = 0, None, False
  while len(ends) < len(attempt.processes):
    for i, process in enumerate(attempt.processes):
      if i not in ends and process.poll() is not None:
        ends[i] = shell_code(process.returncode)
        if ends[i]:
          say(f'process {i} ended with code {ends[i]}')
          deadline = deadline or time.monotonic() + grace
    while sent < len(signals):
      attempt.signal(signals[sent])
      sent += 1
      deadline = time.monotonic() + grace
    if deadline and time.monotonic() > deadline:
      if terminated:
        attempt.signal(signal.SIGKILL)
      elif len(ends) < len(attempt.processes):
        say(f'the others did not end within {grace:g} s: SIGTERM')
        attempt.signal(signal.SIGTERM)
        terminated = True
      deadline = time.monotonic() + _KILL_SECONDS
    time.sleep(_POLL_SECONDS)
  bad = [code for code in ends.values() if code not in (0, commands.PREEMPTED)]
  return bad[0] if bad else max(ends.values())


def run(
  command: list[str], envs: list[dict[str, str]], restarts: int, grace: float
) -> int:
  """Starts the processes until they end well or restarts are used up."""
  signals: list[int] = []
  handler = lambda number, frame: signals.append(number)
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, handler)
  while True:
    with contextlib.closing(Attempt(command, envs)) as attempt:
      code = watch(attempt, signals, grace)
    if signals or restarts == 0 or not commands.may_restart(code):
      return code
    restarts -= 1
    say(f'ended with code {code}: all start again, {restarts} restarts left')


def main(argv: list[str]) -> int:
  """Entry point of `python -m launch.local`; returns the exit code."""
  args, command = parser().parse(argv)
  if not command:
    commands.refuse(
      'the program is missing after `--`, e.g. -- python -m jaxseg.train '
      '--config=configs/quickstart.py --workdir=runs/digits.'
    )
  for name, least in (('processes', 1), ('devices_per_process', 1)):
    value = getattr(args, name)
    if value is not None and value < least:
      commands.refuse(f'--{name}={value}, expected {least} or more.')
  if args.restarts < 0 or args.grace < 0:
    commands.refuse('--restarts and --grace must be 0 or more.')
  envs = environments(args.processes, args.devices_per_process, visible_gpus())
  if args.dry_run:
    port = free_port()
    for i, env in enumerate(envs):
      full = distributed(command, port, len(envs), i)
      print(commands.shell_line(full, env))
    return 0
  return run(command, envs, args.restarts, args.grace)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
