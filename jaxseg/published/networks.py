"""The networks that converted weights are of, by name, and how to build one."""

from typing import Any, NamedTuple

import flax.linen as nn

from jaxseg.nets import discriminators, encoder, inception, ir_se, stylegan2

# arch -> module; its attributes are the settings.
ARCHS: dict[str, Any] = {
  'stylegan2_generator': stylegan2.Generator,
  'stylegan2_discriminator': stylegan2.Discriminator,
  'multiscale_discriminator': discriminators.MultiscaleDiscriminator,
  'fpn_encoder': encoder.Encoder,
  'residual_encoder': encoder.ResidualEncoder,
  'psp_encoder': ir_se.PSPEncoder,
  'e4e_encoder': ir_se.E4EEncoder,
  'inception_v3': inception.InceptionV3,
}


class Network(NamedTuple):
  """One network of a file.

  Attributes:
    arch: a key of ARCHS, or a name that says what reads its variables.
    settings: of the module, plain data.
    variables: {collection: nested dict}, whose leaves are `source.Entry` before
      they are read and float32 arrays after.
  """

  arch: str
  settings: dict[str, Any]
  variables: dict[str, Any]


class Converted(NamedTuple):
  """What a file holds, in the terms used here.

  Attributes:
    kind: as given on the command line.
    networks: by name: 'g' and 'g_ema' (its average), 'd_r', 'd_m', 'e', ...
    extras: nested dict of `source.Entry`: 'w_avg' [D] or [L, D], 'noise' {'0':
      [1, h, w, 1], ..}, the maps stored with a generator.
    remarks: sentences for the user, e.g. on settings that are not used.
    adds_w_avg: whether 'w_avg' is to be added to what the encoder gives.
  """

  kind: str
  networks: dict[str, Network]
  extras: dict[str, Any]
  remarks: tuple[str, ...] = ()
  adds_w_avg: bool = False


def module(arch: str, settings: dict[str, Any]) -> nn.Module:
  """Builds the module of a network; lists of its settings become tuples."""
  fixed = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in settings.items()
  }
  return ARCHS[arch](**fixed)
