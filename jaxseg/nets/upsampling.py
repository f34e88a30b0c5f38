"""Ways from a coarse map to a fine one.

Sources: Zeiler and Fergus, Visualizing and Understanding Convolutional
Networks (ECCV 2014), section 2.1 (max-unpooling); Badrinarayanan et al., SegNet
(PAMI 2017), section 3; Long et al., Fully Convolutional Networks (CVPR 2015),
section 3.3 (transposed convolution, bilinear initialisation); Dumoulin and
Visin, A Guide to Convolution Arithmetic (2016), section 4 (zero-interleaving).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseg.nets.layers import Dtype
from jaxseg.ops.conv import conv2d

INITS = ('bilinear', 'normal')


def nearest(x: jax.Array, factor: int) -> jax.Array:
  """Repeats each pixel: [N, H, W, C] -> [N, f H, f W, C]."""
  n, h, w, c = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, factor, w, factor, c))
  return x.reshape(n, h * factor, w * factor, c)


def bed_of_nails(x: jax.Array, factor: int) -> jax.Array:
  """Each pixel at the top left of a cell of zeros: [N, f H, f W, C]."""
  zero = jnp.zeros((), x.dtype)
  inner = factor - 1
  pads = ((0, 0, 0), (0, inner, inner), (0, inner, inner), (0, 0, 0))
  return lax.pad(x, zero, pads)


def max_pool_with_indices(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The largest of each 2x2 window, and where it was.

  Windows that reach over the lower or right border are cut there (the ceil
  mode of Caffe and PyTorch). The first of equal maxima wins and alone receives
  the gradient; NaN counts as largest.

  Args:
    x: [N, H, W, C], floating point.

  Returns:
    (maxima [N, ceil(H / 2), ceil(W / 2), C], their positions in the windows:
    int8, 0 and 1 above, 2 and 3 below).
  """
  bottom, right = x.shape[1] % 2, x.shape[2] % 2
  if bottom or right:
    pads = ((0, 0), (0, bottom), (0, right), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
  pooled = x[:, ::2, ::2]
  indices = jnp.zeros(pooled.shape, jnp.int8)
  for position in (1, 2, 3):
    i, j = divmod(position, 2)
    other = x[:, i::2, j::2]
    larger = (other > pooled) | jnp.isnan(other)
    pooled = jnp.where(larger, other, pooled)
    indices = jnp.where(larger, jnp.int8(position), indices)
  return pooled, indices


def max_unpool(
  x: jax.Array, indices: jax.Array, size: tuple[int, int]
) -> jax.Array:
  """Puts each value where its maximum was, zeros elsewhere.

  Args:
    x: [N, h, w, C].
    indices: of `max_pool_with_indices`, same shape.
    size: (H, W) of the map that was pooled.

  Returns:
    [N, H, W, C].

  Raises:
    ValueError: a map of that size does not pool to h x w.
  """
  n, h, w, c = x.shape
  if x.shape != indices.shape or (h, w) != tuple(-(-s // 2) for s in size):
    raise ValueError(
      f'values {x.shape} and indices {indices.shape} cannot be unpooled to '
      f'{tuple(size)}: both must be [N, ceil(H / 2), ceil(W / 2), C]'
    )
  zero = jnp.zeros((), x.dtype)
  cells = [jnp.where(indices == i, x, zero) for i in range(4)]
  rows = [jnp.stack(pair, 3) for pair in (cells[:2], cells[2:])]
  y = jnp.stack(rows, 2).reshape(n, 2 * h, 2 * w, c)
  return y[:, : size[0], : size[1]]


def flat_indices(indices: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Positions as PyTorch's max_pool2d gives them: row * W + column.

  Args:
    indices: [N, h, w, C] of `max_pool_with_indices`.
    size: (H, W) of the map that was pooled.

  Returns:
    int32 [N, h, w, C], in [0, H W).
  """
  indices = indices.astype(jnp.int32)
  row = 2 * jnp.arange(indices.shape[1])[:, None, None] + indices // 2
  column = 2 * jnp.arange(indices.shape[2])[:, None] + indices % 2
  return row * size[1] + column


def tent(factor: int) -> np.ndarray:
  """Taps of bilinear upsampling: float32 [2 f - f % 2], sum f."""
  size = 2 * factor - factor % 2
  distance = np.abs(np.arange(size) - (size - 1) / 2)
  return (1 - distance / factor).astype(np.float32)


def bilinear_kernel(factor: int, channels: int) -> np.ndarray:
  """Kernel with which `conv_transpose` interpolates every channel.

  Args:
    factor: f, of upsampling.
    channels: C.

  Returns:
    float32 [k, k, C, C], k = 2 f - f % 2; zero between different channels.
  """
  kernel = np.multiply.outer(tent(factor), tent(factor))
  return kernel[..., None, None] * np.eye(channels, dtype=np.float32)


def conv_transpose(
  x: jax.Array,
  kernel: jax.Array,
  stride: int,
  padding: int = 0,
  output_padding: int = 0,
) -> jax.Array:
  """Transposed convolution, numbers as PyTorch's conv_transpose2d.

  y[s i + t - padding] += x[i] kernel[t] on both axes. Computed at the coarse
  size: the s x s outputs of a pixel are channels of one ordinary convolution.

  Args:
    x: [N, H, W, I].
    kernel: [k, k, I, O], same dtype.
    stride: s.
    padding: rows and columns taken off each side.
    output_padding: rows and columns added below and to the right, < stride.

  Returns:
    [N, H', W', O] with H' = (H - 1) s - 2 padding + k + output_padding.
  """
  n, h, w, _ = x.shape
  k, _, fan_in, features = kernel.shape
  taps = -(-k // stride)
  fill = taps * stride - k
  kernel = jnp.pad(kernel, ((0, fill), (0, fill), (0, 0), (0, 0)))
  kernel = kernel.reshape(taps, stride, taps, stride, fan_in, features)
  kernel = kernel[::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
  y = conv2d(
    x,
    kernel.reshape(taps, taps, fan_in, stride**2 * features),
    padding=(taps - 1, taps - 1),
  )
  h, w = h + taps - 1, w + taps - 1
  y = y.reshape(n, h, w, stride, stride, features).transpose(0, 1, 3, 2, 4, 5)
  y = y.reshape(n, h * stride, w * stride, features)
  # `output_padding` may reach beyond what the kernel covers: zeros there.
  extra = k - stride - 2 * padding + output_padding
  ends = [padding + stride * side + extra for side in x.shape[1:3]]
  missing = [
    (0, max(0, end - side))
    for end, side in zip(ends, y.shape[1:3], strict=True)
  ]
  y = jnp.pad(y, ((0, 0), *missing, (0, 0)))
  return y[:, padding : ends[0], padding : ends[1]]


def conv_fractional(
  x: jax.Array, kernel: jax.Array, stride: int, padding: int = 0
) -> jax.Array:
  """`conv_transpose` as a convolution of stride 1 / s.

  Zeros go between the pixels, then the kernel, turned by 180 degrees, is
  applied as usual. It shows what the layer is; `conv_transpose` is faster.

  Args:
    x: [N, H, W, I].
    kernel: [k, k, I, O], same dtype.
    stride: s.
    padding: as of `conv_transpose`, at most k - 1.

  Returns:
    [N, H', W', O] with H' = (H - 1) s - 2 padding + k.
  """
  around = kernel.shape[0] - 1 - padding
  inner = stride - 1
  y = bed_of_nails(x, stride)
  y = y[:, : y.shape[1] - inner, : y.shape[2] - inner]
  return conv2d(y, kernel[::-1, ::-1], padding=(around, around))


def interpolate_transposed(
  x: jax.Array, factor: int, padding: int = 0
) -> jax.Array:
  """`conv_transpose` with the fixed kernel `bilinear_kernel(factor, C)`.

  Channel by channel and axis by axis, hence far cheaper.

  Args:
    x: [N, H, W, C].
    factor: f, the stride.
    padding: rows and columns taken off each side.

  Returns:
    [N, H', W', C] with H' = (H - 1) f - 2 padding + 2 f - f % 2.
  """
  taps = tent(factor)
  matrices = []
  for side in x.shape[1:3]:
    matrix = np.zeros(((side - 1) * factor + len(taps), side), np.float32)
    for i in range(side):
      matrix[i * factor :, i][: len(taps)] = taps
    matrices.append(matrix[padding : len(matrix) - padding])
  return _apply(matrices, x)


def resize(
  x: jax.Array, size: tuple[int, int], align_corners: bool = False
) -> jax.Array:
  """Bilinear interpolation without low-pass filter.

  Args:
    x: [N, H, W, C], floating point.
    size: (H', W').
    align_corners: the centres of the corner pixels stay (PyTorch's meaning);
      otherwise their outer corners (half-pixel centres).

  Returns:
    [N, H', W', C], the dtype of x.
  """
  height, width = x.shape[1:3]
  if tuple(size) == (height, width):
    return x
  if not align_corners and tuple(size) == (2 * height, 2 * width):
    return _double(_double(x, 1), 2)
  sides = zip((height, width), size, strict=True)
  return _apply([_weights(*side, align_corners) for side in sides], x)


def _double(x, axis):
  """Half-pixel interpolation to twice the size; faster than a matrix."""
  side = x.shape[axis]
  part = lambda start, stop: lax.slice_in_dim(x, start, stop, axis=axis)
  before = jnp.concatenate([part(0, 1), part(0, side - 1)], axis)
  after = jnp.concatenate([part(1, side), part(side - 1, side)], axis)
  y = [0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after]
  shape = (*x.shape[:axis], 2 * side, *x.shape[axis + 1 :])
  return jnp.stack(y, axis + 1).reshape(shape)


def _weights(old, new, align_corners):
  """Linear interpolation as a matrix [new, old]."""
  if align_corners:
    at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0)
  else:
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
  at = np.clip(at, 0, old - 1)
  return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old)))


def _apply(matrices, x):
  """Matrices [H', H] and [W', W] on [N, H, W, C]."""
  rows, columns = (jnp.asarray(matrix, x.dtype) for matrix in matrices)
  return jnp.einsum(
    'nhwc,Hh,Ww->nHWc', x, rows, columns, precision=lax.Precision.HIGHEST
  )


class ConvTranspose(nn.Module):
  """Transposed convolution with parameters.

  Attributes:
    features: output channels.
    kernel_size: side k of the kernel, at least `stride`.
    stride: s.
    kernel_init: 'bilinear': interpolation (k = 2 s - s % 2, as many channels in
      as out); 'normal': of the variance that keeps that of the input.
    padding: as of `conv_transpose`; None: the output is s times the input.
    use_bias: whether a bias is added.
    dtype: dtype of the computation; None: that of the input.
  """

  features: int
  kernel_size: int
  stride: int
  kernel_init: str = 'bilinear'
  padding: int | None = None
  use_bias: bool = True
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, s H, s W, features], or see `padding`.

    Raises:
      ValueError: an initialisation that there is not, or not for this shape.
    """
    k, s = self.kernel_size, self.stride
    shape = (k, k, x.shape[-1], self.features)
    start = _initializer(self.kernel_init, s, shape)
    kernel = self.param('kernel', start, shape)
    dtype = self.dtype or x.dtype
    if self.padding is None:
      padding = (k - s + 1) // 2
      extra = 2 * padding - (k - s)
    else:
      padding, extra = self.padding, 0
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    y = conv_transpose(x, kernel, s, padding, extra)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      y = y + bias.astype(dtype)
    return y


def _initializer(init, stride, shape):
  """Flax initialiser of a transposed convolution's kernel."""
  k, _, fan_in, features = shape
  if init == 'normal':
    return nn.initializers.normal(stride / (k * math.sqrt(fan_in)))
  if init != 'bilinear':
    raise ValueError(
      f'kernel_init is {init!r}, must be one of {", ".join(INITS)}'
    )
  kernel = bilinear_kernel(stride, fan_in)
  if kernel.shape != shape:
    raise ValueError(
      f'bilinear initialisation with stride {stride} and {fan_in} channels '
      f'needs a kernel {kernel.shape}, not {shape}'
    )
  return lambda key, shape: jnp.asarray(kernel)
