"""Networks trained here as a folder of weights, like those converted."""

import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import workdir as workdirs
from jaxseg.errors import UserError
from jaxseg.methods import semantic_gan
from jaxseg.nets import stylegan2
from jaxseg.published import folder, start, whole
from jaxseg.published.networks import Converted, Network

METHODS = ('semantic_gan', 'semantic_gan_encoder')


def export(
  workdir: str | os.PathLike,
  output: str | os.PathLike,
  stage: str = '',
  checkpoint: str = 'newest',
) -> dict[str, Any]:
  """Writes the networks of a trained stage, and of the one it began with.

  Args:
    workdir: of the training.
    output: folder to write; must not exist.
    stage: of method semantic_gan or semantic_gan_encoder; '': the last such.
    checkpoint: 'newest', 'best' or a step.

  Returns:
    what pretrained.json tells.

  Raises:
    UserError: no such stage, or the folder exists.
  """
  whole.refuse_existing(output)
  config = workdirs.load_config(workdir)
  able = [s for s in config.stages if config[s].method in METHODS]
  if not able or (stage and stage not in able):
    raise UserError(
      f'--stage={stage}: {workdir} has no such stage with a generator, '
      f'expected one of {", ".join(able) or "a workdir of SemanticGAN"}'
    )
  stage = stage or able[-1]
  trained = workdirs.load(workdir, (stage,), checkpoint)
  state = trained.stages[stage].state
  settings = network_settings(trained.config, stage, len(trained.class_names))
  variables = _variables(state)
  if (before := config[stage].init_from) in config.stages:
    # Its discriminators; its generator may have been trained on since.
    gan = workdirs.load(workdir, (before,)).stages[before].state
    variables = _variables(gan) | variables
    variables.pop('g', None)
  networks = {
    name: Network(*settings[name], tree) for name, tree in variables.items()
  }
  extras = {}
  if 'w_avg' in state.extra:
    extras['w_avg'] = state.extra['w_avg']
    extras['noise'] = {str(i): x for i, x in enumerate(state.extra['noise'])}
  source = before if before in config.stages else stage
  converted = Converted(
    'jaxseg', networks, extras, adds_w_avg=bool(extras),
    label_output=config[source].args.get('label_output', 'logits'),
  )  # fmt: skip
  return folder.save(_on_host(converted), output)


def network_settings(
  config: ConfigDict, stage: str, num_classes: int
) -> dict[str, tuple[str, dict[str, Any]]]:
  """Arch and settings of SemanticGAN's networks, as pretrained.json has them.

  Args:
    config: of the training.
    stage: of method semantic_gan or semantic_gan_encoder.
    num_classes: K.

  Returns:
    by network: 'g', 'g_ema', 'd_r', 'd_m'; 'e' of an encoder's stage.
  """
  fields = config[stage]
  args, source = fields.args.to_dict(), fields.init_from
  gan = args
  if source in config.stages:
    gan = config[source].args.to_dict()
  elif source and fields.method in start.WITH_GENERATOR:
    gan = start.generator_settings(config, stage, num_classes)
  data = config.data
  nets = semantic_gan.networks(
    num_classes, data.resolution, data.channels, **gan
  )
  plain = lambda net, *names: {
    name: list(v) if isinstance(v := getattr(net, name), tuple) else v
    for name in names
  }
  g = plain(
    nets.g, 'resolution', 'channels', 'num_classes', 'w_dim', 'mapping_depth',
    'conv_clamp',
  ) | {'widths': list(stylegan2.widths_of(nets.g))}  # fmt: skip
  d_r = plain(nets.d_r, 'resolution', 'conv_clamp', 'stddev_group')
  found = {
    'g': ('stylegan2_generator', g),
    'g_ema': ('stylegan2_generator', g),
    'd_r': (
      'stylegan2_discriminator',
      d_r | {'widths': list(stylegan2.widths_of(nets.d_r))},
    ),
    'd_m': ('multiscale_discriminator', plain(nets.d_m, 'num_scales', 'width')),
  }
  if 'features' in args:
    e = {'resolution': data.resolution, 'w_dim': nets.g.w_dim}
    e |= {name: args[name] for name in ('width', 'features')}
    found['e'] = 'fpn_encoder', e | {'depths': list(args['depths'])}
  return found


def _variables(state):
  """Variables of each network that a state holds."""
  found = {name: {'params': tree} for name, tree in state.params.items()}
  for name, tree in state.ema.items():
    found['g_ema' if name == 'g' else name] = {'params': tree}
  if 'spectral' in state.extra:
    found['d_m']['spectral'] = state.extra['spectral']
  if 'g' in state.extra:  # frozen, of an earlier stage
    found['g_ema'] = {'params': state.extra['g']}
  return found


def _on_host(converted):
  on_host = lambda tree: jax.tree.map(np.asarray, tree)
  networks = {
    name: network._replace(variables=on_host(network.variables))
    for name, network in converted.networks.items()
  }
  extras = on_host(converted.extras)
  return converted._replace(networks=networks, extras=extras)
