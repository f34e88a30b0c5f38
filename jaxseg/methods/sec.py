"""Seed, expand and constrain: a segmenter learns from image tags.

Source: Kolesnikov and Lampert, Seed, Expand and Constrain (ECCV 2016). Three
losses on a coarse grid: few pixels where a classifier of tags is sure
(`init_from`: a stage of `cam`, kept frozen) are seeds; regions of tagged
classes expand from there, those of other classes vanish; and predictions are
drawn towards what a dense CRF makes of them, which ends at edges.

With the weights `seed` and `constrain` 0 it is multiple-instance learning, with
any pooling of `jaxseg.losses.tags`, and needs no earlier stage.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg.errors import UserError
from jaxseg.losses import tags as tag_losses
from jaxseg.losses.tags import FLOOR, Pool
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, handover, segmenting
from jaxseg.methods import cam as cam_method
from jaxseg.methods import segmenting_checks as checks
from jaxseg.nets.segmenters import Net
from jaxseg.nets.tag_classifier import Head
from jaxseg.nets.upsampling import resize
from jaxseg.ops import cam, dense_crf
from jaxseg.ops.cam import Cues
from jaxseg.ops.dense_crf import CRF
from jaxseg.optimizers import Optimizer


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: Net = Net(),
  head: Head = Head(),
  optimizer: Optimizer = Optimizer(),
  ema_half_life: float = 500.0,  # of the averaged weights, in images; 0: off
  seed: float = 1.0,  # weight of the seeds; 0: off, no earlier stage is needed
  expand: float = 1.0,  # of the tags, through pooled probabilities; 0: off
  constrain: float = 1.0,  # of agreement with the dense CRF; 0: off
  grid: int = 41,  # longer side of the grid of the losses, at most the image's
  pool: Pool = Pool(),
  cues: Cues = Cues(),
  crf: CRF = CRF(),
) -> Method:
  """A segmenter that learns from tags.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`; that of the earlier stage.
    head: see `jaxseg.nets.tag_classifier.Head`; that of the earlier stage.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and the next: see the signature.
    seed: see the signature.
    expand: see the signature.
    constrain: see the signature.
    grid: see the signature.
    pool: see `jaxseg.losses.tags.Pool`.
    cues: see `jaxseg.ops.cam.Cues`.
    crf: see `jaxseg.ops.dense_crf.CRF`.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.

  Raises:
    UserError: a setting outside its choices; from `init`, no earlier stage
      although there are to be seeds, or one that trained another classifier.
  """
  _refuse('sec', seed, expand, grid, pool, cues, crf)
  common = dict(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
  )  # fmt: skip
  seg = segmenting.segmenter(**common)
  classifier = cam_method.classifier(head=head, **common)

  def init(rng, previous=None):
    state = segmenting.start(seg, rng)
    if previous is None:
      if seed:
        raise UserError(_no_classifier('sec', ''))
      return state
    like = segmenting.collections(*segmenting.init(classifier, rng))
    frozen = handover.weights_of(previous, like, 'sec', 'cam')
    ema = handover.transfer(state.ema['seg'], frozen)
    extra = {'seg': handover.copied(ema['batch_stats'])}
    if seed:
      extra['cam'] = handover.copied(frozen)
    return state.replace(
      params={'seg': handover.copied(ema['params'])},
      extra=extra,
      ema={'seg': ema},
    )

  def seeds(state, part, size):
    """int32 [N, *size]: what the frozen classifier is sure of."""
    maps, saliency = cam_method.evidence(
      classifier, state.extra['cam'], part['image'], part['tags'], cues.saliency
    )
    saliency = shrunk(saliency[..., None], size)[..., 0]
    return cam.cues(shrunk(maps, size), part['tags'], saliency, cues)

  def train_step(state, batch):
    def loss_fn(params, part, key):
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], part['image'], key
      )
      size = grid_size(part['image'].shape[1:3], grid)
      p = tag_losses.floored(shrunk(jax.nn.softmax(logits), size))
      total, terms = jnp.zeros(()), {}
      if seed:
        found = seeds(state, part, size)
        terms['seed'] = tag_losses.seed(p, found)
        terms['seeds'] = tag_losses.valid_pixels(found).mean()
        total += seed * terms['seed']
      if expand:
        terms['expand'] = tag_losses.expand(p, part['tags'], pool)
        total += expand * terms['expand']
      if constrain:
        refined, overflow = refine(p, shrunk(part['image'], size), crf)
        terms['lattice_overflow'] = overflow.mean()
        terms['constrain'] = tag_losses.constrain(p, refined)
        total += constrain * terms['constrain']
      return total, ((stats, terms | {'loss': total}), ())

    data = {name: batch[name] for name in ('image', 'tags')}
    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], data, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


def grid_size(size: tuple[int, int], grid: int) -> tuple[int, int]:
  """(h, w) of the grid of the losses, with the aspect of the image.

  Args:
    size: (H, W) of the image.
    grid: longer side of the grid; never above the image's.
  """
  longer = max(size)
  side = min(grid, longer)
  return tuple(max(1, round(n * side / longer)) for n in size)


def shrunk(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Bilinear interpolation, with a low-pass filter where it shrinks.

  Args:
    x: [N, H, W, C].
    size: (h, w).

  Returns:
    [N, h, w, C]; sums over C are kept.
  """
  if x.shape[1] <= size[0] and x.shape[2] <= size[1]:
    return resize(x, size)
  return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), 'bilinear')


def refine(
  probabilities: jax.Array, images: jax.Array, settings: CRF
) -> tuple[jax.Array, jax.Array]:
  """What a dense CRF makes of predictions, without gradient.

  Args:
    probabilities: float32 [N, h, w, K] above 0.
    images: [N, h, w, C] in [-1, 1].
    settings: of the CRF.

  Returns:
    (float32 [N, h, w, K], at least about 1e-4 each as in SEC, sums to 1;
    float32 [N], 1 where the lattice was too small and nothing was done).
  """
  unary = jnp.log(jax.lax.stop_gradient(probabilities))
  found, lacks = dense_crf.mean_field_and_shortage(unary, images, settings)
  found = jnp.maximum(found, FLOOR)
  found = jax.lax.stop_gradient(found / found.sum(-1, keepdims=True))
  return found, (lacks != 0).astype(jnp.float32)


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  checks.check(where, fields, data, tags=True)
  args = fields.args
  _refuse(
    f'{where}.args', args.seed, args.expand, args.grid, Pool(**args.pool),
    Cues(**args.cues), CRF(**args.crf),
  )  # fmt: skip
  cam_method.check_head(where, fields, data)
  if args.seed and not fields.init_from:
    raise UserError(_no_classifier(where, f'{where}.args.'))


def _no_classifier(where, prefix):
  return (
    f'{where}.init_from names no stage, but its seeds come from a classifier '
    "of tags; name a stage of method 'cam', or set "
    f'{prefix}seed=0 for multiple-instance learning.'
  )


def _refuse(where, seed, expand, grid, pool, cues, crf):
  if not seed and not expand:
    raise UserError(
      f'{where}.seed and {where}.expand are both 0: nothing would be learned '
      'from the tags; set one of them to 1.'
    )
  if grid < 4:
    raise UserError(f'{where}.grid is {grid}, must be at least 4.')
  tag_losses.check(f'{where}.pool', pool)
  cam.check(f'{where}.cues', cues)
  dense_crf.check(crf, f'{where}.crf')
