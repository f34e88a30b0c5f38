"""SemanticGAN, stage 1: one generator of images with their labels.

Li et al., Semantic Segmentation with Generative Models: Semi-Supervised
Learning and Strong Out-of-Domain Generalization (CVPR 2021), section 3.2:
L_Dr and L_Dm (equations 2 and 3), L_G (equation 4). Where the published
implementation adds to the paper (hinge loss and feature matching for D_m, the
stop-gradient, lazy regularisation), the default follows it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import gan, segmentation
from jaxseg.method import (
  Method,
  TrainState,
  ema_decay,
  ema_update,
  new_state,
  update,
)
from jaxseg.methods import accumulation, diffaugment
from jaxseg.nets import discriminators, stylegan2
from jaxseg.parallel import split_batch

# Softmax temperature of unbounded label outputs, as in the published encoder.
TEMPERATURE = 0.1


class Networks(NamedTuple):
  """The modules; their parameters are in TrainState.params."""

  g: stylegan2.Generator
  d_r: stylegan2.Discriminator
  d_m: discriminators.MultiscaleDiscriminator


def networks(
  num_classes: int,
  resolution: int,
  channels: int,
  *,
  w_dim: int = 512,
  mapping_depth: int = 8,
  channel_multiplier: float = 2.0,
  channel_max: int = 512,
  widths: Sequence[int] = (),
  conv_clamp: float = 0.0,
  stddev_group: int = 4,
  d_m_width: int = 64,
  d_m_scales: int = 3,
  dtype: str = 'float32',
  remat: bool = False,
  **_,
) -> Networks:
  """Builds the modules from `make`'s arguments; the others are ignored."""
  width = dict(
    channel_multiplier=channel_multiplier, channel_max=channel_max,
    dtype=dtype, remat=remat, widths=tuple(widths), conv_clamp=conv_clamp,
  )  # fmt: skip
  return Networks(
    stylegan2.Generator(
      resolution, channels, num_classes, w_dim, mapping_depth, **width
    ),
    stylegan2.Discriminator(resolution, stddev_group=stddev_group, **width),
    discriminators.MultiscaleDiscriminator(d_m_scales, d_m_width, dtype, remat),
  )


def label_map(logits: jax.Array, label_output: str) -> jax.Array:
  """The generator's label as D_m sees it: logits, or 2 softmax - 1."""
  if label_output == 'logits':
    return logits
  return 2 * jax.nn.softmax(logits) - 1


def label_temperature(label_output: str) -> float:
  """Softmax temperature that turns the label output into probabilities."""
  return TEMPERATURE if label_output == 'logits' else 1.0


def label_pairs(
  label: jax.Array, fake: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What D_m sees of a real label and of the fake it is compared with.

  A void pixel of the real label is 0 in every channel of both: it then tells
  D_m nothing about which is real, and the generator gets no gradient there.

  Args:
    label: int32 [M, R, R], 255 = void.
    fake: float32 [M or more, R, R, K], from `label_map`; the first M are used.

  Returns:
    (real, fake), float32 [M, R, R, K]; real is one-hot in {-1, 1}.
  """
  valid = segmentation.valid_pixels(label)[..., None]
  real = segmentation.signed_one_hot(label, fake.shape[-1])
  return real, fake[: label.shape[0]] * valid


def mean_w(g: stylegan2.Generator, params, n: int = 4096) -> jax.Array:
  """Mean w [w_dim] over n fixed draws of z."""
  z = jax.random.normal(jax.random.key(0), (n, g.w_dim))
  return g.apply({'params': params}, z, method='mapping').mean(0)


def fixed_noise(resolution: int) -> list[jax.Array]:
  """The noise maps [1, h, w, 1] that every prediction shares."""
  return stylegan2.make_noise(jax.random.key(1), 1, resolution)


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  # Networks; the defaults are the paper's.
  w_dim: int = 512,
  mapping_depth: int = 8,
  channel_multiplier: float = 2.0,  # channels(r) = min(max, m 16384 / r)
  channel_max: int = 512,
  widths: Sequence[int] = (),  # channels at 4, 8, ...; (): by the rule above
  conv_clamp: float = 0.0,  # limit of what layers give; 0: none
  stddev_group: int = 4,  # images D_r compares; more fights mode collapse
  d_m_width: int = 64,
  d_m_scales: int = 3,
  dtype: str = 'float32',  # of the convolutions; 'bfloat16' on TPU and GPU
  label_output: str = 'logits',  # D_m sees logits, or 'softmax' in [-1, 1]
  # Optimisers: Adam.
  lr_g: float = 0.002,
  lr_d: float = 0.002,
  b1: float = 0.0,
  b2: float = 0.99,
  lazy_adam: bool = True,  # scale lr and betas by every / (every + 1)
  # Losses and regularisers; gamma and weights as in the papers.
  d_m_weight: float = 1.0,  # of D_m's part of the generator's loss
  feature_matching: float = 2.0,
  stop_gradient: bool = True,  # D_m does not shape the image branch
  r1_gamma: float = 10.0,  # on D_r
  r1_gamma_m: float = 10.0,  # on D_m
  r1_every: int = 16,  # steps; lazy regularisation
  path_weight: float = 2.0,
  path_every: int = 4,  # steps; 0: off
  path_batch_shrink: int = 2,
  mixing: float = 0.9,  # probability of two styles in one image
  ema_half_life: float = 10_000.0,  # images
  diffaugment_policy: str = '',  # e.g. 'translation,cutout'; '': off
  truncation: float = 0.7,  # psi of sample()
  # Memory.
  remat: bool = False,  # compute blocks anew for the gradient: less memory
  accumulate: int = 1,  # parts of a batch, see jaxseg/methods/accumulation.py
) -> Method:
  """The GAN stage; see the signature for what each argument does.

  The unlabelled batch trains D_r, the labelled one D_m; for void pixels see
  `label_pairs`.

  Raises:
    UserError: an argument outside its choices.
  """
  if label_output not in ('logits', 'softmax'):
    raise UserError(
      f"label_output is {label_output!r}, must be 'logits' or 'softmax'."
    )
  diffaugment.check(diffaugment_policy)
  g, d_r, d_m = networks(**locals())
  tx = _optimizers(lr_g, lr_d, b1, b2, lazy_adam, r1_every, path_every)

  def init(rng, previous=None) -> TrainState:
    del previous
    keys = jax.random.split(rng, 4)
    image = jnp.zeros((1, resolution, resolution, channels))
    label = jnp.zeros((1, resolution, resolution, num_classes))
    noise = stylegan2.make_noise(keys[3], 1, resolution)
    d_m_variables = d_m.init(keys[2], image, label)
    params = {
      'g': g.init(keys[0], jnp.zeros((1, w_dim)), noise)['params'],
      'd_r': d_r.init(keys[1], image)['params'],
      'd_m': d_m_variables['params'],
    }
    zero = jnp.zeros(())
    extra = {
      'spectral': d_m_variables['spectral'],
      'path_mean': zero,
      'lazy': {'r1': zero, 'r1_m': zero, 'path': zero},
    }
    return new_state(rng, params, tx, ema={'g': params['g']}, extra=extra)

  def draw(rng, n):
    """All that is random in n images; some have two styles."""
    k1, k2, k3, k4 = jax.random.split(rng, 4)
    z = split_batch(jax.random.normal(k1, (2 * n, w_dim)))
    latents = stylegan2.num_latents(resolution)
    crossover = jax.random.randint(k2, (n,), 1, latents)
    mix = jax.random.bernoulli(k3, mixing, (n,))
    return {
      'z': (z[:n], z[n:]),
      'crossover': jnp.where(mix, crossover, latents),
      'noise': split_batch(stylegan2.make_noise(k4, n, resolution)),
    }

  def codes(params, drawn):
    """W+ codes and noise of what was drawn."""
    z, n = jnp.concatenate(drawn['z']), drawn['crossover'].shape[0]
    w = g.apply({'params': params}, z, method='mapping')
    crossover = drawn['crossover']
    w_plus = stylegan2.mix_styles(w[:n], w[n:], crossover, resolution)
    return w_plus, drawn['noise']

  def generate(params, drawn):
    w_plus, noise = codes(params, drawn)
    image, logits = g.apply(
      {'params': params}, w_plus, noise, method='synthesize'
    )
    return image, label_map(logits, label_output)

  def score_pairs(params, spectral, image, label, update=False):
    """D_m's outputs, and its power iteration vectors."""
    variables = {'params': params, 'spectral': spectral}
    if not update:
      return d_m.apply(variables, image, label), spectral
    outputs, new = d_m.apply(
      variables, image, label, update=True, mutable=['spectral']
    )
    return outputs, new['spectral']

  augment = lambda rng, image, label=None: diffaugment.augment(
    rng, diffaugment_policy, image, label
  )

  def update_d_r(state, rng, real, fake):
    real = augment(jax.random.fold_in(rng, 0), real)[0]
    fake = augment(jax.random.fold_in(rng, 1), fake)[0]

    def loss_fn(params, part, _):
      score = lambda x: d_r.apply({'params': params}, x)
      real_score, fake_score = score(part['real']), score(part['fake'])
      loss = gan.logistic_d(real_score, fake_score)
      metrics = {
        'd_r': loss,
        'd_r_real': real_score.mean(),
        'd_r_fake': fake_score.mean(),
      }
      return loss, (metrics, ())

    def penalty(params, part, _):
      score = lambda x: d_r.apply({'params': params}, x)
      value = gan.r1_penalty(score, part['real'])
      return value, (value, ())

    data = {'real': real, 'fake': fake}
    return _regularized_update(
      state, 'd_r', tx, data, accumulate, loss_fn, penalty, r1_gamma / 2,
      r1_every, 'r1',
    )  # fmt: skip

  def update_d_m(state, rng, batch, fake, fake_label):
    m = batch['image'].shape[0]
    real_label, fake_label = label_pairs(batch['label'], fake_label)
    image, real_label = augment(
      jax.random.fold_in(rng, 0), batch['image'], real_label
    )
    fake, fake_label = augment(jax.random.fold_in(rng, 1), fake[:m], fake_label)

    def loss_fn(params, part, _):
      outputs, spectral = score_pairs(
        params,
        state.extra['spectral'],
        jnp.concatenate(part['image']),
        jnp.concatenate(part['label']),
        update=True,
      )
      scores, m = discriminators.scores(outputs), part['image'][0].shape[0]
      real_score = [s[:m] for s in scores]
      fake_score = [s[m:] for s in scores]
      loss = gan.hinge_d(real_score, fake_score)
      metrics = {
        'd_m': loss,
        'd_m_real': sum(s.mean() for s in real_score) / len(scores),
        'd_m_fake': sum(s.mean() for s in fake_score) / len(scores),
        'spectral': spectral,
      }
      return loss, (metrics, ())

    def penalty(params, part, _):
      def score(x, y):
        outputs, _ = score_pairs(params, state.extra['spectral'], x, y)
        return gan.patch_mean(discriminators.scores(outputs))

      value = gan.r1_penalty(score, part['image'][0], part['label'][0])
      return value, (value, ())

    data = {'image': (image, fake), 'label': (real_label, fake_label)}
    state, metrics = _regularized_update(
      state, 'd_m', tx, data, accumulate, loss_fn, penalty, r1_gamma_m / 2,
      r1_every, 'r1_m',
    )  # fmt: skip
    extra = {**state.extra, 'spectral': metrics.pop('spectral')}
    return state.replace(extra=extra), metrics

  def generator_loss(params, state, batch, rng):
    image, label = generate(params, batch['drawn'])
    seen = augment(jax.random.fold_in(rng, 1), image)[0]
    adversarial_r = gan.logistic_g(
      d_r.apply({'params': state.params['d_r']}, seen)
    )
    real_label, pair_label = label_pairs(batch['label'], label)
    pair_image = image[: pair_label.shape[0]]
    if stop_gradient:
      # Keeps D_m, trained on few labels, from over-fitting the images.
      pair_image = jax.lax.stop_gradient(pair_image)
    key = jax.random.fold_in(rng, 2)
    d_m_params = state.params['d_m'], state.extra['spectral']
    fake, _ = score_pairs(*d_m_params, *augment(key, pair_image, pair_label))
    real, _ = score_pairs(
      *d_m_params, *augment(key, batch['image'], real_label)
    )
    adversarial_m = gan.hinge_g(discriminators.scores(fake))
    matching = gan.feature_matching(real, fake)
    loss = adversarial_r + d_m_weight * (
      adversarial_m + feature_matching * matching
    )
    metrics = {'g_r': adversarial_r, 'g_m': adversarial_m, 'matching': matching}
    return loss, (metrics, ())

  def path_gradient(params, mean, rng, n):
    """(Gradient of the weighted penalty, (penalty, new mean))."""
    image = (n, resolution, resolution, channels)
    data = {
      'drawn': draw(jax.random.fold_in(rng, 0), n),
      'y': split_batch(jax.random.normal(jax.random.fold_in(rng, 1), image)),
    }

    def loss_fn(params, part, _):
      w_plus, noise = codes(params, part['drawn'])
      synthesize = lambda w: g.apply(
        {'params': params}, w, noise, method='synthesize'
      )[0]
      penalty, new_mean, _ = gan.path_length_penalty(
        synthesize, w_plus, part['y'], mean
      )
      return path_weight * path_every * penalty, ((penalty, new_mean), ())

    grads, found, _ = accumulation.gradient(
      loss_fn, params, data, rng, accumulate
    )
    return grads, found

  def update_g(state, rng, batch, n):
    key = jax.random.fold_in(rng, 0)
    data = {name: batch[name] for name in ('image', 'label')}
    data['drawn'] = draw(jax.random.fold_in(key, 0), n)
    grads, metrics, _ = accumulation.gradient(
      lambda params, part, key: generator_loss(params, state, part, key),
      state.params['g'], data, key, accumulate,
    )  # fmt: skip
    extra = dict(state.extra)
    if path_every:
      mean, last = extra['path_mean'], extra['lazy']['path']
      shrunk = accumulate * max(1, n // accumulate // path_batch_shrink)

      def with_path():
        grad, (penalty, new_mean) = path_gradient(
          state.params['g'], mean, jax.random.fold_in(rng, 1), shrunk
        )
        return jax.tree.map(jnp.add, grads, grad), penalty, new_mean

      grads, penalty, mean = jax.lax.cond(
        state.step % path_every == 0, with_path, lambda: (grads, last, mean)
      )
      extra['path_mean'] = mean
      extra['lazy'] = {**extra['lazy'], 'path': penalty}
    params, opt_state = update(
      tx['g'], grads, state.opt_state['g'], state.params['g']
    )
    decay = ema_decay(n, ema_half_life)
    return state.replace(
      params={**state.params, 'g': params},
      opt_state={**state.opt_state, 'g': opt_state},
      ema={'g': ema_update(state.ema['g'], params, decay)},
      extra=extra,
    ), metrics

  def train_step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    k_fake, k_r, k_m, k_g = jax.random.split(rng, 4)
    unlabelled = batch.get('unlabelled', batch['image'])
    n = unlabelled.shape[0]
    n_fake = max(batch['image'].shape[0], n)
    _, (fake, fake_label) = jax.lax.stop_gradient(
      accumulation.over_parts(
        lambda drawn, _: ((), generate(state.params['g'], drawn)),
        draw(k_fake, n_fake), k_fake, accumulate,
      )
    )  # fmt: skip
    state, metrics_r = update_d_r(state, k_r, unlabelled, fake[:n])
    state, metrics_m = update_d_m(state, k_m, batch, fake, fake_label)
    state, metrics_g = update_g(state, k_g, batch, n_fake)
    metrics = {**metrics_r, **metrics_m, **metrics_g, **state.extra['lazy']}
    return state.replace(step=state.step + 1), metrics

  def sample(state, rng, n, truncation=truncation):
    params = state.ema['g']
    z = jax.random.normal(rng, (n, w_dim))
    w = g.apply({'params': params}, z, method='mapping')
    w = stylegan2.truncate(w, mean_w(g, params), truncation)
    image, logits = g.apply(
      {'params': params},
      stylegan2.broadcast_w(w, resolution),
      fixed_noise(resolution),
      method='synthesize',
    )
    return image, jax.nn.softmax(logits / label_temperature(label_output))

  def judge(state, images, probabilities):
    """What D_m says of pairs, and D_r of images, each by itself.

    D_m sees labels as `label_map` gives them to it, logits as the labels in
    [-1, 1] that they were trained to be.
    """
    outputs, _ = score_pairs(
      state.params['d_m'],
      state.extra['spectral'],
      images,
      2 * probabilities - 1,
    )
    alone = d_r.clone(stddev_group=1)  # a score must not depend on neighbours
    return {
      'd_m': gan.patch_mean(discriminators.scores(outputs)),
      'd_r': alone.apply({'params': state.params['d_r']}, images),
    }

  def pictures(state, batch):
    image, probabilities = sample(
      state, jax.random.key(0), batch['image'].shape[0]
    )
    return {'sample': image, 'sample_label': probabilities.argmax(-1)}

  return Method(init, train_step, sample=sample, pictures=pictures, judge=judge)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses images that cannot be drawn, and batches that cannot be cut.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: the networks do not see a square whose side is a power of two;
      or a batch is not of whole parts, of whole groups of images.
  """
  height, width = fit.size(data)
  if height != width or height & (height - 1):
    raise UserError(
      f'config.data.resolution is {data.resolution} and config.data.width '
      f'{data.width}, but {where} ({fields.method}) draws squares whose side '
      'is a power of two; set config.data.width=0 and config.data.resolution '
      'to 32, 64, 128, 256, 512 or 1024.'
    )
  accumulation.check(where, fields)
  n, parts = fields.unlabelled_batch_size, fields.args.accumulate
  for size in {n or fields.batch_size, max(n, fields.batch_size)}:
    group = min(size // parts, fields.args.get('stddev_group', 1))
    if size // parts % group:
      raise UserError(
        f'{where}.args.stddev_group is {group}, which does not divide a batch '
        f'of {size} images in {parts} part(s); choose a divisor of '
        f'{size // parts}.'
      )


def _optimizers(lr_g, lr_d, b1, b2, lazy, r1_every, path_every):
  """Adam for each network; lazy ratios as in Karras et al. 2020, appendix B."""

  def adam(lr, every):
    c = every / (every + 1) if lazy and every > 0 else 1.0
    return optax.adam(lr * c, b1=b1**c, b2=b2**c, eps=1e-8)

  return {
    'g': adam(lr_g, path_every),
    'd_r': adam(lr_d, r1_every),
    'd_m': adam(lr_d, r1_every),
  }


def _regularized_update(
  state, name, tx, batch, parts, loss_fn, penalty, weight, every, metric
):
  """One update of a discriminator; the penalty joins in every few steps."""
  params = state.params[name]
  gradient = lambda loss: accumulation.gradient(
    loss,
    params,
    batch,
    state.rng,
    parts,  # of which no key is used
  )
  grads, metrics, _ = gradient(loss_fn)

  def regularized():
    grad, value, _ = gradient(penalty)
    factor = weight * every
    return jax.tree.map(lambda a, b: a + factor * b, grads, grad), value

  if weight > 0:
    grads, value = jax.lax.cond(
      state.step % every == 0,
      regularized,
      lambda: (grads, state.extra['lazy'][metric]),
    )
    lazy = {**state.extra['lazy'], metric: value}
    state = state.replace(extra={**state.extra, 'lazy': lazy})
  new_params, opt_state = update(tx[name], grads, state.opt_state[name], params)
  state = state.replace(
    params={**state.params, name: new_params},
    opt_state={**state.opt_state, name: opt_state},
  )
  return state, metrics
