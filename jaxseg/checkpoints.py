"""The training state on disk: Orbax, written whole or not at all."""

import logging as python_logging
import os

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxseg.errors import UserError
from jaxseg.method import TrainState


def manager(directory: str, keep: int = 2) -> ocp.CheckpointManager:
  """Opens (or creates) a folder of checkpoints, the newest `keep` kept."""
  # Orbax logs dozens of lines a save, in which the progress would drown.
  python_logging.getLogger('absl').addFilter(_not_orbax)
  options = ocp.CheckpointManagerOptions(
    preservation_policy=checkpoint_managers.LatestN(keep),
    cleanup_tmp_directories=True,
    enable_async_checkpointing=True,
  )
  return ocp.CheckpointManager(os.path.abspath(directory), options=options)


def _not_orbax(record: python_logging.LogRecord) -> bool:
  return 'orbax' not in record.pathname or record.levelno > python_logging.INFO


def save(ckpts: ocp.CheckpointManager, state: TrainState, data: dict) -> None:
  """Saves the state and the position in the data under the state's step."""
  ckpts.save(
    int(state.step),
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data)
    ),
  )


def restore(
  ckpts: ocp.CheckpointManager, like: TrainState, step: int | None = None
) -> tuple[TrainState, dict]:
  """Restores (state, position in the data).

  Args:
    ckpts: an open folder.
    like: a TrainState of arrays or of ShapeDtypeStructs with shardings.
    step: which; None: the newest.

  Raises:
    UserError: no checkpoint, or one of another model.
  """
  step = ckpts.latest_step() if step is None else step
  if step is None:
    raise UserError(
      f'{ckpts.directory} holds no checkpoint; train this stage first.'
    )
  try:
    restored = ckpts.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
      ),
    )
  except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
    first = str(error).strip().splitlines()[0][:300]
    raise UserError(
      f'{ckpts.directory}/{step} cannot be read as this stage: {first} '
      'Use the config it was trained with, or delete that folder to go back '
      'to the checkpoint before.'
    ) from error
  return restored['state'], restored['data']


def abstract(state: TrainState, sharding: jax.sharding.Sharding) -> TrainState:
  """Shapes and dtypes of a state, placed: what `restore` wants as `like`."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )
