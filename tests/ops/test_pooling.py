"""Max pooling: NumPy's values, and gradients that go to the maxima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import ops
from jaxseg.ops.pooling import max_pool


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('height, width', ((6, 8), (5, 7), (1, 2)))
def test_against_numpy(name, height, width):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
  wanted = windows[:, ::2, ::2].max((-1, -2))
  wanted_grad = np.zeros_like(x)
  for value in wanted.ravel():  # drawn values are all different
    wanted_grad[x == value] += 2 * value
  with ops.implementation(name):
    run = jax.jit(
      lambda x: (max_pool(x), jax.grad(lambda x: (max_pool(x) ** 2).sum())(x))
    )
    pooled, grad = run(x)
  assert_array_equal(pooled, wanted)
  assert_allclose(grad, wanted_grad, atol=1e-6)


def test_one_of_equal_maxima_receives_the_gradient():
  with ops.implementation('fast'):
    grad = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 4, 4, 1)))
  assert grad.sum() == 4 and set(np.unique(grad)) <= {0, 1, 2, 4}


def test_nan_is_not_hidden():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3].set(jnp.nan)
  with ops.implementation('fast'):
    assert_array_equal(jnp.isnan(max_pool(x))[0, :, :, 0], [[0, 0], [0, 1]])
