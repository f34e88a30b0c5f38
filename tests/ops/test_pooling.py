"""Max pooling: PyTorch's values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from quick import quick_jit

from jaxseg import ops
from jaxseg.ops.pooling import max_pool


@pytest.mark.parametrize('name', ('fast', 'lax'))
@pytest.mark.parametrize('height, width', ((6, 8), (5, 7), (1, 2)))
def test_against_pytorch(name, height, width):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, height, width, 3)).astype(np.float32)
  there = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
  wanted = torch.nn.functional.max_pool2d(there, 3, 2, 1)
  wanted.square().sum().backward()
  with ops.implementation(name):
    run = quick_jit(
      lambda x: (max_pool(x), jax.grad(lambda x: (max_pool(x) ** 2).sum())(x))
    )
    pooled, grad = run(x)
  assert_array_equal(pooled, wanted.detach().permute(0, 2, 3, 1))
  assert_allclose(grad, there.grad.permute(0, 2, 3, 1), atol=1e-6)


def test_one_of_equal_maxima_receives_the_gradient():
  with ops.implementation('fast'):
    grad = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 4, 4, 1)))
  assert grad.sum() == 4 and set(np.unique(grad)) <= {0, 1, 2, 4}


def test_nan_is_not_hidden():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3].set(jnp.nan)
  with ops.implementation('fast'):
    assert_array_equal(jnp.isnan(max_pool(x))[0, :, :, 0], [[0, 0], [0, 1]])
