"""Names and shapes of published networks, for files of random weights.

Of pSp (Richardson et al., CVPR 2021) with its StyleGAN2 decoder in the layout
of the rosinality implementation, and of StyleGAN2-ADA (Karras et al., NeurIPS
2020) in that of its authors' PyTorch pickles.
"""

import numpy as np

Layout = dict[str, tuple[int, ...]]

UNITS, SQUEEZED = (3, 4, 14, 3), 16
BINOMIAL = np.outer((1, 3, 3, 1), (1, 3, 3, 1)).astype(np.float32) / 64


def channels(side: int, widest: int) -> int:
  """Of StyleGAN2's maps of that side, in its large configuration."""
  return min(widest, 64 * widest // side)


def psp(size: int, widest: int = 512) -> Layout:
  """pSp's encoder and decoder.

  Args:
    size: side of the images, a power of two.
    widest: channels of the widest layers, and width of the codes.
  """
  styles = 2 * (size.bit_length() - 2)
  found = {f'encoder.{k}': s for k, s in _encoder(styles, widest).items()}
  return found | {f'decoder.{k}': s for k, s in _decoder(size, widest).items()}


def _encoder(styles, widest):
  widths = [widest // 8, widest // 4, widest // 2, widest]
  fan_in, n = widths[0], 0
  found = {'input_layer.0.weight': (fan_in, 3, 3, 3)}
  found |= _norm('input_layer.1', fan_in) | {'input_layer.2.weight': (fan_in,)}
  for count, width in zip(UNITS, widths, strict=True):
    for _ in range(count):
      name, squeezed = f'body.{n}.res_layer', width // SQUEEZED
      found |= _norm(f'{name}.0', fan_in) | _norm(f'{name}.4', width)
      found[f'{name}.1.weight'] = (width, fan_in, 3, 3)
      found[f'{name}.2.weight'] = (width,)
      found[f'{name}.3.weight'] = (width, width, 3, 3)
      found[f'{name}.5.fc1.weight'] = (squeezed, width, 1, 1)
      found[f'{name}.5.fc2.weight'] = (width, squeezed, 1, 1)
      if width != fan_in:
        found[f'body.{n}.shortcut_layer.0.weight'] = (width, fan_in, 1, 1)
        found |= _norm(f'body.{n}.shortcut_layer.1', width)
      fan_in, n = width, n + 1
  for i in range(styles):
    found |= _pair(f'styles.{i}.linear', (widest, widest))
    for j in range(4 if i < 3 else 5 if i < 7 else 6):
      found |= _pair(f'styles.{i}.convs.{2 * j}', (widest, widest, 3, 3))
  found |= _pair('latlayer1', (widest, widths[2], 1, 1))
  return found | _pair('latlayer2', (widest, widths[1], 1, 1))


def _decoder(size, widest):
  found = {'input.input': (1, widest, 4, 4)}
  for i in range(8):
    found |= _pair(f'style.{i + 1}', (widest, widest))
  fan_in, side, n = widest, 4, 0
  found |= _modulated('conv1', widest, widest, 3, widest)
  found |= _modulated('to_rgb1', 3, widest, 1, widest)
  found['noises.noise_0'] = (1, 1, 4, 4)
  while side < size:
    side *= 2
    width = channels(side, widest)
    for j in (2 * n, 2 * n + 1):
      found |= _modulated(f'convs.{j}', width, fan_in, 3, widest)
      found[f'noises.noise_{j + 1}'] = (1, 1, side, side)
      fan_in = width
    found[f'convs.{2 * n}.conv.blur.kernel'] = (4, 4)
    found |= _modulated(f'to_rgbs.{n}', 3, width, 1, widest)
    found[f'to_rgbs.{n}.upsample.kernel'] = (4, 4)
    n += 1
  return found


def _modulated(name, features, fan_in, k, w_dim):
  found = {f'{name}.conv.weight': (1, features, fan_in, k, k)}
  found |= _pair(f'{name}.conv.modulation', (fan_in, w_dim))
  if k == 1:
    return found | {f'{name}.bias': (1, features, 1, 1)}
  return found | {
    f'{name}.noise.weight': (1,), f'{name}.activate.bias': (features,),
  }  # fmt: skip


def ada_generator(size: int, widest: int = 512) -> Layout:
  """StyleGAN2-ADA's generator; see `psp`."""
  found = {'mapping.w_avg': (widest,), 'synthesis.b4.const': (widest, 4, 4)}
  for i in range(8):
    found |= _pair(f'mapping.fc{i}', (widest, widest))
  fan_in, side = widest, 4
  while side <= size:
    block, width = f'synthesis.b{side}', channels(side, widest)
    found[f'{block}.resample_filter'] = (4, 4)
    for part in ('conv0', 'conv1')[side == 4 :]:
      name = f'{block}.{part}'
      found |= _pair(name, (width, fan_in, 3, 3))
      found |= _pair(f'{name}.affine', (fan_in, widest))
      found[f'{name}.noise_const'] = (side, side)
      found[f'{name}.noise_strength'] = ()
      found[f'{name}.resample_filter'] = (4, 4)
      fan_in = width
    found |= _pair(f'{block}.torgb', (3, width, 1, 1))
    found |= _pair(f'{block}.torgb.affine', (width, widest))
    side *= 2
  return found


def ada_discriminator(size: int, widest: int = 512) -> Layout:
  """StyleGAN2-ADA's discriminator; see `psp`."""
  width = channels(size, widest)
  found = _pair(f'b{size}.fromrgb', (width, 3, 1, 1))
  side = size
  while side > 4:
    out = channels(side // 2, widest)
    found |= _pair(f'b{side}.conv0', (width, width, 3, 3))
    found |= _pair(f'b{side}.conv1', (out, width, 3, 3))
    found[f'b{side}.skip.weight'] = (out, width, 1, 1)
    found[f'b{side}.resample_filter'] = (4, 4)
    side, width = side // 2, out
  found |= _pair('b4.conv', (width, width + 1, 3, 3))
  found |= _pair('b4.fc', (width, 16 * width))
  return found | _pair('b4.out', (1, width))


def _pair(name, shape):
  return {f'{name}.weight': shape, f'{name}.bias': (shape[0],)}


def _norm(name, width):
  kinds = ('weight', 'bias', 'running_mean', 'running_var')
  return {f'{name}.{kind}': (width,) for kind in kinds}


def draw(
  rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """Random values, float32, under which no map of the network grows large."""
  if name.endswith(('kernel', 'resample_filter')):
    return BINOMIAL
  if name.endswith('running_var') or (
    name.endswith('.weight') and len(shape) == 1 and 'noise' not in name
  ):
    return np.ones(shape, np.float32)
  if name.endswith(('modulation.bias', 'affine.bias')):
    return np.ones(shape, np.float32)
  if name.endswith(('.bias', 'noise_strength', 'noise.weight', '_mean')):
    return np.zeros(shape, np.float32)
  values = rng.standard_normal(shape, np.float32)
  # Those of plain convolutions are not scaled when they are used.
  if name.startswith('encoder.') and len(shape) == 4:
    values *= np.float32(np.prod(shape[1:]) ** -0.5)
  if '.style.' in name or 'mapping.fc' in name:
    values *= 100  # their learning rate is 0.01 of the others'
  return values
