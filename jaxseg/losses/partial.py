"""Cross entropy on the pixels that carry a label, be they 3 % of all.

Tang et al., On Regularized Losses for Weakly-supervised CNN Segmentation (ECCV
2018), equation 2. It is cross entropy with void pixels; published codes differ
in what its sum is divided by.
"""

import jax
import jax.numpy as jnp

from jaxseg.losses import segmentation

NORMALIZERS = ('labelled', 'image', 'pixel', 'sum')


def cross_entropy(
  logits: jax.Array, label: jax.Array, normalize: str = 'labelled'
) -> jax.Array:
  """-sum over labelled pixels of log softmax(logits)[label], normalised.

  Args:
    logits: float32 [N, H, W, K].
    label: int32 [N, H, W], 255 = not labelled.
    normalize: 'labelled': by the labelled pixels of the batch; 'image': the
      mean over images of the mean over their labelled pixels, so that a click
      counts as much as a long scribble; 'pixel': by all pixels, labelled or
      not; 'sum': not at all, as FCN.

  Returns:
    scalar; 0 when no pixel is labelled (with 'image', such an image counts 0
    and is counted).

  Raises:
    ValueError: another normaliser.
  """
  if normalize not in NORMALIZERS:
    raise ValueError(
      f'normalize is {normalize!r}, must be one of {", ".join(NORMALIZERS)}'
    )
  loss = segmentation.pixel_cross_entropy(logits, label)
  if normalize == 'labelled':
    return loss.sum() / jnp.maximum((label != segmentation.VOID).sum(), 1)
  if normalize == 'image':
    count = (label != segmentation.VOID).sum((1, 2))
    return (loss.sum((1, 2)) / jnp.maximum(count, 1)).mean()
  return loss.mean() if normalize == 'pixel' else loss.sum()
