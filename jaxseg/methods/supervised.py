"""Supervised segmentation: cross entropy and Dice on labelled pixels."""

import jax
import optax

from jaxseg.losses import segmentation
from jaxseg.method import (
  Method,
  Prediction,
  ema_decay,
  ema_update,
  new_state,
  update,
)
from jaxseg.nets.unet import UNet


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  width: int = 64,  # channels of U-Net at full resolution
  depth: int = 4,  # its levels below
  lr: float = 1e-3,
  lr_steps: int = 0,  # length of a cosine decay to zero; 0: constant
  weight_decay: float = 1e-4,
  dice: float = 1.0,  # weight of the Dice loss beside cross entropy
  ema_half_life: float = 500.0,  # of the averaged weights, in images; 0: off
  dtype: str = 'float32',
) -> Method:
  """U-Net trained on the labelled images alone; AdamW.

  Args:
    num_classes: K.
    resolution: side of the images, divisible by 2**depth.
    channels: image channels.
    width: see the signature; likewise the rest.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.
  """
  net = UNet(num_classes, width, depth, dtype)
  schedule = optax.cosine_decay_schedule(lr, lr_steps) if lr_steps else lr
  tx = {'seg': optax.adamw(schedule, weight_decay=weight_decay)}

  def init(rng, previous=None):
    del previous
    shape = (1, resolution, resolution, channels)
    params = net.init(jax.random.fold_in(rng, 0), jax.numpy.zeros(shape))
    params = {'seg': params['params']}
    return new_state(rng, params, tx, ema=params)

  def train_step(state, batch):
    def loss_fn(params):
      logits = net.apply({'params': params}, batch['image'])
      ce = segmentation.cross_entropy(logits, batch['label'])
      overlap = segmentation.dice_loss(
        jax.nn.softmax(logits), batch['label'], include_background=True
      )
      return ce + dice * overlap, {'ce': ce, 'dice': overlap}

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params['seg'])
    params, opt_state = update(
      tx['seg'], grads, state.opt_state['seg'], state.params['seg']
    )
    decay = (
      ema_decay(batch['image'].shape[0], ema_half_life)
      if ema_half_life
      else 0.0
    )
    return state.replace(
      step=state.step + 1,
      params={'seg': params},
      opt_state={'seg': opt_state},
      ema={'seg': ema_update(state.ema['seg'], params, decay)},
    ), metrics

  def predict(state, images):
    logits = net.apply({'params': state.ema['seg']}, images)
    probabilities = jax.nn.softmax(logits)
    return Prediction(probabilities, trust=probabilities.max(-1).mean((1, 2)))

  def pictures(state, batch):
    prediction = predict(state, batch['image'])
    return {
      'image': batch['image'],
      'label': batch['label'],
      'predicted': prediction.probabilities.argmax(-1),
    }

  return Method(init, train_step, predict, pictures=pictures)
