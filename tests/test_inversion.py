"""Test-time optimisation: against the published run, and by its own rules."""

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.methods import inversion
from jaxseg.nets import lpips
from jaxseg.nets.encoder import Encoder
from jaxseg.nets.stylegan2 import Generator

FOLDER = 'golden/semanticgan'


@pytest.fixture(scope='module')
def golden(shared):
  return np.load(shared / FOLDER / 'semgan_tto_rgb8_64.npz')


@pytest.fixture(scope='module')
def run(shared, golden):
  """Our 12 steps from the published start."""
  weights = np.load(shared / FOLDER / 'semgan_enc_fpn_rgb8_64_weights.npz')
  losses = np.load(shared / FOLDER / 'semgan_losses.npz')
  g = Generator(64, 3, 8, w_dim=64, channel_max=64)
  g_params = golden_weights.generator(weights, 'g_ema/')
  e = Encoder(64, 64, width=8, features=64, head_depths=(4, 5, 6), norm='batch')
  e_variables = golden_weights.encoder(weights, 'e/')
  metric = lpips.random_weights(0)
  metric['lin'] = [losses[f'lpips_lin{i}'] for i in range(5)]
  rates = jnp.asarray(golden['history_lr_total_lpips_mse_noise_enc'][:, 0])
  nchw = lambda x: jnp.asarray(x.transpose(0, 2, 3, 1))

  @jax.jit
  def invert(g_params, e_variables, metric, target, w, noise):
    model = inversion.Model(
      lambda w, z: g.apply({'params': g_params}, w, z, method='synthesize'),
      lambda x: e.apply(e_variables, x),
      lambda x: lpips.features(metric, x),
      lambda a, b: lpips.distance(metric, a, b),
    )
    at = lambda steps: inversion.invert(
      model,
      target,
      w,
      noise,
      steps=steps,
      schedule=lambda i: rates[i],
      optimize_noise=True,
    )
    final = at(12)
    image, logits = model.synthesize(*final.last)
    return at(2).last[0], final, image, logits

  # Its noise0_* are those of the end; the start is the generator file's.
  start = np.load(shared / FOLDER / 'semgan_gan_rgb8_64_g.npz')
  noise = [nchw(start[f'noise_{i}'][:1]) for i in range(9)]
  return invert(
    g_params,
    e_variables,
    metric,
    nchw(golden['target']),
    jnp.asarray(golden['w0']),
    noise,
  )


def test_first_steps_are_the_published_ones(golden, run):
  np.testing.assert_allclose(run[0], golden['w_after_step1'], atol=1e-4)


def test_losses_follow_the_published_trace(golden, run):
  published = golden['history_lr_total_lpips_mse_noise_enc'][:, 1]
  ours = np.asarray(run[1].trace[:12, 0])
  np.testing.assert_allclose(ours[:3], published[:3], rtol=1e-4)
  # The noise regulariser makes the path chaotic: later steps only loosely.
  np.testing.assert_allclose(ours, published, rtol=0.05)


def test_last_image_resembles_the_published_one(golden, run):
  image = np.asarray(run[2]).transpose(0, 3, 1, 2)
  difference = np.abs(image - golden['image_final']).mean()
  assert difference < 0.1 * np.abs(golden['image_final']).mean()


def quadratic_model():
  """A generator that is the identity on a 2x2 one-channel image."""

  def synthesize(w_plus, noise):
    image = w_plus.reshape(-1, 2, 2, 1) + noise[0]
    return image, image

  return inversion.Model(
    synthesize,
    lambda images: images.reshape(-1, 1, 4),
    lambda images: [images],
    lambda a, b: jnp.square(a[0] - b[0]).mean((1, 2, 3)),
  )


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  target = jnp.asarray(rng.uniform(-1, 1, (3, 2, 2, 1)), jnp.float32)
  return target, jnp.zeros((3, 1, 4)), [jnp.zeros((1, 2, 2, 1))]


def invert(problem, steps=60, lr=0.1, **kwargs):
  target, w, noise = problem
  return inversion.invert(
    quadratic_model(),
    target,
    w,
    noise,
    steps=steps,
    schedule=inversion.ramp_schedule(lr, steps),
    **kwargs,
  )


def test_finds_the_known_optimum(problem):
  found = invert(problem, 200)
  np.testing.assert_allclose(
    found.w_plus.reshape(problem[0].shape), problem[0], atol=1e-2
  )


def test_each_image_is_on_its_own(problem):
  together = invert(problem)
  for i in range(3):
    one = problem[0][i : i + 1], problem[1][i : i + 1], problem[2]
    alone = invert(one)
    np.testing.assert_allclose(together.w_plus[i], alone.w_plus[0], atol=1e-6)
    np.testing.assert_allclose(
      together.trace[:, i], alone.trace[:, 0], atol=1e-6
    )


def test_returns_the_best_iterate_not_the_last(problem):
  # With a rate this large Adam overshoots, so the last is not the best.
  found = inversion.invert(
    quadratic_model(), *problem, steps=7, schedule=lambda i: 0.5
  )
  assert (found.trace[-1] > found.loss).any()
  np.testing.assert_allclose(found.loss, found.trace.min(0), rtol=1e-6)
  image, _ = quadratic_model().synthesize(found.w_plus, found.noise)
  by_hand = 1.1 * jnp.square(image - problem[0]).mean((1, 2, 3))
  # lambda_encoder's term is 0: here E(G(w)) = w.
  np.testing.assert_allclose(found.loss, by_hand, rtol=1e-5)


def test_snapshots_and_trace(problem):
  found = invert(problem, 10, snapshot_steps=(0, 5))
  np.testing.assert_array_equal(found.snapshots[0], 0.0)
  assert found.snapshots.shape == (2, 3, 2, 2, 1)
  assert found.trace.shape == (11, 3)
  assert (jnp.abs(found.snapshots[1]).max() > 0).item()


def test_a_start_that_is_nan_does_not_spread(problem):
  target, w, noise = problem
  found = invert((target.at[0].set(jnp.nan), w, noise))
  clean = invert(problem)
  np.testing.assert_allclose(found.w_plus[1:], clean.w_plus[1:], atol=1e-6)


def test_ramp_schedule_by_hand():
  schedule = inversion.ramp_schedule(0.1, 100)
  assert float(schedule(0)) == pytest.approx(0.02)
  assert float(schedule(4)) == pytest.approx(0.1)
  assert float(schedule(50)) == pytest.approx(0.1)
  # Half way down the last quarter the cosine is at one half.
  assert float(schedule(87.5)) == pytest.approx(0.05, abs=1e-6)
  assert 0 < float(schedule(99)) < 0.001
