"""Which segmenter: its settings, and the module they build.

Every segmenter is two submodules, `encoder` and `decoder`, with

  encode(x, train) -> Features
  decode(features, size, train) -> float32 logits [N, *size, K]
  __call__(x, train=False) -> decode(encode(x)) at the size of x

`train` switches batch normalisation and dropout (random stream 'dropout').
"""

from typing import NamedTuple

import flax.linen as nn

from jaxseg.errors import UserError
from jaxseg.nets import deeplab, fcn, resnet_generator, segnet, unet
from jaxseg.nets.layers import NORMS

ARCHITECTURES = (
  'unet', 'deeplab_v2', 'deeplab_v3plus', 'fcn32s', 'fcn16s', 'fcn8s', 'segnet',
  'resnet_generator',
)  # fmt: skip


DTYPES = ('float32', 'bfloat16')
# The settings that not every network has, by the first part of its name.
READ = {
  'unet': ('depth', 'up', 'dropout'),
  'deeplab_v2': (
    'backbone',
    'output_stride',
    'align_corners',
    'published_aspp_bug',
    'weights',
  ),
  'deeplab_v3plus': (
    'backbone',
    'output_stride',
    'align_corners',
    'dropout',
    'weights',
  ),
  'fcn': ('faithful_padding', 'dropout', 'weights'),
  'segnet': ('weights',),
  'resnet_generator': ('blocks', 'dropout'),
}
READ_BY_ALL = ('arch', 'width', 'norm', 'dtype', 'remat')


class Net(NamedTuple):
  """A segmenter's settings; each network reads those that it has."""

  arch: str = 'unet'  # one of ARCHITECTURES
  # Channels of U-Net at full resolution, of ResNet's or VGG's first layer; all
  # others follow. 64 is the published size of every network here.
  width: int = 64
  blocks: int = 9  # ResNet generator of CycleGAN: residual blocks
  depth: int = 4  # U-Net: levels below full resolution
  up: str = 'bilinear'  # U-Net: or 'transposed' (convolution)
  # DeepLab: 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'mobilenet_v2'
  backbone: str = 'resnet50'
  output_stride: int = 16  # DeepLab: 8 or 16
  # As published code does otherwise. DeepLab: maps are enlarged with the corner
  # pixels' centres in place. DeepLab v2: dilations 6 and 12 alone, as AdvSSL
  # and GCT were published. FCN: 100 zeros around the image.
  align_corners: bool = False
  published_aspp_bug: bool = False
  faithful_padding: bool = False
  # 'group', 'batch', 'frozen'; FCN also 'none', the ResNet generator
  # 'instance', as published.
  norm: str = 'batch'
  # Whether batch normalisation sees labelled and unlabelled images as one
  # batch, as most published code does; False: each kind by itself.
  joint_norm: bool = False
  dropout: float = 0.0  # where the network has it: .5 in FCN and DeepLab v3+
  dtype: str = 'float32'  # of the convolutions; 'bfloat16' on accelerators
  # Compute the blocks anew for the gradient: less memory, about a third more
  # time.
  remat: bool = False
  # ImageNet weights of the encoder: a local file, see jaxseg/nets/imagenet.py;
  # '': random.
  weights: str = ''


def build(net: Net, num_classes: int, where: str = 'net') -> nn.Module:
  """Returns the segmenter.

  Args:
    net: its settings.
    num_classes: K.
    where: what holds the settings, for messages.

  Raises:
    UserError: a setting outside its choices.
  """
  _refuse(net, where)
  common = dict(
    width=net.width, norm=net.norm, dtype=net.dtype, remat=net.remat
  )
  if net.arch == 'unet':
    return unet.UNet(
      num_classes, depth=net.depth, up=net.up, dropout=net.dropout, **common
    )
  if net.arch == 'resnet_generator':
    return resnet_generator.ResnetGenerator(
      num_classes, blocks=net.blocks, dropout=net.dropout, **common
    )
  if net.arch == 'segnet':
    return segnet.SegNet(num_classes, **common)
  if net.arch.startswith('fcn'):
    stride = int(net.arch.removeprefix('fcn').removesuffix('s'))
    return fcn.FCN(
      num_classes, stride=stride, dropout=net.dropout,
      faithful_padding=net.faithful_padding, **common,
    )  # fmt: skip
  common |= dict(
    backbone=net.backbone, output_stride=net.output_stride,
    align_corners=net.align_corners,
  )  # fmt: skip
  if net.arch == 'deeplab_v2':
    return deeplab.DeepLabV2(
      num_classes, published_aspp_bug=net.published_aspp_bug, **common
    )
  return deeplab.DeepLabV3Plus(num_classes, dropout=net.dropout, **common)


def _refuse(net, where):
  norms = NORMS
  if net.arch.startswith('fcn'):
    norms += ('none',)
  elif net.arch == 'resnet_generator':
    norms += ('instance',)
  for field, allowed in (
    ('arch', ARCHITECTURES), ('norm', norms), ('up', unet.UPSAMPLING),
    ('backbone', deeplab.BACKBONES), ('output_stride', (8, 16)),
    ('dtype', DTYPES),
  ):  # fmt: skip
    value = getattr(net, field)
    if value not in allowed:
      raise UserError(
        f'{where}.{field} is {value!r}, must be one of '
        f'{", ".join(map(str, allowed))}.'
      )
  if net.width < 2:
    raise UserError(f'{where}.width is {net.width}, must be at least 2.')
  if net.blocks < 1:
    raise UserError(f'{where}.blocks is {net.blocks}, must be at least 1.')
  if not 0 <= net.dropout < 1:
    raise UserError(
      f'{where}.dropout is {net.dropout}, must be from 0 to below 1.'
    )


def unread(net: Net) -> tuple[str, ...]:
  """Settings that are not the default, but that this network does not have.

  Args:
    net: of a known `arch`.
  """
  name = 'fcn' if net.arch.startswith('fcn') else net.arch
  read = READ_BY_ALL + READ[name]
  if net.norm == 'batch':
    read += ('joint_norm',)
  return tuple(
    field
    for field, default in Net._field_defaults.items()
    if field not in read and getattr(net, field) != default
  )


def imagenet_backbone(net: Net) -> str | None:
  """Name of the encoder for which ImageNet weights exist, or None."""
  if net.arch in ('deeplab_v2', 'deeplab_v3plus'):
    return net.backbone
  if net.arch == 'segnet' or net.arch.startswith('fcn'):
    return 'vgg16' if net.norm == 'none' else 'vgg16_bn'
  return None
