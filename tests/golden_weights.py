"""Recorded SemanticGAN checkpoints as variables of our networks, converted.

`weights` maps the keys of a checkpoint to arrays, `prefix` is the network's.
"""

import jax
import numpy as np
from entries import arrays_of, source_of

from jaxseg.published import encoders, stylegan2
from jaxseg.published.source import Entry


def nhwc(x: np.ndarray) -> np.ndarray:
  """Images or maps [N, C, H, W] with the channels last."""
  return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def generator(weights, prefix: str) -> dict:
  """'params' of `Generator`."""
  network, _ = stylegan2.generator(_part(weights, prefix))
  return arrays_of(network.variables['params'])


def registered_noise(weights, prefix: str) -> list[np.ndarray]:
  """The stored noise maps, each [1, h, w, 1]."""
  _, noise = stylegan2.generator(_part(weights, prefix))
  return [noise[str(i)].read() for i in range(len(noise))]


def discriminator(weights, prefix: str) -> dict:
  """'params' of `Discriminator`."""
  network = stylegan2.discriminator(_part(weights, prefix))
  return arrays_of(network.variables['params'])


def multiscale(weights, prefix: str) -> dict:
  """Variables of `MultiscaleDiscriminator`: 'params' and 'spectral'."""
  return arrays_of(stylegan2.multiscale(_part(weights, prefix)).variables)


def encoder(weights, prefix: str) -> dict:
  """Variables of `Encoder` with norm 'batch': 'params' and 'batch_stats'."""
  network = encoders.semanticgan_encoder(_part(weights, prefix))
  return arrays_of(network.variables)


def by_published_name(weights, prefix: str, params: dict) -> dict:
  """Leaves of a generator's tree, e.g. gradients, by their published names."""
  network, _ = stylegan2.generator(_part(weights, prefix))
  name = lambda entry: entry.key.removeprefix(prefix)
  is_entry = lambda x: isinstance(x, Entry)
  names = jax.tree.map(name, network.variables['params'], is_leaf=is_entry)
  return dict(zip(jax.tree.leaves(names), jax.tree.leaves(params), strict=True))


def _part(weights, prefix):
  return source_of(weights).under(prefix)
