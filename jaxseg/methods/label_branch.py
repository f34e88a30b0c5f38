"""Labels for a published generator that never saw any, from few images.

The labelled images are inverted once, by the file's encoder and test-time
optimisation; then a head learns to label what the frozen generator draws for
their codes. It is either the label skips of Li et al. (CVPR 2021, section 3.1)
alone, or the pixel classifiers of Zhang et al. (DatasetGAN, CVPR 2021). A new
image is labelled by inversion too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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
from jaxseg.methods import frozen as frozen_nets
from jaxseg.methods import inversion
from jaxseg.methods.label_branch_checks import check as check
from jaxseg.nets import pixel_head, stylegan2
from jaxseg.parallel import split_batch
from jaxseg.published import folder as folders
from jaxseg.published import start

PICTURES = 8  # inverted images, and samples, of each sheet


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  card: Mapping[str, Any],  # 'networks' and 'adds_w_avg' of pretrained.json
  folder: str,  # of the converted weights; read before the first step alone
  head: str = 'skips',  # or 'pixels'
  members: int = 10,  # networks of the ensemble, of 'pixels'
  head_widths: Sequence[int] = (128, 32),  # hidden layers, of 'pixels'
  pixels: int = 256,  # of an image, a step and a network, of 'pixels'
  reuse_labels: bool = True,  # begin with a label branch of K classes, if any
  max_images: int = 64,  # labelled images that are inverted, the first so many
  # Optimiser: Adam.
  lr: float = 2e-3,
  ema_half_life: float = 0.0,  # of averaged weights, in images; 0: off
  lambda_ce: float = 1.0,
  lambda_dice: float = 1.0,  # of 'skips'
  # Inversion of the labelled images, and of those to be labelled ("Ours").
  perceptual_kind: str = 'auto',  # 'lpips', 'discriminator', 'random'
  lpips_weights: str = '',  # file or folder; '': the installed package
  invert_steps: int = 200,
  invert_batch: int = 4,  # images at a time, before the first step
  refine_steps: int = 100,
  refine_lr: float = 0.05,
  refine_lambda_l2: float = 1.0,
  refine_lambda_encoder: float = 0.0,  # lambda_2; without encoder |w - w_avg|^2
  # Terms that let the label follow the edges of an image to be labelled;
  # without `ramp_up`. With 'pixels' a step then also differentiates the whole
  # label, which takes 1.6 GB for an image of 256 pixels.
  refine_regularizer: Regularizer = Regularizer(),
  truncation: float = 0.7,  # psi of sample()
  dtype: str = 'float32',
) -> Method:
  """The head's stage; see the signature for what each argument does.

  Its state holds the generator, the encoder and the codes, so its checkpoint is
  all that inference needs. Without an encoder `predict` inverts, from the mean
  w, and there is no `refine`.

  Raises:
    UserError: images of another size than the generator's; weights without a
      generator.
  """
  inversion.check_regularizer(
    'refine_regularizer', refine_regularizer, (resolution, resolution)
  )
  frozen = frozen_nets.build(card, dtype)
  g = frozen.g
  sizes = {'resolution': g.resolution, 'channels': g.channels}
  start.check_size(f'the weights are {folder}', sizes, resolution, channels)
  bare = g.clone(num_classes=0)
  frozen = frozen._replace(g=bare)
  labelled = g.clone(num_classes=num_classes)
  latents = stylegan2.num_latents(resolution)
  distance = frozen_nets.metric(frozen, perceptual_kind, lpips_weights)
  tx = {'head': optax.adam(lr)}
  widths = stylegan2.widths_of(bare)
  map_channels = [widths[0], *(w for w in widths[1:] for _ in range(2))]

  def init(rng, previous=None) -> TrainState:
    del previous
    zeros = lambda tree: jax.tree.map(lambda x: jnp.zeros(x.shape), tree)
    weights = zeros(frozen_nets.abstract_weights(frozen))
    key = jax.random.fold_in(rng, 0)
    if head == 'skips':
      params = labelled.init(key, jnp.zeros((1, g.w_dim)))['params']
      params = {n: p for n, p in params.items() if n.startswith('to_seg')}
    else:
      params = pixel_head.init(
        key, map_channels, num_classes, members, tuple(head_widths)
      )
    extra = {
      'frozen': _without_d_r(weights),
      'perceptual': zeros(frozen_nets.metric_weights(distance, weights)),
      'codes': jnp.zeros((max_images, latents, g.w_dim)),
      'labels': jnp.full((max_images, resolution, resolution), 255, jnp.uint8),
      'count': jnp.ones((), jnp.int32),
      'mean': [jnp.zeros(c) for c in map_channels],
      'std': [jnp.ones(c) for c in map_channels],
    }
    params = {'head': params}
    return new_state(rng, params, tx, ema=params, extra=extra)

  def pretrained(state, previous) -> TrainState:
    """Reads the folder; a label branch of as many classes is the start."""
    del previous
    weights = frozen_nets.weights(folders.load(folder))
    is_seg = lambda name: name.startswith('to_seg')
    params, ema = state.params, state.ema
    same = g.num_classes == num_classes
    if head == 'skips' and reuse_labels and same:
      params = {'head': {n: p for n, p in weights['g'].items() if is_seg(n)}}
      ema = jax.tree.map(np.copy, params)  # donated buffers are not shared
    weights['g'] = {n: p for n, p in weights['g'].items() if not is_seg(n)}
    extra = state.extra | {
      'frozen': _without_d_r(weights),
      'perceptual': frozen_nets.metric_weights(distance, weights),
    }
    return state.replace(params=params, ema=ema, extra=extra)

  def absorb(state, images, labels, alive=lambda: None) -> TrainState:
    """Inverts labelled images, and remembers their codes.

    Args:
      state: before the first step.
      images: float32 [M, R, R, C] in [-1, 1], on the host; M <= max_images.
      labels: integers [M, R, R].
      alive: called after each batch.
    """
    run = jax.jit(lambda state, x: invert(state, x, invert_steps))
    codes = frozen_nets.invert_all(
      lambda x: run(state, x), images, invert_batch, alive
    )
    empty = max_images - len(images)
    pad = lambda x, value: np.pad(
      x, ((0, empty), *((0, 0),) * (x.ndim - 1)), constant_values=value
    )
    mean, std = statistics(state, codes)
    extra = state.extra | {
      'codes': pad(codes, 0),
      'labels': pad(labels.astype(np.uint8), 255),
      'count': np.asarray(len(images), np.int32),
      'mean': mean,
      'std': std,
    }
    return state.replace(extra=extra)

  def statistics(state, codes):
    """Means and deviations of the features of all codes."""
    run = jax.jit(lambda state, w: pixel_head.moments(render(state, w)[2]))
    total = None
    for w_plus in codes:
      found = run(state, w_plus[None])
      total = found if total is None else jax.tree.map(jnp.add, total, found)
    first, second = jax.tree.map(lambda x: x / len(codes), total)
    std = [
      jnp.sqrt(jnp.maximum(b - a * a, 0))
      for a, b in zip(first, second, strict=True)
    ]
    return list(first), std

  def render(state, w_plus):
    weights = state.extra['frozen']
    return bare.apply(
      {'params': weights['g']}, w_plus, weights['noise'], method='render'
    )

  def maps_of(state, maps):
    return pixel_head.standardize(maps, state.extra['mean'], state.extra['std'])

  def skip_logits(state, params, w_plus):
    weights = state.extra['frozen']
    variables = {'params': {**weights['g'], **params}}
    return labelled.apply(
      variables, w_plus, weights['noise'], method='synthesize'
    )

  def skips_loss(params, state, rng, w_plus, label):
    _, logits = skip_logits(state, params, w_plus)
    ce = segmentation.cross_entropy(logits, label)
    dice = segmentation.dice_loss(jax.nn.softmax(logits), label)
    loss = lambda_ce * ce + lambda_dice * dice
    return loss, {'loss': loss, 'ce': ce, 'dice': dice}

  def pixels_loss(params, state, rng, w_plus, label):
    maps = maps_of(state, render(state, w_plus)[2])
    features, target = pixel_head.draw_pixels(rng, maps, label, members, pixels)
    logits = pixel_head.pixel_logits(params, features)
    loss = segmentation.cross_entropy(logits[:, None], target[:, None])
    return loss, {'loss': loss}

  def train_step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    n = batch['image'].shape[0]
    index = jax.random.randint(rng, (n,), 0, state.extra['count'])
    w_plus = split_batch(state.extra['codes'][index])
    label = split_batch(state.extra['labels'][index].astype(jnp.int32))
    loss_fn = skips_loss if head == 'skips' else pixels_loss
    grads, metrics = jax.grad(loss_fn, has_aux=True)(
      state.params['head'], state, jax.random.fold_in(rng, 1), w_plus, label
    )
    params, opt_state = update(
      tx['head'], grads, state.opt_state['head'], state.params['head']
    )
    decay = ema_decay(n, ema_half_life)
    return state.replace(
      step=state.step + 1,
      params={'head': params},
      opt_state={'head': opt_state},
      ema={'head': ema_update(state.ema['head'], params, decay)},
    ), metrics

  def model_of(state):
    return frozen_nets.model(
      frozen, state.extra['frozen'], distance, state.extra['perceptual']
    )

  def invert(state, images, steps, label_loss=None):
    model = model_of(state)
    if label_loss is not None:
      draw = lambda w_plus, _: label_logits(state, w_plus)
      model = model._replace(synthesize=draw)
    return inversion.invert(
      model,
      images,
      model.encode(images),
      state.extra['frozen']['noise'],
      steps=steps,
      schedule=inversion.ramp_schedule(refine_lr, steps),
      lambda_l2=refine_lambda_l2,
      lambda_encoder=refine_lambda_encoder,
      label_loss=label_loss,
    )

  def label_logits(state, w_plus):
    if head == 'skips':
      return skip_logits(state, state.ema['head'], w_plus)
    image, probabilities = label(state, w_plus)
    return image, jnp.log(jnp.maximum(probabilities, 1e-12))

  def label(state, w_plus):
    """(image, probabilities) of codes."""
    if head == 'skips':
      image, logits = skip_logits(state, state.ema['head'], w_plus)
      return image, jax.nn.softmax(logits)
    image, _, maps = render(state, w_plus)
    return image, pixel_head.probabilities(
      state.ema['head'], maps_of(state, maps), resolution
    )

  def to_prediction(state, images, w_plus):
    image, probabilities = label(state, w_plus)
    model = model_of(state)
    found = model.distance(model.features(image), model.features(images))
    trust = -found - jnp.square(image - images).mean((1, 2, 3))
    return Prediction(probabilities, image, trust)

  def predict(state, images):
    return to_prediction(state, images, model_of(state).encode(images))

  def refine(state, images):
    edges = inversion.follow_edges(images, refine_regularizer)
    found = invert(state, images, refine_steps, edges)
    return to_prediction(state, images, found.w_plus)

  def sample(state, rng, n, truncation=truncation):
    weights = state.extra['frozen']
    z = jax.random.normal(rng, (n, g.w_dim))
    w = bare.apply({'params': weights['g']}, z, method='mapping')
    w_plus = stylegan2.broadcast_w(w, resolution)
    return label(
      state, stylegan2.truncate(w_plus, weights['w_avg'], truncation)
    )

  def pictures(state, batch):
    del batch
    shown = jnp.arange(PICTURES) % state.extra['count']

    def one(inputs):  # one by one: eight of 1024 pixels would not fit
      code, key = inputs
      image, probabilities = label(state, code[None])
      drawn, drawn_label = sample(state, key, 1)
      ids = lambda probabilities: probabilities[0].argmax(-1)
      return image[0], ids(probabilities), drawn[0], ids(drawn_label)

    keys = jax.random.split(jax.random.key(0), PICTURES)
    found = jax.lax.map(one, (state.extra['codes'][shown], keys))
    names = 'inverted', 'predicted', 'sample', 'sample_label'
    label_ids = state.extra['labels'][shown].astype(jnp.int32)
    return dict(zip(names, found, strict=True), label=label_ids)

  return Method(
    init, train_step, predict if frozen.e else refine,
    refine if frozen.e else None, sample, pictures, pretrained, absorb,
  )  # fmt: skip


def _without_d_r(weights):
  """Where D_r is the metric it is among the metric's weights."""
  return {name: tree for name, tree in weights.items() if name != 'd_r'}
