"""CycleGAN's generator: recordings, PyTorch's functions, sizes."""

import functools
import importlib

import golden_cyclegan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from golden_cyclegan import nhwc
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import ops
from jaxseg.nets.resnet_generator import Doubling, ResnetGenerator, reflect
from jaxseg.nets.segmenters import Net


def images(*shape, seed=0):
  x = np.random.default_rng(seed).uniform(-1, 1, size=shape)
  return np.asarray(x, np.float32)


@functools.cache
def shapes_of(net, shape):
  init = functools.partial(jax.eval_shape, net.init_with_output)
  return init(jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.fixture(scope='module', params=('G_IS', 'G_SI'))
def recorded(request):
  if request.param == 'G_IS':
    return golden_cyclegan.load('G_IS_instance'), 'linear'
  folder = request.getfixturevalue('shared') / 'golden' / 'cyclegan'
  return dict(np.load(folder / 'G_SI_instance.npz')), 'tanh'


@pytest.fixture(scope='module')
def run_of_recorded(recorded):
  """Output, input gradient and what each layer gave."""
  arrays, output = recorded
  features = arrays['out'].shape[1]
  net = ResnetGenerator(features, 8, blocks=2, output=output)
  params = golden_cyclegan.generator(arrays, 'p/')

  def loss(x):
    y, found = net.apply(
      {'params': params}, x, capture_intermediates=True, mutable='intermediates'
    )
    return (y * nhwc(arrays['w'])).sum(), (y, found['intermediates'])

  x = nhwc(arrays['x'])
  dx, (y, found) = jax.jit(jax.grad(loss, has_aux=True))(x)
  return y, dx, found


def test_recorded_layers(recorded, run_of_recorded):
  arrays, _ = recorded
  found = run_of_recorded[2]
  names = {
    1: ('encoder', 'stem'), 2: ('encoder', 'down0'), 3: ('encoder', 'down1'),
    4: ('encoder', 'block0'), 5: ('encoder', 'block1'),
    6: ('decoder', 'up0'), 7: ('decoder', 'up1'), 9: ('decoder', 'out'),
  }  # fmt: skip
  for index, (part, name) in names.items():
    wanted = nhwc(arrays[f'act/{index}'])
    assert wanted.std() > 0.05, 'a constant map would show nothing'
    assert_allclose(found[part][name]['__call__'][0], wanted, atol=2e-5)


def test_recorded_output_and_gradient(recorded, run_of_recorded):
  arrays, _ = recorded
  y, dx, _ = run_of_recorded
  assert_allclose(y, nhwc(arrays['out']), atol=1e-5)
  wanted = nhwc(arrays['dx'])
  assert_allclose(dx, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize('of, width', (('x', 3), ('act/7', 3), ('act/3', 1)))
def test_border_is_mirrored(of, width):
  arrays = golden_cyclegan.load('G_IS_instance')
  x = nhwc(arrays[of])
  y = reflect(jnp.asarray(x), width)
  around = (0, 0), (width, width), (width, width), (0, 0)
  assert_array_equal(y, np.pad(x, around, mode='reflect'))
  padded = {'x': 'act/0', 'act/7': 'act/8'}.get(of)
  if padded:
    assert_array_equal(y, nhwc(arrays[padded]))


def test_border_of_tiny_maps():
  x = np.arange(8.0).reshape(1, 4, 2, 1)
  with pytest.raises(ValueError, match='4 x 2 pixels cannot be mirrored 3'):
    reflect(jnp.asarray(x), 3)
  y = reflect(jnp.asarray(x), 1)
  assert_array_equal(y[0, 0, :, 0], [3, 2, 3, 2])


@pytest.mark.parametrize('channels, features, wanted', (
  (3, 21, 11_434_645), (3, 4, 11_381_316), (1, 4, 11_375_044),
  (21, 3, 11_434_627), (4, 1, 11_375_041),
))  # fmt: skip
def test_published_parameters(channels, features, wanted):
  y, variables = shapes_of(ResnetGenerator(features), (2, 32, 64, channels))
  assert (y.shape, y.dtype) == ((2, 32, 64, features), jnp.float32)
  assert set(variables) == {'params'}
  assert t.count(variables['params']) == wanted


@pytest.mark.parametrize('norm', ('batch', 'frozen', 'group'))
def test_parameters_with_other_norms(norm):
  """Scale and bias in place of the bias of each convolution but the last."""
  normalized = 64 + 128 + 256 + 18 * 256 + 128 + 64
  _, variables = shapes_of(ResnetGenerator(21, norm=norm), (1, 32, 32, 3))
  assert t.count(variables['params']) == 11_434_645 + normalized
  stats = 0 if norm == 'group' else 2 * normalized
  assert t.count(variables.get('batch_stats', {})) == stats


def test_initial_values():
  net = ResnetGenerator(3, width=16, blocks=2, norm='batch')
  init = jax.jit(lambda key: net.init(key, jnp.zeros((1, 8, 8, 3))))
  leaves = jax.tree_util.tree_leaves_with_path(
    init(jax.random.key(0))['params']
  )
  by_kind = {}
  for path, leaf in leaves:
    by_kind.setdefault(path[-1].key, []).append(np.ravel(leaf))
  values = {kind: np.concatenate(v) for kind, v in by_kind.items()}
  for kind, mean in (('kernel', 0), ('scale', 1)):
    assert_allclose(values[kind].mean(), mean, atol=4e-3)
    assert_allclose(values[kind].std(), 0.02, rtol=0.15)
  assert not values['bias'].any()


def in_pytorch(variables, x, norm, output='linear'):
  """The network in training once more, without dropout."""
  params, stats = variables['params'], variables.get('batch_stats')
  F, size = t.F, x.shape[1:3]

  def normalize(layer, x, *names):
    if norm == 'instance':
      return F.instance_norm(x)
    scale, bias = (t.tensor(layer['norm'][n]) for n in ('scale', 'bias'))
    if norm == 'group':
      return F.group_norm(x, x.shape[1] // 8, scale, bias, 1e-6)
    part = functools.reduce(lambda tree, n: tree[n], names, stats)
    return t.batch_norm(layer['norm'], part['norm'], x, train=True)

  def mirrored(conv, x):
    half = conv['kernel'].shape[0] // 2
    return t.conv(conv, F.pad(x, (half,) * 4, mode='reflect'))

  def strided(conv, x):
    weight = t.tensor(conv['kernel']).permute(3, 2, 0, 1)
    bias = t.tensor(conv['bias']) if 'bias' in conv else None
    return F.conv2d(x, weight, bias, stride=2, padding=1)

  def doubled(conv, x):
    weight = t.tensor(conv['kernel']).permute(2, 3, 0, 1)
    bias = t.tensor(conv['bias']) if 'bias' in conv else None
    return F.conv_transpose2d(x, weight, bias, 2, 1, output_padding=1)

  def layer(function, x, *names):
    own = functools.reduce(lambda tree, n: tree[n], names, params)
    return normalize(own, function(own['conv'], x), *names)

  x = F.relu(layer(mirrored, t.to_torch(x), 'encoder', 'stem'))
  sizes = [size]
  for name in ('down0', 'down1'):
    x = F.relu(layer(strided, x, 'encoder', name))
    sizes.append(x.shape[2:])
  for name in sorted(n for n in params['encoder'] if n.startswith('block')):
    y = F.relu(layer(mirrored, x, 'encoder', name, 'first'))
    x = x + layer(mirrored, y, 'encoder', name, 'second')
  for name, (rows, columns) in (('up0', sizes[1]), ('up1', size)):
    x = F.relu(layer(doubled, x, 'decoder', name))[:, :, :rows, :columns]
  x = t.from_torch(mirrored(params['decoder']['out'], x))
  return np.tanh(x) if output == 'tanh' else x


@t.needed
@pytest.mark.parametrize('norm, size, output', (
  ('instance', (17, 22), 'tanh'), ('batch', (18, 13), 'linear'),
  ('group', (16, 16), 'linear'),
))  # fmt: skip
def test_network_is_that_of_pytorch(norm, size, output):
  x = images(2, *size, 3)
  net = ResnetGenerator(4, width=8, blocks=2, norm=norm, output=output)
  variables = t.random_variables(net, x)
  y, _ = jax.jit(lambda v: net.apply(v, x, True, mutable=['batch_stats']))(
    variables
  )
  assert y.shape == (2, *size, 4)
  wanted = in_pytorch(variables, x, norm, output)
  assert_allclose(y, wanted, atol=1e-4 * np.abs(wanted).max())


def test_doubling_by_hand():
  """PyTorch's y[2i + t - 1] += x[i] w[t], the last row from output padding."""
  net = Doubling(1, use_bias=False)
  kernel = np.outer([1, 2, 4], [1, 1, 1]).astype(np.float32)
  params = {'kernel': kernel[..., None, None]}
  x = np.array([[3.0], [5.0]], np.float32).reshape(1, 2, 1, 1)
  y = net.apply({'params': params}, x)
  rows = [2 * 3, 4 * 3 + 1 * 5, 2 * 5, 4 * 5]
  assert_array_equal(y[0, :, :, 0], np.stack([rows, rows], 1))


@pytest.mark.parametrize('size', ((5, 6), (19, 32)))
def test_any_size(size):
  net = ResnetGenerator(2, 8, 1, dtype=jnp.bfloat16)
  y, variables = shapes_of(net, (1, *size, 3))
  assert (y.shape, y.dtype) == ((1, *size, 2), jnp.float32)
  leaves = jax.tree.leaves(variables)
  assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}


def test_bfloat16_is_close():
  x = images(1, 16, 16, 3)
  net = ResnetGenerator(2, 8, 1)
  variables = t.random_variables(net, x)
  low = ResnetGenerator(2, 8, 1, dtype='bfloat16')
  a, b = jax.jit(lambda v: (net.apply(v, x), low.apply(v, x)))(variables)
  assert 0 < np.abs(a - b).max() < 0.1 * np.std(a)


def test_plain_and_fast_forms_agree():
  x = images(1, 16, 12, 2)
  net = ResnetGenerator(3, 8, 1)
  params = t.random_variables(net, x)['params']

  def found(name):
    with ops.implementation(name):
      loss = lambda p, x: jnp.square(net.apply({'params': p}, x)).mean()
      return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

  fast, plain = (jax.tree.leaves(found(name)) for name in ('fast', 'lax'))
  for a, b in zip(fast, plain, strict=True):
    assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_halves_make_the_whole():
  x = images(2, 10, 12, 1)
  net = ResnetGenerator(3, 8, 1, output='tanh')
  variables = t.random_variables(net, x)

  @jax.jit
  def both(v):
    features = net.apply(v, x, False, method='encode')
    y = net.apply(v, features, (10, 12), False, method='decode')
    return features, y, net.apply(v, x)

  features, halves, whole = both(variables)
  assert [m.shape for m in features.maps] == [(2, 3, 3, 32)]
  assert_allclose(halves, whole, atol=1e-6)
  assert np.abs(whole).max() <= 1


def test_dropout_only_in_training():
  x = images(1, 16, 16, 1)
  net, none = (ResnetGenerator(2, 8, 1, dropout=d) for d in (0.5, 0.0))
  variables = t.random_variables(net, x)

  @jax.jit
  def run(v):
    seeds = [{'dropout': jax.random.key(i)} for i in (0, 0, 1)]
    train = [net.apply(v, x, True, rngs=seed) for seed in seeds]
    return train, net.apply(v, x), none.apply(v, x, True)

  (first, again, other), use, without = run(variables)
  assert_array_equal(first, again)
  assert np.abs(first - other).max() > 1e-3
  assert_array_equal(use, without)
  assert np.abs(first - use).max() > 1e-3


def test_dropout_leaves_the_identity_of_a_block():
  """At a rate near 1 the second convolution sees zeros, which it leaves."""
  x = images(1, 12, 12, 1)
  net = ResnetGenerator(2, 8, 1, dropout=1 - 1e-6)
  variables = t.random_variables(net, x)

  def block(v):
    _, found = net.apply(
      v, x, True, rngs={'dropout': jax.random.key(0)},
      capture_intermediates=True, mutable='intermediates',
    )  # fmt: skip
    found = found['intermediates']['encoder']
    return found['down1']['__call__'][0], found['block0']['__call__'][0]

  before, after = jax.jit(block)(variables)
  assert_allclose(after, before, atol=1e-2)


@pytest.mark.parametrize('field, value, match', (
  ('output', 'sigmoid', "output is 'sigmoid', must be one of linear, tanh"),
  ('norm', 'layer', "norm is 'layer', must be one of group, batch, frozen"),
))  # fmt: skip
def test_refuses_other_values(field, value, match):
  with pytest.raises(ValueError, match=match):
    shapes_of(ResnetGenerator(2, 8, 1, **{field: value}), (1, 16, 16, 1))


@pytest.mark.parametrize('name', ('mean_teacher', 'gct', 'unimatch', 'adv_ssl'))
def test_methods_train_it(name):
  net = Net('resnet_generator', norm='instance', width=8, blocks=2, dropout=0.5)
  method = importlib.import_module(f'jaxseg.methods.{name}').make(
    num_classes=3, resolution=32, channels=1, total_steps=10, net=net
  )
  image = jnp.zeros((2, 32, 32, 1))
  batch = {
    'image': image, 'label': jnp.zeros((2, 32, 32), jnp.int32),
    'unlabelled': image, 'unlabelled_strong': jnp.zeros((2, 2, 32, 32, 1)),
    'cutmix': jnp.zeros((2, 2, 32, 32), bool),
  }  # fmt: skip
  state = jax.eval_shape(method.init, jax.random.key(0))
  after, _ = jax.eval_shape(method.train_step, state, batch)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  prediction = jax.eval_shape(method.predict, state, image)
  assert prediction.probabilities.shape == (2, 32, 32, 3)
