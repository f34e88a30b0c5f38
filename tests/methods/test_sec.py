"""Seed, expand and constrain: its terms, its seeds, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tagged_digits import COMMON, K, batches, digits

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses import tags
from jaxseg.losses.tags import Pool
from jaxseg.methods import cam, sec, supervised
from jaxseg.nets.tag_classifier import Head
from jaxseg.ops import cam as cam_maps
from jaxseg.ops import dense_crf
from jaxseg.ops.cam import Cues

# Group norm and no dropout: training and use see the same network.
HEAD = Head(0, 32)
ARGS = COMMON | dict(
  net=COMMON['net']._replace(norm='group'), head=HEAD, grid=12,
  cues=Cues(0.7, 0.3),
)  # fmt: skip
STEPS = 40


def made(**changes):
  return sec.make(**ARGS | changes)


@functools.cache
def classifier():
  """A trained stage of `cam`."""
  args = {k: v for k, v in ARGS.items() if k not in ('grid', 'cues')}
  method = cam.make(**args)
  state = jax.jit(method.init)(jax.random.key(0))
  step = jax.jit(method.train_step)
  for batch in batches():
    state, _ = step(state, batch)
  return state


@functools.cache
def trained():
  """(states before and after STEPS steps, the metrics of each)."""
  method, told = made(), []
  before = state = jax.jit(method.init)(jax.random.key(1), classifier())
  step = jax.jit(method.train_step)
  for batch in batches(STEPS):
    state, metrics = step(state, batch)
    told.append({name: float(value) for name, value in metrics.items()})
  return before, state, told


def test_it_learns_from_tags():
  _, state, told = trained()
  loss = [t['loss'] for t in told]
  assert np.mean(loss[-5:]) < 0.85 * np.mean(loss[:5])
  for term in ('seed', 'expand'):
    assert told[-1][term] < 0.8 * told[0][term], term
  # The class that is tagged is likelier on its strokes than elsewhere.
  images, labels, shown = digits('test')
  p = np.asarray(jax.jit(made().predict)(state, images).probabilities)
  tagged = p[np.arange(len(shown)), ..., shown[:, 1:].argmax(1) + 1]
  on, off = tagged[labels > 0].mean(), tagged[labels == 0].mean()
  assert on > 1.5 * off


def test_the_first_step_is_that_of_its_parts():
  """The terms, out of the prediction and what the classifier says."""
  before, _, told = trained()
  batch = next(batches(1))
  p = jax.jit(made().predict)(before, batch['image']).probabilities
  halves = lambda x: sec.shrunk(jnp.asarray(x), (12, 12))
  p = tags.floored(halves(p))
  arguments = {k: v for k, v in ARGS.items() if k not in (
    'grid', 'cues', 'ema_half_life')}  # fmt: skip
  maps, saliency = jax.jit(
    lambda v, x, t: cam.evidence(
      cam.classifier(**arguments), v, x, t, 'features'
    )
  )(before.extra['cam'], batch['image'], batch['tags'])
  seeds = cam_maps.cues(
    halves(maps), batch['tags'], halves(saliency[..., None])[..., 0],
    ARGS['cues'],
  )  # fmt: skip
  refined = jax.jit(dense_crf.mean_field)(jnp.log(p), halves(batch['image']))
  refined = jnp.maximum(refined, 1e-4)
  refined = refined / refined.sum(-1, keepdims=True)
  wanted = {
    'seed': tags.seed(p, seeds),
    'expand': tags.expand(p, batch['tags']),
    'constrain': tags.constrain(p, refined),
    'seeds': (seeds != 255).mean(),
  }
  wanted['loss'] = wanted['seed'] + wanted['expand'] + wanted['constrain']
  wanted['lattice_overflow'] = 0.0
  assert told[0].keys() == wanted.keys()
  for name, value in wanted.items():
    assert_allclose(told[0][name], value, rtol=2e-3, err_msg=name)


def test_it_starts_from_the_classifier_which_stays():
  before, after, _ = trained()
  given = classifier().ema['cam']
  own = before.params['seg']
  jax.tree.map(assert_array_equal, own['encoder'], given['params']['encoder'])
  assert set(own) == {'encoder', 'decoder'}
  jax.tree.map(assert_array_equal, after.extra['cam'], given)
  moved = jax.tree.map(
    lambda a, b: bool((a != b).any()), own, after.params['seg']
  )
  assert all(jax.tree.leaves(moved['decoder']))


def test_multiple_instance_learning_needs_no_classifier():
  method = made(seed=0.0, constrain=0.0, pool=Pool('max'))
  state = jax.jit(method.init)(jax.random.key(1))
  assert set(state.extra) == {'seg'}
  step, told = jax.jit(method.train_step), []
  for batch in batches(10):
    state, metrics = step(state, batch)
    told.append(float(metrics['expand']))
  assert set(metrics) == {'expand', 'loss'}
  assert np.mean(told[-3:]) < 0.9 * np.mean(told[:3])


def test_the_grid_has_the_aspect_of_the_image():
  assert sec.grid_size((321, 321), 41) == (41, 41)
  assert sec.grid_size((32, 48), 41) == (27, 41)
  assert sec.grid_size((32, 32), 41) == (32, 32)
  p = jax.nn.softmax(jax.random.normal(jax.random.key(0), (2, 33, 47, K)))
  small = sec.shrunk(p, (11, 16))
  assert small.shape == (2, 11, 16, K)
  assert_allclose(small.sum(-1), 1, atol=1e-5)
  assert_allclose(small.mean(), p.mean(), rtol=1e-3)


def test_earlier_stages_without_the_classifier_are_refused():
  with pytest.raises(UserError, match='init_from names no stage'):
    jax.eval_shape(made().init, jax.random.key(0))
  keep = ('num_classes', 'resolution', 'channels', 'total_steps', 'net')
  other = supervised.make(**{k: ARGS[k] for k in keep})
  other = jax.eval_shape(other.init, jax.random.key(0))
  with pytest.raises(UserError, match='trained no classifier of tags .*seg'):
    jax.eval_shape(made().init, jax.random.key(0), other)
  method = made(head=Head(0, 16))
  state = jax.eval_shape(lambda: classifier())
  with pytest.raises(UserError, match='the same args.net and args.head'):
    jax.eval_shape(method.init, jax.random.key(0), state)


FIELDS = dict(net={'depth': 2, 'width': 8}, init_from='cam')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'init_from': ''},
      "name a stage of method 'cam', or set config.x",
    ),
    ({'seed': 0.0, 'expand': 0.0}, 'x.args.seed and config.x.args.expand are '),
    ({'grid': 2}, 'x.args.grid is 2, must be at least 4'),
    ({'cues': {'foreground': 0.0}}, 'x.args.cues.foreground is 0.0'),
    ({'crf': {'iterations': 0}}, 'x.args.crf.iterations is 0'),
    ({'head': {'level': 5}}, 'x.args.head.level is 5'),
  ],
)
def test_mistakes_are_told(changes, message):
  data = config.default().data
  data.weak.kind = 'tags'
  with pytest.raises(UserError) as error:
    sec.check('config.x', config.stage('sec', **FIELDS | changes), data)
  assert message in str(error.value)
  sec.check('config.x', config.stage('sec', **FIELDS), data)
  alone = config.stage('sec', **FIELDS | {'init_from': '', 'seed': 0.0})
  sec.check('config.x', alone, data)


def test_stages_of_other_heads_are_refused():
  """Maps of two levels may have the same shapes."""
  c = config.default()
  c.data.weak.kind = 'tags'
  one = lambda method, level, **more: config.stage(
    method, net={'depth': 2, 'width': 8}, head={'level': level}, **more
  )
  for level in (0, 1):
    stages = dict(cam=one('cam', 1), sec=one('sec', level, init_from='cam'))
    c = config.add_stages(c, **stages)
    if level:
      config.check(c)
    else:
      with pytest.raises(UserError, match='config.sec.args.head is .*level'):
        config.check(c)
