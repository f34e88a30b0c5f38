"""Which array of torchvision's state dicts is which of the encoders here.

Structure: Simonyan and Zisserman 2015 (VGG16), He et al. 2016 (ResNet), Sandler
et al. 2018 (MobileNetV2), in torchvision's form.
"""

from collections.abc import Iterator
from typing import NamedTuple

from jaxseg.nets.resnet import DEPTHS
from jaxseg.nets.vgg import GROUPS

# Residual blocks of each stage.
RESNETS = {f'resnet{depth}': blocks for depth, blocks in DEPTHS.items()}
BACKBONES = (*RESNETS, 'vgg16', 'vgg16_bn', 'mobilenet_v2')


class Layer(NamedTuple):
  """A convolution and the normalisation behind it.

  Attributes:
    key, name: of the convolution, in the file and here.
    norm_key, norm_name: of the normalisation; '': there is none.
    size: side of the kernel.
    reads: name of the convolution that it reads the output of; '': the image;
      None: it sees each channel by itself.
    factor: output channels in units of the first convolution's; 0: any.
    bias: whether the convolution has one.
  """

  key: str
  name: str
  norm_key: str
  norm_name: str
  size: int
  reads: str | None
  factor: int = 0
  bias: bool = False


def layers(backbone: str) -> Iterator[Layer]:
  """Yields the convolutions of one of BACKBONES, each after what it reads."""
  if backbone in RESNETS:
    return _resnet(backbone)
  if backbone == 'mobilenet_v2':
    return _mobilenet()
  return _vgg(backbone == 'vgg16_bn')


def is_bottleneck(backbone: str) -> bool:
  """Whether the blocks of a ResNet have three convolutions."""
  return backbone not in ('resnet18', 'resnet34')


def _resnet(backbone):
  yield Layer('conv1', 'stem', 'bn1', 'norm_stem', 7, '', 1)
  sizes = (1, 3, 1) if is_bottleneck(backbone) else (3, 3)
  reads = 'stem'
  for stage, depth in enumerate(RESNETS[backbone], 1):
    width = 2 ** (stage - 1)
    out = width * (4 if is_bottleneck(backbone) else 1)
    for j in range(depth):
      key, name, before = f'layer{stage}.{j}', f'layer{stage}_block{j}', reads
      for i, size in enumerate(sizes, 1):
        conv, factor = f'{name}/conv{i}', out if i == len(sizes) else width
        norm = f'{key}.bn{i}', f'{name}/norm{i}'
        yield Layer(f'{key}.conv{i}', conv, *norm, size, reads, factor)
        reads = conv
      # The first stage of basic blocks changes neither size nor width.
      if j == 0 and (stage > 1 or is_bottleneck(backbone)):
        norm = f'{key}.downsample.1', f'{name}/norm_shortcut'
        key, name = f'{key}.downsample.0', f'{name}/shortcut'
        yield Layer(key, name, *norm, 1, before, out)


def _vgg(has_norm):
  place, i, reads = 0, 0, ''
  for group in GROUPS:
    for factor in group:
      norm = (f'features.{place + 1}', f'norm{i}') if has_norm else ('', '')
      key, name = f'features.{place}', f'conv{i}'
      yield Layer(key, name, *norm, 3, reads, factor, bias=True)
      place, i, reads = place + (3 if has_norm else 2), i + 1, name
    place += 1


def _mobilenet():
  yield Layer('features.0.0', 'stem', 'features.0.1', 'norm_stem', 3, '')
  reads = 'stem'
  for i in range(1, 18):
    # The first block has nothing to expand.
    parts = ('expand', 'depthwise', 'project')[i == 1 :]
    for j, part in enumerate(parts):
      key, name = f'features.{i}.conv', f'block{i}/{part}'
      conv, norm = f'{j}.0', f'{j}.1'
      if part == 'project':  # not in a group with its normalisation
        conv, norm = j, j + 1
      yield Layer(
        f'{key}.{conv}', name, f'{key}.{norm}', f'block{i}/norm_{part}',
        3 if part == 'depthwise' else 1,
        None if part == 'depthwise' else reads,
      )  # fmt: skip
      reads = name
  yield Layer('features.18.0', 'head', 'features.18.1', 'norm_head', 1, reads)
