"""Learning is real: a tiny joint generator on handwritten digits.

The digits of scikit-learn at 16x16, label = ink, 40 labelled pairs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from jaxseg.methods import inversion, perceptual, semantic_gan
from jaxseg.nets import discriminators, stylegan2

SIZE, BATCH = 16, 16
GAN = dict(
  w_dim=16, mapping_depth=2, channel_max=16, d_m_width=8, d_m_scales=1,
  stddev_group=16,
)  # fmt: skip


@pytest.fixture(scope='module')
def data():
  images = load_digits().images / 8 - 1  # [N, 8, 8] in [-1, 1]
  images = ndimage.zoom(images, (1, 2, 2), order=1, grid_mode=True,
                        mode='nearest')[..., None]  # fmt: skip
  images = images.astype(np.float32)
  return images, (images[..., 0] > 0).astype(np.int32)


@pytest.fixture(scope='module')
def method():
  return semantic_gan.make(
    num_classes=2, resolution=SIZE, channels=1, label_output='softmax',
    lr_g=0.005, lr_d=0.005, r1_gamma=5.0, r1_gamma_m=1.0, path_every=0,
    feature_matching=0.5, ema_half_life=1000.0, truncation=1.0, **GAN,
  )  # fmt: skip


@pytest.fixture(scope='module')
def states(method, data):
  """Before and after 700 steps."""
  images, labels = data
  before = state = jax.jit(method.init)(jax.random.key(0))
  step = jax.jit(method.train_step)
  rng = np.random.default_rng(0)
  for _ in range(700):
    i, j = rng.integers(0, 40, BATCH), rng.integers(0, len(images), BATCH)
    batch = {'image': images[i], 'label': labels[i], 'unlabelled': images[j]}
    state, metrics = step(state, batch)
  return before, state, metrics


@pytest.fixture(scope='module')
def samples(method, states):
  sample = jax.jit(method.sample, static_argnums=2)
  return [
    jax.tree.map(np.asarray, sample(state, jax.random.key(3), 64))
    for state in states[:2]
  ]


def ink_iou(sample):
  """IoU of the generated label with the ink of the generated image."""
  image, probabilities = sample
  label, ink = probabilities.argmax(-1) == 1, image[..., 0] > 0
  return (label & ink).sum() / max(1, (label | ink).sum())


def test_labels_come_to_agree_with_their_images(samples):
  untrained, trained = (ink_iou(s) for s in samples)
  assert trained > 0.6 and trained > untrained + 0.2


def test_images_come_to_look_like_the_data(samples, data):
  real = data[0].mean(), data[0].std()
  distance = lambda s: abs(s[0].mean() - real[0]) + abs(s[0].std() - real[1])
  assert distance(samples[1]) < 0.3 * distance(samples[0])
  assert samples[1][0].std(0).mean() > 0.1, 'all samples are alike'


def test_d_m_sees_whether_a_label_is_that_of_the_image(states, samples, data):
  """Of pairs that it was not trained on; the next image's label is worse."""
  _, state, _ = states
  d_m = semantic_gan.networks(2, SIZE, 1, **GAN).d_m
  variables = {
    'params': state.params['d_m'],
    'spectral': state.extra['spectral'],
  }

  def score(image, label_map):
    outputs = d_m.apply(variables, image, label_map)
    return float(np.mean(discriminators.scores(outputs)[0]))

  real = data[0][-64:], np.eye(2, dtype=np.float32)[data[1][-64:]]
  for image, probabilities in (real, samples[1]):
    maps = 2 * probabilities - 1
    assert score(image, maps) > score(image, np.roll(maps, 1, axis=0)) + 0.1


def test_inversion_recovers_the_labels_of_generated_images(states):
  """Images whose code is known, found again from the mean code."""
  state = states[1]
  nets = semantic_gan.networks(2, SIZE, 1, **GAN)
  metric = perceptual.make('discriminator', nets.d_r)
  params, d_r = state.ema['g'], state.params['d_r']
  noise = semantic_gan.fixed_noise(SIZE)
  synthesize = lambda w, z: nets.g.apply(
    {'params': params}, w, z, method='synthesize'
  )
  w = nets.g.apply(
    {'params': params}, jax.random.normal(jax.random.key(9), (8, 16)),
    method='mapping',
  )  # fmt: skip
  target, logits = synthesize(stylegan2.broadcast_w(w, SIZE), noise)
  start = jnp.broadcast_to(
    semantic_gan.mean_w(nets.g, params), (8, stylegan2.num_latents(SIZE), 16)
  )
  model = inversion.Model(
    synthesize, lambda x: start,
    lambda x: metric.features(d_r, x), lambda a, b: metric.distance(d_r, a, b),
  )  # fmt: skip
  found = jax.jit(
    lambda: inversion.invert(
      model,
      target,
      start,
      noise,
      steps=600,
      lambda_l2=1.0,
      lambda_encoder=0.0,
      schedule=inversion.ramp_schedule(0.05, 600),
    )
  )()
  _, found_logits = synthesize(found.w_plus, noise)
  truth = np.asarray(logits.argmax(-1))
  answer = np.asarray(found_logits.argmax(-1))
  ious = [
    ((answer == k) & (truth == k)).sum() / ((answer == k) | (truth == k)).sum()
    for k in range(2)
  ]
  assert np.mean(ious) > 0.9
  assert (found.loss < 0.2 * found.trace[0]).all()
