"""Weak labels: few pixels or boxes, and losses that spread them.

Scribbles, clicks and polygons are partial labels: cross entropy where they are,
and everywhere the terms of `jaxseg.losses.regularized`, under which a label
spreads as far as the image has no edge (Tang et al., ECCV 2018). Boxes are
constraints, see `jaxseg.losses.boxes`. Unlabelled images, if any are read, take
part in the terms that need no label. Tang et al. train with `crf` 2e-9,
`published_scale`, `shrink` 2 and `filter` 'lattice' on crops of 513 pixels.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import boxes, partial, regularized, segmentation
from jaxseg.losses.boxes import Boxes
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import (
  accumulation,
  handover,
  segmenting,
  segmenting_checks,
  weak_pictures,
)
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

SUPERVISION = ('pixels', 'boxes')


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
  supervision: str = 'pixels',  # or 'boxes': labels are filled boxes
  normalize: str = 'labelled',  # of 'pixels', see jaxseg/losses/partial.py
  box: Boxes = Boxes(),  # of 'boxes'
  regularizer: Regularizer = Regularizer(),
  # Fraction of the steps before the regularizer begins: published systems first
  # learn from the labels alone.
  start: float = 0.0,
) -> Method:
  """A segmenter trained on weak labels.

  With `init_from` it starts from the averaged weights of that stage, wherever
  both networks have an array of the same name and shape.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of all curves.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`; of 'boxes' not read.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and `supervision`, `normalize`, `start`: see the
      signature. `normalize` other than 'labelled' has no class weights and no
      hard examples.
    box: see `jaxseg.losses.boxes.Boxes`.
    regularizer: see `jaxseg.losses.regularized.Regularizer`.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability
    and whose pictures show where each term pushes one class of each image: red
    up, blue down; see `weak_pictures`.

  Raises:
    UserError: a setting outside its choices.
  """
  size = (resolution, resolution)
  _refuse('weak', supervision, normalize, start, box, regularizer, size)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
  )  # fmt: skip

  def init(rng, previous=None):
    return handover.begin(segmenting.start(seg, rng), previous, 'weak')

  def labelled_loss(logits, label):
    if supervision == 'boxes':
      return boxes.constraints(logits, label, box)
    if normalize == 'labelled':
      return segmentation.supervised(logits, label, loss)
    terms = {'ce': partial.cross_entropy(logits, label, normalize)}
    total = loss.ce * terms['ce']
    if loss.dice:
      terms['dice'] = segmentation.dice_loss(
        jax.nn.softmax(logits), label, include_background=loss.dice_background
      )
      total = total + loss.dice * terms['dice']
    return total, terms

  def unlabelled_mask(label):
    # Inside a box a pixel's class is open; outside it is certain.
    return label != 0 if supervision == 'boxes' else label == VOID

  def train_step(state, batch):
    climbed = segmenting.ramp_up(
      state.step - start * total_steps, regularizer.ramp_up * total_steps
    )
    climbed = jnp.where(state.step >= start * total_steps, climbed, 0.0)

    def loss_fn(params, part, key):
      n, images = part['image'].shape[0], part['image']
      masks = unlabelled_mask(part['label'])
      if 'unlabelled' in part:
        images = jnp.concatenate([images, part['unlabelled']])
        free = jnp.ones(part['unlabelled'].shape[:3], bool)
        masks = jnp.concatenate([masks, free])
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], images, key,
        split=(n,) if 'unlabelled' in part else (),
      )  # fmt: skip
      total, terms = labelled_loss(logits[:n], part['label'])
      if regularized.is_on(regularizer):
        value, more = regularized.regularize(
          logits, images, regularizer, unlabelled=masks
        )
        total, terms = total + climbed * value, terms | more
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    terms['ramp_up'] = climbed
    return state.replace(step=state.step + 1), terms

  def pictures(state, batch):
    logits = segmenting.logits(seg, state.ema['seg'], batch['image'])
    shown = {
      'image': batch['image'],
      'label': batch['label'],
      'predicted': logits.argmax(-1),
    }
    push = weak_pictures.pushes(
      logits, batch['image'], batch['label'], labelled_loss, regularizer,
      unlabelled_mask(batch['label']),
    )  # fmt: skip
    return shown | push

  method = segmenting.as_method(seg, init, train_step)
  return method._replace(pictures=pictures)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train; see `segmenting_checks.check`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check(where, fields, data)
  args = fields.args
  _refuse(
    f'{where}.args', args.supervision, args.normalize, args.start,
    Boxes(**args.box), Regularizer(**args.regularizer), fit.size(data),
  )  # fmt: skip
  if args.supervision != 'boxes':
    return
  kind, turned = data.weak.kind, ('rotate', 'shear', 'elastic')
  if kind == 'boxes' and data.weak.refine:
    raise UserError(
      f"{where}.args.supervision is 'boxes', but boxes become masks by "
      f'config.data.weak.refine={data.weak.refine!r}; set '
      f"{where}.args.supervision to 'pixels', or config.data.weak.refine to ''."
    )
  if kind != 'boxes':
    raise UserError(
      f"{where}.args.supervision is 'boxes', but config.data.weak.kind is "
      f"{kind!r}; set it to 'boxes', or {where}.args.supervision to 'pixels'."
    )
  for name in turned:
    if data.augment[name] and args.box.tight:
      raise UserError(
        f'config.data.augment.{name} is {data.augment[name]}, but '
        f'{where}.args.box.tight expects the object in each row and column of '
        'its box, which is no longer so when boxes are turned; set one of them '
        'to 0.'
      )


def _refuse(where, supervision, normalize, start, box, regularizer, size):
  for name, value, allowed in (
    ('supervision', supervision, SUPERVISION),
    ('normalize', normalize, partial.NORMALIZERS),
  ):
    if value not in allowed:
      raise UserError(
        f'{where}.{name} is {value!r}, must be one of {", ".join(allowed)}.'
      )
  if not 0 <= start <= 1:
    raise UserError(
      f'{where}.start is {start}, must be a part of the steps, 0 to 1.'
    )
  boxes.check(f'{where}.box', box)
  regularized.check(f'{where}.regularizer', regularizer, size)
