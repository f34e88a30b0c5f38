"""What a stage that trains a segmenter is refused for, before it starts."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxseg import optimizers, writers
from jaxseg.data import fit, weak
from jaxseg.errors import UserError
from jaxseg.losses import regularized
from jaxseg.losses.regularized import Regularizer
from jaxseg.methods import accumulation
from jaxseg.nets import imagenet, segmenters

# Methods that never look at unlabelled images, and those that never have them
# in one batch with labelled ones, or always.
LABELS_ALONE = ('supervised', 'cam', 'sec')
NEVER_JOINED = (*LABELS_ALONE, 'adv_ssl', 'bcp')


def check(
  where: str,
  fields: Any,
  data: Any,
  strong_views: int = 0,
  tags: bool = False,
) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.
    strong_views: how many strong views of unlabelled images the method needs;
      0: it learns from no unlabelled images, or from the weak view alone.
    tags: whether it learns from the tags of images, and not from pixels.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  _check_labels(where, fields, data, tags)
  net = segmenters.Net(**fields.args.net)
  segmenters.build(net, 2, f'{where}.args.net')
  for name in segmenters.unread(net):
    if name != 'weights':  # refused below
      writers.say(
        f'{where}.args.net.{name}={getattr(net, name)!r} has no effect: '
        f'{net.arch} with norm {net.norm!r} does not have it.'
      )
  _tell_unread_images(where, fields)
  joins = fields.method != 'weak' or fields.unlabelled_batch_size
  if net.joint_norm and (fields.method in NEVER_JOINED or not joins):
    writers.say(
      f'{where}.args.net.joint_norm=True has no effect: {fields.method} never '
      'has labelled and unlabelled images in one batch, or always.'
    )
  side = 2**net.depth
  for name, pixels in zip(('resolution', 'width'), fit.size(data), strict=True):
    if net.arch == 'unet' and pixels % side:
      raise UserError(
        f'{where}.args.net.depth is {net.depth}, but {pixels} pixels '
        f'(config.data.{name}) cannot be halved so often.'
      )
  if net.weights:
    backbone = segmenters.imagenet_backbone(net)
    if backbone is None:
      raise UserError(
        f'{where}.args.net.weights is {net.weights!r}, but {net.arch} has no '
        "ImageNet encoder; set it to ''."
      )
  optimizers.make(
    optimizers.Optimizer(**fields.args.optimizer), 1, f'{where}.args.optimizer'
  )
  accumulation.check(where, fields)
  _check_statistics(where, fields, data, net)
  if 'loss' in fields.args:
    _check_class_weights(where, fields.args.loss.class_weights)
  if 'regularizer' in fields.args:
    settings = Regularizer(**fields.args.regularizer)
    regularized.check(f'{where}.args.regularizer', settings, fit.size(data))
    if regularized.is_on(settings) and data.fit == 'pad':
      writers.say(
        f"{where}.args.regularizer: config.data.fit is 'pad', and the padding "
        "counts as part of the image; with much of it take 'squeeze' or 'crop'."
      )
  if data.strong.views < strong_views:
    raise UserError(
      f'config.data.strong.views is {data.strong.views}, but '
      f'{where} ({fields.method}) compares {strong_views} strong views of each '
      f'unlabelled image; set it to {strong_views}.'
    )


def _check_labels(where, fields, data, tags):
  """Refuses labels of another kind than the method learns from."""
  if tags and not weak.gives_tags(data.weak):
    raise UserError(
      f'config.data.weak.kind is {data.weak.kind!r}, but {where} '
      f'({fields.method}) learns from tags, the classes that images show; set '
      '--config.data.weak.kind=tags.'
    )
  if data.weak.kind == 'tags' and not tags:
    raise UserError(
      f"config.data.weak.kind is 'tags', but {where} ({fields.method}) learns "
      'from labelled pixels, of which tags have none; take another kind.'
    )


def _tell_unread_images(where, fields):
  """Says that unlabelled images are read for nothing."""
  size = fields.unlabelled_batch_size
  if not size:
    return
  if fields.method in LABELS_ALONE:
    writers.say(
      f'{where}.unlabelled_batch_size={size} has no effect: {fields.method} '
      'learns from labelled images alone.'
    )
  elif fields.method == 'weak' and not regularized.is_on(
    Regularizer(**fields.args.regularizer)
  ):
    writers.say(
      f'{where}.unlabelled_batch_size={size} has no effect but on batch '
      f'statistics: {fields.method} learns from unlabelled images through '
      f'{where}.args.regularizer, whose weights are all 0.'
    )


def _check_statistics(where, fields, data, net):
  """Refuses normalisation whose statistics would be of nothing."""
  # A student that does not start from its teacher starts from nothing.
  continues = fields.init_from and fields.args.get('from_teacher', True)
  if net.norm == 'frozen' and not continues:
    if not net.weights:
      raise UserError(
        f"{where}.args.net.norm is 'frozen', but a network that starts from "
        'nothing has the statistics of no images; give '
        f"{where}.args.net.weights, or set it to 'batch'."
      )
    if net.arch in ('deeplab_v3plus', 'segnet'):
      raise UserError(
        f"{where}.args.net.norm is 'frozen', but ImageNet weights have no "
        f"statistics for the decoder of {net.arch}; set it to 'batch'."
      )
  one_pixel = net.arch == 'deeplab_v3plus' or (
    net.arch == 'unet' and 2**net.depth == max(fit.size(data))
  )
  if net.norm != 'batch' or not one_pixel:
    return
  sizes = [n for n in (fields.batch_size, fields.unlabelled_batch_size) if n]
  least = sum(sizes) if net.joint_norm else min(sizes)
  if fields.method == 'bcp' and not fields.args.pretrain:
    least = fields.batch_size // 2
  parts = accumulation.parts_of(fields)
  if least // parts < 2:
    cut = f', in {parts} parts' if parts > 1 else ''
    raise UserError(
      f'{where} gives batch normalisation one image at a time (batch_size '
      f'{fields.batch_size}, unlabelled_batch_size '
      f'{fields.unlabelled_batch_size}{cut}), but {net.arch} has a map of one '
      'pixel, which then has no variance; set both higher, or '
      "args.net.norm='group'."
    )


def _check_class_weights(where, weights):
  numbers = all(isinstance(w, int | float) for w in weights)
  if weights and not (
    numbers and all(0 <= w < math.inf for w in weights) and sum(weights) > 0
  ):
    raise UserError(
      f'{where}.args.loss.class_weights is {tuple(weights)!r}, must be numbers '
      'of 0 or more, not all 0.'
    )


def check_classes(where: str, fields: Any, num_classes: int) -> None:
  """Refuses class weights of another number of classes.

  Args:
    where: 'config.STAGE'.
    fields: its fields, of any method.
    num_classes: K.

  Raises:
    UserError: names the field.
  """
  weights = fields.args.loss.class_weights if 'loss' in fields.args else ()
  if weights and len(weights) != num_classes:
    raise UserError(
      f'{where}.args.loss.class_weights is {len(weights)} numbers, must be '
      f'{num_classes}, one for each class.'
    )


def check_boxes(where: str, fields: Any, field: str, parts: int = 1) -> None:
  """Refuses CutMix of single images.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    field: what asks for boxes, for the message.
    parts: of the batch, if boxes show an image of the same part.

  Raises:
    UserError: there is no other image.
  """
  size, of = fields.unlabelled_batch_size, 'batch' if parts == 1 else 'part'
  if size // parts < 2:
    raise UserError(
      f'{where}.unlabelled_batch_size is {size}, must be at least {2 * parts} '
      f'with {field}{f" in {parts} parts" * (parts > 1)}: boxes show another '
      f'image of the {of}.'
    )


def check_weights(fields: Any) -> None:
  """Reads the ImageNet weights of a stage that is yet to start, if it has any.

  Apart from `check`, since a trained stage no longer needs its file.

  Args:
    fields: of the stage, of any method.

  Raises:
    UserError: the file is missing, damaged, or of another network.
  """
  settings = fields.args.get('net')
  if settings and settings.weights:
    net = segmenters.Net(**settings)
    module, images = segmenters.build(net, 2), jnp.zeros((1, 64, 64, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    backbone = segmenters.imagenet_backbone(net)
    imagenet.fill({'batch_stats': {}, **shapes}, net.weights, backbone)


def check_semi_supervised(
  where: str,
  fields: Any,
  data: Any,
  strong_views: int = 0,
  from_stage: bool = False,
) -> None:
  """`check`, of a method that learns from unlabelled images.

  Args:
    where: see `check`, as for the next three.
    fields: its fields.
    data: config.data.
    strong_views: how many it needs.
    from_stage: whether the method reads an earlier stage's weights.

  Raises:
    UserError: as `check`; or none are to be read; or `init_from` names a stage
      that would be ignored.
  """
  check(where, fields, data, strong_views)
  if fields.init_from and not from_stage:
    raise UserError(
      f'{where}.init_from is {fields.init_from!r}, but {fields.method} starts '
      "from random or ImageNet weights; set it to ''."
    )
  if not fields.unlabelled_batch_size:
    raise UserError(
      f'{where}.unlabelled_batch_size is 0, but {fields.method} learns from '
      f'unlabelled images; set it, e.g. to {fields.batch_size}.'
    )


def check_whole_masks(where: str, fields: Any, data: Any) -> None:
  """Refuses weak labels, for methods whose networks look at label maps.

  Args:
    where: see `check`, as for the next two.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: labels are to be weakened.
  """
  if data.weak.kind:
    raise UserError(
      f'config.data.weak.kind is {data.weak.kind!r}, but {where} '
      f"({fields.method}) learns from whole masks; set it to '', or take "
      'another method.'
    )
