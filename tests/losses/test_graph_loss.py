"""Pairs of pixels and of images: recorded numbers, matrices, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.losses import graph

STATIC = ('form', 'connectivity', 'sigma', 'by_distance')
potts = jax.jit(graph.potts, static_argnames=STATIC)
potts_gradient = jax.jit(
  jax.value_and_grad(graph.potts), static_argnames=STATIC
)
contrast_weights = jax.jit(graph.contrast_weights)
nearest_neighbours = jax.jit(graph.nearest_neighbours, static_argnums=(1, 2, 3))
pooled = jax.jit(graph.pooled, static_argnums=1)
embedding_loss = jax.jit(graph.embedding_loss)

OFFSETS = {4: ((0, 1), (1, 0)), 8: ((0, 1), (1, 0), (1, 1), (1, -1))}


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.fixture(scope='module')
def ramps():
  """Probabilities and image, [1, 16, 16, 3], of known energies."""
  y, x = np.mgrid[0:16, 0:16].astype(np.float64)
  image = np.stack([255 * x / 15, 255 * y / 15, 127.5 * (x + y) / 15], -1)
  logits = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], -1)
  as_batch = lambda a: a[None].astype(np.float32)
  return as_batch(softmax(logits)), as_batch(image)


@pytest.fixture(scope='module')
def small():
  """Two images of 5x4 with probabilities, K = 3."""
  rng = np.random.default_rng(0)
  p = softmax(2 * rng.normal(size=(2, 5, 4, 3)))
  image = rng.uniform(-1, 1, (2, 5, 4, 2))
  return p.astype(np.float32), image.astype(np.float32)


def dense_weights(image, connectivity=8, sigma=0.0, valid=None, distance=True):
  """W [HW, HW] of one image, symmetric, and its number of pairs."""
  height, width, _ = image.shape
  pairs = [
    ((i, j), (i + down, j + right))
    for i in range(height)
    for j in range(width)
    for down, right in OFFSETS[connectivity]
    if i + down < height and 0 <= j + right < width
  ]
  if valid is not None:
    pairs = [(p, q) for p, q in pairs if valid[p] and valid[q]]
  contrast = [np.sum((image[p] - image[q]) ** 2) for p, q in pairs]
  variance = sigma**2 or np.mean(contrast)
  w = np.zeros((height * width, height * width))
  for (p, q), c in zip(pairs, contrast, strict=True):
    away = np.hypot(p[0] - q[0], p[1] - q[1]) if distance else 1
    i, j = p[0] * width + p[1], q[0] * width + q[1]
    w[i, j] = w[j, i] = np.exp(-c / 2 / variance) / away
  return w, len(pairs)


def test_pairs_are_one_offset_apart():
  grid = np.stack(np.mgrid[0:4, 0:5], -1)[None]
  seen = set()
  for offset in graph.OFFSETS[8]:
    first, second = graph.pixel_pairs(grid, offset)
    assert_array_equal(second - first, np.broadcast_to(offset, first.shape))
    for p, q in zip(first.reshape(-1, 2), second.reshape(-1, 2), strict=True):
      seen.add(frozenset([tuple(p), tuple(q)]))
  wanted = {
    frozenset([(a, b), (c, d)])
    for a in range(4) for b in range(5) for c in range(4) for d in range(5)
    if max(abs(a - c), abs(b - d)) == 1
  }  # fmt: skip
  assert seen == wanted and len(wanted) == 16 + 15 + 2 * 12


def test_recorded_energies_of_a_grid(ramps):
  p, image = ramps
  weights = contrast_weights(image)
  pairs = sum(w.size for w in weights)
  assert pairs == 930
  # The automatic width, read off a pair of known contrast: one step right.
  squared = 17.0**2 + 8.5**2
  sigma2 = -squared / (2 * np.log(weights[0][0, 3, 3]))
  assert_allclose(sigma2, 536.0483871, rtol=1e-5)
  total = sum(w.sum() for w in weights)
  bilinear = potts(p, image, form='bilinear')
  assert_allclose(bilinear - total / pairs, -0.215637467, rtol=1e-5)
  quadratic = 2 * pairs * potts(p, image, form='quadratic')
  assert_allclose(quadratic, 2.292030847, rtol=1e-5)


@pytest.mark.parametrize(
  ('connectivity', 'distance', 'sigma'),
  [(4, True, 0.0), (8, True, 0.7), (8, False, 0.0)],
)
def test_matrix_forms(small, connectivity, distance, sigma):
  # sum_pq w ||p - q||^2 / 2 = sum_p d_p ||p||^2 - sum_k s_k' W s_k, and
  # sum_k s_k' W (1 - s_k) = 1' W 1 - sum_k s_k' W s_k, over ordered pairs.
  p, image = small
  quadratic = bilinear = pairs = 0
  for s, i in zip(p.astype(np.float64).reshape(2, 20, 3), image, strict=True):
    w, n = dense_weights(i, connectivity, sigma, distance=distance)
    agreement = np.trace(s.T @ w @ s)
    quadratic += w.sum(1) @ (s**2).sum(1) - agreement
    bilinear += w.sum() - agreement
    assert_allclose(np.trace(s.T @ w @ (1 - s)), w.sum() - agreement)
    pairs += n
  options = dict(connectivity=connectivity, sigma=sigma, by_distance=distance)
  # An unordered pair counts once, and ||p - q||^2 by half.
  found = potts(p, image, form='quadratic', **options)
  assert_allclose(found, quadratic / 2 / pairs, rtol=1e-5)
  found = potts(p, image, form='bilinear', **options)
  assert_allclose(found, bilinear / 2 / pairs, rtol=1e-5)


def test_both_forms_count_the_cut_of_a_hard_labelling(small):
  _, image = small
  label = np.random.default_rng(1).integers(0, 3, (2, 5, 4))
  cut = pairs = 0
  for y, i in zip(label.reshape(2, -1), image, strict=True):
    w, n = dense_weights(i)
    cut += (w * (y[:, None] != y)).sum() / 2
    pairs += n
  for form in graph.FORMS:
    found = potts(np.eye(3)[label], image, form=form)
    assert_allclose(found, cut / pairs, rtol=1e-5)


def test_forms_differ_on_the_undecided(small):
  _, image = small
  even = jnp.full((2, 5, 4, 3), 1 / 3)
  assert_allclose(potts(even, image), 0, atol=1e-7)
  assert potts(even, image, form='bilinear') > 0.2


@pytest.mark.parametrize('form', graph.FORMS)
def test_gradients_are_the_matrix_ones(small, form):
  p, image = small
  found = potts_gradient(p, image, form=form)[1]
  pairs = 2 * dense_weights(image[0])[1]
  for i in range(2):
    w, _ = dense_weights(image[i])
    s = p[i].reshape(20, 3).astype(np.float64)
    wanted = -w @ s
    if form == 'quadratic':
      wanted += w.sum(1, keepdims=True) * s
    assert_allclose(found[i].reshape(20, 3), wanted / pairs, atol=1e-6)


@pytest.mark.parametrize('form', graph.FORMS)
def test_gradients_are_finite_differences(small, form):
  p, image = small
  logits = jnp.log(p)
  loss = lambda x: graph.potts(jax.nn.softmax(x), image, form=form)
  way = np.random.default_rng(2).normal(size=p.shape).astype(np.float32)
  slope = (jax.jit(jax.grad(loss))(logits) * way).sum()
  loss = jax.jit(loss)
  step = 1e-2
  wanted = (loss(logits + step * way) - loss(logits - step * way)) / 2 / step
  assert_allclose(slope, wanted, rtol=2e-3)


def test_invalid_pixels_count_nowhere(small):
  p, image = small
  valid = np.random.default_rng(3).uniform(size=(2, 5, 4)) < 0.6
  quadratic = pairs = 0
  for s, i, v in zip(p, image, valid, strict=True):
    w, n = dense_weights(i, valid=v)
    s = s.reshape(20, 3)
    quadratic += (w * np.square(s[:, None] - s).sum(-1)).sum() / 4
    pairs += n
  assert 0 < pairs < 2 * 55
  found, grad = potts_gradient(p, image, valid=valid)
  assert_allclose(found, quadratic / pairs, rtol=1e-5)
  assert not np.asarray(grad)[~valid].any()
  # Nor does what the image shows there.
  other = np.where(valid[..., None], image, 9.0).astype(np.float32)
  assert_allclose(potts(p, other, valid=valid), found, rtol=1e-6)
  nothing = potts_gradient(p, image, valid=0 * valid)
  assert nothing[0] == 0 and not np.asarray(nothing[1]).any()


def test_an_image_of_one_colour_has_full_weights():
  weights = contrast_weights(jnp.ones((1, 3, 3, 1)))
  assert_allclose(weights[0], 1)
  assert_allclose(weights[2], 1 / np.sqrt(2), rtol=1e-6)


def test_edges_make_pairs_light_and_give_no_gradient(small):
  image = np.zeros((1, 4, 4, 1), np.float32)
  image[:, :, 2:] = 1
  right = contrast_weights(image)[0][0]
  assert (right[:, 1] < right[:, 0]).all() and (right[:, 0] == 1).all()
  p = jnp.asarray(small[0])
  grad = jax.jit(jax.grad(lambda i: graph.potts(p, i)))(small[1])
  assert not np.asarray(grad).any()


def brute_force_graph(x, k, affinity, sigma):
  n = len(x)
  if affinity == 'cosine':
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
  d = np.array([[np.sum((a - b) ** 2) for b in x] for a in x])
  adjacent = np.zeros((n, n), bool)
  for i in range(n):
    order = [j for j in np.argsort(d[i]) if j != i]
    adjacent[i, order[:k]] = True
  adjacent |= adjacent.T
  if affinity == 'gaussian':
    w = np.exp(-d / (2 * (sigma**2 or d[adjacent].mean())))
  elif affinity == 'cosine':
    w = np.maximum(0, x @ x.T)
  else:
    w = np.ones((n, n))
  return adjacent, w * adjacent


@pytest.mark.parametrize('neighbours', (1, 3, 99))
@pytest.mark.parametrize(
  ('affinity', 'sigma'),
  [('gaussian', 0.0), ('gaussian', 2.0), ('cosine', 0.0), ('binary', 0.0)],
)
def test_the_graph_is_that_of_a_brute_force_search(neighbours, affinity, sigma):
  x = np.random.default_rng(4).normal(size=(7, 5)).astype(np.float32)
  found = nearest_neighbours(x, neighbours, affinity, sigma)
  adjacent, weights = brute_force_graph(
    x.astype(np.float64), neighbours, affinity, sigma
  )
  assert_array_equal(found.adjacent, adjacent)
  assert_allclose(found.weights, weights, atol=1e-6)


def test_the_order_of_the_batch_and_twins_do_not_matter():
  x = np.random.default_rng(5).normal(size=(5, 4)).astype(np.float32)
  x = np.concatenate([x, x])
  order = np.random.default_rng(6).permutation(10)
  first = nearest_neighbours(x, 2)
  second = nearest_neighbours(x[order], 2)
  assert_array_equal(first.adjacent[order][:, order], second.adjacent)
  assert_allclose(first.weights[order][:, order], second.weights, rtol=1e-5)
  # Of two equally near, both: the graph is one of pairs of twins.
  whole = np.asarray(first.adjacent).reshape(2, 5, 2, 5)
  assert_array_equal(whole[0, :, 0], whole[1, :, 1])
  assert whole[0, :, 1].diagonal().all()


@pytest.mark.parametrize('affinity', graph.AFFINITIES)
def test_equal_images_and_a_single_one(affinity):
  same = nearest_neighbours(jnp.ones((3, 4)), 1, affinity)
  assert_array_equal(same.adjacent, ~np.eye(3, dtype=bool))
  assert_allclose(same.weights, 1 - np.eye(3), atol=1e-6)
  alone = nearest_neighbours(jnp.ones((1, 4)), 1, affinity)
  assert not alone.adjacent.any() and not alone.weights.any()


def test_pooling_is_the_mean_of_valid_pixels():
  rng = np.random.default_rng(7)
  p = softmax(rng.normal(size=(2, 8, 4, 3))).astype(np.float32)
  valid = rng.uniform(size=(2, 8, 4)) < 0.5
  valid[1, :4, 2:] = False
  cells, present = pooled(p, 2, valid)
  for n, i, j in np.ndindex(2, 2, 2):
    at = (n, slice(4 * i, 4 * i + 4), slice(2 * j, 2 * j + 2))
    assert present[n, 2 * i + j] == valid[at].any()
    wanted = p[at][valid[at]].mean(0) if valid[at].any() else 0
    assert_allclose(cells[n, 2 * i + j], wanted, atol=1e-6)
  whole, present = pooled(p, 1)
  assert_allclose(whole[:, 0], p.mean((1, 2)), rtol=1e-5)
  assert present.all()


def test_embedding_loss_by_hand():
  # Three images, two cells, two classes; 0 and 1 are neighbours. Image 2 has
  # no valid pixel in its second cell.
  a, b = [1.0, 0.0], [0.0, 1.0]
  cells = jnp.array([[a, a], [a, b], [[0.9, 0.1], a]])
  present = jnp.array([[1, 1], [1, 1], [1, 0]], bool)
  adjacent = jnp.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
  found = graph.Graph(adjacent, 0.25 * adjacent)
  near, far = embedding_loss(found, cells, present, margin=0.5)
  assert_allclose(near, (0 + 2) / 2)  # one cell alike, one opposite
  distance = np.sqrt(2 * 0.1**2)  # to both others, over the first cell
  assert_allclose(far, (0.5 - distance) ** 2, rtol=1e-5)
  _, far = embedding_loss(found, cells, present, margin=0.1)
  assert far == 0


def test_images_without_a_common_cell_are_no_pair():
  cells = jnp.array([[[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2, [[0.5, 0.5]] * 2])
  present = jnp.array([[1, 0], [0, 1], [1, 1]], bool)
  built = graph.Graph(~jnp.eye(3, dtype=bool), 1.0 - jnp.eye(3))
  near, _ = embedding_loss(built, cells, present, 1.0)
  assert_allclose(near, 0.5)  # of 0 and 2, and of 1 and 2
  apart = graph.Graph(jnp.zeros((3, 3), bool), jnp.zeros((3, 3)))
  near, far = embedding_loss(apart, cells, present, 1.0)
  assert near == 0
  assert_allclose(far, (1 - np.sqrt(0.5)) ** 2, rtol=1e-5)


@pytest.mark.parametrize('affinity', graph.AFFINITIES)
def test_embedding_loss_is_the_sum_over_pairs(affinity):
  rng = np.random.default_rng(8)
  n, margin = 6, 1.1
  cells = softmax(2 * rng.normal(size=(n, 4, 3))).astype(np.float32)
  x = rng.normal(size=(n, 5)).astype(np.float32)
  adjacent, w = brute_force_graph(x.astype(np.float64), 2, affinity, 0.0)
  d2 = np.array([[((a - b) ** 2).sum(-1).mean() for b in cells] for a in cells])
  others = ~adjacent & ~np.eye(n, dtype=bool)
  present = np.ones((n, 4), bool)
  built = nearest_neighbours(x, 2, affinity)
  near, far = embedding_loss(built, cells, present, margin)
  assert_allclose(near, (w * d2).sum() / w.sum(), rtol=1e-5)
  gap = np.maximum(0, margin - np.sqrt(d2)) ** 2
  assert_allclose(far, gap[others].mean(), rtol=1e-5)
  assert far > 0


def test_embedding_gradients():
  rng = np.random.default_rng(9)
  x = rng.normal(size=(5, 3)).astype(np.float32)
  logits = rng.normal(size=(5, 4, 4, 3)).astype(np.float32)
  built = nearest_neighbours(x, 1)

  def loss(logits):
    cells, present = graph.pooled(jax.nn.softmax(logits), 2)
    near, far = graph.embedding_loss(built, cells, present, 0.8)
    return near + 0.7 * far

  way = rng.normal(size=logits.shape).astype(np.float32)
  slope = (jax.jit(jax.grad(loss))(logits) * way).sum()
  loss = jax.jit(loss)
  step = 1e-2
  wanted = (loss(logits + step * way) - loss(logits - step * way)) / 2 / step
  assert abs(wanted) > 1e-3
  assert_allclose(slope, wanted, rtol=5e-3)


def test_equal_predictions_have_finite_gradients():
  x = np.random.default_rng(10).normal(size=(4, 3)).astype(np.float32)
  built = nearest_neighbours(x, 1)
  cells, present = jnp.full((4, 2, 3), 1 / 3), jnp.ones((4, 2), bool)
  for i in range(2):
    loss = lambda c, i=i: graph.embedding_loss(built, c, present, 1.0)[i]
    assert not np.asarray(jax.jit(jax.grad(loss))(cells)).any()


def test_features_get_no_gradient():
  x = np.random.default_rng(11).normal(size=(4, 3)).astype(np.float32)
  loss = lambda f: graph.nearest_neighbours(f, 1).weights.sum()
  grad = jax.jit(jax.grad(loss))(x)
  assert not np.asarray(grad).any()


def test_what_cannot_be_is_refused(small):
  p, image = small
  with pytest.raises(ValueError, match='cubic'):
    graph.potts(p, image, form='cubic')
  with pytest.raises(ValueError, match='connectivity is 6'):
    graph.potts(p, image, connectivity=6)
  with pytest.raises(ValueError, match='euclidean'):
    graph.nearest_neighbours(jnp.ones((3, 2)), 1, 'euclidean')
  with pytest.raises(ValueError, match='grid is 3, must divide 5 and 4'):
    graph.pooled(p, 3)
