"""Class activation maps as labels: segmentations, and seeds for a segmenter.

Sources: Zhou et al., Learning Deep Features for Discriminative Localization
(CVPR 2016); Ahn et al., Weakly Supervised Learning of Instance Segmentation
with Inter-pixel Relations (CVPR 2019) and its code, for `segmentation`;
Kolesnikov and Lampert, Seed, Expand and Constrain (ECCV 2016), section 4.1, for
`cues`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses.segmentation import VOID

SALIENCIES = ('features', 'image', 'cam')


class Cues(NamedTuple):
  """Which pixels become seeds.

  Attributes:
    foreground: those of a tagged class whose map is above this fraction of its
      maximum; the background has no such map.
    background: this fraction of the pixels, the least salient.
    saliency: of a pixel, one of SALIENCIES: the gradient of the scores with
      respect to the map that the classifier's head reads (SEC: to conv4 of its
      VGG16) or to the image, its largest channel; or the class maps' sum.
  """

  foreground: float = 0.2
  background: float = 0.1
  saliency: str = 'features'


def segmentation(
  class_maps: jax.Array, kept: jax.Array, background: float
) -> jax.Array:
  """What a classifier's maps say of each pixel.

  Args:
    class_maps: float32 [N, H, W, C] of the foreground classes; below 0 is 0.
    kept: [N, C], 1 for classes that the image is held to show, else 0.
    background: the score of class 0, where each class kept has a highest score
      of 1.

  Returns:
    float32 probabilities [N, H, W, C + 1]: the scores, divided by their sum.
  """
  maps = jax.nn.relu(class_maps) * kept[:, None, None].astype(jnp.float32)
  maps = maps / (maps.max((1, 2), keepdims=True) + 1e-5)
  first = jnp.full((*maps.shape[:3], 1), background, jnp.float32)
  scores = jnp.concatenate([first, maps], -1)
  return scores / scores.sum(-1, keepdims=True)


def cues(
  class_maps: jax.Array,
  tags: jax.Array,
  saliency: jax.Array,
  settings: Cues = Cues(),
) -> jax.Array:
  """SEC's localisation cues: few pixels of each class that are likely its.

  Where two classes claim a pixel it is of the one that claims fewer. Pixels as
  little salient as the last of the background's are background as well.

  Args:
    class_maps: float32 [N, h, w, C] of the foreground classes; below 0 is 0.
    tags: float32 [N, C + 1] of 0 and 1; class 0 is background.
    saliency: float32 [N, h, w]; a 3x3 median filter is applied.
    settings: see `Cues`.

  Returns:
    int32 [N, h, w], 255 = no cue.
  """
  n, h, w = saliency.shape
  maps = jax.nn.relu(class_maps)
  highest = maps.max((1, 2), keepdims=True)
  foreground = (maps > settings.foreground * highest) & (highest > 0)
  smooth = median_filter(saliency)
  count = max(1, round(settings.background * h * w))
  last = jnp.sort(smooth.reshape(n, h * w))[:, count - 1]
  background = smooth <= last[:, None, None]
  claimed = jnp.concatenate([background[..., None], foreground], -1)
  claimed &= tags[:, None, None] > 0
  area = jnp.where(claimed, claimed.sum((1, 2), keepdims=True), h * w + 1)
  label = area.argmin(-1).astype(jnp.int32)
  return jnp.where(claimed.any(-1), label, VOID)


def median_filter(x: jax.Array) -> jax.Array:
  """Median of 3x3 pixels, those of the border repeated: [N, H, W] -> same."""
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode='edge')
  h, w = x.shape[1:]
  shifts = [padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
  return jnp.median(jnp.stack(shifts), axis=0)


def check(where: str, settings: Cues) -> None:
  """Refuses settings without meaning.

  Args:
    where: what holds them, for messages.
    settings: see `Cues`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  for name in ('foreground', 'background'):
    value = getattr(settings, name)
    if not (math.isfinite(value) and 0 < value < 1):
      raise UserError(f'{where}.{name} is {value}, must be between 0 and 1.')
  if settings.saliency not in SALIENCIES:
    raise UserError(
      f'{where}.saliency is {settings.saliency!r}, must be one of '
      f'{", ".join(SALIENCIES)}.'
    )
