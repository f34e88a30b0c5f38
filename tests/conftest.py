"""Settings of every test: CPU, eight virtual devices, one compilation cache.

They are environment variables, set before JAX is imported, so that programs
started by a test inherit them.
"""

import functools
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
DEVICES = '--xla_force_host_platform_device_count'
if DEVICES not in os.environ.get('XLA_FLAGS', ''):
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} {DEVICES}=8'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  CACHE = tempfile.TemporaryDirectory(prefix='jaxseg_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = CACHE.name
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')

import jaxseg  # noqa: E402, F401  its XLA flag counts only before JAX starts


@pytest.fixture(scope='session')
def shared() -> Path:
  """Folder of published weights and recorded outputs; skips without it."""
  repository = Path(__file__).resolve().parents[1]
  folder = Path(os.environ.get('JAXSEG_SHARED', repository.parent / 'shared'))
  if not (folder / 'golden').is_dir():
    pytest.skip(f'no reference data in {folder}; set JAXSEG_SHARED')
  return folder


@pytest.fixture(scope='session')
def recorded(shared):
  """name -> arrays of a recording of the published SemanticGAN."""
  folder = shared / 'golden' / 'semanticgan'
  return functools.cache(lambda name: dict(np.load(folder / f'{name}.npz')))
