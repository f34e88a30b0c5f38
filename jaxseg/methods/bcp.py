"""BCP: labelled and unlabelled images pasted into each other.

Bai et al., Bidirectional Copy-Paste for Semi-Supervised Medical Image
Segmentation (CVPR 2023), equations 1 to 8. Two stages: `pretrain=True` pastes
labelled images into each other, equation 5; a stage whose `init_from` is the
first goes on with both kinds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method
from jaxseg.methods import (
  accumulation,
  handover,
  segmenting,
  segmenting_checks,
)
from jaxseg.nets.segmenters import Net
from jaxseg.ops import components
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
  ema_decay: float = 0.99,  # of the teacher, a step
  pretrain: bool = False,  # the first stage, on labelled images alone
  box: float = 2 / 3,  # side of the pasted box, as a part of the image's
  unlabelled_weight: float = 0.5,  # of pixels that the teacher labels
  # Of each foreground class, only the largest connected component teaches.
  # Right for organs, of which each image shows one; not for objects.
  largest_component: bool = True,
  connectivity: int = 8,  # or 4, of components; published: 8
  # The teacher predicts with batch statistics and dropout, as published.
  teacher_train: bool = False,
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter, and the moving average of its weights that teaches it.

  A step draws one box. The first half of the batch shows labelled boxes in
  unlabelled images, the second half unlabelled boxes in labelled images; the
  teacher labels what is unlabelled. loss = the sum over both halves of
  (L inside the box + L outside) / 2, L = cross entropy + Dice (see `loss`)
  over those pixels, that of the teacher's labels times `unlabelled_weight`.
  With `pretrain` each labelled image shows the box of its neighbour in the
  batch; loss = (L inside + L outside) / 2.

  The student sees both halves one after the other: each has batch statistics
  of its own. The teacher's are the average of the student's, and it labels all
  images at once. As published: SGD, learning rate 0.01, 12 + 12 images.

  Args:
    num_classes: K.
    resolution: shorter side of the images, for the shapes of `init`.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_decay: this and the others: see the signature.
    regularizer: see `jaxseg.losses.regularized.Regularizer`; of the pasted
      images.

  Returns:
    a `Method` that predicts with the teacher. Its `init` starts both networks
    from the teacher of the stage before and raises UserError when that is no
    segmenter of the same shapes. Labelled and unlabelled batches must be of
    one, even size.

  Raises:
    UserError: a setting outside its choices.
  """
  _check_numbers('', ema_decay, box, connectivity)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    state = segmenting.start(seg, rng)
    if previous is None:
      return state
    teacher = handover.weights_of(previous, state.ema['seg'], 'bcp')
    student = handover.copied(teacher)
    return state.replace(
      params={'seg': student['params']},
      extra={'seg': student['batch_stats']},
      ema={'seg': handover.copied(teacher)},
    )

  def teach(state, images, key):
    """The teacher's classes, int32 [N, H, W]."""
    teacher = state.ema['seg']
    if teacher_train:
      logits, _ = segmenting.train_logits(
        seg, teacher['params'], teacher['batch_stats'], images, key
      )
    else:
      logits = segmenting.logits(seg, teacher, images)
    classes = logits.argmax(-1)
    if not largest_component:
      return classes
    return components.largest_components(classes, num_classes, connectivity)

  def mixtures(state, batch, inside, key):
    """[(images, [labels], [the teacher's labels])]; void is not theirs."""
    image, label = batch['image'], batch['label']
    paste = lambda below, above: jnp.where(inside[..., None], above, below)
    outer = lambda label: jnp.where(inside, VOID, label)
    inner = lambda label: jnp.where(inside, label, VOID)
    if pretrain:
      shown, of_shown = (jnp.roll(x, 1, axis=0) for x in (image, label))
      return [(paste(image, shown), [outer(label), inner(of_shown)], [])]
    other = batch['unlabelled']
    pseudo, half = teach(state, other, key), len(other) // 2
    a, b = slice(half), slice(half, None)
    return [
      (paste(other[a], image[a]), [inner(label[a])], [outer(pseudo[a])]),
      (paste(image[b], other[b]), [outer(label[b])], [inner(pseudo[b])]),
    ]

  def train_step(state, batch):
    rng = segmenting.step_key(state)
    inside = random_box(
      jax.random.split(rng, 4)[0], batch['image'].shape[1:3], box
    )

    def loss_fn(params, part, rng):
      keys = jax.random.split(rng, 4)  # the first has drawn the step's box
      halves = mixtures(state, part, inside, keys[1])
      total, stats, terms, shown = 0.0, state.extra['seg'], {}, []
      for (images, *targets), key in zip(halves, keys[2:], strict=False):
        logits, stats = segmenting.train_logits(seg, params, stats, images, key)
        # Void, the largest number, of one label may be known from another.
        label = functools.reduce(jnp.minimum, targets[0])
        shown.append((logits, images, label))
        for kind, weight, prefix in zip(
          targets, (1.0, unlabelled_weight), ('', 'unlabelled_'), strict=True
        ):
          for target in kind:
            part, found = segmentation.supervised(logits, target, loss)
            total += weight * part / 2
            for name, value in found.items():
              terms.setdefault(prefix + name, []).append(value)
      terms = {k: sum(v) / len(v) for k, v in terms.items()}
      shown = map(jnp.concatenate, zip(*shown, strict=True))
      total, terms = segmenting.regularize(
        seg, state.step, (total, terms), *shown
      )
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, rng, seg.parts
    )
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, ema_decay)
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


def random_box(key: jax.Array, size: tuple[int, int], part: float) -> jax.Array:
  """A box of the image's aspect at a random place, all places alike.

  Args:
    key: random key.
    size: (H, W).
    part: side of the box, as a part of the image's; rounded down, at least a
      pixel.

  Returns:
    bool [H, W], True inside.
  """
  box = [max(1, int(part * side)) for side in size]
  last = jnp.array([side - n + 1 for side, n in zip(size, box, strict=True)])
  starts = jax.random.randint(key, (2,), 0, last)
  rows, columns = (
    (jnp.arange(side) >= start) & (jnp.arange(side) < start + n)
    for side, n, start in zip(size, box, starts, strict=True)
  )
  return rows[:, None] & columns


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  args, parts = fields.args, accumulation.parts_of(fields)
  _check_numbers(f'{where}.args.', args.ema_decay, args.box, args.connectivity)
  if args.pretrain:
    segmenting_checks.check(where, fields, data)
    if fields.batch_size // parts < 2:
      raise UserError(
        f'{where}.batch_size is {fields.batch_size}, must be at least '
        f'{2 * parts}: boxes show another image of the batch'
        f'{f" in each of {parts} parts" * (parts > 1)}.'
      )
    return
  segmenting_checks.check_semi_supervised(where, fields, data, from_stage=True)
  if not fields.init_from:
    raise UserError(
      f"{where}.init_from is '', but a teacher that has learned nothing yet "
      'labels at random; name an earlier stage of the same method with '
      'args.pretrain=True, as configs/bcp.py does.'
    )
  sizes = fields.batch_size, fields.unlabelled_batch_size
  if sizes[0] != sizes[1] or sizes[0] % (2 * parts):
    even = max(1, min(sizes) // (2 * parts)) * 2 * parts
    raise UserError(
      f'{where}.batch_size is {sizes[0]} and {where}.unlabelled_batch_size '
      f'{sizes[1]}, but images are pasted in pairs, in both directions'
      f'{f" in each of {parts} parts" * (parts > 1)}; set both to one '
      f'{"even number" if parts == 1 else f"multiple of {2 * parts}"}, e.g. '
      f'{even}.'
    )


def _check_numbers(prefix, ema_decay, box, connectivity):
  if not 0 <= ema_decay < 1:
    raise UserError(
      f'{prefix}ema_decay is {ema_decay}, must be from 0 to below 1, such as '
      '0.99.'
    )
  if not 0 < box < 1:
    raise UserError(
      f'{prefix}box is {box}, must be above 0 and below 1, such as 0.667.'
    )
  if connectivity not in (4, 8):
    raise UserError(f'{prefix}connectivity is {connectivity}, must be 4 or 8.')
