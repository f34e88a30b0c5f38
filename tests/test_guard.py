"""What the loop wraps around a step: bad batches, several steps at once."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxseg import guard, method, resources, runtime
from jaxseg.resources import NotEnough
from jaxseg.runtime import Locked
from jaxseg.watchdog import Watchdog

TX = optax.sgd(0.1)


def start():
  return method.new_state(jax.random.key(0), {'seg': jnp.ones(3)}, {'seg': TX})


def train_step(state, batch):
  """Least squares; the second metric is finite whatever the batch."""

  def loss_fn(params):
    return jnp.square(params - batch['x']).mean()

  loss, grads = jax.value_and_grad(loss_fn)(state.params['seg'])
  params, _ = method.update(
    TX, grads, state.opt_state['seg'], state.params['seg']
  )
  state = state.replace(step=state.step + 1, params={'seg': params})
  return state, {'loss': loss, 'constant': jnp.ones(())}


def batches():
  x = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
  x[2, 1] = np.nan
  x[4] = np.inf
  return [{'x': row} for row in x]


def run(step, each):
  state, health, seen = start(), guard.healthy(), []
  for batch in each:
    state, health, metrics = jax.jit(step)(state, health, batch)
    seen.append(metrics)
  return state, health, seen


def test_a_bad_batch_costs_its_step_and_nothing_else():
  state, health, seen = run(guard.guarded(train_step), batches())
  expected = start()
  for i, batch in enumerate(batches()):
    if i not in (2, 4):
      expected, _ = train_step(expected, batch)
  np.testing.assert_allclose(
    state.params['seg'], expected.params['seg'], rtol=1e-6
  )
  assert int(state.step) == 6
  assert [int(x) for x in health] == [2, 0, 5, int(health.terms)]
  assert guard.names(int(health.terms), seen[0]) == ['loss']
  assert np.isnan(seen[2]['loss']) and np.isinf(seen[4]['loss'])


def test_a_finite_loss_with_a_nan_gradient_has_no_effect():
  def distance(params):
    return jnp.sqrt(jnp.square(params - 1).sum())  # 0, with gradient 0 / 0

  def step(state, batch):
    loss, grads = jax.value_and_grad(distance)(state.params['seg'])
    params = state.params['seg'] - grads
    return state.replace(step=state.step + 1, params={'seg': params}), {
      'loss': loss
    }

  state, health, seen = run(guard.guarded(step), [None])
  assert float(seen[0]['loss']) == 0 and int(state.step) == 1
  np.testing.assert_array_equal(state.params['seg'], 1)
  assert guard.names(int(health.terms), seen[0]) == ['the update']


def test_bad_steps_in_a_row_are_counted():
  bad = [batches()[2]] * 3
  _, health, _ = run(guard.guarded(train_step), batches()[:2] + bad)
  assert (int(health.skipped), int(health.row), int(health.step)) == (3, 3, 5)


def test_several_steps_at_once_are_those_one_by_one():
  one = guard.guarded(train_step)
  state, health, seen = run(one, batches())
  stacked = jax.tree.map(lambda *x: np.stack(x), *batches())
  halves = [{'x': stacked['x'][i : i + 3]} for i in (0, 3)]
  other, other_health, last = run(guard.several(one), halves)
  np.testing.assert_array_equal(state.params['seg'], other.params['seg'])
  assert jax.tree.map(int, health) == jax.tree.map(int, other_health)
  np.testing.assert_array_equal(last[1]['loss'], seen[5]['loss'])


def test_random_keys_pass_through():
  state, _, _ = run(guard.guarded(train_step), batches()[:1])
  assert (jax.random.key_data(state.rng) == jax.random.key_data(
    start().rng)).all()  # fmt: skip


@pytest.fixture
def left():
  return []


def test_a_process_that_stands_still_leaves_its_stacks(tmp_path, left, capsys):
  with Watchdog(0.2, tmp_path, '3', left.append) as watchdog:
    time.sleep(0.5)
    assert not left, 'what compiles before the first beat may take longer'
    watchdog.beat()
    with watchdog.pause():
      time.sleep(0.5)
    assert not left, 'nor in a pause'
    for _ in range(5):
      time.sleep(0.1)
      watchdog.beat()
    assert not left
    end = time.monotonic() + 10
    while not left and time.monotonic() < end:
      time.sleep(0.05)
  assert left == [7]
  stacks = (tmp_path / 'stuck_3.txt').read_text()
  assert 'test_a_process_that_stands_still' in stacks
  assert 'stuck_3.txt' in capsys.readouterr().err


def test_without_a_time_nothing_is_watched(tmp_path, left):
  with Watchdog(0.0, tmp_path, leave=left.append) as watchdog:
    watchdog.beat()
    time.sleep(0.2)
  assert not left


def test_two_trainings_of_one_workdir(tmp_path):
  with runtime.locked(tmp_path):
    with pytest.raises(Locked, match='in use by process [0-9]+ on') as caught:
      with runtime.locked(tmp_path):
        pass
  assert caught.value.exit_code == 5
  with runtime.locked(tmp_path):
    pass


def test_disk_that_is_too_small(tmp_path, monkeypatch):
  usage = type('Usage', (), {'free': 500 << 20})
  monkeypatch.setattr(resources.shutil, 'disk_usage', lambda path: usage)
  resources.check_disk(tmp_path, {'gan': (100 << 20, 3)})
  needs = {'unet': (1 << 20, 3), 'gan': (200 << 20, 3)}
  message = '524 MB free, expected 699 MB .*gan alone: 3 of 210 MB'
  with pytest.raises(NotEnough, match=message) as caught:
    resources.check_disk(tmp_path, needs)
  assert caught.value.exit_code == 5
  # What is there already will make room.
  (tmp_path / 'gan' / 'checkpoints').mkdir(parents=True)
  with (tmp_path / 'gan' / 'checkpoints' / 'x').open('wb') as file:
    file.truncate(400 << 20)
  resources.check_disk(tmp_path, needs)


def test_memory_that_is_too_small():
  sizes = {'unet': 10 << 20, 'gan': 2 << 30}
  resources.check_memory(sizes, 1, 8 << 30)
  resources.check_memory(sizes, 8, None)
  with pytest.raises(NotEnough, match='gan needs at least 25.8 GB.*8 devices'):
    resources.check_memory(sizes, 8, 8 << 30)
  assert resources.memory() > 100 << 20
