"""Guided collaborative training: who learns what from whom."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import ops
from jaxseg.errors import UserError
from jaxseg.losses import flaws
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.methods import gct, supervised
from jaxseg.nets.segmenters import Net
from jaxseg.ops.conv import conv2d
from jaxseg.optimizers import Optimizer

K, SIDE, STEPS = 3, 16, 60
COMMON = dict(
  num_classes=K, resolution=SIDE, channels=1, total_steps=STEPS,
  net=Net(width=8, depth=1, norm='group'), loss=Loss(dice=0.0),
  optimizer=Optimizer(name='sgd', lr=0.1, weight_decay=0.0),
  ema_half_life=8.0,
)  # fmt: skip
DETECTOR = gct.Detector(width=4, lr=1e-3)
RAMP = 6  # steps, a tenth
DC_WEIGHT = 14.0  # 100 / 21 of each class


@pytest.fixture(autouse=True, scope='module')
def small_programs():
  """The plain convolutions: the fast ones compile for longer."""
  with ops.implementation('lax'):
    yield


@functools.cache
def make(**settings):
  settings = dict(dc_weight=DC_WEIGHT / K) | settings
  return gct.make(**COMMON, detector=DETECTOR, **settings)


@functools.cache
def initial():
  return jax.jit(make().init)(jax.random.key(0))


@functools.cache
def batch():
  """Images of brightness that is the label, a third of the first void."""
  rng = np.random.default_rng(0)
  blocks = rng.uniform(-1, 1, (7, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
  image = blocks.astype(np.float32)
  label = np.digitize(image[..., 0], (-0.3, 0.3)).astype(np.int32)
  label[0, :6] = VOID
  return {'image': image[:4], 'label': label[:4], 'unlabelled': image[4:]}


@functools.cache
def jitted_step():
  return jax.jit(make().train_step)


def step(state, data=None):
  return jitted_step()(state, data or batch())


def scale_maps(state, gain, bias):
  """The state with a detector whose maps are gain times larger, plus bias."""
  flaw = state.params['flaw']
  last = {
    'kernel': gain * flaw['classifier']['kernel'],
    'bias': flaw['classifier']['bias'] + bias,
  }
  params = state.params | {'flaw': flaw | {'classifier': last}}
  return state.replace(params=params, step=jnp.int32(RAMP))


def late(state):
  """At the end of the ramp-up, with a detector that finds many flaws."""
  return scale_maps(state, 30.0, 0.5)


def content(state):
  """At the end of the ramp-up, with a detector that finds none."""
  return scale_maps(state, 0.01, 0.02)


def same(a, b, **tolerance):
  jax.tree.map(functools.partial(assert_allclose, **tolerance), a, b)


def largest_difference(a, b):
  differences = jax.tree.map(lambda x, y: jnp.abs(x - y).max(), a, b)
  return max(map(float, jax.tree.leaves(differences)))


def test_models_differ_and_the_state_holds_three_networks():
  state = initial()
  assert set(state.params) == set(state.opt_state) == {'l', 'r', 'flaw'}
  assert set(state.extra) == {'l', 'r', 'flaw'}
  assert set(state.ema) == {'l', 'r'}
  l, r = state.params['l'], state.params['r']
  assert jax.tree.structure(l) == jax.tree.structure(r)
  for part in ('encoder', 'decoder'):
    assert largest_difference(l[part], r[part]) > 0.01


def test_without_flaws_both_are_supervised():
  """Neither constraint acts: each model's step is that of supervised.py."""
  method = supervised.make(**COMMON)
  state = content(initial())
  after, metrics = step(state)
  assert metrics['dc_weight'] > 0
  for term in ('dc_l', 'dc_r', 'fc_l', 'fc_r', 'both_flawed'):
    assert metrics[term] == 0
  plain_step = jax.jit(method.train_step)
  for name in 'lr':
    part = lambda tree: {'seg': tree[name]}  # noqa: B023
    plain = state.replace(
      params=part(state.params), opt_state=part(state.opt_state),
      ema=part(state.ema), extra=part(state.extra),
    )  # fmt: skip
    plain, found = plain_step(plain, batch())
    assert_allclose(metrics[f'ce_{name}'], found['ce'], rtol=1e-5)
    same(after.params[name], plain.params['seg'], atol=1e-6)
    same(after.ema[name]['params'], plain.ema['seg']['params'], atol=1e-6)
    assert largest_difference(after.params[name], state.params[name]) > 1e-3


def test_flaws_move_both_models():
  plain, _ = step(content(initial()))
  after, metrics = step(late(initial()))
  for name in 'lr':
    assert metrics[f'dc_{name}'] > 0 and metrics[f'fc_{name}'] > 0
    assert largest_difference(after.params[name], plain.params[name]) > 1e-3


@pytest.mark.parametrize('mode', ('fc', 'dc'))
def test_modes(mode):
  _, metrics = jax.eval_shape(make(mode=mode).train_step, initial(), batch())
  terms = {'fc_l', 'fc_r', 'dc_l', 'dc_r'} & set(metrics)
  assert terms == {f'{mode}_l', f'{mode}_r'}


@functools.cache
def probe():
  """Jitted: what the parts of the loss, called by themselves, say."""
  images = np.concatenate([batch()['image'], batch()['unlabelled']])
  unet = gct.segmenting.segmenters.build(COMMON['net'], K)
  net = gct.FlawDetector(DETECTOR.width, stride=1)
  label = jnp.asarray(batch()['label'])

  def guided(params, stats, p, **settings):
    return gct.guide(net, (params, stats), images, p, **settings)

  def fd(params, stats, p, **settings):
    settings = DETECTOR._replace(**settings)
    return gct.detection_loss(net, (params, stats), images, p, label, settings)[
      0
    ]

  def run(state):
    params, stats = state.params['flaw'], state.extra['flaw']
    p = tuple(
      jax.nn.softmax(unet.apply({'params': state.params[n]}, images))
      for n in 'lr'
    )
    variables = {'params': params, 'batch_stats': stats}
    flaw = [
      net.apply(variables, images, q, train=True, mutable=['batch_stats'])[0]
      for q in p
    ]
    slope = jax.grad(fd)(params, stats, p, clip=True)['classifier']['bias']
    return {
      'p': p,
      'flaw': flaw,
      'dc': jax.grad(lambda p: guided(params, stats, p)['dc_l'])(p),
      'fc': jax.grad(lambda v, p: guided(v, stats, p)['fc_l'], (0, 1))(
        params, p
      ),
      'fd': jax.grad(fd, 2)(params, stats, p),
      'plain': fd(params, stats, p),
      'clipped': fd(params, stats, p, clip=True),
      'slope of clipped': slope,
      'void as flaw': fd(params, stats, p, void_as_flaw=True),
      'guided': guided(params, stats, p),
      'shifted': guided(params, stats, p, shift_none=True),
    }

  return jax.jit(run)


@functools.cache
def seen():
  """What the probe says of a state with many flaws, as NumPy."""
  return jax.tree.map(np.asarray, probe()(late(initial())))


def test_metrics_by_hand():
  p, flaw = seen()['p'], seen()['flaw']
  handled = np.asarray([flaws.handle(f) for f in flaw])
  _, metrics = step(late(initial()))
  bad = (handled > 0.6).all(0)
  assert 0 < bad.mean() < 1
  assert_allclose(metrics['both_flawed'], bad.mean(), rtol=1e-6)
  compared = np.where(handled > 0.6, 1, handled)
  label, labelled = batch()['label'], len(batch()['label'])
  truth = (label[..., None] == np.arange(K)).astype(np.float32)
  distances = []
  for i, name in enumerate('lr'):
    wanted = (bad * flaw[i] ** 2).mean()
    assert_allclose(metrics[f'fc_{name}'], wanted, rtol=1e-4)
    learns = compared[i] > compared[1 - i]
    assert 0.05 < learns.mean() < 0.95
    wanted = (learns[..., None] * (p[i] - p[1 - i]) ** 2).mean()
    assert_allclose(metrics[f'dc_{name}'], wanted, rtol=1e-4)
    valid = label != VOID
    ce = -(truth * np.log(p[i][:labelled])).sum(-1)[valid].mean()
    assert_allclose(metrics[f'ce_{name}'], ce, rtol=1e-4)
    true = np.asarray(flaws.target(p[i][:labelled], label))
    distances.append(((flaw[i][:labelled] - true) ** 2)[valid].mean())
  assert_allclose(metrics['fd'], np.mean(distances), rtol=1e-4)


@pytest.mark.parametrize('norm', ('group', 'batch'))
def test_the_state_keeps_its_structure(norm):
  method = gct.make(
    **COMMON | dict(net=Net(width=8, depth=1, norm=norm)), detector=DETECTOR
  )
  state = jax.eval_shape(method.init, jax.random.key(0))
  after, metrics = jax.eval_shape(method.train_step, state, batch())
  assert after == state
  assert bool(state.extra['l']) == bool(state.extra['r']) == (norm == 'batch')
  assert all(m.shape == () and m.dtype == 'float32' for m in metrics.values())


def test_detector_averages_its_statistics_over_both_models():
  """Momentum .9, first with the batch of l, then with that of r."""
  state = late(initial())
  after = step(state)[0].extra['flaw']['norm1']['batch']['mean']
  conv = state.params['flaw']['conv1']
  images = np.concatenate([batch()['image'], batch()['unlabelled']])
  average = 0
  for p in seen()['p']:
    x = jnp.concatenate([images, p], -1)
    x = conv2d(x, conv['kernel'], padding=(1, 1)) + conv['bias']
    average = 0.9 * average + 0.1 * x.mean((0, 1, 2))[:2]
  assert_allclose(after, average, atol=1e-6)


def test_detector_descends_its_own_loss():
  """Adam's first step is lr against the sign of the slope of L_fd."""
  state = late(initial())
  bias = lambda state: state.params['flaw']['classifier']['bias']
  moved = bias(step(state)[0]) - bias(state)

  def fd(change):
    flaw = state.params['flaw']
    last = flaw['classifier'] | {'bias': bias(state) + change}
    params = state.params | {'flaw': flaw | {'classifier': last}}
    return step(state.replace(params=params))[1]['fd']

  slope = (fd(0.01) - fd(-0.01)) / 0.02
  assert abs(slope) > 1e-3
  assert_allclose(moved, -DETECTOR.lr * np.sign(slope), rtol=1e-3)


def test_who_has_gradients():
  """L_dc where the other is better; L_fc its own model; L_fd no model."""
  found = seen()
  handled = [np.asarray(flaws.handle(f)) for f in found['flaw']]
  l, r = (np.where(h > 0.6, 1, h)[..., None] for h in handled)
  own, other = found['p']
  wanted = 2 * (own - other) * (l > r) / own.size
  assert_allclose(found['dc'][0], wanted, atol=1e-9, rtol=1e-4)
  assert_array_equal(found['dc'][1], 0)
  params, (fc, fc_other) = found['fc']
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(params))
  assert np.abs(fc).max() > 0
  assert_array_equal(fc_other, 0)
  assert_array_equal(found['fd'], 0)


def test_weight_ramps_up_and_detector_follows_poly():
  state = initial()
  for count in (0, 1, RAMP // 2, RAMP, STEPS):
    _, metrics = step(state.replace(step=jnp.int32(count)))
    t = min(1, count / RAMP)
    assert_allclose(
      metrics['dc_weight'], DC_WEIGHT * np.exp(-5 * (1 - t) ** 2), rtol=1e-5
    )
  # Adam's steps of a constant gradient are the learning rate.
  counts = [s for s in jax.tree.leaves(state.opt_state['flaw'])
            if s.dtype == jnp.int32]  # fmt: skip
  assert len(counts) == 2
  at = lambda opt, n: jax.tree.map(
    lambda x: jnp.int32(n) if x.dtype == jnp.int32 else x, opt
  )
  opt_state = state.opt_state | {'flaw': at(state.opt_state['flaw'], 20)}
  after, _ = step(state.replace(opt_state=opt_state))
  # Bias correction at count 21 of fresh moments: (1 - b1) / sqrt(1 - b2).
  factor = (0.1 / (1 - 0.9**21)) / np.sqrt(0.01 / (1 - 0.99**21))
  moved = np.abs(
    after.params['flaw']['classifier']['bias']
    - state.params['flaw']['classifier']['bias']
  )
  lr = DETECTOR.lr * (1 - 20 / STEPS) ** 0.9
  assert_allclose(moved, lr * factor, rtol=1e-2)


def test_void_and_scrambled_unlabelled_pixels():
  """What void pixels' neighbours say stays; nothing reads the value 255."""
  state = late(initial())
  after, metrics = step(state)
  void = dict(batch(), label=np.full_like(batch()['label'], VOID))
  alone, found = step(state, void)
  assert found['ce_l'] == found['ce_r'] == found['fd'] == 0
  assert found['dc_l'] > 0  # labels are no part of it
  assert_allclose(found['dc_l'], metrics['dc_l'], rtol=1e-5)
  # Without any label the detector rests.
  same(alone.params['flaw'], state.params['flaw'], atol=0)
  assert largest_difference(after.params['flaw'], state.params['flaw']) > 0


def test_published_switches():
  found, label = seen(), batch()['label']
  n, valid = len(label), label != VOID
  flaw = [f[:n] for f in found['flaw']]
  true, with_void = (
    [np.asarray(flaws.target(q[:n], label, void_as_flaw=v)) for q in found['p']]
    for v in (False, True)
  )
  clipped = np.maximum(flaw, 0)
  assert np.min(flaw) < 0
  mean = lambda errors: np.mean([e[valid] for e in errors])
  assert_allclose(found['plain'], mean(np.square(flaw - np.array(true))), 1e-4)
  errors = clipped - true
  assert_allclose(found['clipped'], mean(np.square(errors)), 1e-4)
  assert found['clipped'] < 0.99 * found['plain']
  # A negative flaw is still pushed up to its target. The bias is added to every
  # pixel, so its slope is the mean over them.
  assert_allclose(found['slope of clipped'], 2 * mean(errors), 1e-3)
  void = np.square(flaw - np.array(with_void)).mean()
  assert_allclose(found['void as flaw'], void, 1e-4)
  assert abs(void - found['plain']) > 0.01 * found['plain']


def test_shift_none_lets_models_without_flaws_teach():
  """The reason for the default: neither map shows a flaw, yet one wins."""
  found = probe()(content(initial()))
  assert found['guided']['dc_l'] == found['guided']['dc_r'] == 0
  assert found['shifted']['dc_l'] + found['shifted']['dc_r'] > 1e-4
  assert found['shifted']['both_flawed'] == 0


def test_predictions():
  state = initial()
  predict = jax.jit(
    lambda state: [
      make(predict_with=way).predict(state, batch()['image'])
      for way in gct.PREDICT_WITH
    ]
  )
  l, r, mean = predict(state)
  assert np.abs(l.probabilities - r.probabilities).max() > 0.01
  wanted = (l.probabilities + r.probabilities) / 2
  assert_allclose(mean.probabilities, wanted, atol=1e-6)
  assert_allclose(mean.probabilities.sum(-1), 1, atol=1e-5)
  assert_allclose(mean.trust, wanted.max(-1).mean((1, 2)), rtol=1e-5)
  # Predictions are of the averaged weights.
  other = state.replace(params=jax.tree.map(jnp.zeros_like, state.params))
  assert_array_equal(predict(other)[0].probabilities, l.probabilities)


def test_pictures():
  found = jax.jit(make().pictures)(late(initial()), batch())
  assert found['flaw'].shape == batch()['image'].shape
  assert found['flaw'].min() >= -1 and found['flaw'].max() <= 1
  assert found['predicted'].shape == batch()['label'].shape


def test_learns_from_few_pixels():
  """With both constraints on, from a fifth of the pixels of four images."""
  state = initial()
  keep = np.random.default_rng(1).uniform(size=batch()['label'].shape) < 0.2
  data = dict(batch(), label=np.where(keep, batch()['label'], VOID))
  exchanged, fd = 0, []
  for _ in range(STEPS):
    state, metrics = step(state, data)
    exchanged += metrics['dc_l'] + metrics['dc_r'] > 0
    fd.append(float(metrics['fd']))
  assert exchanged > STEPS // 2
  assert np.mean(fd[-10:]) < np.mean(fd[:10])
  assert all(np.isfinite(value) for value in metrics.values())
  unlabelled = batch()['unlabelled']
  found = jax.jit(make().predict)(state, unlabelled).probabilities.argmax(-1)
  wanted = np.digitize(unlabelled[..., 0], (-0.3, 0.3))
  assert (found == wanted).mean() > 0.8


def fields(**changes):
  args = dict(
    net=Net()._asdict(), loss=Loss()._asdict(),
    optimizer=Optimizer()._asdict(), mode='gct', predict_with='l',
    detector=gct.Detector()._asdict(), xi=0.6, dc_ramp_up=0.1,
  )  # fmt: skip
  args['detector'] |= changes.pop('detector', {})
  stage = ml_collections.ConfigDict(
    dict(method='gct', init_from='', unlabelled_batch_size=4, batch_size=4,
         args=args | {k: v for k, v in changes.items() if k in args})
  )  # fmt: skip
  data = ml_collections.ConfigDict(
    dict(
      resolution=changes.get('resolution', 64),
      width=changes.get('width', 0),
      strong=dict(views=0),
      weak=dict(kind=''),
    )
  )
  return 'config.seg', stage, data


def test_check_accepts():
  gct.check(*fields())
  gct.check(*fields(resolution=16))
  gct.check(*fields(resolution=96, detector=dict(stride=32)))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(mode='cd'), r"config.seg.args.mode is 'cd', must be one of gct, fc"),
    (dict(predict_with='both'), r"args.predict_with is 'both', must be one of"),
    (dict(detector=dict(stride=5)), r'args.detector.stride is 5, must be one'),
    (
      dict(detector=dict(stride=32)),
      r'args.detector.stride is 32, .* at least 92 .* is 64\); set it to 0',
    ),
    (dict(detector=dict(width=7)), r'args.detector.width is 7, must be even'),
    (dict(detector=dict(nu=-1)), r'args.detector.nu is -1, must lie between 0'),
    (dict(xi=60.0), r'args.xi is 60.0, must lie between 0 and 1'),
    (dict(dc_ramp_up=3.0), r'dc_ramp_up is 3.0, must lie between 0 and 1'),
  ],
)
def test_check_refuses(changes, message):
  with pytest.raises(UserError, match=message):
    gct.check(*fields(**changes))


def test_check_refuses_no_unlabelled_images():
  where, stage, data = fields()
  stage.unlabelled_batch_size = 0
  with pytest.raises(UserError, match='unlabelled_batch_size is 0'):
    gct.check(where, stage, data)


def test_make_refuses_without_a_config():
  with pytest.raises(UserError, match="^mode is 'x', must be one of gct"):
    make(mode='x')
