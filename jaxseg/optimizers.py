"""A segmenter's optimiser, and what optax does not have.

Sources: Liu et al., On the Variance of the Adaptive Learning Rate and Beyond
(RAdam, ICLR 2020), algorithm 2; Zhang et al., Lookahead Optimizer (NeurIPS
2019), algorithm 1; Yong et al., Gradient Centralization (ECCV 2020), equation
1. Their combination is known as Ranger.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseg.errors import UserError

OPTIMIZERS = ('adamw', 'adam', 'sgd')
SCHEDULES = ('cosine', 'poly', 'linear', 'constant')


class Optimizer(NamedTuple):
  """Settings of a segmenter's optimiser."""

  name: str = 'adamw'  # 'adamw', 'adam' (L2 in the gradient), 'sgd'
  lr: float = 1e-3  # the highest learning rate
  # To zero at the last step; or 'poly', 'linear', 'constant'.
  schedule: str = 'cosine'
  power: float = 0.9  # of 'poly': (1 - step / steps)**power
  hold: float = 0.0  # of 'linear': fraction of the steps before it falls
  # The curve changes only every so many steps, such as those of an epoch; the
  # warm-up at each.
  period: int = 1
  warmup: float = 0.0  # fraction of the steps that climb from zero
  weight_decay: float = 1e-4
  b1: float = 0.9  # of 'adam' and 'adamw': decay of the mean gradient
  b2: float = 0.999  # and of its mean square
  momentum: float = 0.9  # of 'sgd'
  nesterov: bool = False  # of 'sgd'
  head_factor: float = 1.0  # lr factor of all parameters but the encoder's
  # Parts of a step's images, differentiated one after the other for their
  # memory; see jaxseg/methods/accumulation.py.
  accumulate: int = 1


def make(
  settings: Optimizer, total_steps: int, where: str = 'optimizer'
) -> optax.GradientTransformation:
  """Builds the optimiser.

  Args:
    settings: see `Optimizer`.
    total_steps: length of the learning-rate curve.
    where: what holds the settings, for messages.

  Raises:
    UserError: a setting outside its choices.
  """
  for field, allowed in (('name', OPTIMIZERS), ('schedule', SCHEDULES)):
    value = getattr(settings, field)
    if value not in allowed:
      raise UserError(
        f'{where}.{field} is {value!r}, must be one of {", ".join(allowed)}.'
      )
  for field in ('period', 'accumulate'):
    value = getattr(settings, field)
    if value < 1:
      raise UserError(f'{where}.{field} is {value}, must be at least 1.')
  for field in ('warmup', 'momentum', 'hold', 'b1', 'b2'):
    value = getattr(settings, field)
    if not 0 <= value < 1:
      raise UserError(f'{where}.{field} is {value}, must be from 0 to below 1.')
  lr, decay = schedule(settings, total_steps), settings.weight_decay
  adam = optax.scale_by_adam(settings.b1, settings.b2)
  if settings.name == 'adamw':
    steps = [adam, optax.add_decayed_weights(decay)]
  elif settings.name == 'adam':
    steps = [optax.add_decayed_weights(decay), adam]
  else:
    momentum = optax.trace(settings.momentum, settings.nesterov)
    steps = [optax.add_decayed_weights(decay), momentum]
  if settings.head_factor != 1:
    steps.append(scale_outside('encoder', settings.head_factor))
  return optax.chain(*steps, optax.scale_by_learning_rate(lr))


def schedule(settings: Optimizer, total_steps: int) -> optax.Schedule:
  """Finished steps -> learning rate.

  Args:
    settings: see `Optimizer`. The published schedule of CycleGAN, 1 - max(0,
      epoch - 100) / 300 over 400 epochs, is 'linear' with `hold` .25 and the
      length of an epoch as `period`.
    total_steps: steps of the warm-up and the curve.
  """
  warmup = round(settings.warmup * total_steps)
  steps = max(1, total_steps - warmup)
  if settings.schedule == 'cosine':
    curve = optax.cosine_decay_schedule(settings.lr, steps)
  elif settings.schedule == 'poly':
    curve = optax.polynomial_schedule(settings.lr, 0.0, settings.power, steps)
  elif settings.schedule == 'linear':
    hold = min(round(settings.hold * steps), steps - 1)
    curve = optax.linear_schedule(settings.lr, 0.0, steps - hold, hold)
  else:
    curve = optax.constant_schedule(settings.lr)
  if settings.period > 1:
    each, length = curve, settings.period
    curve = lambda step: each(step // length * length)
  if not warmup:
    return curve
  climb = optax.linear_schedule(settings.lr / warmup, settings.lr, warmup - 1)
  return optax.join_schedules([climb, curve], [warmup])


def scale_outside(name: str, factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of all top-level entries but `name`."""

  def scale(updates, params=None):
    del params
    return {
      key: tree if key == name else jax.tree.map(lambda u: factor * u, tree)
      for key, tree in updates.items()
    }

  return optax.stateless(scale)


class RangerState(NamedTuple):
  """Moments of the gradient, and the slow weights of Lookahead."""

  count: jax.Array  # int32, finished updates
  mu: optax.Updates
  nu: optax.Updates
  slow: optax.Params


def ranger(
  learning_rate: optax.ScalarOrSchedule,
  b1: float = 0.95,
  b2: float = 0.999,
  eps: float = 1e-5,
  threshold: float = 5.0,
  sync_period: int = 6,
  slow_step: float = 0.5,
) -> optax.GradientTransformation:
  """RAdam with centralised gradients inside Lookahead.

  Args:
    learning_rate: constant, or a schedule of the number of finished updates.
    b1: decay of the mean gradient.
    b2: decay of the mean squared gradient.
    eps: added to the root of the (not bias-corrected) mean square.
    threshold: samples the average must span before it is divided by; until
      then the update is momentum alone.
    sync_period: updates between two meetings of the fast and slow weights.
    slow_step: how far the slow weights then move towards the fast ones.

  Returns:
    a transformation whose `update` needs `params`. Kernels are expected in
    Linen's layout, output channels last.

  Raises:
    ValueError: a threshold below 4, where the rectification is not defined.
  """
  if threshold < 4:
    raise ValueError(f'threshold is {threshold}, must be at least 4')

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    # A copy: both trees may be donated to one jitted step.
    slow = jax.tree.map(lambda p: jnp.array(p, copy=True), params)
    return RangerState(jnp.zeros((), jnp.int32), zeros(), zeros(), slow)

  def update(grads, state, params=None):
    if params is None:
      raise ValueError('ranger: update(grads, state, params) needs params')
    grads = jax.tree.map(centralize, grads)
    mu = optax.tree.update_moment(grads, state.mu, b1, 1)
    nu = optax.tree.update_moment(grads, state.nu, b2, 2)
    count = optax.safe_increment(state.count)
    rectified, size = _radam_step(count, b1, b2, threshold)
    lr = (
      learning_rate(state.count) if callable(learning_rate) else learning_rate
    )
    sync = count % sync_period == 0

    def fast(p, m, v):
      direction = jnp.where(rectified, m / (jnp.sqrt(v) + eps), m)
      return p - lr * size * direction

    fast_params = jax.tree.map(fast, params, mu, nu)
    slow = jax.tree.map(
      lambda s, p: jnp.where(sync, s + slow_step * (p - s), s),
      state.slow,
      fast_params,
    )
    updates = jax.tree.map(
      lambda p, f, s: (jnp.where(sync, s, f) - p).astype(p.dtype),
      params,
      fast_params,
      slow,
    )
    return updates, RangerState(count, mu, nu, slow)

  return optax.GradientTransformation(init, update)


def centralize(grad: jax.Array) -> jax.Array:
  """Subtracts the mean over all axes but the last, of kernels only.

  Args:
    grad: [..., O]; one axis or none is left as it is.

  Returns:
    same shape, zero mean for each output channel.
  """
  if grad.ndim < 2:
    return grad
  axes = tuple(range(grad.ndim - 1))
  return grad - grad.mean(axes, keepdims=True)


def _radam_step(count, b1, b2, threshold):
  """(whether to divide by the root mean square, step size) at `count`."""
  t = count.astype(jnp.float32)
  longest = 2 / (1 - b2) - 1
  # 1 - b2**t loses most of its digits in float32 when t is small.
  remaining = -jnp.expm1(t * math.log(b2))
  spanned = longest - 2 * t * (1 - remaining) / remaining
  rectified = spanned > threshold
  safe = jnp.maximum(spanned, threshold)
  ratio = (
    (safe - 4) / (longest - 4) * (safe - 2) / safe * longest / (longest - 2)
  )
  size = jnp.where(rectified, jnp.sqrt(remaining * ratio), 1.0)
  return rectified, size / -jnp.expm1(t * math.log(b1))


def constant_then_cosine(
  peak: float, start: int, end: int, final: float
) -> optax.Schedule:
  """`peak` up to step `start`, half a cosine down to `final` at `end`.

  Args:
    peak: learning rate of the first steps.
    start: step at which the descent begins.
    end: step from which the rate stays at `final`; after `start`.
    final: last learning rate.

  Returns:
    step -> learning rate.
  """
  if peak <= 0 or end <= start:
    return optax.constant_schedule(peak)
  descent = optax.cosine_decay_schedule(peak, end - start, alpha=final / peak)
  return optax.join_schedules([optax.constant_schedule(peak), descent], [start])
