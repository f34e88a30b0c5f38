"""The generator's latent codes and noise, and D_r's batch statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.nets import stylegan2
from jaxseg.nets.stylegan2 import Generator, minibatch_stddev, mix_styles

G = Generator(16, 1, 2, w_dim=8, mapping_depth=2, channel_max=8)
L = stylegan2.num_latents(16)


@pytest.fixture(scope='module')
def params():
  """As `G.init` gives them, without the time to compile it."""
  rng = np.random.default_rng(0)

  def start(path, leaf):
    name = path[-1].key
    if name in ('kernel', 'const'):
      lr_mul = 0.01 if path[0].key == 'mapping_network' else 1.0
      return np.float32(rng.normal(size=leaf.shape) / lr_mul)
    return np.full(leaf.shape, float('affine' in str(path)), np.float32)

  noise = [jnp.zeros((1, *s, 1)) for s in stylegan2.noise_shapes(16)]
  init = lambda: G.init(jax.random.key(0), jnp.zeros((1, 8)), noise)
  return jax.tree_util.tree_map_with_path(start, jax.eval_shape(init)['params'])


@jax.jit
def mapping(params, z):
  return G.apply({'params': params}, z, method='mapping')


@pytest.fixture(scope='module')
def synthesize():
  return jax.jit(
    lambda params, w, noise: G.apply(
      {'params': params}, w, noise, method='synthesize'
    )
  )


def with_noise(params):
  """The same with every noise strength at 1."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: x + 1 if path[-1].key == 'noise_strength' else x, params
  )


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_mapping_ignores_the_length_of_z(params):
  z = normal(0, 3, 8)
  w = mapping(params, z)
  assert w.shape == (3, 8)
  assert_allclose(mapping(params, 5 * z), w, rtol=1e-4)


def test_mix_styles():
  w1, w2 = normal(0, 3, 8), normal(1, 3, 8)
  codes = mix_styles(w1, w2, 2, 16)
  assert codes.shape == (3, L, 8)
  for i in range(L):
    assert_allclose(codes[:, i], w1 if i < 2 else w2)
  own = mix_styles(w1, w2, jnp.array([1, 3, L]), 16)
  for n, crossover in enumerate((1, 3, L)):
    for i in range(L):
      assert_allclose(own[n, i], w1[n] if i < crossover else w2[n])


def test_truncate():
  w, mean = normal(0, 3, 8), normal(1, 8)
  assert_allclose(stylegan2.truncate(w, mean, 1.0), w, atol=1e-6)
  assert_allclose(stylegan2.truncate(w, mean, 0.0), jnp.tile(mean, (3, 1)))
  assert_allclose(
    stylegan2.truncate(w, mean, 0.7), 0.7 * w + 0.3 * mean, atol=1e-6
  )


def test_noise_counts_only_with_its_strength(params, synthesize):
  w = stylegan2.broadcast_w(normal(0, 2, 8), 16)
  noise = [stylegan2.make_noise(jax.random.key(k), 2, 16) for k in (0, 1)]
  first, second = (synthesize(params, w, n) for n in noise)
  # Strengths start at zero.
  assert_allclose(first[0], second[0])
  strong = with_noise(params)
  first, second = (synthesize(strong, w, n) for n in noise)
  for a, b in zip(first, second, strict=True):
    assert np.abs(a - b).max() > 0.1


def test_each_noise_map_and_each_style_counts(params, synthesize):
  strong = with_noise(params)
  w = stylegan2.broadcast_w(normal(0, 1, 8), 16)
  noise = stylegan2.make_noise(jax.random.key(0), 1, 16)
  image, logits = synthesize(strong, w, noise)
  for i in range(L - 1):
    changed = [x + (i == j) * normal(2, *x.shape) for j, x in enumerate(noise)]
    other, _ = synthesize(strong, w, changed)
    assert np.abs(other - image).max() > 1e-3, f'noise map {i}'
  for i in range(L):
    changed = w.at[:, i].add(normal(3, 1, 8))
    other = synthesize(strong, changed, noise)
    for a, b in zip(other, (image, logits), strict=True):
      assert np.abs(a - b).max() > 1e-3, f'style {i}'


def test_one_noise_for_all_images_is_broadcast(params, synthesize):
  w = stylegan2.broadcast_w(normal(0, 2, 8), 16)
  one = stylegan2.make_noise(jax.random.key(0), 1, 16)
  two = [jnp.repeat(x, 2, axis=0) for x in one]
  assert_allclose(synthesize(params, w, one)[0], synthesize(params, w, two)[0])


def test_call_is_mapping_then_synthesis(params, synthesize):
  z = normal(0, 2, 8)
  noise = stylegan2.make_noise(jax.random.key(0), 2, 16)
  w = mapping(params, z)
  apart = synthesize(params, stylegan2.broadcast_w(w, 16), noise)
  apply = jax.jit(lambda p, z, noise: G.apply({'params': p}, z, noise))
  together = apply(params, z, noise)
  for a, b in zip(together, apart, strict=True):
    assert_allclose(a, b, atol=1e-5)


def test_minibatch_stddev_by_hand():
  x = np.random.default_rng(0).normal(size=(8, 2, 2, 3)).astype(np.float32)
  y = np.asarray(minibatch_stddev(jnp.asarray(x), 4))
  assert y.shape == (8, 2, 2, 4)
  assert_allclose(y[..., :3], x)
  # Groups are strided: images 0, 2, 4, 6 and images 1, 3, 5, 7.
  for group in ([0, 2, 4, 6], [1, 3, 5, 7]):
    deviation = np.sqrt(x[group].var(0) + 1e-8).mean()
    assert_allclose(y[group][..., 3], deviation, rtol=1e-5)


def test_minibatch_stddev_of_small_and_odd_batches():
  x = jnp.ones((2, 2, 2, 1))
  assert_allclose(minibatch_stddev(x, 4)[..., 1], 1e-4, rtol=1e-4)
  with pytest.raises(ValueError, match='batch of 6 .* groups of 4'):
    minibatch_stddev(jnp.ones((6, 2, 2, 1)), 4)
