"""Mean Teacher: its step against the formula, schedules, switches, messages."""

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
from jaxseg.methods import mean_teacher, supervised
from jaxseg.nets import segmenters
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

K, SIZE, N, M = 3, 16, 4, 2
NET = Net(width=8, depth=1, norm='group')
# A step of this moves the parameters by minus the gradient.
PLAIN = Optimizer(
  name='sgd', lr=1.0, schedule='constant', momentum=0.0, weight_decay=0.0
)
COMMON = dict(num_classes=K, resolution=SIZE, channels=1, total_steps=100)
STEP = 30
SILENT = dict(teacher_noise=0.0, weight=20.0, ramp_up=0.0)


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  uniform = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)
  label = rng.integers(0, K, (N, SIZE, SIZE)).astype(np.int32)
  label[0, :8] = 255
  boxes = np.zeros((M, 2, SIZE, SIZE), np.float32)
  boxes[0, 0, 2:10, 4:9] = 1
  boxes[1, 0, 5:, :6] = 1
  boxes[:, 1] = 1  # of the second view, which is not looked at
  return {
    'image': uniform(N, SIZE, SIZE, 1), 'label': label,
    'unlabelled': uniform(M, SIZE, SIZE, 1), 'cutmix': boxes,
  }  # fmt: skip


def make(net=NET, **fields):
  return mean_teacher.make(**COMMON, net=net, optimizer=PLAIN, **fields)


@functools.cache
def start(norm='group'):
  """A state in training, whose teacher is not the student."""
  method = make(NET._replace(norm=norm))
  state = jax.jit(method.init)(jax.random.key(0))
  other = jax.jit(method.init)(jax.random.key(1))
  ema = {'seg': state.ema['seg'] | {'params': other.params['seg']}}
  return state.replace(ema=ema, step=jnp.int32(STEP))


def softmax(x):
  e = jnp.exp(x)
  return e / e.sum(-1, keepdims=True)


def mixed(arrays):
  """By loops: what the box of the first view shows of the neighbour."""
  found = np.array(arrays)
  boxes = batch()['cutmix'][:, 0]
  for i, row, column in np.argwhere(boxes):
    found[i, row, column] = arrays[(i - 1) % len(arrays), row, column]
  return found


VARIANTS = {
  'paper': {},
  'logits': dict(compared='logits', weight=1.0),
  'unlabelled': dict(on_labelled=False),
  'cutmix': dict(cutmix=True, cutmix_confidence=0.5),
}


@pytest.mark.parametrize('variant', VARIANTS)
def test_step_is_the_formula(variant):
  fields = SILENT | VARIANTS[variant]
  state, data = start(), batch()
  after, terms = jax.jit(make(**fields).train_step)(state, data)
  net = segmenters.build(NET, K)
  everything = np.concatenate([data['image'], data['unlabelled']])
  teach = functools.partial(
    jax.jit(net.apply), {'params': state.ema['seg']['params']}
  )
  first, factor = 0, fields['weight']
  if variant == 'unlabelled':
    first = N
  if variant == 'cutmix':
    first = N
    everything[N:] = mixed(data['unlabelled'])
    target = mixed(teach(data['unlabelled']))
    confident = (np.max(softmax(target), -1) >= 0.5).mean()
    assert 0 < confident < 1
    assert_allclose(terms['confident'], confident)
    factor *= K * confident  # the sum over classes
  else:
    target = teach(everything[first:])

  def loss(params):
    logits = net.apply({'params': params}, everything)
    total, _ = segmentation.supervised(
      logits[:N], data['label'], segmentation.Loss()
    )
    a, b = logits[first:], target
    if variant != 'logits':
      a, b = softmax(a), softmax(b)
    distance = ((a - b) ** 2).mean()
    return total + factor * distance, distance

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (_, distance), grads = grad(state.params['seg'])
  assert_allclose(terms['consistency'], distance, rtol=1e-4)
  jax.tree.map(
    lambda old, new, g: assert_allclose(new, old - g, atol=1e-4),
    state.params['seg'], after.params['seg'], grads,
  )  # fmt: skip
  # The teacher moves by its average alone.
  jax.tree.map(
    lambda old, new, s: assert_allclose(
      new, (STEP * old + s) / (STEP + 1), atol=1e-5
    ),
    state.ema['seg']['params'], after.ema['seg']['params'],
    after.params['seg'],
  )  # fmt: skip


@functools.cache
def scheduled():
  return jax.jit(
    make(weight=3.0, ramp_up=0.5, start=0.2, ema_decay=0.9).train_step
  )


@pytest.mark.parametrize(
  ('step', 'weight', 'decay'),
  [
    (0, 0.0, 0.0),
    (19, 0.0, 0.9),
    (20, 3 * np.exp(-5 * 0.6**2), 0.9),
    (3, 0.0, 0.75),
    (60, 3.0, 0.9),
  ],
)
def test_schedules(step, weight, decay):
  state = start().replace(step=jnp.int32(step))
  after, terms = scheduled()(state, batch())
  assert_allclose(terms['consistency_weight'], weight, rtol=1e-5)
  assert terms['consistency'] > 0
  jax.tree.map(
    lambda old, new, s: assert_allclose(
      new, decay * old + (1 - decay) * s, atol=1e-5
    ),
    state.ema['seg']['params'], after.ema['seg']['params'],
    after.params['seg'],
  )  # fmt: skip


def test_before_the_start_it_is_supervised():
  state, data = start().replace(step=jnp.int32(0)), batch()
  plain = supervised.make(**COMMON, net=NET, optimizer=PLAIN)
  wanted, _ = jax.jit(plain.train_step)(state, data)
  found, terms = scheduled()(state, data)
  assert terms['consistency_weight'] == 0
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, atol=2e-6),
    found.params['seg'], wanted.params['seg'],
  )  # fmt: skip


@pytest.mark.parametrize('who', ('teacher', 'student'))
def test_noise(who):
  step = scheduled()  # of the teacher alone
  if who == 'student':
    fields = dict(teacher_noise=0.0, student_noise=0.2)
    step = jax.jit(make(**fields).train_step)
  state = start()
  state = state.replace(
    ema={'seg': state.ema['seg'] | {'params': state.params['seg']}}
  )
  found = [
    float(step(state.replace(step=jnp.int32(i)), batch())[1]['consistency'])
    for i in range(2)
  ]
  # Without noise, see above, teacher and student would agree.
  assert min(found) > 1e-6 and found[0] != found[1], found


@pytest.mark.parametrize('averaged', (False, True))
def test_batch_statistics_of_the_teacher(averaged):
  net = NET._replace(norm='batch', joint_norm=True)
  state = start('batch')
  step = make(net, average_statistics=averaged, on_labelled=False, **SILENT)
  after, terms = jax.jit(step.train_step)(state, batch())
  teacher = after.ema['seg']['batch_stats']
  apply = jax.jit(
    segmenters.build(net, K).apply, static_argnames=('train', 'mutable')
  )
  training = dict(train=True, mutable='batch_stats')
  images = batch()['unlabelled']
  if averaged:
    target = apply(state.ema['seg'], images)
    wanted = jax.tree.map(
      lambda old, s: (STEP * old + s) / (STEP + 1),
      state.ema['seg']['batch_stats'], after.extra['seg'],
    )  # fmt: skip
  else:
    target, wanted = apply(state.ema['seg'], images, **training)
    wanted = wanted['batch_stats']
  jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-5), teacher, wanted)
  student, _ = apply(
    {'params': state.params['seg'], 'batch_stats': state.extra['seg']},
    np.concatenate([batch()['image'], images]),
    **training,
  )
  distance = ((softmax(student[N:]) - softmax(target)) ** 2).mean()
  assert_allclose(terms['consistency'], distance, rtol=1e-4)


def test_predicts_with_the_teacher():
  state = start()
  found = jax.jit(make().predict)(state, batch()['image'])
  net = segmenters.build(NET, K)
  logits = jax.jit(net.apply)(
    {'params': state.ema['seg']['params']}, batch()['image']
  )
  assert_allclose(found.probabilities, softmax(logits), atol=1e-5)


def test_learns_a_threshold():
  method = mean_teacher.make(
    num_classes=2, resolution=32, channels=1, total_steps=60,
    net=Net(width=8, depth=1, norm='group'), optimizer=Optimizer(lr=5e-3),
    weight=10.0,
    ema_decay=0.9,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (8, 4, 4, 1)).repeat(8, 1).repeat(8, 2)
  image = image.astype(np.float32)
  label = (image[..., 0] > 0).astype(np.int32)
  data = {'image': image[:4], 'label': label[:4], 'unlabelled': image[4:]}
  state = jax.jit(method.init)(jax.random.key(0))
  step = jax.jit(method.train_step)
  for _ in range(60):
    state, terms = step(state, data)
  assert_allclose(terms['consistency_weight'], 10)
  found = jax.jit(method.predict)(state, image).probabilities.argmax(-1)
  assert (found == label).mean() > 0.95


def check(changed=None, strong=None, unlabelled_batch_size=2):
  """`check` with the defaults of `make`, changed."""
  parameters = inspect.signature(mean_teacher.make).parameters.values()
  args = {
    p.name: ConfigDict(p.default._asdict())
    if hasattr(p.default, '_asdict')
    else p.default
    for p in parameters
    if p.default is not p.empty
  }
  fields = ConfigDict(dict(
    method='mean_teacher', init_from='', batch_size=8,
    args=args | (changed or {}), unlabelled_batch_size=unlabelled_batch_size,
  ))  # fmt: skip
  data = jaxseg.config.default().data
  data.strong.update(strong or {})
  mean_teacher.check('config.mt', fields, data)


CUTMIX = {'cutmix': True}


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(changed={'ema_decay': 1.0}), r'config.mt.args.ema_decay is 1.0'),
    (dict(changed={'start': 1.5}), r'args.start is 1.5.*fraction of total'),
    (dict(changed={'ramp_up': 5.0}), r'args.ramp_up is 5.0, must be from 0 to'),
    (dict(changed={'compared': 'labels'}), "args.compared is 'labels'.*logits"),
    (
      dict(changed={'cutmix_confidence': 97.0}),
      'cutmix_confidence is 97.0, must be from 0 to 1.$',
    ),
    (dict(unlabelled_batch_size=0), r'config.mt.unlabelled_batch_size is 0'),
    (dict(changed=CUTMIX), r'config.data.strong.views is 0.*views=1'),
    (
      dict(changed=CUTMIX, strong=dict(views=1, cutmix_probability=0.0)),
      r'strong.cutmix_probability is 0.*config.mt.args.cutmix',
    ),
    (
      dict(changed=CUTMIX, strong=dict(views=1), unlabelled_batch_size=1),
      r'config.mt.unlabelled_batch_size is 1, must be at least 2',
    ),
  ],
)
def test_stages_that_cannot_train_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    check(**fields)


def test_stages_that_can_train_pass():
  check()
  check(changed=CUTMIX, strong={'views': 1})


def test_bad_choices_are_refused_by_make():
  with pytest.raises(UserError, match="^compared is 'labels'"):
    make(compared='labels')
