"""Flaw maps of guided collaborative training, and the losses made of them.

Source: Ke et al., Guided Collaborative Training for Pixel-wise Semi-Supervised
Learning (ECCV 2020), section 3: the ground truth C of the flaw detector, the
flaw correction constraint L_fc and the dynamic consistency constraint L_dc;
constants of section 4. Mean squares are over pixels (and classes) of the whole
batch. Maps are square images of side S.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import ndimage

from jaxseg.losses import segmentation


def gaussian_kernel(size: int) -> np.ndarray:
  """One axis of the blur.

  Its standard deviation is 0.3 ((size - 1) / 2 - 1) + 0.8 pixels; what falls
  outside the kernel is reflected into it.

  Args:
    size: number of taps, odd.

  Returns:
    float64 [size], sums to 1.
  """
  impulse = np.zeros(size)
  impulse[size // 2] = 1
  return ndimage.gaussian_filter1d(impulse, 0.3 * ((size - 1) / 2 - 1) + 0.8)


def blur(x: jax.Array, size: int) -> jax.Array:
  """Gaussian blur; images are reflected about the centres of border pixels.

  Args:
    x: float32 [N, H, W].
    size: of the kernel; an even one is made odd by one more.

  Returns:
    float32 [N, H, W].
  """
  rows, columns = (_blur_matrix(side, size | 1) for side in x.shape[1:])
  highest = lax.Precision.HIGHEST
  x = jnp.einsum('ij,njw->niw', rows, x, precision=highest)
  return jnp.einsum('ij,nhj->nhi', columns, x, precision=highest)


@functools.lru_cache(maxsize=16)
def _blur_matrix(side, size):
  """The blur of one axis, border included, as a matrix [side, side]."""
  reach = size // 2
  padded = np.pad(np.eye(side), ((reach, reach), (0, 0)), mode='reflect')
  taps = gaussian_kernel(size)
  return sum(
    tap * padded[i : i + side] for i, tap in enumerate(taps)
  ).astype(np.float32)  # fmt: skip


def target(
  probabilities: jax.Array,
  label: jax.Array,
  *,
  mu: float = 0.5,
  nu: int = 1,
  void_as_flaw: bool = False,
) -> jax.Array:
  """C(prediction, label): where, and how badly, a prediction is wrong.

  mu times the absolute difference to the one-hot label, summed over classes, is
  blurred (S / 8); then nu times dilated (3x3) and blurred (S / 4); and brought
  to [0, 1] in each image.

  Args:
    probabilities: float32 [N, S, S, K].
    label: int32 [N, S, S], 255 = void.
    mu: a pixel that is entirely wrong differs by 2 mu.
    nu: how often flaws are widened.
    void_as_flaw: void pixels differ by mu, as from a one-hot label that is all
      zero; otherwise they show no flaw.

  Returns:
    float32 [N, S, S] in [0, 1], 1 at the worst pixel of each image; without
    gradient.
  """
  probabilities = lax.stop_gradient(probabilities)
  truth = segmentation.one_hot(label, probabilities.shape[-1])
  flaw = mu * jnp.abs(truth - probabilities).sum(-1)
  if not void_as_flaw:
    flaw = flaw * segmentation.valid_pixels(label)
  side = flaw.shape[1]
  flaw = blur(flaw, side // 8)
  for _ in range(nu):
    wider = nn.max_pool(flaw[..., None], (3, 3), padding='SAME')[..., 0]
    flaw = blur(wider, side // 4)
  low, scale = _range(flaw)
  return (flaw - low) / scale


def handle(
  flaw: jax.Array, *, smallest: float = 0.1, shift_none: bool = False
) -> jax.Array:
  """Makes the flaw maps of one detector comparable between predictions.

  Negative values become 0, the map is blurred (S / 16) and brought to [0, 1] in
  each image; where no flaw is above `smallest`, there is none.

  Args:
    flaw: float32 [N, S, S], what the detector says.
    smallest: flaws of an image that nowhere exceed it do not count.
    shift_none: maps without flaw are below zero, by their own minimum over
      their range: the published implementation subtracts it from them too.

  Returns:
    float32 [N, S, S] in [0, 1] (unless `shift_none`); without gradient.
  """
  flaw = blur(lax.stop_gradient(jnp.maximum(flaw, 0)), flaw.shape[1] // 16)
  low, scale = _range(flaw)
  flawed = flaw.max((1, 2), keepdims=True) > smallest
  if not shift_none:
    low = jnp.where(flawed, low, 0)
  return (jnp.where(flawed, flaw, 0) - low) / scale


def _range(x):
  """(Minimum, range; 1 where all but equal) of each map, [N, 1, 1] each."""
  low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
  # Rounding alone must not be stretched to [0, 1].
  flat = high - low <= 1e-5 * jnp.abs(high)
  return low, jnp.where(flat, 1, high - low)


def consistency_targets(
  probabilities: tuple[jax.Array, jax.Array],
  handled: tuple[jax.Array, jax.Array],
  xi: float = 0.6,
) -> tuple[jax.Array, jax.Array]:
  """What each of two models learns from the other: where that has less flaw.

  Args:
    probabilities: float32 [N, S, S, K] of the models.
    handled: their flaw maps [N, S, S] out of `handle`.
    xi: flaws above it are all alike, so that nobody learns from them.

  Returns:
    targets [N, S, S, K] of both, without gradient: the other's probabilities
    where its flaw is smaller, else its own.
  """
  first, second = jax.tree.map(lax.stop_gradient, probabilities)
  flaw, other = (jnp.where(map_ > xi, 1, map_)[..., None] for map_ in handled)
  return (
    jnp.where(other >= flaw, first, second),
    jnp.where(flaw >= other, second, first),
  )


def consistency_loss(probabilities: jax.Array, target: jax.Array) -> jax.Array:
  """L_dc of one model: mean square of the difference, over all classes.

  Args:
    probabilities: float32 [N, S, S, K].
    target: [N, S, S, K] out of `consistency_targets`.
  """
  return jnp.square(probabilities - target).mean()


def both_flawed(
  handled: tuple[jax.Array, jax.Array], xi: float = 0.6
) -> jax.Array:
  """float32 [N, S, S]: 1 where both handled maps exceed xi, else 0."""
  first, second = handled
  return ((first > xi) & (second > xi)).astype(jnp.float32)


def correction_loss(flaw: jax.Array, where: jax.Array) -> jax.Array:
  """L_fc of one model: mean over all pixels of the squared flaw `where` set.

  Args:
    flaw: float32 [N, S, S], what the detector says of the model's prediction.
    where: [N, S, S] of 0 and 1, out of `both_flawed`.
  """
  return (where * jnp.square(flaw)).mean()


def detection_loss(
  flaw: jax.Array, target: jax.Array, counted: jax.Array
) -> jax.Array:
  """L_fd: mean square of the flaw detector's error over the counted pixels.

  Args:
    flaw: float32 [N, S, S], what the detector says.
    target: [N, S, S] out of `target`.
    counted: [N, S, S] of 0 and 1, e.g. the pixels that carry a label.

  Returns:
    scalar; 0 when no pixel counts.
  """
  total = (counted * jnp.square(flaw - target)).sum()
  return total / jnp.maximum(counted.sum(), 1)
