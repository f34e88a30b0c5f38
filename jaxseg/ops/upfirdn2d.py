"""Low-pass filtering with and without a change of size, as in StyleGAN2.

The filter is separable, [1, 3, 3, 1] / 8 per axis, which suppresses aliasing
(Karras et al., Analyzing and Improving the Image Quality of StyleGAN, 2020).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg import ops

TAPS = (0.125, 0.375, 0.375, 0.125)


def blur(
  x: jax.Array, padding: tuple[int, int], gain: float = 1.0
) -> jax.Array:
  """Filters every channel with the outer product of TAPS, times `gain`.

  Args:
    x: [N, H, W, C].
    padding: zeros before and after, on both axes.
    gain: factor of the result; 4 after zero insertion keeps the mean.

  Returns:
    [N, H + sum(padding) - 3, W + sum(padding) - 3, C].
  """
  if ops.is_fast():
    return _shifted_blur(x, padding, gain)
  kernel = np.outer(TAPS, TAPS)[:, :, None, None] * gain
  channels = x.shape[-1]
  return lax.conv_general_dilated(
    x,
    jnp.tile(jnp.asarray(kernel, x.dtype), (1, 1, 1, channels)),
    (1, 1),
    (padding, padding),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=channels,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _shifted_blur(x, padding, gain):
  """One fused sum of shifted copies; its adjoint is itself, padded anew."""
  x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
  height, width = x.shape[1] - 3, x.shape[2] - 3
  return functools.reduce(
    jnp.add,
    [
      (gain * a * b) * x[:, i : i + height, j : j + width]
      for i, a in enumerate(TAPS)
      for j, b in enumerate(TAPS)
    ],
  )


_shifted_blur.defvjp(
  lambda x, padding, gain: (_shifted_blur(x, padding, gain), None),
  lambda padding, gain, _, g: (
    _shifted_blur(g, (3 - padding[0], 3 - padding[1]), gain),
  ),
)


def upsample2d(x: jax.Array) -> jax.Array:
  """Doubles height and width: zero insertion, then TAPS with gain 4.

  Args:
    x: [N, H, W, C].

  Returns:
    [N, 2 H, 2 W, C].
  """
  return _upsample_axis(_upsample_axis(x, 1), 2)


def _upsample_axis(x, axis):
  """Polyphase form: y[2i] = (x[i-1] + 3 x[i]) / 4 and its mirror image."""
  pads = [(0, 0)] * x.ndim
  pads[axis] = (1, 1)
  padded = jnp.pad(x, pads)
  size = x.shape[axis]
  before = lax.slice_in_dim(padded, 0, size, axis=axis)
  after = lax.slice_in_dim(padded, 2, size + 2, axis=axis)
  pair = jnp.stack(
    [0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], axis + 1
  )
  shape = list(x.shape)
  shape[axis] *= 2
  return pair.reshape(shape)
