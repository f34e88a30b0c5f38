"""What a `label_branch` stage is refused for, before anything is read."""

from typing import Any

from jaxseg.data import fit
from jaxseg.errors import UserError
from jaxseg.losses.regularized import Regularizer
from jaxseg.methods import inversion

HEADS = ('skips', 'pixels')


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses settings that cannot work.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  args = fields.args
  if args.head not in HEADS:
    raise UserError(
      f'{where}.args.head is {args.head!r}, must be one of {", ".join(HEADS)}.'
    )
  for name in ('members', 'pixels', 'max_images', 'invert_batch'):
    if args[name] < 1:
      raise UserError(
        f'{where}.args.{name} is {args[name]}, must be 1 or more.'
      )
  if len(args.head_widths) != 2 or min(args.head_widths) < 1:
    raise UserError(
      f'{where}.args.head_widths is {tuple(args.head_widths)}, must be two '
      'widths of 1 or more, such as (128, 32).'
    )
  height, width = fit.size(data)
  if height != width:
    raise UserError(
      f'config.data.width is {data.width}, but {where} ({fields.method}) draws '
      'squares; set it to 0.'
    )
  inversion.check_regularizer(
    f'{where}.args.refine_regularizer',
    Regularizer(**args.refine_regularizer), (height, width),
  )  # fmt: skip
  if fields.unlabelled_batch_size:
    raise UserError(
      f'{where}.unlabelled_batch_size is {fields.unlabelled_batch_size}, but '
      f'{fields.method} learns from labelled images alone; set it to 0.'
    )
  if data.weak.kind == 'tags':
    raise UserError(
      f"config.data.weak.kind is 'tags', but {where} ({fields.method}) learns "
      'from labelled pixels, of which tags have none; take another kind.'
    )
