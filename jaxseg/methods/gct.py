"""Guided collaborative training: two segmenters led by a flaw detector.

Source: Ke et al., Guided Collaborative Training for Pixel-wise Semi-Supervised
Learning (ECCV 2020), section 3, with the constants of its semantic
segmentation.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxseg import method
from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import flaws, segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import Loss
from jaxseg.method import Method, Prediction, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
from jaxseg.nets import flaw_detector
from jaxseg.nets.flaw_detector import FlawDetector
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

MODES = ('gct', 'fc', 'dc')
MODELS = ('l', 'r')
PREDICT_WITH = (*MODELS, 'mean')


class Detector(NamedTuple):
  """Settings of the flaw detector."""

  width: int = 64  # channels of its first layer, even
  # Pixels a side for one cell of its map: 32 (published), 16 .. 1; 0: the
  # greatest that leaves 5 cells a side, 32 from 188 pixels on.
  stride: int = 0
  lr: float = 1e-4  # Adam with b1 .9, b2 .99; falls as (1 - step / steps)^.9
  weight: float = 10.0  # of its loss
  mu: float = 0.5  # a pixel that is entirely wrong differs by 2 mu
  nu: int = 1  # how often true flaws are widened
  # Published: void pixels are taught as a flaw of mu before blurring. Else they
  # show no flaw, and its loss leaves them out.
  void_as_flaw: bool = False
  clip: bool = False  # published: its loss sees negative flaws as 0


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
  mode: str = 'gct',  # both constraints; 'fc' or 'dc': that one alone
  # The model that labels images: 'l', 'r', or the 'mean' of both models'
  # probabilities, in twice the time. Published are the scores of each.
  predict_with: str = 'l',
  detector: Detector = Detector(),
  xi: float = 0.6,  # a flaw above it is too large to learn from
  # Of the dynamic consistency constraint, a sum over classes. Published: 100 of
  # the mean over 21 classes; as a mean it would swamp the rest with few.
  dc_weight: float = 100 / 21,
  dc_ramp_up: float = 0.1,  # fraction of the steps in which that weight grows
  fc_weight: float = 1.0,  # of the flaw correction constraint
  shift_none: bool = False,  # published: maps without flaw are below zero
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """Two segmenters 'l' and 'r' and a flaw detector 'flaw'.

  Each segmenter minimises the supervised loss on labelled images, and on all

    fc_weight L_fc + dc_weight ramp-up L_dc

  L_fc: where both are wrong, the detector, held fixed, is to find no flaw.
  L_dc: the probabilities with the smaller flaw teach the other model. The
  detector minimises its distance to the true flaws of both predictions of
  labelled images, and leaves the segmenters alone. All three see the parameters
  of before the step.

  The detector takes one model's predictions at a time, of labelled and
  unlabelled images together, always with the statistics of that batch. The
  segmenters differ in their initial weights: in all of them, or in the
  decoder's alone when `net.weights` fills the encoder.

  Args:
    num_classes: K.
    resolution: shorter side of the images, for the detector's stride.
    channels: image channels.
    total_steps: length of all curves.
    net: see `jaxseg.nets.segmenters.Net`; of both segmenters.
    loss: see `jaxseg.losses.segmentation.Loss`. Published: cross entropy alone.
    optimizer: see `jaxseg.optimizers.Optimizer`; of both segmenters.
    ema_half_life: this and the others: see the signature, and `Detector`.
    regularizer: see `jaxseg.losses.regularized.Regularizer`; of both.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.

  Raises:
    UserError: a setting outside its choices.
  """
  _check_settings('', mode, predict_with, detector, xi, dc_ramp_up, resolution)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip
  stride = detector.stride or flaw_detector.fitting_stride(resolution)
  flaw_net = FlawDetector(detector.width, stride, net.dtype)
  lr = optax.polynomial_schedule(detector.lr, 0.0, 0.9, total_steps)
  flaw_tx = optax.adam(lr, b1=0.9, b2=0.99)

  def init(rng, previous=None):
    del previous
    params, extra = {}, {}
    for i, name in enumerate(MODELS):
      params[name], extra[name] = segmenting.init(
        seg, jax.random.fold_in(rng, i)
      )
    shape = (1, resolution, resolution)
    variables = flaw_net.init(
      jax.random.fold_in(rng, len(MODELS)),
      jnp.zeros((*shape, channels)),
      jnp.zeros((*shape, num_classes)),
    )
    params['flaw'] = variables['params']
    extra['flaw'] = variables['batch_stats']
    ema = {
      name: segmenting.collections(params[name], extra[name]) for name in MODELS
    }
    tx = {'l': seg.tx, 'r': seg.tx, 'flaw': flaw_tx}
    return method.new_state(rng, params, tx, ema, extra)

  dc_factor = dc_weight * num_classes  # `consistency_loss` is a mean

  def train_step(state, batch):
    ramp = segmenting.ramp_up(state.step, dc_ramp_up * total_steps)

    def loss_fn(params, part, key):
      images = jnp.concatenate([part['image'], part['unlabelled']])
      label = part['label']
      total, p, stats, terms = 0.0, (), {}, {'dc_weight': dc_factor * ramp}
      for i, name in enumerate(MODELS):
        logits, stats[name] = segmenting.train_logits(
          seg, params[name], state.extra[name], images,
          jax.random.fold_in(key, i), split=(label.shape[0],),
        )  # fmt: skip
        supervised, found = segmentation.supervised(
          logits[: label.shape[0]], label, loss
        )
        total += supervised
        terms |= {f'{term}_{name}': value for term, value in found.items()}
        total, terms = segmenting.regularize(
          seg, state.step, (total, terms), logits, images, label, f'_{name}'
        )
        p += (jax.nn.softmax(logits),)
      variables = (params['flaw'], state.extra['flaw'])
      guided = guide(flaw_net, variables, images, p, mode, xi, shift_none)
      for name in MODELS:
        total += fc_weight * guided.get(f'fc_{name}', 0.0)
        total += terms['dc_weight'] * guided.get(f'dc_{name}', 0.0)
      terms['fd'], stats['flaw'] = detection_loss(
        flaw_net, variables, images, p, label, detector
      )
      total += detector.weight * terms['fd']
      return total, ((stats, terms | guided), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params, batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['label'].shape[0], ema_half_life)
    for name, tx, ema in (
      ('l', seg.tx, decay), ('r', seg.tx, decay), ('flaw', flaw_tx, None),
    ):  # fmt: skip
      state = segmenting.advance(state, name, tx, grads[name], stats[name], ema)
    return state.replace(step=state.step + 1), terms

  predict = _predict(seg, predict_with)

  def pictures(state, batch):
    shown = segmenting.pictures(predict)
    variables = segmenting.collections(
      state.params['flaw'], state.extra['flaw']
    )
    p = predict(state, batch['image']).probabilities
    flaw = flaws.handle(flaw_net.apply(variables, batch['image'], p))
    return shown(state, batch) | {'flaw': 2 * flaw[..., None] - 1}

  return Method(
    init,
    train_step,
    predict,
    pictures=pictures,
    pretrained=segmenting.pretrained(seg, MODELS),
  )


def guide(
  flaw_net: nn.Module,
  variables: tuple[method.PyTree, method.PyTree],
  images: jax.Array,
  probabilities: tuple[jax.Array, jax.Array],
  mode: str = 'gct',
  xi: float = 0.6,
  shift_none: bool = False,
) -> dict[str, jax.Array]:
  """What the flaw detector, held fixed, tells the two models.

  Args:
    flaw_net: the detector.
    variables: its (parameters, batch statistics).
    images: [N, S, S, C] in [-1, 1].
    probabilities: [N, S, S, K] of both models.
    mode: one of MODES.
    xi: see `losses.flaws`.
    shift_none: see `losses.flaws.handle`.

  Returns:
    scalars: 'fc_l', 'fc_r' (not with 'dc') and 'dc_l', 'dc_r' (not with 'fc'),
    losses before their weights; 'both_flawed', the fraction of such pixels.
  """
  params, stats = variables
  fixed = jax.lax.stop_gradient(params), stats
  flaw = [_detect(flaw_net, fixed, images, p)[0] for p in probabilities]
  handled = tuple(flaws.handle(f, shift_none=shift_none) for f in flaw)
  where = flaws.both_flawed(handled, xi)
  targets = flaws.consistency_targets(probabilities, handled, xi)
  found = {'both_flawed': where.mean()}
  for i, name in enumerate(MODELS):
    if mode != 'dc':
      found[f'fc_{name}'] = flaws.correction_loss(flaw[i], where)
    if mode != 'fc':
      found[f'dc_{name}'] = flaws.consistency_loss(probabilities[i], targets[i])
  return found


def detection_loss(
  flaw_net: nn.Module,
  variables: tuple[method.PyTree, method.PyTree],
  images: jax.Array,
  probabilities: tuple[jax.Array, jax.Array],
  label: jax.Array,
  settings: Detector,
) -> tuple[jax.Array, method.PyTree]:
  """L_fd, the mean over both models, without gradient to them.

  Args:
    flaw_net: the detector.
    variables: its (parameters, batch statistics).
    images: [N + M, S, S, C] in [-1, 1], the labelled ones first.
    probabilities: [N + M, S, S, K] of both models.
    label: int32 [N, S, S], 255 = void.
    settings: see `Detector`.

  Returns:
    (scalar before its weight, batch statistics afterwards).
  """
  params, stats = variables
  counted = segmentation.valid_pixels(label)
  if settings.void_as_flaw:
    counted = jnp.ones_like(counted)
  total, labelled = 0.0, label.shape[0]
  for p in jax.lax.stop_gradient(probabilities):
    flaw, stats = _detect(flaw_net, (params, stats), images, p)
    flaw = flaw[:labelled]
    if settings.clip:  # of the value alone: the gradient is not cut
      flaw += jax.lax.stop_gradient(jnp.maximum(flaw, 0) - flaw)
    true = flaws.target(
      p[:labelled], label, mu=settings.mu, nu=settings.nu,
      void_as_flaw=settings.void_as_flaw,
    )  # fmt: skip
    total += flaws.detection_loss(flaw, true, counted) / len(probabilities)
  return total, stats


def _detect(flaw_net, variables, images, probabilities):
  """(Flaw maps [N, S, S], batch statistics afterwards)."""
  found, updated = flaw_net.apply(
    segmenting.collections(*variables),
    images,
    probabilities,
    train=True,
    mutable=['batch_stats'],
  )
  return found, updated['batch_stats']


def _predict(seg, predict_with):
  if predict_with != 'mean':
    return segmenting.predict(seg, predict_with)
  models = [segmenting.predict(seg, name) for name in MODELS]

  def run(state, images):
    found = [model(state, images).probabilities for model in models]
    probabilities = sum(found) / len(found)
    return Prediction(probabilities, trust=probabilities.max(-1).mean((1, 2)))

  return run


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
  _check_settings(
    f'{where}.args.', args.mode, args.predict_with, Detector(**args.detector),
    args.xi, args.dc_ramp_up, min(fit.size(data)),
  )  # fmt: skip


def _check_settings(
  where, mode, predict_with, detector, xi, dc_ramp_up, resolution
):
  strides = (0, *flaw_detector.STRIDES)
  for field, value, allowed in (
    ('mode', mode, MODES),
    ('predict_with', predict_with, PREDICT_WITH),
    ('detector.stride', detector.stride, strides),
  ):
    if value not in allowed:
      raise UserError(
        f'{where}{field} is {value!r}, must be one of '
        f'{", ".join(map(str, allowed))}.'
      )
  for field, value, low, high in (
    ('xi', xi, 0, 1), ('dc_ramp_up', dc_ramp_up, 0, 1),
    ('detector.nu', detector.nu, 0, 100),
  ):  # fmt: skip
    if not low <= value <= high:
      raise UserError(
        f'{where}{field} is {value}, must lie between {low} and {high}.'
      )
  if detector.width < 2 or detector.width % 2:
    raise UserError(
      f'{where}detector.width is {detector.width}, must be even: half of the '
      'channels are normalised over the batch.'
    )
  # One cell would say the same of all pixels, which no model can learn from.
  stride = detector.stride or flaw_detector.fitting_stride(resolution)
  if flaw_detector.cells(resolution, stride) < 2:
    least = flaw_detector.smallest_side(stride, 2)
    raise UserError(
      f'{where}detector.stride is {detector.stride}, which needs images of at '
      f'least {least} pixels a side (config.data: the shorter side is '
      f'{resolution}); set it to 0 for the greatest that fits, or enlarge the '
      'images.'
    )
