"""The discriminator of label maps against its recording and the paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.methods import adv_ssl
from jaxseg.nets.fc_discriminator import FullyConvDiscriminator

LAYERS = ('conv1', 'conv2', 'conv3', 'conv4', 'classifier')


@pytest.fixture(scope='module')
def recorded(shared):
  path = shared / 'golden' / 'baselines' / 'adv_fc_discriminator_ndf8.npz'
  return dict(np.load(path))


@pytest.fixture(scope='module')
def scores(recorded):
  params = {
    f'layer{i}': {
      'kernel': recorded[f'p/{name}.weight'].transpose(2, 3, 1, 0),
      'bias': recorded[f'p/{name}.bias'],
    }
    for i, name in enumerate(LAYERS)
  }
  net = FullyConvDiscriminator(width=8)
  maps = recorded['pred'].transpose(0, 2, 3, 1)
  return jax.jit(net.apply)({'params': params}, maps)


def test_recorded_scores(recorded, scores):
  wanted = recorded['confidence'].transpose(0, 2, 3, 1)
  assert wanted.std() > 0.1, 'a constant map would show nothing'
  assert_allclose(scores, wanted, atol=2e-6)


@pytest.mark.parametrize('real', (True, False))
def test_recorded_losses(recorded, scores, real):
  loss = adv_ssl.pixel_bce(scores[..., 0], real)
  wanted = recorded['bce_real' if real else 'bce_fake']
  assert_allclose(loss, wanted, rtol=1e-6)


def shapes(size, classes, **fields):
  net = FullyConvDiscriminator(**fields)
  maps = jax.ShapeDtypeStruct((2, *size, classes), jnp.float32)
  return jax.eval_shape(net.init_with_output, jax.random.key(0), maps)


def test_published_size():
  out, variables = shapes((321, 321), 21)
  assert out.shape == (2, 321, 321, 1) and out.dtype == jnp.float32
  kernels = [variables['params'][f'layer{i}']['kernel'] for i in range(5)]
  channels = (21, 64, 128, 256, 512, 1)
  pairs = list(itertools.pairwise(channels))
  assert [k.shape for k in kernels] == [(4, 4, *pair) for pair in pairs]
  # 4 x 4 x I x O weights and O biases a layer; the paper's 2.78 M.
  wanted = sum(16 * i * o + o for i, o in pairs)
  count = sum(x.size for x in jax.tree.leaves(variables))
  assert count == wanted == 2_783_169


def test_bfloat16_keeps_scores_and_parameters_in_float32():
  out, variables = shapes((64, 64), 4, width=8, dtype=jnp.bfloat16)
  assert out.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_below_64_pixels_one_score_an_image():
  maps = jax.random.uniform(jax.random.key(0), (2, 32, 32, 3))
  net = FullyConvDiscriminator(width=4)
  out, _ = jax.jit(net.init_with_output)(jax.random.key(1), maps)
  assert out.shape == (2, 32, 32, 1)
  assert_allclose(out, jnp.broadcast_to(out[:, :1, :1], out.shape), atol=1e-7)
  assert out[0, 0, 0] != out[1, 0, 0]


def test_below_32_pixels_is_refused():
  with pytest.raises(ValueError, match='16 x 32.*at least 32 x 32'):
    shapes((16, 32), 3)
