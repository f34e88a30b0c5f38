"""Gaussian filters over positions and colours: each pixel sees all others.

`exact` sums over all pairs of pixels, a few rows of the matrix at a time;
`permutohedral` approximates it in time linear in the pixels. A kernel depends
on the image alone: prepare it once, apply it to as many values as you like.
All functions are of one image; `jax.vmap` over a batch.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.ops import permutohedral

KINDS = ('auto', 'exact', 'lattice')
EXACT_UP_TO = 64 * 64  # pixels; 'auto' takes the lattice beyond
_HIGHEST = lax.Precision.HIGHEST
_ENTRIES = 2**22  # of the kernel matrix in memory at a time: 16 MB


class Kernel(NamedTuple):
  """A filter of one image, ready to be applied; one of the three is there.

  Attributes:
    features: float32 [P, F], for the sum over all pairs.
    lattice: for the approximation.
    sides: float32 [H, H] and [W, W]: positions alone are filtered along the
      columns and along the rows, which is the sum over all pairs too.
    vertices: int32 scalar, what the lattice needs; 0 without a lattice.
    overflow: bool scalar: that is more than it has, and results are wrong.
  """

  features: jax.Array | None
  lattice: permutohedral.Lattice | None
  sides: tuple[jax.Array, jax.Array] | None
  vertices: jax.Array
  overflow: jax.Array


def features(image: jax.Array, sigma_xy: float, sigma_rgb: float) -> jax.Array:
  """What the filter's Gaussian of standard deviation 1 is over.

  Args:
    image: float [H, W, C] in [-1, 1].
    sigma_xy: standard deviation of positions, a fraction of the longer side.
    sigma_rgb: of colours, in grey levels of 0 to 255; 0: positions alone.

  Returns:
    float32 [H * W, 2 + C]: column, row, colours; [H * W, 2] of positions
    alone. No gradient reaches the image.
  """
  height, width, channels = image.shape
  rows, columns = jnp.mgrid[:height, :width].astype(jnp.float32)
  positions = jnp.stack([columns, rows], -1) / (sigma_xy * max(height, width))
  if not sigma_rgb:
    return positions.reshape(-1, 2)
  colours = (lax.stop_gradient(image).astype(jnp.float32) + 1) * 127.5
  found = jnp.concatenate([positions, colours / sigma_rgb], -1)
  return found.reshape(-1, 2 + channels)


def exact(
  features: jax.Array, values: jax.Array, chunk: int | None = None
) -> jax.Array:
  """The sum over all pairs, of `chunk` pixels at a time.

  Differences of features are squared and summed as they are: a product of
  matrices would lose half of the digits of near pixels, and most of them in
  an accelerator's default precision.

  Args:
    features: float32 [P, F].
    values: float [P, V].
    chunk: pixels whose sums are computed at once; None: as many as keep the
      part of the kernel in memory at 16 MB.

  Returns:
    float32 [P, V]: sum over j, i itself included, of
    exp(-|f_i - f_j|^2 / 2) v_j. The gradient with respect to the values is
    the same filter; there is none with respect to the features.
  """
  count = len(features)
  chunk = min(count, chunk or max(8, _ENTRIES // count))
  features = lax.stop_gradient(features.astype(jnp.float32))
  return _exact(chunk, features, values.astype(jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exact(chunk, features, values):
  count, dims = features.shape
  parts = -(-count // chunk)
  rows = jnp.pad(features, ((0, parts * chunk - count), (0, 0)))

  def some(rows):
    squares = sum(
      jnp.square(rows[:, k, None] - features[None, :, k]) for k in range(dims)
    )
    return jnp.dot(jnp.exp(-squares / 2), values, precision=_HIGHEST)

  found = lax.map(some, rows.reshape(parts, chunk, dims))
  return found.reshape(parts * chunk, -1)[:count]


def _exact_forward(chunk, features, values):
  return _exact(chunk, features, values), features


def _exact_backward(chunk, features, cotangent):
  return jnp.zeros_like(features), _exact(chunk, features, cotangent)


_exact.defvjp(_exact_forward, _exact_backward)


def prepare(
  image: jax.Array,
  sigma_xy: float,
  sigma_rgb: float,
  kind: str = 'auto',
  max_vertices: int = 0,
) -> Kernel:
  """Prepares the filter of one image.

  Args:
    image: float [H, W, C] in [-1, 1].
    sigma_xy: see `features`.
    sigma_rgb: see `features`.
    kind: one of `KINDS`; 'auto' is 'exact' up to 64x64 pixels and for
      positions alone, else 'lattice'.
    max_vertices: of the lattice, see `permutohedral.build`.

  Returns:
    the kernel; its `overflow` says that the lattice was too small.

  Raises:
    ValueError: another kind.
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}, must be one of {", ".join(KINDS)}')
  height, width, _ = image.shape
  none, fits = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
  if kind != 'lattice' and not sigma_rgb:
    sigma = sigma_xy * max(height, width)
    sides = _gaussian(height, sigma), _gaussian(width, sigma)
    return Kernel(None, None, sides, none, fits)
  found = features(image, sigma_xy, sigma_rgb)
  if kind == 'exact' or (kind == 'auto' and len(found) <= EXACT_UP_TO):
    return Kernel(found, None, None, none, fits)
  lattice = permutohedral.build(found, max_vertices)
  return Kernel(None, lattice, None, lattice.vertices, lattice.overflow)


def apply(kernel: Kernel, values: jax.Array) -> jax.Array:
  """Filters values [P, V]; returns float32 [P, V], see `exact`."""
  if kernel.lattice is not None:
    return permutohedral.filter(kernel.lattice, values)
  if kernel.features is not None:
    return exact(kernel.features, values)
  down, right = lax.stop_gradient(kernel.sides)
  grid = values.astype(jnp.float32).reshape(len(down), len(right), -1)
  grid = jnp.einsum('ab,bwv->awv', down, grid, precision=_HIGHEST)
  grid = jnp.einsum('ab,hbv->hav', right, grid, precision=_HIGHEST)
  return grid.reshape(values.shape)


def _gaussian(length, sigma):
  places = jnp.arange(length, dtype=jnp.float32) / sigma
  return jnp.exp(-jnp.square(places[:, None] - places) / 2)
