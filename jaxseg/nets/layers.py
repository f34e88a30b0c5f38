"""Layers with an equalised learning rate, and the modulated convolution.

Sources: Karras et al., Progressive Growing of GANs (2018), section 4.1
(equalised learning rate); Karras et al., Analyzing and Improving the Image
Quality of StyleGAN (2020), section 2.2 (modulation, demodulation).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.ops.conv import conv2d, conv2d_transpose
from jaxseg.ops.upfirdn2d import blur

Dtype = jnp.dtype | None

# PyTorch's default: uniform with variance 1 / (3 fan in).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def normal_around_one(
  key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
  """N(1, .02), with which CycleGAN's scales of norms begin."""
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


class Features(NamedTuple):
  """What a segmenter's encoder hands to its decoder.

  Attributes:
    maps: float arrays [N, h, w, F], fine to coarse; all that the decoder reads.
    indices: where each pooled maximum was, for max-unpooling; () elsewhere.
  """

  maps: tuple[jax.Array, ...]
  indices: tuple[jax.Array, ...] = ()


def remat_if(
  remat: bool, block: Callable[..., Any], static: tuple[int, ...] = ()
) -> Callable[..., Any]:
  """A block that keeps its inputs alone for the gradient, if `remat`.

  What lies between is computed once more, in the backward pass. Parameters keep
  their names and values, provided that the caller names the block.

  Args:
    remat: whether to.
    block: a module's class, or a function whose first argument is the module
      that calls it.
    static: places of arguments that are no arrays; `self` has place 0.
  """
  return nn.remat(block, static_argnums=static) if remat else block


NORMS = ('group', 'batch', 'frozen')


def standardize(
  x: jax.Array, axes: tuple[int, ...], valid: jax.Array | None = None
) -> jax.Array:
  """Zero mean and unit variance over some axes, with the epsilon 1e-5.

  Args:
    x: [N, H, W, C].
    axes: those of the statistics.
    valid: bool [N, H, W]; other pixels do not enter the statistics, but are
      shifted and scaled with them.

  Returns:
    float32 [N, H, W, C].
  """
  x = x.astype(jnp.float32)
  if valid is None:
    mean = lambda values: values.mean(axes, keepdims=True)
  else:
    where = valid[..., None]
    count = jnp.maximum(where.sum(axes, keepdims=True), 1)
    mean = lambda values: (
      jnp.where(where, values, 0).sum(axes, keepdims=True) / count
    )
  x = x - mean(x)
  return x * jax.lax.rsqrt(mean(jnp.square(x)) + 1e-5)


def instance_norm(x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
  """`standardize` of each image and channel by itself, in the dtype of x."""
  return standardize(x, (1, 2), valid).astype(x.dtype)


def normalize(
  x: jax.Array,
  norm: str,
  train: bool,
  name: str,
  scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> jax.Array:
  """Adds a normalisation layer to the compact module that calls this.

  Args:
    x: [N, H, W, C].
    norm: 'group' (Wu and He 2018, 8 channels a group; the same in training and
      use), 'batch', 'frozen': batch normalisation that never leaves its stored
      statistics, or 'instance' (Ulyanov et al. 2016): `instance_norm`, which
      has no parameters and is the same in training and use.
    train: whether 'batch' uses, and averages, the statistics of the batch.
    name: of the layer.
    scale_init: initial values of the scale.

  Returns:
    [N, H, W, C], the dtype of x.

  Raises:
    ValueError: another norm.
  """
  if norm == 'instance':
    return instance_norm(x)
  if norm in ('batch', 'frozen'):
    layer = nn.BatchNorm(
      use_running_average=norm == 'frozen' or not train, momentum=0.9,
      epsilon=1e-5, dtype=jnp.float32, scale_init=scale_init, name=name,
    )  # fmt: skip
  elif norm == 'group':
    size = math.gcd(8, x.shape[-1])
    layer = nn.GroupNorm(
      num_groups=None, group_size=size, dtype=jnp.float32,
      scale_init=scale_init, name=name,
    )  # fmt: skip
  else:
    allowed = ', '.join((*NORMS, 'instance'))
    raise ValueError(f'norm is {norm!r}, must be one of {allowed}')
  return layer(x).astype(x.dtype)


def leaky_relu(x: jax.Array) -> jax.Array:
  """Leaky ReLU of slope 0.2, scaled by sqrt(2) to keep the variance."""
  return nn.leaky_relu(x, 0.2) * math.sqrt(2.0)


class Conv(nn.Module):
  """Plain convolution with symmetric zero padding, on the fast path.

  Attributes:
    features: output channels.
    kernel_size: side k of the kernel.
    stride: 1 or 2.
    padding: zeros on each side; None: dilation (k // 2).
    use_bias: whether a bias is added.
    dtype: dtype of the computation; None: that of the input.
    dilation: distance between neighbouring taps of the kernel, in pixels.
    kernel_init: initial values of the kernel.
  """

  features: int
  kernel_size: int = 3
  stride: int = 1
  padding: int | None = None
  use_bias: bool = True
  dtype: Dtype = None
  dilation: int = 1
  kernel_init: nn.initializers.Initializer = uniform_fan_in

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', features], H' = ceil(H / stride)."""
    k = self.kernel_size
    shape = (k, k, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    dtype = self.dtype or x.dtype
    pad = self.dilation * (k // 2) if self.padding is None else self.padding
    x = conv2d(
      x.astype(dtype),
      kernel.astype(dtype),
      stride=self.stride,
      padding=(pad, pad),
      dilation=self.dilation,
    )
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(dtype)
    return x


class EqualDense(nn.Module):
  """Dense layer, weights ~ N(0, 1) / lr_mul and scaled when they are used.

  Attributes:
    features: output width.
    lr_mul: factor of this layer's learning rate.
    bias_init: initial value of the bias, before `lr_mul`.
    activate: whether `leaky_relu` follows.
    dtype: dtype of the computation; None: that of the input.
  """

  features: int
  lr_mul: float = 1.0
  bias_init: float = 0.0
  activate: bool = False
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., I] -> [..., features]."""
    fan_in = x.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.normal(1 / self.lr_mul), (fan_in, self.features)
    )
    bias = self.param(
      'bias', nn.initializers.constant(self.bias_init), (self.features,)
    )
    dtype = self.dtype or x.dtype
    scale = self.lr_mul / math.sqrt(fan_in)
    y = x.astype(dtype) @ (kernel * scale).astype(dtype)
    y = y + (bias * self.lr_mul).astype(dtype)
    return leaky_relu(y) if self.activate else y


class EqualConv(nn.Module):
  """Convolution, weights ~ N(0, 1) and scaled by 1 / sqrt(fan in) in use.

  Attributes:
    features: output channels.
    kernel_size: side k of the kernel.
    downsample: low-pass filter first, then stride 2.
    use_bias: whether a bias is added.
    activate: whether `leaky_relu` follows.
    dtype: dtype of the computation; None: that of the input.
  """

  features: int
  kernel_size: int = 3
  downsample: bool = False
  use_bias: bool = True
  activate: bool = True
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', features]; H' is H or H / 2."""
    k = self.kernel_size
    shape = (k, k, x.shape[-1], self.features)
    kernel = self.param('kernel', nn.initializers.normal(1.0), shape)
    dtype = self.dtype or x.dtype
    kernel = (kernel / math.sqrt(k * k * x.shape[-1])).astype(dtype)
    x = x.astype(dtype)
    if self.downsample:
      # Filtering adds k - 1 + 2 - 1 rows, so that stride 2 halves exactly.
      total = 2 + k - 1
      x = blur(x, ((total + 1) // 2, total // 2))
      x = conv2d(x, kernel, stride=2, padding=(0, 0))
    else:
      x = conv2d(x, kernel)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(dtype)
    return leaky_relu(x) if self.activate else x


class ModulatedConv(nn.Module):
  """Convolution whose input channels are scaled by a style, per image.

  Images are scaled before and demodulated after one convolution that all
  images share: the same numbers as per-image kernels, far fewer operations,
  and it splits over devices like any batch.

  Attributes:
    features: output channels.
    kernel_size: side k of the kernel.
    demodulate: whether each output channel is brought to unit variance.
    upsample: transposed convolution with stride 2, then low-pass filter.
    dtype: dtype of the convolution; the styles stay in float32.
  """

  features: int
  kernel_size: int = 3
  demodulate: bool = True
  upsample: bool = False
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """[N, H, W, I], styles [N, D] -> [N, H', W', features]."""
    k, fan_in = self.kernel_size, x.shape[-1]
    style = EqualDense(fan_in, bias_init=1.0, name='affine')(w)
    kernel = self.param(
      'kernel', nn.initializers.normal(1.0), (k, k, fan_in, self.features)
    ) / math.sqrt(k * k * fan_in)
    dtype = self.dtype or x.dtype
    x = (x * style[:, None, None]).astype(dtype)
    if self.upsample:
      x = conv2d_transpose(x, kernel.astype(dtype))
      x = blur(x, (1, 1), gain=4.0)
    else:
      x = conv2d(x, kernel.astype(dtype))
    if self.demodulate:
      power = jnp.square(style) @ jnp.square(kernel).sum((0, 1))
      x = x * jax.lax.rsqrt(power + 1e-8)[:, None, None].astype(dtype)
    return x
