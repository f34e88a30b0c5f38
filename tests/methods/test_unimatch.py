"""UniMatch: its step against the formula, FixMatch, statistics, messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from ml_collections import ConfigDict
from numpy.testing import assert_allclose, assert_array_equal

import jaxseg.config
from jaxseg.errors import UserError
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import supervised, unimatch
from jaxseg.nets import segmenters
from jaxseg.nets.layers import Features
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

K, SIZE, N, M = 3, 16, 2, 4
NET = Net(width=8, depth=0, norm='group')  # two convolutions, and one to logits
DEEPER = NET._replace(depth=1, norm='batch')
# A step of this moves the parameters by minus the gradient.
PLAIN = Optimizer(
  name='sgd', lr=1.0, schedule='constant', momentum=0.0, weight_decay=0.0
)
COMMON = dict(num_classes=K, resolution=SIZE, channels=1, total_steps=100)
CONFIDENCE = 0.4  # about half of the pixels of a fresh network


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  uniform = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)
  label = rng.integers(0, K, (N, SIZE, SIZE)).astype(np.int32)
  label[0, :8] = 255
  boxes = np.zeros((M, 2, SIZE, SIZE), np.float32)
  boxes[0, 0, 2:10, 4:9] = boxes[1, 1, 5:, :6] = boxes[3, 0, :, 3:] = 1
  return {
    'image': uniform(N, SIZE, SIZE, 1), 'label': label,
    'unlabelled': uniform(M, SIZE, SIZE, 1),
    'unlabelled_strong': uniform(M, 2, SIZE, SIZE, 1), 'cutmix': boxes,
  }  # fmt: skip


LOSS = Loss(dice=0.0)


@functools.cache
def make(net=NET, **fields):
  fields = dict(confidence=CONFIDENCE, feature_dropout=0.0, loss=LOSS) | fields
  method = unimatch.make(**COMMON, net=net, optimizer=PLAIN, **fields)
  return method._replace(train_step=jax.jit(method.train_step))


@functools.cache
def start(net=NET):
  return jax.jit(make(net).init)(jax.random.key(0))


def step(net=NET, data=None, **fields):
  """(state, metrics) after one step."""
  return make(net, **fields).train_step(start(net), data or batch())


def numpy_cutmix(x, boxes):
  """Row by row: the box of image i shows image i - 1."""
  out = np.array(x)
  for i in range(M):
    inside = boxes[i] == 1
    out[i][inside] = x[i - 1][inside]
  return out


def reference(views, feature_weight):
  """(gradient, {'ce', 'strong', 'feature', 'mask_ratio'}), without dropout."""
  data, params = batch(), start().params['seg']
  net = segmenters.build(NET, K)
  apply = jax.jit(lambda p, x: net.apply({'params': p}, x))
  weak = np.asarray(apply(params, data['unlabelled']))
  probabilities = scipy.special.softmax(weak, axis=-1)
  pseudo, sure = weak.argmax(-1), probabilities.max(-1) >= CONFIDENCE
  strong = [
    [
      numpy_cutmix(x, data['cutmix'][:, v])
      for x in (data['unlabelled_strong'][:, v], pseudo, sure)
    ]
    for v in range(views)
  ]

  def terms(params):
    """Cross entropies by hand, as sums over one-hot labels."""

    def ce(logits, label, mask):
      picked = jax.nn.log_softmax(logits) * np.eye(K)[label]
      return -(picked.sum(-1) * mask).sum()

    label = data['label']
    valid = label != 255
    on_labels = ce(
      net.apply({'params': params}, data['image']),
      np.where(valid, label, 0), valid,
    ) / valid.sum()  # fmt: skip
    on_views = sum(
      ce(net.apply({'params': params}, x), *teaches) for x, *teaches in strong
    ) / (views * M * SIZE**2)
    weak = net.apply({'params': params}, data['unlabelled'])
    feature = ce(weak, pseudo, sure) / (M * SIZE**2)
    total = on_labels + (1 - feature_weight) * on_views
    return (total + feature_weight * feature) / 2, (
      on_labels, on_views, feature,
    )  # fmt: skip

  gradient, values = jax.jit(jax.grad(terms, has_aux=True))(params)
  names = ('ce', 'strong', 'feature')
  return gradient, dict(zip(names, values, strict=True)) | {
    'mask_ratio': sure.mean()
  }


@pytest.mark.parametrize(
  ('views', 'feature_weight'),
  [(2, 0.5), (1, 0.0)],
  ids=['uni', 'fix'],
)
def test_step_against_the_formula(views, feature_weight):
  gradient, expected = reference(views, feature_weight)
  assert 0.1 < expected['mask_ratio'] < 0.9
  after, metrics = step(views=views, feature_weight=feature_weight)
  if not feature_weight:
    del expected['feature']
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert_allclose(metrics[name], value, rtol=1e-4, err_msg=name)
  moved = jax.tree.map(
    lambda old, new: old - new, start().params['seg'], after.params['seg']
  )
  # Pseudo-labels are constants of the reference: no gradient flows to them.
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=2e-3, atol=2e-5), moved, gradient
  )


def test_the_other_views_are_not_looked_at():
  data = batch() | {
    name: np.where(np.arange(2).reshape(2, *[1] * (x.ndim - 2)), np.nan, x)
    for name, x in batch().items()
    if name in ('unlabelled_strong', 'cutmix')
  }
  data = {k: np.asarray(v, batch()[k].dtype) for k, v in data.items()}
  assert np.isnan(data['cutmix'][:, 1]).all()
  fields = dict(views=1, feature_weight=0.0)
  _, metrics = step(**fields)
  _, same = step(data=data, **fields)
  assert metrics == same


def test_without_unlabelled_weight_it_is_half_the_supervised_gradient():
  after, _ = step(unlabelled_weight=0.0)
  alone = supervised.make(**COMMON, net=NET, optimizer=PLAIN, loss=LOSS)
  expected, _ = jax.jit(alone.train_step)(start(), batch())
  jax.tree.map(
    lambda old, new, other: assert_allclose(
      new - old, (other - old) / 2, rtol=1e-3, atol=1e-5
    ),
    *(s.params['seg'] for s in (start(), after, expected)),
  )


def test_feature_perturbation_enters_the_gradient():
  (whole, terms), (dropped, other_terms) = (
    step(views=2, feature_weight=0.5), step(feature_dropout=0.5)
  )  # fmt: skip
  assert terms['strong'] == other_terms['strong']
  assert abs(terms['feature'] - other_terms['feature']) > 1e-3
  kernel = lambda state: state.params['seg']['encoder']['bottom']['conv0']
  assert abs(kernel(whole)['kernel'] - kernel(dropped)['kernel']).max() > 1e-4


def test_batch_statistics_are_of_both_passes():
  """Perturbed features that are not perturbed do not change them."""
  joint = DEEPER._replace(joint_norm=True)
  after, _ = step(joint)
  data, before = batch(), start(joint)
  net = segmenters.build(joint, K)
  strong = np.stack(
    [
      numpy_cutmix(data['unlabelled_strong'][:, v], data['cutmix'][:, v])
      for v in range(2)
    ]
  ).reshape(-1, SIZE, SIZE, 1)

  @jax.jit
  def pass_(stats, images):
    variables = {'params': before.params['seg'], 'batch_stats': stats}
    return net.apply(variables, images, train=True, mutable=['batch_stats'])[1][
      'batch_stats'
    ]

  weak = np.concatenate([data['image'], data['unlabelled']])
  stats = pass_(pass_(before.extra['seg'], weak), strong)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    after.extra['seg'], stats,
  )  # fmt: skip


def test_drop_channels():
  rng = np.random.default_rng(0)
  maps = tuple(
    jnp.asarray(rng.uniform(1, 2, shape), dtype)
    for shape, dtype in (
      ((40, 4, 4, 60), jnp.float32), ((40, 2, 2, 60), jnp.bfloat16),
    )
  )  # fmt: skip
  indices = (jnp.arange(3),)
  found = unimatch.drop_channels(
    jax.random.key(0), Features(maps, indices), 0.25
  )
  assert found.indices is indices
  dropped = []
  for old, new in zip(maps, found.maps, strict=True):
    assert new.dtype == old.dtype
    ratio = np.asarray(new / old, np.float32)
    gone = ratio[:, 0, 0] == 0
    assert_array_equal(gone, (ratio == 0).all((1, 2)))  # whole channels
    kept = ratio[np.broadcast_to(~gone[:, None, None], ratio.shape)]
    assert_allclose(kept, 1 / 0.75, rtol=1e-2)
    assert abs(gone.mean() - 0.25) < 0.04  # 4.5 standard deviations
    assert np.ptp(gone.mean(1)) > 0 and np.ptp(gone.mean(0)) > 0
    dropped.append(gone)
  assert (dropped[0] != dropped[1]).any()  # each map on its own


def test_pseudo_labels():
  p = np.array([[0.95, 0.05], [0.94, 0.06], [0.01, 0.99]], np.float32)
  classes, sure = unimatch.pseudo_labels(jnp.log(p * 1.5), 0.945)
  assert_array_equal(classes, [0, 0, 1])
  assert_array_equal(sure, [1, 0, 1])
  _, all_sure = unimatch.pseudo_labels(jnp.log(p), 0.0)
  assert_array_equal(all_sure, 1)


@pytest.mark.parametrize('arch', ['segnet', 'deeplab_v3plus'])
def test_features_of_every_network_can_be_perturbed(arch):
  net = Net(arch, width=8, backbone='resnet18', norm='batch')
  method = unimatch.make(
    num_classes=K, resolution=32, channels=1, total_steps=10, net=net
  )
  abstract = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
  data = {
    'image': abstract(N, 32, 32, 1), 'unlabelled': abstract(M, 32, 32, 1),
    'label': abstract(N, 32, 32, dtype=np.int32),
    'unlabelled_strong': abstract(M, 2, 32, 32, 1),
    'cutmix': abstract(M, 2, 32, 32),
  }  # fmt: skip
  before = jax.eval_shape(method.init, jax.random.key(0))
  after, metrics = jax.eval_shape(method.train_step, before, data)
  assert jax.tree.structure(before) == jax.tree.structure(after)
  assert {m.shape for m in metrics.values()} == {()}


@functools.cache
def defaults():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jaxseg.config.methods.METHODS, 'unimatch', unimatch)
    stage = jaxseg.config.stage('unimatch', unlabelled_batch_size=8)
  return stage.copy_and_resolve_references().unlock()


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'args.views': 0}, 'config.x.args.views is 0, must be 1 or more'),
    ({'args.views': 3}, 'strong.views is 2, .* 3 strong views .* set it to 3'),
    ({'args.confidence': 95.0}, 'confidence is 95.0, must be from 0 to 1'),
    (
      {'args.feature_weight': 1.5},
      'feature_weight is 1.5, must be from 0 to 1',
    ),
    ({'args.feature_dropout': 1.0}, 'feature_dropout is 1.0, must .* below 1'),
    ({'unlabelled_batch_size': 0}, 'unlabelled_batch_size is 0'),
  ],
)
def test_mistakes_are_told(changes, sentence):
  data = jaxseg.config.default().data.unlock()
  data.strong.views = 2
  fields = ConfigDict(defaults().to_dict())
  unimatch.check('config.x', fields, data)
  fields.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=sentence):
    unimatch.check('config.x', fields, data)


def test_learns_a_threshold():
  method = unimatch.make(
    num_classes=2, resolution=SIZE, channels=1, total_steps=80,
    net=Net(width=8, depth=1, norm='group'), optimizer=Optimizer(lr=1e-2),
    ema_half_life=4.0, confidence=0.8,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  squares = rng.uniform(-1, 1, (N + M, 4, 4, 1)).repeat(4, 1).repeat(4, 2)
  squares = squares.astype(np.float32)
  image, other = squares[:N], squares[N:]
  data = batch() | {
    'image': image, 'label': (image[..., 0] > 0).astype(np.int32),
    'unlabelled': other,
    'unlabelled_strong': np.stack([0.8 * other, other + 0.05], 1),
  }  # fmt: skip
  state = jax.jit(method.init)(jax.random.key(0))
  run = jax.jit(method.train_step)
  for _ in range(80):
    state, metrics = run(state, data)
  found = jax.jit(method.predict)(state, squares).probabilities.argmax(-1)
  assert (found == (squares[..., 0] > 0)).mean() > 0.95
  assert metrics['mask_ratio'] > 0.8
