"""FCN: sizes and geometry as published, numbers as PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch_functions as t
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets import fcn
from jaxseg.nets.fcn import FCN
from jaxseg.nets.upsampling import bilinear_kernel

# Parameters of FCN-8s for 21 classes. Encoder: VGG16 of 14,714,688.
VGG = (
  1_792, 36_928, 73_856, 147_584, 295_168, 590_080, 590_080,
  1_180_160, 2_359_808, 2_359_808, 2_359_808, 2_359_808, 2_359_808,
)  # fmt: skip
ENCODER = {f'conv{i}': n for i, n in enumerate(VGG)} | {
  'fc6': 7 * 7 * 512 * 4096 + 4096,
  'fc7': 4096 * 4096 + 4096,
}
DECODER = {
  'score_fr': 4096 * 21 + 21,
  'upscore2': 4 * 4 * 21 * 21,
  'score_pool4': 512 * 21 + 21,
  'upscore_pool4': 4 * 4 * 21 * 21,
  'score_pool3': 256 * 21 + 21,
}


def images(*shape, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, size=shape)
  return np.asarray(x, np.float32)


@pytest.mark.parametrize(
  'stride, scores, total',
  ((32, 1, 136_152_917), (16, 3, 134_815_994), (8, 5, 134_489_759)),
)
def test_parameters_layer_by_layer(stride, scores, total):
  """134,489,759 published parameters of FCN-8s, and how they come about.

  VGG16's convolutions 14,714,688; fc6 102,764,544; fc7 16,781,312; scores of
  fc7, pool4 and pool3 86,037 + 10,773 + 5,397; two learned 4x4 upsamplings of
  7,056 each; and the last upsampling, 16 x 16 x 21 x 21 = 112,896, which is
  fixed and therefore no parameter here.
  """
  net = FCN(21, stride)
  logits, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), jnp.zeros((1, 500, 375, 3))
  )
  assert (logits.shape, logits.dtype) == ((1, 500, 375, 21), jnp.float32)
  assert set(variables) == {'params'}
  found = {
    part: {name: t.count(layer) for name, layer in layers.items()}
    for part, layers in variables['params'].items()
  }
  decoder = dict(list(DECODER.items())[:scores])
  assert found == {'encoder': ENCODER, 'decoder': decoder}
  fixed = (2 * stride) ** 2 * 21**2
  assert t.count(variables['params']) + fixed == total


def shapes_through(net, size):
  x = jnp.zeros((1, *size, 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), x)
  features = jax.eval_shape(
    lambda v: net.apply(v, x, False, method='encode'), variables
  )
  logits = jax.eval_shape(net.apply, variables, x)
  return [m.shape[1:3] for m in features.maps], logits.shape[1:3]


@pytest.mark.parametrize(
  'faithful, size, maps',
  (
    (True, (500, 500), ((88, 88), (44, 44), (16, 16))),
    (True, (1, 47), ((25, 31), (13, 16), (1, 2))),
    (False, (500, 333), ((63, 42), (32, 21), (16, 11))),
    (False, (1, 33), ((1, 5), (1, 3), (1, 2))),
  ),
)
def test_any_size(faithful, size, maps):
  """The published arithmetic of 500 pixels, and sizes that do not divide."""
  for stride, used in ((8, maps), (16, maps[1:]), (32, maps[2:])):
    net = FCN(2, stride, width=1, faithful_padding=faithful)
    assert shapes_through(net, size) == (list(used), size)


def test_published_crops_align_the_maps():
  """Centres of the first pixel of each map, in pixels of the image."""
  centre, step, of = -99.0, 1, {}  # conv1_1: 100 zeros, 3x3 kernel
  for level in range(1, 6):
    centre, step = centre + step / 2, 2 * step
    of[f'pool{level}'] = centre
  upsampled = lambda centre, k, step: centre - (k - 1) / 2 * step
  score = of['pool5'] + 3 * step  # fc6: 7x7
  for stride, pool in ((32, None), (16, 'pool4'), (8, 'pool3')):
    if pool:
      score = upsampled(score, 4, stride)
      assert of[pool] + stride * fcn.SKIP_CROP[stride] == score
    image = upsampled(score, 2 * stride, 1)
    assert -image == fcn.LAST_CROP[stride]


def by_torch(params, x, stride, faithful):
  x, pools = t.to_torch(x), []
  for i in range(13):
    padding = 100 if faithful and i == 0 else 1
    x = t.F.relu(t.conv(params['encoder'][f'conv{i}'], x, padding))
    if i in (1, 3, 6, 9, 12):
      x = t.F.max_pool2d(x, 2, ceil_mode=True)
      pools.append(x)
  x = t.F.relu(t.conv(params['encoder']['fc6'], x, 0 if faithful else 3))
  x = t.F.relu(t.conv(params['encoder']['fc7'], x))
  p = params['decoder']
  x = t.conv(p['score_fr'], x)
  for step, up, pool, crop in (
    (16, 'upscore2', 4, 5), (8, 'upscore_pool4', 3, 9)
  ):  # fmt: skip
    if step < stride:
      break
    x = t.conv_transpose(p[up], x, 2, 0 if faithful else 1)
    skip = t.conv(p[f'score_pool{pool}'], pools[pool - 1])
    if faithful:
      skip = skip[:, :, crop:][:, :, : x.shape[2]]
      skip = skip[..., crop:][..., : x.shape[3]]
    x = x[:, :, : skip.shape[2], : skip.shape[3]] + skip
  if not faithful:
    x = t.F.interpolate(x, scale_factor=stride, mode='bilinear')
    return t.from_torch(x)
  k = {'kernel': bilinear_kernel(stride, x.shape[1])}
  crop = {32: 19, 16: 27, 8: 31}[stride]
  return t.from_torch(t.conv_transpose(k, x, stride)[:, :, crop:, crop:])


@t.needed
@pytest.mark.parametrize(
  'stride, faithful', ((8, True), (16, True), (8, False), (32, False))
)
def test_as_torch(stride, faithful):
  net = FCN(3, stride, width=1, faithful_padding=faithful)
  x = images(1, 45, 70, 2)
  params = t.random_variables(net, x)['params']
  logits = jax.jit(net.apply)({'params': params}, x)
  wanted = by_torch(params, x, stride, faithful)[:, :45, :70]
  assert logits.shape == (1, 45, 70, 3)
  assert_allclose(logits, wanted, atol=1e-4 * np.abs(wanted).max())


def test_scores_start_at_zero_and_learn():
  """First the score layers alone, then everything below them."""
  net = FCN(3, 8, width=2)
  x = images(2, 32, 32, 1)
  labels = np.digitize(x[..., 0], (-0.3, 0.3))
  params = jax.jit(net.init)(jax.random.key(0), x)['params']
  kernel = params['decoder']['upscore2']['kernel']
  assert_array_equal(kernel, bilinear_kernel(2, 3))

  def loss_fn(params):
    logits = net.apply({'params': params}, x, True)
    ce = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return ce.mean()

  loss_and_grad = jax.jit(jax.value_and_grad(loss_fn))
  losses, rates = [], (0.1, 0.1)
  for rate in rates:
    loss, grads = loss_and_grad(params)
    losses.append(loss)
    moved = {
      name: np.abs(layer['kernel']).max() > 0
      for part in grads.values()
      for name, layer in part.items()
    }
    scores = {name for name in moved if name.startswith('score')}
    assert {name for name in moved if moved[name]} == (
      set(moved) if len(losses) > 1 else scores
    )
    params = jax.tree.map(lambda p, g, r=rate: p - r * g, params, grads)
  losses.append(loss_and_grad(params)[0])
  assert_allclose(losses[0], np.log(3), rtol=1e-4)
  assert losses[2] < losses[1] < losses[0]


def test_training_switches_statistics_and_dropout():
  net = FCN(2, 8, width=2, norm='batch', dropout=0.5)
  x = images(2, 32, 32, 1)
  variables = t.random_variables(net, x)
  rngs = {'dropout': jax.random.key(1)}

  @jax.jit
  def run(v, x):
    apply = functools.partial(net.apply, v, x, mutable='batch_stats')
    return apply(train=False), apply(train=True, rngs=rngs)

  (used, same), (trained, updated) = run(variables, x)
  assert (used != trained).any()
  stats = {'batch_stats': variables['batch_stats']}
  jax.tree.map(assert_array_equal, same, stats)
  pairs = zip(
    jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True
  )  # fmt: skip
  assert all((a != b).any() for a, b in pairs)


def test_bfloat16_returns_float32():
  net = FCN(2, 16, width=2, norm='group', dtype='bfloat16')
  x = jnp.zeros((1, 40, 32, 1))
  logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
  features = jax.eval_shape(
    lambda v: net.apply(v, x, True, method='encode'), variables
  )
  assert {m.dtype for m in features.maps} == {jnp.dtype('bfloat16')}
  assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype('float32')}
  assert logits.dtype == jnp.float32


def test_refuses_another_stride():
  with pytest.raises(ValueError, match='stride is 4, must be 32, 16 or 8'):
    FCN(2, 4).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
