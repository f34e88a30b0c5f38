"""SegNet: sizes as published, numbers as PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch_functions as t
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.nets.segnet import SegNet

# Input and output channels of each convolution. Encoder: VGG16's; decoder: as
# the released definition lists them, from stride 32 to the image.
ENCODER = (
  (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256),
  (256, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
)  # fmt: skip
DECODER = (
  (512, 512), (512, 512), (512, 512), (512, 512), (512, 512), (512, 256),
  (256, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64),
)  # fmt: skip
POOLED_AFTER = (1, 3, 6, 9, 12)


def images(*shape, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, size=shape)
  return np.asarray(x, np.float32)


def test_parameters_layer_by_layer():
  """29.45 million for the 11 classes of CamVid.

  Each 3x3 convolution has a bias, and all but the last a norm of two numbers
  a channel: 14,714,688 + 8,448 in the encoder, 14,712,448 + 7,424 and
  6,347 for the scores in the decoder.
  """
  net = SegNet(11)
  logits, variables = jax.eval_shape(
    net.init_with_output, jax.random.key(0), jnp.zeros((1, 360, 480, 3))
  )
  assert (logits.shape, logits.dtype) == ((1, 360, 480, 11), jnp.float32)
  params = variables['params']
  for part, layers in (
    ('encoder', dict(enumerate(ENCODER))),
    ('decoder', {12 - i: layer for i, layer in enumerate(DECODER)}),
  ):
    convs = {f'conv{i}': 9 * a * b + b for i, (a, b) in layers.items()}
    norms = {f'norm{i}': 2 * b for i, (_, b) in layers.items()}
    wanted = convs | norms
    if part == 'decoder':
      wanted['out'] = 9 * 64 * 11 + 11
    assert {n: t.count(layer) for n, layer in params[part].items()} == wanted
  assert t.count(params['encoder']) == 14_714_688 + 8_448
  assert t.count(params['decoder']) == 14_712_448 + 7_424 + 6_347
  assert t.count(params) == 29_449_355
  assert t.count(variables['batch_stats']) == 8_448 + 7_424


def test_features_are_one_map_and_five_index_maps():
  """360 x 480 is halved, and ceiled, to 12 x 15."""
  net = SegNet(11, width=2)
  x = jnp.zeros((1, 360, 480, 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), x)
  features = jax.eval_shape(
    lambda v: net.apply(v, x, False, method='encode'), variables
  )
  assert [m.shape for m in features.maps] == [(1, 12, 15, 16)]
  assert [(i.shape[1:], i.dtype) for i in features.indices] == [
    ((180, 240, 2), jnp.int8), ((90, 120, 4), jnp.int8),
    ((45, 60, 8), jnp.int8), ((23, 30, 16), jnp.int8), ((12, 15, 16), jnp.int8),
  ]  # fmt: skip


def by_torch(variables, x, train):
  params, stats = variables['params'], variables['batch_stats']

  def layer(x, part, i):
    p, s = params[part], stats[part]
    x = t.conv(p[f'conv{i}'], x, padding=1)
    x = t.batch_norm(p[f'norm{i}'], s[f'norm{i}'], x, train)
    return t.F.relu(x)

  x, pooled = t.to_torch(x), []
  for i in range(13):
    x = layer(x, 'encoder', i)
    if i in POOLED_AFTER:
      size = x.shape[2:]
      x, indices = t.F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
      pooled.append((indices, size))
  for i in range(12, 0, -1):
    if i in POOLED_AFTER:
      indices, size = pooled.pop()
      x = t.F.max_unpool2d(x, indices, 2, output_size=size)
    x = layer(x, 'decoder', i)
  return t.conv(params['decoder']['out'], x, padding=1)


@t.needed
def test_in_use_as_torch():
  """Sides that cannot be halved evenly; the statistics stay."""
  net = SegNet(3, width=4)
  x = images(2, 35, 26, 2)
  variables = t.random_variables(net, x)
  logits, updated = jax.jit(
    functools.partial(net.apply, mutable='batch_stats')
  )(variables, x)
  wanted = t.from_torch(by_torch(variables, x, False))
  assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())
  stats = {'batch_stats': variables['batch_stats']}
  jax.tree.map(assert_array_equal, updated, stats)


@t.needed
def test_training_as_torch():
  """Logits, and the gradient of every kernel; the statistics change."""
  net = SegNet(3, width=4)
  x = images(2, 35, 26, 2)
  variables = t.random_variables(net, x)
  g = images(2, 35, 26, 3, seed=1)

  @jax.jit
  def run(variables, x, g):
    def apply(params):
      variables_ = variables | {'params': params}
      return net.apply(variables_, x, True, mutable='batch_stats')

    logits, pull, updated = jax.vjp(apply, variables['params'], has_aux=True)
    return logits, pull(g)[0], updated

  logits, grads, updated = run(variables, x, g)
  tensors = jax.tree.map(
    lambda p: t.tensor(p).requires_grad_(), variables['params']
  )
  wanted = by_torch(variables | {'params': tensors}, x, True)
  wanted.backward(t.to_torch(g))
  wanted = t.from_torch(wanted)
  assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())
  for (path, found), leaf in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(tensors),
    strict=True,
  ):
    if path[-1].key == 'kernel':
      wanted = leaf.grad.numpy()
      assert np.abs(wanted).max() > 0
      error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
      assert error < 1e-2, path
  for a, b in zip(
    jax.tree.leaves(variables['batch_stats']),
    jax.tree.leaves(updated['batch_stats']),
    strict=True,
  ):
    assert (a != b).any()


def test_bfloat16_returns_float32():
  net = SegNet(2, width=4, norm='group', dtype='bfloat16')
  x = jnp.zeros((1, 40, 33, 1))
  logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x)
  features = jax.eval_shape(
    lambda v: net.apply(v, x, True, method='encode'), variables
  )
  assert features.maps[0].dtype == jnp.bfloat16
  assert set(variables) == {'params'}
  assert {a.dtype for a in jax.tree.leaves(variables)} == {np.dtype('float32')}
  assert (logits.shape, logits.dtype) == ((1, 40, 33, 2), jnp.float32)
