"""BCP: both stages against the formula, teacher, boxes, messages."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

import jaxseg.config
from jaxseg.errors import UserError
from jaxseg.methods import bcp
from jaxseg.nets import segmenters
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

K, SIZE, N = 3, 16, 4
NET = Net(width=8, depth=0, norm='batch')
# A step of this moves the parameters by minus the gradient.
PLAIN = Optimizer(
  name='sgd', lr=1.0, schedule='constant', momentum=0.0, weight_decay=0.0
)
COMMON = dict(num_classes=K, resolution=SIZE, channels=1, total_steps=100)
WEIGHT = 0.3
BOX = np.zeros((SIZE, SIZE), bool)
BOX[3:13, 1:11] = True


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  smooth = lambda: (
    4
    * ndimage.gaussian_filter(
      rng.normal(size=(N, SIZE, SIZE, 1)), (0, 1.5, 1.5, 0)
    ).astype(np.float32)
  )
  label = rng.integers(0, K, (N, SIZE, SIZE)).astype(np.int32)
  label[0, :8] = label[3, 5:, :3] = 255
  return {'image': smooth(), 'label': label, 'unlabelled': smooth()}


@functools.cache
def make(random=False, **fields):
  """The method; its box is BOX, or random."""
  method = bcp.make(
    **COMMON, net=NET, optimizer=PLAIN, unlabelled_weight=WEIGHT, **fields
  )

  def step(state, batch):
    with mock.patch.object(bcp, 'random_box', lambda *_: jnp.asarray(BOX)):
      return method.train_step(state, batch)

  return method._replace(
    train_step=jax.jit(method.train_step if random else step)
  )


@functools.cache
def start():
  """A state in training, whose teacher is not the student."""
  init = jax.jit(make().init)
  state, other = init(jax.random.key(0)), init(jax.random.key(1))
  stats = jax.tree.map(lambda x: 0.9 * x, other.ema['seg']['batch_stats'])
  teacher = {'params': other.params['seg'], 'batch_stats': stats}
  return state.replace(ema={'seg': teacher})


def expected_pseudo():
  """The teacher's classes, the largest component of each by SciPy."""
  net, data = segmenters.build(NET, K), batch()
  logits = jax.jit(net.apply)(start().ema['seg'], data['unlabelled'])
  classes = np.asarray(logits.argmax(-1))
  kept = np.zeros_like(classes)
  for out, found in zip(kept, classes, strict=True):
    for k in range(1, K):
      parts, count = ndimage.label(found == k, np.ones((3, 3)))
      if count:
        largest = 1 + np.bincount(parts.ravel())[1:].argmax()
        out[parts == largest] = k
  assert (kept != classes).any() and (kept > 0).any()
  return kept


def mixtures(pretrain):
  """[(images, [(labels, mask, weight)])] by hand, of each pass."""
  data = {k: np.array(v) for k, v in batch().items()}
  image, label, other = (data[k] for k in ('image', 'label', 'unlabelled'))
  valid = label != 255
  if pretrain:
    images = image.copy()
    shown = [3, 0, 1, 2]
    images[:, BOX] = image[shown][:, BOX]
    return [
      (images, [
        (label, valid & ~BOX, 1.0), (label[shown], valid[shown] & BOX, 1.0),
      ])
    ]  # fmt: skip
  pseudo, every = expected_pseudo(), np.ones((2, SIZE, SIZE), bool)
  into_unlabelled, into_labelled = other[:2].copy(), image[2:].copy()
  into_unlabelled[:, BOX] = image[:2, BOX]
  into_labelled[:, BOX] = other[2:, BOX]
  return [
    (into_unlabelled, [
      (label[:2], valid[:2] & BOX, 1.0), (pseudo[:2], every & ~BOX, WEIGHT),
    ]),
    (into_labelled, [
      (label[2:], valid[2:] & ~BOX, 1.0), (pseudo[2:], every & BOX, WEIGHT),
    ]),
  ]  # fmt: skip


def region_loss(logits, label, mask):
  """(cross entropy, Dice loss) of the pixels in the mask, by hand."""
  one_hot = np.eye(K, dtype=np.float32)[np.where(mask, label, 0)]
  mask = mask[..., None].astype(np.float32)
  ce = -(jax.nn.log_softmax(logits) * one_hot * mask).sum() / mask.sum()
  p, y = (x.reshape(-1, K) for x in (jax.nn.softmax(logits) * mask,
                                     one_hot * mask))  # fmt: skip
  dice = (2 * (p * y).sum(0) + 1e-5) / ((p * p + y * y).sum(0) + 1e-5)
  return ce, 1 - dice.mean()


def reference(pretrain):
  """(gradient, {'ce': .., 'unlabelled_ce': ..}, new batch statistics)."""
  net, state, halves = segmenters.build(NET, K), start(), mixtures(pretrain)

  def loss(params):
    stats, total, sums = state.extra['seg'], 0.0, {1.0: [], WEIGHT: []}
    for images, targets in halves:  # one after the other
      logits, updated = net.apply(
        {'params': params, 'batch_stats': stats}, images,
        train=True, mutable=['batch_stats'],
      )  # fmt: skip
      stats = updated['batch_stats']
      for *target, weight in targets:
        found = region_loss(logits, *target)
        sums[weight].append(jnp.array(found))
        total += weight * sum(found) / 2
    return total, (stats, sums)

  gradient, (stats, sums) = jax.jit(jax.grad(loss, has_aux=True))(
    state.params['seg']
  )
  terms = {}
  for weight, prefix in ((1.0, ''), (WEIGHT, 'unlabelled_')):
    if sums[weight]:
      values = np.mean(sums[weight], axis=0)
      terms |= dict(zip((f'{prefix}ce', f'{prefix}dice'), values, strict=True))
  return gradient, terms, stats


def assert_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize('pretrain', [True, False])
def test_step_against_the_formula(pretrain):
  gradient, terms, stats = reference(pretrain)
  before = start()
  after, metrics = make(pretrain=pretrain).train_step(before, batch())
  assert metrics.keys() == terms.keys()
  for name, value in terms.items():
    assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  moved = jax.tree.map(
    lambda old, new: old - new, before.params['seg'], after.params['seg']
  )
  # The teacher's labels are constants of the reference: without gradient.
  assert_close(moved, gradient, rtol=2e-3, atol=2e-5)
  assert_close(after.extra['seg'], stats, rtol=1e-4, atol=1e-5)
  student = {'params': after.params['seg'], 'batch_stats': stats}
  average = jax.tree.map(
    lambda t, s: 0.99 * t + 0.01 * s, before.ema['seg'], student
  )
  assert_close(after.ema['seg'], average, rtol=1e-4, atol=1e-5)
  assert int(after.step) == 1


def test_pretraining_does_not_look_at_unlabelled_images():
  data = {k: v for k, v in batch().items() if k != 'unlabelled'}
  metrics = jax.eval_shape(make(pretrain=True).train_step, start(), data)[1]
  assert set(metrics) == {'ce', 'dice'}


def test_teacher_in_training_ignores_its_stored_statistics():
  seg = start().ema['seg']
  spoilt = jax.tree.map(lambda x: x + 3.0, seg['batch_stats'])
  other = start().replace(ema={'seg': seg | {'batch_stats': spoilt}})
  terms = lambda state, **fields: make(**fields).train_step(state, batch())[1]
  published = dict(teacher_train=True, largest_component=False)
  first, second = (terms(s, **published) for s in (start(), other))
  assert first == second
  first, second = (terms(s, pretrain=False) for s in (start(), other))
  assert first['ce'] == second['ce']
  assert abs(first['unlabelled_ce'] - second['unlabelled_ce']) > 1e-3


def test_boxes_have_the_aspect_of_the_image():
  draw = jax.vmap(lambda key: bcp.random_box(key, (6, 12), 2 / 3))
  boxes = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), 200)))
  corners = set()
  for box in boxes:
    rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
    assert (len(rows), len(columns), box.sum()) == (4, 8, 32)
    corners.add((rows[0], columns[0]))
  assert corners == {(i, j) for i in range(3) for j in range(5)}


@pytest.mark.parametrize('part', [2 / 3, 0.05])
def test_boxes_are_squares_everywhere(part):
  draw = jax.vmap(lambda key: bcp.random_box(key, (12, 12), part))
  boxes = np.asarray(jax.jit(draw)(jax.random.split(jax.random.key(0), 400)))
  size = {2 / 3: 8, 0.05: 1}[part]
  corners = set()
  for box in boxes:
    rows, columns = (np.flatnonzero(box.any(axis)) for axis in (1, 0))
    assert box.sum() == size**2
    assert np.ptp(rows) == np.ptp(columns) == size - 1
    corners.add((rows[0], columns[0]))
  places = 12 - size + 1
  if size == 8:  # 400 draws of 25 places
    assert corners == {(i, j) for i in range(places) for j in range(places)}
  assert len(corners) > 20 and max(map(max, corners)) == places - 1


def test_every_step_draws_a_box():
  """The same images and weights, another step: other losses."""
  step = make(random=True, pretrain=True).train_step
  first, again, other = (
    step(start().replace(step=jnp.int32(i)), batch())[1]['ce']
    for i in (0, 0, 1)
  )
  assert first == again != other


def test_start_from_an_earlier_stage():
  method, previous = make(pretrain=False), start()
  state = method.init(jax.random.key(5), previous)
  teacher = previous.ema['seg']
  jax.tree.map(assert_array_equal, state.ema['seg'], teacher)
  jax.tree.map(assert_array_equal, state.params['seg'], teacher['params'])
  jax.tree.map(assert_array_equal, state.extra['seg'], teacher['batch_stats'])
  assert int(state.step) == 0
  leaves = jax.tree.leaves((state.params, state.ema, previous.ema))
  assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
  with pytest.raises(UserError, match='trained no segmenter .its networks: g'):
    method.init(
      jax.random.key(5), previous.replace(ema={'g': {}}, params={'g': {}})
    )
  wide = bcp.make(**COMMON, net=NET._replace(width=16))
  with pytest.raises(UserError, match='mean is .* there and .* same args.net'):
    jax.eval_shape(wide.init, jax.random.key(5), previous)


@functools.cache
def defaults():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jaxseg.config.methods.METHODS, 'bcp', bcp)
    stage = jaxseg.config.stage(
      'bcp', batch_size=8, unlabelled_batch_size=8, init_from='first'
    )
  return stage.to_dict()


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'init_from': ''}, "config.x.init_from is '', .*pretrain=True"),
    ({'batch_size': 6}, 'batch_size is 6 and .*_size 8, .* number, e.g. 6.'),
    (
      {'batch_size': 7, 'unlabelled_batch_size': 7},
      'batch_size is 7 and .*_size 7, .* one even number, e.g. 6.',
    ),
    ({'unlabelled_batch_size': 0}, 'unlabelled_batch_size is 0'),
    ({'args.pretrain': True, 'batch_size': 1}, 'batch_size is 1, must be at'),
    ({'args.box': 1.0}, 'args.box is 1.0, must be above 0 and below 1'),
    ({'args.ema_decay': 1.0}, 'ema_decay is 1.0, must be from 0 to below 1'),
    ({'args.connectivity': 6}, 'connectivity is 6, must be 4 or 8'),
  ],
)
def test_mistakes_are_told(changes, sentence):
  data, fields = jaxseg.config.default().data, ConfigDict(defaults())
  bcp.check('config.x', fields, data)
  fields.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=sentence):
    bcp.check('config.x', fields, data)


def test_two_stages_learn_a_threshold():
  rng = np.random.default_rng(0)
  squares = rng.uniform(-1, 1, (2 * N, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
  squares = squares.astype(np.float32)
  label = (squares[..., 0] > 0).astype(np.int32)
  data = {
    'image': squares[:N], 'label': label[:N], 'unlabelled': squares[N:],
  }  # fmt: skip
  state = None
  for pretrain in (True, False):
    method = bcp.make(
      num_classes=2, resolution=SIZE, channels=1, total_steps=50,
      net=Net(width=8, depth=0, norm='group'), optimizer=Optimizer(lr=2e-2),
      ema_decay=0.9, pretrain=pretrain, largest_component=False,
    )  # fmt: skip
    state = jax.jit(method.init)(jax.random.key(0), state)
    step = jax.jit(method.train_step)
    for _ in range(50):
      state, metrics = step(state, data)
  found = jax.jit(method.predict)(state, squares).probabilities.argmax(-1)
  assert (found == label).mean() > 0.95
  assert metrics['unlabelled_ce'] < 0.2
