"""D_m: the multi-scale patch discriminator of images with their labels.

Sources: Wang et al., High-Resolution Image Synthesis with Conditional GANs
(pix2pixHD, CVPR 2018), section 3.2; Miyato et al., Spectral Normalization
(ICLR 2018), algorithm 1; Li et al. (CVPR 2021), section 3.1. D_r is in
`stylegan2`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.nets.layers import Conv, Dtype, uniform_fan_in
from jaxseg.ops.conv import conv2d


class SpectralConv(nn.Module):
  """Convolution whose kernel is divided by its largest singular value.

  The estimate (vectors u, v) lives in the collection 'spectral'; one power
  iteration refines it when `update` is set, which needs that collection to be
  mutable.
  """

  features: int
  kernel_size: int = 4
  stride: int = 1
  padding: int = 2
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, update: bool) -> jax.Array:
    """[N, H, W, I] -> [N, H', W', features], without bias."""
    k = self.kernel_size
    shape = (k, k, x.shape[-1], self.features)
    kernel = self.param('kernel', uniform_fan_in, shape)
    matrix = kernel.reshape(-1, self.features)  # [k k I, O]
    start = lambda size: _unit(
      jax.random.normal(self.make_rng('params'), (size,))
    )
    u = self.variable('spectral', 'u', start, matrix.shape[1])
    v = self.variable('spectral', 'v', start, matrix.shape[0])
    if update and not self.is_initializing():
      frozen = lax.stop_gradient(matrix)
      v.value = _unit(frozen @ u.value)
      u.value = _unit(v.value @ frozen)
    sigma = v.value @ matrix @ u.value
    dtype = self.dtype or x.dtype
    return conv2d(
      x.astype(dtype),
      (kernel / sigma).astype(dtype),
      stride=self.stride,
      padding=(self.padding, self.padding),
    )


def _unit(x):
  return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def instance_norm(x: jax.Array) -> jax.Array:
  """Zero mean, unit variance for each image and channel; no parameters."""
  y = x.astype(jnp.float32)
  mean = y.mean((1, 2), keepdims=True)
  variance = y.var((1, 2), keepdims=True)
  return ((y - mean) * lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class PatchDiscriminator(nn.Module):
  """Scores overlapping patches (Isola et al., CVPR 2017).

  Attributes:
    width: channels of the first layer; doubled three times.
    dtype: dtype of the convolutions; None: float32.
  """

  width: int = 64
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array, update: bool) -> list[jax.Array]:
    """[N, H, W, C] -> the outputs of 5 layers, the last [N, h, w, 1]."""
    plain = lambda features, stride, name: Conv(
      features, 4, stride, padding=2, dtype=self.dtype, name=name
    )
    features = []
    x = nn.leaky_relu(plain(self.width, 2, 'layer0')(x), 0.2)
    features.append(x)
    for i, stride in enumerate((2, 2, 1), start=1):
      x = SpectralConv(
        self.width * 2**i, stride=stride, dtype=self.dtype, name=f'layer{i}'
      )(x, update)
      x = nn.leaky_relu(instance_norm(x), 0.2)
      features.append(x)
    features.append(plain(1, 1, 'layer4')(x).astype(jnp.float32))
    return features


class MultiscaleDiscriminator(nn.Module):
  """D_m: patch discriminators of the full, half and quarter size.

  Attributes:
    num_scales: discriminators; input i is halved i times.
    width: channels of each one's first layer.
    dtype: dtype of the convolutions; None: float32.
  """

  num_scales: int = 3
  width: int = 64
  dtype: Dtype = None

  @nn.compact
  def __call__(
    self, image: jax.Array, label: jax.Array, update: bool = False
  ) -> list[list[jax.Array]]:
    """Scores pairs.

    Args:
      image: [N, R, R, C] in [-1, 1].
      label: [N, R, R, K]; one-hot in {-1, 1} for real pairs.
      update: run one power iteration (collection 'spectral' mutable).

    Returns:
      for each scale, fine to coarse, the outputs of 5 layers; the last is the
      patch score, float32 [N, h, w, 1], high for real.
    """
    x = jnp.concatenate([image, label.astype(image.dtype)], -1)
    outputs = []
    for i in range(self.num_scales):
      outputs.append(
        PatchDiscriminator(self.width, self.dtype, name=f'scale_{i}')(x, update)
      )
      x = halve(x)
    return outputs


def halve(x: jax.Array) -> jax.Array:
  """3x3 mean with stride 2, the border counted with its true size."""
  return nn.avg_pool(
    x,
    (3, 3),
    strides=(2, 2),
    padding=((1, 1), (1, 1)),
    count_include_pad=False,
  )


def scores(outputs: list[list[jax.Array]]) -> list[jax.Array]:
  """The patch scores of every scale out of D_m's outputs."""
  return [layers[-1] for layers in outputs]
