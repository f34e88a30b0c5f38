"""Inception-v3, converted from the published names, computes what it should."""

import functools
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from numpy.testing import assert_allclose
from torch_functions import needed, random_variables

from jaxseg.nets import inception
from jaxseg.published import inception as published
from jaxseg.published import networks
from jaxseg.published.read import open_source
from jaxseg.published.source import Source, Tensor, WeightsError


def source(arrays, path='weights.pth'):
  tensor = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  return Source(path, {key: tensor(x) for key, x in arrays.items()})


@functools.cache
def peer(num_classes):
  import inception_like
  import torchvision_like

  net = inception_like.Inception(4, num_classes, num_classes == 1008)
  return torchvision_like.randomized(net)


def arrays_of(num_classes):
  return {k: v.numpy() for k, v in peer(num_classes).state_dict().items()}


def read(network):
  leaf = lambda x: not isinstance(x, dict)
  return jax.tree.map(lambda e: e.read(), network.variables, is_leaf=leaf)


@needed
@pytest.mark.parametrize(
  'num_classes', (1008, 1000), ids=('fid', 'torchvision')
)
def test_features(num_classes):
  import torch

  arrays = arrays_of(num_classes)
  if num_classes == 1000:
    arrays['AuxLogits.conv0.conv.weight'] = np.ones((2, 3, 1, 1), np.float32)
  opened = source(arrays)
  converted = published.convert(opened)
  assert converted.kind == 'inception' and opened.left() == []
  network = converted.networks['inception']
  wanted = {
    'num_classes': num_classes, 'is_fid': num_classes == 1008, 'width': 4,
  }  # fmt: skip
  assert network.settings == wanted
  variables = read(network)
  module = networks.module(network.arch, network.settings)
  assert module == inception.of_variables(variables)
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (2, 107, 120, 3)).astype(np.float32)
  ours = jax.jit(inception.features)(variables, x)
  with torch.no_grad():
    theirs = peer(num_classes)(torch.tensor(x.transpose(0, 3, 1, 2)))
  for a, b in zip(ours, theirs, strict=True):
    assert_allclose(a, b.numpy(), atol=2e-5 * float(b.abs().max()))


def test_sizes_as_published():
  """23.8 million parameters without torchvision's auxiliary classifier."""
  module = inception.InceptionV3(num_classes=1000, is_fid=False)
  image = lambda side: jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), image(75))
  count = sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert count == 23_834_568
  found = jax.eval_shape(module.apply, shapes, image(299))
  assert (found.pool.shape, found.logits.shape) == ((2, 2048), (2, 1000))
  flat = traverse_util.flatten_dict(shapes['params'], sep='/')
  assert flat['Mixed_7c/branch3x3dbl_3b/conv/kernel'].shape == (3, 1, 384, 384)


def test_images_normalised_by_imagenet():
  """They are brought to [-1, 1] first."""
  plain, transforming = (
    inception.InceptionV3(5, False, 2, transform) for transform in (False, True)
  )
  image = jnp.linspace(-1, 1, 75 * 75 * 3).reshape(1, 75, 75, 3)
  variables = random_variables(plain, image)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  normalised = ((image + 1) / 2 - jnp.array(mean)) / jnp.array(std)
  a, b = jax.jit(
    lambda x, y: (
      transforming.apply(variables, x).logits,
      plain.apply(variables, y).logits,
    )
  )(normalised, image)
  assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def refused(words, arrays):
  with pytest.raises(WeightsError) as error:
    published.convert(source(arrays))
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


@needed
def test_mistakes_are_told():
  arrays = arrays_of(1008)
  key = 'Mixed_6b.branch7x7_2.conv.weight'
  turned = arrays | {key: arrays[key].transpose(0, 1, 3, 2)}
  refused((key, '(16, 16, 7, 1)', '(16, 16, 1, 7)'), turned)
  key = 'Mixed_7c.branch_pool.bn.running_var'
  refused((f'no {key}',), {k: x for k, x in arrays.items() if k != key})
  refused(('no Conv2d_1a_3x3.conv.weight', 'a'), {'a': np.ones(2)})


def test_torchscript_is_refused_with_what_to_take(tmp_path):
  path = tmp_path / 'inception-2015-12-05.pt'
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('data.pkl', 'constants.pkl', 'code/__torch__.py'):
      archive.writestr(f'inception/{name}', b'\x80\x02}.')
  with pytest.raises(WeightsError, match='TorchScript.*pytorch-fid') as error:
    open_source(str(path))
  assert '\n' not in str(error.value)
