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

Params = dict[str, Any]


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
    size = x.shape[1]
    pick = jax.vmap(lambda image, r, c: image[r, c])

    def place(index):
      at = (index + 0.5) * size / resolution - 0.5
      low = jnp.floor(at)
      inside = lambda i: jnp.clip(i, 0, size - 1).astype(jnp.int32)
      return inside(low), inside(low + 1), (at - low)[..., None]

    top, bottom, down = place(row)
    left, right, across = place(column)
    upper = (1 - across) * pick(x, top, left) + across * pick(x, top, right)
    lower = (1 - across) * pick(x, bottom, left) + across * pick(
      x, bottom, right
    )
    return (1 - down) * upper + down * lower

  return [gather(x) for x in maps]


def draw_pixels(
  rng: jax.Array,
  maps: list[jax.Array],
  label: jax.Array,
  members: int,
  pixels: int,
) -> tuple[list[jax.Array], jax.Array]:
  """Features and labels of random pixels, each member's own.

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
  row, column = jax.random.randint(rng, (2, n, members * pixels), 0, resolution)

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

  The first layer comes before the enlargement, which is linear too: the maps
  side by side at full size would be a hundred times as large.

  Args:
    params: from `init`.
    maps: standardised, [N, r, r, C].
    resolution: of the answer.

  Returns:
    float32 [N, R, R, K], sums to 1 over K.
  """

  def member(total, own):
    x = 0.0
    for f, kernel in zip(maps, own['first'], strict=True):
      y = f @ kernel
      shape = (y.shape[0], resolution, resolution, y.shape[-1])
      x = x + jax.image.resize(y, shape, 'bilinear')
    logits = _rest(own, x, 'nrch,hk->nrck', own['bias'], lambda b: b)
    return total + jax.nn.softmax(logits), None

  n, members = maps[0].shape[0], params['bias'][0].shape[0]
  start = jnp.zeros((n, resolution, resolution, params['bias'][-1].shape[-1]))
  total, _ = jax.lax.scan(member, start, params)
  return total / members


def _rest(params, x, equation, biases, place):
  """The two layers after the first."""
  for kernel, bias in zip(params['dense'], biases[:-1], strict=True):
    x = jnp.einsum(equation, jax.nn.relu(x + place(bias)), kernel)
  return x + place(biases[-1])
