"""Hostile pickles and archives: one sentence, and nothing happens."""

import ast
import os
import pickle
import struct
from pathlib import Path

import pytest
from hostile_files import TENSOR, legacy, memory_of, refused, zipped
from numpy.testing import assert_array_equal

import jaxseg
from jaxseg.published import read

FORMS = {'plain': lambda data: data, 'zip': zipped, 'legacy': legacy}


def call(name, *arguments):
  """Opcodes that call `module name` with strings."""
  name = name.replace(' ', '\n').encode()
  items = b''.join(b'V%s\n' % a.encode() for a in arguments)
  return b'c%s\n(%stR' % (name, items)


def short(data):
  """A BINBYTES of protocol 3."""
  return b'B' + struct.pack('<I', len(data)) + data


LOAD = b'ctorch.storage\n_load_from_bytes\n'


def within(data, times=1):
  """A storage's bytes within a pickle, and within those, and so on."""
  for _ in range(times):
    data = LOAD + short(legacy(data + b'.')) + b'\x85R'
  return data


# CANARY stands for a command or a file that an attack would leave behind.
TOUCH = 'touch CANARY'
SYSTEM = call('os system', TOUCH)
PAYLOADS = {
  'os.system': SYSTEM,
  'posix.system': call('posix system', TOUCH),
  'nt.system': call('nt system', TOUCH),
  'eval': call('builtins eval', 'open("CANARY", "w")'),
  'exec': call('builtins exec', 'open("CANARY", "w")'),
  'python 2': call('__builtin__ eval', 'open("CANARY", "w")'),
  'import': call('builtins __import__', 'os'),
  'open': call('builtins open', 'CANARY', 'w'),
  'getattr': b'cbuiltins\ngetattr\n(cbuiltins\ndict\nVget\ntR',
  'getattr chain': call('builtins getattr', 'os', 'system') + b'(VCANARY\ntR',
  'dotted name': b'\x80\x04\x8c\x02os\x8c\x0bpath.os.mkdi\x93(VCANARY\ntR',
  'dotted collections': call('collections OrderedDict.fromkeys', 'a'),
  'subprocess': call('subprocess Popen', TOUCH),
  'pty': call('pty spawn', TOUCH),
  'torch.hub': call('torch.hub load', 'a/b', 'c'),
  'torch.load': call('torch load', 'CANARY'),
  'partial': b'cfunctools\npartial\n(cos\nsystem\nVtouch CANARY\ntR',
  'attrgetter': call('operator attrgetter', 'system'),
  'copyreg': b'ccopyreg\n_reconstructor\n(cos\nsystem\nNNtR',
  'runpy': call('runpy run_path', 'CANARY'),
  'numpy load': call('numpy load', 'CANARY'),
  'numpy runstring': call('numpy.testing._private.utils runstring', 'CANARY'),
  'pickle in pickle': b'cpickle\nloads\n(' + short(SYSTEM + b'.') + b'tR',
  'marshal': b'cmarshal\nloads\n(' + short(b'x') + b'tR',
  'code': b'ctypes\nCodeType\n(tR',
  'INST': b'(Vtouch CANARY\nios\nsystem\n',
  'OBJ': b'(cos\nsystem\nVtouch CANARY\no',
  'EXT1': b'\x82\x01',
  'EXT4': b'\x84\x01\x00\x00\x00',
  'NEWOBJ': b'cos\nsystem\n(Vtouch CANARY\nt\x81',
  'NEWOBJ_EX': b'cos\nsystem\n)}\x92',
  'BUILD of a class': b"ctorch\nFloatStorage\n}V__reduce__\nVx\nsb",
  'PERSID': b'Pos.system\n',
  'in a storage': within(SYSTEM),
  'deep storages': within(b'N', 9),
  'zip in a storage': LOAD + short(zipped(SYSTEM + b'.')) + b'\x85R',
  'bytes to a size': b'ctorch\nSize\n' + short(bytes(9)) + b'\x86R',
  'encode': call('_codecs encode', 'a', 'rot13'),
  'objects': b'cnumpy\ndtype\n(VO8\nI00\nI01\ntR',
  'records': b'cnumpy\ndtype\n(VV8\nI00\nI01\ntR',
  'ndarray': b'cnumpy\nndarray\n(I9\ntR',
  'reconstruct': b'cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\ntR',
  'module': call('torch_utils.persistence _reconstruct_persistent_obj', 'x'),
  'unknown class': b'c\x1b[31mevil\nclass\n)R',
}  # fmt: skip


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('payload', PAYLOADS)
def test_payloads(tmp_path, monkeypatch, payload, form):
  def forbidden(*_, **__):
    raise AssertionError('the unpickler is used')

  for name in ('load', 'loads', 'Unpickler', '_Unpickler'):
    monkeypatch.setattr(pickle, name, forbidden)
  monkeypatch.chdir(tmp_path)
  data = PAYLOADS[payload].replace(b'CANARY', b'canary')
  refused(tmp_path / 'x.pt', FORMS[form](b'}(Va\n' + data + b'u.'))
  assert os.listdir() == ['x.pt']


def test_an_unknown_class_is_named(tmp_path):
  data = b'cpackage.module\nClass\n)R.'
  refused(tmp_path / 'x', data, 'package.module.Class', 'not allowed')


def test_no_unpickler_and_no_torch_in_the_package():
  for path in Path(jaxseg.__file__).parent.rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      names = []
      if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
      elif isinstance(node, ast.ImportFrom):
        names = [node.module or '']
      for name in names:
        assert name.split('.')[0] not in ('pickle', 'torch', 'dill'), path


LISTS = b'](Vx\nVy\neq\x000' + b''.join(
  b'](h%ch%ceq%c0' % (i, i, i + 1) for i in range(200)
)  # fmt: skip
DICTS = b'}q\x00' + b''.join(
  b'}(Va\nh%cVb\nh%cuq%c' % (i, i, i + 1) for i in range(200)
)
WIDE = b'}(' + b''.join(b'I%d\nN' % i for i in range(200_000)) + b'uq\x00'
# The function takes a mapping, of which it would make a copy each time.
COPIES = b'cargparse\nNamespace\nq\x01' + b'h\x01)Rh\x00b' * 200_000


BOMBS = {
  'doubled lists': (LISTS + b'}(Va\nh\xc8u.', None),
  'doubled dictionaries': (DICTS + b'.', 'too deep'),
  'itself': (b'}q\x00(Va\nh\x00u.', 'too deep'),
  'wide dictionary': (WIDE + b'.', 'too many'),
  'copies': (WIDE + COPIES + b'.', 'more than'),
  'sets': (b'\x8f' * (8 << 20) + b'.', 'more than'),
  'memo': (b'N' + b'\x94' * (8 << 20) + b'.', 'more than'),
  'long keys': (
    b'}(V' + b'x' * 60_000 + b'\n}(Va\nNuu.',
    'too many',
  ),
  'collisions': (
    b'}(' + b'\x8a\x11' + bytes(16) + b'\x01N' + b'u.',
    'more than 64 bits',
  ),
  'repeated': (
    b'}(Va\nctorch._utils\n_rebuild_tensor_v2\n(' + LOAD
    + short(legacy(
      b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI1\nNtQ.", ['0'],
      struct.pack('<qf', 1, 0),
    )) + b'\x85RI0\n(I1000000\nI1000000\nt(I0\nI0\ntI00\nNtRu.',
    'repeats',
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', BOMBS)
def test_bombs(tmp_path, name):
  data, words = BOMBS[name]
  if words is None:  # harmless where nobody unrolls it
    (tmp_path / 'x').write_bytes(data)
    assert list(read.open_source(str(tmp_path / 'x')).values) == ['a']
  else:
    refused(tmp_path / 'x', data, words)


def test_memory_of_bombs(tmp_path):
  assert memory_of(tmp_path, [data for data, _ in BOMBS.values()]) < 160_000


def patched(content, name, **fields):
  """Changes an entry of a zip's central directory."""
  content = bytearray(content)
  places = {'crc': 16, 'packed': 20, 'size': 24, 'offset': 42}
  at = content.rindex(name.encode()) - 46
  assert content[at : at + 4] == b'PK\x01\x02'
  for field, value in fields.items():
    struct.pack_into('<I', content, at + places[field], value)
  return bytes(content)


@pytest.mark.parametrize('content, word', (
  (zipped(TENSOR % (1, 2), {'x/data/0': bytes(16)}), 'exceeds its storage'),
  (zipped(TENSOR % (0, 9), {'x/data/0': bytes(16)}), 'exceeds its storage'),
  (zipped(TENSOR % (0, 2), {'x/data/0': bytes(15)}), 'cut off'),
  (zipped(TENSOR % (0, 2)), 'missing'),
  (zipped(TENSOR % (0, 2), {'x/data/0': bytes(16)})[:-30], ''),
  (zipped(b'}.', {'../evil': b''}), 'outside'),
  (zipped(b'}.', {'x/../../evil': b''}), 'outside'),
  (zipped(b'}.', {'/etc/evil': b''}), 'outside'),
  (zipped(b'}.', {'y/data.pkl': b'}.'}), 'not one of torch.save'),
  *(
    (patched(zipped(TENSOR % (0, 2), {'x/data/0': bytes(16)}), 'x/data/0',
             **fields), word)
    for fields, word in (
      ({'crc': 7}, 'checksum'),
      ({'size': 4000}, 'two sizes'),
      ({'packed': 4000, 'size': 4000}, 'promises more'),
      ({'packed': 2**31, 'size': 2**31}, 'promises more'),
      ({'offset': 3}, 'not where'),
    )
  ),
), ids=lambda x: x if isinstance(x, str) else '')  # fmt: skip
def test_archives(tmp_path, content, word):
  refused(tmp_path / 'x.pt', content, word)
  assert os.listdir(tmp_path) == ['x.pt']


def test_good_archives_are_read(tmp_path):
  content = zipped(TENSOR % (0, 2), {'x/data/0': struct.pack('<4f', *range(4))})
  (tmp_path / 'x').write_bytes(content)
  source = read.open_source(str(tmp_path / 'x'))
  assert_array_equal(source.tensors['a'].read(), [[0, 1], [2, 3]])
