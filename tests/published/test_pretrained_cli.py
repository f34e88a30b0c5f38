"""`python -m jaxseg.pretrained`: what it says, exit codes, nothing left."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import stylegan2_layouts as layouts
import torch_by_hand
from absl import flags

from jaxseg import config, pretrained
from jaxseg.published import folder


@pytest.fixture
def run(monkeypatch, capsys):
  """Runs the command line; returns (exit code, stdout, stderr)."""

  def run(*argv):
    values = flags.FlagValues()
    pretrained._define_flags(values)
    monkeypatch.setattr(flags, 'FLAGS', values)
    code = 0
    try:
      pretrained.main(config.parse_flags(['jaxseg.pretrained', *argv]))
    except SystemExit as error:
      code = error.code
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'g.pt'
  arrays = layouts.draw(layouts.generator((3, 2), 4, classes=2))
  path.write_bytes(torch_by_hand.zip_file({'g_ema': arrays}))
  return path


def test_convert_and_show(run, source, tmp_path):
  out = tmp_path / 'out'
  code, said, told = run(
    'convert', '--kind=semanticgan', f'--source={source}', f'--output={out}',
    '--size=8',
  )  # fmt: skip
  assert (code, told) == (0, '')
  *lines, last = said.splitlines()
  assert '8 x 8, 3 channels, 2 label logits, n_latent 4' in said
  assert last.startswith(f'{out}: written in ')
  code, said, told = run('show', str(out))
  assert (code, told, said.splitlines()) == (0, '', lines)
  with open(out / 'weights.safetensors', 'ab') as file:
    file.write(b'\0')
  code, said, told = run('show', str(out))
  assert (code, said) == (4, '') and told.count('\n') == 1


@pytest.mark.parametrize('argv, code, words', (
  ((), 2, "found nothing, expected a command"),
  (('make',), 2, "found 'make', expected a command"),
  (('convert', 'x'), 2, 'found x after it, expected flags alone'),
  (('show',), 2, 'expected one folder'),
  (('show', 'missing'), 2, 'missing holds no pretrained.json'),
  (('show', '--kind=psp', 'x'), 2, '--kind is no flag of show, expected none'),
  (('convert', '--kind=psp'), 2, '--output is missing'),
  (('convert', '--stage=gan'), 2, '--stage is no flag of convert'),
  (('convert', '--kind=vae', '--source={s}', '--output={o}'), 2,
   '--kind=vae is unknown, expected one of stylegan2, semanticgan'),
  (('convert', '--kind=psp', '--source=nowhere', '--output={o}'), 2,
   'nowhere are not a file'),
  (('convert', '--kind=psp', '--source={s}', '--output={o}'), 4,
   'look like kind semanticgan, not psp; give --kind=semanticgan'),
  (('convert', '--kind=semanticgan', '--source={s}', '--output={o}',
    '--size=16'), 4, 'of size 8, but --size is 16'),
  (('convert', '--kind=semanticgan', '--source={s}', '--output={o}',
    '--features={s}'), 2, 'is for --kind=lpips'),
  (('convert', '--kind=stylegan2', '--source={cut}', '--output={o}'), 4,
   'cut.pt cannot be read'),
  (('convert', '--kind=stylegan2', '--source={s}', '--output={d}'), 2,
   'exists, expected a new folder'),
  (('convert', '--kind=psp', '--size=x'), 2, 'size'),
))  # fmt: skip
def test_refusals(run, source, tmp_path, argv, code, words):
  cut = tmp_path / 'cut.pt'
  cut.write_bytes(source.read_bytes()[:-100])
  places = dict(s=source, o=tmp_path / 'out', d=tmp_path, cut=cut)
  before = sorted(tmp_path.rglob('*'))
  found, said, told = run(*(arg.format(**places) for arg in argv))
  assert (found, said) == (code, '')
  assert told.startswith('jaxseg: ') and told.count('\n') == 1
  assert words in told
  assert sorted(tmp_path.rglob('*')) == before


def test_ctrl_c(run, source, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(folder.manifest, 'write_files', interrupted)
  output = tmp_path / 'new' / 'out'
  code, said, told = run(
    'convert', '--kind=semanticgan', f'--source={source}', f'--output={output}'
  )
  assert (code, said) == (130, '')
  assert told == f'jaxseg: interrupted; {output} was not written\n'
  assert list(tmp_path.iterdir()) == [source]


def test_the_program_ends_cleanly_when_killed(source, tmp_path):
  shapes = layouts.generator((512,) * 6, 512)
  arrays = {k: np.zeros(s, 'f4') for k, s in shapes.items()}
  arrays |= {k: layouts.BINOMIAL for k in shapes if k.endswith('kernel')}
  source.write_bytes(torch_by_hand.zip_file({'g_ema': arrays}))
  folders = tmp_path / 'new'
  process = subprocess.Popen(
    [
      sys.executable, '-m', 'jaxseg.pretrained', 'convert', '--kind=stylegan2',
      f'--source={source}', f'--output={folders / "out"}',
    ],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  while not folders.exists() and process.poll() is None:
    time.sleep(0.001)
  os.kill(process.pid, signal.SIGTERM)
  said, told = process.communicate(timeout=60)
  if process.returncode:
    assert process.returncode == 130
    assert told.startswith('jaxseg: interrupted; ') and told.count('\n') == 1
    assert folders.exists() == ('is whole' in told)
  if folders.exists():  # it was faster
    assert [path.name for path in folders.iterdir()] == ['out']
