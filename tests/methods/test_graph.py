"""Graph agreement: which pixels and images count, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import graph, supervised
from jaxseg.methods.graph import ImageGraph, PixelGraph
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

SIZE, STEPS = 16, 60
COMMON = dict(
  num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS,
  net=Net(width=8, depth=1, norm='group'), loss=Loss(dice=0.0),
  ema_half_life=16.0,
  optimizer=Optimizer('sgd', lr=0.1, schedule='constant', weight_decay=0.0),
)  # fmt: skip


@functools.cache
def method(module=graph, **changes):
  """(jitted init, jitted step, jitted predict)."""
  m = module.make(**COMMON, **changes)
  return jax.jit(m.init), jax.jit(m.train_step), jax.jit(m.predict)


@functools.cache
def batch():
  """Bright or dark blocks; the label says which. 4 labelled, 3 unlabelled."""
  rng = np.random.default_rng(0)
  blocks = rng.uniform(-1, 1, (7, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
  image = (blocks + 0.2 * np.sign(blocks)).astype(np.float32)
  label = (image[:4, ..., 0] > 0).astype(np.int32)
  return {'image': image[:4], 'label': label, 'unlabelled': image[4:]}


@pytest.fixture
def outputs():
  """(features, logits, images, valid) of 2 labelled and 3 unlabelled images."""
  rng = np.random.default_rng(1)
  valid = np.ones((5, 8, 8), bool)
  valid[0, :4] = valid[1, 2, 3] = False
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return draw(5, 6), draw(5, 8, 8, 3), draw(5, 8, 8, 1), valid


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_without_weights_it_is_supervised_training():
  init, step, _ = method(
    image=ImageGraph(weight=0.0), pixel=PixelGraph(weight=0.0, entropy=0.0)
  )
  before = init(jax.random.key(0))
  after, metrics = step(before, batch())
  twice = {'image': np.tile(batch()['image'], (2, 1, 1, 1)),
           'label': np.tile(batch()['label'], (2, 1, 1))}  # fmt: skip
  wanted, told = method(supervised)[1](before, twice)
  assert set(metrics) == {'ce', 'ramp_up'}
  assert_allclose(metrics['ce'], told['ce'], rtol=1e-5)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    after.params, wanted.params,
  )  # fmt: skip


def test_image_terms_by_brute_force(outputs):
  features, logits, _, valid = outputs
  settings = ImageGraph(
    weight=2.0, neighbours=1, grid=2, margin=1.0, margin_weight=0.5
  )
  terms = jax.jit(lambda f, x: graph.image_terms(f, x, valid, settings))
  total, told = terms(features, logits)
  p, distances = softmax(logits.astype(np.float64)), np.zeros((5, 5))
  boxes = [np.s_[i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4)]
  for i, j in np.ndindex(5, 5):
    squares = [
      np.sum((p[i][b][valid[i][b]].mean(0) - p[j][b][valid[j][b]].mean(0)) ** 2)
      for b in boxes
      if valid[i][b].any() and valid[j][b].any()
    ]
    distances[i, j] = np.mean(squares)
  gaps = np.square(features[:, None] - features).sum(-1).astype(np.float64)
  nearest = (gaps + 1e9 * np.eye(5)).argmin(1)
  near = np.zeros((5, 5), bool)
  near[np.arange(5), nearest] = near[nearest, np.arange(5)] = True
  w = np.exp(-gaps / 2 / gaps[near].mean()) * near
  assert_allclose(told['agree'], (w * distances).sum() / w.sum(), rtol=1e-5)
  others = ~near & ~np.eye(5, dtype=bool)
  gap = np.maximum(0, 1 - np.sqrt(distances)) ** 2
  assert_allclose(told['apart'], gap[others].mean(), rtol=1e-5)
  assert_allclose(total, 2 * (told['agree'] + 0.5 * told['apart']), rtol=1e-6)
  slopes = jax.jit(
    jax.grad(lambda *a: terms.__wrapped__(*a)[0], argnums=(0, 1))
  )
  by_features, by_logits = map(np.asarray, slopes(features, logits))
  assert not by_features.any()
  assert not by_logits[~valid].any() and np.abs(by_logits[valid]).min() > 0


@pytest.mark.parametrize('labelled', (True, False))
def test_pixel_terms_and_who_counts(outputs, labelled):
  _, logits, images, valid = outputs
  settings = PixelGraph(
    weight=2.0, connectivity=4, labelled=labelled, entropy=0.5
  )
  terms = lambda x: graph.pixel_terms(x, images, valid, 2, settings)
  (total, told), grad = jax.jit(jax.value_and_grad(terms, has_aux=True))(logits)
  p = softmax(logits.astype(np.float64))
  energy = pairs = 0
  for i in range(0 if labelled else 2, 5):
    found = [
      (
        np.sum((images[i][a] - images[i][b]) ** 2),
        np.sum((p[i][a] - p[i][b]) ** 2),
      )
      for a in np.ndindex(8, 8)
      for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1))
      if max(b) < 8 and valid[i][a] and valid[i][b]
    ]
    contrast, apart = np.array(found).T
    energy += (np.exp(-contrast / 2 / contrast.mean()) * apart / 2).sum()
    pairs += len(found)
  assert_allclose(told['potts'], energy / pairs, rtol=1e-5)
  wanted = scipy.stats.entropy(p[2:], axis=-1).mean()
  assert_allclose(told['entropy'], wanted, rtol=1e-5)
  assert_allclose(total, 2 * told['potts'] + 0.5 * wanted, rtol=1e-5)
  grad = np.asarray(grad)
  assert not grad[~valid].any()
  assert grad[:2].any() == labelled and np.abs(grad[2:]).min() > 0


def test_it_learns_with_both_graphs():
  init, step, predict = method()
  state = init(jax.random.key(0))
  for i in range(STEPS):
    before = state
    state, metrics = step(state, batch())
    t = min(i / (0.3 * STEPS), 1)
    assert_allclose(metrics['ramp_up'], np.exp(-5 * (1 - t) ** 2), rtol=1e-5)
  found = predict(state, batch()['unlabelled']).probabilities.argmax(-1)
  assert (found == (batch()['unlabelled'][..., 0] > 0)).mean() > 0.95
  # The terms of the last step, from the network of that time.
  images = np.concatenate([batch()['image'], batch()['unlabelled']])
  as_average = before.replace(
    ema={'seg': {'params': before.params['seg'], 'batch_stats': {}}}
  )
  logits = jnp.log(predict(as_average, images).probabilities)
  valid = np.ones(images.shape[:3], bool)
  _, told = jax.jit(
    lambda x: graph.pixel_terms(x, images, valid, 4, PixelGraph())
  )(logits)
  for name, value in told.items():
    assert_allclose(metrics[name], value, rtol=1e-3)
  assert 0 < metrics['agree'] < 2 and metrics['apart'] >= 0


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'unlabelled_batch_size': 0}, 'x.unlabelled_batch_size is 0'),
    ({'image': {'affinity': 'rbf'}}, "x.args.image.affinity is 'rbf', must be"),
    ({'image': {'grid': 5}}, 'image.grid is 5, must divide the 64 pixels'),
    ({'image': {'neighbours': 0}}, 'image.neighbours is 0, must be at least'),
    ({'image': {'neighbours': 12}}, 'image.neighbours is 12, must be below 12'),
    ({'pixel': {'form': 'cut'}}, "x.args.pixel.form is 'cut', must be one of"),
    ({'pixel': {'connectivity': 6}}, 'connectivity is 6, must be one of 4, 8'),
  ],
)
def test_mistakes_are_told(changes, message):
  fields = config.stage('graph', **{'unlabelled_batch_size': 4} | changes)
  with pytest.raises(UserError) as error:
    graph.check('config.x', fields, config.default().data)
  assert message in str(error.value)
  fields = config.stage('graph', unlabelled_batch_size=4)
  graph.check('config.x', fields, config.default().data)
