"""Pooling and losses of tags: NumPy, limits, numbers published with SEC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.errors import UserError
from jaxseg.losses import tags
from jaxseg.losses.tags import Pool

expand = jax.jit(tags.expand, static_argnums=2)
PUBLISHED = Pool('gwrp', 5.0, 0.996, 0.999)


@pytest.fixture(scope='module')
def probabilities():
  """[3, 5, 4, 4], and tags: some classes, all of them, only background."""
  logits = 2 * np.random.default_rng(0).normal(size=(3, 5, 4, 4))
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  shown = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32)
  return p.astype(np.float32), shown


def weighted_by_rank(values, decay):
  """Of one map, one pixel after the other."""
  total = mass = 0.0
  for j, value in enumerate(sorted(values.ravel().tolist(), reverse=True)):
    total, mass = total + decay**j * value, mass + decay**j
  return total / mass


def test_published_weights():
  """The masses of 41 x 41 weights, and the ranks with half of them."""
  for q, mass, half in ((0.996, 249.70, 173), (0.999, 813.97, 523)):
    weights = q ** np.arange(41 * 41)
    assert weights.sum() == pytest.approx(mass, abs=0.005)
    assert abs(np.searchsorted(weights.cumsum(), mass / 2) + 1 - half) <= 1
    one_high = np.zeros((1, 41 * 41, 1), np.float32)
    one_high[0, 7] = 1
    assert_allclose(tags.rank_pool(one_high, [q])[0, 0], 1 / mass, rtol=1e-4)


@pytest.mark.parametrize(('q', 'part'), [(0.996, 0.1027), (0.999, 0.311)])
@pytest.mark.parametrize('side', [16, 41, 80])
def test_decays_of_other_grids_keep_the_part_with_half_the_weight(
  q, part, side
):
  weights = tags.rank_decay(q, side * side) ** np.arange(side * side)
  cumulated = weights.cumsum() / weights.sum()
  found = np.interp(0.5, cumulated, np.arange(1, side * side + 1))
  assert found / side**2 == pytest.approx(part, abs=2 / side**2 + 5e-4)


def test_ranks_are_weighed(probabilities):
  p, _ = probabilities
  q = [tags.rank_decay(q, 20) for q in (0.999, 0.996)]
  wanted = [
    [weighted_by_rank(p[n, ..., k], q[min(k, 1)]) for k in range(4)]
    for n in range(3)
  ]
  assert_allclose(tags.pool(p, PUBLISHED, first=0), wanted, rtol=1e-5)
  foreground = tags.pool(p[..., 1:], PUBLISHED)
  assert_allclose(foreground, np.asarray(wanted)[:, 1:], rtol=1e-5)


def test_limits(probabilities):
  p, _ = probabilities
  highest, mean = p.max((1, 2)), p.mean((1, 2))
  assert_array_equal(tags.pool(p, Pool('max')), highest)
  assert_allclose(tags.pool(p, Pool('average')), mean, rtol=1e-6)
  pool = lambda *args: tags.pool(p, Pool(*args), first=0)
  assert_allclose(pool('gwrp', 5.0, 0.0, 0.0), highest, rtol=1e-6)
  assert_allclose(pool('gwrp', 5.0, 1.0, 1.0), mean, rtol=1e-5)
  assert_allclose(pool('lse', 1e-3), mean, atol=1e-3)
  assert_allclose(pool('lse', 1e4), highest, atol=1e-3)
  wanted = np.log(np.exp(5.0 * p.astype(np.float64)).mean((1, 2))) / 5
  assert_allclose(pool('lse'), wanted, rtol=1e-5)
  for kind in tags.POOLS:  # what a bias adds to all pixels it adds to the score
    shifted = tags.pool(p + 3, Pool(kind))
    assert_allclose(shifted, tags.pool(p, Pool(kind)) + 3, rtol=1e-5)


def test_no_class_is_impossible():
  p = tags.floored(jnp.asarray([1.0, 0.0, 0.0]))
  assert_allclose(p, np.array([1.0001, 1e-4, 1e-4]) / 1.0003, rtol=1e-6)


@pytest.mark.parametrize('kind', tags.POOLS)
def test_expand(kind, probabilities):
  """Class by class, as SEC's equation 5 says, for every pooling."""
  p, shown = probabilities
  settings = PUBLISHED._replace(kind=kind)
  pooled = np.asarray(tags.pool(p, settings, first=0), np.float64)
  losses = []
  for n in range(3):
    there = [-np.log(pooled[n, k]) for k in (1, 2, 3) if shown[n, k]]
    absent = [
      -np.log(1 - p[n, ..., k].max()) for k in (1, 2, 3) if not shown[n, k]
    ]
    mean = lambda values: sum(values) / len(values) if values else 0.0
    losses.append(mean(there) + mean(absent) - np.log(pooled[n, 0]))
  found = expand(p, shown, settings)
  assert_allclose(found, np.mean(losses), rtol=1e-5)


def test_expand_by_hand():
  """Two pixels, one foreground class."""
  p = np.array([[[[0.75, 0.25], [0.5, 0.5]]]], np.float32)
  loss = lambda *shown: float(
    expand(p, np.array([shown], np.float32), Pool('max'))
  )
  assert loss(1, 1) == pytest.approx(-np.log(0.5) - np.log(0.75))
  assert loss(0, 1) == pytest.approx(-np.log(0.5))  # no background is tagged
  assert loss(1, 0) == pytest.approx(-np.log(1 - 0.5) - np.log(0.75))


def test_gradients(probabilities):
  p, shown = probabilities
  cues = np.full((3, 5, 4), 255, np.int32)
  cues[0, 1, 2], cues[0, 3], cues[2, 0, 0] = 2, 0, 1
  other = np.roll(p, 1, axis=1)

  def loss(logits):
    p = tags.floored(jax.nn.softmax(logits))
    return (
      tags.expand(p, shown, PUBLISHED) + tags.seed(p, cues)
      + tags.constrain(p, other)
    )  # fmt: skip

  logits, direction = jnp.log(p), np.random.default_rng(1).normal(size=p.shape)
  both, h = jax.jit(jax.value_and_grad(loss)), 1e-2
  there, back = (both(logits + s * h * direction)[0] for s in (1, -1))
  slope = (there - back) / (2 * h)
  gradient = both(logits)[1]
  assert_allclose((gradient * direction).sum(), slope, rtol=5e-3)


def test_seeds_count_alike_in_an_image_and_images_alike():
  p = np.full((3, 2, 2, 2), 0.5, np.float32)
  p[0, 0, 0] = [0.9, 0.1]
  p[0, 1, 1] = [0.2, 0.8]
  cues = np.full((3, 2, 2), 255, np.int32)
  cues[0, 0, 0], cues[0, 1, 1], cues[1, 0, 1] = 0, 1, 1
  wanted = (-(np.log(0.9) + np.log(0.8)) / 2 - np.log(0.5) + 0) / 3
  assert_allclose(tags.seed(p, cues), wanted, rtol=1e-5)


def test_constrain_is_the_divergence_from_what_does_not_move():
  p = np.array([[[[0.5, 0.5], [0.1, 0.9]]]], np.float32)
  q = np.array([[[[0.25, 0.75], [0.1, 0.9]]]], np.float32)
  wanted = (0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)) / 2
  assert_allclose(tags.constrain(p, q), wanted, rtol=1e-5)
  assert_array_equal(jax.grad(tags.constrain, 1)(p, q), 0)
  assert tags.constrain(q, q) == 0


def test_soft_margin():
  rng = np.random.default_rng(0)
  logits = (4 * rng.normal(size=(3, 5))).astype(np.float32)
  shown = (rng.random((3, 5)) < 0.5).astype(np.float32)
  p = 1 / (1 + np.exp(-logits.astype(np.float64)))
  wanted = -(shown * np.log(p) + (1 - shown) * np.log(1 - p)).mean()
  assert_allclose(tags.soft_margin(logits, shown), wanted, rtol=1e-5)


@t.needed
def test_soft_margin_as_pytorch():
  rng = np.random.default_rng(1)
  logits = (4 * rng.normal(size=(3, 5))).astype(np.float32)
  shown = (rng.random((3, 5)) < 0.5).astype(np.float32)
  wanted = t.F.multilabel_soft_margin_loss(t.tensor(logits), t.tensor(shown))
  assert_allclose(tags.soft_margin(logits, shown), wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'kind': 'mean'}, "x.kind is 'mean', must be one of max, average, lse"),
    ({'sharpness': 0.0}, 'x.sharpness is 0.0, must be above 0'),
    ({'decay': 1.5}, 'x.decay is 1.5, must be from 0 to 1'),
    ({'background_decay': -1.0}, 'x.background_decay is -1.0'),
  ],
)
def test_mistakes_are_told(changes, message):
  with pytest.raises(UserError) as error:
    tags.check('x', Pool(**changes))
  assert message in str(error.value)
  tags.check('x', Pool())
