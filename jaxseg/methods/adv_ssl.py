"""AdvSSL: predictions that a discriminator of label maps cannot tell.

Source: Hung et al., Adversarial Learning for Semi-Supervised Semantic
Segmentation (BMVC 2018), section 3, equations 1 to 5.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
from jaxseg.nets.fc_discriminator import STRIDE, FullyConvDiscriminator
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
  lambda_adv: float = 0.01,  # of the adversarial loss on labelled images
  lambda_adv_unlabelled: float = 0.001,
  lambda_semi: float = 0.1,  # of the loss on predictions that D trusts
  semi_threshold: float = 0.2,  # D's probability from which it trusts a pixel
  semi_start: float = 0.25,  # fraction of the steps without that loss
  d_width: int = 64,  # channels of D's first layer
  d_lr: float = 1e-4,  # of D's Adam, falls as (1 - step / steps)^0.9
  # Whether D also learns from predictions on unlabelled images, as the
  # published code does; the paper's D sees labelled images alone.
  d_on_unlabelled: bool = False,
  # Void pixels enter the means of D and of the adversarial loss with the
  # constant log 2, as in PixelSSL; False, as published: they are left out.
  count_void: bool = False,
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter, and a discriminator D that sees label maps alone.

  loss = supervised + lambda_adv BCE(D(S(x)), 1), on labelled and unlabelled
  images, + lambda_semi CE(S(x), argmax S(x)) on those pixels of unlabelled
  images where sigmoid(D(S(x))) is at least `semi_threshold`. D learns
  [BCE(D(S(x)), 0) + BCE(D(onehot(y)), 1)] / 2.

  Labelled and unlabelled images pass the segmenter as two batches, unlabelled
  ones first. D sees void as a vector of zeros in labels, and whatever was
  predicted there in predictions: this is a method for whole masks, not for
  scribbles. At 32 x 32 pixels (below 64) D gives one score an image, which
  trusts all of it or nothing.

  Args:
    num_classes: K.
    resolution: shorter side of the images, at least 32.
    channels: image channels.
    total_steps: length of all curves.
    net: see `jaxseg.nets.segmenters.Net`; D computes in its dtype.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: the segmenter's, see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and the others: see the signature.
    regularizer: see `jaxseg.losses.regularized.Regularizer`.

  Returns:
    a `Method`; networks 'seg' and 'd'. Its pictures show D's trust as well.

  Raises:
    UserError: a setting outside its choices.
  """
  _check_numbers('', (resolution,), semi_threshold, semi_start)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip
  d = FullyConvDiscriminator(d_width, jnp.dtype(net.dtype))
  d_tx = optax.adam(
    optax.polynomial_schedule(d_lr, 0.0, 0.9, total_steps), b1=0.9, b2=0.99
  )
  score = lambda params, maps: d.apply({'params': params}, maps)

  def init(rng, previous=None):
    del previous
    maps = jnp.zeros((1, resolution, resolution, num_classes))
    d_params = d.init(jax.random.fold_in(rng, 1), maps)['params']
    return segmenting.start(seg, rng, {'d': (d_params, d_tx)})

  def segmenter_loss(params, state, batch, key):
    rngs = jax.random.split(key)
    run = lambda stats, images, rng: segmenting.train_logits(
      seg, params, stats, images, rng
    )
    unlabelled, stats = run(state.extra['seg'], batch['unlabelled'], rngs[0])
    labelled, stats = run(stats, batch['image'], rngs[1])
    total, terms = segmentation.supervised(labelled, batch['label'], loss)

    n = labelled.shape[0]
    logits = jnp.concatenate([labelled, unlabelled])
    maps = jax.nn.softmax(logits)
    scores = score(state.params['d'], maps)[..., 0]
    valid = batch['label'] != VOID
    terms['adv'] = pixel_bce(scores[:n], True, valid, count_void)
    terms['adv_unlabelled'] = pixel_bce(scores[n:], True)
    trust = jax.nn.sigmoid(scores[n:])
    terms['semi'], terms['trusted'] = trusted_cross_entropy(
      unlabelled, trust, semi_threshold
    )
    started = state.step >= semi_start * total_steps
    total += lambda_adv * terms['adv']
    total += lambda_adv_unlabelled * terms['adv_unlabelled']
    total += jnp.where(started, lambda_semi, 0.0) * terms['semi']
    total, terms = segmenting.regularize(
      seg, state.step, (total, terms), logits,
      jnp.concatenate([batch['image'], batch['unlabelled']]), batch['label'],
    )  # fmt: skip
    return total, ((stats, terms), (maps[:n], maps[n:]))

  def d_loss(params, part, _):
    maps = part['maps']
    maps = jnp.concatenate(maps) if d_on_unlabelled else maps[0]
    value = discriminator_loss(
      lambda x: score(params, x), maps, part['label'], count_void
    )
    return value, (value, ())

  def train_step(state, batch):
    key = segmenting.step_key(state)
    grads, (stats, terms), maps = accumulation.gradient(
      lambda params, part, key: segmenter_loss(params, state, part, key),
      state.params['seg'], batch, key, seg.parts,
    )  # fmt: skip
    d_grads, terms['d'], _ = accumulation.gradient(
      d_loss, state.params['d'], {'maps': maps, 'label': batch['label']}, key,
      seg.parts,
    )  # fmt: skip
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    state = segmenting.advance(state, 'd', d_tx, d_grads)
    return state.replace(step=state.step + 1), terms

  predict = segmenting.predict(seg)

  def pictures(state, batch):
    probabilities = predict(state, batch['image']).probabilities
    return {
      'image': batch['image'],
      'label': batch['label'],
      'predicted': probabilities.argmax(-1),
      # tanh(x / 2) = 2 sigmoid(x) - 1: trust as an image in [-1, 1].
      'trust': jnp.tanh(score(state.params['d'], probabilities) / 2),
    }

  return Method(
    init,
    train_step,
    predict,
    pictures=pictures,
    pretrained=segmenting.pretrained(seg),
  )


def pixel_bce(
  scores: jax.Array,
  real: bool,
  valid: jax.Array | None = None,
  count_void: bool = False,
) -> jax.Array:
  """Mean binary cross entropy of pixel scores (equation 1).

  Args:
    scores: float32 logits [N, H, W].
    real: whether the target is 1 (drawn by hand) or 0.
    valid: bool [N, H, W]; False where void. None: all count.
    count_void: void pixels count, each with log 2, a score of 0.

  Returns:
    scalar; 0 when no pixel counts.
  """
  losses = jax.nn.softplus(-scores if real else scores)
  if valid is None:
    return losses.mean()
  if count_void:
    return jnp.where(valid, losses, math.log(2.0)).mean()
  return jnp.where(valid, losses, 0.0).sum() / jnp.maximum(valid.sum(), 1)


def discriminator_loss(
  score: Callable[[jax.Array], jax.Array],
  maps: jax.Array,
  label: jax.Array,
  count_void: bool = False,
) -> jax.Array:
  """[BCE(D(maps), 0) + BCE(D(onehot(label)), 1)] / 2.

  Args:
    score: D: [L, H, W, K] -> logits [L, H, W, 1].
    maps: predicted probabilities [N + M, H, W, K], those of the labelled
      images first; M may be 0.
    label: int32 [N, H, W], 255 = void.
    count_void: see `pixel_bce`.

  Returns:
    scalar.
  """
  n, drawn = label.shape[0], segmentation.one_hot(label, maps.shape[-1])
  scores = score(jnp.concatenate([drawn, maps]))[..., 0]
  valid = label != VOID
  more = jnp.ones((maps.shape[0] - n, *valid.shape[1:]), bool)
  real = pixel_bce(scores[:n], True, valid, count_void)
  fake = pixel_bce(
    scores[n:], False, jnp.concatenate([valid, more]), count_void
  )
  return (real + fake) / 2


def trusted_cross_entropy(
  logits: jax.Array, trust: jax.Array, threshold: float
) -> tuple[jax.Array, jax.Array]:
  """Cross entropy with the most likely class, of trusted pixels (equation 5).

  Args:
    logits: float32 [N, H, W, K].
    trust: [N, H, W] in [0, 1]; no gradient flows into it.
    threshold: pixels of at least this trust count.

  Returns:
    (mean over the trusted pixels, 0 when there is none; their fraction).
  """
  trusted = trust >= threshold
  label = jnp.where(trusted, logits.argmax(-1), VOID)
  return segmentation.cross_entropy(logits, label), trusted.mean()


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check_semi_supervised(where, fields, data)
  segmenting_checks.check_whole_masks(where, fields, data)
  args = fields.args
  _check_numbers(
    f'{where}.args.', fit.size(data), args.semi_threshold, args.semi_start
  )


def _check_numbers(prefix, size, semi_threshold, semi_start):
  for field, side in zip(('resolution', 'width'), size, strict=False):
    if side < STRIDE:
      raise UserError(
        f'{"config.data." * bool(prefix)}{field} is {side}, must be at least '
        f'{STRIDE} for adv_ssl, whose discriminator halves its input five '
        'times.'
      )
  for name, value in (
    ('semi_threshold', semi_threshold), ('semi_start', semi_start),
  ):  # fmt: skip
    if not 0 <= value <= 1:
      what = ', a fraction of total_steps' * (name == 'semi_start')
      raise UserError(f'{prefix}{name} is {value}, must be from 0 to 1{what}.')
