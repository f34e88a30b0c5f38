"""torchvision's classifiers under the names of the encoders here."""

import re

from flax import traverse_util

from jaxseg.nets import torchvision_names
from jaxseg.nets.torchvision_names import RESNETS
from jaxseg.published import source as sources
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Entry, Source, WeightsError

# The last layer of each kind of network, which tells the classes apart.
CLASSIFIERS = {
  'resnet': 'fc',
  'vgg': 'classifier.6',
  'mobilenet': 'classifier.1',
}


def convert(source: Source) -> Converted:
  """Converts a state dict of torchvision.

  Args:
    source: of a ResNet, VGG16 or MobileNetV2, of any width, perhaps within
      'state_dict' or 'model'.

  Returns:
    kind 'torchvision' with the network 'backbone', of arch 'torchvision'; its
    settings are 'backbone', one of `torchvision_names.BACKBONES`, 'width' (of
    the first convolution) and 'num_classes' where the classifier is there. Its
    variables are those of `entries`.

  Raises:
    WeightsError: another network, an array is missing or of another shape.
  """
  source = state_dict(source)
  backbone = infer(source)
  found = entries(source, backbone)
  first = next(iter(torchvision_names.layers(backbone)))
  width = found[f'params/{first.name}/kernel'].shape[-1]
  settings = {'backbone': backbone, 'width': width}
  if 'params/fc/bias' in found:
    settings['num_classes'] = found['params/fc/bias'].shape[0]
  tree = traverse_util.unflatten_dict(found, sep='/')
  network = Network('torchvision', settings, tree)
  return Converted('torchvision', {'backbone': network}, {})


def state_dict(source: Source) -> Source:
  """The part of a file that holds the state dict: all, or one entry of it."""
  for prefix in ('state_dict/', 'model/'):
    part = source.under(prefix)
    if next(part.keys(), None) is not None:
      return part
  return source


def infer(source: Source) -> str:
  """Which of `torchvision_names.BACKBONES` a state dict is of.

  Raises:
    WeightsError: none of them.
  """
  if 'layer1.0.conv1.weight' in source:
    pattern = r'layer{}\.(\d+)\.conv1\.weight'
    blocks = tuple(source.count(pattern.format(i)) for i in range(1, 5))
    bottleneck = 'layer1.0.conv3.weight' in source
    for name, depths in RESNETS.items():
      same = torchvision_names.is_bottleneck(name) == bottleneck
      if blocks == depths and same:
        return name
    found = f'a ResNet of {blocks} blocks'
  elif 'features.0.0.weight' in source:
    return 'mobilenet_v2'
  else:
    places = [
      re.fullmatch(r'features\.(\d+)\.weight', k) for k in source.keys()
    ]
    last = max((int(match[1]) for match in places if match), default=-1)
    if last == 28:
      return 'vgg16'
    if last == 41:
      return 'vgg16_bn'
    some = ', '.join(list(source.keys())[:3]) or 'nothing'
    found = f'such as {some}'
  raise WeightsError(
    f'the weights {source.path} are of another network, found {found}, '
    f"expected torchvision's {', '.join(torchvision_names.BACKBONES)}; give "
    'the file of one of these'
  )


def entries(source: Source, backbone: str) -> dict[str, Entry]:
  """Arrays of a backbone.

  Args:
    source: the state dict.
    backbone: one of `torchvision_names.BACKBONES`.

  Returns:
    by path, such as 'params/stem/kernel' [7, 7, 3, 64] and
    'batch_stats/norm_stem/mean' [64]. Where the file has a classifier, its last
    layer is 'params/fc/kernel' [F, K] and bias, and VGG16's others are
    convolutions, 'params/fc6/kernel' [7, 7, 512, 4096] and fc7 [1, 1, ..].

  Raises:
    WeightsError: an array is missing or of another shape.
  """
  found, widths, unit = {}, {'': None}, None
  for layer in torchvision_names.layers(backbone):
    fan_in = 1 if layer.reads is None else widths[layer.reads]
    features = unit and layer.factor * unit or None
    if layer.reads is None:  # one kernel for each channel of the last one
      features = list(widths.values())[-1]
    params = sources.conv(
      source, layer.key, features, fan_in, layer.size, layer.bias
    )
    widths[layer.name] = params['kernel'].shape[-1]
    unit = unit or widths[layer.name]
    found |= _named('params', layer.name, params)
    if layer.norm_key:
      params, stats = sources.batch_norm(
        source, layer.norm_key, widths[layer.name]
      )
      found |= _named('params', layer.norm_name, params)
      found |= _named('batch_stats', layer.norm_name, stats)
  return found | _classifier(source, backbone, list(widths.values())[-1])


def _named(collection, name, arrays):
  return {f'{collection}/{name}/{what}': x for what, x in arrays.items()}


def _classifier(source, backbone, width):
  """Its layers, as far as the file has them in the published form."""
  found = {}
  if backbone.startswith('vgg'):
    for key, name, side in (
      ('classifier.0', 'fc6', 7),
      ('classifier.3', 'fc7', 1),
    ):
      if not _reads(source, key, width * side**2):
        return found
      params = _dense_as_conv(source, key, width, side)
      width = params['bias'].shape[0]
      found |= _named('params', name, params)
  key = next(k for kind, k in CLASSIFIERS.items() if backbone.startswith(kind))
  if _reads(source, key, width):
    found |= _named('params', 'fc', sources.dense(source, key, None, width))
  return found


def _reads(source, key, fan_in):
  """Whether a dense layer of so many inputs is there, as published."""
  key = f'{key}.weight'
  return key in source and source.shape(key)[1:] == (fan_in,)


def _dense_as_conv(source, key, width, side):
  """A dense layer over [C, side, side], flattened, as a convolution."""
  turn = lambda x: x.reshape(len(x), width, side, side).transpose(2, 3, 1, 0)
  kernel = source.entry(f'{key}.weight', (None, width * side**2), turn)
  bias = source.entry(f'{key}.bias', kernel.shape[-1:])
  return {'kernel': kernel, 'bias': bias}
