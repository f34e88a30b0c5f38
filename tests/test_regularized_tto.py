"""Test-time optimisation whose labels follow the edges of the given image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_weights
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import config
from jaxseg.errors import UserError
from jaxseg.losses import regularized
from jaxseg.losses.regularized import Regularizer
from jaxseg.methods import (
  inversion,
  label_branch,
  semantic_gan,
  semantic_gan_encoder,
)  # fmt: skip

SIDE, TOY_SIZE = toy_weights.SIZE, 8
CRF = Regularizer(crf=1.0, sigma_xy=0.2, filter='exact')
STRONG = CRF._replace(crf=3.0)


def energy(probabilities, images, settings=CRF):
  logits = jnp.log(jnp.maximum(probabilities, 1e-12))
  return regularized.per_image(logits, images, settings)[1]['crf']


def toy_model():
  """A code is an image and the logits of its label, one after the other."""

  def synthesize(w_plus, noise):
    shape = (-1, TOY_SIZE, TOY_SIZE, 1)
    image, label = w_plus[:, 0].reshape(shape), w_plus[:, 1].reshape(shape)
    return image + noise[0], jnp.concatenate([label, -label], -1)

  return inversion.Model(
    synthesize,
    lambda images: jnp.zeros((len(images), 2, TOY_SIZE**2)),
    lambda images: [images],
    lambda a, b: jnp.square(a[0] - b[0]).mean((1, 2, 3)),
  )


@functools.cache
def problem():
  """Halves, dark and bright; labels that are mostly right."""
  rng = np.random.default_rng(0)
  target = np.full((3, TOY_SIZE, TOY_SIZE, 1), -0.6, np.float32)
  target[0, 4:] = target[1, :, 3:] = target[2, 2:6, 2:6] = 0.6
  label = np.sign(target) + rng.normal(0, 2, target.shape)
  codes = np.stack([0 * target, label], 1).reshape(3, 2, TOY_SIZE**2)
  return target, codes.astype(np.float32)


@functools.partial(jax.jit, static_argnums=2)
def invert(target, codes, settings):
  return inversion.invert(
    toy_model(), target, codes, [jnp.zeros((1, TOY_SIZE, TOY_SIZE, 1))],
    steps=60, schedule=lambda i: 0.1, lambda_encoder=0.0,
    label_loss=inversion.follow_edges(target, settings, temperature=2.0),
  )  # fmt: skip


def rendered(codes):
  return toy_model().synthesize(codes, [0.0])


def test_the_loss_has_the_term():
  target, codes = problem()
  found = [invert(target, codes, s).trace[0] for s in (CRF, Regularizer())]
  wanted = energy(jax.nn.softmax(rendered(codes)[1] / 2), target)
  assert_allclose(found[0] - found[1], wanted, rtol=1e-5)
  assert inversion.follow_edges(target, Regularizer()) is None


def test_without_room_in_the_lattice_labels_have_no_say():
  target, codes = problem()
  # A plain image needs few vertices, noise many.
  noise = np.random.default_rng(0).uniform(-1, 1, target[:1].shape)
  images = np.concatenate([0 * target[:1], noise.astype(np.float32)])
  logits = rendered(codes[:2])[1]
  narrow = CRF._replace(filter='lattice', sigma_xy=0.5, max_vertices=60)

  @jax.jit
  def losses(logits):
    loss = inversion.follow_edges(images, narrow)
    (_, found), grads = jax.value_and_grad(
      lambda x: (loss(x).sum(), loss(x)), has_aux=True
    )(logits)
    _, terms = regularized.per_image(logits, images, narrow)
    return found, grads, terms['lattice_overflow']

  found, grads, flags = losses(logits)
  assert_array_equal(flags, [0, 1])
  assert found[0] > 0.01 and found[1] == 0
  assert jnp.abs(grads[0]).max() > 0 and not grads[1].any()


def test_labels_become_those_of_their_own_image():
  target, codes = problem()
  found = invert(target, codes, CRF).w_plus
  without = invert(target, codes, Regularizer()).w_plus
  assert_array_equal(without[:, 1], codes[:, 1])

  def right(codes):
    return ((rendered(codes)[1][..., 0] > 0) == (target[..., 0] > 0)).mean()

  assert right(without) < 0.8
  assert right(found) > 0.95
  # The image is as it would be.
  assert_allclose(found[:, 0], without[:, 0], atol=0.02)


def test_each_image_is_on_its_own():
  target, codes = problem()
  together = invert(target, codes, CRF)
  for i in (0, 2):
    alone = invert(target[i : i + 1], codes[i : i + 1], CRF)
    assert_allclose(together.w_plus[i], alone.w_plus[0], atol=1e-5)
    assert_allclose(together.trace[:, i], alone.trace[:, 0], atol=1e-6)


def drawn(method, previous=None):
  """A state of random numbers, which takes no compilation."""
  shapes = jax.eval_shape(method.init, jax.random.key(0), previous)
  rng = np.random.default_rng(0)
  state = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype),
    shapes.replace(rng=None),
  )
  return state.replace(rng=jax.random.key(0))


def refined(method, state, monkeypatch):
  """(label loss at the start, probabilities there), as `refine` has them."""
  images = np.random.default_rng(1).uniform(-1, 1, (2, SIDE, SIDE, 1))
  images, seen = images.astype(np.float32), []

  def stay(model, target, w_plus, noise, *, label_loss, **_):
    seen.append(label_loss(model.synthesize(w_plus, noise)[1]))
    nothing = jnp.zeros(())
    return inversion.Inversion(
      w_plus, noise, nothing, nothing, nothing, (w_plus, noise)
    )

  @jax.jit
  def run(state, images):
    return (method.refine or method.predict)(state, images), seen.pop()

  monkeypatch.setattr(inversion, 'invert', stay)
  prediction, found = run(state, images)
  assert (found > 0.01).all()
  return found, prediction.probabilities, images


@pytest.mark.parametrize('head', ['skips', 'pixels'])
def test_a_head_on_a_frozen_generator(head, monkeypatch):
  method = label_branch.make(
    num_classes=3, resolution=SIDE, channels=1, card=toy_weights.card('g'),
    folder='', max_images=8, head=head, members=2, head_widths=(8, 8),
    perceptual_kind='discriminator', refine_regularizer=STRONG,
  )  # fmt: skip
  state = drawn(method)
  found, probabilities, images = refined(method, state, monkeypatch)
  assert_allclose(found, 3 * energy(probabilities, images), rtol=1e-4)


def test_the_encoder_stage(monkeypatch):
  tiny = dict(
    w_dim=8, mapping_depth=2, channel_max=8, d_m_width=8, d_m_scales=1
  )
  common = dict(num_classes=3, resolution=SIDE, channels=1)
  gan = semantic_gan.make(**common, **tiny)
  previous = jax.eval_shape(gan.init, jax.random.key(0), None)
  method = semantic_gan_encoder.make(
    **common, gan=tiny, width=8, depths=(1, 1, 1, 1), features=8,
    perceptual_kind='discriminator', refine_regularizer=STRONG,
  )  # fmt: skip
  state = drawn(method, previous)
  found, probabilities, images = refined(method, state, monkeypatch)
  assert_allclose(found, 3 * energy(probabilities, images), rtol=1e-4)


@pytest.mark.parametrize('name', ['semantic_gan_encoder', 'label_branch'])
@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (dict(ramp_up=0.5), 'refine_regularizer.ramp_up is 0.5, but weights'),
    (dict(shrink=5), 'refine_regularizer.shrink is 5, must divide the 64'),
  ],
)
def test_mistakes_are_told(name, settings, message):
  method = {
    'semantic_gan_encoder': semantic_gan_encoder, 'label_branch': label_branch
  }[name]  # fmt: skip
  fields = config.stage(name, refine_regularizer=settings)
  with pytest.raises(UserError) as error:
    method.check('config.x', fields, config.default().data)
  assert f'config.x.args.{message}' in str(error.value)
