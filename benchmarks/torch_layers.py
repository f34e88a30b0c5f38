"""Layers of the PyTorch counterpart, and how they get jaxseg's parameters.

The sources are those of `jaxseg.nets.layers`; arrays are NCHW in channels-last
memory.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxseg.ops.upfirdn2d import TAPS

SQRT2 = math.sqrt(2.0)
FILTER = np.outer(TAPS, TAPS).tolist()


def load(module: nn.Module, *trees: Any) -> nn.Module:
  """Copies trees of jaxseg's arrays into a module; every name must match.

  Args:
    module: from `torch_counterpart`.
    *trees: its 'params', for D_m also its 'spectral' collection.

  Returns:
    the module, in channels-last memory.

  Raises:
    RuntimeError: a name or a shape differs.
  """
  state = {}
  for where, leaf in jax.tree_util.tree_leaves_with_path(trees):
    name = jax.tree_util.keystr(where[1:], simple=True, separator='.')
    # HWIO to OIHW, [I, O] to [O, I], HWC to CHW.
    axes = {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0)}.get(leaf.ndim, None)
    array = np.asarray(leaf)
    state[name] = torch.tensor(array.transpose(axes) if axes else array)
  module.load_state_dict(state)
  return module.to(memory_format=torch.channels_last)


def parameter(*shape: int) -> nn.Parameter:
  """Zeros: values always come from `load`."""
  return nn.Parameter(torch.zeros(shape))


def low_pass(gain: float, dtype: torch.dtype, device: torch.device) -> Tensor:
  """The filter of `jaxseg.ops.upfirdn2d`, [1, 1, 4, 4], sum `gain`."""
  # torch.compile makes a constant of it, and has no use for a cache.
  compiling = torch.compiler.is_compiling()
  return (_low_pass if compiling else _kept)(gain, dtype, device)


def _low_pass(gain, dtype, device):
  kernel = torch.tensor(FILTER, device=device) * gain
  return kernel[None, None].to(dtype)


_kept = functools.cache(_low_pass)


def blur(x: Tensor, padding: int, gain: float = 1.0, stride: int = 1) -> Tensor:
  """Filters each channel of [N, C, H, W]."""
  channels = x.shape[1]
  kernel = low_pass(gain, x.dtype, x.device).expand(channels, 1, 4, 4)
  return F.conv2d(x, kernel, None, stride, padding, groups=channels)


def upsample2d(x: Tensor) -> Tensor:
  """Doubles height and width of [N, C, H, W] with the same filter."""
  channels = x.shape[1]
  kernel = low_pass(4.0, x.dtype, x.device).expand(channels, 1, 4, 4)
  return F.conv_transpose2d(x, kernel, None, 2, 1, groups=channels)


class EqualDense(nn.Module):
  """Dense layer with a weight scale at run time."""

  def __init__(
    self,
    inputs: int,
    features: int,
    lr_mul: float = 1.0,
    activate: bool = False,
  ):
    super().__init__()
    self.kernel, self.bias = parameter(features, inputs), parameter(features)
    self.activate = activate
    gain = SQRT2 if activate else 1.0
    self.scale = gain * lr_mul / math.sqrt(inputs)
    self.bias_scale = gain * lr_mul

  def forward(self, x: Tensor) -> Tensor:
    x = F.linear(x, self.kernel * self.scale, self.bias * self.bias_scale)
    return F.leaky_relu(x, 0.2) if self.activate else x


class EqualConv(nn.Module):
  """Convolution with a weight scale at run time, times `gain`."""

  def __init__(
    self,
    inputs: int,
    features: int,
    kernel_size: int = 3,
    *,
    downsample: bool = False,
    bias: bool = True,
    activate: bool = True,
    gain: float = SQRT2,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.kernel = parameter(features, inputs, kernel_size, kernel_size)
    self.bias = parameter(features) if bias else None
    self.scale = gain / math.sqrt(kernel_size**2 * inputs)
    self.downsample, self.activate = downsample, activate
    self.gain, self.dtype = gain, dtype

  def forward(self, x: Tensor) -> Tensor:
    k = self.kernel.shape[-1]
    x, kernel = x.to(self.dtype), (self.kernel * self.scale).to(self.dtype)
    bias = None
    if self.bias is not None:
      bias = (self.bias * self.gain).to(self.dtype)
    if self.downsample and k == 1:
      x = F.conv2d(blur(x, 1, stride=2), kernel, bias)
    elif self.downsample:
      x = F.conv2d(blur(x, 2), kernel, bias, 2)
    else:
      x = F.conv2d(x, kernel, bias, 1, k // 2)
    return F.leaky_relu(x, 0.2) if self.activate else x


class ModulatedConv(nn.Module):
  """Scales the input, convolves once for all images, demodulates."""

  def __init__(
    self,
    inputs: int,
    features: int,
    w_dim: int,
    kernel_size: int = 3,
    *,
    demodulate: bool = True,
    upsample: bool = False,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.affine = EqualDense(w_dim, inputs)
    self.kernel = parameter(features, inputs, kernel_size, kernel_size)
    self.scale = 1 / math.sqrt(kernel_size**2 * inputs)
    self.demodulate, self.upsample, self.dtype = demodulate, upsample, dtype

  def forward(
    self, x: Tensor, w: Tensor, bias: Tensor, gain: float = 1.0
  ) -> Tensor:
    """gain * convolution + bias."""
    style = self.affine(w)
    scaled = self.kernel * self.scale
    kernel = scaled.to(self.dtype)
    x = (x * style[:, :, None, None]).to(self.dtype)
    if self.upsample:
      x = blur(F.conv_transpose2d(x, kernel.transpose(0, 1), None, 2), 1, 4.0)
    else:
      x = F.conv2d(x, kernel, None, 1, kernel.shape[-1] // 2)
    bias = bias.to(x.dtype)[:, None, None]
    if not self.demodulate:
      return x + bias
    power = style.square() @ scaled.square().sum((2, 3)).T
    factor = gain * torch.rsqrt(power + 1e-8)
    return torch.addcmul(bias, x, factor[:, :, None, None].to(x.dtype))


class Conv(nn.Module):
  """Plain convolution."""

  def __init__(
    self,
    inputs: int,
    features: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
  ):
    super().__init__()
    self.kernel = parameter(features, inputs, kernel_size, kernel_size)
    self.bias = parameter(features) if bias else None
    self.stride, self.dtype = stride, dtype
    self.padding = kernel_size // 2 if padding is None else padding

  def forward(self, x: Tensor) -> Tensor:
    bias = None if self.bias is None else self.bias.to(self.dtype)
    return F.conv2d(
      x.to(self.dtype),
      self.kernel.to(self.dtype),
      bias,
      self.stride,
      self.padding,
    )


class SpectralConv(nn.Module):
  """Convolution divided by the power iteration's singular value."""

  def __init__(
    self, inputs: int, features: int, stride: int, dtype: torch.dtype
  ):
    super().__init__()
    self.kernel = parameter(features, inputs, 4, 4)
    self.register_buffer('u', torch.zeros(features))
    self.register_buffer('v', torch.zeros(16 * inputs))
    self.stride, self.dtype = stride, dtype

  def forward(self, x: Tensor, update: bool) -> Tensor:
    # Channels-last memory: this is a view.
    matrix = self.kernel.permute(0, 2, 3, 1).flatten(1)
    if update:
      with torch.no_grad():
        self.v.copy_(F.normalize(self.u @ matrix, dim=0, eps=1e-12))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=1e-12))
    # Clones: a later update must not change what this backward pass needs.
    sigma = self.u.clone() @ (matrix @ self.v.clone())
    kernel = (self.kernel / sigma).to(self.dtype)
    return F.conv2d(x.to(self.dtype), kernel, None, self.stride, 2)


def minibatch_stddev(x: Tensor, group_size: int) -> Tensor:
  """Appends the mean deviation within groups, as one channel."""
  n, _, height, width = x.shape
  group = min(n, group_size)
  grouped = x.reshape(group, n // group, *x.shape[1:])
  deviation = (grouped.var(0, correction=0) + 1e-8).sqrt().mean((1, 2, 3))
  feature = deviation.repeat(group)[:, None, None, None]
  return torch.cat([x, feature.expand(n, 1, height, width)], 1)


class GroupNorm(nn.Module):
  """Groups of 8 channels."""

  def __init__(self, channels: int):
    super().__init__()
    self.scale, self.bias = parameter(channels), parameter(channels)

  def forward(self, x: Tensor) -> Tensor:
    groups = x.shape[1] // 8
    return F.group_norm(x.float(), groups, self.scale, self.bias, 1e-6)
