"""Mean Teacher's pieces against NumPy and recorded sequences."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.losses import consistency
from jaxseg.method import ema_update
from jaxseg.methods import segmenting

RECORDED = Path(__file__).parents[1] / 'goldens' / 'mt_schedules.npz'


@pytest.fixture(scope='module')
def recorded():
  return dict(np.load(RECORDED))


@pytest.fixture(scope='module')
def logits():
  rng = np.random.default_rng(0)
  return 3 * rng.normal(size=(2, 2, 4, 5, 3)).astype(np.float32)


def test_recorded_ramp_up(recorded):
  found = [segmenting.ramp_up(jnp.int32(c), 30) for c in range(41)]
  assert_allclose(found, recorded['rampup'], rtol=2e-6)
  assert segmenting.ramp_up(jnp.int32(0), 0) == 1


def teach(student, limit):
  teacher, found = jnp.float32(7), []  # the first step forgets the 7
  for step, value in enumerate(student):
    decay = consistency.teacher_decay(jnp.int32(step), limit)
    teacher = ema_update(teacher, jnp.float32(value), decay)
    found.append(float(teacher))
  return found


def test_recorded_teacher(recorded):
  found = teach(recorded['student'], 0.99)
  assert_allclose(found, recorded['teacher'], atol=1e-6)


def test_teacher_is_the_mean_of_students_and_then_forgets():
  student = np.random.default_rng(1).normal(size=40)
  found = teach(student, 0.9)
  means = np.cumsum(student) / np.arange(1, 41)
  assert_allclose(found[:10], means[:10], atol=1e-6)
  expected = means[9]
  for value, teacher in zip(student[10:], found[10:], strict=True):
    expected = 0.9 * expected + 0.1 * value
    assert_allclose(teacher, expected, atol=1e-6)


def softmax(x):
  e = np.exp(x.astype(np.float64))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('compared', consistency.COMPARED)
def test_mean_square_and_its_gradient(logits, compared):
  loss, grads = jax.value_and_grad(consistency.mean_square, (0, 1))(
    *jnp.asarray(logits), compared
  )
  probabilities = compared == 'probabilities'
  student, teacher = softmax(logits) if probabilities else logits
  difference = student - teacher
  wanted = 2 * difference / difference.size
  if probabilities:  # through the softmax's Jacobian, diag(p) - p p^T
    wanted = student * (wanted - (wanted * student).sum(-1, keepdims=True))
  assert_allclose(loss, (difference**2).mean(), rtol=1e-5)
  assert_allclose(grads[0], wanted, rtol=1e-4, atol=1e-7)
  assert_allclose(grads[1], 0)


def test_mean_square_ends():
  sure = 100 * np.eye(4, dtype=np.float32).reshape(1, 2, 2, 4)
  assert consistency.mean_square(sure, sure) == 0
  # Sure of different classes at every pixel: 2 / K.
  assert_allclose(consistency.mean_square(sure, sure[:, ::-1]), 2 / 4)


def test_other_comparisons_are_refused(logits):
  with pytest.raises(ValueError, match="'labels'.*probabilities, logits"):
    consistency.mean_square(*logits, 'labels')


def test_confident(logits):
  wanted = (softmax(logits[0]).max(-1) >= 0.9).mean()
  assert 0 < wanted < 1
  assert_allclose(consistency.confident(logits[0], 0.9), wanted)
  half = np.zeros((1, 1, 1, 2), np.float32)
  assert consistency.confident(half, 0.5) == 1, 'the bound itself counts'


def test_noise():
  images = np.full((4, 32, 32, 3), 0.25, np.float32)
  key = jax.random.key(0)
  added = np.asarray(consistency.noise(key, images, 0.1)) - 0.25
  # Of a normal distribution cut off at 2 std: moments by integration.
  x = np.linspace(-8, 8, 100_001)
  density = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
  std = 0.1 * np.sqrt((np.clip(x, -2, 2) ** 2 * density).sum())
  assert_allclose(added.std(), std, rtol=0.02)
  assert_allclose(added.mean(), 0, atol=0.003)
  assert_allclose(np.abs(added).max(), 0.2, rtol=1e-5)
  assert len(np.unique(added)) > 10_000, 'each value has noise of its own'
  assert consistency.noise(key, images, 0.0) is images
