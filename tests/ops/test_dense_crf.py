"""Mean field inference beside pydensecrf's."""

import crf_by_pydensecrf as peer
import jax
import numpy as np
import pytest

from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.ops import dense_crf, permutohedral

run = jax.jit(dense_crf.mean_field_and_shortage, static_argnums=2)


@pytest.fixture(scope='module')
def goldens():
  return peer.goldens()


def settings_of(case):
  """With positions as fractions of the longer side."""
  side = max(case.size[:2])
  weight, xy, rgb = case.bilateral
  spatial_weight, spatial_xy = case.spatial
  return dense_crf.CRF(
    10, weight, xy / side, rgb, spatial_weight, spatial_xy / side, 'lattice'
  )


def example(name, goldens):
  """(logits [1, H, W, K], image [1, H, W, 3] in [-1, 1])."""
  image = goldens[f'{name}/image'].astype(np.float32) / 127.5 - 1
  return goldens[f'{name}/logits'][None], image[None]


@pytest.mark.parametrize('name', peer.CASES)
def test_pydensecrf(name, goldens):
  logits, image = example(name, goldens)
  found, shortage = run(logits, image, settings_of(peer.CASES[name]))
  assert not shortage.any()
  expected = goldens[f'{name}/probabilities']
  np.testing.assert_allclose(found[0], expected, atol=1e-5)
  changed = (expected.argmax(-1) != logits[0].argmax(-1)).mean()
  assert changed > 0.1  # inference has something to do


@pytest.mark.parametrize('name', peer.CASES)
def test_pydensecrf_gave_the_goldens(name, goldens):
  pytest.importorskip('pydensecrf', reason='pip install pydensecrf2')
  image, logits = peer.example(peer.CASES[name])
  np.testing.assert_array_equal(image, goldens[f'{name}/image'])
  found = peer.mean_field(image, logits, peer.CASES[name])
  np.testing.assert_allclose(found, goldens[f'{name}/probabilities'], atol=1e-5)


def by_hand(logits, image, s):
  """With whole matrices in double precision, float64 [P, K]."""
  height, width, classes = logits.shape
  y, x = np.mgrid[:height, :width].reshape(2, -1) / max(height, width)
  place = np.stack([y, x], -1)
  colour = (image.reshape(len(place), -1).astype(np.float64) + 1) * 127.5
  spatial = place / s.spatial_xy
  bilateral = [place / s.bilateral_xy, colour / s.bilateral_rgb]
  total = 0
  for weight, features in (
    (s.bilateral_weight, np.concatenate(bilateral, -1)),
    (s.spatial_weight, spatial),
  ):
    squares = np.square(features[:, None] - features).sum(-1)
    kernel = np.exp(-squares / 2)
    root = np.sqrt(kernel.sum(0))
    total = total + weight * kernel / root / root[:, None]
  scores = logits.reshape(-1, classes).astype(np.float64)
  softmax = lambda z: (
    (e := np.exp(z - z.max(-1, keepdims=True))) / e.sum(-1, keepdims=True)
  )
  q = softmax(scores)
  for _ in range(s.iterations):
    q = softmax(scores + total @ q)
  return q


@pytest.mark.parametrize('channels', (1, 3))
def test_exact(channels, goldens):
  """The default filter of small images; nearly what the lattice gives."""
  logits, image = example('two_classes', goldens)
  settings = settings_of(peer.CASES['two_classes'])
  exact = settings._replace(filter='auto', iterations=5)
  image = image[..., :channels]
  found, shortage = run(logits, image, exact)
  assert found.shape == logits.shape and not shortage.any()
  expected = by_hand(logits[0], image[0], exact)
  np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)
  if channels == 3:
    same = found[0].argmax(-1) == goldens['two_classes/probabilities'].argmax(
      -1
    )
    assert same.mean() > 0.95


def test_nothing_to_do(goldens):
  logits, image = example('positions_alone', goldens)
  off = dense_crf.CRF(bilateral_weight=0, spatial_weight=0)
  found = dense_crf.mean_field(logits, image, off)
  np.testing.assert_allclose(found, jax.nn.softmax(logits), atol=1e-6)


def test_shortage_leaves_the_image_as_it_was(goldens):
  """Image by image; the others are as they would be alone."""
  logits, image = example('four_classes', goldens)
  settings = settings_of(peer.CASES['four_classes'])
  settings = settings._replace(spatial_weight=0.0, max_vertices=1200)
  noise = np.random.default_rng(0).uniform(-1, 1, image.shape)
  images = np.concatenate([noise.astype(np.float32), image])
  found, shortage = run(np.concatenate([logits] * 2), images, settings)
  assert 1200 < shortage[0] < permutohedral.TOO_WIDE and shortage[1] == 0
  np.testing.assert_allclose(found[0], jax.nn.softmax(logits[0]), atol=1e-6)
  assert (found[1].argmax(-1) != logits[0].argmax(-1)).mean() > 0.1


@pytest.mark.parametrize('kind', ('exact', 'lattice'))
def test_devices_share_a_batch(kind, goldens):
  """Each device has an image; the second is the first, turned."""
  logits, image = example('many_classes', goldens)
  settings = settings_of(peer.CASES['many_classes'])._replace(filter=kind)
  batch = [np.concatenate([x, x[:, ::-1, ::-1]]) for x in (logits, image)]
  mesh = parallel.make_mesh(2, devices=jax.devices()[:2])
  shared = jax.device_put(batch, parallel.over_data(mesh))
  with jax.set_mesh(mesh):
    program = run.lower(*shared, settings).compile()
  assert 'all-' not in program.as_text()  # no communication
  found, shortage = program(*shared)
  assert found.sharding.is_equivalent_to(parallel.over_data(mesh), 4)
  assert shortage.shape == (2,)
  if kind == 'lattice':
    expected = goldens['many_classes/probabilities']
    np.testing.assert_allclose(found[0], expected, atol=1e-5)
    return
  np.testing.assert_allclose(found[0], found[1, ::-1, ::-1], atol=1e-5)
  alone, _ = dense_crf.mean_field_and_shortage(logits, image, settings)
  np.testing.assert_allclose(found[0], alone[0], atol=1e-6)


@pytest.mark.parametrize('name, value, rule', (
  ('iterations', 0, '1 or more'), ('bilateral_weight', -1.0, '0 or more'),
  ('bilateral_xy', 0.0, 'above 0'), ('bilateral_rgb', float('nan'), 'above 0'),
  ('spatial_weight', float('inf'), '0 or more'), ('spatial_xy', -1.0, 'above'),
  ('filter', 'grid', 'one of auto, exact, lattice'),
  ('max_vertices', -5, '0 or more'),
))  # fmt: skip
def test_mistakes_are_named(name, value, rule):
  dense_crf.check(dense_crf.CRF(), '--mean_field')
  settings = dense_crf.CRF()._replace(**{name: value})
  with pytest.raises(
    UserError, match=f'--mean_field.{name} is .*must be {rule}'
  ):
    dense_crf.check(settings, '--mean_field')
