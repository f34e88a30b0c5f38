"""Class maps are CAM and Grad-CAM; the encoder is the segmenter's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.losses import tags
from jaxseg.losses.tags import Pool
from jaxseg.methods import cam
from jaxseg.nets import segmenters, tag_classifier
from jaxseg.nets.segmenters import Net
from jaxseg.nets.tag_classifier import Head

NET = Net(width=8, depth=2, norm='group')
SHAPE = (2, 16, 24, 1)


@pytest.fixture(scope='module')
def classifier():
  """(module of 3 foreground classes, its variables, images)."""
  module = tag_classifier.build(NET, 4, Head(1, 6))
  images = jax.random.uniform(jax.random.key(1), SHAPE, minval=-1.0)
  variables = jax.jit(module.init)(jax.random.key(0), images)
  bias = jnp.array([0.5, -1.0, 2.0])
  params = variables['params'] | {'cam_bias': bias}
  return module, {'params': params}, images


@pytest.fixture(scope='module')
def found(classifier):
  """(class maps, the features that they are sums of)."""
  module, variables, images = classifier

  def both(variables, images):
    seen = module.apply(variables, images, method='seen')
    features = module.apply(variables, seen, method='features')
    return module.apply(variables, images), features

  return jax.jit(both)(variables, images)


def test_the_logit_is_the_mean_of_the_map(classifier, found):
  """CAM by construction; the same as pooling the features first."""
  (_, variables, _), (maps, features) = classifier, found
  assert maps.maps.shape == (2, 8, 12, 3)
  logits = cam.logits_of(maps, Pool('average'))
  assert_allclose(
    logits, maps.maps.mean((1, 2)) + variables['params']['cam_bias'], rtol=1e-5
  )
  assert features.shape == (2, 8, 12, 6) and (features >= 0).all()
  weights = variables['params']['cam']['kernel'][0, 0]
  pooled_first = features.mean((1, 2)) @ weights + maps.bias
  assert_allclose(logits, pooled_first, rtol=1e-4, atol=1e-6)


def test_the_map_is_that_of_grad_cam(classifier, found):
  """Selvaraju et al. (ICCV 2017), equations 1 and 2 without ReLU, times h w."""
  (_, variables, _), (maps, features) = classifier, found
  weights = variables['params']['cam']['kernel'][0, 0]

  def logits(features):
    return (features @ weights).mean((1, 2)) + maps.bias

  for c in range(3):
    gradient = jax.grad(lambda f: logits(f)[:, c].sum())(features)  # noqa: B023
    alpha = gradient.mean((1, 2))
    grad_cam = jnp.einsum('nk,nhwk->nhw', alpha, features)
    assert_allclose(maps.maps[..., c], 8 * 12 * grad_cam, rtol=1e-4, atol=1e-6)


def test_a_bias_is_no_part_of_the_map(classifier, found):
  (module, variables, images), (maps, _) = classifier, found
  params = variables['params'] | {'cam_bias': jnp.full(3, 7.0)}
  other = jax.jit(module.apply)({'params': params}, images)
  assert_array_equal(other.maps, maps.maps)
  assert_array_equal(other.bias, 7)
  for kind in tags.POOLS:
    a, b = (cam.logits_of(x, Pool(kind)) for x in (other, maps))
    assert_allclose(a - b, 7 - maps.bias[None].repeat(2, 0), rtol=1e-4)


@pytest.mark.parametrize('arch', segmenters.ARCHITECTURES)
def test_the_encoder_is_that_of_any_segmenter(arch):
  """Under the same names, with the head's parameters beside it."""
  net = Net(arch, 8, depth=2, norm='batch', blocks=1, backbone='resnet18')
  images, key = jnp.zeros((2, 32, 48, 3)), jax.random.key(0)
  sizes = tag_classifier.level_sizes(net, (32, 48), 3)
  assert sizes == sorted(sizes)
  for level, size in enumerate(sizes):
    module = tag_classifier.build(net, 4, Head(level, 6))
    variables = jax.eval_shape(module.init, key, images)
    found = jax.eval_shape(module.apply, variables, images)
    assert found.maps.shape == (2, *size, 3)
    params = variables['params']
    assert set(params) == {'encoder', 'cam_conv', 'cam', 'cam_bias'}
    assert set(params['cam']) == {'kernel'}
    other = jax.eval_shape(segmenters.build(net, 4).init, key, images)
    for collection in variables:
      assert variables[collection]['encoder'] == other[collection]['encoder'], (
        collection
      )


def test_bfloat16():
  module = tag_classifier.build(NET._replace(dtype='bfloat16'), 4, Head())
  images = jnp.zeros(SHAPE)
  variables = jax.eval_shape(module.init, jax.random.key(0), images)
  found = jax.eval_shape(module.apply, variables, images)
  seen = jax.eval_shape(
    lambda v, x: module.apply(v, x, method='seen'), variables, images
  )
  assert seen.dtype == jnp.bfloat16 and found.maps.dtype == jnp.float32
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype('float32')}
