"""Ranger's parts, one at a time, and the learning-rate curves."""

import golden_cyclegan
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from jaxseg import optimizers
from jaxseg.errors import UserError


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


def quadratic_path(settings, steps=12):
  """Values of two parameters under a known sequence of gradients."""
  params = {'encoder': jnp.array([1.0, -2.0]), 'decoder': jnp.array([0.5])}
  tx = optimizers.make(settings, steps)
  state = tx.init(params)
  path = []
  for i in range(steps):
    grads = jax.tree.map(lambda p, i=i: p * p + 0.1 * i - 0.3, params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    path.append(np.concatenate([params['encoder'], params['decoder']]))
  return np.stack(path)


@pytest.mark.parametrize(
  'settings',
  [
    dict(name='sgd', momentum=0.9, weight_decay=0.01),
    dict(name='sgd', momentum=0.8, nesterov=True, head_factor=10.0),
    dict(name='adam', weight_decay=0.01),
    dict(name='adamw', weight_decay=0.1, head_factor=3.0),
  ],
)
@pytest.mark.parametrize('schedule', optimizers.SCHEDULES)
def test_optimizer_is_that_of_pytorch(settings, schedule):
  torch = pytest.importorskip('torch')
  steps, lr = 12, 0.01
  settings = optimizers.Optimizer(
    lr=lr, schedule=schedule, hold=0.25, b1=0.5, b2=0.99, **settings
  )
  encoder = torch.tensor([1.0, -2.0], requires_grad=True)
  decoder = torch.tensor([0.5], requires_grad=True)
  groups = [
    {'params': [encoder]},
    {'params': [decoder], 'lr': lr * settings.head_factor},
  ]
  common = dict(lr=lr, weight_decay=settings.weight_decay)
  if settings.name == 'sgd':
    optimizer = torch.optim.SGD(
      groups, momentum=settings.momentum, nesterov=settings.nesterov, **common
    )
  else:
    kind = {'adam': torch.optim.Adam, 'adamw': torch.optim.AdamW}
    optimizer = kind[settings.name](groups, betas=(0.5, 0.99), **common)
  factor = {
    'constant': lambda i: 1.0,
    'poly': lambda i: (1 - i / steps) ** 0.9,
    'linear': lambda i: 1 - max(0, i - 3) / 9,
    'cosine': lambda i: 0.5 * (1 + np.cos(np.pi * i / steps)),
  }[schedule]
  scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
  path = []
  for i in range(steps):
    for p in (encoder, decoder):
      p.grad = (p * p + 0.1 * i - 0.3).detach()
    optimizer.step()
    scheduler.step()
    path.append(torch.cat([encoder, decoder]).detach().numpy().copy())
  np.testing.assert_allclose(quadratic_path(settings), path, atol=2e-6)


def test_warmup_climbs_to_the_highest_rate_then_follows_the_curve():
  settings = optimizers.Optimizer(lr=0.4, schedule='poly', warmup=0.2)
  curve = optimizers.schedule(settings, 20)
  np.testing.assert_allclose(
    [curve(i) for i in range(4)], [0.1, 0.2, 0.3, 0.4], rtol=1e-6
  )
  np.testing.assert_allclose(curve(4), 0.4, rtol=1e-6)
  np.testing.assert_allclose(curve(12), 0.4 * 0.5**0.9, rtol=1e-5)
  assert curve(20) == 0


def test_recorded_schedule_of_cyclegan():
  """400 epochs of 7 steps; within an epoch the rate stays."""
  recorded = golden_cyclegan.load('bookkeeping')
  settings = optimizers.Optimizer(
    lr=2e-4, schedule='linear', hold=0.25, period=7
  )
  curve = jax.jit(optimizers.schedule(settings, 400 * 7))
  for within in (0, 6):
    found = [curve(int(e) * 7 + within) for e in recorded['sched_epochs']]
    wanted = 2e-4 * recorded['sched_factor']
    assert_allclose(found, wanted, rtol=2e-5, atol=1e-10)
  assert {0.5, 0} < set(recorded['sched_factor'])


def test_linear_by_hand():
  curve = optimizers.schedule(optimizers.Optimizer(lr=1, schedule='linear'), 4)
  assert_allclose([curve(i) for i in range(6)], [1, 0.75, 0.5, 0.25, 0, 0])
  held = optimizers.Optimizer(lr=1, schedule='linear', hold=0.5)
  curve = optimizers.schedule(held, 8)
  assert_allclose([curve(i) for i in (0, 4, 5, 7, 8)], [1, 1, 0.75, 0.25, 0])
  curve = optimizers.schedule(held._replace(hold=0.99), 2)
  assert_allclose([curve(i) for i in range(3)], [1, 1, 0])


@pytest.mark.parametrize('name', ('cosine', 'poly', 'linear', 'constant'))
def test_period_after_a_warmup_that_climbs_at_each_step(name):
  each = optimizers.Optimizer(lr=0.4, schedule=name, warmup=0.2)
  curve = optimizers.schedule(each, 20)
  stepped = optimizers.schedule(each._replace(period=8), 20)
  assert_allclose([stepped(i) for i in range(4)], [0.1, 0.2, 0.3, 0.4])
  # The curve begins at step 4: it changes at 12 and 20.
  assert_allclose([stepped(i) for i in (4, 11)], 2 * [curve(4)])
  assert_allclose([stepped(i) for i in (12, 19)], 2 * [curve(12)])
  assert_allclose(stepped(20), curve(20), atol=1e-7)


def test_adam_by_hand():
  """Kingma and Ba 2015, algorithm 1, with CycleGAN's b1."""
  settings = optimizers.Optimizer(
    name='adam', lr=0.1, schedule='constant', weight_decay=0.0, b1=0.5
  )
  p, m, v = np.array([1.0, -2.0, 0.5]), 0.0, 0.0
  path = quadratic_path(settings, 6)
  for i in range(6):
    g = p * p + 0.1 * i - 0.3
    m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g * g
    corrected = m / (1 - 0.5 ** (i + 1)), v / (1 - 0.999 ** (i + 1))
    p = p - 0.1 * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    assert_allclose(path[i], p, atol=1e-5)


def test_defaults_are_those_of_optax_to_the_bit(monkeypatch):
  settings = optimizers.Optimizer()
  found = quadratic_path(settings)
  make = lambda settings, steps: optax.adamw(
    optax.cosine_decay_schedule(1e-3, steps), weight_decay=1e-4
  )
  monkeypatch.setattr(optimizers, 'make', make)
  np.testing.assert_array_equal(found, quadratic_path(settings))


@pytest.mark.parametrize('field, value, match', (
  ('hold', 1.0, 'optimizer.hold is 1.0, must be from 0 to below 1'),
  ('b1', -0.1, 'optimizer.b1 is -0.1, must be from 0 to below 1'),
  ('b2', 1.0, 'optimizer.b2 is 1.0, must be from 0 to below 1'),
  ('period', 0, 'optimizer.period is 0, must be at least 1'),
))  # fmt: skip
def test_numbers_out_of_range_are_refused(field, value, match):
  with pytest.raises(UserError, match=match):
    optimizers.make(optimizers.Optimizer(**{field: value}), 10)


@pytest.mark.parametrize('field', ['name', 'schedule'])
def test_unknown_optimizer_is_refused(field):
  settings = optimizers.Optimizer(**{field: 'lion'})
  with pytest.raises(UserError, match=f"optimizer.{field} is 'lion'"):
    optimizers.make(settings, 10)
