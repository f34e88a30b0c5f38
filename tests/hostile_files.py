"""Files as an attacker or an accident makes them, and opening them."""

import io
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

from jaxseg.published import read
from jaxseg.published.source import WeightsError

# A pickle of a [2, 2] tensor 'a', but for its offset and first stride.
TENSOR = (
  b'}(Va\nctorch._utils\n_rebuild_tensor_v2\n('
  b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"
  b'I%d\n(I2\nI2\nt(I%d\nI1\ntI00\nNtRu.'
)


def zipped(data, entries=()):
  """A zip of torch.save around a pickle."""
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as file:
    file.writestr('x/data.pkl', data)
    for name, content in dict(entries).items():
      file.writestr(name, content)
  return out.getvalue()


def legacy(data, keys=(), rest=b''):
  """A legacy file of torch.save around a pickle."""
  head = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
  parts = [pickle.dumps(part, 2) for part in head]
  return b''.join((*parts, data, pickle.dumps(list(keys), 2), rest))


def arrays_of(path):
  """Opens a file and reads every array of it."""
  source = read.open_source(str(path))
  return {key: source.tensors[key].read() for key in source.keys()}


def refused(path, content, *words):
  """Asserts that a file of this content is refused in one sentence."""
  path.write_bytes(content)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # zipfile's, of doubled names
    with pytest.raises(WeightsError) as error:
      arrays_of(path)
  message = str(error.value)
  assert '\n' not in message and len(message) < 900 and str(path) in message
  assert message.isprintable()
  for word in words:
    assert word in message


PROGRAM = """
import sys
from jaxseg.errors import UserError
from jaxseg.published import read
def peak():
  lines = open('/proc/self/status').read().splitlines()
  return next(int(x.split()[1]) for x in lines if x.startswith('VmHWM'))
before = peak()
for path in sys.argv[1:]:
  try:
    read.open_source(path)
  except UserError:
    pass
print(peak() - before, any(x in sys.modules for x in ('torch', 'jax')))
"""


def memory_of(folder, contents):
  """By how many kB opening all of these files, one by one, fills memory."""
  if not Path('/proc/self/status').exists():
    pytest.skip('the peak is read from /proc')
  paths = [folder / str(i) for i in range(len(contents))]
  for path, content in zip(paths, contents, strict=True):
    path.write_bytes(content)
  command = [sys.executable, '-c', PROGRAM, *map(str, paths)]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  rise, imported = done.stdout.split()
  assert imported == 'False'
  return int(rise)
