"""Discriminators: D_m of SemanticGAN, and those of CycleGAN.

Sources of D_m, the multi-scale patch discriminator of images with their labels:
Wang et al., High-Resolution Image Synthesis with Conditional GANs (pix2pixHD,
CVPR 2018), section 3.2; Miyato et al., Spectral Normalization (ICLR 2018),
algorithm 1; Li et al. (CVPR 2021), section 3.1. D_r is in `stylegan2`. Of
`PixelDiscriminator` and `PatchGAN`: Isola et al., Image-to-Image Translation
with Conditional Adversarial Networks (CVPR 2017), section 6.1.2; Mondal et al.,
Revisiting CycleGAN for Semi-Supervised Segmentation (2019), section 3.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  instance_norm,
  normal_around_one,
  remat_if,
  standardize,
  uniform_fan_in,
)
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
    remat: compute scales anew for the gradient, see `layers.remat_if`.
  """

  num_scales: int = 3
  width: int = 64
  dtype: Dtype = None
  remat: bool = False

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
    scale = remat_if(self.remat, PatchDiscriminator, (2,))
    outputs = []
    for i in range(self.num_scales):
      outputs.append(
        scale(self.width, self.dtype, name=f'scale_{i}')(x, update)
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


DISCRIMINATOR_NORMS = ('batch', 'instance', 'none')


class BatchAtHand(nn.Module):
  """Batch normalisation that keeps no statistics: it only ever trains."""

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """[N, H, W, C] -> the same shape and dtype; `valid` as `standardize`."""
    shape = (x.shape[-1],)
    scale = self.param('scale', normal_around_one, shape)
    bias = self.param('bias', nn.initializers.zeros, shape)
    y = standardize(x, (0, 1, 2), valid)
    return (y * scale + bias).astype(x.dtype)


def _normalize(x, norm, name, valid=None):
  """Adds one of DISCRIMINATOR_NORMS to the compact module that calls this."""
  if norm == 'batch':
    return BatchAtHand(name=name)(x, valid)
  if norm == 'instance':
    return instance_norm(x, valid)
  if norm == 'none':
    return x
  raise ValueError(
    f'norm is {norm!r}, must be one of {", ".join(DISCRIMINATOR_NORMS)}'
  )


def _plain(features, kernel_size, stride, use_bias, dtype, name):
  """A convolution of the CycleGAN discriminators, initialised as published."""
  return Conv(
    features, kernel_size, stride, padding=(kernel_size - 1) // 2, dtype=dtype,
    use_bias=use_bias, kernel_init=nn.initializers.normal(0.02), name=name,
  )  # fmt: skip


class PixelDiscriminator(nn.Module):
  """Scores each pixel by itself: three 1x1 convolutions, D_I and D_S.

  Pixels know of each other through the statistics of the norm alone, which are
  those of the batch (or image) at hand; nothing is stored, hence the only
  collection is 'params'.

  Attributes:
    width: channels of the first layer; twice that in the second.
    norm: after the second: 'batch' (the paper), 'instance' (its code) or
      'none'. As published, no convolution has a bias after the first one with
      'batch'.
    dtype: dtype of the convolutions.
  """

  width: int = 64
  norm: str = 'batch'
  dtype: Dtype = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Scores pixels.

    Args:
      x: [N, H, W, C]: images in [-1, 1], probabilities or one-hot labels.
      valid: bool [N, H, W]; the scores of these pixels do not depend on what
        the others are. None: all are valid.

    Returns:
      float32 [N, H, W, 1], high for real; also at pixels that are not valid.

    Raises:
      ValueError: a norm that there is not.
    """
    bias = self.norm != 'batch'
    x = _plain(self.width, 1, 1, True, self.dtype, 'conv0')(x)
    x = nn.leaky_relu(x, 0.2)
    x = _plain(2 * self.width, 1, 1, bias, self.dtype, 'conv1')(x)
    x = nn.leaky_relu(_normalize(x, self.norm, 'norm1', valid), 0.2)
    x = _plain(1, 1, 1, bias, self.dtype, 'conv2')(x)
    return x.astype(jnp.float32)


class PatchGAN(nn.Module):
  """Scores overlapping patches, of 70 x 70 pixels with 3 layers.

  The statistics of the norm are those of the batch (or image) at hand; nothing
  is stored, hence the only collection is 'params'.

  Attributes:
    width: channels of the first layer; doubled up to eight times that.
    layers: those of stride 2; one of stride 1 and the scores follow.
    norm: 'batch', 'instance' or 'none', after all layers but the first and the
      last; with 'batch' their convolutions have no bias.
    dtype: dtype of the convolutions.
  """

  width: int = 64
  layers: int = 3
  norm: str = 'batch'
  dtype: Dtype = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Scores patches.

    Args:
      x: [N, H, W, C]: images in [-1, 1], probabilities or one-hot labels.
      valid: bool [N, H, W]; other pixels are seen as zeros, like those outside
        the image, so that no score depends on what they are. No patch is left
        out of the statistics. None: all are valid.

    Returns:
      float32 [N, h, w, 1], high for real; h = H // 2**layers - 2.

    Raises:
      ValueError: an image without a patch, or a norm that there is not.
    """
    least = 3 * 2**self.layers
    if min(x.shape[1:3]) < least:
      raise ValueError(
        f'PatchGAN with {self.layers} layers of stride 2 needs images of at '
        f'least {least} x {least} pixels, found {x.shape[1]} x {x.shape[2]}'
      )
    if valid is not None:
      x = jnp.where(valid[..., None], x, 0)
    x = _plain(self.width, 4, 2, True, self.dtype, 'conv0')(x)
    x = nn.leaky_relu(x, 0.2)
    for i in range(1, self.layers + 1):
      features = self.width * min(2**i, 8)
      stride = 2 if i < self.layers else 1
      bias = self.norm != 'batch'
      x = _plain(features, 4, stride, bias, self.dtype, f'conv{i}')(x)
      x = nn.leaky_relu(_normalize(x, self.norm, f'norm{i}'), 0.2)
    name = f'conv{self.layers + 1}'
    return _plain(1, 4, 1, True, self.dtype, name)(x).astype(jnp.float32)


def patch_coverage(
  valid: jax.Array, layers: int = PatchGAN.layers
) -> jax.Array:
  """How much of each patch of a `PatchGAN` is valid.

  The mean over each kernel in turn: the middle of a patch counts most, as in
  the scores; what lies outside the image counts as little as void.

  Args:
    valid: bool [N, H, W].
    layers: of stride 2.

  Returns:
    float32 [N, h, w] in [0, 1].
  """
  x = valid.astype(jnp.float32)[..., None]
  for stride in (*(2,) * layers, 1, 1):
    pads = ((1, 1), (1, 1))
    x = nn.avg_pool(x, (4, 4), (stride, stride), pads, count_include_pad=False)
  return x[..., 0]
