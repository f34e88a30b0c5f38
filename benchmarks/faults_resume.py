"""Whether a training cut anywhere and continued ends with the same bits."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks import faults_config
from benchmarks.faults_checkpoints import quiet
from jaxseg import train
from jaxseg import workdir as workdirs

STEPS = 20
CUTS = 10


def at_random_cuts(method: str) -> Callable[[Path, int], str]:
  """Returns the case of one method."""

  def cuts(folder: Path, trials: int) -> str:
    faults_config.write_squares(folder / 'data', 16)
    config = faults_config.get_config(f'{folder / "data"},{method}')
    config[method].update(
      dict(total_steps=STEPS, checkpoint_every=1, keep_checkpoints=STEPS)
    )
    whole = folder / 'whole'
    with quiet():
      train.train(config, str(whole), evaluate_after=False)
    expected = ending(whole, method)
    steps = random.Random(method).sample(range(1, STEPS), CUTS)
    for step in steps:
      cut = folder / 'cut'
      shutil.copytree(whole, cut, ignore=after(step))
      with quiet():
        train.train(config, str(cut), evaluate_after=False)
      assert ending(cut, method) == expected, f'cut after step {step}'
      shutil.rmtree(cut)
    told = ', '.join(map(str, sorted(steps)))
    return f'the same bits and records after cuts at steps {told}'

  return cuts


def after(step: int) -> Callable[[str, list[str]], set[str]]:
  """What `shutil.copytree` leaves out: checkpoints beyond a step."""
  return lambda folder, names: {
    name
    for name in names
    if Path(folder).name == 'checkpoints'
    and name.isdigit()
    and int(name) > step
  }


def ending(workdir: Path, stage: str) -> tuple[str, list[bytes]]:
  """The records and all bits of the newest checkpoint."""
  state = workdirs.load(workdir, (stage,)).stages[stage].state
  state = state.replace(rng=jax.random.key_data(state.rng))
  bits = [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]
  return (workdir / stage / 'metrics.jsonl').read_text(), bits


CASES = {
  f'cuts_{method}': (
    f'{method} cut at {CUTS} random steps of {STEPS} and continued',
    at_random_cuts(method),
  )
  for method in faults_config.TINY
}
