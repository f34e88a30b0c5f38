"""Damaged safetensors and .npz files; random damage of every format."""

import io
import json
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hostile_files import (
  TENSOR,
  arrays_of,
  legacy,
  memory_of,
  refused,
  zipped,
)
from numpy.testing import assert_array_equal

from jaxseg.errors import UserError


def safe(header, data=bytes(16), size=None):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  return struct.pack('<Q', size or len(header)) + header + data


def entry(start=0, stop=16, shape=(4,), dtype='F32'):
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, stop]}


PAIR = f'"a": {json.dumps(entry())}'
SAFE = {
  'long header': safe({'a': entry()}, size=2**63),
  'negative header': safe({'a': entry()}, size=2**64 - 1),
  'header beyond the end': safe({'a': entry()}, size=200),
  'header of 90 MB': safe(b'{' + b' ' * (90 << 20) + b'}'),
  'deep header': safe(b'{"a":' * 100_000 + b'}' * 100_000),
  'overlap': safe({'a': entry(), 'b': entry(8, 24)}, bytes(24)),
  'same place': safe({'a': entry(), 'b': entry()}),
  'hole': safe({'a': entry(), 'b': entry(24, 40)}, bytes(40)),
  'beyond the end': safe({'a': entry(0, 1 << 40, (1 << 38,))}),
  'end before start': safe({'a': entry(16, 0)}),
  'negative': safe({'a': entry(-16, 0)}),
  'too short': safe({'a': entry(shape=(5,))}),
  'overflow': safe({'a': entry(shape=(2**62, 2**62))}),
  'empty overflow': safe({'a': entry(0, 0, (0, 2**62))}, b''),
  'negative shape': safe({'a': entry(shape=(-4, -1))}),
  'one name twice': safe(f'{{{PAIR}, {PAIR}}}'.encode()),
  'unknown dtype': safe({'a': entry(dtype='F31')}),
  'no JSON': safe(b'{"a": nonsense' + b' ' * 20),
  'list': safe({'a': []}),
  'cut off': safe({'a': entry()})[:-1],
  'trailing': safe({'a': entry()}) + b'x',
  'control characters': safe({'a\x1b[31m\n': entry()}),
  'metadata': safe({'__metadata__': [1], 'a': entry()}),
}  # fmt: skip


@pytest.mark.parametrize('name', SAFE)
def test_safetensors(tmp_path, name):
  refused(tmp_path / 'x', SAFE[name])


def test_memory_of_safetensors(tmp_path):
  assert memory_of(tmp_path, SAFE.values()) < 100_000


def test_npz(tmp_path):
  def content(save=np.savez, **arrays):
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()

  path = tmp_path / 'x'
  objects = np.array([{'a': 1}], object)
  refused(path, content(a=objects), 'objects')
  bomb = content(np.savez_compressed, a=np.zeros(1 << 24, 'f4'))
  refused(path, bomb, 'unpacks')
  good = content(a=np.arange(100, dtype='f4'))
  refused(path, good[:-40])
  refused(path, good.replace(b"'shape': (100,)", b"'shape': (-10,)"), 'a.npy')
  data = bytearray(content(a=np.zeros(100_000)))
  data[-1000] ^= 1
  refused(path, bytes(data), 'a is damaged')


ARRAYS = {'a': np.arange(12, dtype='f4').reshape(3, 4), 'b.c': np.ones(2, 'f2')}


def fuzzed():
  """{format: (content, whether a checksum covers the numbers)}."""
  out = io.BytesIO()
  np.savez_compressed(out, **ARRAYS)
  storage = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\nNtQ"
  row = (TENSOR % (0, 2)).replace(
    b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI4\ntQ", storage
  )
  numbers = struct.pack('<4f', *range(4))
  return {
    'zip': (zipped(TENSOR % (0, 2), {'x/data/0': numbers}), True),
    'legacy': (legacy(row, ['0'], struct.pack('<q', 4) + numbers), False),
    'npz': (out.getvalue(), True),
    'safetensors': (safetensors.numpy.save(ARRAYS), False),
    'pickle 2': (pickle.dumps({'x': ARRAYS, 'n': np.float64(2)}, 2), False),
    'pickle 5': (pickle.dumps({'x': ARRAYS, 'n': {1, 2}}, 5), False),
  }


@pytest.mark.parametrize('name', fuzzed())
def test_damage_is_told_or_harmless(tmp_path, name):
  content, has_checksum = fuzzed()[name]
  path, rng = str(tmp_path / 'x'), np.random.default_rng(0)

  Path(path).write_bytes(content)
  before, told = arrays_of(path), 0
  assert before
  for i in range(300):
    damaged = bytearray(content)
    if i % 4:
      damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
    else:
      del damaged[rng.integers(len(content)) :]
    Path(path).write_bytes(damaged)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        after = arrays_of(path)
    except UserError as error:
      assert '\n' not in str(error)
      told += 1
      continue
    if has_checksum:
      assert set(after) == set(before)
      for key, array in before.items():
        assert_array_equal(after[key], array)
  assert told > 75
