"""Gaussian filters over positions and colours: sums over all pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.ops import bilateral

SIDE = 16


def worked_example():
  """A ramp of colours and smooth probabilities, 16x16, three classes."""
  y, x = np.mgrid[:SIDE, :SIDE]
  image = np.stack([255 * x, 255 * y, 127.5 * (x + y)], -1) / (SIDE - 1)
  logits = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
  image = (image / 127.5 - 1).astype(np.float32)
  return image, jax.nn.softmax(logits.astype(np.float32)).reshape(-1, 3)


def random_example(height=9, width=13, channels=3, values=2):
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (height, width, channels)).astype(np.float32)
  return image, rng.normal(size=(height * width, values)).astype(np.float32)


def matrix(features):
  """The kernel in double precision, all of it."""
  features = np.asarray(features, np.float64)
  squares = np.square(features[:, None] - features[None]).sum(-1)
  return np.exp(-squares / 2)


def test_features_are_positions_and_colours():
  image, _ = random_example(4, 8)
  found = bilateral.features(image, 0.25, 20.0)
  assert found.shape == (32, 5) and found.dtype == jnp.float32
  row, column = 2, 5  # a quarter of the longer side is two pixels
  colours = (image[row, column] + 1) * 127.5 / 20
  expected = [column / 2, row / 2, *colours]
  np.testing.assert_allclose(found[row * 8 + column], expected, rtol=1e-6)
  grey = bilateral.features(image[..., :1], 0.25, 20.0)
  np.testing.assert_array_equal(grey, found[:, :3])
  positions = bilateral.features(image, 0.25, 0)
  np.testing.assert_array_equal(positions, found[:, :2])


# Sums in double precision: S'AS, 2 (A S)[0, 0], sum of A.
@pytest.mark.parametrize('rgb, xy, association, gradient, degrees', (
  (15, 100, 377.9741329, 0.9682018, 953.1455479),
  (60, 8, 3866.526880, 9.0797601, 10244.4207824),
  (13, 80 / 12, 285.3740406, 0.7944250, 718.3771501),
))  # fmt: skip
def test_worked_example(rgb, xy, association, gradient, degrees):
  image, soft = worked_example()
  kernel = bilateral.prepare(image, xy / SIDE, rgb, 'exact')
  loss = lambda s: (s * bilateral.apply(kernel, s)).sum()
  found, grad = jax.value_and_grad(loss)(soft)
  np.testing.assert_allclose(found, association, rtol=1e-6)
  np.testing.assert_allclose(grad[0, 0], gradient, rtol=2e-6)
  ones = jnp.ones((SIDE**2, 1))
  total = bilateral.apply(kernel, ones).sum()
  np.testing.assert_allclose(total, degrees, rtol=1e-6)


@pytest.mark.parametrize('channels, chunk', ((1, None), (3, 1), (3, 50)))
def test_sums_over_all_pairs(channels, chunk):
  """117 pixels, which 50 does not divide."""
  image, values = random_example(channels=channels)
  features = bilateral.features(image, 0.3, 60.0)
  run = jax.jit(lambda f, v: bilateral.exact(f, v, chunk))
  np.testing.assert_allclose(
    run(features, values), matrix(features) @ values, rtol=1e-5, atol=1e-5
  )


def test_positions_alone_are_summed_over_all_pairs():
  image, values = random_example()
  for kind in ('auto', 'exact'):
    kernel = bilateral.prepare(image, 0.2, 0, kind)
    expected = matrix(bilateral.features(image, 0.2, 0)) @ values
    found = bilateral.apply(kernel, values)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_low_default_precision_changes_nothing():
  """Features far from 0 and narrow kernels, in bfloat16 on accelerators."""
  image, values = random_example()
  for sigma_rgb in (5.0, 0.0):

    def run(image, values):
      kernel = bilateral.prepare(image, 0.1, sigma_rgb)  # noqa: B023
      return bilateral.apply(kernel, values)

    expected = jax.jit(run)(image, values)
    with jax.default_matmul_precision('bfloat16'):
      found = jax.jit(lambda *args: run(*args))(image, values)
      text = str(jax.make_jaxpr(run)(image, values))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert text.count('dot_general') == text.count('Precision.HIGHEST, ') > 0


@pytest.mark.parametrize('sigma_rgb', (40.0, 0.0))
def test_gradient(sigma_rgb):
  """That of a quadratic form by differences; none reaches the image."""
  image, values = random_example(5, 6)

  def loss(image, values):
    kernel = bilateral.prepare(image, 0.3, sigma_rgb, 'exact')
    return (bilateral.apply(kernel, values) ** 2).sum()

  to_image, to_values = jax.jit(jax.grad(loss, (0, 1)))(image, values)
  assert not np.asarray(to_image).any()
  a = matrix(bilateral.features(image, 0.3, sigma_rgb))
  step = 1e-5 * np.eye(values.size)[17].reshape(values.shape)
  square = lambda v: np.square(a @ v).sum()
  difference = (square(values + step) - square(values - step)) / 2e-5
  np.testing.assert_allclose(to_values.ravel()[17], difference, rtol=1e-4)
  np.testing.assert_allclose(to_values, 2 * a @ a @ values, rtol=1e-4)


@pytest.mark.parametrize('kind', ('exact', 'lattice'))
def test_batches(kind):
  """Each image with a kernel of its own."""
  pairs = [random_example(6, 7), random_example(6, 7)]
  pairs[1] = -pairs[0][0][::-1], pairs[1][1] ** 2

  @jax.jit
  @jax.vmap
  def run(image, values):
    kernel = bilateral.prepare(image, 0.3, 60.0, kind)
    return bilateral.apply(kernel, values), kernel.overflow

  images, values = (np.stack(x) for x in zip(*pairs, strict=True))
  found, overflow = run(images, values)
  assert overflow.shape == (2,) and not overflow.any()
  swapped, _ = run(images[::-1], values[::-1])
  np.testing.assert_allclose(found, swapped[::-1], rtol=1e-5, atol=1e-5)
  if kind == 'exact':
    a = matrix(bilateral.features(images[1], 0.3, 60.0))
    np.testing.assert_allclose(found[1], a @ values[1], rtol=1e-5, atol=1e-5)


def test_memory_is_bounded():
  """96x96 pixels, where all pairs would take 340 MB."""
  features = jax.ShapeDtypeStruct((96 * 96, 5), 'float32')
  values = jax.ShapeDtypeStruct((96 * 96, 4), 'float32')
  run = jax.value_and_grad(lambda v, f: (bilateral.exact(f, v) * v).sum())
  program = jax.jit(run).lower(values, features).compile()
  assert program.memory_analysis().temp_size_in_bytes < 64e6


def test_kinds():
  def shapes(side, kind, rgb=10.0):
    image = jax.ShapeDtypeStruct((side, side, 3), 'float32')
    return jax.eval_shape(
      lambda x: bilateral.prepare(x, 0.2, rgb, kind, max_vertices=100), image
    )

  assert shapes(64, 'auto').lattice is None
  assert shapes(64, 'auto').features.shape == (64**2, 5)
  assert shapes(65, 'auto').lattice.ids.shape == (6, 65**2)
  assert shapes(8, 'lattice').lattice.neighbours.shape == (6, 2, 100)
  assert shapes(65, 'exact').lattice is None
  assert shapes(65, 'auto', 0).sides[0].shape == (65, 65)
  assert shapes(8, 'lattice', 0).lattice.ids.shape == (3, 64)
  with pytest.raises(ValueError, match="'grid', must be one of auto, exact"):
    shapes(8, 'grid')
