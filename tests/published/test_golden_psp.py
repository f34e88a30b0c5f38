"""A published pSp checkpoint with its recorded codes."""

import jax
import numpy as np
import pytest
from entries import arrays_of
from numpy.testing import assert_allclose

from jaxseg.published import networks, psp
from jaxseg.published.read import open_source


@pytest.fixture(scope='module')
def source(shared):
  return open_source(str(shared / 'golden' / 'semanticgan' / 'psp_rgb_64.pt'))


def test_codes(source, recorded):
  wanted = recorded('psp_rgb_64_io')
  network = psp.encoder(source.under('state_dict/encoder.'), 'psp_encoder')
  assert network.settings == {
    'input_size': 256,
    'w_dim': 32,
    'num_styles': 10,
    'units': [3, 4, 14, 3],
    'widths': [16, 32, 64, 128],
    'stem_width': 16,
    'se_widths': [1, 2, 4, 8],
    'head_depths': [4, 5, 6],
    'head_width': 32,
    'channels': 3,
  }
  encoder = networks.module(network.arch, network.settings)
  image = wanted['x'].transpose(0, 2, 3, 1).astype(np.float32)
  codes = jax.jit(encoder.apply)(arrays_of(network.variables), image)
  close = dict(rtol=0, atol=1e-4)
  assert_allclose(codes, wanted['codes'], **close)
  w_avg = source.entry('latent_avg', (10, 32)).read()
  assert_allclose(codes + w_avg, wanted['wplus'], **close)
