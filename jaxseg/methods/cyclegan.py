"""CycleGAN for semi-supervised segmentation: images and labels, both ways.

Source: Mondal, Agarwal, Dolz and Desrosiers, Revisiting CycleGAN for
Semi-Supervised Segmentation (2019), section 3, equations 1 to 9.
"""

import jax
import jax.numpy as jnp

from jaxseg import optimizers
from jaxseg.losses import gan, segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method, Prediction, ema_decay
from jaxseg.methods import accumulation, replay, segmenting
from jaxseg.methods.cyclegan_checks import (
  check,  # noqa: F401
  check_choices,
)
from jaxseg.nets import discriminators
from jaxseg.nets.resnet_generator import ResnetGenerator
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

DISCRIMINATORS = {
  'pixel': discriminators.PixelDiscriminator,
  'patch': discriminators.PatchGAN,
}
# A quarter of the steps at the full rate, then straight to zero.
ADAM = Optimizer(
  name='adam', lr=2e-4, schedule='linear', hold=0.25, weight_decay=0.0, b1=0.5
)


def make(
  *,
  num_classes: int,
  resolution: int,
  image_size: tuple[int, int],
  channels: int,
  total_steps: int,
  # G_IS, from images to labels: any segmenter.
  net: Net = Net('resnet_generator', norm='instance'),
  loss: Loss = Loss(dice=0.0),  # eq. 1: cross entropy alone
  optimizer: Optimizer = ADAM,  # of both generators
  ema_half_life: float = 0.0,  # of averaged weights, in images; 0: the newest
  # G_SI, from labels to images.
  g_width: int = 64,  # channels at full resolution
  g_blocks: int = 9,  # residual blocks
  g_norm: str = 'instance',  # or 'batch'
  g_dropout: float = 0.0,  # in its blocks
  # D_I and D_S, of images and of labels.
  discriminator: str = 'pixel',  # 1x1 convolutions; 'patch': 70x70 PatchGAN
  d_width: int = 64,  # channels of the first layer
  d_norm: str = 'batch',  # 'instance', 'none'
  d_optimizer: Optimizer = ADAM,
  # Weights of equation 8; L_gen^S has 1.
  lambda_1: float = 1.0,  # L_gen^I
  lambda_2: float = 0.05,  # L_cycle^S
  lambda_3: float = 1.0,  # L_cycle^I
  lambda_4: float = 0.5,  # L_disc^S
  lambda_5: float = 0.5,  # L_disc^I
  adversarial: str = 'least_squares',  # of L_disc; 'logistic'
  # Earlier fakes that D_I and D_S see as well; 0: none. The published code
  # keeps 50 batches, and exchanges whole ones.
  pool_size: int = 50,
  pool_whole_batches: bool = False,
  # As published, D_S sees class ids (one channel, 0 to K-1) instead of
  # probabilities, so that L_disc^S gives G_IS no gradient.
  published_code_compat: bool = False,
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """Two generators that undo one another, and two discriminators.

  G_IS (network 'seg') labels images, G_SI ('g_si') draws an image of a label;
  D_I ('d_i') tells drawn images from unlabelled ones, D_S ('d_s') predicted
  labels from those drawn by hand. Both generators step first, then both
  discriminators, on the fakes of that step or of the pools.

  Sums of the paper are means here, as in its published code. Void pixels count
  in no term: G_SI is shown zeros there and no loss looks at them; patches count
  by the part of them that is valid, of real and fake ones alike. Padding of
  unlabelled images (`data.fit` 'pad') is no void: it counts. A term whose
  weight is 0 is not computed; its discriminator then does not learn.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    image_size: (H, W) of the images.
    channels: C, of images.
    total_steps: length of the learning-rate curves.
    net: see `jaxseg.nets.segmenters.Net`; G_SI has its dtype
      and remat.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and the others: see the signature.
    regularizer: of G_IS, see `jaxseg.losses.regularized.Regularizer`.

  Returns:
    a `Method`. Its reconstruction is G_SI(G_IS(x)); its trust the cycle error
    -|x - G_SI(G_IS(x))|, mean over pixels and channels, at most 0.

  Raises:
    UserError: a setting outside its choices.
  """
  check_choices('', discriminator, d_width, d_norm, g_norm, adversarial)
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip
  # G_SI in the form of a segmenter: it too may have batch statistics.
  g_net = Net(
    'resnet_generator', g_width, norm=g_norm, joint_norm=net.joint_norm
  )
  g_si = segmenting.Segmenter(
    ResnetGenerator(
      channels,
      g_width,
      g_blocks,
      g_norm,
      g_dropout,
      'tanh',
      net.dtype,
      net.remat,
    ),  # fmt: skip
    # The factor is of decoders beside pretrained encoders; G_SI has none.
    optimizers.make(optimizer._replace(head_factor=1.0), total_steps),
    (1, resolution, resolution, num_classes),
    g_net,
  )
  d = DISCRIMINATORS[discriminator](d_width, norm=d_norm, dtype=net.dtype)
  d_tx = optimizers.make(d_optimizer, total_steps, 'd_optimizer')
  patches = discriminator == 'patch'

  def judge(params, x, real, valid=None):
    """A term of L_disc: how far D's scores of x are from real or fake."""
    scores = d.apply({'params': params}, x, valid)
    if patches and valid is not None:
      valid = discriminators.patch_coverage(valid, d.layers)
    return gan.pixel_adversarial(scores, real, valid, adversarial)

  def beside(valid, n):
    """Which pixels of n whole maps D may look at, given those of the others.

    Pixels are judged one by one. In patches void is seen, so that the same is
    hidden from either kind: void must not tell real from fake.
    """
    return valid[jnp.arange(n) % valid.shape[0]] if patches else None

  def init(rng, previous=None):
    del previous
    key = lambda i: jax.random.fold_in(rng, i)
    g_params, g_stats = segmenting.init(g_si, key(1))
    image = jnp.zeros((1, *image_size, channels))
    label = jnp.zeros(
      (1, *image_size, 1 if published_code_compat else num_classes)
    )
    state = segmenting.start(seg, rng, {
      'g_si': (g_params, g_si.tx),
      'd_i': (d.init(key(2), image)['params'], d_tx),
      'd_s': (d.init(key(3), label)['params'], d_tx),
    })  # fmt: skip
    averaged = segmenting.collections(g_params, g_stats)
    extra = {'g_si': g_stats}
    if pool_size and lambda_4:
      maps = jnp.zeros((*image_size, num_classes))
      extra['pool_s'] = replay.empty(pool_size, maps)
    if pool_size and lambda_5:
      fake = {'image': image[0], 'valid': jnp.zeros(image_size, bool)}
      extra['pool_i'] = replay.empty(pool_size, fake)
    return state.replace(
      ema=state.ema | {'g_si': averaged}, extra=state.extra | extra
    )

  def label_view(maps):
    """Probabilities, or one-hot labels, as D_S sees them."""
    if not published_code_compat:
      return maps
    return maps.argmax(-1, keepdims=True).astype(jnp.float32)

  def generator_loss(params, state, batch, rng):
    """Equation 8, and all that the rest of the step needs."""
    x, y, x_u = batch['image'], batch['label'], batch['unlabelled']
    n, valid, maps = x.shape[0], y != VOID, segmentation.one_hot(y, num_classes)
    keys = jax.random.split(rng, 3)
    to_label = lambda images, key, split=(): segmenting.train_logits(
      seg, params['seg'], state.extra['seg'], images, key, split
    )
    logits, seg_stats = to_label(jnp.concatenate([x, x_u]), keys[0], (n,))
    maps_u = jax.nn.softmax(logits[n:])
    images, g_stats = segmenting.train_logits(
      g_si, params['g_si'], state.extra['g_si'],
      jnp.concatenate([maps, maps_u]), keys[1], (n,),
    )  # fmt: skip
    fake, cycle = images[:n], images[n:]

    total, parts = segmentation.supervised(logits[:n], y, loss)  # eq. 1, 2
    terms = {'gen_s': total} | (parts if loss.dice else {})
    if lambda_1:  # eq. 3
      terms['gen_i'] = pixel_mean(jnp.square(fake - x), valid)
      total += lambda_1 * terms['gen_i']
    if lambda_2:  # eq. 7
      again, _ = to_label(fake, keys[2])
      terms['cycle_s'] = segmentation.cross_entropy(
        again, y, class_weights=loss.class_weights
      )
      total += lambda_2 * terms['cycle_s']
    if lambda_3:  # eq. 6
      terms['cycle_i'] = jnp.abs(cycle - x_u).mean()
      total += lambda_3 * terms['cycle_i']
    if lambda_4:  # eq. 4, for G_IS
      terms['disc_s'] = judge(
        state.params['d_s'], label_view(maps_u), True, beside(valid, len(x_u))
      )
      total += lambda_4 * terms['disc_s']
    if lambda_5:  # eq. 5, for G_SI
      terms['disc_i'] = judge(state.params['d_i'], fake, True, valid)
      total += lambda_5 * terms['disc_i']
    total, terms = segmenting.regularize(
      seg, state.step, (total, terms), logits, jnp.concatenate([x, x_u]), y
    )
    fakes = {'image': fake, 'valid': valid}, maps_u
    stats = {'seg': seg_stats, 'g_si': g_stats}
    return total, ((terms, stats), fakes)

  def d_loss(params, part, _):
    """Half of equation 4 or 5; each kind is normalised by itself."""
    value = 0.5 * (
      judge(params, part['real'], True, part['real_valid'])
      + judge(params, part['fake'], False, part['fake_valid'])
    )
    return value, (value, ())

  def draw_earlier(state, name, fakes, rng):
    if not pool_size:
      return state, fakes
    pool, fakes = replay.exchange(
      state.extra[name], fakes, rng, whole_batches=pool_whole_batches
    )
    return state.replace(extra=state.extra | {name: pool}), fakes

  def update_discriminators(state, batch, fakes, rng):
    keys, terms = jax.random.split(rng), {}
    y, x_u = batch['label'], batch['unlabelled']
    valid = y != VOID
    if lambda_4:
      state, maps = draw_earlier(state, 'pool_s', fakes[1], keys[0])
      real = label_view(segmentation.one_hot(y, num_classes))
      data = {
        'real': real, 'real_valid': valid,
        'fake': label_view(maps), 'fake_valid': beside(valid, len(x_u)),
      }  # fmt: skip
      grads, terms['d_s'], _ = accumulation.gradient(
        d_loss, state.params['d_s'], data, keys[0], seg.parts
      )
      state = segmenting.advance(state, 'd_s', d_tx, grads)
    if lambda_5:
      state, fake = draw_earlier(state, 'pool_i', fakes[0], keys[1])
      data = {
        'real': x_u, 'real_valid': beside(fake['valid'], len(x_u)),
        'fake': fake['image'], 'fake_valid': fake['valid'],
      }  # fmt: skip
      grads, terms['d_i'], _ = accumulation.gradient(
        d_loss, state.params['d_i'], data, keys[1], seg.parts
      )
      state = segmenting.advance(state, 'd_i', d_tx, grads)
    return state, terms

  def train_step(state, batch):
    keys = jax.random.split(segmenting.step_key(state))
    networks = {name: state.params[name] for name in ('seg', 'g_si')}
    grads, (terms, stats), fakes = accumulation.gradient(
      lambda params, part, key: generator_loss(params, state, part, key),
      networks, batch, keys[0], seg.parts,
    )  # fmt: skip
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    for name, tx in (('seg', seg.tx), ('g_si', g_si.tx)):
      state = segmenting.advance(
        state, name, tx, grads[name], stats[name], decay
      )
    state, d_terms = update_discriminators(state, batch, fakes, keys[1])
    return state.replace(step=state.step + 1), terms | d_terms

  def draw(state, maps):
    return segmenting.logits(g_si, state.ema['g_si'], maps)

  def predict(state, images):
    logits = segmenting.logits(seg, state.ema['seg'], images)
    probabilities = jax.nn.softmax(logits)
    drawn = draw(state, probabilities)
    error = jnp.abs(drawn - images).mean((1, 2, 3))
    return Prediction(probabilities, drawn, trust=-error)

  def pictures(state, batch):
    found = predict(state, batch['image'])
    maps = segmentation.one_hot(batch['label'], num_classes)
    return {
      'image': batch['image'],
      'label': batch['label'],
      'predicted': found.probabilities.argmax(-1),
      'reconstruction': found.reconstruction,
      'label_drawn': draw(state, maps),
    }

  return Method(
    init,
    train_step,
    predict,
    pictures=pictures,
    pretrained=segmenting.pretrained(seg),
  )


def pixel_mean(losses: jax.Array, valid: jax.Array) -> jax.Array:
  """Mean over channels and valid pixels; 0 when none is.

  Args:
    losses: float32 [N, H, W, C].
    valid: bool [N, H, W].
  """
  total = jnp.where(valid, losses.mean(-1), 0.0).sum()
  return total / jnp.maximum(valid.sum(), 1)
