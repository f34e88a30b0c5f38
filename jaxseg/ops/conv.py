"""Strided and transposed convolutions whose gradients stay fast on CPUs.

XLA's own second derivative of a convolution is a dilated convolution with a
reversed kernel, which falls to a scalar loop on CPUs. Here convolution is seen
as the trilinear form <g, conv(x, w)>: its three partial functions `conv`,
`transpose` and `kernel_grad` have backward passes made only of one another, so
derivatives of any order stay within the three. Reverse mode only.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseg import ops

LAYOUT = ('NHWC', 'HWIO', 'NHWC')

# XLA's CPU convolutions are up to 60 times slower than a matrix product on
# maps of so many pixels a side.
SMALL = 4


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  *,
  stride: int = 1,
  padding: tuple[int, int] | None = None,
) -> jax.Array:
  """Cross-correlates images with a square kernel.

  Args:
    x: [N, H, W, I].
    kernel: [k, k, I, O], same dtype.
    stride: 1 or 2.
    padding: zeros before and after, on both axes; None: (k // 2, k // 2).

  Returns:
    [N, H', W', O] with H' = (H + sum(padding) - k) // stride + 1.
  """
  k = kernel.shape[0]
  low, high = (k // 2, k // 2) if padding is None else padding
  if not ops.is_fast():
    return lax.conv_general_dilated(
      x, kernel, (stride, stride), ((low, high),) * 2, dimension_numbers=LAYOUT
    )
  if k == 1 and low == high == 0:
    return jnp.einsum('nhwi,io->nhwo', x[:, ::stride, ::stride], kernel[0, 0])
  size = tuple(x.shape[1:3])
  out = tuple((s + low + high - k) // stride + 1 for s in size)
  if max(size) <= SMALL:
    return _conv_small(x, kernel, stride, (low, high), out)
  return _conv(_Geometry(k, stride, low, size, out), x, kernel)


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
  return _transpose(
    _Geometry(k, 2, 0, size, out), x, jnp.swapaxes(kernel, 2, 3)
  )


def _conv_small(x, kernel, stride, padding, out):
  """All taps side by side, then one matrix product."""
  k = kernel.shape[0]
  x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
  height, width = ((o - 1) * stride + 1 for o in out)
  taps = [
    x[:, i : i + height : stride, j : j + width : stride]
    for i in range(k)
    for j in range(k)
  ]
  return jnp.concatenate(taps, -1) @ kernel.reshape(-1, kernel.shape[-1])


class _Geometry(NamedTuple):
  """Static shape of a convolution from `size` to `out`."""

  k: int
  stride: int
  low: int  # zeros before the first row and column
  size: tuple[int, int]
  out: tuple[int, int]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geo: _Geometry, x: jax.Array, w: jax.Array) -> jax.Array:
  """conv(x, w): [N, *size, I], [k, k, I, O] -> [N, *out, O]."""
  pads = [
    (geo.low, (o - 1) * geo.stride + geo.k - geo.low - s)
    for s, o in zip(geo.size, geo.out, strict=True)
  ]
  return lax.conv_general_dilated(
    x, w, (geo.stride,) * 2, pads, dimension_numbers=LAYOUT
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transpose(geo: _Geometry, g: jax.Array, w: jax.Array) -> jax.Array:
  """Adjoint of conv in x: [N, *out, O], [k, k, I, O] -> [N, *size, I]."""
  if geo.stride == 1:
    low = geo.k - 1 - geo.low
    pads = [
      (low, s + geo.k - 1 - low - o)
      for s, o in zip(geo.size, geo.out, strict=True)
    ]
    flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
    return lax.conv_general_dilated(
      g, flipped, (1, 1), pads, dimension_numbers=LAYOUT
    )
  return _transpose_by_phases(geo, g, w)


def _transpose_by_phases(
  geo: _Geometry, g: jax.Array, w: jax.Array
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
def _kernel_grad(geo: _Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Adjoint of conv in w: [N, *size, I], [N, *out, O] -> [k, k, I, O]."""
  if geo.stride == 1 and geo.k <= 3:
    # Images and channels change places, written out: XLA's CPU backend only
    # recognises a convolution inside a loop or a branch in this plain layout.
    pads = [
      (geo.low, o + geo.k - 1 - geo.low - s)
      for s, o in zip(geo.size, geo.out, strict=True)
    ]
    y = lax.conv_general_dilated(
      jnp.transpose(x, (3, 1, 2, 0)),
      jnp.transpose(g, (1, 2, 0, 3)),
      (1, 1),
      pads,
      dimension_numbers=LAYOUT,
    )
    return jnp.transpose(y, (1, 2, 0, 3))
  # With stride 2 or a large kernel, one product per tap beats a convolution.
  high = [
    max(0, (o - 1) * geo.stride + geo.k - geo.low - s)
    for s, o in zip(geo.size, geo.out, strict=True)
  ]
  padded = jnp.pad(x, ((0, 0), (geo.low, high[0]), (geo.low, high[1]), (0, 0)))
  span = [(o - 1) * geo.stride + 1 for o in geo.out]

  def tap(i, j):
    window = padded[
      :, i : i + span[0] : geo.stride, j : j + span[1] : geo.stride
    ]
    return lax.dot_general(window, g, (((0, 1, 2), (0, 1, 2)), ((), ())))

  return jnp.stack(
    [jnp.stack([tap(i, j) for j in range(geo.k)]) for i in range(geo.k)]
  )


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
