"""Strided, dilated and transposed convolutions, with fast gradients on CPUs.

XLA's own second derivative of a convolution is a dilated convolution with a
reversed kernel, which falls to a scalar loop on CPUs. Here convolution is seen
as the trilinear form <g, conv(x, w)>: its three partial functions `conv`,
`transpose` and `kernel_grad` have backward passes made only of one another, so
derivatives of any order stay within the three. Reverse mode only.

Dilated convolutions on small maps are sums of one matrix product for each tap
of the kernel, over only those pixels that the tap sees inside the image.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg import ops
from jaxseg.ops.taps import (
  Geometry,
  accumulator,
  outer,
  pad_to,
  padded,
  product,
  visible_taps,
  zeros_around,
)

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# XLA's CPU convolutions are up to 60 times slower than a matrix product on
# maps of so many pixels a side.
SMALL = 4

# Where products of single taps beat XLA's convolution on CPUs, as measured:
# with stride 2 up to so many output pixels a side,
TAPS_SIDE = 8
# with dilation when at most this share of the multiplications falls inside,
TAPS_SHARE = 0.75
# and, for both, from so many channels on.
TAPS_CHANNELS = 64


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
  dilation: int = 1,
) -> jax.Array:
  """Cross-correlates images with a square kernel.

  Args:
    x: [N, H, W, I].
    kernel: [k, k, I, O], same dtype.
    stride: 1 or 2.
    padding: zeros before and after, on both axes; None: (r, r) with
      r = dilation (k // 2), which keeps the size if k is odd and stride 1.
    dilation: distance between neighbouring taps of the kernel, in pixels
      ("atrous" convolution); may exceed the image.

  Returns:
    [N, H', W', O], H' = (H + sum(padding) - reach) // stride + 1 with
    reach = dilation (k - 1) + 1.
  """
  k = kernel.shape[0]
  low, high = (dilation * (k // 2),) * 2 if padding is None else padding
  if not ops.is_fast():
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), ((low, high),) * 2,
      rhs_dilation=(dilation, dilation), dimension_numbers=LAYOUT,
    )  # fmt: skip
  size = tuple(x.shape[1:3])
  reach = dilation * (k - 1) + 1
  out = tuple((s + low + high - reach) // stride + 1 for s in size)
  geo = Geometry(k, stride, low, size, out, dilation)
  if 1 < k and dilation == 1 and max(size) <= SMALL:
    return _conv_small(geo, x, kernel)
  return _conv(geo, x, kernel)


def conv2d_transpose(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Transposed convolution with stride 2: y[2i + t] += x[i] kernel[t].

  Args:
    x: [N, H, W, I].
    kernel: [k, k, I, O], same dtype.

  Returns:
    [N, 2 H + k - 2, 2 W + k - 2, O].
  """
  k = kernel.shape[0]
  if not ops.is_fast():
    return lax.conv_general_dilated(
      x,
      kernel[::-1, ::-1],
      (1, 1),
      ((k - 1, k - 1),) * 2,
      lhs_dilation=(2, 2),
      dimension_numbers=LAYOUT,
    )
  out = tuple(x.shape[1:3])
  size = tuple(2 * s + k - 2 for s in out)
  return _transpose(Geometry(k, 2, 0, size, out), x, jnp.swapaxes(kernel, 2, 3))


def _conv_small(geo, x, kernel):
  """All taps side by side, then one matrix product."""
  x = padded(geo, x)
  height, width = ((o - 1) * geo.stride + 1 for o in geo.out)
  taps = [
    x[:, i : i + height : geo.stride, j : j + width : geo.stride]
    for i in range(geo.k)
    for j in range(geo.k)
  ]
  return jnp.concatenate(taps, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _by_taps(geo: Geometry, channels: int) -> bool:
  """Whether one product a tap is faster; `channels`: the smaller of I and O."""
  taps = visible_taps(geo)
  if len(taps) <= 1:
    return True
  if geo.stride == 2 and geo.dilation == 1:
    small = max(geo.out) <= TAPS_SIDE and channels >= TAPS_CHANNELS
    return geo.k <= 4 and small
  if geo.stride > 1:
    return True
  inside = sum(
    (rows.stop - rows.start) * (columns.stop - columns.start)
    for rows, columns in (tap.out for tap in taps)
  )
  share = inside / (geo.k**2 * geo.out[0] * geo.out[1])
  few = share <= TAPS_SHARE and channels >= TAPS_CHANNELS
  return geo.dilation > 1 and few


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geo: Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
  """conv(x, w): [N, *size, I], [k, k, I, O] -> [N, *out, O]."""
  if _by_taps(geo, min(w.shape[2:])):
    shape = (x.shape[0], *geo.out, w.shape[3])
    y = jnp.zeros(shape, accumulator(x.dtype))
    for tap in visible_taps(geo):
      part = product(x[:, *tap.size], w[tap.i, tap.j], ((3,), (0,)))
      y += pad_to(part, tap.out, geo.out)
    return y.astype(x.dtype)
  return lax.conv_general_dilated(
    x, w, (geo.stride,) * 2, zeros_around(geo),
    rhs_dilation=(geo.dilation,) * 2, dimension_numbers=LAYOUT,
  )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geo: Geometry, g: jax.Array, w: jax.Array) -> jax.Array:
  """Adjoint of conv in x: [N, *out, O], [k, k, I, O] -> [N, *size, I]."""
  if _by_taps(geo, min(w.shape[2:])):
    shape = (g.shape[0], *geo.size, w.shape[2])
    y = jnp.zeros(shape, accumulator(g.dtype))
    for tap in visible_taps(geo):
      part = product(g[:, *tap.out], w[tap.i, tap.j], ((3,), (1,)))
      y += pad_to(part, tap.size, geo.size)
    return y.astype(g.dtype)
  if geo.stride > 1:
    return _transpose_by_phases(geo, g, w)
  reach = geo.dilation * (geo.k - 1)
  low = reach - geo.low
  pads = [
    (low, s + reach - low - o) for s, o in zip(geo.size, geo.out, strict=True)
  ]
  flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
  return lax.conv_general_dilated(
    g, flipped, (1, 1), pads,
    rhs_dilation=(geo.dilation,) * 2, dimension_numbers=LAYOUT,
  )  # fmt: skip


def _transpose_by_phases(
  geo: Geometry, g: jax.Array, w: jax.Array
) -> jax.Array:
  """Stride 2: each output parity is a small convolution; then interleave."""
  n, channels = g.shape[0], w.shape[2]
  per_phase = [(s + geo.low + 1) // 2 for s in geo.size]
  rows = []
  for a in (0, 1):
    columns = []
    for b in (0, 1):
      taps = jnp.swapaxes(w[a::2, b::2][::-1, ::-1], 2, 3)
      pads = [
        (t - 1, p - o)
        for t, p, o in zip(taps.shape[:2], per_phase, geo.out, strict=True)
      ]
      columns.append(
        lax.conv_general_dilated(
          g, taps, (1, 1), pads, dimension_numbers=LAYOUT
        )
      )
    rows.append(jnp.stack(columns, 3))
  y = jnp.stack(rows, 2).reshape(
    n, 2 * per_phase[0], 2 * per_phase[1], channels
  )
  height, width = geo.size
  return y[:, geo.low : geo.low + height, geo.low : geo.low + width]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_grad(geo: Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Adjoint of conv in w: [N, *size, I], [N, *out, O] -> [k, k, I, O]."""
  channels = x.shape[-1], g.shape[-1]
  by_taps = _by_taps(geo, min(channels))
  if geo.stride == 1 and not by_taps:
    pads = zeros_around(geo)
    if max(geo.out) > max(geo.size):
      # XLA's CPU convolution crawls where the padded image is smaller than the
      # kernel without its padding.
      x, pads = padded(geo, x), [(0, 0), (0, 0)]
    # Images and channels change places, written out: XLA's CPU backend only
    # recognises a convolution inside a loop or a branch in this plain layout.
    y = lax.conv_general_dilated(
      jnp.transpose(x, (3, 1, 2, 0)),
      jnp.transpose(g, (1, 2, 0, 3)),
      (geo.dilation,) * 2,
      pads,
      dimension_numbers=LAYOUT,
    )
    return jnp.transpose(y, (1, 2, 0, 3))
  # With stride 2 one product per tap beats a convolution.
  rows = [
    [jnp.zeros(channels, accumulator(x.dtype))] * geo.k for _ in range(geo.k)
  ]
  for tap in visible_taps(geo):
    rows[tap.i][tap.j] = outer(x[:, *tap.size], g[:, *tap.out])
  return jnp.stack([jnp.stack(row) for row in rows]).astype(x.dtype)


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
