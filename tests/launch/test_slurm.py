"""What is submitted to Slurm, and how the batch script takes each end."""

import os
import re
import shlex
import subprocess

import pytest

TRAINING = ['--config=configs/quickstart.py', '--workdir=runs/a b']


@pytest.fixture
def dry(start):
  """Options of the sbatch command of a dry run, and all that it prints."""

  def dry(*arguments):
    done = start(
      'launch.slurm.submit', '--dry-run', *arguments, '--', *TRAINING
    )
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout.splitlines()[0]), done.stdout

  return dry


def test_dry_run_prints_command_and_script(dry, root):
  command, out = dry(
    '--nodes=2', '--gpus_per_node=4', '--time=12:00:00', '--partition=gpu',
    '--sbatch=--account=lab', '--max_restarts=3',
  )  # fmt: skip
  script = root / 'launch/slurm/train.sbatch'
  assert command == [
    'sbatch', '--job-name=jaxseg', '--nodes=2', '--ntasks-per-node=1',
    '--gpus-per-node=4', '--time=12:00:00', '--partition=gpu',
    '--signal=TERM@90', '--export=ALL,JAXSEG_PYTHON=python,'
    'JAXSEG_MAX_RESTARTS=3', '--account=lab', str(script), *TRAINING,
  ]  # fmt: skip
  assert script.read_text() in out


def test_tasks(dry):
  assert '--ntasks-per-node=4' in dry('--gpus_per_node=4', '--task_per=gpu')[0]
  command, _ = dry('--tasks_per_node=2', '--cpus_per_task=8')
  assert {'--ntasks-per-node=2', '--cpus-per-task=8'} < set(command)
  assert not [option for option in command if option.startswith('--gpus')]


def test_times_are_read_as_slurm_does():
  from launch.slurm import submit

  times = {
    '90': 5400, '2:30': 150, '1:00:00': 3600, '2-00': 172800, '1-2:03': 93780,
  }  # fmt: skip
  assert {t: submit.seconds(t) for t in times} == times


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--nodes=0'], '--nodes=0, expected 1 or more.'),
    (['--task_per=gpu'], '--task_per=gpu needs the number of GPUs'),
    (['--tasks_per_node=2', '--gpus_per_node=2'], 'for nodes without GPUs'),
    (['--time=1'], '--time=1 is not longer than --save_seconds=90'),
    (['--time=1h'], '--time=1h, expected minutes'),
    (['--sbatch=account'], '--sbatch=account, expected an option of sbatch'),
    (['--node=2'], 'unrecognized arguments: --node=2'),
  ],
)
def test_mistakes_are_one_sentence(capsys, arguments, message):
  from launch.slurm import submit

  with pytest.raises(SystemExit) as end:
    submit.main([*arguments, '--dry-run', '--', *TRAINING])
  assert end.value.code == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


def test_needs_config_workdir_and_sbatch(capsys, monkeypatch):
  from launch.slurm import submit

  monkeypatch.setenv('PATH', '')
  for training, message in (
    (TRAINING[:1], '--workdir= is missing among the arguments after `--`'),
    (TRAINING[1:], '--config= is missing'),
    (TRAINING, 'sbatch is not on this machine'),
  ):
    with pytest.raises(SystemExit) as end:
      submit.main(['--', *training])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def batch(root, tmp_path):
  """Runs train.sbatch with a stub srun: two tasks here, ended one by one."""
  (tmp_path / 'srun').write_text(
    'while [[ $1 == -* ]]; do shift; done\n'
    'export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=${NODES:-2} worst=0\n'
    'for SLURM_PROCID in ${ORDER:-0 1}; do\n'
    '  export SLURM_PROCID; "$@"; code=$?\n'
    '  ((code > worst)) && worst=$code\n'
    'done\n'
    'exit $worst\n'
  )
  (tmp_path / 'python').write_text(
    'echo "$SLURM_PROCID: $* [$JAX_LOCAL_DEVICE_IDS]"\n'
    'codes=($CODES)\n'
    'exit ${codes[$SLURM_PROCID]}\n'
  )
  (tmp_path / 'scontrol').write_text('echo "scontrol $*"\n')
  (tmp_path / 'sleep').write_text('')
  for name in ('srun', 'python', 'scontrol', 'sleep'):
    stub = tmp_path / name
    stub.write_text('#!/bin/bash\n' + stub.read_text())
    stub.chmod(0o755)

  def batch(codes, **env):
    done = subprocess.run(
      ['bash', root / 'launch/slurm/train.sbatch', *TRAINING],
      capture_output=True, text=True, timeout=30,
      env={
        'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '17',
        'SLURM_SUBMIT_DIR': str(tmp_path), 'CODES': codes, **env,
      },
    )  # fmt: skip
    assert not list(tmp_path.glob('.jaxseg*'))
    return done

  return batch


@pytest.mark.parametrize(
  'codes, env, code, requeued',
  [
    ('0 0', {}, 0, False),
    ('75 75', {}, 75, True),
    ('0 75', {}, 75, True),
    ('75 75', {'SLURM_RESTART_COUNT': '500'}, 75, True),
    ('75 137', {}, 137, True),
    ('6 137', {}, 6, False),  # diverged; srun killed the other
    ('7 6', {'ORDER': '1 0'}, 6, False),
    ('3 3', {}, 3, False),
    ('7 7', {'SLURM_RESTART_COUNT': '19'}, 7, True),
    ('7 7', {'SLURM_RESTART_COUNT': '20'}, 7, False),
    ('7 7', {'JAXSEG_MAX_RESTARTS': '0'}, 7, False),
    ('1 0', {}, 1, False),
  ],
)
def test_end_of_the_batch_script(batch, codes, env, code, requeued):
  done = batch(codes, **env)
  assert done.returncode == code, done.stderr
  assert ('scontrol requeue 17' in done.stdout) == requeued


def test_each_task_trains_with_the_gpus_of_its_node(batch):
  line = re.escape('-m jaxseg.train --config=configs/quickstart.py')
  for env, gpus in (
    ({}, ''),
    ({'SLURM_GPUS_ON_NODE': '1'}, ''),
    ({'SLURM_GPUS_ON_NODE': '4'}, '0,1,2,3'),
    # One task a GPU: JAX takes that of the task's number by itself.
    ({'SLURM_GPUS_ON_NODE': '2', 'NODES': '1'}, ''),
  ):
    out = batch('0 0', **env).stdout
    for i in (0, 1):
      assert re.search(
        rf'^{i}: {line} --workdir=runs/a b \[{gpus}\]$', out, re.MULTILINE
      )
