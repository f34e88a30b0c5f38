"""Settings of every test: CPU, eight virtual devices, quick compilations.

They are environment variables, set before JAX is imported, so that programs
started by a test inherit them.
"""

import functools
import os
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from jaxseg import _xla_flags  # sets its own flag before JAX starts

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A test runs a program a few times: most of its time is compilation, and least
# of it without LLVM's passes and without an emitter for each fusion.
FLAGS = {
  '--xla_force_host_platform_device_count': '8',
  '--xla_backend_optimization_level': '0',
}
if metadata.version('jaxlib') in _xla_flags.KNOWN_JAXLIB:
  FLAGS['--xla_cpu_use_fusion_emitters'] = 'false'
for flag, value in FLAGS.items():
  flags = os.environ.get('XLA_FLAGS', '')
  if flag not in flags:
    os.environ['XLA_FLAGS'] = f'{flags} {flag}={value}'.strip()
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  CACHE = tempfile.TemporaryDirectory(prefix='jaxseg_cache_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = CACHE.name
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')


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
