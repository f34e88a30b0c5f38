"""StyleGAN2-ADA's networks: layouts, PyTorch's functions, refusals."""

import functools

import ada_by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stylegan2_layouts as layouts
import torch_functions
import torch_stylegan2 as reference
from entries import arrays_of, shapes_of, source_of
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import pretrained
from jaxseg.nets import stylegan2
from jaxseg.published import kinds, networks
from jaxseg.published.source import WeightsError


def file_of(
  widths=(6, 5, 4), w_dim=7, channels=3, depth=2, noise=True, values=None,
  **change,
):  # fmt: skip
  """{G_ema, D}; `change`: shapes by key, None leaves one out."""
  g = layouts.ada_generator(widths, w_dim, channels, depth, noise)
  shapes = layouts.prefixed('G_ema/', g)
  shapes |= layouts.prefixed('D/', layouts.ada_discriminator(widths, channels))
  shapes |= change
  arrays = layouts.draw({k: s for k, s in shapes.items() if s is not None})
  return source_of(arrays, 'ada.pkl', values)


def converted(**kwargs):
  return kinds.convert('stylegan2-ada', file_of(**kwargs))


def part(source, prefix):
  """Arrays whose keys begin with it."""
  get = source.under(prefix)
  return {k: source.tensors[prefix + k].read() for k in get.keys()}


CASES = (
  {},
  dict(widths=(4, 6), w_dim=3, channels=1, depth=8),
  dict(widths=(3, 5, 4, 7), noise=False, depth=1),
)


@pytest.mark.parametrize('case', CASES)
def test_layouts(case):
  found = converted(**case)
  g, d = found.networks['g_ema'], found.networks['d_r']
  widths = list(case.get('widths', (6, 5, 4)))
  side, channels = 2 * 2 ** len(widths), case.get('channels', 3)
  assert g.settings == dict(
    resolution=side, channels=channels, num_classes=0,
    w_dim=case.get('w_dim', 7), mapping_depth=case.get('depth', 2),
    widths=widths, conv_clamp=0.0,
  )  # fmt: skip
  assert d.settings == dict(
    resolution=side, widths=widths, conv_clamp=0.0, stddev_group=4
  )
  expect_shapes(g, (1, g.settings['w_dim']))
  expect_shapes(d, (1, side, side, channels))
  noise = found.extras.get('noise', {})
  maps = [(1, *s, 1) for s in stylegan2.noise_shapes(side)]
  wanted = maps if case.get('noise', True) else []
  assert [noise[str(i)].shape for i in range(len(noise))] == wanted
  assert found.extras['w_avg'].shape == (g.settings['w_dim'],)


def expect_shapes(network, shape):
  module = networks.module(network.arch, network.settings)
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  assert shapes_of(network.variables) == shapes_of(variables)


@torch_functions.needed
@pytest.mark.parametrize('case, clamp', (
  (dict(widths=(6, 5, 4), w_dim=7), 0.0),
  (dict(widths=(6, 5, 4), w_dim=7), 0.6),
  (dict(widths=(4, 6), w_dim=3, channels=1, depth=8), 0.0),
  (dict(widths=(3, 4, 4, 7), noise=False), 0.9),
))  # fmt: skip
def test_computes_what_pytorch_does(case, clamp):
  values = clamped(clamp)
  source = file_of(**case, values=values)
  found = kinds.convert('stylegan2-ada', source)
  arrays = part(source, 'G_ema/')
  g = found.networks['g_ema']
  assert g.settings['conv_clamp'] == clamp
  rng = np.random.default_rng(1)
  z = rng.normal(size=(4, g.settings['w_dim'])).astype(np.float32)
  module = networks.module(g.arch, g.settings)
  noise = arrays_of(found.extras.get('noise', {}))
  noise = [noise[str(i)] for i in range(len(noise))] or None

  @jax.jit
  def run(variables, z, noise):
    w = module.apply(variables, z, method='mapping')
    scale = jnp.linspace(0.5, 1.5, 2 * len(g.settings['widths']))
    w_plus = w[:, None] * scale[:, None]  # each layer its own style
    images, _ = module.apply(variables, w_plus, noise, method='synthesize')
    return w, w_plus, images

  w, w_plus, images = run(arrays_of(g.variables), z, noise)
  w_there = reference.mapping(arrays, torch_functions.tensor(z))
  assert_allclose(w, w_there, atol=1e-5)
  w_plus = torch_functions.tensor(w_plus)
  wanted, _ = reference.generator(arrays, w_plus, clamp)
  assert_allclose(images, torch_functions.from_torch(wanted), atol=1e-4)

  d = found.networks['d_r']
  assert d.settings['conv_clamp'] == clamp
  score = jax.jit(networks.module(d.arch, d.settings).apply)
  found = score(arrays_of(d.variables), images)
  wanted = reference.discriminator(part(source, 'D/'), wanted, clamp)
  assert_allclose(found, wanted, atol=1e-4)
  if clamp:  # small enough to act
    images = torch_functions.to_torch(images)
    free = reference.discriminator(part(source, 'D/'), images)
    assert abs(free - wanted).max() > 1e-2


# Its text would take more memory than there is.
BOMB = functools.reduce(lambda inner, _: [inner, inner], range(60), ['x'])


def clamped(clamp):
  """Data of such a file, as its networks' arguments tell the clamp."""
  if not clamp:
    return {}
  return {
    'G_ema/_init_kwargs/synthesis_kwargs/conv_clamp': clamp,
    'D/_init_kwargs/conv_clamp': clamp,
  }


@pytest.mark.parametrize('values, clamp, group', (
  ({'D/_init_kwargs/epilogue_kwargs/mbstd_group_size': 2}, 0, 2),
  # Layers tell what defaults of their version were.
  ({'D/b4.mbstd.group_size': 8, 'D/b4.conv.conv_clamp': 256}, 256, 8),
  ({'D/_init_kwargs/conv_clamp': None}, 0, 4),
))  # fmt: skip
def test_settings_of_the_discriminator(values, clamp, group):
  settings = converted(values=values).networks['d_r'].settings
  assert settings['conv_clamp'] == clamp
  assert settings['stddev_group'] == group


def test_clamp_of_a_layer():
  values = {'G_ema/synthesis.b4.conv1.conv_clamp': 256}
  settings = converted(values=values).networks['g_ema'].settings
  assert settings['conv_clamp'] == 256


@pytest.mark.parametrize('change, words', (
  ({'G_ema/mapping.embed.weight': (7, 10)}, 'images of 10 given classes'),
  ({'D/mapping.fc0.weight': (7, 7)}, 'D/mapping.fc0.weight: a discriminator'),
  ({'G_ema/mapping.fc0.weight': (7, 9)}, 'must have the same width'),
  ({'G_ema/synthesis.b8.conv1.affine.weight': (5, 8)},
   r'affine.weight of shape \(5, 8\), expected \(5, 7\)'),
  ({'G_ema/synthesis.b8.conv0.bias': None},
   'no G_ema/synthesis.b8.conv0.bias'),
  ({'G_ema/synthesis.b8.conv0.noise_const': None},
   'no G_ema/synthesis.b8.conv0.noise_const'),
  ({'G_ema/synthesis.b8.skip.weight': (5, 6, 1, 1)},
   r'synthesis.b8.skip.weight of shape \(5, 6, 1, 1\), which this generator'),
  ({'D/b8.fromrgb.weight': (5, 3, 1, 1)}, 'which this discriminator has not'),
  ({'D/b16.fromrgb.weight': (4, 1, 1, 1)},
   'd_r of channels 1 beside g_ema of channels 3'),
  ({'D/b4.conv.weight': (6, 6, 3, 3)}, r'expected \(6, 7, 3, 3\)'),
  (dict(values={'G_ema/_init_kwargs/mapping_kwargs/lr_multiplier': 1}),
   "lr_multiplier = 1, expected 0.01"),
  (dict(values={'D/_init_kwargs/block_kwargs/activation': 'relu'}),
   "activation = 'relu', expected 'lrelu'"),
  (dict(values={'G_ema/_init_kwargs/mapping_kwargs/activation': BOMB}),
   "activation = something of type list, expected 'lrelu'"),
  (dict(values={'D/b4.mbstd.group_size': [4]}), 'type list, expected int from'),
  (dict(values={'D/b4.mbstd.group_size': True}), 'group_size = True, expected'),
  (dict(values={'D/b4.mbstd.group_size': 2.5}), 'group_size = 2.5, expected'),
  (dict(values={'D/b4.mbstd.group_size': 2**20}), 'expected int from 0 to 1,'),
  *((dict(values={'D/b4.conv.conv_clamp': clamp}), words)
    for clamp, words in (
      (BOMB, 'conv_clamp = something of type list, expected int or float'),
      (10**400, 'conv_clamp = something of type int, expected int or float'),
      (1e300, r'conv_clamp = 1e\+300, expected int or float from 0 to 1,000,'),
      (float('nan'), 'conv_clamp = nan, expected'),
      ('2', "conv_clamp = '2', expected"),
    )),
  ({'G_ema/synthesis.b8.conv1.bias': (0,)}, r'of shape \(0,\), expected num'),
))  # fmt: skip
def test_other_files_are_refused(change, words):
  with pytest.raises(WeightsError, match=words) as error:
    converted(**change)
  assert 'ada.pkl' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('key', (
  'G_ema/synthesis.b8.resample_filter', 'D/b8.skip.resample_filter',
))  # fmt: skip
def test_other_filters_are_refused(key):
  source = file_of()
  for other in (np.eye(4), np.ones(4), np.ones((12, 12)), np.zeros((4, 4))):
    get = lambda other=other: other.astype(np.float32)
    tensor = source.tensors[key]._replace(shape=other.shape, read=get)
    source.tensors[key] = tensor
    words = f'filter by {key}' if other.shape == (4, 4) else r'\(4, 4\)'
    with pytest.raises(WeightsError, match=words):
      kinds.convert('stylegan2-ada', source)


def test_all_three_networks_and_an_average():
  shapes = layouts.ada_generator((4, 4), 3)
  g, average = (layouts.draw(shapes, seed) for seed in range(2))
  arrays = layouts.prefixed('G/', g) | layouts.prefixed('G_ema/', average)
  found = kinds.convert('stylegan2-ada', source_of(arrays))
  assert list(found.networks) == ['g', 'g_ema']
  assert_array_equal(found.extras['w_avg'].read(), average['mapping.w_avg'])
  first = found.extras['noise']['0'].read()[0, :, :, 0]
  assert_array_equal(first, average['synthesis.b4.conv1.noise_const'])
  bare = kinds.convert('stylegan2-ada', source_of(g))
  assert list(bare.networks) == ['g_ema']


def test_a_whole_pickle(tmp_path):
  widths, arrays = (6, 5, 4), {}
  g = layouts.draw(layouts.ada_generator(widths, 7, 1))
  d = layouts.draw(layouts.ada_discriminator(widths, 1))
  clamp = {'synthesis_kwargs': {'conv_clamp': 256.0}, 'w_dim': 7}
  path = tmp_path / 'network-snapshot.pkl'
  parts = {
    'G': (g, clamp, {}),
    'D': (d, {'epilogue_kwargs': {'mbstd_group_size': 2}},
          {'b4.conv.conv_clamp': 256.0}),
    'G_ema': (g, clamp, {'synthesis.b4.conv1.act_gain': 1.4}),
  }  # fmt: skip
  path.write_bytes(ada_by_hand.pickle_file(parts))
  card = pretrained.convert('stylegan2-ada', path, tmp_path / 'out', size=16)
  assert card['ignored'] == []
  loaded = pretrained.load(tmp_path / 'out')
  assert list(loaded.networks) == ['g', 'g_ema', 'd_r']
  for name, file in (('g', g), ('g_ema', g), ('d_r', d)):
    prefix = {'g': 'G/', 'g_ema': 'G_ema/', 'd_r': 'D/'}[name]
    arrays |= layouts.prefixed(prefix, file)
  wanted = kinds.convert('stylegan2-ada', source_of(arrays))
  for name, network in loaded.networks.items():
    assert network.settings['conv_clamp'] == 256
    entries = wanted.networks[name].variables
    jax.tree.map(assert_array_equal, network.variables, arrays_of(entries))
  assert loaded.networks['d_r'].settings['stddev_group'] == 2
  assert len(loaded.extras['noise']) == 5
  assert_array_equal(loaded.extras['w_avg'], g['mapping.w_avg'])
