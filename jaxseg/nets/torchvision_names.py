"""Which array of torchvision's state dicts is which of the encoders here.

Structure: Simonyan and Zisserman 2015 (VGG16), He et al. 2016 (ResNet), Sandler
et al. 2018 (MobileNetV2), in torchvision's form.
"""

from collections.abc import Iterator

from jaxseg.nets import lpips_shapes
from jaxseg.nets.resnet import DEPTHS

# Residual blocks of each stage.
RESNETS = {f'resnet{depth}': blocks for depth, blocks in DEPTHS.items()}
BACKBONES = (*RESNETS, 'vgg16', 'vgg16_bn', 'mobilenet_v2')


def names(backbone: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
  """Yields every array of an encoder.

  Args:
    backbone: one of BACKBONES.

  Yields:
    (key of torchvision's state dict, path of Flax with its collection, order of
    the file's axes that Flax expects).
  """
  for key, name, is_conv, has_bias in _layers(backbone):
    if is_conv:
      yield f'{key}.weight', f'params/{name}/kernel', (2, 3, 1, 0)
      if has_bias:
        yield f'{key}.bias', f'params/{name}/bias', (0,)
      continue
    yield f'{key}.weight', f'params/{name}/scale', (0,)
    yield f'{key}.bias', f'params/{name}/bias', (0,)
    yield f'{key}.running_mean', f'batch_stats/{name}/mean', (0,)
    yield f'{key}.running_var', f'batch_stats/{name}/var', (0,)


def _layers(backbone):
  """(key, name, whether it is a convolution, whether that has a bias)."""
  if backbone in RESNETS:
    return _resnet(backbone)
  if backbone == 'mobilenet_v2':
    return _mobilenet()
  return _vgg(backbone == 'vgg16_bn')


def _resnet(backbone):
  yield 'conv1', 'stem', True, False
  yield 'bn1', 'norm_stem', False, False
  convs = 2 if backbone in ('resnet18', 'resnet34') else 3
  for stage, depth in enumerate(RESNETS[backbone], 1):
    for j in range(depth):
      key, name = f'layer{stage}.{j}', f'layer{stage}_block{j}'
      for i in range(1, convs + 1):
        yield f'{key}.conv{i}', f'{name}/conv{i}', True, False
        yield f'{key}.bn{i}', f'{name}/norm{i}', False, False
      # The first stage of basic blocks changes neither size nor width.
      if j == 0 and (stage > 1 or convs == 3):
        yield f'{key}.downsample.0', f'{name}/shortcut', True, False
        yield f'{key}.downsample.1', f'{name}/norm_shortcut', False, False


def _vgg(has_norm):
  place, i = 0, 0
  for group in lpips_shapes.GROUPS:
    for _ in group:
      yield f'features.{place}', f'conv{i}', True, True
      if has_norm:
        yield f'features.{place + 1}', f'norm{i}', False, False
      place, i = place + (3 if has_norm else 2), i + 1
    place += 1


def _mobilenet():
  yield 'features.0.0', 'stem', True, False
  yield 'features.0.1', 'norm_stem', False, False
  for i in range(1, 18):
    # The first block has nothing to expand.
    parts = ('expand', 'depthwise', 'project')[i == 1 :]
    for j, part in enumerate(parts):
      key, name = f'features.{i}.conv', f'block{i}'
      conv, norm = f'{j}.0', f'{j}.1'
      if part == 'project':  # not in a group with its normalisation
        conv, norm = j, j + 1
      yield f'{key}.{conv}', f'{name}/{part}', True, False
      yield f'{key}.{norm}', f'{name}/norm_{part}', False, False
  yield 'features.18.0', 'head', True, False
  yield 'features.18.1', 'norm_head', False, False
