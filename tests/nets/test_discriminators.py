"""D_m: spectral and instance norm, its pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from quick import quick_jit

from jaxseg.nets import discriminators, layers
from jaxseg.nets.discriminators import SpectralConv


@pytest.fixture(scope='module')
def spectral_conv():
  """A module, its input and its variables."""
  x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
  conv = SpectralConv(8)
  init = quick_jit(lambda key: conv.init(key, x, False))
  return conv, x, init(jax.random.key(1))


def test_spectral_norm_is_the_largest_singular_value(spectral_conv):
  conv, x, variables = spectral_conv
  params = variables['params']

  @quick_jit
  def iterate(params, spectral):
    run = lambda _, s: conv.apply(
      {'params': params, 'spectral': s}, x, True, mutable=['spectral']
    )[1]['spectral']
    return jax.lax.fori_loop(0, 300, run, spectral)

  spectral = jax.device_get(iterate(params, variables['spectral']))
  matrix = np.asarray(params['kernel']).reshape(-1, 8)
  sigma = spectral['v'] @ matrix @ spectral['u']
  assert_allclose(sigma, np.linalg.svd(matrix)[1][0], rtol=1e-4)
  apply = quick_jit(lambda v: conv.apply(v, x, False))
  y = apply({'params': params, 'spectral': spectral})
  doubled = {'kernel': 2 * params['kernel']}
  again = apply({'params': doubled, 'spectral': spectral})
  assert_allclose(again, y, rtol=1e-4, atol=1e-6)


def test_power_iteration_runs_only_when_asked(spectral_conv):
  conv, x, variables = spectral_conv
  matrix = np.asarray(variables['params']['kernel']).reshape(-1, 8)
  kept, new = quick_jit(
    lambda v: [
      conv.apply(v, x, update, mutable=['spectral'])[1]['spectral']
      for update in (False, True)
    ]
  )(variables)
  old = variables['spectral']
  assert_allclose(kept['u'], old['u'])
  v = matrix @ np.asarray(old['u'])
  v /= np.linalg.norm(v)
  u = matrix.T @ v
  assert_allclose(new['v'], v, atol=1e-5)
  assert_allclose(new['u'], u / np.linalg.norm(u), atol=1e-5)


def test_instance_norm():
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
  y = np.asarray(quick_jit(layers.instance_norm)(x))
  assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
  assert_allclose(y.var((1, 2)), 1, atol=1e-4)


def test_halve_counts_the_border_with_its_true_size():
  x = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
  y = discriminators.halve(jnp.asarray(x))
  grid = x[0, :, :, 0]
  wanted = [
    [grid[:2, :2].mean(), grid[:2, 1:4].mean()],
    [grid[1:4, :2].mean(), grid[1:4, 1:4].mean()],
  ]
  assert_allclose(y[0, :, :, 0], wanted, rtol=1e-6)


def test_scores_are_the_last_outputs():
  assert discriminators.scores([[1, 2, 3], [4, 5]]) == [3, 5]
