"""Sweeps with XManager: what its mock is given, and a real local one."""

import subprocess
import sys

import pytest

TRAINING = ['--', '--config=configs/faces.py', '--workdir=runs/sweep/']
CLOUD = [*TRAINING[:2], '--workdir=/gcs/bucket/sweep']
VERTEX = ['--executor=vertex', '--accelerator=a100']


@pytest.fixture
def launch(capsys):
  """Runs the launcher in this process; returns (exit code, stdout, stderr)."""
  from launch.xmanager import launch

  def run(*arguments, training=TRAINING):
    try:
      code = launch.main([*arguments, *training])
    except SystemExit as end:
      code = end.code
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def xmanager():
  """Skips where it is not installed; launch/xmanager/requirements.txt."""
  return pytest.importorskip('xmanager', reason='xmanager is not installed')


def test_dry_run_local(launch, xmanager):
  code, out, _ = launch(
    '--dry-run', '--seeds=0,1', '--labels=9,30', '--python=/env/bin/python',
    '--processes=2',
  )  # fmt: skip
  assert code == 0
  lines = out.splitlines()
  assert [line.split(':')[0] for line in lines] == [
    'labels9_seed0', 'labels9_seed1', 'labels30_seed0', 'labels30_seed1',
  ]  # fmt: skip
  assert 'Local(' in lines[1]
  assert lines[1].endswith(
    '-m launch.local --processes=2 --restarts=3 -- /env/bin/python -m '
    'jaxseg.train --config=configs/faces.py '
    '--workdir=runs/sweep/labels9_seed1 --config.seed=1 '
    '--config.data.num_labelled=9'
  )


def test_dry_run_vertex(launch, xmanager):
  code, out, _ = launch('--dry-run', *VERTEX, '--count=2', training=CLOUD)
  assert code == 0
  assert out.startswith('seed0: Vertex(')
  assert 'a100=2' in out
  assert out.rstrip().endswith(
    ') --config=configs/faces.py --workdir=/gcs/bucket/sweep/seed0 '
    '--config.seed=0'
  )


def test_local_sweep_for_real(root, xmanager, tmp_path):
  """Trainings run one after the other; a failed one does not stop the next."""
  python = tmp_path / 'python'
  python.write_text(
    '#!/bin/bash\n'
    f'[ "$2" = launch.local ] && exec {sys.executable} "$@"\n'
    f'echo "$*" >>{tmp_path}/log; sleep 0.2; echo end >>{tmp_path}/log\n'
    'case "$*" in *seed=1*) exit 3 ;; esac\n'
  )
  python.chmod(0o755)
  done = subprocess.run(
    [sys.executable, '-m', 'launch.xmanager.launch', f'--python={python}',
     '--seeds=0,1,2', *TRAINING],
    cwd=root, env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path)},
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 1
  assert 'launch: seed1 failed' in done.stderr
  lines = (tmp_path / 'log').read_text().splitlines()
  assert lines[1::2] == ['end'] * 3
  for seed, line in enumerate(lines[::2]):
    assert f'--workdir=runs/sweep/seed{seed} --config.seed={seed} ' in line


@pytest.mark.parametrize(
  'arguments, training, message',
  [
    (['--seeds=0,x'], TRAINING, '--seeds=0,x, expected different whole'),
    (['--seeds=1,1'], TRAINING, '--seeds=1,1, expected different whole'),
    (['--accelerator=a100'], TRAINING, 'are for --executor=vertex'),
    (['--executor=vertex'], CLOUD, '--accelerator=None with --executor=vertex'),
    (VERTEX, TRAINING, '--workdir=runs/sweep/, expected a folder of a bucket'),
    (['--processes=0'], TRAINING, '--processes=0, expected 1 or more'),
    ([], [*TRAINING, '--config.seed=1'], '--config.seed is given after `--`'),
    ([], TRAINING[:2], '--workdir= is missing'),
  ],
)
def test_mistakes_are_one_sentence(launch, arguments, training, message):
  code, out, err = launch('--dry-run', *arguments, training=training)
  assert (code, out, err.count('\n')) == (2, '', 1)
  assert message in err


def test_says_how_to_install_it(launch):
  try:
    import xmanager  # noqa: F401
  except ImportError:
    code, _, err = launch('--dry-run')
    assert code == 2
    assert 'uv pip install -r launch/xmanager/requirements.txt' in err
  else:
    pytest.skip('xmanager is installed here')
