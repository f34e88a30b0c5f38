"""What a stage that trains a segmenter is refused for, before it starts."""

from typing import Any

from jaxseg import optimizers, writers
from jaxseg.errors import UserError
from jaxseg.nets import imagenet, segmenters


def check(where: str, fields: Any, data: Any, strong_views: int = 0) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.
    strong_views: how many strong views of unlabelled images the method needs;
      0: it learns from no unlabelled images, or from the weak view alone.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  if data.weak.kind == 'tags':
    raise UserError(
      f"config.data.weak.kind is 'tags', but {where} ({fields.method}) learns "
      'from labelled pixels, of which tags have none; take another kind.'
    )
  net = segmenters.Net(**fields.args.net)
  segmenters.build(net, 2, f'{where}.args.net')
  for name in segmenters.unread(net):
    if name != 'weights':  # refused below
      writers.say(
        f'{where}.args.net.{name}={getattr(net, name)!r} has no effect: '
        f'{net.arch} does not have it.'
      )
  side = 2**net.depth
  if net.arch == 'unet' and data.resolution % side:
    raise UserError(
      f'{where}.args.net.depth is {net.depth}, but {data.resolution} pixels '
      f'(config.data.resolution) cannot be halved so often.'
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
  if net.norm == 'frozen' and not net.weights and not fields.init_from:
    raise UserError(
      f"{where}.args.net.norm is 'frozen', but a network that starts from "
      'nothing has the statistics of no images; give '
      f"{where}.args.net.weights, or set it to 'batch'."
    )
  if data.strong.views < strong_views:
    raise UserError(
      f'config.data.strong.views is {data.strong.views}, but '
      f'{where} ({fields.method}) compares {strong_views} strong views of each '
      f'unlabelled image; set it to {strong_views}.'
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
    imagenet.load(net.weights, segmenters.imagenet_backbone(net))


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
