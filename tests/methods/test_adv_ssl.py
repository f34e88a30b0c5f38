"""AdvSSL: its losses, one step against the formulas, switches, messages."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose

import jaxseg.config
from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.methods import adv_ssl, supervised
from jaxseg.nets import segmenters
from jaxseg.nets.fc_discriminator import FullyConvDiscriminator
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

# At 64 pixels D's score map is 2 x 2: trust varies within an image.
K, SIZE, N, M = 3, 64, 2, 1
NET = Net(width=8, depth=1, norm='group')
# A step of this moves the parameters by minus the gradient.
PLAIN = Optimizer(
  name='sgd', lr=1.0, schedule='constant', momentum=0.0, weight_decay=0.0
)
COMMON = dict(num_classes=K, resolution=SIZE, channels=1, total_steps=100)
# So large that each term is seen in the gradient.
WEIGHTS = dict(lambda_adv=1.0, lambda_adv_unlabelled=2.0, lambda_semi=3.0)


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  uniform = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)
  label = rng.integers(0, K, (N, SIZE, SIZE)).astype(np.int32)
  label[0, :24] = 255
  return {
    'image': uniform(N, SIZE, SIZE, 1), 'label': label,
    'unlabelled': uniform(M, SIZE, SIZE, 1),
  }  # fmt: skip


def make(**fields):
  return adv_ssl.make(**COMMON, net=NET, optimizer=PLAIN, d_width=4, **fields)


@functools.cache
def start():
  """A state whose D has opinions: fresh ones say 0 everywhere, almost."""
  state = jax.jit(make().init)(jax.random.key(0))
  d = jax.tree.map(lambda x: 4 * x, state.params['d'])
  # Where all features are dead the logits tie, but for a bias.
  seg = jax.tree.map(lambda x: x, state.params['seg'])
  seg['decoder']['out']['bias'] = jnp.array([0.1, -0.2, 0.05])
  return state.replace(params={'seg': seg, 'd': d})


def log_loss(scores, target):
  p = 1 / (1 + np.exp(-np.float64(scores)))
  return -np.log(p if target else 1 - p)


@pytest.mark.parametrize('real', (True, False))
def test_pixel_bce(real):
  rng = np.random.default_rng(1)
  scores = rng.normal(size=(2, 4, 5)).astype(np.float32)
  valid = rng.uniform(size=(2, 4, 5)) < 0.6
  losses = log_loss(scores, real)
  bce = adv_ssl.pixel_bce
  assert_allclose(bce(scores, real), losses.mean(), rtol=1e-5)
  assert_allclose(bce(scores, real, valid), losses[valid].mean(), rtol=1e-5)
  losses[~valid] = np.log(2)
  assert_allclose(bce(scores, real, valid, True), losses.mean(), rtol=1e-5)
  for count_void in (False, True):
    grad = jax.grad(bce)(scores, real, valid, count_void)
    assert (np.asarray(grad != 0) == valid).all()
  nothing = np.zeros_like(valid)
  loss, grad = jax.value_and_grad(bce)(scores, real, nothing)
  assert loss == 0 and not grad.any()


def test_pixel_bce_of_certain_scores_is_finite():
  scores = np.array([[[-200.0, 200.0]]], np.float32)
  assert adv_ssl.pixel_bce(scores, True) == 100
  assert adv_ssl.pixel_bce(scores, False) == 100


def test_trusted_cross_entropy():
  rng = np.random.default_rng(2)
  logits = rng.normal(size=(2, 3, 4, K)).astype(np.float32)
  trust = rng.choice([0.1, 0.2, 0.9], (2, 3, 4)).astype(np.float32)
  run = functools.partial(adv_ssl.trusted_cross_entropy, threshold=0.2)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  trusted = trust > 0.15  # the bound itself is trusted
  assert 0 < trusted.mean() < 1
  # The gradient is that of cross entropy with a constant label.
  differentiate = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))
  (loss, fraction), grads = differentiate(logits, trust)
  assert_allclose(loss, -np.log(p.max(-1))[trusted].mean(), rtol=1e-5)
  assert_allclose(fraction, trusted.mean())
  wanted = (p - np.eye(K)[p.argmax(-1)]) * trusted[..., None] / trusted.sum()
  assert_allclose(grads[0], wanted, atol=1e-6)
  assert_allclose(grads[1], 0)
  (loss, fraction), grads = differentiate(logits, np.zeros_like(trust))
  assert loss == 0 and fraction == 0 and not grads[0].any()


@functools.cache
def networks():
  seg = segmenters.build(NET, K)
  d = FullyConvDiscriminator(width=4)
  seg_apply = lambda params, x: seg.apply({'params': params}, x)
  return seg_apply, lambda params, x: d.apply({'params': params}, x)[..., 0]


def wanted_terms(seg_params, d_params, threshold):
  """Each term of the segmenter, by the paper's formulas."""
  data, (segment, score) = batch(), networks()
  labelled = segment(seg_params, data['image'])
  unlabelled = segment(seg_params, data['unlabelled'])
  valid = data['label'] != 255
  fooled = -jax.nn.log_sigmoid(score(d_params, jax.nn.softmax(labelled)))
  scores = score(d_params, jax.nn.softmax(unlabelled))
  trusted = jax.lax.stop_gradient(jax.nn.sigmoid(scores)) >= threshold
  surprise = -jax.nn.log_softmax(unlabelled).max(-1)
  return {
    'supervised': segmentation.supervised(
      labelled, data['label'], segmentation.Loss()
    )[0],
    'adv': (fooled * valid).sum() / valid.sum(),
    'adv_unlabelled': -jax.nn.log_sigmoid(scores).mean(),
    'semi': (surprise * trusted).sum() / trusted.sum(),
    'trusted': trusted.mean(),
  }


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def wanted_gradient(seg_params, d_params, threshold, weights):
  """(That of the segmenter's whole loss, the terms)."""
  terms = wanted_terms(seg_params, d_params, threshold)
  names = ('adv', 'adv_unlabelled', 'semi')
  added = sum(weights[i] * terms[name] for i, name in enumerate(names))
  return terms['supervised'] + added, terms


@jax.jit
@jax.value_and_grad
def wanted_d_loss(d_params, seg_params):
  data, (segment, score) = batch(), networks()
  valid = (data['label'] != 255).astype(np.float32)
  drawn = np.eye(K, dtype=np.float32)[data['label'] % 255]
  real = score(d_params, drawn * valid[..., None])
  fake = score(d_params, jax.nn.softmax(segment(seg_params, data['image'])))
  losses = -jax.nn.log_sigmoid(real) - jax.nn.log_sigmoid(-fake)
  return (losses * valid).sum() / valid.sum() / 2


@jax.jit
def trust(seg_params, d_params, images):
  segment, score = networks()
  return jax.nn.sigmoid(
    score(d_params, jax.nn.softmax(segment(seg_params, images)))
  )


def threshold():
  """A trust that about half of the unlabelled pixels have."""
  params = start().params
  return float(
    np.median(trust(params['seg'], params['d'], batch()['unlabelled']))
  )


@functools.cache
def stepped():
  """(t, jitted step)."""
  t = threshold()
  return t, jax.jit(make(semi_threshold=t, **WEIGHTS).train_step)


@pytest.mark.parametrize('step', (24, 25))
def test_the_segmenter_s_step_is_the_formula(step):
  t, train_step = stepped()
  state = start().replace(step=jnp.int32(step))
  after, terms = train_step(state, batch())
  weights = np.array([1.0, 2.0, 0.0 if step < 25 else 3.0], np.float32)
  grads, wanted = wanted_gradient(
    state.params['seg'], state.params['d'], t, weights
  )
  assert 0.2 < wanted['trusted'] < 0.8
  assert wanted['adv'] != pytest.approx(np.log(2), abs=0.01)
  for name in ('adv', 'adv_unlabelled', 'semi', 'trusted'):
    assert_allclose(terms[name], wanted[name], rtol=1e-4, err_msg=name)
  jax.tree.map(
    lambda old, new, g: assert_allclose(new, old - g, atol=2e-5),
    state.params['seg'], after.params['seg'], grads,
  )  # fmt: skip


def test_the_discriminator_s_step_is_the_formula():
  state = start()
  after, terms = stepped()[1](state, batch())
  wanted, grads = wanted_d_loss(state.params['d'], state.params['seg'])
  assert_allclose(terms['d'], wanted, rtol=1e-5)
  # Adam's first moments tell the gradient it was given: (1 - beta) g^i.
  moments = after.opt_state['d'][0]
  jax.tree.map(
    lambda g, mu, nu: (
      assert_allclose(mu, 0.1 * g, atol=1e-6),
      assert_allclose(nu, 0.01 * g**2, atol=1e-6),
    ),
    grads, moments.mu, moments.nu,
  )  # fmt: skip
  step = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()),
    after.params['d'], state.params['d'],
  )  # fmt: skip
  assert_allclose(jax.tree.leaves(step), 1e-4, rtol=0.05)


@pytest.mark.parametrize('count_void', (False, True))
@pytest.mark.parametrize('unlabelled', (0, 1))
def test_discriminator_loss(count_void, unlabelled):
  rng = np.random.default_rng(3)
  maps = rng.dirichlet(np.ones(K), (N + unlabelled, 4, 5)).astype(np.float32)
  label = rng.integers(0, K, (N, 4, 5)).astype(np.int32)
  label[0, :2] = 255
  weights = np.array([0.5, -1.0, 2.0], np.float32)
  real, fake = [], []
  for index in np.ndindex(maps.shape[:3]):
    known = index[0] >= N or label[index] != 255
    if known:
      fake.append(log_loss(maps[index] @ weights, False))
    elif count_void:
      fake.append(np.log(2))
    if index[0] >= N:
      continue
    if known:
      real.append(log_loss(weights[label[index]], True))
    elif count_void:
      real.append(np.log(2))
  found = adv_ssl.discriminator_loss(
    lambda x: (x * weights).sum(-1, keepdims=True), maps, label, count_void
  )
  assert_allclose(found, (np.mean(real) + np.mean(fake)) / 2, rtol=1e-5)


def test_without_weights_it_is_supervised():
  state = start()
  plain = supervised.make(**COMMON, net=NET, optimizer=PLAIN)
  after, _ = jax.jit(plain.train_step)(state, batch())
  grads, _ = wanted_gradient(
    state.params['seg'], state.params['d'], 0.5, np.zeros(3, np.float32)
  )
  jax.tree.map(
    lambda old, new, g: assert_allclose(new, old - g, atol=2e-6),
    state.params['seg'], after.params['seg'], grads,
  )  # fmt: skip


def test_pictures_show_trust():
  state = start()
  pictures = jax.jit(make().pictures)(state, batch())
  wanted = trust(
    state.ema['seg']['params'], state.params['d'], batch()['image']
  )
  assert pictures['trust'].shape == (N, SIZE, SIZE, 1)
  assert_allclose((pictures['trust'][..., 0] + 1) / 2, wanted, atol=1e-5)


def test_learns_a_threshold():
  method = adv_ssl.make(
    num_classes=2, resolution=32, channels=1, total_steps=60, d_width=8,
    net=Net(width=8, depth=1, norm='group'), optimizer=Optimizer(lr=5e-3),
    ema_half_life=16.0,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (8, 4, 4, 1)).repeat(8, 1).repeat(8, 2)
  image = image.astype(np.float32)
  label = (image[..., 0] > 0).astype(np.int32)
  data = {'image': image[:4], 'label': label[:4], 'unlabelled': image[4:]}
  state = jax.jit(method.init)(jax.random.key(0))
  step, trusted = jax.jit(method.train_step), []
  for _ in range(60):
    state, terms = step(state, data)
    trusted.append(float(terms['trusted']))
  assert np.mean(trusted[15:]) > 0.5, 'the semi-supervised term was idle'
  found = jax.jit(method.predict)(state, image).probabilities.argmax(-1)
  assert (found == label).mean() > 0.95


def check(resolution=64, unlabelled_batch_size=2, **changed):
  """`check` with the defaults of `make`, changed."""
  parameters = inspect.signature(adv_ssl.make).parameters.values()
  args = {
    p.name: ConfigDict(p.default._asdict())
    if hasattr(p.default, '_asdict')
    else p.default
    for p in parameters
    if p.default is not p.empty
  }
  fields = ConfigDict(dict(
    method='adv_ssl', init_from='', batch_size=8, args=args | changed,
    unlabelled_batch_size=unlabelled_batch_size,
  ))  # fmt: skip
  data = jaxseg.config.default().data
  data.resolution = resolution
  adv_ssl.check('config.adv', fields, data)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(semi_start=5000.0), r'adv.args.semi_start is 5000.0.*fraction of'),
    (dict(semi_threshold=20.0), r'semi_threshold is 20.0, must be .* to 1.$'),
    (dict(resolution=16), r'config.data.resolution is 16, must be at least 32'),
    (dict(unlabelled_batch_size=0), r'adv.unlabelled_batch_size is 0'),
  ],
)
def test_stages_that_cannot_train_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    check(**fields)


def test_stages_that_can_train_pass():
  check()
  check(resolution=32)


def test_small_images_are_refused_by_make():
  with pytest.raises(UserError, match='^resolution is 16.*at least 32'):
    adv_ssl.make(**COMMON | {'resolution': 16})
