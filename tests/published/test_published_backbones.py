"""torchvision's files: which network they are of is found in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_keys
from flax import traverse_util
from numpy.testing import assert_allclose
from torch_functions import needed

from jaxseg.nets import torchvision_names
from jaxseg.nets.mobilenet import scaled
from jaxseg.nets.resnet import DEPTHS, ResNet
from jaxseg.published import backbones
from jaxseg.published.source import Source, Tensor, WeightsError


def source(arrays, path='weights.pth'):
  tensor = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  return Source(path, {key: tensor(x) for key, x in arrays.items()})


def peer(name, width):
  import torchvision_like as like

  if name == 'mobilenet_v2':
    return like.MobileNetV2(lambda n: scaled(n, 4 * width))
  if name.startswith('vgg'):
    return like.VGG(width, name == 'vgg16_bn', 6)
  depth = int(name.removeprefix('resnet'))
  return like.ResNet(width, DEPTHS[depth], depth > 34)


def arrays_of(name, width=2):
  return {k: v.numpy() for k, v in peer(name, width).state_dict().items()}


@needed
@pytest.mark.parametrize('name', torchvision_names.BACKBONES)
def test_the_network_is_found(name):
  opened = source({f'state_dict/{k}': x for k, x in arrays_of(name).items()})
  converted = backbones.convert(opened)
  assert converted.kind == 'torchvision' and opened.left() == []
  network = converted.networks['backbone']
  width = 8 if name == 'mobilenet_v2' else 2
  wanted = {'backbone': name, 'width': width, 'num_classes': 10}
  assert (network.arch, network.settings) == ('torchvision', wanted)
  flat = traverse_util.flatten_dict(network.variables, sep='/')
  encoder = {n for _, n, _ in torchvision_keys.names(name)}
  dense = 6 if name.startswith('vgg') else 2
  assert encoder < set(flat) and len(flat) == len(encoder) + dense
  if name == 'resnet152':  # as the module has them
    init = lambda: ResNet(152, 2, norm='batch').init(
      jax.random.key(0), jnp.zeros((1, 32, 32, 3)), False
    )
    shapes = traverse_util.flatten_dict(jax.eval_shape(init), sep='/')
    for path, leaf in shapes.items():
      assert flat[path].shape == leaf.shape, path


@needed
@pytest.mark.parametrize('name', ('resnet18', 'vgg16', 'mobilenet_v2'))
def test_the_classifier_computes_the_same(name):
  """Of VGG16 as convolutions over 7x7 features, the last a dense layer."""
  import torch
  import torchvision_like as like

  net = like.randomized(peer(name, 2))
  arrays = {k: v.numpy() for k, v in net.state_dict().items()}
  found = backbones.entries(source(arrays), name)
  get = lambda key: found[f'params/{key}'].read()
  is_vgg = name == 'vgg16'
  channels = get('fc6/kernel' if is_vgg else 'fc/kernel').shape[-2]
  side = 7 if is_vgg else 1
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, side, side, channels)).astype(np.float32)
  with torch.no_grad():
    flat = torch.tensor(x.transpose(0, 3, 1, 2)).flatten(1)
    theirs = (net.fc if name == 'resnet18' else net.classifier)(flat).numpy()
  if is_vgg:
    x = np.einsum('nhwi,hwio->no', x, get('fc6/kernel')) + get('fc6/bias')
    x = np.maximum(x, 0) @ get('fc7/kernel')[0, 0] + get('fc7/bias')
  x = np.maximum(x, 0) if is_vgg else x[:, 0, 0]
  ours = x @ get('fc/kernel') + get('fc/bias')
  assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def refused(words, arrays):
  with pytest.raises(WeightsError) as error:
    backbones.convert(source(arrays))
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


@needed
def test_mistakes_are_told():
  arrays = arrays_of('resnet50')
  key = 'layer2.1.conv2.weight'  # of grouped convolutions, as in ResNeXt
  grouped = arrays | {key: arrays[key][:, :2]}
  refused((key, '(4, 2, 3, 3)', '(4, 4, 3, 3)'), grouped)
  less = {k: x for k, x in arrays.items() if not k.startswith('layer4.2')}
  refused(('(3, 4, 6, 2)', 'resnet50', 'vgg16'), less)
  refused(('no layer3.1.conv1.weight',), {
    k: x for k, x in arrays.items() if not k.startswith('layer3.1')
  })  # fmt: skip
  deeper = {'features.0.weight': np.ones(1), 'features.34.weight': np.ones(1)}
  refused(('another network', 'features.0.weight'), deeper)
  wide = {k: np.repeat(x, 2, 0) if 'layer1.0.conv1' in k else x
          for k, x in arrays.items()}  # fmt: skip
  refused(('layer1.0.conv1.weight', '(4, 2, 1, 1)'), wide)


@needed
def test_a_classifier_of_ones_own_is_left():
  arrays = arrays_of('vgg16') | {'classifier.0.weight': np.ones((3, 16))}
  opened = source(arrays)
  settings = backbones.convert(opened).networks['backbone'].settings
  assert 'num_classes' not in settings
  assert all(key.startswith('classifier.') for key in opened.left())
