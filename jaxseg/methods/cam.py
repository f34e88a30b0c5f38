"""Class activation maps: where a classifier of image tags looks.

Source: Zhou et al., Learning Deep Features for Discriminative Localization
(CVPR 2016); trained and used as in Ahn et al. (IRN, CVPR 2019). No pixel is
labelled: tags say which classes an image shows, a classifier learns them, and
the maps that it averages for a class are where the class is. Such a stage can
label images itself, or give the seeds for `sec`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import method, optimizers
from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses import tags as tag_losses
from jaxseg.losses.tags import Pool
from jaxseg.method import Method, Prediction, PyTree, ema_decay
from jaxseg.methods import accumulation, segmenting, segmenting_checks
from jaxseg.methods.segmenting import Segmenter
from jaxseg.nets import tag_classifier
from jaxseg.nets.segmenters import Net
from jaxseg.nets.tag_classifier import ClassMaps, Head
from jaxseg.nets.upsampling import resize
from jaxseg.ops import cam
from jaxseg.optimizers import Optimizer


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: Net = Net(),
  head: Head = Head(),
  pool: Pool = Pool('average'),
  optimizer: Optimizer = Optimizer(),
  ema_half_life: float = 500.0,  # of the averaged weights, in images; 0: off
  # Of predictions:
  background: float = 0.15,  # score of class 0 beside class maps of maximum 1
  threshold: float = 0.5,  # classes of at least this probability are shown
  flip: bool = True,  # maps are averaged with those of the mirrored image
  scales: tuple[float, ...] = (1.0,),  # and over these sizes; IRN .5, 1, 1.5, 2
) -> Method:
  """A classifier of tags on a segmenter's encoder, whose maps are labels.

  Args:
    num_classes: K, with background, which is not classified.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`; the decoder is not used.
    head: see `jaxseg.nets.tag_classifier.Head`.
    pool: see `jaxseg.losses.tags.Pool`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: this and all others: see the signature.

  Returns:
    a `Method` whose trust is the mean over classes of how sure it is that the
    image shows them or not, in [.5, 1].

  Raises:
    UserError: a setting outside its choices.
  """
  _refuse('cam', pool, background, threshold, scales)
  seg = classifier(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, head=head, optimizer=optimizer,
  )  # fmt: skip

  def init(rng, previous=None):
    del previous
    params, stats = segmenting.init(seg, jax.random.fold_in(rng, 0))
    averaged = {'cam': segmenting.collections(params, stats)}
    return method.new_state(
      rng, {'cam': params}, {'cam': seg.tx}, averaged, {'cam': stats}
    )

  def train_step(state, batch):
    def loss_fn(params, part, key):
      found, stats = segmenting.train_logits(
        seg, params, state.extra['cam'], part['image'], key
      )
      logits, shown = logits_of(found, pool), part['tags'][:, 1:]
      loss = tag_losses.soft_margin(logits, shown)
      right = ((logits > 0) == (shown > 0)).mean()
      return loss, ((stats, {'tags': loss, 'accuracy': right}), ())

    data = {name: batch[name] for name in ('image', 'tags')}
    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['cam'], data, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'cam', seg.tx, grads, stats, decay)
    return state.replace(step=state.step + 1), terms

  def predict(state, images):
    maps, logits = views(seg, state.ema['cam'], images, pool, flip, scales)
    p = jax.nn.sigmoid(logits)
    found = cam.segmentation(maps, p >= threshold, background)
    return Prediction(found, trust=jnp.maximum(p, 1 - p).mean(-1))

  return Method(
    init,
    train_step,
    predict,
    pictures=segmenting.pictures(predict),
    pretrained=segmenting.pretrained(seg, ('cam',)),
  )


def classifier(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: Net,
  head: Head,
  optimizer: Optimizer,
) -> Segmenter:
  """The classifier and its optimiser; the arguments are those of `make`.

  Raises:
    UserError: a setting outside its choices.
  """
  return Segmenter(
    tag_classifier.build(net, num_classes, head),
    optimizers.make(optimizer, total_steps),
    (1, resolution, resolution, channels),
    net,
    optimizer.accumulate,
  )


def logits_of(found: ClassMaps, pool: Pool) -> jax.Array:
  """float32 [N, C] from class maps."""
  return tag_losses.pool(found.maps, pool) + found.bias


def views(
  seg: Segmenter,
  variables: dict[str, PyTree],
  images: jax.Array,
  pool: Pool,
  flip: bool,
  scales: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
  """What the classifier says of an image in several sizes, and mirrored.

  Args:
    seg: the classifier.
    variables: its own.
    images: [N, H, W, C] in [-1, 1].
    pool: how maps become scores.
    flip: whether mirrored images are looked at as well.
    scales: factors of the images' sides, rounded to what the network takes.

  Returns:
    (means over all of them: of the maps where above 0, float32 [N, H, W, C] at
    the size of the images, of the logits [N, C]).
  """
  size, maps, logits = images.shape[1:3], [], []
  unit = max(4, 2**seg.settings.depth if seg.settings.arch == 'unet' else 1)
  for scale in scales:
    sides = tuple(max(1, round(scale * n / unit)) * unit for n in size)
    seen = images if scale == 1 else resize(images, sides)
    for mirrored in (False, True) if flip else (False,):
      x = seen[:, :, ::-1] if mirrored else seen
      found = segmenting.logits(seg, variables, x)
      here = resize(jax.nn.relu(found.maps), size)
      maps.append(here[:, :, ::-1] if mirrored else here)
      logits.append(logits_of(found, pool))
  return sum(maps) / len(maps), sum(logits) / len(logits)


def evidence(
  seg: Segmenter,
  variables: dict[str, PyTree],
  images: jax.Array,
  tags: jax.Array,
  saliency: str,
) -> tuple[jax.Array, jax.Array]:
  """What `jaxseg.ops.cam.cues` are made of.

  Args:
    seg: the classifier.
    variables: its own.
    images: [N, H, W, C] in [-1, 1].
    tags: float32 [N, K] of 0 and 1; the scores of these classes are summed.
    saliency: one of `cam.SALIENCIES`.

  Returns:
    (class maps [N, h, w, C], saliency [N, h', w']), float32, without gradient.
  """
  net, shown = seg.net, tags[:, 1:]
  images = segmenting.prepare(seg, images)
  if saliency == 'features':
    x = net.apply(variables, images, method='seen')
    maps_of = lambda x: net.apply(variables, x, method='classify').maps
  else:
    x, maps_of = images, lambda x: net.apply(variables, x).maps

  def score(x):
    maps = maps_of(x)
    return (maps.mean((1, 2)) * shown).sum(), maps

  if saliency == 'cam':
    _, maps = score(x)
    found = (jax.nn.relu(maps) * shown[:, None, None]).sum(-1)
  else:
    gradient, maps = jax.grad(score, has_aux=True)(x)
    found = jnp.abs(gradient).max(-1).astype(jnp.float32)
  return jax.lax.stop_gradient((maps, found))


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check(where, fields, data, tags=True)
  args = fields.args
  _refuse(
    f'{where}.args', Pool(**args.pool), args.background, args.threshold,
    args.scales,
  )  # fmt: skip
  check_head(where, fields, data)
  if fields.init_from:
    raise UserError(
      f'{where}.init_from is {fields.init_from!r}, but {fields.method} starts '
      "from random or ImageNet weights; set it to ''."
    )


def check_head(where: str, fields: Any, data: Any) -> None:
  """Refuses a level that the encoder does not have; arguments as of `check`."""
  head, net = Head(**fields.args.head), Net(**fields.args.net)
  if head.features < 1:
    raise UserError(
      f'{where}.args.head.features is {head.features}, must be at least 1.'
    )
  sizes = tag_classifier.level_sizes(net, fit.size(data), data.channels)
  if not 0 <= head.level < len(sizes):
    told = ', '.join(f'{i} ({h} x {w})' for i, (h, w) in enumerate(sizes))
    raise UserError(
      f'{where}.args.head.level is {head.level}, but the encoder of {net.arch} '
      f'gives the maps {told}; take one of them.'
    )


def _refuse(where, pool, background, threshold, scales):
  tag_losses.check(f'{where}.pool', pool)
  for name, value in (('background', background), ('threshold', threshold)):
    if not 0 < value < 1:
      raise UserError(f'{where}.{name} is {value}, must be between 0 and 1.')
  if not scales or not all(
    isinstance(s, int | float) and 0 < s <= 4 for s in scales
  ):
    raise UserError(
      f'{where}.scales is {tuple(scales)!r}, must be factors of the size, '
      'above 0 and at most 4, such as (0.5, 1.0, 1.5).'
    )
