"""D_m: spectral and instance norm, its pyramid. CycleGAN's discriminators."""

import golden_cyclegan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from golden_cyclegan import nhwc
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets import discriminators, layers
from jaxseg.nets.discriminators import (
  PatchGAN,
  PixelDiscriminator,
  SpectralConv,
)


@pytest.fixture(scope='module')
def spectral_conv():
  """A module, its input and its variables."""
  x = jax.random.normal(jax.random.key(0), (1, 6, 6, 3))
  conv = SpectralConv(8)
  init = jax.jit(lambda key: conv.init(key, x, False))
  return conv, x, init(jax.random.key(1))


def test_spectral_norm_is_the_largest_singular_value(spectral_conv):
  conv, x, variables = spectral_conv
  params = variables['params']

  @jax.jit
  def iterate(params, spectral):
    run = lambda _, s: conv.apply(
      {'params': params, 'spectral': s}, x, True, mutable=['spectral']
    )[1]['spectral']
    return jax.lax.fori_loop(0, 300, run, spectral)

  spectral = jax.device_get(iterate(params, variables['spectral']))
  matrix = np.asarray(params['kernel']).reshape(-1, 8)
  sigma = spectral['v'] @ matrix @ spectral['u']
  assert_allclose(sigma, np.linalg.svd(matrix)[1][0], rtol=1e-4)
  apply = jax.jit(lambda v: conv.apply(v, x, False))
  y = apply({'params': params, 'spectral': spectral})
  doubled = {'kernel': 2 * params['kernel']}
  again = apply({'params': doubled, 'spectral': spectral})
  assert_allclose(again, y, rtol=1e-4, atol=1e-6)


def test_power_iteration_runs_only_when_asked(spectral_conv):
  conv, x, variables = spectral_conv
  matrix = np.asarray(variables['params']['kernel']).reshape(-1, 8)
  kept, new = jax.jit(
    lambda v: [
      conv.apply(v, x, update, mutable=['spectral'])[1]['spectral']
      for update in (False, True)
    ]
  )(variables)
  old = variables['spectral']
  assert_allclose(kept['u'], old['u'])
  v = matrix @ np.asarray(old['u'])
  v /= np.linalg.norm(v)
  u = matrix.T @ v
  assert_allclose(new['v'], v, atol=1e-5)
  assert_allclose(new['u'], u / np.linalg.norm(u), atol=1e-5)


def test_instance_norm():
  x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 4, 3))
  y = np.asarray(jax.jit(layers.instance_norm)(x))
  assert_allclose(y.mean((1, 2)), 0, atol=1e-5)
  assert_allclose(y.var((1, 2)), 1, atol=1e-4)


def test_halve_counts_the_border_with_its_true_size():
  x = np.arange(16.0, dtype=np.float32).reshape(1, 4, 4, 1)
  y = discriminators.halve(jnp.asarray(x))
  grid = x[0, :, :, 0]
  wanted = [
    [grid[:2, :2].mean(), grid[:2, 1:4].mean()],
    [grid[1:4, :2].mean(), grid[1:4, 1:4].mean()],
  ]
  assert_allclose(y[0, :, :, 0], wanted, rtol=1e-6)


def test_scores_are_the_last_outputs():
  assert discriminators.scores([[1, 2, 3], [4, 5]]) == [3, 5]


def recorded_scores(net, params, arrays):
  """(Scores, gradient of their mean square), as recorded."""

  def loss(x):
    y = net.apply({'params': params}, x)
    return jnp.square(y).mean(), y

  dx, y = jax.jit(jax.grad(loss, has_aux=True))(nhwc(arrays['x']))
  return y, dx


def assert_recorded(found, arrays):
  y, dx = found
  wanted, gradient = nhwc(arrays['out']), nhwc(arrays['dx'])
  assert wanted.std() > 5e-3 and gradient.any()
  assert_allclose(y, wanted, atol=2e-4 * wanted.std())
  assert_allclose(dx, gradient, atol=1e-4 * np.abs(gradient).max())


@pytest.mark.parametrize('norm', ('batch', 'instance'))
def test_recorded_pixel_discriminator(norm):
  arrays = golden_cyclegan.load(f'D_pixel_{norm}_4')
  params = golden_cyclegan.pixel(arrays, 'p/')
  net = PixelDiscriminator(8, norm)
  assert_recorded(recorded_scores(net, params, arrays), arrays)


def test_recorded_patchgan(shared):
  path = shared / 'golden' / 'cyclegan' / 'D_nlayer_instance_4.npz'
  arrays = dict(np.load(path))
  params = golden_cyclegan.patch(arrays, 'p/')
  net = PatchGAN(8, norm='instance')
  assert_recorded(recorded_scores(net, params, arrays), arrays)


def shapes_of(net, *shape, valid=None):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  init = lambda x: net.init_with_output(jax.random.key(0), x, valid)
  return jax.eval_shape(init, x)


@pytest.mark.parametrize('net, channels, wanted', (
  (PixelDiscriminator(norm='instance'), 3, 8_705),
  (PixelDiscriminator(norm='instance'), 21, 9_857),
  (PixelDiscriminator(norm='instance'), 1, 8_577),
  # Two biases fewer, 128 and 1; 128 scales and biases more.
  (PixelDiscriminator(norm='batch'), 3, 8_705 - 129 + 256),
  (PatchGAN(norm='instance'), 3, 2_764_737),
  (PatchGAN(norm='batch'), 3, 2_764_737 + 128 + 256 + 512),
))  # fmt: skip
def test_published_parameters(net, channels, wanted):
  y, variables = shapes_of(net, 2, 32, 40, channels)
  assert set(variables) == {'params'}
  assert t.count(variables['params']) == wanted
  sizes = (32, 40) if isinstance(net, PixelDiscriminator) else (2, 3)
  assert (y.shape, y.dtype) == ((2, *sizes, 1), jnp.float32)


@pytest.mark.parametrize('layers, side', ((1, 16), (2, 34), (3, 70)))
def test_patches_are_as_large_as_published(layers, side):
  """The pixels that one score depends on (Isola et al., appendix 6.1.2)."""
  net = PatchGAN(1, layers, 'none')
  x = jnp.ones((1, 150, 150, 1))
  shape = jax.eval_shape(net.init, jax.random.key(0), x)
  params = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shape)['params']

  def middle(x):
    y = net.apply({'params': params}, x)
    return y[0, y.shape[1] // 2, y.shape[2] // 2, 0]

  seen = np.asarray(jax.jit(jax.grad(middle))(x))[0, :, :, 0] != 0
  assert seen.any(1).sum() == seen.any(0).sum() == side


@t.needed
@pytest.mark.parametrize('norm', ('batch', 'none'))
def test_patchgan_is_that_of_pytorch(norm):
  """With other norms than the recorded one, and another depth."""
  x = np.random.default_rng(0).normal(size=(2, 22, 17, 3)).astype(np.float32)
  net = PatchGAN(4, 2, norm)
  params = t.random_variables(net, x)['params']
  y = t.to_torch(x)
  for i in range(4):
    own = params[f'conv{i}']
    weight = t.tensor(own['kernel']).permute(3, 2, 0, 1)
    bias = t.tensor(own['bias']) if 'bias' in own else None
    y = t.F.conv2d(y, weight, bias, stride=2 if i < 2 else 1, padding=1)
    if norm == 'batch' and i in (1, 2):
      own = {k: t.tensor(v) for k, v in params[f'norm{i}'].items()}
      y = t.F.batch_norm(
        y, None, None, own['scale'], own['bias'], training=True
      )
    y = t.F.leaky_relu(y, 0.2) if i < 3 else y
  found = jax.jit(net.apply)({'params': params}, x)
  assert_allclose(found, t.from_torch(y), atol=1e-5)


def half_void(seed=0):
  """(Maps, which pixels are valid, the maps with other void pixels)."""
  rng = np.random.default_rng(seed)
  x, other = rng.normal(size=(2, 2, 24, 26, 3)).astype(np.float32)
  valid = rng.uniform(size=x.shape[:3]) < 0.6
  return x, valid, np.where(valid[..., None], x, 1 + 3 * other)


@pytest.mark.parametrize('norm', ('batch', 'instance', 'none'))
def test_void_pixels_do_not_count(norm):
  x, valid, changed = half_void()
  net = PixelDiscriminator(4, norm)
  variables = t.random_variables(net, x)

  @jax.jit
  def run(v):
    score = lambda x, valid: net.apply(v, x, valid)
    return [
      score(x, valid), score(changed, valid), score(x, None),
      score(changed, None),
    ]  # fmt: skip

  masked, again, whole, other = run(variables)
  assert_allclose(masked[valid], again[valid], rtol=1e-5, atol=1e-6)
  assert np.abs(masked - again)[~valid].max() > 0.01
  if norm != 'none':
    assert np.abs(whole - other)[valid].max() > 0.01


def test_valid_pixels_are_normalised_as_if_alone():
  """One image: the scores are those of its valid pixels in a row."""
  x, valid, _ = half_void()
  x, valid = x[:1], valid[:1]
  net = PixelDiscriminator(4, 'batch')
  variables = t.random_variables(net, x)
  masked = jax.jit(net.apply)(variables, x, valid)
  alone = jax.jit(net.apply)(variables, x[valid][None, None])
  assert_allclose(masked[valid], alone[0, 0], atol=1e-5)


def test_void_images_have_finite_scores_and_gradients():
  x, valid, _ = half_void()
  net = PixelDiscriminator(4, 'instance')
  variables = t.random_variables(net, x)
  valid[0] = False
  loss = lambda x: net.apply(variables, x, valid).sum()
  assert np.isfinite(jax.jit(jax.value_and_grad(loss))(x)[1]).all()


def test_patchgan_sees_void_pixels_as_zeros():
  x, valid, changed = half_void()
  net = PatchGAN(2)
  variables = t.random_variables(net, x)
  masked, again, zeros = jax.jit(
    lambda v: (
      net.apply(v, x, valid),
      net.apply(v, changed, valid),
      net.apply(v, jnp.where(valid[..., None], x, 0)),
    )
  )(variables)
  assert_array_equal(masked, again)
  assert_array_equal(masked, zeros)


def test_initial_values_of_cyclegan_discriminators():
  net = PatchGAN(16)
  init = jax.jit(lambda key: net.init(key, jnp.zeros((1, 32, 32, 3))))
  params = init(jax.random.key(0))['params']
  for i in range(5):
    assert_allclose(params[f'conv{i}']['kernel'].std(), 0.02, rtol=0.15)
  scales = np.concatenate([params[f'norm{i}']['scale'] for i in (1, 2, 3)])
  assert_allclose([scales.mean(), scales.std()], [1, 0.02], atol=4e-3)
  assert not params['conv0']['bias'].any() and 'bias' not in params['conv1']


@pytest.mark.parametrize('kind', (PixelDiscriminator, PatchGAN))
def test_cyclegan_discriminators_in_bfloat16(kind):
  x, valid, _ = half_void()
  nets = kind(4), kind(4, dtype='bfloat16')
  y, variables = shapes_of(nets[1], *x.shape)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert y.dtype == jnp.float32
  variables = t.random_variables(nets[0], x)
  full, low = jax.jit(lambda v: [net.apply(v, x, valid) for net in nets])(
    variables
  )
  assert 0 < np.abs(full - low).max() < 0.1 * np.abs(full).max()


def test_cyclegan_discriminators_refuse():
  with pytest.raises(ValueError, match="norm is 'group', must be one of batch"):
    shapes_of(PixelDiscriminator(norm='group'), 1, 8, 8, 3)
  with pytest.raises(ValueError, match='least 24 x 24 pixels, found 32 x 23'):
    shapes_of(PatchGAN(), 1, 32, 23, 3)


def test_patch_coverage():
  valid = jnp.ones((1, 64, 64), bool)
  np.testing.assert_allclose(
    discriminators.patch_coverage(valid), np.ones((1, 6, 6)), rtol=1e-6
  )
  # The left of two halves: more of the patches on the left, and as much of one
  # as is left of its mirror image.
  cut = valid.at[:, :, 32:].set(False)
  found = np.asarray(discriminators.patch_coverage(cut))[0]
  assert (np.diff(found[0]) <= 0).all() and found[0, 0] > 0.85 > 0.15 > found[
    0, 5
  ]
  np.testing.assert_allclose(found + found[:, ::-1], 1, rtol=1e-5)
  # As a PatchGAN that averages: same maps, same places.
  net = discriminators.PatchGAN(1, norm='none')
  scores = net.init_with_output(jax.random.key(0), cut[..., None] * 1.0)[0]
  assert scores.shape[1:3] == found.shape
