"""Labels of single pixels out of a generator's feature maps.

Zhang et al., DatasetGAN (CVPR 2021), section 3.2: the maps of all layers,
brought to one size, are the features of a pixel; an ensemble of small networks
says its class. Here the features are standardised by fixed statistics, in place
of the batch normalisation between the layers.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.losses.segmentation import VOID

Params = dict[str, Any]

# Pixels that are labelled at a time: memory grows with it.
BLOCK = 1 << 16


def init(
  rng: jax.Array,
  channels: list[int],
  num_classes: int,
  members: int = 10,
  widths: tuple[int, int] = (128, 32),
) -> Params:
  """Draws the networks of an ensemble (He et al. 2015).

  Args:
    rng: key.
    channels: of each feature map.
    num_classes: K.
    members: networks M.
    widths: of the two hidden layers.

  Returns:
    {'first': [[M, C, widths[0]] of each map], 'dense': kernels [M, I, O],
    'bias': [M, O] of each layer}.
  """
  keys = iter(jax.random.split(rng, len(channels) + 2))
  draw = lambda fan_in, shape: (
    math.sqrt(2 / fan_in) * jax.random.normal(next(keys), (members, *shape))
  )
  total, (h1, h2) = sum(channels), widths
  return {
    'first': [draw(total, (c, h1)) for c in channels],
    'dense': [draw(h1, (h1, h2)), draw(h2, (h2, num_classes))],
    'bias': [jnp.zeros((members, n)) for n in (h1, h2, num_classes)],
  }


def moments(maps: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
  """Means and mean squares [C] of each map [N, r, r, C]."""
  mean = lambda x: x.astype(jnp.float32).mean((0, 1, 2))
  return [mean(x) for x in maps], [mean(jnp.square(x)) for x in maps]


def standardize(
  maps: list[jax.Array], mean: list[jax.Array], std: list[jax.Array]
) -> list[jax.Array]:
  """float32 maps less the mean, in units of the standard deviation."""
  return [
    (x.astype(jnp.float32) - m) / jnp.maximum(s, 1e-6)
    for x, m, s in zip(maps, mean, std, strict=True)
  ]


def at_pixels(
  maps: list[jax.Array], row: jax.Array, column: jax.Array, resolution: int
) -> list[jax.Array]:
  """The maps, enlarged to the resolution, at some pixels.

  Args:
    maps: [N, r, r, C].
    row: int [N, P], of an image with that resolution.
    column: the same.
    resolution: of the image.

  Returns:
    [N, P, C] of each, what `jax.image.resize(..., 'bilinear')` has there.
  """

  def gather(x):
    pick = jax.vmap(lambda image, r, c: image[r, c])
    top, bottom, down = _between(row, x.shape[1], resolution)
    left, right, across = _between(column, x.shape[1], resolution)
    across = across[..., None]
    upper = (1 - across) * pick(x, top, left) + across * pick(x, top, right)
    lower = (1 - across) * pick(x, bottom, left) + across * pick(
      x, bottom, right
    )
    return upper + down[..., None] * (lower - upper)

  return [gather(x) for x in maps]


def draw_pixels(
  rng: jax.Array,
  maps: list[jax.Array],
  label: jax.Array,
  members: int,
  pixels: int,
) -> tuple[list[jax.Array], jax.Array]:
  """Features and labels of random labelled pixels, each member's own.

  Of an image without any, they are void.

  Args:
    rng: key.
    maps: standardised, [N, r, r, C].
    label: int32 [N, R, R].
    members: networks M.
    pixels: of an image and a network, P.

  Returns:
    ([M, N P, C] of each map, int32 [M, N P]).
  """
  n, resolution = label.shape[:2]
  valid = (label != VOID).reshape(n, -1)
  count = valid.sum(1, dtype=jnp.int32)[:, None]
  shape = (n, members * pixels)
  rank = jax.random.randint(rng, shape, 0, jnp.maximum(count, 1))
  # The place of the labelled pixel of that rank; an image without ends at 0.
  find = jax.vmap(lambda found, r: jnp.searchsorted(found, r, side='right'))
  place = find(jnp.cumsum(valid, 1, dtype=jnp.int32), rank)
  place = jnp.minimum(place, resolution**2 - 1)
  row, column = place // resolution, place % resolution

  def split(x):
    x = x.reshape(n, members, pixels, *x.shape[2:]).swapaxes(0, 1)
    return x.reshape(members, n * pixels, *x.shape[3:])

  features = at_pixels(maps, row, column, resolution)
  target = jax.vmap(lambda image, r, c: image[r, c])(label, row, column)
  return [split(x) for x in features], split(target)


def pixel_logits(params: Params, features: list[jax.Array]) -> jax.Array:
  """Logits of pixels, each member's own.

  Args:
    params: from `init`.
    features: [M, P, C] of each map.

  Returns:
    [M, P, K].
  """
  x = sum(
    jnp.einsum('mpc,mch->mph', f, kernel)
    for f, kernel in zip(features, params['first'], strict=True)
  )
  return _rest(params, x, 'mph,mhk->mpk', params['bias'], lambda b: b[:, None])


def probabilities(
  params: Params, maps: list[jax.Array], resolution: int
) -> jax.Array:
  """Mean over the ensemble of the softmax, for whole images.

  Some rows of one image at a time: all features of a large image at its full
  size would need many gigabytes.

  Args:
    params: from `init`.
    maps: standardised, [N, r, r, C].
    resolution: of the answer.

  Returns:
    float32 [N, R, R, K], sums to 1 over K.
  """
  rows = min(resolution, max(1, BLOCK // resolution))
  starts = jnp.arange(0, resolution, rows)
  everywhere = jnp.arange(resolution)

  def block(image, start):
    bands = []
    for x in image:  # [r, r, C]: rows are enlarged before, columns after
      top, bottom, down = _between(
        start + jnp.arange(rows), x.shape[0], resolution
      )
      down = down[:, None, None]
      bands.append((1 - down) * x[top] + down * x[bottom])

    def member(total, own):
      x = 0.0
      for band, kernel in zip(bands, own['first'], strict=True):
        y = band @ kernel
        left, right, across = _between(everywhere, y.shape[1], resolution)
        across = across[:, None]
        x = x + (1 - across) * y[:, left] + across * y[:, right]
      logits = _rest(own, x, 'rch,hk->rck', own['bias'], lambda b: b)
      return total + jax.nn.softmax(logits), None

    members, classes = params['bias'][-1].shape
    zero = jnp.zeros((rows, resolution, classes))
    return jax.lax.scan(member, zero, params)[0] / members

  def whole(image):
    found = jax.lax.map(lambda start: block(image, start), starts)
    return found.reshape(resolution, resolution, -1)

  return jax.lax.map(whole, maps)


def _between(index, size, resolution):
  """The two pixels of a smaller map between which one of the image lies.

  Returns:
    (first, second, distance from the first in [0, 1]).
  """
  at = (index + 0.5) * size / resolution - 0.5
  low = jnp.floor(at)
  inside = lambda i: jnp.clip(i, 0, size - 1).astype(jnp.int32)
  return inside(low), inside(low + 1), at - low


def _rest(params, x, equation, biases, place):
  """The two layers after the first."""
  for kernel, bias in zip(params['dense'], biases[:-1], strict=True):
    x = jnp.einsum(equation, jax.nn.relu(x + place(bias)), kernel)
  return x + place(biases[-1])
