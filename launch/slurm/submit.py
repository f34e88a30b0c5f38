"""Submits a training to Slurm, after checking that its options fit together.

  python -m launch.slurm.submit --nodes=2 --gpus_per_node=4 --time=12:00:00 \\
    --partition=gpu -- --config=configs/faces.py:30 --workdir=/shared/runs/faces

Run it where the training is to run, a folder that all nodes share; `python`
must be there on the nodes, e.g. that of an activated environment. What happens
on preemption is told in train.sbatch.
"""

import re
import subprocess
import sys
from pathlib import Path

from launch import commands

SCRIPT = Path(__file__).with_name('train.sbatch')
# minutes, minutes:seconds, hours:minutes:seconds, days-hours[:...]
_TIME = re.compile(r'\d+(:\d\d){0,2}|\d+-\d{1,2}(:\d\d){0,2}')


def parser() -> commands.Parser:
  """The launcher's own arguments."""
  p = commands.Parser(__doc__)
  p.add_argument('--nodes', type=int, default=1)
  p.add_argument('--gpus_per_node', type=int, default=0)
  p.add_argument(
    '--task_per',
    choices=('node', 'gpu'),
    default='node',
    help='one process a node, with all its GPUs, or one a GPU',
  )
  p.add_argument(
    '--tasks_per_node', type=int, help='processes a node, where it has no GPUs'
  )
  p.add_argument('--cpus_per_task', type=int)
  p.add_argument('--time', help='limit of one run, e.g. 12:00:00 or 2-00')
  p.add_argument('--partition')
  p.add_argument('--job_name', default='jaxseg')
  p.add_argument(
    '--save_seconds',
    type=int,
    default=90,
    help='SIGTERM comes so long before the time is over',
  )
  p.add_argument(
    '--max_restarts',
    type=int,
    default=20,
    help='requeues after which a lost process ends the job',
  )
  p.add_argument('--python', default='python', help='on the nodes')
  p.add_argument(
    '--sbatch',
    action='append',
    default=[],
    metavar='OPTION',
    help='one more option of sbatch, e.g. --sbatch=--account=lab; repeatable',
  )
  return p


def seconds(time: str) -> int:
  """Seconds of a time limit as Slurm writes it."""
  if not _TIME.fullmatch(time):
    commands.refuse(
      f'--time={time}, expected minutes, hours:minutes:seconds or days-hours, '
      'e.g. 12:00:00 or 2-00.'
    )
  days, dash, rest = time.rpartition('-')
  numbers = [int(n) for n in rest.split(':')]
  if dash:
    units = (3600, 60, 1)
  else:
    units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
  return int(days or 0) * 86400 + sum(
    n * u for n, u in zip(numbers, units, strict=False)
  )


def check(args) -> None:
  """Refuses numbers and combinations that Slurm would take, or not explain."""
  for name in ('nodes', 'tasks_per_node', 'cpus_per_task', 'save_seconds'):
    value = getattr(args, name)
    if value is not None and value < 1:
      commands.refuse(f'--{name}={value}, expected 1 or more.')
  for name in ('gpus_per_node', 'max_restarts'):
    if getattr(args, name) < 0:
      commands.refuse(f'--{name}={getattr(args, name)}, expected 0 or more.')
  if args.task_per == 'gpu' and not args.gpus_per_node:
    commands.refuse(
      '--task_per=gpu needs the number of GPUs, e.g. --gpus_per_node=4.'
    )
  if args.tasks_per_node and args.gpus_per_node:
    commands.refuse(
      '--tasks_per_node is for nodes without GPUs; with --gpus_per_node='
      f'{args.gpus_per_node} choose --task_per=node or --task_per=gpu.'
    )
  if args.time and seconds(args.time) <= args.save_seconds:
    commands.refuse(
      f'--time={args.time} is not longer than --save_seconds='
      f'{args.save_seconds}: the training would be stopped as it starts.'
    )
  for option in args.sbatch:
    if not option.startswith('-'):
      commands.refuse(
        f'--sbatch={option}, expected an option of sbatch, e.g. '
        '--sbatch=--account=lab.'
      )


def sbatch_command(args, training: list[str]) -> list[str]:
  """The whole command that puts the job into the queue."""
  tasks = args.tasks_per_node or 1
  if args.task_per == 'gpu':
    tasks = args.gpus_per_node
  options = {
    'job-name': args.job_name,
    'nodes': args.nodes,
    'ntasks-per-node': tasks,
    'gpus-per-node': args.gpus_per_node,
    'cpus-per-task': args.cpus_per_task,
    'time': args.time,
    'partition': args.partition,
    'signal': f'TERM@{args.save_seconds}',
    'export': f'ALL,JAXSEG_PYTHON={args.python},'
    f'JAXSEG_MAX_RESTARTS={args.max_restarts}',
  }
  given = [f'--{name}={value}' for name, value in options.items() if value]
  return ['sbatch', *given, *args.sbatch, str(SCRIPT), *training]


def main(argv: list[str]) -> int:
  """Entry point of `python -m launch.slurm.submit`; returns the exit code."""
  args, training = parser().parse(argv)
  check(args)
  command = sbatch_command(args, commands.training_arguments(training))
  if args.dry_run:
    print(commands.shell_line(command), end='\n\n')
    print(SCRIPT.read_text(), end='')
    return 0
  try:
    return subprocess.run(command).returncode
  except FileNotFoundError:
    commands.refuse(
      'sbatch is not on this machine; submit from a login node of the cluster, '
      'or see what would be submitted with --dry-run.'
    )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
