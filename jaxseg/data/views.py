"""Strong views of unlabelled images, for methods that ask for consistency.

Colour alone: the prediction on the image itself, pixel by pixel, is then the
target of each of its strong views. Kinds and numbers as in UniMatch (Yang et
al. 2023).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.data import transforms
from jaxseg.errors import UserError

SMALLEST_BLUR = 0.1  # std in pixels
CUTMIX_ASPECT = (0.3, 1 / 0.3)  # height by width
_PROBABILITIES = (
  'jitter_probability',
  'grey_probability',
  'blur_probability',
  'cutmix_probability',
)


def check(strong_config: Any) -> None:
  """Refuses values without meaning in `config.data.strong`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  c, where = strong_config, 'config.data.strong'
  largest = {'hue': 0.5} | dict.fromkeys(_PROBABILITIES, 1)
  for name, bound in largest.items():
    if not 0 <= c[name] <= bound:
      raise UserError(
        f'{where}.{name} is {c[name]}, must be from 0 to {bound}.'
      )
  if c.blur_probability and c.blur < SMALLEST_BLUR:
    raise UserError(
      f'{where}.blur is {c.blur}, must be at least {SMALLEST_BLUR} pixels; set '
      f'{where}.blur_probability to 0 for views without blur.'
    )
  area = tuple(c.cutmix_area)
  if len(area) != 2 or not 0 < area[0] <= area[1] < 1:
    raise UserError(
      f'{where}.cutmix_area is {area}, must be (smallest, largest) part of the '
      'image, above 0 and below 1, such as (0.02, 0.4).'
    )


def strong(
  image: np.ndarray, rng: np.random.Generator, strong_config: Any
) -> np.ndarray:
  """Changes colour, drops it, blurs; each with its probability.

  The jitter is torchvision's `ColorJitter`: factors for brightness, contrast
  and saturation from [max(0, 1-s), 1+s], a hue from [-s, s] of a turn, in
  random order, of values in [0, 1]. On grey images saturation, hue and grey
  do nothing.

  Args:
    image: float32 [H, W, C] in [-1, 1], C = 1 or 3.
    rng: source of randomness; always 12 numbers are drawn.
    strong_config: `config.data.strong`.

  Returns:
    float32 [H, W, C] in [-1, 1], a new array.
  """
  c = strong_config
  u = rng.uniform(size=12)
  image = np.clip(image / 2 + np.float32(0.5), 0, 1)
  if u[0] < c.jitter_probability:
    image = _jitter(image, order=np.argsort(u[1:5]), u=u[5:9], c=c)
  if u[9] < c.grey_probability and image.shape[-1] == 3:
    image = np.repeat(transforms.luma(image), 3, axis=-1)
  if u[10] < c.blur_probability:
    sigma = SMALLEST_BLUR + u[11] * (c.blur - SMALLEST_BLUR)
    image = transforms.blur(image, sigma)
  return np.clip(2 * image - np.float32(1), -1, 1)


def cutmix_box(
  rng: np.random.Generator, size: tuple[int, int], strong_config: Any
) -> np.ndarray:
  """Draws the box of another image that a view is to show.

  Area and aspect are drawn evenly, then the place evenly among those where
  the box lies inside; aspects are as likely as they have such places, which
  is what UniMatch's drawing until it fits comes to. Aspects are those of boxes
  in a square, which is then stretched to the image.

  Args:
    rng: source of randomness; always 5 numbers are drawn.
    size: (H, W).
    strong_config: `config.data.strong`; `cutmix_area` is the part of the
      image.

  Returns:
    float32 [H, W], 1 inside the box and 0 outside; with probability
    1 - `cutmix_probability` all 0.
  """
  c = strong_config
  u = rng.uniform(size=5)
  mask, (height, width) = np.zeros(size, np.float32), size
  if u[0] >= c.cutmix_probability:
    return mask
  low, high = c.cutmix_area
  area = (low + u[1] * (high - low)) * (height * width)
  aspects = np.linspace(*CUTMIX_ASPECT, 256) * (height / width)
  heights = np.sqrt(area * aspects).astype(int)
  widths = np.sqrt(area / aspects).astype(int)
  rows = np.maximum(height + 1 - heights, 0)  # places for the upper edge
  columns = np.maximum(width + 1 - widths, 0)
  places = np.cumsum(rows * columns)
  i = np.searchsorted(places, u[2] * places[-1], side='right')
  top, left = int(u[3] * rows[i]), int(u[4] * columns[i])
  mask[top : top + heights[i], left : left + widths[i]] = 1
  return mask


def cutmix(
  arrays: jax.Array, masks: jax.Array, partners: jax.Array | None = None
) -> jax.Array:
  """Shows the boxes of `partners` in `arrays` (CutMix, Yun et al. 2019).

  Called with the same masks for images, labels, probabilities and confidences
  it keeps them aligned.

  Args:
    arrays: [N, H, W, ...], any dtype.
    masks: [N, H, W] of 0 and 1, see `cutmix_box`.
    partners: as `arrays`; None: `arrays` rolled by one along N.

  Returns:
    as `arrays`: `partners` where the mask is 1.
  """
  if partners is None:
    partners = jnp.roll(arrays, 1, axis=0)
  masks = masks.reshape(*masks.shape, *(1,) * (arrays.ndim - masks.ndim))
  return jnp.where(masks > 0, partners, arrays)


def _jitter(image, order, u, c):
  """`ColorJitter` with the numbers `u`, of float32 in [0, 1]."""
  colour = image.shape[-1] == 3
  for i in order:
    if i == 0:
      image = image * _factor(c.brightness, u[0])
    elif i == 1:
      grey = transforms.luma(image) if colour else image
      image = _blend(image, grey.mean(), _factor(c.contrast, u[1]))
    elif i == 2 and colour:
      factor = _factor(c.saturation, u[2])
      image = _blend(image, transforms.luma(image), factor)
    elif i == 3 and colour and c.hue:
      image = transforms.shift_hue(image, c.hue * (2 * u[3] - 1))
    image = np.clip(image, 0, 1)
  return image


def _factor(strength, u):
  low = max(0, 1 - strength)
  return np.float32(low + u * (1 + strength - low))


def _blend(image, towards, factor):
  return towards + (image - towards) * factor
