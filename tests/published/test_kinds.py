"""Files of every kind with a generator: what is found in them, and refused."""

import functools
import math

import encoder_layouts
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stylegan2_layouts as layouts
from entries import shapes_of, source_of, zeros_of
from numpy.testing import assert_array_equal

from jaxseg.nets import stylegan2
from jaxseg.published import kinds, networks
from jaxseg.published.source import WeightsError

WIDTHS, W_DIM = (6, 5, 4), 7
PSP = dict(
  units=(1, 1, 1, 1), widths=(3, 4, 5, 6), stem=3, se=(1, 0, 1, 2), styles=6,
  w_dim=W_DIM, depths=(1, 2, 3),
)  # fmt: skip
FPN = dict(
  width=2, blocks=(1, 1, 1, 1), features=3, styles=8, w_dim=W_DIM, head_width=4,
  depths=(1, 2, 3),
)  # fmt: skip


def generator(seed=0, widths=WIDTHS, **kwargs):
  return layouts.draw(layouts.generator(widths, W_DIM, **kwargs), seed)


def discriminator(widths=WIDTHS, channels=3):
  return layouts.draw(layouts.discriminator(widths, channels), 2)


def multiscale(inputs=3 + 19, width=2, scales=3):
  return layouts.draw(layouts.multiscale(width, inputs, scales), 3)


def expect_shapes(network, channels=3, classes=0):
  """The entries are those that the module needs, from settings alone."""
  settings = network.settings
  side = settings.get('resolution', settings.get('input_size', 64))
  shapes = [(1, side, side, channels)]
  if network.arch == 'stylegan2_generator':
    shapes = [(1, settings['w_dim'])]
  if network.arch == 'multiscale_discriminator':
    shapes.append((1, side, side, classes))
  module = networks.module(network.arch, settings)
  args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  variables = jax.eval_shape(module.init, jax.random.key(0), *args)
  assert shapes_of(network.variables) == shapes_of(variables)


@pytest.mark.parametrize('widths, channels, classes', (
  ((5, 3), 1, 1),
  ((4, 6, 8, 3), 3, 19),
  ((2,) * 7, 3, 2),
  ((512, 512, 512, 512, 256, 128), 1, 8),
))  # fmt: skip
def test_layouts_of_semanticgan(widths, channels, classes):
  size = 2 * 2 ** len(widths)
  styles = 2 * len(widths)
  shapes = {
    'g_ema/': layouts.generator(widths, 5, channels, classes, depth=3),
    'd_img/': layouts.discriminator(widths, channels),
    'd_seg/': layouts.multiscale(3, channels + classes, scales=2),
    'e/': encoder_layouts.residual(widths, 5, channels)
    if styles < 8
    else encoder_layouts.fpn(**FPN | dict(
      channels=channels, styles=styles, w_dim=5, depths=(4, 5, 6)
    )),
  }  # fmt: skip
  shapes = {f'{p}{k}': s for p, part in shapes.items() for k, s in part.items()}
  arrays = zeros_of(shapes)
  filters = (key for key in shapes if key.endswith('kernel'))
  arrays |= dict.fromkeys(filters, layouts.BINOMIAL)
  found = kinds.convert('semanticgan', source_of(arrays), size=size)
  assert list(found.networks) == ['g_ema', 'd_r', 'd_m', 'e']
  for network in found.networks.values():
    expect_shapes(network, channels, classes)
  settings = found.networks['g_ema'].settings
  assert settings == dict(
    resolution=size, channels=channels, num_classes=classes, w_dim=5,
    mapping_depth=3, widths=list(widths),
  )  # fmt: skip
  maps = found.extras['noise']
  wanted = [(1, *side, 1) for side in stylegan2.noise_shapes(size)]
  assert [maps[str(i)].shape for i in range(len(maps))] == wanted


@pytest.mark.parametrize('kind', ('psp', 'e4e'))
@pytest.mark.parametrize('change', (
  {}, dict(channels=1), dict(channels=19, units=(3, 4, 14, 3)),
))  # fmt: skip
def test_layouts_of_psp(kind, change):
  source = psp_source(PSP | change)
  found = kinds.convert(kind, source)
  assert found.networks['e'].arch == f'{kind}_encoder'
  expect_shapes(found.networks['e'], change.get('channels', 3))
  expect_shapes(found.networks['g_ema'])
  assert found.adds_w_avg and not found.remarks and not source.left()


def psp_source(layout=PSP, values=None, average=True, **change):
  arrays = layouts.prefixed(
    'state_dict/encoder.', encoder_layouts.draw(encoder_layouts.psp(**layout))
  ) | layouts.prefixed('state_dict/decoder.', generator())
  if average:
    arrays['latent_avg'] = np.ones((6, W_DIM), np.float32)
  return source_of(arrays | change, 'psp.pt', values)


@pytest.mark.parametrize('values, average, adds, remarks', (
  ({}, True, True, 0),
  ({}, False, True, 1),
  ({'opts/start_from_latent_avg': True}, True, True, 0),
  ({'opts/start_from_latent_avg': False}, True, False, 0),
  ({'opts/start_from_latent_avg': False}, False, False, 0),
  ({'opts/start_from_latent_avg': True}, False, True, 1),
))  # fmt: skip
def test_whether_codes_are_relative_to_the_average(
  values, average, adds, remarks
):
  found = kinds.convert('psp', psp_source(values=values, average=average))
  assert found.adds_w_avg == adds
  assert len(found.remarks) == remarks


@pytest.mark.parametrize('kind', ('psp', 'e4e'))
def test_generators_beside_other_encoders(kind):
  values = {'opts/encoder_type': 'ProgressiveBackboneEncoder'}
  source = psp_source(values=values)
  with pytest.raises(WeightsError, match="type 'Prog.* alone with --kind=styl"):
    kinds.convert(kind, source)
  found = kinds.convert('stylegan2', source, size=16)
  assert list(found.networks) == ['g_ema'] and not found.adds_w_avg
  assert found.extras['w_avg'].shape == (6, W_DIM)
  assert all('/encoder.' in key for key in source.left())


def test_recorded_types_of_any_length():
  bomb = functools.reduce(lambda inner, _: [inner, inner], range(60), ['x'])
  found = kinds.convert('psp', psp_source(values={'opts/encoder_type': bomb}))
  assert list(found.networks) == ['g_ema', 'e']


@pytest.mark.parametrize('recorded, kind, told', (
  ('Encoder4Editing', 'psp', 'e4e'),
  ('GradualStyleEncoder', 'e4e', 'psp'),
  ('Encoder4Editing', 'e4e', None),
  ('GradualStyleEncoder', 'psp', None),
))  # fmt: skip
def test_recorded_type_of_encoder(recorded, kind, told):
  source = psp_source(values={'opts/encoder_type': recorded})
  if told is None:
    kinds.convert(kind, source)
    return
  with pytest.raises(WeightsError, match=f'look like kind {told}, not {kind}'):
    kinds.convert(kind, source)


@pytest.mark.parametrize('shape, wanted', (
  ((W_DIM,), (W_DIM,)), ((1, W_DIM), (W_DIM,)), ((6, W_DIM), (6, W_DIM)),
  (None, None), ((2, W_DIM), ValueError), ((W_DIM + 1,), ValueError),
  ((), ValueError), ((6, 1, W_DIM), ValueError),
))  # fmt: skip
@pytest.mark.parametrize('prefix', ('', 'g_ema/'))
def test_shapes_of_the_average(prefix, shape, wanted):
  arrays = layouts.prefixed(prefix, generator())
  if shape is not None:
    arrays['latent_avg'] = np.arange(math.prod(shape), dtype='f4').reshape(
      shape
    )
  source = source_of(arrays)
  if wanted is ValueError:
    with pytest.raises(WeightsError, match='latent_avg of shape'):
      kinds.convert('stylegan2', source)
    return
  found = kinds.convert('stylegan2', source)
  assert not source.left()
  if wanted is None:
    assert 'w_avg' not in found.extras
  else:
    average = found.extras['w_avg']
    assert average.shape == wanted
    assert_array_equal(average.read().ravel(), arrays['latent_avg'].ravel())


@pytest.mark.parametrize('names, wanted', (
  (('g/', 'g_ema/'), ['g', 'g_ema']), (('g/',), ['g']), (('',), ['g_ema']),
  (('g_ema/',), ['g_ema']),
))  # fmt: skip
def test_generators_that_are_there(names, wanted):
  arrays = {}
  for seed, name in enumerate(names):
    arrays |= layouts.prefixed(name, generator(seed))
  found = kinds.convert('stylegan2', source_of(arrays))
  assert list(found.networks) == wanted
  const = found.networks[wanted[-1]].variables['params']['const'].read()
  last = arrays[f'{names[-1]}input.input'][0]
  assert_array_equal(const, last.transpose(1, 2, 0))


def test_without_noise_maps():
  found = kinds.convert('stylegan2', source_of(generator(noise=False)))
  assert found.extras == {}
  arrays = generator()
  del arrays['noises.noise_2']
  with pytest.raises(WeightsError, match='no noises.noise_2'):
    kinds.convert('stylegan2', source_of(arrays))


def semanticgan(**change):
  """A file of all four networks; `change`: arrays by key, None: without."""
  encoder = encoder_layouts.draw(encoder_layouts.residual(WIDTHS, W_DIM))
  arrays = {
    **layouts.prefixed('g_ema/', generator(classes=19)),
    **layouts.prefixed('d_img/', discriminator()),
    **layouts.prefixed('d_seg/', multiscale()),
    **layouts.prefixed('e/', encoder),
    **change,
  }
  return source_of({k: x for k, x in arrays.items() if x is not None})


def zeros(*shape):
  return np.zeros(shape, np.float32)


@pytest.mark.parametrize('change, words', (
  ({'g_ema/convs.1.conv.weight': None}, 'no g_ema/convs.1.conv.weight'),
  ({'g_ema/convs.1.noise.weight': None}, 'no g_ema/convs.1.noise.weight'),
  ({'g_ema/convs.0.conv.weight': zeros(1, 5, 7, 3, 3)},
   r'g_ema/convs.0.conv.weight of shape \(1, 5, 7, 3, 3\), expected \(1, 5, 6, '
   r'3, 3\)'),
  ({'g_ema/to_segs.1.bias': zeros(1, 18, 1, 1)},
   r'to_segs.1.bias of shape \(1, 18, 1, 1\), expected \(1, 19, 1, 1\)'),
  ({'g_ema/style.3.bias': None}, 'no g_ema/style.3.bias'),
  ({'g_ema/style.1.weight': zeros(7, 9)}, 'must have the same width'),
  ({'g_ema/style.10.weight': zeros(7, 7)},
   'style.10.weight .* which this generator has not'),
  ({'g_ema/convs.0.conv.blur.kernel': zeros(4, 4)}, 'filter by g_ema/convs.0'),
  ({'g_ema/conv1.conv.weight': np.ones((1, 6, 6, 3, 3), np.int32)},
   'conv1.conv.weight as int32, expected floating-point'),
  ({'d_img/extra': zeros(2)},
   r'd_img/extra of shape \(2,\), which this discriminator has not'),
  ({'d_img/final_conv.0.weight': zeros(6, 8, 3, 3)}, r'expected \(6, 7, 3'),
  ({'d_seg/scale1_layer2.0.0.weight_u': None}, 'no d_seg/scale1_layer2.0.0'),
  ({'d_seg/scale1_layer0.0.weight': None}, 'no d_seg/scale1_layer0.0.weight'),
  (layouts.prefixed('d_seg/', multiscale(23)),
   'd_m of channels and classes 23 beside g_ema of channels and classes 22'),
  (layouts.prefixed('g/', generator(classes=8)),
   'g of classes 8 beside g_ema of classes 19'),
  ({'e/final_linear.weight': zeros(36, 96), 'e/final_linear.bias': zeros(36)},
   'e of width of w 6 beside g_ema of width of w 7'),
))  # fmt: skip
def test_damaged_files(change, words):
  with pytest.raises(WeightsError, match=words) as error:
    kinds.convert('semanticgan', semanticgan(**change))
  assert 'weights.pt' in str(error.value) and '\n' not in str(error.value)


def test_networks_of_other_sizes():
  small = layouts.prefixed('d/', discriminator(WIDTHS[:2]))
  source = source_of(layouts.prefixed('g_ema/', generator()) | small)
  with pytest.raises(WeightsError, match='d_r of size 8 beside g_ema of size'):
    kinds.convert('stylegan2', source)
  with pytest.raises(WeightsError, match='e of styles 4 beside g_ema of st'):
    kinds.convert('psp', psp_source(PSP | dict(styles=4)))
  with pytest.raises(WeightsError, match='g_ema of size 16, but --size is 32'):
    kinds.convert('psp', psp_source(), size=32)


@pytest.mark.parametrize('kind, prefix, shapes', (
  ('stylegan2', '', layouts.generator((2,) * 15, 2, noise=False)),
  ('stylegan2-ada', '', layouts.ada_generator((2,) * 12, 2, noise=False)),
  ('semanticgan', 'e/', encoder_layouts.fpn(**FPN | dict(
    styles=24, depths=(1, 2, 3)))),
))  # fmt: skip
def test_networks_of_any_size_in_a_few_bytes(kind, prefix, shapes):
  arrays = zeros_of(layouts.prefixed(prefix, shapes))
  if prefix:
    arrays |= layouts.prefixed('g_ema/', generator(classes=2))
  with pytest.raises(WeightsError, match='expected at most 4096'):
    kinds.convert(kind, source_of(arrays))


@pytest.mark.parametrize('sizes', (
  dict(widths=(0, 0)), dict(w_dim=0),
))  # fmt: skip
def test_networks_without_numbers(sizes):
  shapes = layouts.generator(**dict(widths=(2, 2), w_dim=2) | sizes)
  with pytest.raises(WeightsError, match='expected numbers in it'):
    kinds.convert('stylegan2', source_of(zeros_of(shapes)))


def test_kinds_are_told_apart():
  files = {
    'psp': psp_source(),
    'semanticgan': semanticgan(),
    'stylegan2': source_of(layouts.prefixed('g_ema/', generator())),
    'stylegan2-ada': source_of(
      layouts.draw(layouts.ada_generator(WIDTHS, W_DIM))
    ),
  }
  for found, source in files.items():
    assert kinds.sniff(source) == found
    kinds.convert(found, source)
    for kind in kinds.KINDS:
      if {kind, found} in ({'psp', 'e4e'}, {'stylegan2', 'semanticgan'}):
        continue
      if (found, kind) == ('psp', 'stylegan2'):
        continue
      if kind != found:
        with pytest.raises(WeightsError, match=f'give --kind={found}'):
          kinds.convert(kind, source)
  with pytest.raises(WeightsError, match='no g_ema/to_seg1.bias'):
    kinds.convert('semanticgan', files['stylegan2'])


@pytest.mark.parametrize('kind', ('stylegan2', 'semanticgan', 'stylegan2-ada'))
def test_files_of_no_known_kind(kind):
  source = source_of({'a.weight': zeros(3)})
  with pytest.raises(WeightsError, match='is the file of another kind'):
    kinds.convert(kind, source)
