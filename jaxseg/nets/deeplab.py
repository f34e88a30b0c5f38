"""DeepLab v2 and v3+: dilated encoders, spatial pyramids of dilations.

Sources: Chen et al., DeepLab (PAMI 2018), section 3.2 and figure 7 (v2); Chen
et al., Encoder-Decoder with Atrous Separable Convolution (ECCV 2018), section
3.1 and figure 2 (v3+); its pyramid is that of Chen et al., Rethinking Atrous
Convolution (2017), section 3.3.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets.layers import (
  Conv,
  Dtype,
  Features,
  normalize,
  remat_if,
)
from jaxseg.nets.mobilenet import MobileNetV2
from jaxseg.nets.resnet import ResNet
from jaxseg.nets.upsampling import resize

BACKBONES = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'mobilenet_v2')

# Keeps the variance through ReLUs (He et al. 2015, equation 10).
he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def encoder(
  backbone: str,
  width: int,
  output_stride: int,
  norm: str,
  dtype: Dtype,
  depths: Sequence[int] | None = None,
  remat: bool = False,
) -> nn.Module:
  """Returns a backbone; (x, train) -> its maps, fine to coarse.

  Raises:
    ValueError: not one of BACKBONES.
  """
  if backbone not in BACKBONES:
    raise ValueError(
      f'backbone is {backbone!r}, must be one of {", ".join(BACKBONES)}'
    )
  if backbone == 'mobilenet_v2':
    return MobileNetV2(width, output_stride, norm, dtype, remat)
  return ResNet(
    int(backbone.removeprefix('resnet')), width, output_stride, norm=norm,
    dtype=dtype, depths=depths, remat=remat,
  )  # fmt: skip


class DeepLabV2(nn.Module):
  """Sum of four dilated classifiers on the coarsest map.

  Attributes:
    num_classes: K.
    backbone: one of BACKBONES; published: ResNet-101.
    width: of the backbone; 64 is the published size.
    output_stride: 8 (published) or 16.
    branches: dilations of the classifiers.
    published_aspp_bug: use only the first two branches, as implementations
      that return from within their loop do. AdvSSL and GCT published their
      numbers with it (dilations 6 and 12).
    align_corners: whether logits are enlarged with the corner pixels' centres
      in place (published PyTorch code); default: half-pixel centres.
    norm: 'group', 'batch' or 'frozen' (published), see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    depths: blocks of each stage of a ResNet, for other sizes.
    remat: compute the encoder's blocks and the decoder's layers anew for the
      gradient, see `layers.remat_if`.
  """

  num_classes: int
  backbone: str = 'resnet101'
  width: int = 64
  output_stride: int = 8
  branches: Sequence[int] = (6, 12, 18, 24)
  published_aspp_bug: bool = False
  align_corners: bool = False
  norm: str = 'group'
  dtype: Dtype = None
  depths: Sequence[int] | None = None
  remat: bool = False

  def setup(self):
    self.encoder = encoder(
      self.backbone, self.width, self.output_stride, self.norm, self.dtype,
      self.depths, self.remat,
    )  # fmt: skip
    used = 2 if self.published_aspp_bug else len(self.branches)
    self.decoder = SummedPyramid(
      self.num_classes, tuple(self.branches[:used]), self.dtype
    )

  def encode(self, x: jax.Array, train: bool = False) -> Features:
    """[N, H, W, C] -> the coarsest map [N, H / stride, W / stride, F]."""
    return Features((self.encoder(x, train)[-1],))

  def decode(
    self, features: Features, size: tuple[int, int], train: bool = False
  ) -> jax.Array:
    """Features -> float32 logits [N, *size, K]."""
    logits = self.decoder(features.maps[0]).astype(jnp.float32)
    return resize(logits, size, self.align_corners)

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1] -> float32 logits [N, H, W, K]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)


class SummedPyramid(nn.Module):
  """One dilated 3x3 convolution to K logits a dilation; all are summed."""

  num_classes: int
  dilations: tuple[int, ...]
  dtype: Dtype = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[N, h, w, F] -> [N, h, w, K]."""
    return sum(
      Conv(
        self.num_classes, 3, dilation=dilation, dtype=self.dtype,
        kernel_init=nn.initializers.normal(0.01), name=f'branch{i}',
      )(x)
      for i, dilation in enumerate(self.dilations)
    )  # fmt: skip


class DeepLabV3Plus(nn.Module):
  """Pyramid of dilations, and a decoder with fine features of the encoder.

  Attributes:
    num_classes: K.
    backbone: one of BACKBONES.
    width: of the backbone; 64 is the published size, with 4 width channels in
      pyramid and decoder and 3 / 4 width of the fine features.
    output_stride: 16 or 8, of the encoder.
    dropout: rate after the pyramid and after the first convolution of the
      decoder, a fifth of it after the second; published: 0.5.
    align_corners: whether maps are enlarged with the corner pixels' centres in
      place (published code); default: half-pixel centres.
    norm: 'group', 'batch' (published) or 'frozen', see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    depths: blocks of each stage of a ResNet, for other sizes.
    remat: compute the encoder's blocks and the decoder's layers anew for the
      gradient, see `layers.remat_if`.
  """

  num_classes: int
  backbone: str = 'resnet50'
  width: int = 64
  output_stride: int = 16
  dropout: float = 0.0
  align_corners: bool = False
  norm: str = 'group'
  dtype: Dtype = None
  depths: Sequence[int] | None = None
  remat: bool = False

  def setup(self):
    self.encoder = encoder(
      self.backbone, self.width, self.output_stride, self.norm, self.dtype,
      self.depths, self.remat,
    )  # fmt: skip
    self.decoder = Decoder(
      self.num_classes,
      self.width,
      tuple(16 // self.output_stride * d for d in (6, 12, 18)),
      self.dropout,
      self.align_corners,
      self.norm,
      self.dtype,
      self.remat,
    )

  def encode(self, x: jax.Array, train: bool = False) -> Features:
    """[N, H, W, C] -> maps of stride 4 and of `output_stride`."""
    maps = self.encoder(x, train)
    return Features((maps[0], maps[-1]))

  def decode(
    self, features: Features, size: tuple[int, int], train: bool = False
  ) -> jax.Array:
    """Features -> float32 logits [N, *size, K]."""
    logits = self.decoder(*features.maps, train).astype(jnp.float32)
    return resize(logits, size, self.align_corners)

  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1] -> float32 logits [N, H, W, K]."""
    return self.decode(self.encode(x, train), x.shape[1:3], train)


class Decoder(nn.Module):
  """Figure 2 of v3+, up to the logits at stride 4.

  Attributes:
    num_classes: K.
    width: W; the pyramid and the decoder have 4 W channels.
    dilations: of the pyramid's 3x3 convolutions.
    dropout: see DeepLabV3Plus.
    align_corners: see DeepLabV3Plus.
    norm: see `layers.normalize`.
    dtype: dtype of the convolutions; None: that of the input.
    remat: see DeepLabV3Plus.
  """

  num_classes: int
  width: int
  dilations: tuple[int, ...]
  dropout: float = 0.0
  align_corners: bool = False
  norm: str = 'group'
  dtype: Dtype = None
  remat: bool = False

  @nn.compact
  def __call__(
    self, fine: jax.Array, coarse: jax.Array, train: bool
  ) -> jax.Array:
    """[N, h, w, F], [N, h', w', G] -> logits [N, h, w, K]."""
    x = self._pyramid(coarse, train)
    x = self._drop(x, self.dropout, train)
    x = resize(x, fine.shape[1:3], self.align_corners)
    fine = self._layer(fine, train, 'low_level', 1, 3 * self.width // 4)
    x = jnp.concatenate([x, fine], -1)
    x = self._layer(x, train, 'conv1', 3)
    x = self._drop(x, self.dropout, train)
    x = self._layer(x, train, 'conv2', 3)
    x = self._drop(x, self.dropout / 5, train)
    return Conv(
      self.num_classes, 1, dtype=self.dtype, kernel_init=he_fan_in,
      name='classifier',
    )(x)  # fmt: skip

  def _pyramid(self, x, train):
    """Views of several sizes and of the whole image, side by side."""
    views = [self._layer(x, train, 'aspp0', 1)]
    for i, dilation in enumerate(self.dilations, start=1):
      views.append(self._layer(x, train, f'aspp{i}', 3, dilation=dilation))
    whole = x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)
    whole = self._layer(whole, train, 'aspp_image', 1)
    shape = (*x.shape[:3], whole.shape[-1])
    views.append(jnp.broadcast_to(whole, shape))
    return self._layer(jnp.concatenate(views, -1), train, 'project', 1)

  def _layer(self, x, train, name, k, features=None, dilation=1):
    """Convolution, normalisation, ReLU."""

    def layer(module, x):
      del module  # that of the layers, as flax knows
      x = Conv(
        features or 4 * self.width, k, use_bias=False, dtype=self.dtype,
        dilation=dilation, kernel_init=he_fan_in, name=name,
      )(x)  # fmt: skip
      return nn.relu(normalize(x, self.norm, train, f'norm_{name}'))

    return remat_if(self.remat, layer)(self, x)

  def _drop(self, x, rate, train):
    return nn.Dropout(rate, deterministic=not train)(x)
