"""Learning from scribbles and boxes: what counts, and that it helps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from jaxseg import config
from jaxseg.data import weak as weak_labels
from jaxseg.errors import UserError
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import supervised, weak, weak_pictures
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

SIZE, STEPS = 16, 80
COMMON = dict(
  num_classes=2, resolution=SIZE, channels=1, total_steps=STEPS,
  net=Net(width=8, depth=1, norm='group'), ema_half_life=16.0,
  optimizer=Optimizer('adam', lr=1e-2, schedule='constant'),
)  # fmt: skip
DENSE = dict(sigma_xy=0.3, sigma_rgb=30.0, filter='exact')


@functools.cache
def method(module=weak, **changes):
  """(jitted init, jitted step, jitted predict, method)."""
  m = module.make(**COMMON, **changes)
  return jax.jit(m.init), jax.jit(m.train_step), jax.jit(m.predict), m


@functools.cache
def discs():
  """Discs on a noisy ground: (images, masks, scribbles, boxes)."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:SIZE, :SIZE]
  images, masks = [], []
  for _ in range(6):
    cy, cx, r = *rng.uniform(5, 11, 2), rng.uniform(3, 5)
    mask = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    images.append(np.where(mask, 0.4, -0.4) + rng.normal(0, 0.15, mask.shape))
    masks.append(mask.astype(np.uint8))
  kinds = [
    np.stack([
      weak_labels.weaken(m, kind, num_classes=2, width=1, density=d)
      for m in masks
    ]).astype(np.int32)
    for kind, d in (('clicks', 1.0), ('boxes', 1.0))
  ]  # fmt: skip
  images = np.stack(images).astype(np.float32)[..., None]
  return images, np.stack(masks), *kinds


def train(labels, steps=STEPS, **changes):
  """(predicted masks, metrics of all steps) of a training on the discs."""
  init, step, predict, _ = method(**changes)
  state, told = init(jax.random.key(0)), []
  for _ in range(steps):
    state, metrics = step(state, {'image': discs()[0], 'label': labels})
    told.append(metrics)
  return np.asarray(predict(state, discs()[0]).probabilities.argmax(-1)), told


def iou(found):
  truth = discs()[1] == 1
  return (found & truth).sum() / (found | truth).sum()


def test_without_regularizer_it_is_supervised_training():
  batch = {'image': discs()[0], 'label': discs()[2]}
  found = []
  for module in (weak, supervised):
    init, step, _, _ = method(module, loss=Loss(dice=0.0))
    found.append(step(init(jax.random.key(0)), batch))
  (here, metrics), (there, wanted) = found
  assert set(metrics) == {'ce', 'ramp_up'}
  assert_allclose(metrics['ce'], wanted['ce'], rtol=1e-6)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, atol=1e-6), here.params, there.params
  )


def test_clicks_spread_with_the_regularizer():
  _, masks, clicks, _ = discs()
  assert (clicks != 255).mean() < 0.02
  r = Regularizer(crf=0.5, ramp_up=0.3, **DENSE)
  alone, _ = train(clicks)
  spread, told = train(clicks, regularizer=r)
  assert told[-1]['crf'] < 0.7 * told[0]['crf']
  assert told[-1]['ce'] < 0.2 * told[0]['ce']
  assert iou(spread) > max(0.6, iou(alone))


def test_boxes_become_masks():
  _, masks, _, boxes = discs()
  r = Regularizer(crf=0.5, ramp_up=0.3, **DENSE)
  found, told = train(boxes, supervision='boxes', regularizer=r)
  assert told[-1]['tight'] < told[0]['tight']
  assert iou(found) > 0.6


def test_the_regularizer_waits_and_climbs():
  r = Regularizer(crf=1.0, ramp_up=0.25, **DENSE)
  _, told = train(discs()[2], steps=45, regularizer=r, start=0.25)
  climbed = np.array([m['ramp_up'] for m in told])
  assert (climbed[:20] == 0).all() and 0 < climbed[20] < 0.01
  assert (np.diff(climbed[20:40]) > 0).all()
  assert (climbed[40:] == 1).all()


def test_unlabelled_images_take_part():
  images, _, clicks, _ = discs()
  r = Regularizer(entropy=1.0)
  _, step, _, m = method(regularizer=r)
  state = method(regularizer=r)[0](jax.random.key(0))
  batch = {'image': images[:2], 'label': clicks[:2]}
  few, alone = step(state, batch)
  more, told = step(state, batch | {'unlabelled': images[2:]})
  assert_allclose(told['ce'], alone['ce'], rtol=1e-5)
  probabilities = m.predict(state, images).probabilities
  h = -(probabilities * jnp.log(probabilities)).sum(-1)
  free = np.concatenate([clicks[:2] == 255, np.ones((4, SIZE, SIZE), bool)])
  wanted = np.mean([x[mask].mean() for x, mask in zip(h, free, strict=True)])
  assert_allclose(told['entropy'], wanted, rtol=1e-4)


def test_each_image_counts_alike():
  images, _, clicks, _ = discs()
  label = clicks.copy()
  label[0, :8] = 0
  m = weak.make(**COMMON, normalize='image', loss=Loss(dice=1.0))
  state = method()[0](jax.random.key(0))
  _, told = jax.jit(m.train_step)(state, {'image': images, 'label': label})
  logits = jnp.log(m.predict(state, images).probabilities)
  ids = jnp.where(label == 255, 0, label)
  pixels = optax.softmax_cross_entropy_with_integer_labels(logits, ids)
  means = [p[x != 255].mean() for p, x in zip(pixels, label, strict=True)]
  assert_allclose(told['ce'], np.mean(means), rtol=1e-4)
  assert 0 < told['dice'] < 1


def test_pictures_show_where_terms_push():
  images, _, clicks, _ = discs()
  r = Regularizer(crf=0.5, entropy=0.1, **DENSE)
  init, _, _, m = method(regularizer=r)
  shown = jax.jit(m.pictures)(
    init(jax.random.key(0)), {'image': images, 'label': clicks}
  )
  pushes = {name for name in shown if name.startswith('push')}
  assert pushes == {'push_labels', 'push_crf', 'push_entropy'}
  for name in pushes:
    assert shown[name].shape == (6, SIZE, SIZE, 3)
    assert -1 <= shown[name].min() and shown[name].max() <= 1
  # Labels push where they are: red on the disc's click, blue on the ground's.
  red, _, blue = np.moveaxis(np.asarray(shown['push_labels']), -1, 0)
  free = clicks == 255
  assert (red[free] == 1).all() and (blue[free] == 1).all()
  assert (red > blue)[clicks == 1].all() and (red < blue)[clicks == 0].all()


def test_colours_have_a_sign():
  values = jnp.zeros((1, 10, 10)).at[0, 0, 0].set(2.0).at[0, 0, 1].set(-2.0)
  shown = weak_pictures.signed_colours(values)[0]
  assert (shown[5, 5] == 1).all()
  assert shown[0, 0, 0] > 0.5 > shown[0, 0, 2]
  assert shown[0, 1, 2] > 0.5 > shown[0, 1, 0]
  assert np.isfinite(weak_pictures.signed_colours(0 * values)).all()


def settings(**args):
  c = config.default().unlock()
  c.data.source, c.data.resolution = 'digits', 32
  return config.add_stages(c, weak=config.stage('weak', **args)).unlock()


@pytest.mark.parametrize(
  ('args', 'data', 'told'),
  [
    ({'supervision': 'masks'}, {}, "args.supervision is 'masks', must be one"),
    ({'normalize': 'mean'}, {}, "args.normalize is 'mean', must be one of"),
    ({'start': 1.5}, {}, 'args.start is 1.5, must be a part of the steps'),
    ({'regularizer': {'shrink': 3}}, {}, 'args.regularizer.shrink is 3'),
    ({'box': {'size': -1.0}}, {}, 'args.box.size is -1.0'),
    ({'supervision': 'boxes'}, {'weak.kind': 'scribbles'},
     "weak.kind is 'scribbles'; set it to 'boxes'"),
    ({'supervision': 'boxes'}, {'weak.kind': 'boxes', 'weak.refine': 'grabcut'},
     "refine='grabcut'; set config.weak.args.supervision to 'pixels', or"),
    ({'supervision': 'boxes'}, {'weak.kind': 'boxes', 'augment.rotate': 10.0},
     'augment.rotate is 10.0, but config.weak.args.box.tight'),
    ({}, {'weak.kind': 'tags'}, "weak.kind is 'tags', but"),
  ],
)  # fmt: skip
def test_settings_are_refused(args, data, told):
  c = settings(**args)
  for name, value in data.items():
    group, field = name.split('.')
    c.data[group][field] = value
  with pytest.raises(UserError, match=told):
    config.check(c)


def test_good_settings_pass():
  c = settings(regularizer={'crf': 0.1, 'shrink': 2})
  config.check(c)
  c = settings(supervision='boxes')
  c.data.weak.kind = 'boxes'
  config.check(c)
