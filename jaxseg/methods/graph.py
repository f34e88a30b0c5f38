"""Graph-based learning: neighbours should have the same label.

Two graphs, each with its weight. Of images: Weston et al., Deep Learning via
Semi-Supervised Embedding (ICML 2008), with the margin of its embedding loss.
All images of a batch, labelled or not, are joined with their nearest in feature
space (the coarsest map of the encoder, averaged over the image); neighbours are
to have alike class probabilities on a coarse grid, others unlike ones. Of
pixels: the contrast-weighted pairs of Boykov and Jolly (ICCV 2001), relaxed;
see `jaxseg.losses.graph`. Its quadratic form is content with undecided pixels,
so an entropy term goes with it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import entropy, graph, segmentation
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.segmentation import VOID, Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer


class ImageGraph(NamedTuple):
  """Settings of the graph over the images of a batch."""

  weight: float = 0.1  # of agreement between neighbours; 0: off
  neighbours: int = 3  # of each image
  affinity: str = 'gaussian'  # of neighbours; or 'cosine', 'binary' (Weston)
  sigma: float = 0.0  # of 'gaussian', in feature units; 0: from the batch
  grid: int = 4  # cells along a side on which probabilities are compared
  # Others are pushed until they are this far apart; distances are in
  # [0, sqrt(2)], 0 for alike masks.
  margin: float = 0.2
  margin_weight: float = 0.1  # of the pushing, beside the agreement; 0: off


class PixelGraph(NamedTuple):
  """Settings of the graph over neighbouring pixels."""

  weight: float = 0.5  # 0: off
  form: str = 'quadratic'  # or 'bilinear', which needs no entropy term
  connectivity: int = 8  # neighbours of a pixel: 4 or 8
  sigma: float = 0.0  # contrast of an edge, of images in [-1, 1]; 0: automatic
  by_distance: bool = True  # pairs across a corner count 1 / sqrt(2)
  labelled: bool = True  # also in labelled images, where not void
  entropy: float = 0.1  # weight of the mean entropy of unlabelled pixels


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
  image: ImageGraph = ImageGraph(),
  pixel: PixelGraph = PixelGraph(),
  ramp_up: float = 0.3,  # fraction of the steps in which both weights climb
  regularizer: Regularizer = Regularizer(),  # terms without labels
) -> Method:
  """A segmenter trained on labels and on agreement between neighbours.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: see the signature; 0: off.
    image: see `ImageGraph`.
    pixel: see `PixelGraph`.
    ramp_up: of `image` and `pixel`; 0: full weight from the start.
    regularizer: see `jaxseg.losses.regularized.Regularizer`.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.

  Raises:
    UserError: a setting outside its choices.
  """
  _refuse('graph', image, pixel, (resolution, resolution))
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
    regularizer=regularizer,
  )  # fmt: skip

  def init(rng, previous=None):
    del previous
    return segmenting.start(seg, rng)

  def forward(state, params, images, key, split):
    features, stats = segmenting.train_encode(
      seg, params, state.extra['seg'], images, key, split
    )
    logits, stats = segmenting.train_decode(
      seg, params, stats, features, images.shape[1:3], key, split
    )
    return features.maps[-1].mean((1, 2)), logits, stats

  def train_step(state, batch):
    climbed = segmenting.ramp_up(state.step, ramp_up * total_steps)

    def loss_fn(params, part, key):
      n, label = part['image'].shape[0], part['label']
      images = jnp.concatenate([part['image'], part['unlabelled']])
      valid = jnp.concatenate(
        [label != VOID, jnp.ones(part['unlabelled'].shape[:3], bool)]
      )
      features, logits, stats = forward(state, params, images, key, (n,))
      total, terms = segmentation.supervised(logits[:n], label, loss)
      extra, more = 0.0, {}
      if image.weight:
        value, more = image_terms(features, logits, valid, image)
        extra += value
      if pixel.weight:
        value, found = pixel_terms(logits, images, valid, n, pixel)
        extra, more = extra + value, more | found
      total, terms = segmenting.regularize(
        seg, state.step, (total + climbed * extra, terms | more), logits,
        images, label,
      )  # fmt: skip
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    terms['ramp_up'] = climbed
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)


def image_terms(
  features: jax.Array,
  logits: jax.Array,
  valid: jax.Array,
  settings: ImageGraph,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Agreement of neighbouring images, and distance of the others.

  Args:
    features: [N, F], one vector an image.
    logits: [N, H, W, K].
    valid: [N, H, W], 0 where a label is void.
    settings: see `ImageGraph`.

  Returns:
    (weighted sum, {'agree', 'apart'} not weighted).
  """
  found = graph.nearest_neighbours(
    features, settings.neighbours, settings.affinity, settings.sigma
  )
  cells, present = graph.pooled(jax.nn.softmax(logits), settings.grid, valid)
  agree, apart = graph.embedding_loss(found, cells, present, settings.margin)
  value = settings.weight * (agree + settings.margin_weight * apart)
  return value, {'agree': agree, 'apart': apart}


def pixel_terms(
  logits: jax.Array,
  images: jax.Array,
  valid: jax.Array,
  labelled: int,
  settings: PixelGraph,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Agreement of neighbouring pixels, and entropy.

  Args:
    logits: [N, H, W, K], labelled images first.
    images: [N, H, W, C].
    valid: [N, H, W], 0 where a label is void.
    labelled: how many of the images are labelled.
    settings: see `PixelGraph`.

  Returns:
    (weighted sum, {'potts', 'entropy'} not weighted).
  """
  first = 0 if settings.labelled else labelled
  potts = graph.potts(
    jax.nn.softmax(logits[first:]), images[first:], form=settings.form,
    connectivity=settings.connectivity, sigma=settings.sigma,
    by_distance=settings.by_distance, valid=valid[first:],
  )  # fmt: skip
  undecided = entropy.uncertainty(logits[labelled:])
  value = settings.weight * potts + settings.entropy * undecided
  return value, {'potts': potts, 'entropy': undecided}


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train; see `segmenting_checks.check`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check_semi_supervised(where, fields, data)
  image = ImageGraph(**fields.args.image)
  _refuse(
    f'{where}.args', image, PixelGraph(**fields.args.pixel), fit.size(data)
  )
  parts = accumulation.parts_of(fields)
  if image.weight and parts > 1:
    raise UserError(
      f'{where}.args.optimizer.accumulate is {parts}, but the graph of images '
      'joins all images of a batch, which must be differentiated together; set '
      f'it to 1, or {where}.args.image.weight to 0.'
    )
  images = fields.batch_size + fields.unlabelled_batch_size
  if image.weight and image.neighbours >= images:
    raise UserError(
      f'{where}.args.image.neighbours is {image.neighbours}, must be below '
      f'{images}, the images of a step (batch_size + unlabelled_batch_size).'
    )


def _refuse(where, image, pixel, size):
  choices = (
    ('image.affinity', image.affinity, graph.AFFINITIES),
    ('pixel.form', pixel.form, graph.FORMS),
    ('pixel.connectivity', pixel.connectivity, tuple(graph.OFFSETS)),
  )
  for name, value, allowed in choices:
    if value not in allowed:
      raise UserError(
        f'{where}.{name} is {value!r}, must be one of '
        f'{", ".join(map(str, allowed))}.'
      )
  if image.neighbours < 1:
    raise UserError(
      f'{where}.image.neighbours is {image.neighbours}, must be at least 1; '
      'set image.weight to 0 to leave the graph of images out.'
    )
  for field, side in zip(('resolution', 'width'), size, strict=True):
    if image.grid < 1 or side % image.grid:
      raise UserError(
        f'{where}.image.grid is {image.grid}, must divide the {side} pixels of '
        f'a side (config.data.{field}).'
      )
