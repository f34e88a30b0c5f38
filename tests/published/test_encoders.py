"""Published encoders: every layout becomes the network it is of."""

import math

import encoder_layouts as layouts
import encoders_in_torch as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions
from entries import arrays_of, shapes_of, source_of, zeros_of
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg.published import encoders, networks
from jaxseg.published import psp as published_psp
from jaxseg.published.source import WeightsError

IR_50 = (3, 4, 14, 3)
TINY = dict(
  units=(1, 2, 2, 1), widths=(4, 6, 8, 10), stem=5, se=(1, 2, 2, 3), styles=10,
  w_dim=7, depths=(2, 3, 4),
)  # fmt: skip
# With and without SE; stages of equal width, told by the number of units.
PLAIN = dict(
  units=IR_50, widths=(4, 4, 6, 6), stem=4, se=(0,) * 4, channels=1, styles=18,
  w_dim=5, head_width=6, depths=(1, 2, 3),
)  # fmt: skip
FPN = dict(
  width=2, blocks=(1, 2, 1, 1), features=6, styles=10, w_dim=5, head_width=4,
  depths=(2, 3, 4),
)  # fmt: skip
RESIDUAL = dict(widths=(8, 6, 6, 5), w_dim=3)


def psp(arch='psp_encoder'):
  return lambda source: published_psp.encoder(source, arch)


def converted(layout, convert):
  return convert(source_of(zeros_of(layout)))


def expect_shapes(network, image):
  """The entries are those that the module needs, from settings alone."""
  module = networks.module(network.arch, network.settings)
  image = jax.ShapeDtypeStruct(image, jnp.float32)
  variables = jax.eval_shape(module.init, jax.random.key(0), image)
  assert shapes_of(network.variables) == shapes_of(variables)
  return sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize('layout, image', (
  (TINY, (1, 40, 40, 3)),
  (PLAIN, (1, 32, 32, 1)),
  (TINY | dict(units=IR_50, widths=(8,) * 4, styles=6, channels=4),
   (1, 64, 64, 4)),
  (TINY | dict(se=(0, 0, 3, 1), widths=(5, 3, 5, 2), styles=2), (1, 32, 32, 3)),
  ({}, (1, 256, 256, 3)),
))  # fmt: skip
def test_layouts_of_psp(layout, image):
  network = converted(layouts.psp(**layout), psp())
  expect_shapes(network, image)
  assert (
    network.settings['input_size'] == 16 * 2 ** layout.get('depths', [4])[0]
  )
  assert network.settings['num_styles'] == layout.get('styles', 18)
  assert tuple(network.settings['units']) == layout.get('units', IR_50)


@pytest.mark.parametrize('layout, image', (
  (FPN, (1, 64, 64, 3)),
  (FPN | dict(width=3, channels=1, styles=8, depths=(1, 2, 3)),
   (1, 32, 32, 1)),
  (FPN | dict(blocks=(3, 4, 6, 3), styles=18), (1, 64, 64, 3)),
))  # fmt: skip
def test_layouts_of_the_pyramid(layout, image):
  network = converted(layouts.fpn(**layout), encoders.semanticgan_encoder)
  expect_shapes(network, image)
  resolution = network.settings['resolution']
  assert 2 * math.log2(resolution) - 2 == layout['styles']


@pytest.mark.parametrize('size, channels, count', (
  (256, 3, 83_396_224), (256, 1, 83_395_968), (64, 3, 64_241_664),
  (1024, 3, 100_323_872),
))  # fmt: skip
def test_published_sizes_of_the_residual_encoder(size, channels, count):
  sizes = [2**i for i in range(2, int(math.log2(size)) + 1)]
  widths = [min(512, 32768 // s) for s in sizes]
  layout = layouts.residual(widths, channels=channels)
  arrays = zeros_of(layout)
  kernels = (key for key in layout if key.endswith('kernel'))
  arrays |= dict.fromkeys(kernels, layouts.BINOMIAL)
  network = encoders.semanticgan_encoder(source_of(arrays))
  assert expect_shapes(network, (1, size, size, channels)) == count


@torch_functions.needed
@pytest.mark.parametrize('layout, arch, side', (
  (TINY, 'psp_encoder', 40), (PLAIN, 'e4e_encoder', 32),
))  # fmt: skip
def test_psp_and_e4e_compute_what_pytorch_does(layout, arch, side):
  arrays = layouts.draw(layouts.psp(**layout))
  image = random_image(2, side, layout.get('channels', 3))
  is_e4e = arch == 'e4e_encoder'
  wanted = reference.psp(
    arrays, torch_functions.to_torch(image), layout['units'], is_e4e
  )
  assert_allclose(run(psp(arch)(source_of(arrays)), image), wanted, atol=1e-5)


@torch_functions.needed
@pytest.mark.parametrize('last', ('final_linear', 'final_linear.0'))
def test_residual_encoder_computes_what_pytorch_does(last):
  arrays = layouts.draw(layouts.residual(**RESIDUAL, last=last))
  image = random_image(4, 32, 3)
  image_there = torch_functions.to_torch(image)
  wanted = reference.residual(arrays, image_there, RESIDUAL['w_dim'], last)
  codes = run(encoders.semanticgan_encoder(source_of(arrays)), image)
  assert_allclose(codes, wanted, atol=1e-5)


def test_half_precision_files_become_float32():
  arrays = layouts.draw(layouts.residual(**RESIDUAL))
  halves = {key: x.astype(np.float16) for key, x in arrays.items()}
  found = arrays_of(encoders.residual(source_of(halves)).variables)
  bias = found['params']['conv_last']['bias']
  assert bias.dtype == np.float32
  assert_array_equal(bias, halves['final_conv.1.bias'])


@pytest.mark.parametrize('convert, layout, change, words', (
  (psp(), layouts.psp(**TINY), {'body.2.res_layer.4.running_var': None},
   'no e/body.2.res_layer.4.running_var'),
  (psp(), layouts.psp(**TINY), {'body.3.res_layer.1.weight': None},
   'no e/body.3.res_layer.1.weight'),
  (psp(), layouts.psp(**TINY), {'latlayer2.weight': (10, 5, 1, 1)},
   r'latlayer2.weight of shape \(10, 5, 1, 1\), expected \(10, 6, 1, 1\)'),
  (psp(), layouts.psp(**TINY), {'styles.4.convs.2.weight': None},
   'no e/styles.4.convs.2.weight'),
  (psp(), layouts.psp(**TINY), {'styles.9.convs.8.weight': (7, 7, 3, 3)},
   'styles.9.convs.8.weight'),
  (psp(), layouts.psp(**TINY), {'body.2.res_layer.5.fc2.weight': None},
   'no e/body.2.res_layer.5.fc2.weight'),
  (psp(), layouts.psp(**TINY), {'input_layer.0.weight': (5, 3, 3)},
   r'input_layer.0.weight of shape \(5, 3, 3\), expected 4 axes'),
  (psp(), layouts.psp(**TINY | dict(widths=(4, 4, 8, 8))), {},
   'body of 6 units .* in 2 stages'),
  (psp(), layouts.psp(**TINY | dict(styles=0)),
   {'linear.weight': (7, 10), 'linear.bias': (7,)},
   'an encoder without a head for each style'),
  (psp(), layouts.psp(**TINY), {'latlayer1.weight': None},
   'an encoder without a feature pyramid'),
  (psp(), layouts.fpn(**FPN), {}, 'no e/body.0.res_layer.1.weight'),
  (encoders.semanticgan_encoder, layouts.psp(**TINY), {},
   'no e/FPN_module.conv1.weight'),
  (encoders.semanticgan_encoder, layouts.fpn(**FPN | dict(styles=9)), {},
   '3, 4 and 2 heads of course_styles, medium_styles, fine_styles'),
  (encoders.semanticgan_encoder, layouts.fpn(**FPN),
   {'FPN_module.layer1.0.shortcut.0.weight': None},
   'no e/FPN_module.layer1.0.shortcut.0.weight'),
  (encoders.residual, layouts.residual((8, 6)),
   {'final_linear.weight': (2047, 128)}, '2047 outputs, expected a multiple'),
))  # fmt: skip
def test_other_files_are_refused(convert, layout, change, words):
  arrays = zeros_of(layout | {k: s for k, s in change.items() if s})
  kernels = (key for key in layout if key.endswith('kernel'))
  arrays |= dict.fromkeys(kernels, layouts.BINOMIAL)
  removed = {key for key, shape in change.items() if shape is None}
  source = source_of(
    {f'e/{key}': x for key, x in arrays.items() if key not in removed}
  )
  with pytest.raises(WeightsError, match=words) as error:
    convert(source.under('e/'))
  assert 'weights.pt' in str(error.value) and '\n' not in str(error.value)


def random_image(n, side, channels):
  rng = np.random.default_rng(1)
  return rng.uniform(-1, 1, (n, side, side, channels)).astype(np.float32)


def run(network, image):
  module = networks.module(network.arch, network.settings)
  return jax.jit(module.apply)(arrays_of(network.variables), image)
