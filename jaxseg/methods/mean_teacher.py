"""Mean Teacher: the student agrees with the average of its past.

Sources: Tarvainen and Valpola, Mean teachers are better role models (NeurIPS
2017), for segmentation as in Luo et al., SSL4MIS (2020): the perturbation is
noise on the teacher's image. `cutmix`: French et al., Semi-supervised semantic
segmentation needs strong, varied perturbations (BMVC 2020), section 3.3.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.data import views
from jaxseg.errors import UserError
from jaxseg.losses import consistency, segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.method import Method
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
  ema_decay: float = 0.99,  # of the teacher, a step; smaller at first
  weight: float = 1.0,  # of the consistency
  ramp_up: float = 0.25,  # fraction of the steps in which the weight grows
  start: float = 0.0,  # fraction of the steps without consistency
  # Std of the noise on the images, in units of [-1, 1], cut off at 2 std. The
  # published 0.1 is of images in [0, 1].
  teacher_noise: float = 0.2,
  student_noise: float = 0.0,
  compared: str = 'probabilities',  # or 'logits', as PixelSSL does
  on_labelled: bool = True,  # False: consistency on unlabelled images alone
  # The teacher's batch statistics are the average of the student's, and it
  # predicts its targets with them, without dropout. False, as published: they
  # are of its own batches, and it is in training mode.
  average_statistics: bool = False,
  # Boxes of other unlabelled images in place of noise, on those alone.
  cutmix: bool = False,
  cutmix_confidence: float = 0.97,  # pixels below it weaken the consistency
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter, and the moving average of its weights that teaches it.

  loss = supervised + weight x ramp-up x mean square of the difference of both
  softmaxes, over classes and pixels. Void pixels of labelled images carry no
  label, but agree like unlabelled ones.

  With `cutmix` unlabelled images show the box of their neighbour in the batch
  (`views` 1 or more in config.data.strong; its colours are not used), the
  targets too; the loss is then the sum over classes and is multiplied by the
  fraction of confident pixels. As published: weight 1, ramp_up 0,
  cutmix_probability 1 and cutmix_area (0.5, 0.5).

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of all curves.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_decay: this and the others: see the signature.
    regularizer: see `jaxseg.losses.regularized.Regularizer`; it sees images
      without noise, and boxes of others where they are shown.

  Returns:
    a `Method` that predicts with the teacher.

  Raises:
    UserError: a setting outside its choices.
  """
  _check_numbers('', ema_decay, start, ramp_up, compared, cutmix_confidence)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    del previous
    return segmenting.start(seg, rng)

  def teach(teacher, images, rng):
    """The batch statistics afterwards, and the logits of each kind of images.

    Args:
      teacher: its parameters and batch statistics.
      images: (labelled, unlabelled), or (unlabelled,).
      rng: key of dropout.
    """

    def logits_of(part, key):
      together, n = jnp.concatenate(part), part[0].shape[0]
      split = (n,) if len(part) > 1 else ()
      if average_statistics:
        found = segmenting.logits(seg, teacher, together)
        stats = teacher['batch_stats']
      else:
        found, stats = segmenting.train_logits(
          seg, teacher['params'], teacher['batch_stats'], together, key, split
        )
      return stats, (found[:n], found[n:]) if split else (found,)

    return accumulation.over_parts(logits_of, images, rng, seg.parts)

  def current_weight(step):
    ramp = segmenting.ramp_up(step, ramp_up * total_steps)
    return jnp.where(step >= start * total_steps, weight * ramp, 0.0)

  def perturb(batch, rng):
    """(The student's images, the teacher's), each by kind; boxes, or None."""
    labelled, unlabelled = batch['image'], batch['unlabelled']
    if cutmix:
      boxes = batch['cutmix'][:, 0]
      mixed = views.cutmix(unlabelled, boxes)
      return (labelled, mixed), (unlabelled,), boxes
    n, everything = len(labelled), jnp.concatenate([labelled, unlabelled])
    rngs = jax.random.split(rng)
    seen = consistency.noise(rngs[0], everything, student_noise)
    taught = consistency.noise(
      rngs[1], everything if on_labelled else unlabelled, teacher_noise
    )
    by_kind = (taught[:n], taught[n:]) if on_labelled else (taught,)
    return (seen[:n], seen[n:]), by_kind, None

  def train_step(state, batch):
    rngs = jax.random.split(segmenting.step_key(state), 3)
    images, taught, boxes = perturb(batch, rngs[0])
    teacher_stats, target = teach(state.ema['seg'], taught, rngs[1])
    now, extra = current_weight(state.step), {}
    factor = now
    if cutmix:
      target = (views.cutmix(target[0], boxes),)
      extra = {'confident': consistency.confident(target[0], cutmix_confidence)}
      factor = now * num_classes * extra['confident']

    def loss_fn(params, part, key):
      n, target = part['label'].shape[0], jnp.concatenate(part['target'])
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], jnp.concatenate(part['images']), key,
        split=(n,),
      )  # fmt: skip
      total, terms = segmentation.supervised(logits[:n], part['label'], loss)
      distance = consistency.mean_square(
        logits[-target.shape[0] :], target, compared
      )
      terms |= {'consistency': distance, 'consistency_weight': now} | extra
      total, terms = segmenting.regularize(
        seg, state.step, (total + factor * distance, terms), logits,
        jnp.concatenate(part['clean']), part['label'],
      )  # fmt: skip
      return total, ((stats, terms), ())

    clean = images if cutmix else (batch['image'], batch['unlabelled'])
    data = {
      'images': images, 'clean': clean, 'label': batch['label'],
      'target': target,
    }  # fmt: skip
    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], data, rngs[2], seg.parts
    )
    decay = consistency.teacher_decay(state.step, ema_decay)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    if not average_statistics:
      teacher = state.ema['seg'] | {'batch_stats': teacher_stats}
      state = state.replace(ema=state.ema | {'seg': teacher})
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


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
  args = fields.args
  _check_numbers(
    f'{where}.args.', args.ema_decay, args.start, args.ramp_up, args.compared,
    args.cutmix_confidence,
  )  # fmt: skip
  if not args.cutmix:
    return
  for field in ('views', 'cutmix_probability'):
    if not data.strong[field]:
      raise UserError(
        f'config.data.strong.{field} is 0, but {where}.args.cutmix needs the '
        f'boxes of strong views; set config.data.strong.{field}=1.'
      )
  segmenting_checks.check_boxes(where, fields, f'{where}.args.cutmix')


def _check_numbers(prefix, ema_decay, start, ramp_up, compared, confidence):
  if not 0 <= ema_decay < 1:
    raise UserError(
      f'{prefix}ema_decay is {ema_decay}, must be from 0 to below 1, such as '
      '0.99.'
    )
  for name, value in (
    ('start', start), ('ramp_up', ramp_up), ('cutmix_confidence', confidence),
  ):  # fmt: skip
    if not 0 <= value <= 1:
      what = ', a fraction of total_steps' * (name != 'cutmix_confidence')
      raise UserError(f'{prefix}{name} is {value}, must be from 0 to 1{what}.')
  if compared not in consistency.COMPARED:
    raise UserError(
      f'{prefix}compared is {compared!r}, must be one of '
      f'{", ".join(consistency.COMPARED)}.'
    )
