"""StyleGAN2-ADA in the layout of its authors' PyTorch pickles.

Karras et al., Training Generative Adversarial Networks with Limited Data
(NeurIPS 2020); the networks are those of StyleGAN2, under other names.
"""

import numpy as np

from jaxseg.published.networks import Network
from jaxseg.published.source import (
  Entry,
  Source,
  WeightsError,
  conv,
  dense,
  hwio,
  shown,
)
from jaxseg.published.stylegan2 import filtered, flat_map, refuse_left

# Beyond what any training sets: of values, and of images of a batch.
MAX_CLAMP, MAX_GROUP = 1e6, 1024


def generator(source: Source) -> tuple[Network, dict, Entry | None]:
  """Converts a generator.

  Args:
    source: the part with the keys 'synthesis.b4.const', 'mapping.fc0.weight'.

  Returns:
    (network of arch 'stylegan2_generator', stored noise as of
    `stylegan2.generator`, the mean w [D] or None).

  Raises:
    WeightsError: keys or shapes that are not those of such a network, or one
      with classes.
  """
  if 'mapping.embed.weight' in source:
    classes = source.shape('mapping.embed.weight')[-1]
    raise WeightsError(
      f'the weights {source.path} draw images of {classes} given classes '
      f'({source.prefix}mapping.embed.weight), expected a generator without'
    )
  _refuse_other_layers(source, 'mapping_kwargs', 'synthesis_kwargs')
  settings, noise = _generator_settings(source), {}
  has_noise = any(key.endswith('.noise_const') for key in source.keys())
  widths, w_dim = settings['widths'], settings['w_dim']
  params = {
    'const': source.entry(
      'synthesis.b4.const', (widths[0], 4, 4), lambda x: x.transpose(1, 2, 0)
    ),
    'mapping_network': {
      f'dense_{i}': dense(source, f'mapping.fc{i}', w_dim, w_dim)
      for i in range(settings['mapping_depth'])
    },
  }
  for i, width in enumerate(widths):
    side, before = 4 * 2**i, widths[max(i - 1, 0)]
    block = f'synthesis.b{side}'
    filtered(source, f'{block}.resample_filter')
    for part, ours, fan_in in (
      ('conv0', f'conv_up_{i - 1}', before),
      ('conv1', f'conv_{i - 1}' if i else 'conv_first', width),
    ):
      if part == 'conv0' and not i:
        continue
      name = f'{block}.{part}'
      params[ours] = _styled(source, name, width, fan_in, w_dim, has_noise)
      filtered(source, f'{name}.resample_filter')
      if has_noise:
        noise[str(len(noise))] = source.entry(
          f'{name}.noise_const', (side, side), lambda x: x[None, :, :, None]
        )
    params[f'to_rgb_{i}'] = _output(
      source, f'{block}.torgb', settings['channels'], width, w_dim
    )
  w_avg = None
  if 'mapping.w_avg' in source:
    w_avg = source.entry('mapping.w_avg', (w_dim,))
  refuse_left(source, 'this generator')
  network = Network('stylegan2_generator', settings, {'params': params})
  return network, noise, w_avg


def discriminator(source: Source) -> Network:
  """Converts a discriminator: keys 'b4.out.weight', 'b64.fromrgb.weight', ...

  Raises:
    WeightsError: as `generator`.
  """
  if 'mapping.fc0.weight' in source:
    raise WeightsError(
      f'the weights {source.path} hold {source.prefix}mapping.fc0.weight: a '
      'discriminator of images of given classes, expected one without'
    )
  _refuse_other_layers(source, 'block_kwargs', 'epilogue_kwargs')
  blocks = 0
  while f'b{4 * 2 ** (blocks + 1)}.conv0.weight' in source:
    blocks += 1
  if not blocks:
    raise source.missing('b8.conv0.weight')
  size = source.side(blocks)
  top = f'b{size}'
  width, channels = source.shape(f'{top}.fromrgb.weight', 4)[:2]
  params = {'from_rgb': conv(source, f'{top}.fromrgb', width, channels, 1)}
  widths = [width]
  for i in range(blocks, 0, -1):
    block = f'b{4 * 2**i}'
    out = source.shape(f'{block}.conv1.weight', 4)[0]
    params[f'block_{2 * 2**i}'] = {
      'conv1': conv(source, f'{block}.conv0', width, width, 3),
      'conv2': conv(source, f'{block}.conv1', out, width, 3),
      'skip': conv(source, f'{block}.skip', out, width, 1, bias=False),
    }
    for part in ('', '.fromrgb', '.conv0', '.conv1', '.skip'):
      filtered(source, f'{block}{part}.resample_filter')
    widths.append(width := out)
  params['conv_last'] = conv(source, 'b4.conv', width, width + 1, 3)
  filtered(source, 'b4.conv.resample_filter')
  params['dense'] = flat_map(source, 'b4.fc', width, width)
  params['score'] = dense(source, 'b4.out', 1, width)
  refuse_left(source, 'this discriminator')
  settings = {
    'resolution': size,
    'widths': widths[::-1],
    'conv_clamp': _clamp(source, 'b4.conv', 'conv_clamp'),
    'stddev_group': _stddev_group(source),
  }
  return Network('stylegan2_discriminator', settings, {'params': params})


def _generator_settings(source):
  widths = []
  while f'synthesis.b{4 * 2 ** len(widths)}.conv1.weight' in source:
    side = 4 * 2 ** len(widths)
    widths.append(source.shape(f'synthesis.b{side}.conv1.weight', 4)[0])
  if len(widths) < 2:
    raise source.missing(f'synthesis.b{4 * 2 ** len(widths)}.conv1.weight')
  w_dim, z_dim = source.shape('mapping.fc0.weight', 2)
  if w_dim != z_dim:
    raise WeightsError(
      f'the weights {source.path} hold {source.prefix}mapping.fc0.weight of '
      f'shape {(w_dim, z_dim)}, but here z and w must have the same width'
    )
  return {
    'resolution': source.side(len(widths) - 1),
    'channels': source.shape('synthesis.b4.torgb.weight', 4)[0],
    'num_classes': 0,
    'w_dim': w_dim,
    'mapping_depth': source.count(r'mapping\.fc(\d+)\.weight'),
    'widths': widths,
    'conv_clamp': _clamp(
      source, 'synthesis.b4.conv1', 'synthesis_kwargs/conv_clamp'
    ),
  }


def _setting(source, attribute, argument, types, limit):
  """What a layer was made with, as it says itself, or else the network."""
  for name in (attribute, f'_init_kwargs/{argument}'):
    value = source.values.get(f'{source.prefix}{name}')
    if value is None:
      continue
    # A bool is an int, too.
    if type(value) not in types or not 0 < value <= limit:
      raise WeightsError(
        f'the weights {source.path} hold {source.prefix}{name} = '
        f'{shown(value)}, expected {" or ".join(t.__name__ for t in types)} '
        f'from 0 to {limit:,}; is the file damaged?'
      )
    return value
  return None


def _clamp(source, layer, argument):
  name = f'{layer}.conv_clamp'
  return float(_setting(source, name, argument, (int, float), MAX_CLAMP) or 0)


def _stddev_group(source):
  """Of the batch's standard deviation; its authors' is 4."""
  argument = 'epilogue_kwargs/mbstd_group_size'
  name = 'b4.mbstd.group_size'
  return _setting(source, name, argument, (int,), MAX_GROUP) or 4


def _refuse_other_layers(source, *names):
  """Refuses layers that have the same arrays, but compute something else."""
  for name in names:
    for kind, wanted in (('activation', 'lrelu'), ('lr_multiplier', 0.01)):
      key = f'{source.prefix}_init_kwargs/{name}/{kind}'
      found = source.values.get(key, wanted)
      if found != wanted:
        raise WeightsError(
          f'the weights {source.path} hold {key} = {shown(found)}, expected '
          f'{wanted!r}; such a network cannot be converted'
        )


def _modulated(source, name, features, fan_in, size, w_dim):
  shape = (features, fan_in, size, size)
  return {
    'kernel': source.entry(f'{name}.weight', shape, hwio),
    'affine': dense(source, f'{name}.affine', fan_in, w_dim),
  }


def _styled(source, name, features, fan_in, w_dim, has_noise):
  key = f'{name}.noise_strength'
  strength = (
    source.entry(key, ())
    if has_noise
    else Entry((), lambda: np.zeros((), np.float32), key)
  )
  return {
    'conv': _modulated(source, name, features, fan_in, 3, w_dim),
    'noise_strength': strength,
    'bias': source.entry(f'{name}.bias', (features,)),
  }


def _output(source, name, features, width, w_dim):
  return {
    'conv': _modulated(source, name, features, width, 1, w_dim),
    'bias': source.entry(f'{name}.bias', (features,)),
  }
