"""Losses between logits and class ids: void, absent classes, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.segmentation import VOID, cross_entropy, dice_loss


@pytest.fixture
def logits():
  rng = np.random.default_rng(0)
  return rng.normal(size=(2, 3, 4, 3)).astype(np.float32)


@pytest.fixture
def label():
  return np.random.default_rng(1).integers(0, 3, (2, 3, 4)).astype(np.int32)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('temperature', (1.0, 0.1))
def test_cross_entropy_of_full_masks_is_optax(logits, label, temperature):
  wanted = optax.softmax_cross_entropy_with_integer_labels(
    logits / temperature, label
  ).mean()
  loss = cross_entropy(logits, label, temperature)
  assert_allclose(loss, wanted, rtol=1e-5)


def test_cross_entropy_leaves_void_out(logits, label):
  label[0, :2] = VOID
  label[1, 2, 3] = VOID
  p = softmax(logits)
  total, pixels = 0.0, 0
  for index in np.ndindex(label.shape):
    if label[index] != VOID:
      total -= np.log(p[index][label[index]])
      pixels += 1
  assert pixels == 15
  assert_allclose(cross_entropy(logits, label), total / pixels, rtol=1e-5)
  # What the network says about void pixels must not matter at all.
  grad = jax.grad(cross_entropy)(logits, label)
  assert_allclose(grad[label == VOID], 0)
  assert np.abs(grad[label != VOID]).max() > 0


def test_a_batch_of_void_is_zero_with_finite_gradients(logits, label):
  void = np.full_like(label, VOID)
  loss, grad = jax.value_and_grad(cross_entropy)(logits, void)
  assert loss == 0
  assert_allclose(grad, 0)
  dice = lambda x: dice_loss(jax.nn.softmax(x), void)
  loss, grad = jax.value_and_grad(dice)(logits)
  assert loss == 0
  assert_allclose(grad, 0)


def test_dice_by_hand(logits, label):
  label[0, 0] = VOID
  p = softmax(logits)
  seen = label != VOID
  scores = []
  for k in range(3):
    y = label[seen] == k
    q = p[seen][:, k]
    overlap = 2 * (q * y).sum() + 1e-5
    scores.append(overlap / (np.square(q).sum() + y.sum() + 1e-5))
  loss = dice_loss(p, label)
  assert_allclose(loss, 1 - np.mean(scores[1:]), rtol=1e-5)
  loss = dice_loss(p, label, include_background=True)
  assert_allclose(loss, 1 - np.mean(scores), rtol=1e-5)


def test_dice_ends(label):
  right = np.eye(3, dtype=np.float32)[label]
  assert_allclose(dice_loss(right, label), 0, atol=1e-6)
  wrong = np.eye(3, dtype=np.float32)[(label + 1) % 3]
  assert_allclose(dice_loss(wrong, label), 1, atol=1e-5)


def test_dice_of_an_absent_class_is_finite(logits, label):
  label[label == 2] = 1
  run = functools.partial(dice_loss, include_background=True)
  loss, grad = jax.value_and_grad(lambda x: run(jax.nn.softmax(x), label))(
    logits
  )
  assert 0 < loss < 1 and np.isfinite(grad).all()
  # Absent from the truth and from the prediction: a perfect score.
  right = np.eye(3, dtype=np.float32)[label]
  assert_allclose(run(right, label), 0, atol=1e-6)


def test_dice_of_one_channel_counts_it():
  label = np.array([[[0, 0, VOID, 1]]], np.int32)
  p = jnp.array([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 4, 1)
  assert_allclose(dice_loss(p, label), 0, atol=1e-6)


def test_one_hot_and_its_signed_form():
  label = np.array([[0, 2, VOID]], np.int32)
  wanted = [[[1, 0, 0], [0, 0, 1], [0, 0, 0]]]
  assert_allclose(segmentation.one_hot(label, 3), wanted)
  wanted = [[[1, -1, -1], [-1, -1, 1], [0, 0, 0]]]
  assert_allclose(segmentation.signed_one_hot(label, 3), wanted)
  assert_allclose(segmentation.valid_pixels(label), [[1, 1, 0]])


def test_pixel_cross_entropy_is_zero_on_void(logits, label):
  label[0, 1] = VOID
  loss = segmentation.pixel_cross_entropy(logits, label)
  p = softmax(logits)
  for index in np.ndindex(label.shape):
    wanted = 0 if label[index] == VOID else -np.log(p[index][label[index]])
    assert_allclose(loss[index], wanted, rtol=1e-5)


def test_class_weights_are_those_of_pytorch(logits, label):
  torch = pytest.importorskip('torch')
  label[0, :2] = VOID
  weights = (0.2, 3.0, 0.05)
  wanted = torch.nn.functional.cross_entropy(
    torch.tensor(logits).permute(0, 3, 1, 2),
    torch.tensor(label, dtype=torch.int64),
    weight=torch.tensor(weights),
    ignore_index=VOID,
  )
  loss = cross_entropy(logits, label, class_weights=weights)
  assert_allclose(loss, wanted, rtol=1e-5)
  void = np.full_like(label, VOID)
  assert cross_entropy(logits, void, class_weights=weights) == 0


def test_class_weights_must_be_as_many_as_classes(logits, label):
  with pytest.raises(UserError, match='class_weights are 2 numbers, must be 3'):
    cross_entropy(logits, label, class_weights=(1.0, 2.0))


@pytest.mark.parametrize(
  ('threshold', 'kept'), [(0.3, 0.0), (0.3, 0.5), (0.05, 0.25), (0.9, 0.1)]
)
def test_hard_pixels_by_sorting(logits, label, threshold, kept):
  label[0, 0] = VOID
  p = np.take_along_axis(
    softmax(logits), np.where(label == VOID, 0, label)[..., None], -1
  )[..., 0]
  valid = label != VOID
  order = np.sort(p[valid])
  least = int(np.ceil(kept * valid.sum()))
  wanted = valid & (p <= max(threshold, order[least - 1] if least else 0))
  assert 0 < wanted.sum() < valid.sum() or threshold == 0.9
  hard = segmentation.hard_pixels(logits, label, threshold, kept)
  np.testing.assert_array_equal(np.asarray(hard), wanted)
  loss = cross_entropy(logits, label, ohem=threshold, ohem_kept=kept)
  assert_allclose(loss, -np.log(p[wanted]).mean(), rtol=1e-5)


def test_hard_pixels_of_void_alone(logits, label):
  void = np.full_like(label, VOID)
  hard = segmentation.hard_pixels(logits, void, 0.5, 0.1)
  np.testing.assert_array_equal(hard, 0)
  assert cross_entropy(logits, void, ohem=0.5) == 0


def test_supervised_is_the_weighted_sum(logits, label):
  settings = segmentation.Loss(ce=0.5, dice=2.0, dice_background=False)
  total, terms = segmentation.supervised(logits, label, settings)
  dice = dice_loss(jax.nn.softmax(logits), label)
  assert_allclose(terms['dice'], dice, rtol=1e-6)
  assert_allclose(total, 0.5 * cross_entropy(logits, label) + 2 * dice)
  total, terms = segmentation.supervised(
    logits, label, segmentation.Loss(dice=0.0)
  )
  assert set(terms) == {'ce'}
  assert_allclose(total, cross_entropy(logits, label))
