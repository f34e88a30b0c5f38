"""Dense CRF, normalised cut, kernel k-means: recorded numbers, matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.errors import UserError
from jaxseg.losses import graph, regularized
from jaxseg.losses.regularized import Regularizer

SIDE = 16


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def ramps():
  """Probabilities and image [1, 16, 16, 3] of known energies."""
  y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64)
  image = np.stack([255 * x / 15, 255 * y / 15, 127.5 * (x + y) / 15], -1)
  logits = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
  as_batch = lambda a: a[None].astype(np.float32)
  return as_batch(softmax(logits)), as_batch(image / 127.5 - 1)


@pytest.fixture(scope='module')
def small():
  """Three images of 6x8, K = 3, and pixels that count."""
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(3, 6, 8, 3))
  images = rng.uniform(-1, 1, (3, 6, 8, 2))
  valid = rng.uniform(size=(3, 6, 8)) > 0.3
  return logits.astype(np.float32), images.astype(np.float32), valid


def energies(probabilities, image, settings):
  a = regularized.associations(probabilities, image, settings)
  return {
    'published': regularized.dense_crf(a, published_scale=True),
    'quadratic': (
      regularized.dense_crf(a, 'quadratic') * (a.degree * a.mask).sum(-1)
    ),
    'bilinear': regularized.dense_crf(a),
    'ncut': regularized.normalized_cut(a),
    'degree': (a.degree * a.mask).sum(-1),
  }


def _published(probabilities, image, settings):
  found = energies(probabilities, image, settings)
  return found['published'].sum(), found


slope = jax.jit(jax.grad(_published, has_aux=True), static_argnums=2)


# Of weak-supervision losses recorded with float64 sums over all pairs, and with
# the lattice of the published code.
@pytest.mark.parametrize(
  'sigma_rgb, sigma_xy, wanted, lattice',
  [
    (15, 100, (-377.9741329, -.9682018, -1.17964164, 1.96564682, 953.1455479),
     (-187.2262, -1.1778538)),
    (60, 8, (-3866.526880, -9.0797601, -1.11835235, 208.3711892, 10244.4207824),
     (-1964.998, -1.1188726)),
    (13, 80 / 12, (-285.3740406, -.7944250, -1.18209841, 1.10680478,
                   718.3771501), (-101.9221, -1.1826894)),
  ],
)  # fmt: skip
def test_recorded_energies(ramps, sigma_rgb, sigma_xy, wanted, lattice):
  exact = Regularizer(
    sigma_xy=sigma_xy / SIDE, sigma_rgb=sigma_rgb, filter='exact'
  )
  gradient, found = slope(*ramps, exact)
  published, first, ncut, quadratic, degree = wanted
  assert_allclose(found['published'][0], published, rtol=1e-5)
  assert_allclose(gradient[0, 0, 0, 0], first, rtol=1e-5)
  assert_allclose(found['ncut'][0] - 3, ncut, rtol=1e-5)
  assert_allclose(found['quadratic'][0], quadratic, rtol=2e-3)  # cancellation
  assert_allclose(found['degree'][0], degree, rtol=1e-5)
  assert_allclose(found['bilinear'][0], 1 + published / degree, rtol=1e-5)

  _, found = slope(*ramps, exact._replace(filter='lattice'))
  assert_allclose(found['published'][0], lattice[0], rtol=1e-5)
  assert_allclose(found['ncut'][0] - 3, lattice[1], rtol=1e-5)


def by_matrix(p, image, valid, sigma_xy, sigma_rgb):
  """All energies of one image from A [P, P] and S [P, K], in float64."""
  height, width, _ = image.shape
  y, x = np.mgrid[:height, :width]
  longer = max(height, width)
  features = np.concatenate(
    [
      np.stack([x, y], -1) / (sigma_xy * longer),
      (image.astype(np.float64) + 1) * 127.5 / sigma_rgb,
    ],
    -1,
  ).reshape(height * width, -1)[valid.ravel()]
  s = p.reshape(-1, p.shape[-1])[valid.ravel()].astype(np.float64)
  difference = features[:, None] - features[None]
  a = np.exp(-0.5 * np.square(difference).sum(-1))
  d = a.sum(1)
  squares = np.square(s[:, None] - s[None]).sum(-1)
  kmeans = 0.0
  for k in range(s.shape[-1]):
    # |phi_p - mu|^2 of the mean mu of the feature map, from the kernel alone.
    weight = s[:, k] / s[:, k].sum()
    distance = 1 - 2 * a @ weight + weight @ a @ weight
    kmeans += s[:, k] @ distance
  return {
    'crf': sum(s[:, k] @ a @ (1 - s[:, k]) for k in range(3)) / d.sum(),
    'quadratic': 0.5 * (a * squares).sum() / d.sum(),
    'ncut': sum(s[:, k] @ a @ (1 - s[:, k]) / (d @ s[:, k]) for k in range(3)),
    'clustering': kmeans / len(s),
  }


ALL = Regularizer(
  crf=0.3, ncut=0.2, clustering=0.5, potts=0.7, entropy=0.4, sigma_xy=0.3,
  sigma_rgb=90.0, filter='exact',
)  # fmt: skip
regularize = jax.jit(
  jax.value_and_grad(
    lambda logits, images, valid, s: regularized.regularize(
      logits, images, s, valid=valid, unlabelled=valid
    ),
    has_aux=True,
  ),
  static_argnums=3,
)


def test_terms_by_matrices(small):
  logits, images, valid = small
  (total, found), _ = regularize(logits, images, valid, ALL)
  (_, quadratic), _ = regularize(
    logits, images, valid, ALL._replace(form='quadratic')
  )
  p = softmax(logits)
  wanted = [
    by_matrix(*entry, sigma_xy=0.3, sigma_rgb=90)
    for entry in zip(p, images, valid, strict=True)
  ]
  mean = lambda name: np.mean([w[name] for w in wanted])
  for name in ('crf', 'ncut', 'clustering'):
    assert_allclose(found[name], mean(name), rtol=1e-5)
  assert_allclose(quadratic['crf'], mean('quadratic'), rtol=1e-5)
  assert_allclose(quadratic['ncut'], mean('ncut'), rtol=1e-5)
  log = -(p * np.log(p)).sum(-1)
  entropy = np.mean([x[v].mean() for x, v in zip(log, valid, strict=True)])
  assert_allclose(found['entropy'], entropy, rtol=1e-5)
  potts = [
    graph.potts(*(x[i : i + 1] for x in (p, images)), form='bilinear',
                valid=valid[i : i + 1])
    for i in range(3)
  ]  # fmt: skip
  assert_allclose(found['potts'], np.mean(potts), rtol=1e-5)
  weighted = sum(getattr(ALL, name) * found[name] for name in regularized.TERMS)
  assert_allclose(total, weighted, rtol=1e-5)


def test_gradient_by_differences(small):
  logits, images, valid = small
  _, gradient = regularize(logits, images, valid, ALL)
  direction = np.random.default_rng(1).normal(size=logits.shape)
  step = 1e-2 * direction.astype(np.float32)
  value = lambda x: float(regularize(x, images, valid, ALL)[0][0])
  slope = (value(logits + step) - value(logits - step)) / 2e-2
  assert_allclose(slope, (gradient * direction).sum(), rtol=2e-3)


def test_a_flat_prediction_costs_nothing_in_the_quadratic_form(small):
  _, images, _ = small
  s = Regularizer(crf=1.0, form='quadratic', filter='exact')
  flat = regularized.regularize(jnp.zeros((3, 6, 8, 3)), images, s)[0]
  one_class = jnp.zeros((3, 6, 8, 3)).at[..., 1].set(50.0)
  bilinear = s._replace(form='bilinear')
  assert abs(float(flat)) < 1e-6
  # The bilinear form asks to decide: 1 - 1/K where nothing is decided.
  undecided = regularized.regularize(jnp.zeros((3, 6, 8, 3)), images, bilinear)
  assert_allclose(undecided[0], 2 / 3, rtol=1e-5)
  assert abs(float(regularized.regularize(one_class, images, bilinear)[0])) < (
    1e-6
  )


def test_edges_are_where_labels_may_change():
  """Two halves: a label along the edge costs less than one across it."""
  image = np.full((1, 8, 8, 1), -0.5, np.float32)
  image[:, :, 4:] = 0.5
  side = lambda mask: 10.0 * np.stack([mask, 1 - mask], -1)[None]
  y, x = np.mgrid[:8, :8]
  along, across = side(x < 4), side(y < 4)
  for name in ('crf', 'ncut', 'clustering', 'potts'):
    s = Regularizer(**{name: 1.0}, filter='exact', sigma_xy=0.5)
    run = jax.jit(lambda x, s=s: regularized.regularize(x, image, s)[0])
    cost = lambda logits, run=run: run(logits.astype(np.float32))
    assert cost(along) < 0.6 * cost(across), name


def test_squares_are_averaged(small):
  logits, images, _ = small
  s = Regularizer(crf=1.0, shrink=2, filter='exact')
  mean = lambda x: x.reshape(3, 3, 2, 4, 2, -1).mean((2, 4))
  p = mean(np.asarray(softmax(logits)))
  a = regularized.associations(p, mean(images), s._replace(shrink=1))
  found = regularized.regularize(logits, images, s)[1]
  assert_allclose(found['crf'], regularized.dense_crf(a).mean(), rtol=1e-5)
  with pytest.raises(ValueError, match='must divide 6 and 8'):
    regularized.shrunk(images, 4)


def test_squares_of_which_a_part_counts(small):
  _, images, valid = small
  s = Regularizer(shrink=2, filter='exact')
  for p in (np.full((3, 6, 8, 3), 1 / 3), np.eye(3)[np.ones((3, 6, 8), int)]):
    a = regularized.associations(p.astype(np.float32), images, s, valid)
    assert 0 < float(a.mask.min()) < 1
    assert_allclose(regularized.dense_crf(a, 'quadratic'), 0, atol=1e-6)
  # Of one class alone nothing is cut.
  assert_allclose(regularized.dense_crf(a), 0, atol=1e-6)
  assert_allclose(regularized.normalized_cut(a), 0, atol=1e-6)
  assert_allclose(a.mask, np.asarray(a.probabilities).sum(-1), rtol=1e-6)


def test_automatic_squares():
  sizes = {
    (32, 32): 1, (64, 64): 1, (96, 96): 2, (224, 224): 4, (268, 268): 4,
    (256, 512): 8, (1024, 1024): 16, (16, 16): 1, (148, 148): 4,
  }  # fmt: skip
  for size, wanted in sizes.items():
    assert regularized.automatic_shrink(size) == wanted, size
    regularized.check('r', Regularizer(), size)


def test_no_gradient_reaches_the_image(small):
  logits, images, valid = small
  gradient = jax.jit(
    jax.grad(lambda x: regularized.regularize(logits, x, ALL, valid=valid)[0])
  )(images)
  assert not np.any(gradient)


def test_an_image_does_not_see_the_others(small):
  logits, images, _ = small
  run = jax.jit(lambda x, y: regularized.per_image(x, y, ALL)[0])
  others = lambda x: x[[2, 1, 0]] * np.array([3, 1, 2])[:, None, None, None]
  before, after = run(logits, images), run(others(logits), others(images))
  assert_allclose(before[1], after[1], rtol=1e-5)
  assert abs(before[0] - after[0]) > 1e-3


def test_an_absent_class_and_no_valid_pixel_are_finite(small):
  logits, images, _ = small
  logits = logits.copy()
  logits[..., 2] = -200
  for valid in (np.ones((3, 6, 8), bool), np.zeros((3, 6, 8), bool)):
    (total, _), gradient = regularize(logits, images, valid, ALL)
    assert np.isfinite(total)
    assert np.isfinite(gradient).all()


def test_a_lattice_without_room_is_told(small):
  logits, images, _ = small
  s = Regularizer(crf=1.0, filter='lattice', max_vertices=8, sigma_xy=0.05)
  run = jax.jit(regularized.regularize, static_argnums=2)
  found = run(logits, images, s)[1]
  assert found['lattice_overflow'] == 1
  assert found['crf'] == 0
  roomy = run(logits, images, s._replace(max_vertices=0))[1]
  assert roomy['lattice_overflow'] == 0 and roomy['crf'] > 0


@pytest.mark.parametrize(
  'change, told',
  [
    ({'form': 'cubic'}, 'form is .cubic., must be one of quadratic, bilinear'),
    ({'crf': -1.0}, 'crf is -1.0, must be 0 or more'),
    ({'sigma_rgb': 0.0}, 'sigma_rgb is 0.0, must be above 0'),
    ({'sigma_xy': float('nan')}, 'sigma_xy is nan'),
    ({'ramp_up': 2.0}, 'part of the steps'),
    ({'shrink': 3}, 'shrink is 3, must divide the 32 and 64 pixels'),
    ({'filter': 'fast'}, 'filter is .fast.'),
    ({'connectivity': 6}, 'connectivity is 6'),
    ({'published_scale': True, 'form': 'quadratic'}, 'bilinear form alone'),
  ],
)
def test_settings_are_refused(change, told):
  with pytest.raises(UserError, match=told):
    regularized.check('r', Regularizer()._replace(**change), (32, 64))


def test_defaults_are_off_and_pass():
  regularized.check('r', Regularizer(), (32, 32))
  assert not regularized.is_on(Regularizer())
  total, found = regularized.regularize(
    jnp.zeros((1, 4, 4, 2)), jnp.zeros((1, 4, 4, 1)), Regularizer()
  )
  assert total == 0 and found == {}
