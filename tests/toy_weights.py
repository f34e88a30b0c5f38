"""Folders of converted weights, of networks that are small and never trained.

What a generator with random weights draws has much to tell apart, so that there
is something to invert and to label.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.published import folder, networks
from jaxseg.published.networks import Converted, Network

SIZE = 32
GENERATOR = dict(w_dim=8, mapping_depth=2, widths=[8, 8, 8, 4])
PSP = dict(
  input_size=64, w_dim=8, num_styles=8, units=[1, 1, 1, 1], stem_width=4,
  widths=[4, 4, 4, 8], se_widths=[0, 0, 0, 0], channels=1,
)  # fmt: skip
ENCODER = dict(w_dim=8, width=8, depths=[1, 1, 1, 1], features=8)


@functools.cache
def network(name: str, num_classes: int = 0, channels: int = 1) -> Network:
  """One with its variables; every name has other weights."""
  arch, settings, side = {
    'g': ('stylegan2_generator', GENERATOR | dict(
      channels=channels, num_classes=num_classes), None),
    'd_r': ('stylegan2_discriminator', dict(
      widths=[8, 8, 8, 4], stddev_group=2), SIZE),
    'e': ('fpn_encoder', ENCODER, SIZE),
    'psp': ('psp_encoder', PSP, 64),
  }[name.removesuffix('_ema')]  # fmt: skip
  if name != 'psp':
    settings = {'resolution': SIZE} | settings
  shape = (1, 8) if side is None else (1, side, side, channels)
  init = jax.jit(networks.module(arch, settings).init)
  key = jax.random.key(sum(map(ord, name)))
  variables = jax.tree.map(np.asarray, init(key, jnp.zeros(shape)))
  return Network(arch, settings, variables)


def converted(*names: str, num_classes: int = 0) -> Converted:
  """names: of 'g', 'g_ema', 'd_r', and 'e' or 'psp', both called 'e' there."""
  nets = {
    'e' if name == 'psp' else name: network(
      name, num_classes if name[0] == 'g' else 0
    )
    for name in names
  }
  return Converted('semanticgan', nets, {}, adds_w_avg='e' in nets)


def card(*names: str, **settings) -> dict:
  """What the folder's pretrained.json tells a method."""
  made = converted(*names, **settings)
  nets = {n: net._asdict() for n, net in made.networks.items()}
  for net in nets.values():
    del net['variables']
  return {'networks': nets, 'adds_w_avg': made.adds_w_avg}


def write(path, *names: str, **settings) -> str:
  """Saves such a folder."""
  folder.save(converted(*names, **settings), path)
  return str(path)


def fill(state, num_classes: int):
  """A fresh state of label_branch, as if it had read and inverted."""
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  extra = dict(state.extra)
  for name in ('frozen', 'perceptual', 'codes'):
    extra[name] = jax.tree.map(draw, extra[name])
  labels = rng.integers(0, num_classes, extra['labels'].shape)
  extra |= {'labels': labels.astype(np.uint8), 'count': np.int32(6)}
  return state.replace(extra=jax.tree.map(jnp.asarray, extra))
