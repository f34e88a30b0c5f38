"""Inception-v3's published weights under the names used here.

Read are the state dicts of torchvision and of the port of TensorFlow's graph of
2015 (pytorch-fid's pt_inception), whose names agree.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxseg.nets.inception import FID_CLASSES, SMALLEST, InceptionV3
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Source, hwio

ENDINGS = {
  'kernel': 'weight', 'scale': 'weight', 'bias': 'bias',
  'mean': 'running_mean', 'var': 'running_var',
}  # fmt: skip


def convert(source: Source) -> Converted:
  """Converts Inception-v3.

  Args:
    source: the state dict; with 1008 classes it is that of TensorFlow's graph.
      The auxiliary classifier is left out.

  Returns:
    kind 'inception' with the network 'inception' of arch 'inception_v3'.

  Raises:
    WeightsError: an array is missing or of another shape.
  """
  width = source.shape('Conv2d_1a_3x3.conv.weight', 4)[0]
  num_classes = source.shape('fc.weight', 2)[0]
  settings = {
    'num_classes': num_classes,
    'is_fid': num_classes == FID_CLASSES,
    'width': width,
  }
  image = jnp.zeros((1, SMALLEST, SMALLEST, 3))
  init = lambda: InceptionV3(**settings).init(jax.random.key(0), image)
  shapes = traverse_util.flatten_dict(jax.eval_shape(init), sep='/')
  found = {name: _entry(source, name, x.shape) for name, x in shapes.items()}
  for key in source.keys():
    if key.startswith('AuxLogits.') or key.endswith('num_batches_tracked'):
      source.take(key)
  variables = traverse_util.unflatten_dict(found, sep='/')
  network = Network('inception_v3', settings, variables)
  return Converted('inception', {'inception': network}, {})


def _entry(source, name, shape):
  _, *scopes, what = name.split('/')
  key = f'{".".join(scopes)}.{ENDINGS[what]}'
  if what != 'kernel':
    return source.entry(key, shape)
  if len(shape) == 2:
    return source.entry(key, shape[::-1], np.transpose)
  height, width, fan_in, features = shape
  return source.entry(key, (features, fan_in, height, width), hwio)
