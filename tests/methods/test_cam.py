"""Class activation maps: views, evidence, and what digits teach from tags."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tagged_digits import COMMON, batches, digits, iou

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses.tags import Pool
from jaxseg.methods import cam
from jaxseg.nets.tag_classifier import Head
from jaxseg.ops.cam import SALIENCIES

ARGS = COMMON | dict(head=Head(0, 32), background=0.5)


@functools.cache
def trained():
  """(state, the metrics of each step) after STEPS steps."""
  method = cam.make(**ARGS)
  state, told = jax.jit(method.init)(jax.random.key(0)), []
  step = jax.jit(method.train_step)
  for batch in batches():
    state, metrics = step(state, batch)
    told.append({name: float(value) for name, value in metrics.items()})
  return state, told


@functools.cache
def seg():
  names = (
    'num_classes', 'resolution', 'channels', 'total_steps', 'net', 'head',
    'optimizer',
  )  # fmt: skip
  return cam.classifier(**{name: ARGS[name] for name in names})


def test_it_learns_tags_and_places():
  """Of digits of which no pixel was labelled; baselines beside."""
  state, told = trained()
  tags = [t['tags'] for t in told]
  assert np.mean(tags[-10:]) < 0.7 * np.mean(tags[:10])
  images, labels, shown = digits('test')
  maps, logits = jax.jit(
    lambda s, x: cam.views(
      seg(), s.ema['cam'], x, Pool('average'), True, (1.0,)
    )
  )(state, images)
  right = ((logits > 0) == (shown[:, 1:] > 0)).mean()
  assert right > 0.85, 'no class at all is right for 2 of 3'
  # Where a class is tagged, its map is higher on its strokes than elsewhere.
  one = np.asarray(maps)[np.arange(len(shown)), ..., shown[:, 1:].argmax(1)]
  on = np.array([m[y > 0].mean() for m, y in zip(one, labels, strict=True)])
  off = np.array([m[y == 0].mean() for m, y in zip(one, labels, strict=True)])
  assert on.mean() > 1.5 * off.mean() and (on > off).mean() > 0.8
  found = jax.jit(cam.make(**ARGS).predict)(state, images)
  majority = iou(np.zeros_like(labels), labels)
  assert iou(found.probabilities.argmax(-1), labels) > majority + 0.05


def test_without_a_class_all_is_background():
  images = digits('test')[0][:4]
  method = cam.make(**ARGS | {'threshold': 0.999, 'flip': False})
  found = jax.jit(method.predict)(trained()[0], images)
  assert_array_equal(found.probabilities[..., 0], 1)
  assert (found.trust >= 0.5).all() and (found.trust <= 1).all()


def test_mirrored_images_have_mirrored_maps():
  variables, images = trained()[0].ema['cam'], digits('test')[0][:4]

  def both(images):
    see = lambda x, *args: cam.views(seg(), variables, x, Pool('lse'), *args)
    mirrored = see(images[:, :, ::-1], True, (1.0,))
    return (
      see(images, True, (1.0,)), (mirrored[0][:, :, ::-1], mirrored[1]),
      see(images, False, (1.0, 0.5)), see(images, False, (1.0,)),
      see(images, False, (0.5,)),
    )  # fmt: skip

  once, mirrored, scales, large, small = jax.jit(both)(images)
  for a, b in zip(once, mirrored, strict=True):
    assert_allclose(a, b, atol=1e-4)
  for a, b, c in zip(scales, large, small, strict=True):
    assert_allclose(a, (b + c) / 2, atol=1e-4)
  assert once[0].shape == (4, 32, 32, 3) and (once[0] >= 0).all()


@pytest.mark.parametrize('kind', SALIENCIES)
def test_evidence(kind):
  """The saliency of a pixel, by finite differences or from the maps."""
  variables, (images, _, shown) = trained()[0].ema['cam'], digits('test')
  # Noise, since maxima of plain areas have no derivative.
  noise = np.random.default_rng(0).normal(size=(2, 32, 32, 1))
  images, shown = (images[:2] + 0.1 * noise).astype(np.float32), shown[:2]
  maps, saliency = jax.jit(
    lambda x: cam.evidence(seg(), variables, x, shown, kind)
  )(images)
  assert maps.shape == (2, 8, 8, 3)
  if kind == 'cam':
    wanted = (np.maximum(maps, 0) * shown[:, None, None, 1:]).sum(-1)
    assert_allclose(saliency, wanted, rtol=1e-5, atol=1e-6)
    return
  apply = seg().net.apply
  if kind == 'features':
    x = apply(variables, images, method='seen')
    score = lambda x: apply(variables, x, method='classify').maps
  else:
    x, score = jnp.asarray(images), lambda x: apply(variables, x).maps
  assert saliency.shape == x.shape[:3]
  place = (0, *np.unravel_index(saliency[0].argmax(), x.shape[1:3]))
  h, base = 1e-3, np.zeros(x.shape[-1])

  @jax.jit
  def total(x):
    return (score(x).mean((1, 2)) * shown[:, 1:]).sum()

  for c in range(x.shape[-1]):
    base[c] = (
      total(x.at[(*place, c)].add(h)) - total(x.at[(*place, c)].add(-h))
    ) / (2 * h)
  assert_allclose(saliency[place], np.abs(base).max(), rtol=0.05)


FIELDS = dict(net={'depth': 2, 'width': 8})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'head': {'level': 3}},
     'x.args.head.level is 3, but the encoder of unet gives the maps 0 (16 x 16'
     '), 1 (32 x 32), 2 (64 x 64)'),
    ({'head': {'features': 0}}, 'x.args.head.features is 0, must be at least'),
    ({'pool': {'kind': 'sum'}}, "x.args.pool.kind is 'sum'"),
    ({'background': 1.0}, 'x.args.background is 1.0, must be between 0 and 1'),
    ({'threshold': 0.0}, 'x.args.threshold is 0.0'),
    ({'scales': ()}, 'x.args.scales is (), must be factors'),
    ({'init_from': 'unet'}, "x.init_from is 'unet', but cam starts from"),
  ],
)  # fmt: skip
def test_mistakes_are_told(changes, message):
  data = config.default().data
  data.weak.kind = 'tags'
  with pytest.raises(UserError) as error:
    cam.check('config.x', config.stage('cam', **FIELDS, **changes), data)
  assert message in str(error.value)


def test_labels_of_another_kind_are_refused():
  data = config.default().data
  fields = config.stage('cam', **FIELDS)
  for kind in ('', 'scribbles'):
    data.weak.kind = kind
    with pytest.raises(UserError, match='set --config.data.weak.kind=tags'):
      cam.check('config.x', fields, data)
  data.weak.kind = 'tags'
  cam.check('config.x', fields, data)
