"""Adversarial losses by NumPy, penalties by finite differences and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.losses import gan


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def normal(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


def softplus(x):
  return np.log1p(np.exp(x))


def test_logistic(rng):
  real, fake = normal(rng, 5), normal(rng, 3)
  wanted = softplus(-real).mean() + softplus(fake).mean()
  assert_allclose(gan.logistic_d(real, fake), wanted, rtol=1e-5)
  assert_allclose(gan.logistic_g(fake), softplus(-fake).mean(), rtol=1e-5)
  # A discriminator that is far off must still get a gradient.
  grad = jax.grad(lambda x: gan.logistic_g(x))(jnp.array([-200.0]))
  assert_allclose(grad, [-1.0])


def test_hinge(rng):
  sizes = (4, 2)
  real, fake = ([3 * normal(rng, 2, s, s, 1) for s in sizes] for _ in 'ab')
  mean = lambda values: sum(v.mean() for v in values) / 2
  by_real = mean([np.maximum(0, 1 - r) for r in real])
  by_fake = mean([np.maximum(0, 1 + f) for f in fake])
  assert_allclose(gan.hinge_real(real), by_real, rtol=1e-5)
  assert_allclose(gan.hinge_fake(fake), by_fake, rtol=1e-5)
  both = gan.hinge_d(real, fake)
  assert_allclose(both, (by_real + by_fake) / 2, rtol=1e-5)
  assert_allclose(gan.hinge_g(fake), -mean(fake), rtol=1e-5)


def test_feature_matching(rng):
  shapes = ((2, 4, 4, 3), (2, 2, 2, 5), (2, 2, 2, 1))
  real, fake = (
    [[normal(rng, *s) for s in shapes] for _ in range(2)] for _ in 'ab'
  )
  wanted = 0
  for r, f in zip(real, fake, strict=True):
    wanted += sum(np.abs(r[i] - f[i]).mean() for i in (0, 1)) / 2
  assert_allclose(gan.feature_matching(real, fake), wanted, rtol=1e-5)


def test_feature_matching_moves_only_the_fake(rng):
  real, fake = [[normal(rng, 2, 3), None]], [[normal(rng, 2, 3), None]]
  by_real, by_fake = jax.grad(gan.feature_matching, (0, 1))(real, fake)
  assert_allclose(by_real[0][0], 0)
  assert np.abs(by_fake[0][0]).min() > 0


def quadratic(rng, n=3, size=4):
  """score(x) = b x + x A x / 2, with gradient b + A x."""
  a, b, x = normal(rng, size, size), normal(rng, size), normal(rng, n, size)
  a = a + a.T
  return a, b, x, lambda x: x @ b + 0.5 * ((x @ a) * x).sum(1)


def test_r1_in_closed_form(rng):
  a, b, x, score = quadratic(rng)
  wanted = np.square(b + x @ a).sum(1).mean()
  assert_allclose(gan.r1_penalty(score, x), wanted, rtol=1e-5)


def test_r1_by_finite_differences(rng):
  _, _, x, _ = quadratic(rng)
  score = lambda x: jnp.sin(x).sum(1) + x[:, 0] * x[:, 1]
  step, total = 1e-3, np.zeros(len(x))
  for i in range(x.shape[1]):
    shift = step * np.eye(x.shape[1], dtype=np.float32)[i]
    slope = (score(x + shift) - score(x - shift)) / (2 * step)
    total += np.square(slope)
  assert_allclose(gan.r1_penalty(score, x), total.mean(), rtol=1e-2)


def test_r1_adds_up_its_inputs(rng):
  x, y = normal(rng, 3, 2, 2, 1), normal(rng, 3, 4)
  score = lambda x, y: 2 * x.sum((1, 2, 3)) + 3 * y.sum(1)
  # Four numbers in each input: 4 (2^2 + 3^2).
  assert_allclose(gan.r1_penalty(score, x, y), 52, rtol=1e-6)


def test_r1_trains_parameters(rng):
  """d/ds |s v|^2 = 2 s |v|^2."""
  v, x = normal(rng, 4), normal(rng, 3, 4)
  penalty = lambda s: gan.r1_penalty(lambda x: s * (x @ v), x)
  wanted = 2 * 1.5 * np.square(v).sum()
  assert_allclose(jax.grad(penalty)(1.5), wanted, rtol=1e-5)


def test_patch_mean(rng):
  scores = [normal(rng, 3, 4, 4, 1), normal(rng, 3, 2, 2, 1)]
  wanted = sum(s.mean((1, 2, 3)) for s in scores)
  assert_allclose(gan.patch_mean(scores), wanted, rtol=1e-5)


def test_path_length_is_that_of_the_jacobian(rng):
  """A linear generator of one style: image = J w, gradient J^T y."""
  n, latents, width, side = 3, 2, 5, 4
  jacobian = normal(rng, side * side, latents * width)
  render = lambda w: (w.reshape(n, -1) @ jacobian.T).reshape(n, side, side, 1)
  w, y = normal(rng, n, latents, width), normal(rng, n, side, side, 1)
  mean = np.float32(0.3)
  penalty, new_mean, lengths = jax.jit(
    lambda w, y, mean: gan.path_length_penalty(render, w, y, mean)
  )(w, y, mean)
  grad = (y.reshape(n, -1) / side) @ jacobian
  grad = grad.reshape(n, latents, width)
  wanted = np.sqrt(np.square(grad).sum(2).mean(1))
  assert_allclose(lengths, wanted, rtol=1e-5)
  wanted_mean = mean + 0.01 * (wanted.mean() - mean)
  assert_allclose(new_mean, wanted_mean, rtol=1e-5)
  wanted_penalty = np.square(wanted - wanted_mean).mean()
  assert_allclose(penalty, wanted_penalty, rtol=1e-4)


def noise_maps(rng, n=2):
  return [normal(rng, n, s, s, 1) for s in (4, 8, 16)]


def test_noise_penalty_by_a_loop(rng):
  maps = noise_maps(rng)
  wanted = np.zeros(2)
  for n in range(2):
    for level in maps:
      x = level[n, :, :, 0]
      while True:
        size = len(x)
        right = down = 0.0
        for i in range(size):
          for j in range(size):
            right += x[i, j] * x[i, (j + 1) % size]
            down += x[i, j] * x[(i + 1) % size, j]
        wanted[n] += (right / size**2) ** 2 + (down / size**2) ** 2
        if size <= 8:
          break
        x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
  assert_allclose(jax.jit(gan.noise_penalty)(maps), wanted, rtol=1e-4)


def test_normalize_noise(rng):
  maps = [3 * x + 1 for x in noise_maps(rng)]
  for x in gan.normalize_noise(maps):
    assert_allclose(x.mean((1, 2, 3)), 0, atol=1e-5)
    assert_allclose(np.std(x, axis=(1, 2, 3), ddof=1), 1, rtol=1e-5)


def test_pixel_adversarial_by_hand():
  scores = jnp.array([[[3.0, -1.0], [0.5, 2.0]]])[..., None]
  valid = jnp.array([[[True, False], [True, True]]])
  of = gan.pixel_adversarial
  np.testing.assert_allclose(of(scores, True), (4 + 4 + 0.25 + 1) / 4)
  np.testing.assert_allclose(of(scores, False), (9 + 1 + 0.25 + 4) / 4)
  np.testing.assert_allclose(of(scores, True, valid), 5.25 / 3, rtol=1e-6)
  np.testing.assert_allclose(of(scores, False, valid), 13.25 / 3, rtol=1e-6)
  np.testing.assert_array_equal(of(scores, True, valid & False), 0)
  weight = jnp.array([[[1.0, 0.5], [0.0, 0.25]]])
  expected = (4 + 0.5 * 4 + 0.25) / 1.75
  np.testing.assert_allclose(of(scores, True, weight), expected, rtol=1e-6)
  s = np.asarray(scores).ravel()
  for real, sign in ((True, -1), (False, 1)):
    np.testing.assert_allclose(
      of(scores, real, kind='logistic'), np.log1p(np.exp(sign * s)).mean(),
      rtol=1e-6,
    )  # fmt: skip
