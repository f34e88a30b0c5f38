"""Which classes an image shows, and where: a classifier with class maps.

Source: Zhou et al., Learning Deep Features for Discriminative Localization
(CVPR 2016), section 2: the score of a class is the mean over positions of its
activation map. Here the maps come first, sum_k w_k f_k(x, y) of the features f
of one 3x3 convolution, as in SEC's network; the score is what is pooled.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseg.nets import segmenters
from jaxseg.nets.layers import Conv, Dtype

# Keeps the variance through a ReLU (He et al. 2015, equation 10).
he_fan_in = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Head(NamedTuple):
  """What reads the encoder's maps.

  Attributes:
    level: which map, counted from the coarsest: 1 is the next finer one. The
      class maps have its size, so that of small images a finer one shows more.
    features: channels of the convolution; SEC: 1024.
  """

  level: int = 0
  features: int = 256


class ClassMaps(NamedTuple):
  """What a classifier says about N images.

  Attributes:
    maps: float32 [N, h, w, C], one a foreground class.
    bias: float32 [C]; the logit of a class is its pooled map plus this.
  """

  maps: jax.Array
  bias: jax.Array


class TagClassifier(nn.Module):
  """A segmenter's encoder with a head of class maps.

  Its parameters are the encoder's under the segmenter's names, and the head's:
  what one has learned is taken over by the other. The segmenter's decoder has
  none.

  Attributes:
    segmenter: see `jaxseg.nets.segmenters`.
    num_classes: C, without background.
    head: see `Head`.
    dtype: dtype of the head's convolutions; None: that of the map.
  """

  segmenter: nn.Module
  num_classes: int
  head: Head = Head()
  dtype: Dtype = None

  def setup(self) -> None:
    nn.share_scope(self, self.segmenter)
    self.cam_conv = Conv(
      self.head.features, dtype=self.dtype, kernel_init=he_fan_in
    )
    self.cam = Conv(
      self.num_classes, 1, use_bias=False, dtype=self.dtype,
      kernel_init=nn.initializers.normal(0.01),
    )  # fmt: skip
    self.cam_bias = self.param(
      'cam_bias', nn.initializers.zeros, (self.num_classes,)
    )

  def seen(self, x: jax.Array, train: bool = False) -> jax.Array:
    """[N, H, W, C] in [-1, 1] -> the chosen map [N, h, w, F]."""
    return self.segmenter.encode(x, train).maps[::-1][self.head.level]

  def features(self, seen: jax.Array) -> jax.Array:
    """The chosen map [N, h, w, F] -> [N, h, w, features], 0 or more."""
    return nn.relu(self.cam_conv(seen))

  def classify(self, seen: jax.Array) -> ClassMaps:
    """The chosen map [N, h, w, F] -> class maps."""
    return ClassMaps(
      self.cam(self.features(seen)).astype(jnp.float32), self.cam_bias
    )

  def __call__(self, x: jax.Array, train: bool = False) -> ClassMaps:
    """[N, H, W, C] in [-1, 1] -> class maps of the chosen level's size."""
    return self.classify(self.seen(x, train))


def build(
  net: segmenters.Net, num_classes: int, head: Head, where: str = 'net'
) -> TagClassifier:
  """Returns the classifier.

  Args:
    net: settings of the segmenter whose encoder it has.
    num_classes: K, with background.
    head: see `Head`.
    where: what holds `net`, for messages.

  Raises:
    UserError: a setting outside its choices.
  """
  return TagClassifier(
    segmenters.build(net, num_classes, where), num_classes - 1, head, net.dtype
  )


def level_sizes(
  net: segmenters.Net, size: tuple[int, int], channels: int
) -> list[tuple[int, int]]:
  """(h, w) of the maps that `Head.level` may choose, coarse to fine.

  Nothing is computed.

  Args:
    net: settings of the segmenter.
    size: (H, W) of the images.
    channels: theirs.
  """
  module = segmenters.build(net, 2)

  def encode(x: jax.Array) -> Any:
    init = lambda m: m.encode(x, False).maps
    return module.init_with_output(jax.random.key(0), method=init)[0]

  # Published encoders see three channels.
  images = jnp.zeros((1, *size, 3 if net.weights else channels))
  return [maps.shape[1:3] for maps in jax.eval_shape(encode, images)[::-1]]
