"""Ranger's parts, one at a time, and the learning-rate curve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from jaxseg import optimizers


def run(tx, params, steps, grads=None):
  """Parameters after each step; the same gradient every time."""
  state, seen = tx.init(params), []
  update = jax.jit(tx.update)
  for _ in range(steps):
    updates, state = update(params if grads is None else grads, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(params)
  return seen


def test_centralize_each_output_channel():
  kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 5))
  assert_allclose(optimizers.centralize(kernel).mean((0, 1, 2)), 0, atol=1e-6)
  dense = jnp.array([[1.0, 2.0], [3.0, 6.0]])
  assert_allclose(optimizers.centralize(dense), [[-1, -2], [1, 2]])
  bias = jnp.arange(3.0)
  assert_allclose(optimizers.centralize(bias), bias)


def test_slow_weights_meet_the_fast_ones():
  """Five steps of momentum alone, then half of the way back."""
  tx = optimizers.ranger(0.1, threshold=np.inf, sync_period=6)
  seen = run(tx, jnp.zeros(1), 7, jnp.ones(1))
  # Bias-corrected momentum of a constant gradient is that gradient.
  assert_allclose(np.ravel(seen[:5]), [-0.1, -0.2, -0.3, -0.4, -0.5], rtol=1e-5)
  assert_allclose(seen[5], -0.3, rtol=1e-5)
  assert_allclose(seen[6], -0.4, rtol=1e-5)


def test_rectified_steps_do_not_depend_on_the_gradients_scale():
  tx = optimizers.ranger(0.1, eps=0.0, sync_period=10**6)
  small, large = (
    np.ravel(run(tx, jnp.zeros(1), 30, jnp.full(1, scale)))
    for scale in (1e-3, 1e3)
  )
  steps = np.diff(small)[6:]
  assert (steps < 0).all()
  assert_allclose(np.diff(large)[6:], steps, rtol=1e-2)


def test_rectification_is_defined_from_four_samples():
  with pytest.raises(ValueError, match='threshold is 3, must be at least 4'):
    optimizers.ranger(0.1, threshold=3)


def test_learning_rate_may_be_a_schedule():
  tx = optimizers.ranger(lambda step: jnp.where(step < 2, 0.1, 0.0))
  seen = run(tx, jnp.zeros(1), 4, jnp.ones(1))
  assert_allclose(np.ravel(seen), [-0.1, -0.2, -0.2, -0.2], rtol=1e-5)


def test_finds_a_minimum():
  params = {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
  last = run(optimizers.ranger(0.1), params, 150)[-1]
  assert_allclose(last['bias'], 0, atol=0.1)


def test_params_are_needed():
  tx = optimizers.ranger(0.1)
  with pytest.raises(ValueError, match='needs params'):
    tx.update(jnp.ones(1), tx.init(jnp.ones(1)))


def test_constant_then_cosine():
  schedule = optimizers.constant_then_cosine(1.0, 10, 30, 0.2)
  at = [float(schedule(step)) for step in (0, 10, 20, 30, 1000)]
  assert_allclose(at, [1, 1, 0.6, 0.2, 0.2], rtol=1e-6)


def test_constant_when_the_descent_is_empty():
  schedule = optimizers.constant_then_cosine(0.5, 10, 10, 0.1)
  assert_allclose([schedule(0), schedule(100)], [0.5, 0.5])
