"""Self-training: the network learns from labels that a network gave.

With `init_from` (Yang et al., ST++, CVPR 2022, "ST"): the averaged weights of
that stage, frozen, label the unlabelled images, and a new network learns from
all of them alike. Of unlabelled images it sees the strong view where there is
one (config.data.strong.views >= 1; the first), the paper's strong augmentation.
Such a stage can again be the teacher of the next.

Without (Lee, Pseudo-Label, ICML 2013 workshop, equations 14 to 16): the network
labels the images itself, anew in each step, and the weight of those labels
climbs from 0.

The teacher labels each image as moved by the augmentation, where ST++ moves
labels that were stored once.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.data import views
from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import (
  accumulation,
  handover,
  segmenting,
  segmenting_checks,
)
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

BOXES = ('cutout', 'cutmix', 'none')


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
  # Pixels whose largest probability is below are void; 0: all are labelled.
  threshold: float = 0.0,
  # In the box of a strong view: noise that is void, as ST++; or 'cutmix',
  # another image; or 'none'.
  box: str = 'cutout',
  # With init_from:
  weight: float = 1.0,  # of the loss on the teacher's labels
  from_teacher: bool = False,  # start from its weights; ST++: anew
  # Without:
  alpha: float = 3.0,  # weight of the loss on the network's own labels
  alpha_start: float = 0.1,  # fraction of the steps until which it is 0, T1
  alpha_end: float = 0.6,  # and from which it is `alpha`, T2
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter trained on labels and on predicted labels.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`; the teacher must have the same.
    loss: see `jaxseg.losses.segmentation.Loss`; of both kinds of labels.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: see the signature; 0: off.
    threshold: see the signature, as the others.
    box: 'cutout', 'cutmix' or 'none'; its size and probability are those of
      config.data.strong.cutmix_*. Weak views have no box.
    weight: 1 in the paper, where a batch has as many images of both kinds.
    from_teacher: see the signature.
    alpha: alpha_f of equation 16.
    alpha_start: T1 / total_steps.
    alpha_end: T2 / total_steps.
    regularizer: see `jaxseg.losses.regularized.Regularizer`; of the images as
      the student sees them.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.
    `init` raises UserError when `previous` is no segmenter of the same shapes.

  Raises:
    UserError: a setting outside its choices.
  """
  _refuse('self_training', threshold, box, alpha_start, alpha_end)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    state = segmenting.start(seg, rng)
    if previous is None:
      return state
    teacher = handover.weights_of(previous, state.ema['seg'], 'self_training')
    extra = state.extra | {'teacher': handover.copied(teacher)}
    state = state.replace(extra=extra)
    if not from_teacher:
      return state
    student = handover.copied(teacher)
    return state.replace(
      params={'seg': student['params']},
      extra=extra | {'seg': student['batch_stats']},
      ema={'seg': handover.copied(teacher)},
    )

  def train_step(state, batch):
    taught = 'teacher' in state.extra
    own = segmenting.collections(state.params['seg'], state.extra['seg'])
    key = segmenting.step_key(state)
    target, seen = None, batch['unlabelled']
    if taught or 'unlabelled_strong' in batch:
      labeller = state.extra['teacher'] if taught else own

      def label_part(images, _):
        logits = segmenting.logits(seg, labeller, images)
        return (), pseudo_label(logits, threshold)

      _, target = accumulation.over_parts(
        label_part, batch['unlabelled'], key, seg.parts
      )
    if 'unlabelled_strong' in batch:
      seen, target = in_box(
        jax.random.fold_in(key, 1), batch['unlabelled_strong'][:, 0], target,
        batch['cutmix'][:, 0], box,
      )  # fmt: skip
    factor = (
      jnp.asarray(weight, jnp.float32)
      if taught
      else own_weight(state.step, total_steps, alpha, alpha_start, alpha_end)
    )

    def loss_fn(params, part, key):
      n, labels = part['image'].shape[0], part['target']
      images = jnp.concatenate([part['image'], part['seen']])
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], images, key, split=(n,)
      )
      total, terms = segmentation.supervised(logits[:n], part['label'], loss)
      if labels is None:
        labels = pseudo_label(logits[n:], threshold)
      pseudo, _ = segmentation.supervised(logits[n:], labels, loss)
      terms |= {'pseudo': pseudo, 'kept': (labels != VOID).mean()}
      total, terms = segmenting.regularize(
        seg, state.step, (total + factor * pseudo, terms), logits, images,
        part['label'],
      )  # fmt: skip
      return total, ((stats, terms), ())

    data = {name: batch[name] for name in ('image', 'label')}
    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], data | {'seen': seen, 'target': target},
      key, seg.parts,
    )  # fmt: skip
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    terms['pseudo_weight'] = factor
    return state.replace(step=state.step + 1), terms

  fill = segmenting.pretrained(seg)

  def pretrained(state, previous=None):
    # The teacher's weights are better than ImageNet's.
    return fill(state, previous if from_teacher else None)

  method = segmenting.as_method(seg, init, train_step)
  return method._replace(pretrained=fill and pretrained)


def pseudo_label(logits: jax.Array, threshold: float) -> jax.Array:
  """The likeliest class of each pixel; void below `threshold`.

  Args:
    logits: [N, H, W, K].
    threshold: of the largest probability.

  Returns:
    int32 [N, H, W], 255 = void. No gradient flows.
  """
  p = jax.nn.softmax(jax.lax.stop_gradient(logits))
  label = p.argmax(-1).astype(jnp.int32)
  return jnp.where(p.max(-1) >= threshold, label, VOID)


def own_weight(
  step: jax.Array, total_steps: int, alpha: float, start: float, end: float
) -> jax.Array:
  """0 until `start`, then linear, `alpha` from `end` on (Lee, equation 16).

  Args:
    step: number of finished steps.
    total_steps: of which `start` and `end` are fractions, start <= end.
    alpha: the last value.
    start: T1 / total_steps.
    end: T2 / total_steps.

  Returns:
    float32 scalar.
  """
  step = jnp.asarray(step, jnp.float32)
  first, last = start * total_steps, end * total_steps
  if last <= first:
    return alpha * (step >= first).astype(jnp.float32)
  return alpha * jnp.clip((step - first) / (last - first), 0.0, 1.0)


def in_box(
  rng: jax.Array,
  image: jax.Array,
  label: jax.Array,
  mask: jax.Array,
  box: str,
) -> tuple[jax.Array, jax.Array]:
  """Replaces a box of each image, and what it says there.

  Args:
    rng: a key.
    image: [N, H, W, C] in [-1, 1].
    label: int32 [N, H, W].
    mask: [N, H, W], 1 in the box and 0 outside.
    box: 'cutout', uniform noise for each pixel, labels void; 'cutmix', the
      next image of the batch and its labels; 'none'.

  Returns:
    (image, label).
  """
  if box == 'none':
    return image, label
  if box == 'cutmix':
    return views.cutmix(image, mask), views.cutmix(label, mask)
  noise = jax.random.uniform(rng, image.shape, minval=-1.0, maxval=1.0)
  void = jnp.full_like(label, VOID)
  return views.cutmix(image, mask, noise), views.cutmix(label, mask, void)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train; see `segmenting_checks.check`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check_semi_supervised(where, fields, data, from_stage=True)
  args = fields.args
  _refuse(
    f'{where}.args', args.threshold, args.box, args.alpha_start, args.alpha_end
  )
  if args.box != 'cutmix':
    return
  if not data.strong.views:
    raise UserError(
      f"config.data.strong.views is 0, but {where}.args.box 'cutmix' is of "
      'strong views; set config.data.strong.views=1.'
    )
  segmenting_checks.check_boxes(where, fields, f"{where}.args.box 'cutmix'")


def _refuse(where, threshold, box, start, end):
  if not 0 <= threshold < 1:
    raise UserError(
      f'{where}.threshold is {threshold}, must be from 0 to below 1, such as '
      '0.9; 0 keeps every pixel.'
    )
  if box not in BOXES:
    raise UserError(
      f'{where}.box is {box!r}, must be one of {", ".join(BOXES)}.'
    )
  if not 0 <= start <= end <= 1:
    raise UserError(
      f'{where}.alpha_start is {start} and alpha_end {end}, must be fractions '
      'of the steps, 0 <= alpha_start <= alpha_end <= 1.'
    )
