"""Learning from which classes an image shows: pooling, and losses of it.

Maps of class scores become one score an image (pooling), which the tags
supervise: multiple-instance learning. Sources: Pathak et al., Fully
Convolutional Multi-Class Multiple Instance Learning (ICLR 2015 workshop),
'max'; Zhou et al., Learning Deep Features for Discriminative Localization
(CVPR 2016), 'average'; Pinheiro and Collobert, From Image-level to Pixel-level
Labeling (CVPR 2015), equation 1, 'lse'; Kolesnikov and Lampert, Seed, Expand
and Constrain (ECCV 2016), 'gwrp' and the three losses of its section 3, as its
published code computes them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxseg.errors import UserError
from jaxseg.losses.segmentation import pixel_cross_entropy, valid_pixels

POOLS = ('max', 'average', 'lse', 'gwrp')
PUBLISHED_PIXELS = 41 * 41  # of the maps for which SEC published its decays
FLOOR = 1e-4  # of SEC's probabilities


class Pool(NamedTuple):
  """How the scores of all pixels become one of the image.

  Attributes:
    kind: one of POOLS; 'gwrp' (global weighted rank pooling) weighs the j-th
      highest score by decay^j.
    sharpness: of 'lse', r: towards 0 it is the mean, for large ones the
      maximum.
    decay: of 'gwrp', of foreground classes, on 41 x 41 maps; others see
      `rank_decay`. 0 is the maximum, 1 the mean.
    background_decay: of the background.
  """

  kind: str = 'gwrp'
  sharpness: float = 5.0
  decay: float = 0.996
  background_decay: float = 0.999


def pool(scores: jax.Array, settings: Pool, first: int = 1) -> jax.Array:
  """One score of each class and image.

  Args:
    scores: float32 [N, h, w, C].
    settings: see `Pool`.
    first: id of the first of these classes; 0 is background.

  Returns:
    float32 [N, C], between the mean and the maximum of each map.

  Raises:
    ValueError: another kind.
  """
  n, h, w, c = scores.shape
  flat = scores.reshape(n, h * w, c)
  if settings.kind == 'max':
    return flat.max(1)
  if settings.kind == 'average':
    return flat.mean(1)
  if settings.kind == 'lse':
    r = settings.sharpness
    total = jax.nn.logsumexp(r * flat, axis=1)
    return (total - math.log(h * w)) / r
  if settings.kind != 'gwrp':
    raise ValueError(
      f'kind is {settings.kind!r}, must be one of {", ".join(POOLS)}'
    )
  decays = [
    settings.background_decay if first + i == 0 else settings.decay
    for i in range(c)
  ]
  return rank_pool(flat, [rank_decay(q, h * w) for q in decays])


def rank_pool(scores: jax.Array, decays: Sequence[float]) -> jax.Array:
  """sum_j q^j s_(j) / sum_j q^j, s_(j) the j-th highest (SEC, equation 4).

  Args:
    scores: float32 [N, P, C].
    decays: q of each class, in [0, 1].

  Returns:
    float32 [N, C].
  """
  ranks = np.arange(scores.shape[1])[:, None]
  weights = np.asarray(decays, np.float64) ** ranks  # 0^0 = 1
  weights = (weights / weights.sum(0)).astype(np.float32)
  highest_first = -jnp.sort(-scores, axis=1)
  return (highest_first * weights).sum(1)


def rank_decay(
  decay: float, pixels: int, published: int = PUBLISHED_PIXELS
) -> float:
  """The decay on maps of another size that weighs the same parts of them.

  The highest m of P scores have half the weight where q^m = (1 + q^P) / 2;
  m / P stays (10.3 % for .996, 31.1 % for .999 on 41 x 41) as q^P does.

  Args:
    decay: on maps of `published` pixels, in [0, 1].
    pixels: of the maps.
    published: see `decay`.
  """
  return decay ** (published / pixels)


def soft_margin(logits: jax.Array, tags: jax.Array) -> jax.Array:
  """Mean binary cross entropy of tags, as PyTorch's MultiLabelSoftMarginLoss.

  Args:
    logits: float32 [N, C], of sigmoids.
    tags: float32 [N, C] of 0 and 1.

  Returns:
    scalar.
  """
  return optax.sigmoid_binary_cross_entropy(logits, tags).mean()


def floored(probabilities: jax.Array, floor: float = FLOOR) -> jax.Array:
  """(p + floor) / sum (p + floor): no class is impossible (SEC's code).

  Args:
    probabilities: float32 [..., K], sum to 1.
    floor: above 0.

  Returns:
    [..., K], in (0, 1) for K > 1, sums to 1.
  """
  p = probabilities + floor
  return p / p.sum(-1, keepdims=True)


def expand(
  probabilities: jax.Array, tags: jax.Array, settings: Pool = Pool()
) -> jax.Array:
  """-mean log G_c of tagged classes - mean log(1 - max p_c) of the others.

  G is the pooled probability (SEC, equation 5). Both means are over the
  foreground classes of an image; -log G of the background is added where it
  is tagged, and where not it counts nowhere. With 'max' this is the loss of
  Pathak et al. for classes that are present, and one for those that are not.

  Args:
    probabilities: float32 [N, h, w, K] in (0, 1), see `floored`.
    tags: float32 [N, K] of 0 and 1; class 0 is background.
    settings: see `Pool`.

  Returns:
    scalar, mean over images.
  """
  pooled = jnp.log(pool(probabilities, settings, first=0))
  present, highest = tags[:, 1:], probabilities[..., 1:].max((1, 2))
  loss = -_mean_where(present, pooled[:, 1:])
  loss -= _mean_where(1 - present, jnp.log1p(-highest))
  return (loss - tags[:, 0] * pooled[:, 0]).mean()


def _mean_where(mask, values):
  """Mean over classes where the mask is 1, of each image; 0 where nowhere."""
  return (mask * values).sum(1) / jnp.maximum(mask.sum(1), 1.0)


def seed(probabilities: jax.Array, cues: jax.Array) -> jax.Array:
  """-log p of the seeds' classes: mean over an image's seeds, then over images.

  Args:
    probabilities: float32 [N, h, w, K] above 0, sum to 1.
    cues: int32 [N, h, w], 255 = no seed.

  Returns:
    scalar; an image without seeds counts 0.
  """
  loss = pixel_cross_entropy(jnp.log(probabilities), cues).sum((1, 2))
  return (loss / jnp.maximum(valid_pixels(cues).sum((1, 2)), 1.0)).mean()


def constrain(probabilities: jax.Array, refined: jax.Array) -> jax.Array:
  """Mean over pixels of KL(refined || probabilities), SEC's equation 7.

  Args:
    probabilities: float32 [N, h, w, K] above 0, sum to 1.
    refined: likewise, such as of a dense CRF; no gradient flows into it.

  Returns:
    scalar, 0 or more.
  """
  q = jax.lax.stop_gradient(refined)
  return (q * (jnp.log(q) - jnp.log(probabilities))).sum(-1).mean()


def check(where: str, settings: Pool) -> None:
  """Refuses settings without meaning.

  Args:
    where: what holds them, for messages.
    settings: see `Pool`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  if settings.kind not in POOLS:
    raise UserError(
      f'{where}.kind is {settings.kind!r}, must be one of {", ".join(POOLS)}.'
    )
  if not 0 < settings.sharpness < math.inf:
    raise UserError(
      f'{where}.sharpness is {settings.sharpness}, must be above 0, such as 5; '
      "for its limits set kind to 'average' or 'max'."
    )
  for name in ('decay', 'background_decay'):
    value = getattr(settings, name)
    if not 0 <= value <= 1:
      raise UserError(f'{where}.{name} is {value}, must be from 0 to 1.')
