"""Entropy minimisation: unlabelled pixels should be decided.

Grandvalet and Bengio, Semi-supervised Learning by Entropy Minimization
(NeurIPS 2004): the supervised loss plus lambda times the mean entropy of the
predictions on unlabelled data. The weight climbs, since the
entropy of an untrained network points nowhere.
"""

from typing import Any

import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses import entropy, segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
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
  ema_half_life: float = 500.0,  # of the averaged weights, labelled images
  kind: str = 'shannon',  # 'normalized' (ADVENT), 'max_square' (Chen et al.)
  weight: float = 0.1,  # lambda; of 'shannon' in nats
  ramp_up: float = 0.3,  # fraction of the steps in which it climbs
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter trained on labels and on its own certainty.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: see the signature; 0: off.
    kind: see `jaxseg.losses.entropy.uncertainty`.
    weight: see the signature.
    ramp_up: see the signature; 0: full weight from the start.
    regularizer: see `jaxseg.losses.regularized.Regularizer`.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.

  Raises:
    UserError: a setting outside its choices.
  """
  _refuse('entropy', kind)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    del previous
    return segmenting.start(seg, rng)

  def train_step(state, batch):
    climbed = segmenting.ramp_up(state.step, ramp_up * total_steps)

    def loss_fn(params, part, key):
      n = part['image'].shape[0]
      images = jnp.concatenate([part['image'], part['unlabelled']])
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], images, key, split=(n,)
      )
      total, terms = segmentation.supervised(logits[:n], part['label'], loss)
      terms['entropy'] = entropy.uncertainty(logits[n:], kind)
      total = total + weight * climbed * terms['entropy']
      total, terms = segmenting.regularize(
        seg, state.step, (total, terms), logits, images, part['label']
      )
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    terms['ramp_up'] = climbed
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train; see `segmenting_checks.check`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check_semi_supervised(where, fields, data)
  _refuse(f'{where}.args', fields.args.kind)


def _refuse(where, kind):
  if kind not in entropy.KINDS:
    raise UserError(
      f'{where}.kind is {kind!r}, must be one of {", ".join(entropy.KINDS)}.'
    )
