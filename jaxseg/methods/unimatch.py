"""UniMatch: one weak prediction teaches strong views and perturbed features.

Sources: Yang et al., Revisiting Weak-to-Strong Consistency in Semi-Supervised
Semantic Segmentation (CVPR 2023), equations 1 to 8; Sohn et al., FixMatch
(NeurIPS 2020), which is `views=1, feature_weight=0`; Yun et al., CutMix (ICCV
2019).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.data import views as strong_views
from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
from jaxseg.nets.layers import Features
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: Net = Net(),
  loss: Loss = Loss(),
  optimizer: Optimizer = Optimizer(),
  ema_half_life: float = 500.0,  # of the averaged weights, in images; 0: off
  views: int = 2,  # strong views that are learned from
  confidence: float = 0.95,  # pixels below it do not teach
  unlabelled_weight: float = 1.0,
  feature_weight: float = 0.5,  # part of perturbed features; views: the rest
  feature_dropout: float = 0.5,  # rate at which whole channels are dropped
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter that learns its confident predictions on harder inputs.

  loss = (supervised + unlabelled_weight x ((1 - feature_weight) x mean over
  strong views of L_s + feature_weight x L_fp)) / 2. L_s and L_fp are the cross
  entropies with the class that the network itself, in training mode, finds
  most likely on the weak view; pixels of which it is not confident add 0 to
  the mean. As published: a cross entropy alone on labels (`loss.dice=0`), and
  predictions of the newest weights (`ema_half_life=0`).

  Batch normalisation sees labelled images, weak images, in the decoder their
  perturbed features, and all strong views, each by themselves. With
  `net.joint_norm`, as published: labelled and weak images together, in the
  decoder with the perturbed features of both; then the strong views.

  CutMix shows the neighbour in the batch, with the same prediction that
  teaches the neighbour itself. The published code predicts the shown images,
  a second batch, once more in evaluation mode.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and the others: see the signature.
    regularizer: see `jaxseg.losses.regularized.Regularizer`; of labelled and
      weak images, beside the halved sum.

  Returns:
    a `Method` whose metrics are the terms, each before its weight, and
    'mask_ratio', the fraction of confident pixels.

  Raises:
    UserError: a setting outside its choices.
  """
  _check_numbers('', views, confidence, feature_weight, feature_dropout)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    del previous
    return segmenting.start(seg, rng)

  def weak_pass(params, stats, batch, keys):
    """Logits of labelled, weak, and weak images with perturbed features."""
    n, m = len(batch['image']), len(batch['unlabelled'])
    images = jnp.concatenate([batch['image'], batch['unlabelled']])
    features, stats = segmenting.train_encode(
      seg, params, stats, images, keys[0], split=(n,)
    )
    split = (n,)
    if feature_weight:
      # Labelled images' perturbed features count in batch statistics alone.
      first = 0 if net.norm == 'batch' and net.joint_norm else n
      split = (n, n + m)
      perturbed = drop_channels(
        keys[1], jax.tree.map(lambda x: x[first:], features), feature_dropout
      )
      features = jax.tree.map(
        lambda *parts: jnp.concatenate(parts), features, perturbed
      )
    logits, stats = segmenting.train_decode(
      seg, params, stats, features, images.shape[1:3], keys[2], split
    )
    return logits[:n], logits[n : n + m], logits[-m:], stats

  def strong_pass(params, stats, images, key):
    """Logits [M, V, H, W, K] of the views [M, V, H, W, C]."""
    flat = images.reshape(-1, *images.shape[2:])
    logits, stats = segmenting.train_logits(seg, params, stats, flat, key)
    return logits.reshape(*images.shape[:-1], num_classes), stats

  def train_step(state, batch):
    def loss_fn(params, part, key):
      keys = jax.random.split(key, 4)
      boxes = part['cutmix'][:, :views]
      mixed = cutmix(part['unlabelled_strong'][:, :views], boxes)
      labelled, weak, perturbed, stats = weak_pass(
        params, state.extra['seg'], part, keys[:3]
      )
      strong, stats = strong_pass(params, stats, mixed, keys[3])
      total, terms = segmentation.supervised(labelled, part['label'], loss)
      pseudo, sure = pseudo_labels(weak, confidence)
      of_views = lambda x: cutmix(jnp.repeat(x[:, None], views, axis=1), boxes)
      terms['strong'] = taught(strong, of_views(pseudo), of_views(sure))
      unlabelled = (1 - feature_weight) * terms['strong']
      if feature_weight:
        terms['feature'] = taught(perturbed, pseudo, sure)
        unlabelled += feature_weight * terms['feature']
      terms['mask_ratio'] = sure.mean()
      total = (total + unlabelled_weight * unlabelled) / 2
      total, terms = segmenting.regularize(
        seg, state.step, (total, terms), jnp.concatenate([labelled, weak]),
        jnp.concatenate([part['image'], part['unlabelled']]), part['label'],
      )  # fmt: skip
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(len(batch['image']), ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


def pseudo_labels(
  logits: jax.Array, confidence: float
) -> tuple[jax.Array, jax.Array]:
  """What a prediction teaches (FixMatch, equation 4); without gradient.

  Args:
    logits: float32 [..., K].
    confidence: the smallest probability that teaches.

  Returns:
    (most likely class, int32 [...]; whether its probability is at least
    `confidence`, float32 [...] of 0 and 1).
  """
  logits = jax.lax.stop_gradient(logits)
  sure = jax.nn.softmax(logits).max(-1) >= confidence
  return logits.argmax(-1), sure.astype(jnp.float32)


def taught(logits: jax.Array, pseudo: jax.Array, sure: jax.Array) -> jax.Array:
  """Mean over all pixels of the cross entropy, 0 where not sure.

  Args:
    logits: float32 [..., K].
    pseudo: int32 [...], classes.
    sure: float32 [...] of 0 and 1.

  Returns:
    scalar.
  """
  return (segmentation.pixel_cross_entropy(logits, pseudo) * sure).mean()


def drop_channels(key: jax.Array, features: Features, rate: float) -> Features:
  """Drops whole channels of each map and image (UniMatch, section 3.2).

  Args:
    key: random key.
    features: maps [N, h, w, F].
    rate: probability of a channel to become 0; the others are divided by
      1 - rate. Below 1.

  Returns:
    as `features`; the indices of max-pooling stay.
  """
  keys = jax.random.split(key, len(features.maps))

  def drop(key, x):
    shape = (x.shape[0], 1, 1, x.shape[-1])
    return jnp.where(jax.random.bernoulli(key, rate, shape), 0, x / (1 - rate))

  maps = tuple(map(drop, keys, features.maps))
  return features._replace(maps=maps)


def cutmix(arrays: jax.Array, boxes: jax.Array) -> jax.Array:
  """`jaxseg.data.views.cutmix` of each view, [M, V, H, W, ...]."""
  return jax.vmap(strong_views.cutmix, in_axes=1, out_axes=1)(arrays, boxes)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  args = fields.args
  segmenting_checks.check_semi_supervised(where, fields, data, args.views)
  if data.strong.cutmix_probability:
    field = 'config.data.strong.cutmix_probability'
    parts = accumulation.parts_of(fields)
    segmenting_checks.check_boxes(where, fields, field, parts)
  _check_numbers(
    f'{where}.args.', args.views, args.confidence, args.feature_weight,
    args.feature_dropout,
  )  # fmt: skip


def _check_numbers(prefix, views, confidence, feature_weight, feature_dropout):
  if views < 1:
    raise UserError(f'{prefix}views is {views}, must be 1 or more.')
  for name, value in (
    ('confidence', confidence), ('feature_weight', feature_weight),
  ):  # fmt: skip
    if not 0 <= value <= 1:
      raise UserError(f'{prefix}{name} is {value}, must be from 0 to 1.')
  if not 0 <= feature_dropout < 1:
    raise UserError(
      f'{prefix}feature_dropout is {feature_dropout}, must be from 0 to below '
      '1, such as 0.5.'
    )
