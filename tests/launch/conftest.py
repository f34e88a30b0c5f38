"""The launchers are not installed: they are run from the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope='session')
def root() -> Path:
  """The repository."""
  return ROOT


@pytest.fixture
def start():
  """`python -m NAME arguments` in the repository, finished or not."""
  started = []

  def start(name: str, *arguments: str, wait: bool = True, **kwargs):
    process = subprocess.Popen(
      [sys.executable, '-m', name, *arguments],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      **kwargs,
    )  # fmt: skip
    started.append(process)
    if not wait:
      return process
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(
      process.args, process.returncode, out, err
    )

  yield start
  for process in started:
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
