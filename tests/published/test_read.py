"""Files of published weights, opened whatever their format."""

import argparse

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.testing import assert_array_equal

from jaxseg.errors import UserError
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


def test_other_files(tmp_path):
  with pytest.raises(UserError, match='not a file'):
    read.open_source(str(tmp_path))
  for content in (b'', b'no', b'<html>', b'PK\x03\x04', b'\x80\x02N.'):
    (tmp_path / 'x').write_bytes(content)
    refused(tmp_path / 'x')
