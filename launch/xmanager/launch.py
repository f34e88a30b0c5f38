"""Launches a sweep of trainings with XManager, one per seed and label count.

  python -m launch.xmanager.launch --python=.venv/bin/python --seeds=0,1,2 \\
    --labels=9,30 -- --config=configs/faces.py --workdir=runs/sweep

Every training has its own folder in the workdir. Here they run one after the
other, each through `launch.local`; with --executor=vertex at the same time,
each on one machine of Vertex AI, in the image of launch/docker. (XManager's
Kubernetes executor mounts no volume that would keep the workdir: for clusters
there are launch/gke, launch/tpu_pod and launch/slurm.)
"""

import asyncio
import itertools
import sys
from pathlib import Path

from launch import commands

ROOT = Path(__file__).resolve().parents[2]
# Of those that XManager knows, the ones it finds a machine of Vertex AI for.
ACCELERATORS = ('t4', 'p100', 'v100', 'a100')


def parser() -> commands.Parser:
  """The launcher's own arguments."""
  p = commands.Parser(__doc__)
  p.add_argument('--executor', choices=('local', 'vertex'), default='local')
  p.add_argument('--title', default='jaxseg', help='of the experiment')
  p.add_argument('--seeds', default='0', help='config.seed of each, e.g. 0,1')
  p.add_argument('--labels', help='config.data.num_labelled of each, e.g. 9,30')
  p.add_argument(
    '--python', default=sys.executable, help='local: that can train'
  )
  p.add_argument(
    '--processes', type=int, default=1, help='local: of each training'
  )
  p.add_argument(
    '--restarts', type=int, default=3, help='local: of each training'
  )
  p.add_argument('--accelerator', help=f'vertex: {", ".join(ACCELERATORS)}')
  p.add_argument('--count', type=int, default=1, help='vertex: accelerators')
  p.add_argument(
    '--image', help='vertex: one that is pushed; default: XManager builds it'
  )
  return p


def numbers(name: str, text: str) -> list[int]:
  """A list as on the command line, e.g. '0,1,2'."""
  parts = text.split(',')
  if not all(p.isdecimal() for p in parts) or len(set(parts)) < len(parts):
    commands.refuse(
      f'--{name}={text}, expected different whole numbers with commas, e.g. '
      f'--{name}=0,1,2.'
    )
  return [int(p) for p in parts]


def sweep(args, training: list[str]) -> dict[str, list[str]]:
  """{name: arguments of jaxseg.train} of every training."""
  seeds = numbers('seeds', args.seeds)
  labels = numbers('labels', args.labels) if args.labels else [None]
  for field in ('config.seed', 'config.data.num_labelled'):
    if commands.value(training, field) and (args.labels or 'seed' in field):
      commands.refuse(
        f'--{field} is given after `--`, but the sweep sets it; use --seeds '
        'and --labels.'
      )
  workdir = commands.value(training, 'workdir').rstrip('/')
  trainings = {}
  for count, seed in itertools.product(labels, seeds):
    name = f'seed{seed}' if count is None else f'labels{count}_seed{seed}'
    mine = [a for a in training if not a.lstrip('-').startswith('workdir=')]
    mine += [f'--workdir={workdir}/{name}', f'--config.seed={seed}']
    if count is not None:
      mine.append(f'--config.data.num_labelled={count}')
    trainings[name] = mine
  return trainings


def check(args, training: list[str]) -> None:
  """Refuses what the executor could not run."""
  for name, least in (('processes', 1), ('restarts', 0), ('count', 1)):
    if getattr(args, name) < least:
      commands.refuse(
        f'--{name}={getattr(args, name)}, expected {least} or more.'
      )
  if args.executor == 'local':
    if args.accelerator or args.image:
      commands.refuse(
        '--accelerator and --image are for --executor=vertex; a local training '
        'uses what is here.'
      )
    return
  if args.accelerator not in ACCELERATORS:
    commands.refuse(
      f'--accelerator={args.accelerator} with --executor=vertex, expected one '
      f'of {", ".join(ACCELERATORS)}.'
    )
  workdir = commands.value(training, 'workdir')
  if not workdir.startswith('/gcs/'):
    commands.refuse(
      f'--workdir={workdir}, expected a folder of a bucket as Vertex AI mounts '
      'it, e.g. --workdir=/gcs/BUCKET/runs/sweep.'
    )


def job_arguments(args, training: list[str]) -> list[str]:
  """The arguments of one job's program."""
  if args.executor == 'vertex':
    return training  # the image's entry point trains
  return [
    '-m', 'launch.local', f'--processes={args.processes}',
    f'--restarts={args.restarts}', '--',
    args.python, '-m', 'jaxseg.train', *training,
  ]  # fmt: skip


async def launch(args, trainings, experiment, xm, xm_local) -> list[str]:
  """Adds every training to the experiment; returns the names of the failed."""
  if args.executor == 'local':
    executor = xm_local.Local()
    program = xm.binary(executor.Spec(), path=args.python)
  else:
    executor = xm_local.Vertex(
      requirements=xm.JobRequirements({args.accelerator: args.count})
    )
    program = (
      xm.container(executor.Spec(), image_path=args.image)
      if args.image
      else xm.dockerfile_container(
        executor.Spec(),
        path=str(ROOT),
        dockerfile=str(ROOT / 'launch/docker/Dockerfile.cuda'),
      )
    )
  failed = []

  async def wait(name, unit):
    try:
      await unit.wait_until_complete()
    except xm.ExperimentUnitError as error:
      print(f'launch: {name} failed: {error}', file=sys.stderr)
      failed.append(name)

  async with experiment:
    (executable,) = experiment.package([program])
    units = {}
    for name, training in trainings.items():
      arguments = job_arguments(args, training)
      job = xm.Job(executable, executor, args=arguments, name=name)
      units[name] = await experiment.add(job)
      if args.executor == 'local':
        # One machine: the next begins when this one has ended.
        await wait(name, units[name])
    if args.executor == 'vertex':
      await asyncio.gather(*(wait(*item) for item in units.items()))
  return failed


def show(experiment) -> None:
  """Prints the jobs that an experiment in the mock was given."""
  for job in experiment.launched_jobs:
    executor = type(job.executor).__name__
    needs = getattr(job.executor, 'requirements', None)
    line = ' '.join(job.args.to_list())
    print(f'{job.name}: {executor}({needs}) {line}')


def main(argv: list[str]) -> int:
  """Entry point of `python -m launch.xmanager.launch`: the exit code."""
  args, training = parser().parse(argv)
  training = commands.training_arguments(training)
  trainings = sweep(args, training)
  check(args, training)
  try:
    from absl import flags
    from xmanager import xm, xm_local, xm_mock
  except ImportError:
    commands.refuse(
      'xmanager is not installed here; in an environment of its own: uv pip '
      'install -r launch/xmanager/requirements.txt.'
    )
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # XManager's own have good defaults
  if args.dry_run:
    experiment = xm_mock.MockExperiment()
  else:
    experiment = xm_local.create_experiment(args.title)
  failed = asyncio.run(launch(args, trainings, experiment, xm, xm_local))
  if args.dry_run:
    show(experiment)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
