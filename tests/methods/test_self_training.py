"""Self-training: what labels what, when it counts, and that it teaches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.methods import segmenting, self_training, supervised
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

SIZE, STEPS = 16, 60
# Plain gradient descent on cross entropy: updates are gradients.
COMMON = dict(
  num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS,
  net=Net(width=8, depth=1, norm='group'), loss=Loss(dice=0.0),
  ema_half_life=16.0,
  optimizer=Optimizer('sgd', lr=0.1, schedule='constant', weight_decay=0.0),
)  # fmt: skip


@functools.cache
def method(module=self_training, **changes):
  """(jitted init, jitted step, jitted predict)."""
  m = module.make(**COMMON, **changes)
  return jax.jit(m.init), jax.jit(m.train_step), jax.jit(m.predict)


@functools.cache
def batch():
  """Bright or dark blocks; the label says which. 4 + 4 images."""
  rng = np.random.default_rng(0)
  blocks = rng.uniform(-1, 1, (8, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
  image = blocks.astype(np.float32)
  strong = np.stack([0.8 * image + 0.02, -image], 1)  # the second is not seen
  cutmix = np.zeros((4, 2, SIZE, SIZE), np.float32)
  cutmix[:, 0, 2:9, 5:10] = cutmix[:, 1] = 1
  return {
    'image': image[:4], 'label': (image[:4, ..., 0] > 0).astype(np.int32),
    'unlabelled': image[4:], 'unlabelled_strong': strong[4:], 'cutmix': cutmix,
  }  # fmt: skip


def repeated(images, label):
  """Eight labelled images, so that `supervised` is compiled but once."""
  times = 8 // len(images)
  return {'image': np.tile(images, (times, 1, 1, 1)),
          'label': np.tile(label, (times, 1, 1))}  # fmt: skip


@functools.cache
def teacher():
  """A trained supervised stage."""
  init, step, _ = method(supervised)
  state = init(jax.random.key(0))
  for _ in range(STEPS):
    state, _ = step(state, repeated(batch()['image'], batch()['label']))
  return state


def change(before, after):
  return jax.tree.map(lambda a, b: b - a, before.params, after.params)


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: assert_allclose(x, y, **tolerance), a, b)


def test_a_pseudo_label_is_the_likeliest_class_or_void():
  p = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.3, 0.4, 0.3]])
  logits = jnp.log(p).reshape(1, 1, 3, 3)
  for threshold, wanted in ((0.0, [0, 2, 1]), (0.65, [0, VOID, VOID])):
    found = self_training.pseudo_label(logits, threshold)
    assert found.dtype == jnp.int32
    assert_array_equal(found[0, 0], wanted)


def test_own_weight_is_lees_schedule():
  # Equation 16 with T1 = 100, T2 = 600, alpha_f = 3 of 1000 steps.
  steps = np.arange(0, 1001, 50)
  wanted = [
    0.0 if t < 100 else 3.0 if t >= 600 else (t - 100) / (600 - 100) * 3.0
    for t in steps
  ]
  found = [self_training.own_weight(t, 1000, 3.0, 0.1, 0.6) for t in steps]
  assert_allclose(found, wanted, rtol=1e-6)
  sudden = [self_training.own_weight(t, 10, 2.0, 0.5, 0.5) for t in (0, 4, 5)]
  assert_array_equal(sudden, [0, 0, 2])


def test_boxes():
  rng = np.random.default_rng(1)
  image = rng.uniform(-1, 1, (3, 4, 4, 1)).astype(np.float32)
  label = rng.integers(0, 2, (3, 4, 4)).astype(np.int32)
  mask = np.zeros((3, 4, 4), np.float32)
  mask[0, 1:3, :2] = mask[2, :, 3] = 1
  inside = mask > 0
  run = lambda box: self_training.in_box(
    jax.random.key(0), image, label, mask, box
  )
  for box in self_training.BOXES:
    seen, target = map(np.asarray, run(box))
    assert_array_equal(seen[~inside], image[~inside])
    assert_array_equal(target[~inside], label[~inside])
    if box == 'none':
      assert_array_equal(seen, image)
      assert_array_equal(target, label)
    elif box == 'cutmix':
      assert_array_equal(seen[inside], np.roll(image, 1, 0)[inside])
      assert_array_equal(target[inside], np.roll(label, 1, 0)[inside])
    else:
      assert (target[inside] == VOID).all()
      noise = seen[inside].ravel()
      assert np.abs(noise).max() <= 1 and len(np.unique(noise)) == len(noise)


def test_the_students_gradient_is_that_of_a_labelled_union():
  init, step, _ = method(box='none')
  before = init(jax.random.key(1), teacher())
  after, metrics = step(before, batch())
  logits = method(supervised)[2](teacher(), batch()['unlabelled'])
  label = np.asarray(logits.probabilities.argmax(-1))
  union = {
    'image': np.concatenate(
      [batch()['image'], batch()['unlabelled_strong'][:, 0]]
    ),
    'label': np.concatenate([batch()['label'], label]),
  }
  as_labelled, wanted = method(supervised)[1](
    before.replace(extra={'seg': {}}), union
  )
  # Means over 4 and 4 images, against one over 8.
  twice = jax.tree.map(lambda x: 2 * x, change(before, as_labelled))
  assert_trees_close(change(before, after), twice, rtol=1e-3, atol=1e-6)
  assert_allclose(
    metrics['ce'] + metrics['pseudo'], 2 * wanted['ce'], rtol=1e-5
  )
  assert metrics['kept'] == 1 and metrics['pseudo_weight'] == 1
  assert_trees_close(after.extra['teacher'], teacher().ema['seg'], rtol=0)


def test_a_student_learns_from_the_teacher_alone():
  init, step, predict = method(box='none')
  state = init(jax.random.key(1), teacher())
  void = batch() | {'label': np.full_like(batch()['label'], VOID)}
  for _ in range(STEPS):
    state, metrics = step(state, void)
  assert metrics['ce'] == 0
  truth = batch()['unlabelled'][..., 0] > 0
  found = predict(state, batch()['unlabelled']).probabilities.argmax(-1)
  assert (found == truth).mean() > 0.95
  # The next round: this student is the teacher.
  again = init(jax.random.key(2), state)
  assert_trees_close(again.extra['teacher'], state.ema['seg'], rtol=0)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  new, old = map(jax.tree.leaves, (again.params, state.params))
  apart = [np.abs(a - b).max() for a, b in zip(new, old, strict=True)]
  assert max(apart) > 0.01, 'not a new student'


def test_a_student_may_start_from_its_teacher():
  previous = teacher()
  state = method(from_teacher=True)[0](jax.random.key(1), previous)
  assert_trees_close(state.params, {'seg': previous.ema['seg']['params']})
  assert_trees_close(state.ema, previous.ema)
  assert int(state.step) == 0


def test_own_labels_wait_then_teach():
  weak = {k: batch()[k] for k in ('image', 'label', 'unlabelled')}
  init, step, predict = method(threshold=0.8)
  before = init(jax.random.key(0), None)
  after, metrics = step(before, weak)
  # Until T1 it is supervised training.
  alone, _ = method(supervised)[1](
    before, repeated(weak['image'], weak['label'])
  )
  assert metrics['pseudo_weight'] == 0
  assert_trees_close(
    change(before, after), change(before, alone), rtol=1e-3, atol=1e-6
  )
  state, kept = after, []
  for _ in range(STEPS - 1):
    state, metrics = step(state, weak)
    kept.append(float(metrics['kept']))
  assert_allclose(metrics['pseudo_weight'], 3.0)
  assert kept[0] < 0.5 < kept[-1]  # pixels above the threshold
  found = predict(state, weak['unlabelled']).probabilities.argmax(-1)
  assert (found == (weak['unlabelled'][..., 0] > 0)).mean() > 0.95


def test_own_labels_have_no_gradient():
  def loss(logits):
    label = self_training.pseudo_label(logits, 0.0)
    one_hot = jax.nn.one_hot(label, 3)
    return -(one_hot * jax.nn.log_softmax(logits)).sum()

  logits = np.random.default_rng(2).normal(size=(1, 2, 2, 3))
  p = np.asarray(jax.nn.softmax(logits))
  wanted = p - np.eye(3)[p.argmax(-1)]
  assert_allclose(jax.grad(loss)(logits), wanted, atol=1e-6)


def test_teachers_that_do_not_fit_are_refused():
  build = lambda net: segmenting.segmenter(
    net=net, **{k: COMMON[k] for k in COMMON if k in (
      'num_classes', 'resolution', 'channels', 'total_steps', 'optimizer'
    )},
  )  # fmt: skip
  start = lambda net: jax.eval_shape(
    functools.partial(segmenting.start, build(net)), jax.random.key(0)
  )
  init = self_training.make(**COMMON).init
  for net in (Net(width=16, depth=1, norm='group'), Net(width=8, depth=2)):
    with pytest.raises(UserError, match=r'another network: .* give both'):
      jax.eval_shape(init, jax.random.key(0), start(net))
  other = start(COMMON['net'])
  other = other.replace(params={'g': {}, 'd_r': {}}, ema={'g': {}})
  with pytest.raises(UserError, match=r'no segmenter \(its networks: d_r, g\)'):
    jax.eval_shape(init, jax.random.key(0), other)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'unlabelled_batch_size': 0}, 'x.unlabelled_batch_size is 0'),
    ({'threshold': 1.0}, 'x.args.threshold is 1.0, must be from 0'),
    ({'box': 'hole'}, "x.args.box is 'hole', must be one of cutout, cutmix"),
    ({'box': 'cutmix'}, 'config.data.strong.views is 0, but config.x.args.box'),
    ({'alpha_start': 0.7}, 'x.args.alpha_start is 0.7 and alpha_end 0.6'),
    ({'alpha_end': 1.2}, 'alpha_end 1.2, must be fractions'),
  ],
)
def test_mistakes_are_told(changes, message):
  fields = config.stage(
    'self_training', **{'unlabelled_batch_size': 4} | changes
  )
  with pytest.raises(UserError) as error:
    self_training.check('config.x', fields, config.default().data)
  assert message in str(error.value)
  fields = config.stage('self_training', unlabelled_batch_size=4)
  self_training.check('config.x', fields, config.default().data)


def test_imagenet_weights_do_not_replace_the_teachers(monkeypatch):
  fill = lambda state, previous: state if previous else 'new'
  monkeypatch.setattr(segmenting, 'pretrained', lambda seg: fill)
  state = teacher()
  warm = self_training.make(**COMMON, from_teacher=True).pretrained
  assert warm(state, state) is state and warm(state) == 'new'
  assert self_training.make(**COMMON).pretrained(state, state) == 'new'
  monkeypatch.setattr(segmenting, 'pretrained', lambda seg: None)
  assert self_training.make(**COMMON).pretrained is None
