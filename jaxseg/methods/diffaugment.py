"""Differentiable augmentation of what discriminators see.

Zhao et al., Differentiable Augmentation for Data-Efficient GAN Training
(NeurIPS 2020), section 3.3. Labels move with their images; pixels that come
from outside are 0: grey in an image, void in a label.
"""

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError

KINDS = ('color', 'translation', 'cutout')


def check(policy: str) -> None:
  """Raises UserError when a comma-separated policy has an unknown part."""
  for kind in filter(None, policy.split(',')):
    if kind not in KINDS:
      raise UserError(
        f'diffaugment names {kind!r}; valid, separated by commas: '
        f'{", ".join(KINDS)}.'
      )


def augment(
  rng: jax.Array,
  policy: str,
  image: jax.Array,
  label: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array | None]:
  """Transforms each image (and its label map) at random.

  Args:
    rng: a key.
    policy: comma-separated of KINDS; '' changes nothing.
    image: [N, R, R, C] in [-1, 1].
    label: [N, R, R, K] or None.

  Returns:
    (image, label), same shapes.
  """
  kinds = policy.split(',')
  if 'color' in kinds:
    image = _color(jax.random.fold_in(rng, 0), image)
  channels = image.shape[-1]
  both = (
    image
    if label is None
    else jnp.concatenate([image, label.astype(image.dtype)], -1)
  )
  if 'translation' in kinds:
    both = _translate(jax.random.fold_in(rng, 1), both)
  if 'cutout' in kinds:
    both = _cutout(jax.random.fold_in(rng, 2), both)
  if label is None:
    return both, None
  return both[..., :channels], both[..., channels:]


def _color(rng, x):
  """Brightness +-0.5, saturation x [0, 2], contrast x [0.5, 1.5]."""
  uniform = jax.random.uniform(rng, (3, x.shape[0], 1, 1, 1))
  x = x + (uniform[0] - 0.5)
  grey = x.mean(-1, keepdims=True)
  x = (x - grey) * (2 * uniform[1]) + grey
  mean = x.mean((1, 2, 3), keepdims=True)
  return (x - mean) * (uniform[2] + 0.5) + mean


def _translate(rng, x, ratio=0.125):
  """Moves by up to 1/8 of the side, along both axes."""
  n, height, width, _ = x.shape
  reach = int(round(height * ratio))
  shift = jax.random.randint(rng, (2, n), -reach, reach + 1)
  rows = jnp.arange(height)[None] + shift[0][:, None]  # [N, H]
  columns = jnp.arange(width)[None] + shift[1][:, None]
  inside = ((rows >= 0) & (rows < height))[:, :, None] & (
    (columns >= 0) & (columns < width)
  )[:, None, :]
  x = jnp.take_along_axis(
    x, jnp.clip(rows, 0, height - 1)[:, :, None, None], axis=1
  )
  x = jnp.take_along_axis(
    x, jnp.clip(columns, 0, width - 1)[:, None, :, None], axis=2
  )
  return x * inside[..., None]


def _cutout(rng, x, ratio=0.5):
  """Blanks a square of half the side, centred anywhere."""
  n, height, width, _ = x.shape
  half = ratio * height / 2
  centre = jax.random.uniform(rng, (2, n)) * height
  rows = jnp.abs(jnp.arange(height)[None] + 0.5 - centre[0][:, None]) < half
  columns = jnp.abs(jnp.arange(width)[None] + 0.5 - centre[1][:, None]) < half
  return x * ~(rows[:, :, None, None] & columns[:, None, :, None])
