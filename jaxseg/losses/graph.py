"""Agreement of neighbours: of pixels in an image, of images in a batch.

Pixels: the Potts model of a segmentation S, sum_pq w_pq [S_p != S_q], where
contrast between two pixels makes the pair light (Boykov and Jolly, ICCV 2001).
Of probabilities p, q at its two ends, both of

  quadratic  ||p - q||^2 / 2 = (||p||^2 + ||q||^2) / 2 - p.q
  bilinear   1 - p.q         (Tang et al., ECCV 2018)

are [S_p != S_q] when p and q are one-hot. The quadratic form is zero wherever
neighbours are alike, decided or not; the bilinear one also asks to decide.

Images: Weston et al., Deep Learning via Semi-Supervised Embedding (ICML 2008):
neighbours in a graph are drawn together, others kept apart.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

FORMS = ('quadratic', 'bilinear')
AFFINITIES = ('gaussian', 'cosine', 'binary')
# (down, right) from one pixel to its neighbour; each pair once.
OFFSETS = {
  4: ((0, 1), (1, 0)),
  8: ((0, 1), (1, 0), (1, 1), (1, -1)),
}


def pixel_pairs(
  x: jax.Array, offset: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
  """Both ends of all pairs at one offset.

  Args:
    x: [N, H, W, ...].
    offset: (down, right), down >= 0.

  Returns:
    two arrays [N, H - down, W - |right|, ...]; entry i of the second is
    `offset` away from entry i of the first.
  """
  down, right = offset
  height, width = x.shape[1:3]
  left = max(0, -right)
  right = max(0, right)
  first = x[:, : height - down, left : width - right]
  second = x[:, down:, right : width - left]
  return first, second


def contrast_weights(
  image: jax.Array,
  *,
  connectivity: int = 8,
  sigma: float = 0.0,
  by_distance: bool = True,
  valid: jax.Array | None = None,
) -> list[jax.Array]:
  """exp(-||I_p - I_q||^2 / (2 sigma^2)) / dist(p, q) of neighbouring pixels.

  Args:
    image: [N, H, W, C], any range.
    connectivity: 4 or 8.
    sigma: contrast that counts as an edge, in units of the image; 0: for each
      image its own, sigma^2 = mean of ||I_p - I_q||^2 over its pairs.
    by_distance: whether pairs across a corner count 1 / sqrt(2).
    valid: [N, H, W], pixels whose pairs count (others 0); None: all.

  Returns:
    for each entry of OFFSETS[connectivity] its pairs' weights, float32 shaped
    as `pixel_pairs`; 0 where a pixel is not valid. No gradient flows.
  """
  image = jax.lax.stop_gradient(image).astype(jnp.float32)
  offsets = OFFSETS[connectivity]
  both = _valid_pairs(image, offsets, valid)
  contrasts = []
  for offset in offsets:
    first, second = pixel_pairs(image, offset)
    contrasts.append(jnp.square(first - second).sum(-1))
  if sigma:
    variance = jnp.full((image.shape[0],), sigma**2, jnp.float32)
  else:
    total = sum(
      (c * v).sum((1, 2)) for c, v in zip(contrasts, both, strict=True)
    )
    count = sum(v.sum((1, 2)) for v in both)
    variance = total / jnp.maximum(count, 1.0)
  # An image of one colour has no contrast: all its weights are exp(0).
  scale = 0.5 / jnp.maximum(variance, 1e-20)[:, None, None]
  return [
    v * jnp.exp(-scale * c) / (math.hypot(*offset) if by_distance else 1.0)
    for offset, c, v in zip(offsets, contrasts, both, strict=True)
  ]


def disagreement(first: jax.Array, second: jax.Array, form: str) -> jax.Array:
  """How much two distributions differ, in [0, 1]; see the module.

  Args:
    first: probabilities [..., K].
    second: likewise.
    form: one of FORMS.

  Returns:
    [...].
  """
  if form == 'quadratic':
    return 0.5 * jnp.square(first - second).sum(-1)
  return 1.0 - (first * second).sum(-1)


def potts(
  probabilities: jax.Array,
  image: jax.Array,
  *,
  form: str = 'quadratic',
  connectivity: int = 8,
  sigma: float = 0.0,
  by_distance: bool = True,
  valid: jax.Array | None = None,
) -> jax.Array:
  """The relaxed Potts energy over neighbouring pixels, per pair.

  Args:
    probabilities: float32 [N, H, W, K].
    image: [N, H, W, C].
    form: one of FORMS.
    connectivity: 4 or 8.
    sigma: see `contrast_weights`.
    by_distance: see `contrast_weights`.
    valid: [N, H, W], pixels whose pairs count (others 0); None: all.

  Returns:
    scalar: sum of w_pq x `disagreement` over the valid pairs of all images,
    divided by their number; in [0, 1], 0 without pairs.

  Raises:
    ValueError: another form or connectivity.
  """
  if form not in FORMS:
    raise ValueError(f'form is {form!r}, must be one of {", ".join(FORMS)}')
  if connectivity not in OFFSETS:
    raise ValueError(f'connectivity is {connectivity}, must be 4 or 8')
  weights = contrast_weights(
    image, connectivity=connectivity, sigma=sigma, by_distance=by_distance,
    valid=valid,
  )  # fmt: skip
  offsets = OFFSETS[connectivity]
  total = sum(
    (w * disagreement(*pixel_pairs(probabilities, offset), form)).sum()
    for offset, w in zip(offsets, weights, strict=True)
  )
  count = sum(v.sum() for v in _valid_pairs(image, offsets, valid))
  return total / jnp.maximum(count, 1.0)


def _valid_pairs(image, offsets, valid):
  """float32 0 or 1 for the pairs of each offset."""
  if valid is None:
    valid = jnp.ones(image.shape[:3])
  ends = [pixel_pairs(valid.astype(jnp.float32), o) for o in offsets]
  return [first * second for first, second in ends]


class Graph(NamedTuple):
  """A graph over N images.

  Attributes:
    adjacent: bool [N, N], symmetric, False on the diagonal.
    weights: float32 [N, N], symmetric, in [0, 1]; 0 where not adjacent.
  """

  adjacent: jax.Array
  weights: jax.Array


def nearest_neighbours(
  features: jax.Array,
  neighbours: int,
  affinity: str = 'gaussian',
  sigma: float = 0.0,
) -> Graph:
  """Joins each image with its nearest in feature space, both ways.

  i and j are adjacent when either is among the nearest of the other. All that
  are as near as the last one join too, so that the order of a batch, and
  images that occur twice in it, do not matter.

  Args:
    features: [N, F]. No gradient flows into them.
    neighbours: how many, at least 1; at most N - 1 count.
    affinity: 'gaussian', exp(-d^2 / (2 sigma^2)) of the Euclidean distance d;
      'cosine', max(0, cosine) with cosine order; 'binary', 1.
    sigma: of 'gaussian', in units of the features; 0: sigma^2 = mean d^2 over
      adjacent pairs.

  Raises:
    ValueError: another affinity.
  """
  if affinity not in AFFINITIES:
    raise ValueError(
      f'affinity is {affinity!r}, must be one of {", ".join(AFFINITIES)}'
    )
  x = jax.lax.stop_gradient(features).astype(jnp.float32)
  n = x.shape[0]
  if n < 2:
    return Graph(jnp.zeros((n, n), bool), jnp.zeros((n, n)))
  if affinity == 'cosine':
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  # Differences, not a product of matrices: near images are told apart also
  # where products are rounded to 8 or 11 bits.
  squared = jnp.square(x[:, None] - x[None]).sum(-1)
  distance = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squared)
  last = jnp.sort(distance, axis=1)[:, min(neighbours, n - 1) - 1]
  near = distance <= last[:, None] * (1 + 1e-4) + 1e-12
  adjacent = near | near.T
  if affinity == 'cosine':
    weights = jnp.maximum(0.0, 1.0 - squared / 2)  # of vectors of length 1
  elif affinity == 'binary':
    weights = jnp.ones((n, n))
  else:
    mean = (squared * adjacent).sum() / adjacent.sum()
    variance = sigma**2 if sigma else jnp.maximum(mean, 1e-20)
    weights = jnp.exp(-squared / (2 * variance))
  return Graph(adjacent, weights * adjacent)


def pooled(
  probabilities: jax.Array, grid: int, valid: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Mean class probabilities of each cell of a grid.

  Args:
    probabilities: [N, H, W, K].
    grid: cells along each side; divides H and W.
    valid: [N, H, W], the pixels that count (others 0); None: all.

  Returns:
    (means [N, grid^2, K], bool [N, grid^2]: the cell has a valid pixel).

  Raises:
    ValueError: grid does not divide H and W.
  """
  n, height, width, k = probabilities.shape
  if height % grid or width % grid:
    raise ValueError(f'grid is {grid}, must divide {height} and {width}')
  if valid is None:
    valid = jnp.ones((n, height, width))
  mask = valid.astype(probabilities.dtype)[..., None]

  def sums(x):
    cells = (n, grid, height // grid, grid, width // grid, x.shape[-1])
    return x.reshape(cells).sum((2, 4)).reshape(n, grid**2, x.shape[-1])

  count = sums(mask)
  return sums(probabilities * mask) / jnp.maximum(count, 1.0), count[..., 0] > 0


def embedding_loss(
  graph: Graph,
  cells: jax.Array,
  present: jax.Array,
  margin: float,
) -> tuple[jax.Array, jax.Array]:
  """Neighbours alike, others at least `margin` apart (Weston et al. 2008).

  The distance d_ij of two images is Euclidean between their class
  probabilities, d_ij^2 averaged over the cells that both have: in [0, 2].

  Args:
    graph: of N images.
    cells: [N, M, K], see `pooled`.
    present: bool [N, M].
    margin: m, in units of d.

  Returns:
    (sum w_ij d_ij^2 / sum w_ij over neighbours, mean of max(0, m - d_ij)^2
    over all other pairs); 0 without such pairs.
  """
  shared = (present[:, None] & present[None]).astype(cells.dtype)  # [N, N, M]
  difference = jnp.square(cells[:, None] - cells[None]).sum(-1)
  count = shared.sum(-1)
  squared = (difference * shared).sum(-1) / jnp.maximum(count, 1.0)
  comparable = count > 0
  weights = graph.weights * comparable
  total = weights.sum()
  near = (weights * squared).sum() / jnp.where(total > 0, total, 1.0)

  others = comparable & ~graph.adjacent & ~jnp.eye(len(cells), dtype=bool)
  # The root has no gradient at 0, where there is no direction to part in.
  positive = squared > 0
  distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0)
  gap = jnp.square(jax.nn.relu(margin - distance))
  far = (gap * others).sum() / jnp.maximum(others.sum(), 1)
  return near, far
