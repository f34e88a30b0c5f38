"""What a CycleGAN stage is refused for, before it starts."""

from typing import Any

from jaxseg import optimizers
from jaxseg.errors import UserError
from jaxseg.losses import gan
from jaxseg.methods import segmenting_checks
from jaxseg.nets import discriminators
from jaxseg.optimizers import Optimizer


def check(where: str, fields: Any, data: Any) -> None:
  """Refuses a stage that could not train, before anything is read.

  Args:
    where: 'config.STAGE'.
    fields: its fields.
    data: config.data.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  segmenting_checks.check_semi_supervised(where, fields, data)
  segmenting_checks.check_whole_masks(where, fields, data)
  args = fields.args
  optimizers.make(Optimizer(**args.d_optimizer), 1, f'{where}.args.d_optimizer')
  if args.d_optimizer.accumulate != 1:
    raise UserError(
      f'{where}.args.d_optimizer.accumulate is {args.d_optimizer.accumulate}, '
      'must be 1: all networks see the same parts of a batch; set '
      'args.optimizer.accumulate.'
    )
  if args.d_optimizer.head_factor != 1:
    raise UserError(
      f'{where}.args.d_optimizer.head_factor is '
      f'{args.d_optimizer.head_factor}, must be 1: discriminators have no '
      'encoder; set args.optimizer.head_factor, which is of G_IS.'
    )
  check_choices(
    f'{where}.args.', args.discriminator, args.d_width, args.d_norm,
    args.g_norm, args.adversarial,
  )  # fmt: skip
  if args.g_width < 1:
    raise UserError(
      f'{where}.args.g_width is {args.g_width}, must be at least 1.'
    )
  if not 0 <= args.g_dropout < 1:
    raise UserError(
      f'{where}.args.g_dropout is {args.g_dropout}, must be from 0 to below 1.'
    )
  _check_pool(where, fields)


def _check_pool(where, fields):
  args = fields.args
  largest = max(fields.batch_size, fields.unlabelled_batch_size)
  if args.pool_whole_batches and 0 < args.pool_size < largest:
    raise UserError(
      f'{where}.args.pool_size is {args.pool_size}, too few for one batch of '
      f'{largest} (pool_whole_batches); set it to 0, or to 50 batches, '
      f'{50 * largest}.'
    )


def check_choices(
  prefix: str,
  discriminator: str,
  d_width: int,
  d_norm: str,
  g_norm: str,
  adversarial: str,
) -> None:
  """Refuses settings outside their choices.

  Args:
    prefix: of the fields' names, '' or 'config.STAGE.args.'.
    discriminator: this and the others: arguments of `cyclegan.make`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  for field, value, allowed in (
    ('discriminator', discriminator, ('pixel', 'patch')),
    ('d_norm', d_norm, discriminators.DISCRIMINATOR_NORMS),
    ('g_norm', g_norm, ('instance', 'batch')),
    ('adversarial', adversarial, gan.ADVERSARIAL),
  ):
    if value not in allowed:
      raise UserError(
        f'{prefix}{field} is {value!r}, must be one of {", ".join(allowed)}.'
      )
  if d_width < 1:
    raise UserError(f'{prefix}d_width is {d_width}, must be at least 1.')
