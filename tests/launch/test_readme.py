"""The commands of launch/README.md are taken by the launchers."""

import re
import shlex
import subprocess
import sys

import pytest


def commands(root):
  """Every command line of README's code blocks."""
  text = (root / 'launch/README.md').read_text()
  blocks = re.findall(r'```bash\n(.*?)```', text, flags=re.DOTALL)
  return [
    line for block in blocks for line in block.replace('\\\n', '').splitlines()
  ]


@pytest.mark.parametrize(
  'name',
  ['-m launch.local', '-m launch.slurm.submit', '-m launch.gke.render',
   'launch/tpu_pod/train.sh', '-m launch.xmanager.launch'],
)  # fmt: skip
def test_command_of(root, name):
  (line,) = [c for c in commands(root) if name in c]
  words = shlex.split(line.partition(' | ')[0])
  if words[0].endswith('python'):
    words[0] = sys.executable
  words.insert(words.index('--'), '--dry-run')
  done = subprocess.run(words, cwd=root, capture_output=True, text=True)
  if 'xmanager is not installed here' in done.stderr:
    pytest.skip('xmanager is not installed')
  assert done.returncode == 0, done.stderr
  for word in words[words.index('--') + 2 :]:
    if word.startswith('--config='):
      assert word in done.stdout


def test_what_readme_names_exists(root):
  text = (root / 'launch/README.md').read_text()
  files = re.findall(r'(?:launch|tests|configs)/[\w/.]+\.\w+', text)
  assert 'tests/launch/slurm_one_node.sh' in files
  assert [f for f in set(files) if not (root / f).exists()] == []
