"""Files of torch.save: read as torch reads them, and hostile ones refused."""

import argparse
import collections
import mmap
import os
import pickle
import shutil
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxseg.errors import UserError
from jaxseg.nets import plain_pickle, torch_files
from jaxseg.nets.plain_data import Unread
from jaxseg.published.read import open_source
from jaxseg.published.source import WeightsError

FORMATS = pytest.mark.parametrize('as_zip', (True, False), ids=('zip', 'old'))


@pytest.fixture
def torch():
  return pytest.importorskip('torch', reason='PyTorch writes the files')


@pytest.fixture
def save(torch, tmp_path):
  def save(value, as_zip=True, **kwargs):
    path = str(tmp_path / 'x.pth')
    torch.save(value, path, _use_new_zipfile_serialization=as_zip, **kwargs)
    return path

  return save


def read(path):
  """All that a file holds."""
  with open(path, 'rb') as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  return torch_files.parse(data)


def refused(path, *words):
  with pytest.raises(UserError) as error:
    open_source(str(path))
  message = str(error.value)
  assert '\n' not in message and len(message) < 800
  for word in (str(path), *words):
    assert word in message


def as_numpy(tensor):
  """A tensor of any type, with bfloat16 made float32."""
  if str(tensor.dtype) == 'torch.bfloat16':
    tensor = tensor.float()
  return tensor.detach().numpy()


@FORMATS
@pytest.mark.parametrize('name', (
  'float16', 'bfloat16', 'float32', 'float64', 'int64', 'int32', 'int16',
  'int8', 'uint8', 'bool',
))  # fmt: skip
def test_types(torch, save, name, as_zip):
  tensor = (torch.arange(24).reshape(2, 3, 4) - 5).to(getattr(torch, name))
  found = read(save({'a': tensor}, as_zip))['a']
  assert found.dtype.name == name and not found.flags.writeable
  assert_array_equal(found.astype(as_numpy(tensor).dtype), as_numpy(tensor))


@FORMATS
def test_views_and_shared_storages(torch, save, as_zip):
  base = torch.arange(60.0).reshape(3, 4, 5)
  tensors = {
    'base': base,
    'turned': base.permute(2, 0, 1),
    'part': base[1:, ::2, 3],
    'scalar': base[2, 1, 1],
    'repeated': base[:1, :1].expand(3, 4, 5),
    'empty': base[:0],
    'channels_last': base[None].contiguous(memory_format=torch.channels_last),
    'other': torch.ones(2),
    'parameter': torch.nn.Parameter(base[0]),
  }
  found = read(save(tensors, as_zip))
  assert list(found) == list(tensors)
  for name, tensor in tensors.items():
    assert found[name].shape == tuple(tensor.shape)
    assert_array_equal(found[name], as_numpy(tensor))
  assert np.shares_memory(found['base'], found['turned'])


@FORMATS
def test_containers(torch, save, as_zip):
  """A training checkpoint: nested, with options and an optimiser's state."""
  model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
  optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
  model(torch.ones(2, 2, 3, 3)).sum().backward()
  optimizer.step()
  value = {
    'g_ema': model.state_dict(),
    'g_optim': optimizer.state_dict(),
    'args': argparse.Namespace(size=256, path='ä', lr=2e-3, device=None),
    'size': torch.Size([2, 3]),
    'device': torch.device('cuda', 1),
    'list': [1, (2, [3.5, (), True]), 2**70, -1, (1, 2, 3, 4)],
  }
  found = read(save(value, as_zip))
  assert found['args'] == vars(value['args'])
  assert found['size'] == (2, 3) and found['device'] == 'cuda:1'
  assert found['list'] == value['list']
  assert list(found['g_ema']) == list(value['g_ema'])
  assert set(found['g_ema']) == set(model.state_dict())
  for name, tensor in model.state_dict().items():
    assert_array_equal(found['g_ema'][name], tensor.numpy())
  assert found['g_optim']['param_groups'][0]['lr'] == 0.5
  moments = optimizer.state_dict()['state'][1]['exp_avg']
  assert_array_equal(found['g_optim']['state'][1]['exp_avg'], moments.numpy())


@FORMATS
def test_later_types(torch, save, as_zip):
  tensors = {
    name: torch.arange(6.0).reshape(2, 3).to(getattr(torch, name))
    for name in ('complex64', 'complex128', 'uint16', 'uint32', 'uint64',
                 'float8_e4m3fn', 'float8_e5m2')
  }  # fmt: skip
  turned = torch.arange(6).to(torch.uint16).reshape(2, 3).T[1:]
  tensors['named'] = torch.ones(2)
  tensors['named'].attribute = 1
  found = read(save({**tensors, 'turned': turned}, as_zip))
  assert_array_equal(found.pop('turned'), [[1, 4], [2, 5]])
  assert_array_equal(found.pop('named'), [1, 1])
  for name, array in found.items():
    assert array.dtype.name == name
    assert_array_equal(array.real.astype('f4'), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.filterwarnings('ignore::UserWarning')  # torch's, of such types
@FORMATS
def test_what_is_not_read(torch, save, tmp_path, as_zip):
  tree = {
    'sparse': torch.eye(2).to_sparse(),
    'rows': torch.eye(2).to_sparse_csr(),
    'meta': torch.zeros(2, device='meta'),
    'layout': torch.strided,
    'conjugated': torch.ones(2, dtype=torch.complex64).conj(),
    'integers': torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    'random': torch.Generator(),
  }
  found = read(save(tree, as_zip))
  assert list(found) == list(tree)
  assert all(isinstance(x, Unread) for x in found.values())
  path = save({'state_dict': tree, 'b': torch.ones(2)}, as_zip)
  source = open_source(path)
  assert list(source.keys()) == ['b']
  assert source.unread()[0] == (
    'state_dict/sparse (torch._utils._rebuild_sparse_tensor)'
  )
  with pytest.raises(WeightsError, match='_sparse_tensor, which is not read'):
    source.entry('state_dict/sparse', (2, 2))


@pytest.mark.parametrize('protocol', (2, 3, 4, 5))
def test_pickle_protocols(torch, save, protocol):
  value = {'a': [torch.ones(2), 'x' * 300, b'y'], 'b': list(range(1000))}
  if protocol == 2:
    value['a'].pop()  # bytes are a call of _codecs.encode there
  found = read(save(value, pickle_protocol=protocol))
  assert found['a'][1:] == value['a'][1:] and found['b'] == value['b']


def test_memory_stays_below_the_file(torch, save):
  path = save({str(i): torch.ones(1 << 18) for i in range(8)})
  tracemalloc.start()
  try:
    found = read(path)
    total = sum(np.array(x).sum() for x in found.values())
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert total == 8 << 18 and os.path.getsize(path) > 8 << 20
  assert peak < 1.5 * (1 << 20)  # one tensor


def test_checksum(torch, save):
  path = save({'a': torch.arange(100.0)})
  content = bytearray(open(path, 'rb').read())
  where = content.index(np.arange(100, dtype='<f4').tobytes()[8:])
  content[where + 40] ^= 1
  open(path, 'wb').write(content)
  refused(path, 'data/0 differs from its checksum')
  torch.serialization.set_crc32_options(False)
  try:
    path = save({'a': torch.arange(100.0)})
  finally:
    torch.serialization.set_crc32_options(True)
  assert read(path)['a'][7] == 7


@FORMATS
def test_any_cut_is_refused(torch, save, tmp_path, as_zip):
  path = save({'a': torch.arange(50.0), 'b': torch.ones(3).half()}, as_zip)
  content = open(path, 'rb').read()
  for size in {*range(0, len(content), 37), len(content) - 1}:
    (tmp_path / 'cut').write_bytes(content[:size])
    refused(tmp_path / 'cut')


@FORMATS
def test_flipped_bytes_do_no_harm(torch, save, tmp_path, as_zip):
  """Either plain data or a sentence, whatever the damage."""
  path = save({'a': torch.arange(9.0), 'b': [torch.ones(3).half()]}, as_zip)
  content = open(path, 'rb').read()
  rng = np.random.default_rng(0)
  outcomes = collections.Counter()
  for _ in range(400):
    damaged = bytearray(content)
    for where in rng.integers(0, min(len(content), 700), 3):
      damaged[where] = rng.integers(0, 256)
    (tmp_path / 'bad').write_bytes(damaged)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # zipfile's, of doubled names
      try:
        open_source(str(tmp_path / 'bad'))
        outcomes['read'] += 1
      except UserError:
        outcomes['refused'] += 1
  assert outcomes['refused'] > 100


def zipped(tmp_path, data, entries=(), compression=zipfile.ZIP_STORED):
  """A zip of torch.save around a pickle; entries: {name: bytes}."""
  with zipfile.ZipFile(tmp_path / 'x.pth', 'w', compression) as file:
    file.writestr('x/data.pkl', data)
    for name, content in dict(entries).items():
      file.writestr(f'x/{name}', content)
  return tmp_path / 'x.pth'


def legacy(tmp_path, data, keys=(), rest=b''):
  """A legacy file of torch.save around a pickle."""
  head = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True})
  parts = [pickle.dumps(x, 2) for x in head] + [data]
  content = b''.join((*parts, pickle.dumps(list(keys), 2), rest))
  (tmp_path / 'old.pth').write_bytes(content)
  return tmp_path / 'old.pth'


WRAPPERS = pytest.mark.parametrize('wrap', (zipped, legacy))


@WRAPPERS
@pytest.mark.parametrize('protocol', range(6))
def test_nothing_is_executed(tmp_path, wrap, protocol):
  class Attack:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'attacked'),)

  path = wrap(tmp_path, pickle.dumps({'a': Attack()}, protocol))
  refused(path, 'mkdir')
  assert not (tmp_path / 'attacked').exists()


@WRAPPERS
@pytest.mark.parametrize('name', (
  'builtins eval', 'builtins getattr', '__builtin__ exec', 'os system',
  'torch load', 'torch._utils _rebuild_tensor_v2.__globals__',
  'collections OrderedDict.fromkeys', 'numpy load', 'functools partial',
))  # fmt: skip
def test_other_names_are_refused(tmp_path, wrap, name):
  path = wrap(tmp_path, b'c%s\n.' % name.replace(' ', '\n').encode())
  refused(path, name.replace(' ', '.'), 'not allowed', 'torch.save')


# An OrderedDict() or the function of tensors, as pickles start them.
TENSOR = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ"


def tensor(offset, shape, strides, storage=STORAGE):
  args = b'I%d\n(' % offset + b''.join(b'I%d\n' % s for s in shape) + b't('
  args += b''.join(b'I%d\n' % s for s in strides) + b't'
  return TENSOR + b'(' + storage + args + b'I00\nNtR.'


def test_hand_written_pickle(tmp_path):
  entries = {'data/0': struct.pack('<4f', 1, 2, 3, 4)}
  path = zipped(tmp_path, tensor(1, (2, 2), (1, 1)), entries)
  assert_array_equal(read(str(path)), [[2, 3], [3, 4]])
  path = legacy(
    tmp_path,
    tensor(1, (2, 2), (1, 1), STORAGE.replace(b'tQ', b'NtQ')),
    ['0'],
    struct.pack('<q4f', 4, 1, 2, 3, 4),
  )
  assert_array_equal(read(str(path)), [[2, 3], [3, 4]])
  part = STORAGE.replace(b'tQ', b"(S'1'\nI1\nI2\nttQ")
  path = legacy(
    tmp_path,
    tensor(0, (2,), (1,), part),
    ['0'],
    struct.pack('<q4f', 4, 1, 2, 3, 4),
  )
  assert_array_equal(read(str(path)), [2, 3])


@pytest.mark.parametrize('data, words', (
  (tensor(1, (4,), (1,)), 'exceeds its storage'),
  (tensor(0, (2, 3), (2, 1)), 'exceeds its storage'),
  (tensor(-1, (2,), (1,)), 'impossible'),
  (tensor(3, (2,), (-1,)), 'impossible'),
  (tensor(0, (2,), (1, 1)), 'too many'),
  (tensor(0, (2**20, 2**20), (0, 0)), 'repeats'),
  (tensor(0, (2**60, 2**60), (0, 0)), 'impossible'),
  (tensor(0, (2**40,) * 4, (0,) * 4), 'repeats'),
  (tensor(0, (1,) * 40, (0,) * 40), 'too many'),
  (tensor(0, (2,), (1,), b'N'), 'without a storage'),
  (tensor(0, (2,), (1,), STORAGE.replace(b'I4', b'I5')), 'cut off'),
  (tensor(0, (2,), (1,), STORAGE.replace(b'I4', b'I-4')), 'impossible'),
  (tensor(0, (2,), (1,), STORAGE.replace(b"S'0'", b"S'1'")), 'data/1 is miss'),
  (tensor(0, (2,), (1,), STORAGE.replace(b"S'0'", b'I1')), 'than a storage'),
  (tensor(0, (2,), (1,), STORAGE.replace(b'Float', b'Foo')), 'FooStorage'),
  (TENSOR + b'}b.', 'fills a dict'),
  (TENSOR + b"N(S'__code__'\nI1\nd\x86b.", 'fills a dict'),
  (b'ctorch\nFloatStorage\n)R.', 'no function'),
  (b'I1\n)R.', 'no function'),
  (b"(I1\nI2\nl(I3\ntI4\ns.", 'fills a dict'),
  (b'}))s.', 'a key'),
  (b'}' + b')' + b'\x85' * 400_000 + b'I1\ns.', 'a key'),
  (b')' + b'\x85' * 400_000 + b'I1\n\x93.', 'without a name'),
  (b'\x80\x05\x97.', 'NEXT_BUFFER'),
  (b'0.', 'IndexError'),
  (b'g7\n.', 'KeyError'),
  (b'r\xff\xff\xff\x7f.', 'IndexError'),
  (b'', 'before seeing STOP'),
  (b'\x8e' + b'\xff' * 7 + b'\x7fabc', ''),
  (b'c' + b'x' * 10_000 + b'\ny\n.', 'xxx'),
), ids=lambda x: x if isinstance(x, str) else '')  # fmt: skip
def test_impossible_pickles(tmp_path, data, words):
  refused(zipped(tmp_path, data, {'data/0': bytes(16)}), words)


def test_a_long_memo_index_takes_no_memory(tmp_path):
  """Python's own unpickler would allocate a table of that length."""
  data = b']r\xff\xff\xff\x7fj\xff\xff\xff\x7f.'
  tracemalloc.start()
  try:
    assert read(str(zipped(tmp_path, data))) == []
    assert tracemalloc.get_traced_memory()[1] < 1e6
  finally:
    tracemalloc.stop()


def test_bombs_are_refused(tmp_path, monkeypatch):
  bomb = b']' * (9 << 20) + b'.'
  refused(zipped(tmp_path, bomb), 'bytes')
  refused(zipped(tmp_path, bomb, compression=8), 'data.pkl is compressed')
  monkeypatch.setattr(plain_pickle, 'MAX_BYTES', 1000)
  refused(legacy(tmp_path, b']' * 2000 + b'.'), 'more than 1000 bytes')


def test_broken_archives(tmp_path, torch, save):
  refused(tmp_path / 'none.pth', 'not a file')
  refused(tmp_path, 'not a file')
  for content in (b'', b'PK\x03\x04', b'no'):
    (tmp_path / 'x.bin').write_bytes(content)
    refused(tmp_path / 'x.bin', 'torch.save')
  refused(zipped(tmp_path, b'N.', {'byteorder': b'big'}), 'big-endian')
  source = zipfile.ZipFile(save({'a': torch.ones(100)}))
  with zipfile.ZipFile(tmp_path / 'y.pth', 'w', 8) as packed:
    for info in source.infolist():
      packed.writestr(info.filename, source.read(info))
  refused(tmp_path / 'y.pth', 'is compressed')


@pytest.mark.parametrize('rest, words', (
  (struct.pack('<q3f', 4, 1, 2, 3), 'cut off'),
  (struct.pack('<q4f', 5, 1, 2, 3, 4), 'has 5 elements, not 4'),
  (b'', 'error'),
), ids=('cut', 'other', 'none'))  # fmt: skip
def test_legacy_storages(tmp_path, rest, words):
  data = tensor(0, (2,), (1,), STORAGE.replace(b'tQ', b'NtQ'))
  refused(legacy(tmp_path, data, ['0'], rest), words)
  refused(legacy(tmp_path, data, ['1'], rest), 'KeyError')
  refused(legacy(tmp_path, data, [(('0',),)], rest), 'a key')


def test_numbers_written_by_torch_are_read_elsewhere(save, torch, tmp_path):
  """The archive's folder has any name; torchvision's is `archive`."""
  path = save({'a': torch.ones(2)})
  shutil.move(path, tmp_path / 'resnet-5c106cde.pth')
  found = read(str(tmp_path / 'resnet-5c106cde.pth'))
  assert_array_equal(found['a'], [1, 1])
