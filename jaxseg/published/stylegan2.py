"""StyleGAN2 and SemanticGAN in the layout of the rosinality implementation.

It is the layout of the checkpoints of pSp, e4e and SemanticGAN too. Networks:
Karras et al., Analyzing and Improving the Image Quality of StyleGAN (CVPR
2020); Li et al., Semantic Segmentation with Generative Models (CVPR 2021).
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
)

# Of Karras et al. 2020, by which every change of size is filtered.
BINOMIAL = np.outer((1, 3, 3, 1), (1, 3, 3, 1)) / 64


def generator(source: Source) -> tuple[Network, dict]:
  """Converts a generator, with its label branch where it has one.

  Args:
    source: the part with the keys 'input.input', 'conv1.conv.weight', ...

  Returns:
    (network of arch 'stylegan2_generator', its stored noise {'0': entry [1, h,
    w, 1], ..}, empty if the file has none).

  Raises:
    WeightsError: keys or shapes that are not those of such a network.
  """
  settings = generator_settings(source)
  widths, w_dim = settings['widths'], settings['w_dim']
  params = {
    'const': source.entry(
      'input.input', (1, widths[0], 4, 4), lambda x: x[0].transpose(1, 2, 0)
    ),
    'mapping_network': {
      f'dense_{i}': dense(source, f'style.{i + 1}', w_dim, w_dim)
      for i in range(settings['mapping_depth'])
    },
    'conv_first': _styled(source, 'conv1', widths[0], widths[0], w_dim),
  }
  for i, width in enumerate(widths[1:]):
    before, name = widths[i], f'convs.{2 * i}'
    params[f'conv_up_{i}'] = _styled(source, name, width, before, w_dim)
    filtered(source, f'{name}.conv.blur.kernel')
    name = f'convs.{2 * i + 1}'
    params[f'conv_{i}'] = _styled(source, name, width, width, w_dim)
  for kind, features in (
    ('to_rgb', settings['channels']),
    ('to_seg', settings['num_classes']),
  ):
    for i, width in enumerate(widths if features else ()):
      name = f'{kind}s.{i - 1}' if i else f'{kind}1'
      params[f'{kind}_{i}'] = _output(source, name, features, width, w_dim)
      filtered(source, f'{name}.upsample.kernel')
  noise = _noise(source, len(widths))
  refuse_left(source, 'this generator')
  return Network('stylegan2_generator', settings, {'params': params}), noise


def generator_settings(source: Source) -> dict:
  """Sizes of a generator out of its shapes, as `Generator` names them."""
  convs = source.count(r'convs\.(\d+)\.conv\.weight')
  first = source.shape('conv1.conv.weight', 5)[1]
  if convs % 2 or not convs:
    raise source.missing(f'convs.{convs}.conv.weight')
  widths = [first]
  for i in range(0, convs, 2):
    widths.append(source.shape(f'convs.{i}.conv.weight', 5)[1])
  w_dim, z_dim = source.shape('style.1.weight', 2)
  if w_dim != z_dim:
    raise WeightsError(
      f'the weights {source.path} hold {source.prefix}style.1.weight of shape '
      f'{(w_dim, z_dim)}, but here z and w must have the same width'
    )
  depth = 1
  while f'style.{depth + 1}.weight' in source:
    depth += 1
  label = source.shape('to_seg1.bias', 4)[1] if 'to_seg1.bias' in source else 0
  return {
    'resolution': source.side(convs // 2),
    'channels': source.shape('to_rgb1.bias', 4)[1],
    'num_classes': label,
    'w_dim': w_dim,
    'mapping_depth': depth,
    'widths': widths,
  }


def discriminator(source: Source) -> Network:
  """Converts D_r: keys 'convs.0.0.weight', ..., 'final_linear.1.bias'.

  Raises:
    WeightsError: as `generator`.
  """
  params, widths = discriminator_body(source)
  width = widths[0]
  flat = flat_map(source, 'final_linear.0', width, width)
  params |= {'dense': flat, 'score': dense(source, 'final_linear.1', 1, width)}
  refuse_left(source, 'this discriminator')
  settings = {'resolution': source.side(len(widths) - 1), 'widths': widths}
  return Network('stylegan2_discriminator', settings, {'params': params})


def discriminator_body(source: Source) -> tuple[dict, list[int]]:
  """D_r up to its 4x4 map: (parameters, widths at 4, 8, ..., resolution).

  Raises:
    WeightsError: as `generator`.
  """
  blocks = _count_blocks(source)
  last, channels = source.shape('convs.0.0.weight', 4)[:2]
  params = {'from_rgb': layer(source, 'convs.0', (0, 1), last, channels, 1)}
  widths, width = [last], last
  for i in range(1, blocks + 1):
    name = f'convs.{i}'
    out = source.shape(f'{name}.conv2.1.weight', 4)[0]
    params[f'block_{4 * 2 ** (blocks - i)}'] = {
      'conv1': layer(source, f'{name}.conv1', (0, 1), width, width, 3),
      'conv2': layer(source, f'{name}.conv2', (1, 2), out, width, 3),
      'skip': layer(source, f'{name}.skip', (1, None), out, width, 1),
    }
    for part in ('conv2', 'skip'):
      filtered(source, f'{name}.{part}.0.kernel')
    widths.append(width := out)
  params['conv_last'] = layer(source, 'final_conv', (0, 1), width, width + 1, 3)
  return params, widths[::-1]


def multiscale(source: Source) -> Network:
  """Converts D_m of SemanticGAN: keys 'scale0_layer0.0.weight', ...

  Raises:
    WeightsError: as `generator`.
  """
  scales = source.count(r'scale(\d+)_layer0\.0\.weight')
  width, inputs = source.shape('scale0_layer0.0.weight', 4)[:2]
  params, spectral = {}, {}
  for scale in range(scales):
    # In the file the last scale is that of the full resolution.
    name = f'scale{scales - 1 - scale}_layer'
    layers, vectors = {}, {}
    layers['layer0'] = conv(source, f'{name}0.0', width, inputs, 4)
    for i in (1, 2, 3):
      out, fan_in = width * 2**i, width * 2 ** (i - 1)
      key = f'{name}{i}.0.0.weight'
      shape = (out, fan_in, 4, 4)
      layers[f'layer{i}'] = {'kernel': source.entry(f'{key}_orig', shape, hwio)}
      vectors[f'layer{i}'] = {
        'u': source.entry(f'{key}_u', (out,)),
        'v': source.entry(f'{key}_v', (fan_in * 16,), _spectral_v),
      }
    layers['layer4'] = conv(source, f'{name}4.0', 1, 8 * width, 4)
    params[f'scale_{scale}'] = layers
    spectral[f'scale_{scale}'] = vectors
  refuse_left(source, 'this discriminator')
  return Network(
    'multiscale_discriminator',
    {'num_scales': scales, 'width': width},
    {'params': params, 'spectral': spectral},
  )


def layer(
  source: Source, name: str, places: tuple[int, int | None], features: int,
  fan_in: int, size: int,
) -> dict[str, Entry]:  # fmt: skip
  """{'kernel', 'bias'} whose places in a sequence are given; None: no bias."""
  weight, bias = places
  shape = (features, fan_in, size, size)
  found = {'kernel': source.entry(f'{name}.{weight}.weight', shape, hwio)}
  if bias is not None:
    found['bias'] = source.entry(f'{name}.{bias}.bias', (features,))
  return found


def flat_map(
  source: Source, name: str, features: int, channels: int
) -> dict[str, Entry]:
  """A dense layer of a 4x4 map: (C, 4, 4) there, (4, 4, C) here."""

  def turn(kernel):
    kernel = kernel.reshape(features, channels, 4, 4).transpose(2, 3, 1, 0)
    return kernel.reshape(-1, features)

  shape = (features, 16 * channels)
  return {
    'kernel': source.entry(f'{name}.weight', shape, turn),
    'bias': source.entry(f'{name}.bias', (features,)),
  }


def filtered(source: Source, key: str) -> None:
  """Takes a stored filter, which must be the one that is used here.

  Raises:
    WeightsError: another filter.
  """
  if key not in source:
    return
  kernel = source.entry(key, BINOMIAL.shape).read()
  total = kernel.sum()
  if total <= 0 or not np.allclose(kernel / total, BINOMIAL, atol=1e-4):
    raise WeightsError(
      f'the weights {source.path} filter by {source.prefix}{key} '
      f'{kernel.tolist()}, expected a multiple of the outer product of (1, 3, '
      '3, 1) with itself; such a network cannot be converted'
    )


def refuse_left(source: Source, what: str) -> None:
  """Refuses a part of a file of which something was not taken.

  Raises:
    WeightsError: names the first key.
  """
  if left := source.left():
    raise WeightsError(
      f'the weights {source.path} hold {left[0]} of shape '
      f'{source.tensors[left[0]].shape}'
      f'{f" and {len(left) - 1} more" if left[1:] else ""}, which {what} has '
      'not; is the file of another kind?'
    )


def _count_blocks(source):
  blocks = 0
  while f'convs.{blocks + 1}.conv1.0.weight' in source:
    blocks += 1
  if not blocks:
    raise source.missing('convs.1.conv1.0.weight')
  source.side(blocks)  # refuses too many
  return blocks


def _spectral_v(v):
  """(I, kh, kw) to (kh, kw, I), flattened."""
  return v.reshape(-1, 4, 4).transpose(1, 2, 0).reshape(-1)


def _modulated(source, name, features, fan_in, size, w_dim):
  shape = (1, features, fan_in, size, size)
  return {
    'kernel': source.entry(f'{name}.weight', shape, lambda x: hwio(x[0])),
    'affine': dense(source, f'{name}.modulation', fan_in, w_dim),
  }


def _styled(source, name, features, fan_in, w_dim):
  strength = source.entry(f'{name}.noise.weight', (1,), lambda x: x[0])
  return {
    'conv': _modulated(source, f'{name}.conv', features, fan_in, 3, w_dim),
    'noise_strength': strength,
    'bias': source.entry(f'{name}.activate.bias', (features,)),
  }


def _output(source, name, features, width, w_dim):
  return {
    'conv': _modulated(source, f'{name}.conv', features, width, 1, w_dim),
    'bias': source.entry(f'{name}.bias', (1, features, 1, 1), np.ravel),
  }


def _noise(source, levels):
  sides = [4] + [4 * 2**i for i in range(1, levels) for _ in range(2)]
  if not any(f'noises.noise_{i}' in source for i in range(len(sides))):
    return {}
  return {
    str(i): source.entry(
      f'noises.noise_{i}', (1, 1, side, side), lambda x: x.transpose(0, 2, 3, 1)
    )
    for i, side in enumerate(sides)
  }
