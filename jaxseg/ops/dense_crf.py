"""Mean field inference in fully connected conditional random fields.

Kraehenbuehl and Koltun, NIPS 2011, as pydensecrf computes it: each kernel is
normalised symmetrically, a pixel's message to itself is included, and labels
that differ cost 1 (Potts).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.ops import bilateral


class CRF(NamedTuple):
  """What neighbouring pixels tell each other.

  The weights and, for photographs of 500 pixels, the standard deviations of 80
  and 3 pixels and of 13 grey levels are those that SEC and others published.

  Attributes:
    iterations: of the mean field.
    bilateral_weight: of the kernel over positions and colours; 0: left out.
    bilateral_xy: its standard deviation of positions, a fraction of the longer
      side.
    bilateral_rgb: of colours, in grey levels of 0 to 255.
    spatial_weight: of the kernel over positions alone; 0: left out.
    spatial_xy: its standard deviation, a fraction of the longer side.
    filter: one of `bilateral.KINDS`.
    max_vertices: of a lattice, see `permutohedral.capacity`.
  """

  iterations: int = 10
  bilateral_weight: float = 10.0
  bilateral_xy: float = 0.16
  bilateral_rgb: float = 13.0
  spatial_weight: float = 3.0
  spatial_xy: float = 0.006
  filter: str = 'auto'
  max_vertices: int = 0


def mean_field(
  logits: jax.Array, image: jax.Array, settings: CRF = CRF()
) -> jax.Array:
  """Probabilities after mean field inference from a network's scores.

  Args:
    logits: float [N, H, W, K]; minus the logarithm of their softmax is the
      unary energy.
    image: float [N, H, W, C] in [-1, 1].
    settings: of the random field.

  Returns:
    float32 [N, H, W, K], sums to 1. An image whose lattice was too small keeps
    the softmax of its logits; `mean_field_and_shortage` tells.
  """
  return mean_field_and_shortage(logits, image, settings)[0]


@functools.partial(jax.jit, static_argnames='settings')
def mean_field_and_shortage(
  logits: jax.Array, image: jax.Array, settings: CRF = CRF()
) -> tuple[jax.Array, jax.Array]:
  """`mean_field`, and what it lacked.

  Returns:
    (probabilities, int32 [N]: 0; else the `max_vertices` that an image needs,
    or `permutohedral.TOO_WIDE` where only larger standard deviations help).
  """
  classes = logits.shape[-1]

  def run(batch):
    one = functools.partial(_mean_field, settings=settings)
    return jax.vmap(one)(batch[..., :classes], batch[..., classes:])

  # Nothing passes between images, so nothing need pass between devices.
  both = [x.astype(jnp.float32) for x in (logits, image)]
  return parallel.on_each_device(run, jnp.concatenate(both, -1))


def _mean_field(logits, image, settings):
  """`mean_field_and_shortage` of one image."""
  size = logits.shape
  unary = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(-1, size[-1])
  s = settings
  kernels = [
    (weight, bilateral.prepare(image, xy, rgb, s.filter, s.max_vertices))
    for weight, xy, rgb in (
      (s.bilateral_weight, s.bilateral_xy, s.bilateral_rgb),
      (s.spatial_weight, s.spatial_xy, 0.0),
    )
    if weight
  ]
  ones = jnp.ones((len(unary), 1))
  kernels = [
    (weight, kernel, jax.lax.rsqrt(bilateral.apply(kernel, ones) + 1e-20))
    for weight, kernel in kernels
  ]

  def step(_, q):
    messages = unary
    for weight, kernel, norm in kernels:
      messages += weight * norm * bilateral.apply(kernel, norm * q)
    return jax.nn.softmax(messages)

  start = jax.nn.softmax(unary)
  found = jax.lax.fori_loop(0, s.iterations, step, start)
  shortage = jnp.zeros((), jnp.int32)
  for _, kernel, _ in kernels:
    lacks = jnp.where(kernel.overflow, kernel.vertices, 0)
    shortage = jnp.maximum(shortage, lacks)
  return jnp.where(shortage > 0, start, found).reshape(size), shortage


def check(settings: CRF, field: str) -> None:
  """Refuses settings that cannot work.

  Args:
    settings: to check.
    field: what messages call them, such as '--mean_field'.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  for name in CRF._fields:
    value = getattr(settings, name)
    if name == 'filter':
      ok, rule = (
        value in bilateral.KINDS,
        f'one of {", ".join(bilateral.KINDS)}',
      )
    elif name in ('bilateral_xy', 'bilateral_rgb', 'spatial_xy'):
      ok, rule = 0 < value < math.inf, 'above 0'
    else:
      least = int(name == 'iterations')
      ok, rule = least <= value < math.inf, f'{least} or more'
    if not ok:
      raise UserError(f'{field}.{name} is {value!r}, must be {rule}.')
