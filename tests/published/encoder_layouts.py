"""Keys and shapes of published encoders' state dicts, of any widths.

`draw` fills them at random.
"""

import numpy as np


def norm(name, width):
  kinds = ('weight', 'bias', 'running_mean', 'running_var')
  shapes = {f'{name}.{kind}': (width,) for kind in kinds}
  return shapes | {f'{name}.num_batches_tracked': ()}


def conv(name, out, fan_in, k, bias=True):
  shapes = {f'{name}.weight': (out, fan_in, k, k)}
  return shapes | ({f'{name}.bias': (out,)} if bias else {})


def head(name, depth, fan_in, width, w_dim):
  shapes = {f'{name}.linear.weight': (w_dim, width)}
  shapes[f'{name}.linear.bias'] = (w_dim,)
  for i in range(depth):
    shapes |= conv(f'{name}.convs.{2 * i}', width, width if i else fan_in, 3)
  return shapes


def level(i):
  """Heads 0-2 read the coarse map, 3-6 the medium one, others the fine one."""
  return 0 if i < 3 else 1 if i < 7 else 2


def psp(
  units=(3, 4, 14, 3), widths=(64, 128, 256, 512), stem=64, se=(4, 8, 16, 32),
  channels=3, styles=18, w_dim=512, head_width=None, depths=(4, 5, 6),
):  # fmt: skip
  """The encoder of pSp and of e4e; `se` of zeros: without."""
  shapes = conv('input_layer.0', stem, channels, 3, False)
  shapes |= norm('input_layer.1', stem) | {'input_layer.2.weight': (stem,)}
  fan_in, n = stem, 0
  for count, width, squeezed in zip(units, widths, se, strict=True):
    for _ in range(count):
      name = f'body.{n}.res_layer'
      shapes |= norm(f'{name}.0', fan_in)
      shapes |= conv(f'{name}.1', width, fan_in, 3, False)
      shapes[f'{name}.2.weight'] = (width,)
      shapes |= conv(f'{name}.3', width, width, 3, False)
      shapes |= norm(f'{name}.4', width)
      if squeezed:
        shapes |= conv(f'{name}.5.fc1', squeezed, width, 1, False)
        shapes |= conv(f'{name}.5.fc2', width, squeezed, 1, False)
      if width != fan_in:
        shapes |= conv(f'body.{n}.shortcut_layer.0', width, fan_in, 1, False)
        shapes |= norm(f'body.{n}.shortcut_layer.1', width)
      fan_in, n = width, n + 1
  for i in range(styles):
    shapes |= head(
      f'styles.{i}', depths[level(i)], fan_in, head_width or w_dim, w_dim
    )
  shapes |= conv('latlayer1', fan_in, widths[2], 1)
  return shapes | conv('latlayer2', fan_in, widths[1], 1)


def fpn(
  width=64, blocks=(3, 4, 6, 3), features=512, channels=3, styles=14,
  w_dim=512, head_width=None, depths=(4, 5, 6),
):  # fmt: skip
  """SemanticGAN's encoder on a feature pyramid."""
  shapes = conv('FPN_module.conv1', width, channels, 7, False)
  shapes |= norm('FPN_module.bn1', width)
  fan_in, outs = width, []
  for i, count in enumerate(blocks):
    inner, out = width * 2**i, 4 * width * 2**i
    for j in range(count):
      name = f'FPN_module.layer{i + 1}.{j}'
      sizes = (inner, fan_in, 1), (inner, inner, 3), (out, inner, 1)
      for k, size in enumerate(sizes, start=1):
        shapes |= conv(f'{name}.conv{k}', *size, False)
        shapes |= norm(f'{name}.bn{k}', size[0])
      if j == 0:
        shapes |= conv(f'{name}.shortcut.0', out, fan_in, 1, False)
        shapes |= norm(f'{name}.shortcut.1', out)
      fan_in = out
    outs.append(out)
  names = 'toplayer', 'latlayer1', 'latlayer2', 'latlayer3'
  for name, out in zip(names, outs[::-1], strict=True):
    shapes |= conv(f'FPN_module.{name}', features, out, 1)
  for i in (1, 2, 3):
    shapes |= conv(f'FPN_module.smooth{i}', features, features, 3)
  for i in range(styles):
    group = ('course_styles', 'medium_styles', 'fine_styles')[level(i)]
    shapes |= head(
      f'{group}.{i - (0, 3, 7)[level(i)]}', depths[level(i)], features,
      head_width or features, w_dim,
    )  # fmt: skip
  return shapes


def residual(widths, w_dim=512, channels=3, last='final_linear'):
  """SemanticGAN's residual encoder; widths at 4, 8, ..., resolution."""
  shapes = conv('convs.0.0', widths[-1], channels, 1, False)
  shapes['convs.0.1.bias'] = (widths[-1],)
  for i, out in enumerate(widths[-2::-1], start=1):
    fan_in = widths[-i]
    shapes |= conv(f'convs.{i}.conv1.0', fan_in, fan_in, 3, False)
    shapes[f'convs.{i}.conv1.1.bias'] = (fan_in,)
    shapes[f'convs.{i}.conv2.0.kernel'] = (4, 4)
    shapes |= conv(f'convs.{i}.conv2.1', out, fan_in, 3, False)
    shapes[f'convs.{i}.conv2.2.bias'] = (out,)
    shapes[f'convs.{i}.skip.0.kernel'] = (4, 4)
    shapes |= conv(f'convs.{i}.skip.1', out, fan_in, 1, False)
  width = widths[0]
  shapes |= conv('final_conv.0', width, width + 1, 3, False)
  shapes['final_conv.1.bias'] = (width,)
  outputs = 2 * len(widths) * w_dim
  shapes[f'{last}.weight'] = (outputs, 16 * width)
  shapes[f'{last}.bias'] = (outputs,)
  return shapes


BINOMIAL = np.outer((1, 3, 3, 1), (1, 3, 3, 1)).astype(np.float32) / 64


def draw(shapes, seed=0):
  """Random arrays, by key, under which no map grows large."""
  rng = np.random.default_rng(seed)

  def fill(key, shape):
    x = rng.normal(size=shape)
    if key.endswith('kernel'):
      return BINOMIAL
    if key.endswith('num_batches_tracked'):
      return np.array(7)
    if key.endswith('running_var'):
      x = 1 + 0.3 * np.abs(x)
    elif key.endswith('2.weight') and len(shape) == 1:  # slopes
      x = 0.25 + 0.1 * x
    elif key.endswith('weight') and len(shape) == 1:
      x = 1 + 0.2 * x
    elif len(shape) == 4 and key.startswith(('convs', 'final')):
      pass  # scaled when it is used
    elif len(shape) == 4:
      x = x * np.sqrt(1 / np.prod(shape[1:]))
    elif not key.endswith('linear.weight'):
      x = 0.2 * x
    return x.astype(np.float32)

  return {key: fill(key, shape) for key, shape in shapes.items()}
