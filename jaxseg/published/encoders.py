"""SemanticGAN's two encoders of images into W+, and what pSp's share with them.

Li et al., Semantic Segmentation with Generative Models (CVPR 2021), section
3.2.
"""

from collections.abc import Sequence

from jaxseg.nets.encoder import STRIDES, head_level
from jaxseg.published.networks import Network
from jaxseg.published.source import (
  Source,
  WeightsError,
  batch_norm,
  conv,
  dense,
)
from jaxseg.published.stylegan2 import (
  discriminator_body,
  flat_map,
  refuse_left,
)

# Of SemanticGAN's pyramid: name there, here, stage that is read by a 1x1.
PYRAMID = (
  ('toplayer', 'top', 3), ('latlayer1', 'lateral4', 2),
  ('latlayer2', 'lateral3', 1), ('latlayer3', 'lateral2', 0),
  ('smooth1', 'smooth4', None), ('smooth2', 'smooth3', None),
  ('smooth3', 'smooth2', None),
)  # fmt: skip
# The spelling is theirs.
GROUPS = ('course_styles', 'medium_styles', 'fine_styles')


def semanticgan_encoder(source: Source) -> Network:
  """Converts SemanticGAN's encoder, whichever of the two it is.

  Raises:
    WeightsError: as `fpn`.
  """
  is_residual = 'convs.0.0.weight' in source
  return residual(source) if is_residual else fpn(source)


def fpn(source: Source) -> Network:
  """Converts SemanticGAN's encoder on a feature pyramid: 'FPN_module.', ...

  Args:
    source: the part of a file that holds it.

  Returns:
    arch 'fpn_encoder' with 'params' and 'batch_stats'.

  Raises:
    WeightsError: arrays are missing, have another shape or are too many.
  """
  part = source.under('FPN_module.')
  width = part.shape('conv1.weight', 4)[0]
  features = part.shape('toplayer.weight', 4)[0]
  depths = [part.count(rf'layer{i}\.(\d+)\.conv1\.weight') for i in range(1, 5)]
  params, stats = {}, {}
  trees = params, stats
  names = ('conv1', 'bn1'), ('stem', 'norm_stem')
  conv_norm(part, trees, *names, (width, None, 7))
  fan_in, widths = width, []
  for i, depth in enumerate(depths):
    for j in range(depth):
      block = part.under(f'layer{i + 1}.{j}.')
      ours = f'stage{i}_block{j}'
      params[ours], stats[ours] = _bottleneck(
        block, width * 2**i, fan_in, i > 0 and j == 0
      )
      fan_in = 4 * width * 2**i
    widths.append(fan_in)
  for theirs, ours, level in PYRAMID:
    shape = (widths[level], 1) if level is not None else (features, 3)
    params[ours] = conv(part, theirs, features, *shape)
  places = _fpn_heads(source)
  found, settings = heads(source, places, features)
  refuse_left(source, 'this encoder')
  settings |= {
    'resolution': source.side(len(places) // 2 - 1), 'width': width,
    'depths': depths, 'features': features, 'norm': 'batch',
  }  # fmt: skip
  params, stats = {'pyramid': params, **found}, {'pyramid': stats}
  return Network(
    'fpn_encoder', settings, {'params': params, 'batch_stats': stats}
  )


def residual(source: Source) -> Network:
  """Converts SemanticGAN's encoder on D_r's body: keys of D_r, one last layer.

  Args:
    source: the part of a file that holds it.

  Returns:
    arch 'residual_encoder' with 'params'.

  Raises:
    WeightsError: as `fpn`.
  """
  params, widths = discriminator_body(source)
  # Published as a layer, or as a sequence of one.
  single = 'final_linear.weight' in source
  name = 'final_linear' if single else 'final_linear.0'
  outputs, length = source.shape(f'{name}.weight', 2)[0], 2 * len(widths)
  if outputs % length:
    raise WeightsError(
      f'the weights {source.path} hold {source.prefix}{name}.weight of '
      f'{outputs} outputs, expected a multiple of the {length} styles of a '
      f'generator of size {2 * 2 ** len(widths)}; is the file of another kind?'
    )
  params['dense'] = flat_map(source, name, outputs, widths[0])
  refuse_left(source, 'this encoder')
  settings = {
    'resolution': source.side(len(widths) - 1), 'w_dim': outputs // length,
    'widths': widths,
  }  # fmt: skip
  return Network('residual_encoder', settings, {'params': params})


def conv_norm(
  source: Source,
  trees: tuple[dict, dict],
  theirs: tuple[str, str],
  ours: tuple[str, str],
  shape: tuple[int | None, ...],
) -> None:
  """Puts a convolution without bias and its batch norm into the trees.

  `theirs` and `ours` name the two, `shape` is (features, fan in, size).
  """
  params, stats = trees
  params[ours[0]] = conv(source, theirs[0], *shape, bias=False)
  params[ours[1]], stats[ours[1]] = batch_norm(source, theirs[1], shape[0])


def _bottleneck(source, width, fan_in, is_strided):
  """(params, stats) of a block of the feature pyramid's ResNet."""
  trees = {}, {}
  shapes = (width, fan_in, 1), (width, width, 3), (4 * width, width, 1)
  for i, shape in enumerate(shapes, start=1):
    names = (f'conv{i}', f'bn{i}'), (f'conv{i}', f'norm{i}')
    conv_norm(source, trees, *names, shape)
  if is_strided or fan_in != 4 * width:
    names = ('shortcut.0', 'shortcut.1'), ('conv0', 'norm0')
    conv_norm(source, trees, *names, (4 * width, fan_in, 1))
  return trees


def _fpn_heads(source):
  """Names of SemanticGAN's heads, coarse to fine."""
  counts = [source.count(rf'{g}\.(\d+)\.linear\.weight') for g in GROUPS]
  if counts[:2] != [3, 4] or counts[2] % 2 == 0:
    if not counts[0]:
      raise source.missing(f'{GROUPS[0]}.0.linear.weight')
    raise WeightsError(
      f'the weights {source.path} hold {counts[0]}, {counts[1]} and '
      f'{counts[2]} heads of {", ".join(GROUPS)}, expected 3, 4 and an odd '
      'number; is the file damaged?'
    )
  groups = zip(GROUPS, counts, strict=True)
  return [f'{group}.{i}' for group, count in groups for i in range(count)]


def heads(
  source: Source, places: Sequence[str], channels: int
) -> tuple[dict, dict]:
  """Heads of maps of that many channels: (parameters, settings)."""
  width = source.shape(f'{places[0]}.convs.0.weight', 4)[0]
  w_dim = source.shape(f'{places[0]}.linear.weight', 2)[0]
  depths, params = [], {}
  for i, place in enumerate(places):
    if head_level(i) == len(depths):
      depths.append(_depth(source, place))
    head = {'dense': dense(source, f'{place}.linear', w_dim, width)}
    for j in range(depths[head_level(i)]):
      # Odd places of the published sequence are activations.
      name = f'{place}.convs.{2 * j}'
      head[f'conv{j}'] = conv(source, name, width, width if j else channels, 3)
    params[f'style{i}'] = head
  while len(depths) < len(STRIDES):  # of a generator of few styles
    depths.append(depths[-1] + 1)
  settings = {'head_depths': depths, 'head_width': width, 'w_dim': w_dim}
  return params, settings


def _depth(source, place):
  """Convolutions of a head."""
  depth = 1
  while f'{place}.convs.{2 * depth}.weight' in source:
    depth += 1
  return depth
