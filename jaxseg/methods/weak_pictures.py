"""Where losses push a prediction, as pictures.

After Tang et al., On Regularized Losses for Weakly-supervised CNN Segmentation
(ECCV 2018), figure 3: the gradient of each loss with respect to what the
network says, which shows what a regularizer does and where it does nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseg.losses import regularized, segmentation
from jaxseg.losses.regularized import TERMS, Regularizer

Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def pushes(
  logits: jax.Array,
  images: jax.Array,
  label: jax.Array,
  labelled_loss: Loss,
  regularizer: Regularizer,
  unlabelled: jax.Array,
) -> dict[str, jax.Array]:
  """Minus the gradient of each term that is on, of one class an image.

  The class is the one other than 0 with most labelled pixels; in images without
  any, the one that covers most as predicted.

  Args:
    logits: float32 [N, H, W, K].
    images: [N, H, W, C] in [-1, 1].
    label: int32 [N, H, W], weak.
    labelled_loss: (logits, label) -> (scalar, terms).
    regularizer: its terms with a weight are shown.
    unlabelled: bool [N, H, W], pixels whose entropy counts.

  Returns:
    {'push_labels', 'push_crf', ...: RGB float32 [N, H, W, 3] in [-1, 1]}: white
    where a term is content, red where it raises the class's logit, blue where
    it lowers it; each image and term at its own scale.
  """
  k = logits.shape[-1]
  covered = jax.nn.softmax(logits).mean((1, 2))
  covered = covered + segmentation.one_hot(label, k).sum((1, 2))
  # With a single class there is no other to show.
  shown = covered[:, 1:].argmax(-1) + 1 if k > 1 else covered.argmax(-1)
  pick = jax.nn.one_hot(shown, k)[:, None, None]
  found = {'push_labels': lambda x: labelled_loss(x, label)[0]}
  for name in TERMS:
    if getattr(regularizer, name):
      found[f'push_{name}'] = _term(name, images, regularizer, unlabelled)
  return {
    name: signed_colours(-(jax.grad(loss)(logits) * pick).sum(-1))
    for name, loss in found.items()
  }


def _term(name, images, regularizer, unlabelled):
  alone = regularizer._replace(
    **{other: float(other == name) for other in TERMS}
  )
  return lambda logits: regularized.regularize(
    logits, images, alone, unlabelled=unlabelled
  )[0]


def signed_colours(values: jax.Array) -> jax.Array:
  """White for 0, towards red for positive and blue for negative values.

  The scale of an image is its 99th percentile of absolute values where these
  are not 0: a few extreme pixels would leave all others white.

  Args:
    values: float [N, H, W].

  Returns:
    float32 [N, H, W, 3] in [-1, 1].
  """
  size = jnp.abs(values)
  scale = jnp.nanquantile(
    jnp.where(size > 0, size, jnp.nan).reshape(len(values), -1), 0.99, axis=1
  )
  scale = jnp.where(scale > 0, scale, 1.0)[:, None, None]
  x = jnp.clip(values / scale, -1.0, 1.0)[..., None]
  red, blue = jnp.array([0.8, -0.9, -0.8]), jnp.array([-0.9, -0.6, 0.8])
  white = jnp.ones(3)
  return jnp.where(
    x > 0, white + x * (red - white), white - x * (blue - white)
  ).astype(jnp.float32)
