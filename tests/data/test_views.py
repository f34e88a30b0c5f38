import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.data import views
from jaxseg.errors import UserError

OFF = dict(
  brightness=0.0,
  contrast=0.0,
  saturation=0.0,
  hue=0.0,
  jitter_probability=1.0,
  grey_probability=0.0,
  blur_probability=0.0,
)


@pytest.fixture
def image():
  """Coloured squares, float32 [32, 32, 3] in [-1, 1]."""
  colours = np.random.default_rng(0).uniform(-0.9, 0.9, (8, 8, 3))
  return np.kron(colours, np.ones((4, 4, 1))).astype(np.float32)


@pytest.fixture
def only(config):
  """Returns a function that gives config.data.strong with nothing but this."""

  def set_(**values):
    for name, value in (OFF | values).items():
      config.data.strong[name] = value
    return config.data.strong

  return set_


def rng(seed=0):
  return np.random.default_rng(seed)


def unit(image):
  return image / 2 + 0.5


def test_nothing_on_changes_nothing(image, only):
  seen = views.strong(image, rng(), only())
  np.testing.assert_allclose(seen, image, atol=1e-6)


def test_brightness_is_a_factor(image, only):
  ratios = []
  for seed in range(30):
    seen = views.strong(image, rng(seed), only(brightness=0.5))
    inside = (seen < 0.999).all(-1)
    ratio = unit(seen)[inside] / unit(image)[inside]
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    ratios.append(ratio.mean())
  assert 0.5 <= min(ratios) < 0.65 and 1.35 < max(ratios) <= 1.5


def test_contrast_is_about_the_mean_luma(image, only):
  image *= np.float32(0.5)  # nothing is clipped
  luma = (unit(image) @ [0.299, 0.587, 0.114]).mean()
  seen = views.strong(image, rng(1), only(contrast=0.5))
  ratio = (unit(seen) - luma) / (unit(image) - luma)
  np.testing.assert_allclose(ratio, np.median(ratio), rtol=1e-2)
  assert abs(np.median(ratio) - 1) > 0.01


def test_saturation_keeps_luma(image, only):
  image *= np.float32(0.5)
  weights = np.array([0.299, 0.587, 0.114])
  seen = views.strong(image, rng(1), only(saturation=0.5))
  np.testing.assert_allclose(seen @ weights, image @ weights, atol=1e-4)
  spread = np.ptp(seen, axis=-1) / np.ptp(image, axis=-1)
  np.testing.assert_allclose(spread, spread.mean(), rtol=1e-3)
  assert abs(spread.mean() - 1) > 0.01


def test_hue_turns_and_keeps_the_rest(image, only):
  seen = views.strong(image, rng(1), only(hue=0.25))
  turns = []
  for a, b in zip(
    unit(image)[::4, ::4].reshape(-1, 3),
    unit(seen)[::4, ::4].reshape(-1, 3),
    strict=True,
  ):
    (h1, s1, v1), (h2, s2, v2) = (
      colorsys.rgb_to_hsv(*a),
      colorsys.rgb_to_hsv(*b),
    )
    np.testing.assert_allclose((s1, v1), (s2, v2), atol=1e-3)
    turns.append((h2 - h1 + 0.5) % 1 - 0.5)
  np.testing.assert_allclose(turns, turns[0], atol=1e-3)
  assert 0.01 < abs(turns[0]) <= 0.25


def test_order_is_random(only):
  """Brightness and contrast differ by order where one of them clips."""
  c = only(brightness=0.9, contrast=0.9)
  x = np.linspace(0.5, 1, 16).reshape(4, 4, 1).astype(np.float32)
  firsts = []
  for seed in range(30):
    u = rng(seed).uniform(size=12)
    bright = lambda x, f=0.1 + 1.8 * u[5]: np.clip(f * x, 0, 1)
    contrast = lambda x, f=0.1 + 1.8 * u[6]: np.clip(
      x.mean() + f * (x - x.mean()), 0, 1
    )
    bright_first, contrast_first = contrast(bright(x)), bright(contrast(x))
    seen = unit(views.strong(2 * x - 1, rng(seed), c))
    if np.abs(bright_first - contrast_first).max() > 0.01:
      firsts.append(np.abs(seen - bright_first).max() < 1e-3)
      assert firsts[-1] or np.abs(seen - contrast_first).max() < 1e-3
  assert len(firsts) > 8 and 0.2 < np.mean(firsts) < 0.8


def test_grey_and_blur(image, only):
  seen = views.strong(image, rng(), only(grey_probability=1.0))
  np.testing.assert_allclose(np.ptp(seen, axis=-1), 0, atol=1e-6)
  np.testing.assert_allclose(
    seen[..., 0], image @ [0.299, 0.587, 0.114], atol=1e-4
  )
  stds = []
  for seed in range(20):
    dot = -np.ones((41, 41, 1), np.float32)
    dot[20, 20] = 1
    c = only(blur_probability=1.0)
    spread = unit(views.strong(dot, rng(seed), c))[..., 0]
    np.testing.assert_allclose(spread.sum(), 1, atol=1e-4)
    y = np.arange(41) - 20
    stds.append(np.sqrt((spread.sum(1) * y**2).sum()))
  assert 0 <= min(stds) < 0.5 and 1.5 < max(stds) < 2.05


def test_probabilities(image, config):
  """At UniMatch's numbers."""
  c = config.data.strong
  seen = [views.strong(image, rng(seed), c) for seed in range(200)]
  grey = np.mean([np.ptp(s, axis=-1).max() < 1e-5 for s in seen])
  assert 0.12 < grey < 0.3
  same = np.mean([np.allclose(s, image, atol=1e-5) for s in seen])
  assert 0.02 < same < 0.16  # .2 unjittered x .8 coloured x .5 sharp


def test_grey_images(config):
  image = rng().uniform(-1, 1, (16, 16, 1)).astype(np.float32)
  for seed in range(10):
    seen = views.strong(image, rng(seed), config.data.strong)
    assert seen.shape == image.shape


def test_typed_pure_and_a_fixed_count_of_draws(image, config):
  before = image.copy()
  states = set()
  for probability in (0.0, 1.0):
    for name in ('jitter', 'grey', 'blur'):
      config.data.strong[f'{name}_probability'] = probability
    generator = rng(7)
    seen = views.strong(image, generator, config.data.strong)
    states.add(str(generator.bit_generator.state))
    assert seen.dtype == np.float32 and seen.shape == image.shape
    assert -1 <= seen.min() and seen.max() <= 1
    again = views.strong(image, rng(7), config.data.strong)
    np.testing.assert_array_equal(seen, again)
    assert seen is not image
  assert len(states) == 1
  np.testing.assert_array_equal(image, before)


def test_cutmix_box(config):
  c = config.data.strong
  c.cutmix_probability = 1.0
  areas, tops, aspects = [], [], []
  for seed in range(400):
    mask = views.cutmix_box(rng(seed), (64, 64), c)
    assert mask.dtype == np.float32 and mask.shape == (64, 64)
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    h, w = len(rows), len(columns)
    assert mask.sum() == h * w == np.count_nonzero(mask)  # a full box
    areas.append(h * w / 64**2)
    aspects.append(h / w)
    tops.append(rows[0] / max(1, 64 - h))
  # Sides are cut to whole pixels.
  assert 0.01 < min(areas) < 0.05 and 0.36 < max(areas) <= 0.4
  np.testing.assert_allclose(np.mean(areas), 0.2, atol=0.02)
  assert 0.25 < min(aspects) < 0.5 and 2 < max(aspects) < 4
  np.testing.assert_allclose(np.mean(tops), 0.5, atol=0.05)


def test_cutmix_box_is_drawn_as_often_as_asked(config):
  c = config.data.strong
  boxes = [
    views.cutmix_box(rng(seed), (32, 32), c).any() for seed in range(200)
  ]
  assert 0.4 < np.mean(boxes) < 0.6
  ends = set()
  for probability in (0.0, 1.0):
    c.cutmix_probability = probability
    generator = rng(3)
    assert views.cutmix_box(generator, (32, 32), c).any() == bool(probability)
    ends.add(str(generator.bit_generator.state))
  assert len(ends) == 1


def test_cutmix_box_as_drawing_until_it_fits(config):
  """The distribution of UniMatch's loop, of the heights."""
  c = config.data.strong
  c.cutmix_probability, c.cutmix_area = 1.0, (0.3, 0.4)
  ours = [
    views.cutmix_box(rng(s), (64, 64), c).any(1).sum() for s in range(1500)
  ]
  loop, generator = [], rng(0)
  while len(loop) < 1500:
    area = generator.uniform(0.3, 0.4) * 64**2
    while True:
      ratio = generator.uniform(0.3, 1 / 0.3)
      w, h = int(np.sqrt(area / ratio)), int(np.sqrt(area * ratio))
      x, y = generator.integers(0, 64, 2)
      if x + w <= 64 and y + h <= 64:
        break
    loop.append(h)
  np.testing.assert_allclose(np.mean(ours), np.mean(loop), atol=1)
  quantiles = np.linspace(0.1, 0.9, 9)
  np.testing.assert_allclose(
    np.quantile(ours, quantiles), np.quantile(loop, quantiles), atol=2.1
  )


def test_boxes_of_a_rectangle_are_those_of_a_square_stretched(config):
  c = config.data.strong
  c.cutmix_probability = 1.0
  for seed in range(50):
    square, wide = (
      views.cutmix_box(rng(seed), size, c) for size in ((64, 64), (64, 256))
    )
    assert wide.shape == (64, 256)
    rows, columns = (
      [np.ptp(np.flatnonzero(m.any(axis))) + 1 for m in (square, wide)]
      for axis in (1, 0)
    )
    # Another box may have its turn where sides are cut to whole pixels.
    np.testing.assert_allclose(rows[1], rows[0], rtol=0.05, atol=1)
    np.testing.assert_allclose(columns[1], 4 * columns[0], rtol=0.05, atol=4)


@pytest.mark.parametrize('shape', [(32, 32), (32, 128), (200, 100)])
@pytest.mark.parametrize('area', [(0.99, 0.99), (0.0005, 0.0005)])
def test_extreme_boxes(config, area, shape):
  c = config.data.strong
  c.cutmix_probability, c.cutmix_area = 1.0, area
  for seed in range(20):
    mask = views.cutmix_box(rng(seed), shape, c)
    assert mask.shape == shape and set(np.unique(mask)) <= {0, 1}
    assert mask.mean() <= area[0]
    if area[0] > 0.5:
      assert mask.mean() > 0.9


@pytest.mark.parametrize('jitted', [False, True])
def test_cutmix_mixes_with_the_next_image(jitted):
  images = jnp.arange(3.0).reshape(3, 1, 1, 1) * jnp.ones((3, 4, 4, 2))
  masks = jnp.zeros((3, 4, 4)).at[:2, 1:3, 1:].set(1)
  mix = jax.jit(views.cutmix) if jitted else views.cutmix
  mixed = mix(images, masks)
  assert mixed.shape == images.shape and mixed.dtype == images.dtype
  np.testing.assert_array_equal(mixed[0, 1:3, 1:], 2)
  np.testing.assert_array_equal(mixed[1, 1:3, 1:], 0)
  np.testing.assert_array_equal(mixed[0, 0], 0)
  np.testing.assert_array_equal(mixed[2], 2)
  labels = images[..., 0].astype(jnp.int32)
  mixed_labels = mix(labels, masks)
  assert mixed_labels.dtype == jnp.int32
  np.testing.assert_array_equal(mixed_labels, mixed[..., 0])
  other = mix(images, masks, images + 10)
  np.testing.assert_array_equal(other[1, 1:3, 1:], 11)


@pytest.mark.parametrize(
  'field, value, said',
  [
    ('grey_probability', 1.5, 'from 0 to 1'),
    ('hue', 0.7, 'from 0 to 0.5'),
    ('blur', 0.0, 'blur_probability to 0'),
    ('cutmix_area', (0.4, 0.02), 'smallest, largest'),
    ('cutmix_area', (0.0, 0.5), 'above 0'),
    ('cutmix_area', (0.02, 1.0), 'below 1'),
  ],
)
def test_mistakes_are_named(config, field, value, said):
  views.check(config.data.strong)
  config.data.strong[field] = value
  with pytest.raises(UserError, match=said) as error:
    views.check(config.data.strong)
  assert f'config.data.strong.{field} is' in str(error.value)
