"""Keys and shapes of published generators and discriminators, of any widths.

`draw` fills them at random. Widths are those at 4, 8, ..., the full size.
"""

import numpy as np

BINOMIAL = np.outer((1, 3, 3, 1), (1, 3, 3, 1)).astype(np.float32) / 64


def linear(name, out, fan_in):
  return {f'{name}.weight': (out, fan_in), f'{name}.bias': (out,)}


def generator(widths, w_dim, channels=3, classes=0, depth=8, noise=True):
  """As pSp, e4e and SemanticGAN store it."""
  shapes = {'input.input': (1, widths[0], 4, 4)}
  for i in range(1, depth + 1):
    shapes |= linear(f'style.{i}', w_dim, w_dim)
  shapes |= _styled('conv1', widths[0], widths[0], w_dim)
  for i, width in enumerate(widths[1:]):
    shapes |= _styled(f'convs.{2 * i}', width, widths[i], w_dim)
    shapes[f'convs.{2 * i}.conv.blur.kernel'] = (4, 4)
    shapes |= _styled(f'convs.{2 * i + 1}', width, width, w_dim)
  for kind, features in (('to_rgb', channels), ('to_seg', classes)):
    for i, width in enumerate(widths if features else ()):
      name = f'{kind}s.{i - 1}' if i else f'{kind}1'
      shapes |= _modulated(f'{name}.conv', features, width, 1, w_dim)
      shapes[f'{name}.bias'] = (1, features, 1, 1)
      if i:
        shapes[f'{name}.upsample.kernel'] = (4, 4)
  for i in range(2 * len(widths) - 1 if noise else 0):
    side = 4 * 2 ** ((i + 1) // 2)
    shapes[f'noises.noise_{i}'] = (1, 1, side, side)
  return shapes


def discriminator(widths, channels=3):
  """D_r, as rosinality's implementation stores it."""
  shapes = _layer('convs.0', 0, widths[-1], channels, 1)
  for i, out in enumerate(widths[-2::-1], start=1):
    fan_in, name = widths[-i], f'convs.{i}'
    shapes |= _layer(f'{name}.conv1', 0, fan_in, fan_in, 3)
    shapes |= _layer(f'{name}.conv2', 1, out, fan_in, 3)
    shapes[f'{name}.skip.1.weight'] = (out, fan_in, 1, 1)
    shapes |= {f'{name}.{p}.0.kernel': (4, 4) for p in ('conv2', 'skip')}
  width = widths[0]
  shapes |= _layer('final_conv', 0, width, width + 1, 3)
  shapes |= linear('final_linear.0', width, 16 * width)
  return shapes | linear('final_linear.1', 1, width)


def multiscale(width, inputs, scales=3):
  """SemanticGAN's D_m; inputs: channels and classes."""
  shapes = {}
  for scale in range(scales):
    name = f'scale{scale}_layer'
    shapes[f'{name}0.0.weight'] = (width, inputs, 4, 4)
    shapes[f'{name}0.0.bias'] = (width,)
    for i in (1, 2, 3):
      out, fan_in, key = width * 2**i, width * 2 ** (i - 1), f'{name}{i}.0.0'
      shapes[f'{key}.weight_orig'] = (out, fan_in, 4, 4)
      shapes[f'{key}.weight_u'] = (out,)
      shapes[f'{key}.weight_v'] = (16 * fan_in,)
    shapes[f'{name}4.0.weight'] = (1, 8 * width, 4, 4)
    shapes[f'{name}4.0.bias'] = (1,)
  return shapes


def ada_generator(widths, w_dim, channels=3, depth=8, noise=True):
  """StyleGAN2-ADA's, as named in its pickles."""
  shapes = {'synthesis.b4.const': (widths[0], 4, 4), 'mapping.w_avg': (w_dim,)}
  for i in range(depth):
    shapes |= linear(f'mapping.fc{i}', w_dim, w_dim)
  for i, width in enumerate(widths):
    side = 4 * 2**i
    block = f'synthesis.b{side}'
    shapes[f'{block}.resample_filter'] = (4, 4)
    for part in ('conv0', 'conv1')[not i :]:
      name, fan_in = f'{block}.{part}', widths[i - (part == 'conv0')]
      shapes |= _ada_modulated(name, width, fan_in, 3, w_dim)
      shapes[f'{name}.resample_filter'] = (4, 4)
      if noise:
        shapes[f'{name}.noise_const'] = (side, side)
        shapes[f'{name}.noise_strength'] = ()
    shapes |= _ada_modulated(f'{block}.torgb', channels, width, 1, w_dim)
  return shapes


def ada_discriminator(widths, channels=3):
  shapes = {}
  for i in range(len(widths) - 1, 0, -1):
    block, fan_in = f'b{4 * 2**i}', widths[i]
    sizes = (
      ('fromrgb', fan_in, channels, 1), ('conv0', fan_in, fan_in, 3),
      ('conv1', widths[i - 1], fan_in, 3), ('skip', widths[i - 1], fan_in, 1),
    )  # fmt: skip
    for part, out, inputs, k in sizes[i + 1 < len(widths) :]:
      shapes[f'{block}.{part}.weight'] = (out, inputs, k, k)
      shapes[f'{block}.{part}.resample_filter'] = (4, 4)
      if part != 'skip':
        shapes[f'{block}.{part}.bias'] = (out,)
    shapes[f'{block}.resample_filter'] = (4, 4)
  width = widths[0]
  shapes |= {'b4.conv.weight': (width, width + 1, 3, 3)}
  shapes |= {'b4.conv.bias': (width,), 'b4.conv.resample_filter': (4, 4)}
  shapes |= linear('b4.fc', width, 16 * width)
  return shapes | linear('b4.out', 1, width)


def draw(shapes, seed=0):
  """Random arrays, by key, of about the size of trained ones."""
  rng = np.random.default_rng(seed)

  def fill(key, shape):
    if key.endswith('resample_filter'):
      return BINOMIAL
    if key.endswith('kernel'):
      return BINOMIAL * 4  # any multiple
    x = rng.normal(size=shape)
    if key.endswith('bias'):
      x = 0.2 * x + ('modulation' in key or 'affine' in key)
    if 'style.' in key or 'mapping.fc' in key:
      x = x * 100
    return np.asarray(x, np.float32)

  return {key: fill(key, shape) for key, shape in shapes.items()}


def prefixed(prefix, arrays):
  return {f'{prefix}{key}': x for key, x in arrays.items()}


def _styled(name, width, fan_in, w_dim):
  shapes = _modulated(f'{name}.conv', width, fan_in, 3, w_dim)
  shapes |= {f'{name}.noise.weight': (1,), f'{name}.activate.bias': (width,)}
  return shapes


def _modulated(name, out, fan_in, size, w_dim):
  shapes = {f'{name}.weight': (1, out, fan_in, size, size)}
  return shapes | linear(f'{name}.modulation', fan_in, w_dim)


def _ada_modulated(name, out, fan_in, size, w_dim):
  shapes = {f'{name}.weight': (out, fan_in, size, size)}
  shapes[f'{name}.bias'] = (out,)
  return shapes | linear(f'{name}.affine', fan_in, w_dim)


def _layer(name, place, out, fan_in, size):
  shapes = {f'{name}.{place}.weight': (out, fan_in, size, size)}
  return shapes | {f'{name}.{place + 1}.bias': (out,)}
