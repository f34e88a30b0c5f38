"""Draws numbered images with their labels out of a generator, and scores them.

Image i depends on the weights, the seed and i alone. Its label is the likeliest
class of each pixel; how sure the generator is of it, and what the
discriminators say, are the measures that `synthesis_filter` chooses by.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import parallel, workdir
from jaxseg.errors import UserError

# Share of the pixels, the least certain, of the measure 'uncertainty': Zhang et
# al., DatasetGAN (CVPR 2021), its published code.
UNCERTAIN = 0.1


class Drawn(NamedTuple):
  """N images out of a generator.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: uint8 [N, H, W], class ids.
    measures: float32 [N] by name: what `Method.judge` gives, where there is
      one; 'entropy', of the label, in nats, mean over pixels; and
      'uncertainty', its mean over the tenth of the pixels where it is largest.
  """

  images: np.ndarray
  labels: np.ndarray
  measures: Mapping[str, np.ndarray]


def choose(trained: workdir.Trained, stage: str | None = None) -> str:
  """Returns the stage that draws: the last one that can judge, else can draw.

  Args:
    trained: from `jaxseg.workdir.load`.
    stage: its name; None: chosen.

  Raises:
    UserError: no trained stage draws images, or not that one.
  """
  able = [s for s, (m, _, _) in trained.stages.items() if m.sample]
  found = ', '.join(trained.stages)
  if not able:
    raise UserError(
      f'none of the trained stages ({found}) draws images with labels, '
      'expected one of semantic_gan, semantic_gan_encoder or label_branch; '
      'give a --workdir that has one'
    )
  if stage is None:
    judging = [s for s in able if trained.stages[s].method.judge]
    return (judging or able)[-1]
  if stage not in able:
    raise UserError(
      f'--stage={stage}: no trained stage of that name draws images with '
      f'labels, expected one of {", ".join(able)}'
    )
  return stage


def compile_draw(
  stage: workdir.Stage,
  seed: int,
  truncation: float | None,
  batch_size: int,
  mesh: jax.sharding.Mesh,
) -> Callable[[np.ndarray], Drawn]:
  """Compiles one program for batches of a fixed size, shared by all devices.

  Args:
    stage: one whose method can sample.
    seed: from 0 up.
    truncation: psi; None: that of the stage's settings.
    batch_size: images at a time; rounded up to a multiple of the devices.
    mesh: devices that share a batch, see `parallel.make_mesh`.

  Returns:
    A function of the numbers of 1 to `batch_size` images, integers [n].
  """
  devices = mesh.shape['data']
  size = -(-batch_size // devices) * devices
  draw = _draw(stage.method, seed, truncation)
  indices = jax.ShapeDtypeStruct(
    (size,), np.int32, sharding=parallel.over_data(mesh)
  )
  state = jax.device_put(stage.state, parallel.replicated(mesh))
  with jax.set_mesh(mesh):
    program = jax.jit(draw).lower(state, indices).compile()

  def run(numbers):
    numbers = np.asarray(numbers, np.int32)
    padded = np.pad(numbers, (0, size - len(numbers)), 'edge')
    out = program(state, jax.device_put(padded, indices.sharding))
    return jax.tree.map(lambda x: np.asarray(x)[: len(numbers)], out)

  return run


def _draw(method, seed, truncation):
  """(state, int32 [N]) -> `Drawn`, to be jitted."""
  options = {} if truncation is None else {'truncation': truncation}

  def draw(state, indices):
    key = jax.random.key(seed, impl='threefry2x32')

    def one(index):
      image, p = method.sample(
        state, jax.random.fold_in(key, index), 1, **options
      )
      return image[0], p[0]

    images, probabilities = jax.vmap(one)(indices)
    measures = _measures(probabilities)
    if method.judge:
      measures |= method.judge(state, images, probabilities)
    return Drawn(
      jnp.rint(jnp.clip(images * 127.5 + 127.5, 0, 255)).astype(jnp.uint8),
      probabilities.argmax(-1).astype(jnp.uint8),
      measures,
    )

  return draw


def _measures(probabilities):
  """'entropy' and 'uncertainty', see `Drawn`; of [N, H, W, K]."""
  p = jnp.maximum(probabilities, 1e-12)
  entropy = -(p * jnp.log(p)).sum(-1).reshape(len(p), -1)
  top = jax.lax.top_k(entropy, math.ceil(UNCERTAIN * entropy.shape[1]))[0]
  return {'entropy': entropy.mean(1), 'uncertainty': top.mean(1)}
