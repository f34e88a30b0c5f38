"""The term without labels that every semi-supervised segmenter may have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import config
from jaxseg.data import views
from jaxseg.errors import UserError
from jaxseg.losses import regularized
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import METHODS, entropy, segmenting
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

SIZE, STEPS = 32, 40
CRF = Regularizer(crf=1.0, sigma_xy=0.1, filter='exact')
NET = Net(width=8, depth=1, norm='group')
# A name may go on after the method's with '-'.
METHODS_WITH_IT = {
  'mean_teacher': dict(student_noise=0.5),
  'mean_teacher-cutmix': dict(cutmix=True),
  'adv_ssl': dict(d_width=8),
  'gct': {},
  'self_training': dict(box='none'),
  'entropy': {},
  'graph': {},
  'unimatch': {},
  'bcp-pretrain': dict(pretrain=True),
  'bcp': {},
  'cyclegan': dict(g_width=8, g_blocks=1, d_width=8, pool_size=0),
}


def make(name, **more):
  args = dict(net=NET) | METHODS_WITH_IT[name] | more
  name = name.partition('-')[0]
  if name == 'cyclegan':
    args['image_size'] = (SIZE, SIZE)
  return METHODS[name].make(
    num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS, **args
  )


@functools.cache
def batch():
  """Bright or dark blocks; few pixels have a label, which says which."""
  rng = np.random.default_rng(0)
  blocks = rng.choice([-0.6, 0.6], (8, 4, 4, 1)).repeat(8, 1).repeat(8, 2)
  image = (blocks + rng.normal(0, 0.05, blocks.shape)).astype(np.float32)
  label = (blocks[:4, ..., 0] > 0).astype(np.int32)
  label[rng.uniform(size=label.shape) > 0.02] = 255
  boxes = np.zeros((4, 2, SIZE, SIZE), np.float32)
  boxes[:, 0, 4:20, 6:14] = boxes[::2, 1, 8:, :12] = 1
  return {
    'image': image[:4],
    'label': label,
    'unlabelled': image[4:],
    'unlabelled_strong': np.stack([0.5 * image[4:], image[4:] + 0.1], 1),
    'cutmix': boxes,
  }


@pytest.mark.parametrize('name', METHODS_WITH_IT)
def test_what_the_term_looks_at(name, monkeypatch):
  def told(logits, images, settings, unlabelled):
    assert logits.shape == (*images.shape[:3], 2)
    assert settings == CRF
    return logits.sum(), {'images': images, 'unlabelled': unlabelled}

  monkeypatch.setattr(regularized, 'regularize', told)
  method = make(name, regularizer=CRF)
  shapes = jax.eval_shape(method.init, jax.random.key(0), None)
  state = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), shapes.replace(rng=None)
  ).replace(rng=jax.random.key(0))

  @jax.jit
  def looked_at(state, batch):  # most of the step is not compiled
    terms = method.train_step(state, batch)[1]
    own = {k: v for k, v in terms.items() if k.startswith('regularizer_')}
    return {k.removeprefix('regularizer_'): v for k, v in own.items()}

  found, b = looked_at(state, batch()), batch()
  if name == 'gct':
    assert_array_equal(found['images_l'], found['images_r'])
    found = {k.removesuffix('_l'): v for k, v in found.items()}
  unlabelled, mask = b['unlabelled'], b['label'] == 255
  if name == 'mean_teacher-cutmix':
    unlabelled = views.cutmix(unlabelled, b['cutmix'][:, 0])
  if name == 'self_training':
    unlabelled = b['unlabelled_strong'][:, 0]
  if not name.startswith('bcp'):
    images = np.concatenate([b['image'], unlabelled])
    assert_array_equal(found['images'], images)
    assert_array_equal(
      found['unlabelled'], np.concatenate([mask, np.ones_like(mask)])
    )
    return
  seen = np.asarray(found['images'])
  first = (
    np.roll(b['image'], 1, axis=0) if name == 'bcp-pretrain' else b['image']
  )
  second = b['image'] if name == 'bcp-pretrain' else unlabelled
  from_first, from_second = ((seen == x)[..., 0] for x in (first, second))
  assert (from_first != from_second).all()
  assert 0.1 < from_first.mean() < 0.9
  if name == 'bcp':
    wanted = ~from_first | mask
  else:
    wanted = np.where(from_first, np.roll(mask, 1, axis=0), mask)
  assert_array_equal(found['unlabelled'], wanted)


@functools.cache
def trained(settings):
  """(first state, after one step at half of the ramp, after all, metrics)."""
  method = entropy.make(
    num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS, net=NET,
    loss=Loss(dice=0.0), weight=0.0, ema_half_life=0.0, regularizer=settings,
    optimizer=Optimizer('sgd', lr=0.1, schedule='constant', weight_decay=0.0),
  )  # fmt: skip
  first = jax.jit(method.init)(jax.random.key(0))
  step, told = jax.jit(method.train_step), []
  half = jnp.full((), STEPS // 2, jnp.int32)
  one, _ = step(first.replace(step=half), batch())
  state = first
  for _ in range(STEPS):
    state, metrics = step(state, batch())
    told.append({name: float(value) for name, value in metrics.items()})
  return first, one, state, told


def segmenter():
  return segmenting.segmenter(
    num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS, net=NET,
    optimizer=Optimizer(),
  )  # fmt: skip


def everything():
  return jnp.concatenate([batch()['image'], batch()['unlabelled']])


RAMP = CRF._replace(entropy=0.5, ramp_up=1.0)


def test_its_gradient_is_that_of_regularize():
  first, ours, _, _ = trained(RAMP)
  _, without, _, _ = trained(Regularizer())
  b, images = batch(), everything()
  free = np.concatenate([b['label'] == 255, np.ones((4, SIZE, SIZE), bool)])

  def value(params):
    logits = segmenting.logits(segmenter(), {'params': params}, images)
    return regularized.regularize(logits, images, RAMP, unlabelled=free)[0]

  gradient = jax.jit(jax.grad(value))(first.params['seg'])
  climbed = np.exp(-5 * 0.5**2)
  difference = jax.tree.map(
    lambda a, b: (b - a) / 0.1, ours.params['seg'], without.params['seg']
  )
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
  jax.tree.map(
    lambda d, g: assert_allclose(d, climbed * g, atol=1e-3 * climbed * scale),
    difference, gradient,
  )  # fmt: skip


def test_labels_follow_edges():
  told = trained(RAMP)[3]
  assert told[-1]['regularizer_crf'] < 0.5 * told[0]['regularizer_crf']
  assert 'regularizer_crf' not in trained(Regularizer())[3][0]
  images, energy, correct = everything(), [], []

  @jax.jit
  def score(params):
    logits = segmenting.logits(segmenter(), {'params': params}, images)
    right = (logits.argmax(-1) == 1) == (images[..., 0] > 0)
    return regularized.regularize(logits, images, CRF)[0], right.mean()

  for settings in (Regularizer(), RAMP):
    found = score(trained(settings)[2].params['seg'])
    energy.append(float(found[0]))
    correct.append(float(found[1]))
  assert energy[1] < 0.8 * energy[0]
  assert correct[1] > max(0.95, correct[0])


@pytest.mark.parametrize(
  'name', ['mean_teacher', 'adv_ssl', 'gct', 'self_training', 'entropy',
           'graph', 'unimatch', 'bcp', 'cyclegan'],
)  # fmt: skip
def test_mistakes_are_told(name):
  data = config.default().data
  args = dict(pretrain=True) if name == 'bcp' else {}
  fields = config.stage(
    name, unlabelled_batch_size=4, regularizer=dict(form='cubic'), **args
  )
  with pytest.raises(UserError) as error:
    METHODS[name].check('config.x', fields, data)
  assert "config.x.args.regularizer.form is 'cubic', must be one of" in str(
    error.value
  )
  with pytest.raises(
    UserError, match=r'^regularizer\.shrink is 5, must divide'
  ):
    make(name, regularizer=Regularizer(shrink=5))
