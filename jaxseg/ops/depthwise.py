"""Depthwise convolution: one small kernel a channel, fast on CPUs.

XLA's CPU backend runs grouped convolutions in a scalar loop, 50 to 100 times
slower than a sum of shifted images, which it fuses into one pass. As in `conv`,
the three partial functions of the trilinear form <g, depthwise(x, w)> have
backward passes made only of one another. Reverse mode only.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg import ops
from jaxseg.ops.conv import LAYOUT
from jaxseg.ops.taps import Geometry, accumulator, pad_to, visible_taps


def depthwise_conv2d(
  x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1
) -> jax.Array:
  """Cross-correlates each channel with its own square kernel.

  Args:
    x: [N, H, W, C].
    kernel: [k, k, 1, C], k odd, same dtype. Zeros around the images keep their
      size with stride 1.
    stride: distance between outputs, in pixels.
    dilation: distance between neighbouring taps of the kernel, in pixels.

  Returns:
    [N, ceil(H / stride), ceil(W / stride), C].
  """
  k, _, _, channels = kernel.shape
  low = dilation * (k // 2)
  if not ops.is_fast():
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), ((low, low),) * 2,
      rhs_dilation=(dilation, dilation), feature_group_count=channels,
      dimension_numbers=LAYOUT,
    )  # fmt: skip
  size = tuple(x.shape[1:3])
  out = tuple(-(-s // stride) for s in size)
  return _conv(Geometry(k, stride, low, size, out, dilation), x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geo: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
  """[N, *size, C], [k, k, 1, C] -> [N, *out, C]."""
  y = jnp.zeros((x.shape[0], *geo.out, x.shape[3]), accumulator(x.dtype))
  for tap in visible_taps(geo):
    part = x[:, *tap.size].astype(y.dtype) * w[tap.i, tap.j, 0]
    y += pad_to(part, tap.out, geo.out)
  return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geo: Geometry, g: jax.Array, w: jax.Array) -> jax.Array:
  """Adjoint of conv in x: [N, *out, C], [k, k, 1, C] -> [N, *size, C]."""
  y = jnp.zeros((g.shape[0], *geo.size, g.shape[3]), accumulator(g.dtype))
  for tap in visible_taps(geo):
    part = g[:, *tap.out].astype(y.dtype) * w[tap.i, tap.j, 0]
    y += pad_to(part, tap.size, geo.size)
  return y.astype(g.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_grad(geo: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Adjoint of conv in w: [N, *size, C], [N, *out, C] -> [k, k, 1, C]."""
  channels, dtype = x.shape[-1], accumulator(x.dtype)
  none = jnp.zeros(channels, dtype)
  rows = [[none] * geo.k for _ in range(geo.k)]
  for tap in visible_taps(geo):
    part = x[:, *tap.size].astype(dtype) * g[:, *tap.out]
    part = part.reshape(-1, channels)
    # A product with ones sums faster than XLA's reduction over rows.
    rows[tap.i][tap.j] = jnp.ones(len(part), dtype) @ part
  kernel = jnp.stack([jnp.stack(row) for row in rows])
  return kernel[:, :, None].astype(x.dtype)


_conv.defvjp(
  lambda geo, x, w: (_conv(geo, x, w), (x, w)),
  lambda geo, saved, g: (
    _transpose(geo, g, saved[1]),
    _kernel_grad(geo, saved[0], g),
  ),
)
_transpose.defvjp(
  lambda geo, g, w: (_transpose(geo, g, w), (g, w)),
  lambda geo, saved, x: (
    _conv(geo, x, saved[1]),
    _kernel_grad(geo, x, saved[0]),
  ),
)
_kernel_grad.defvjp(
  lambda geo, x, g: (_kernel_grad(geo, x, g), (x, g)),
  lambda geo, saved, w: (_transpose(geo, saved[1], w), _conv(geo, saved[0], w)),
)
