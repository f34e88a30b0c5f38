"""Entropy minimisation: its terms, their weight, and that it decides."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import entropy, supervised
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
def method(module=entropy, **changes):
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


def repeated():
  """Eight labelled images, as other tests compile `supervised` for."""
  return {'image': np.tile(batch()['image'], (2, 1, 1, 1)),
          'label': np.tile(batch()['label'], (2, 1, 1))}  # fmt: skip


@functools.cache
def trained(module, weight=None):
  """(state, the metrics of each step) after STEPS steps."""
  changes = {} if weight is None else {'weight': weight}
  init, step, _ = method(module, **changes)
  state, told = init(jax.random.key(0)), []
  data = repeated() if module is supervised else batch()
  for _ in range(STEPS):
    state, metrics = step(state, data)
    told.append({name: float(value) for name, value in metrics.items()})
  return state, told


def test_without_weight_it_is_supervised_training():
  ours, wanted = trained(entropy, 0.0), trained(supervised)
  assert ours[1][0]['ce'] == pytest.approx(wanted[1][0]['ce'], rel=1e-5)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, rtol=2e-2, atol=2e-3),
    ours[0].params, wanted[0].params,
  )  # fmt: skip


def test_the_term_is_the_mean_entropy_of_unlabelled_pixels():
  init, step, predict = method(weight=1.0)
  state = init(jax.random.key(0))
  # Before the first step averaged weights are the weights.
  p = predict(state, batch()['unlabelled']).probabilities
  _, metrics = step(state, batch())
  wanted = scipy.stats.entropy(p, axis=-1).mean()
  assert_allclose(metrics['entropy'], wanted, rtol=1e-4)


def test_the_weight_climbs():
  ramp = [told['ramp_up'] for told in trained(entropy, 1.0)[1]]
  t = np.minimum(np.arange(STEPS) / (0.3 * STEPS), 1)
  assert_allclose(ramp, np.exp(-5 * (1 - t) ** 2), rtol=1e-5)


def test_it_learns_and_decides():
  state, told = trained(entropy, 1.0)
  predict = method(weight=1.0)[2]
  found = predict(state, batch()['unlabelled']).probabilities.argmax(-1)
  assert (found == (batch()['unlabelled'][..., 0] > 0)).mean() > 0.95
  # As the lecture says it does: predictions become peaked, earlier.
  alone = trained(entropy, 0.0)[1]
  assert told[-1]['entropy'] < 0.7 * alone[-1]['entropy']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'unlabelled_batch_size': 0}, 'x.unlabelled_batch_size is 0'),
    ({'kind': 'gini'}, "x.args.kind is 'gini', must be one of shannon, norm"),
  ],
)
def test_mistakes_are_told(changes, message):
  fields = config.stage('entropy', **{'unlabelled_batch_size': 4} | changes)
  with pytest.raises(UserError) as error:
    entropy.check('config.x', fields, config.default().data)
  assert message in str(error.value)
  fields = config.stage('entropy', unlabelled_batch_size=4)
  entropy.check('config.x', fields, config.default().data)
