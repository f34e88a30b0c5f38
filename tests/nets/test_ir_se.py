"""pSp's and e4e's networks, against sums by hand and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from torch_functions import random_variables

from jaxseg.nets.encoder import Encoder, ResidualEncoder
from jaxseg.nets.ir_se import E4EEncoder, PSPEncoder, Unit

TINY = dict(
  input_size=32, w_dim=3, num_styles=8, units=(1, 1, 1, 1), widths=(2, 3, 4, 5),
  stem_width=2, se_widths=(1, 0, 2, 1),
)  # fmt: skip
IMAGE = jnp.zeros((2, 32, 32, 3))


def conv_by_hand(x, kernel, stride):
  """3x3 with one zero on each side."""
  n, h, w, _ = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows, columns = range(0, h, stride), range(0, w, stride)
  y = np.zeros((n, len(rows), len(columns), kernel.shape[-1]))
  for i, row in enumerate(rows):
    for j, column in enumerate(columns):
      window = padded[:, row : row + 3, column : column + 3]
      y[:, i, j] = np.tensordot(window, kernel, 3)
  return y


def test_unit_by_hand():
  x = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
  unit = Unit(3, stride=2, se_width=2)
  variables = random_variables(unit, x, False)
  p, stats = variables['params'], variables['batch_stats']

  def norm(x, name):
    mean, var = stats[name]['mean'], stats[name]['var']
    return (x - mean) / np.sqrt(var + 1e-5) * p[name]['scale'] + p[name]['bias']

  y = conv_by_hand(norm(x, 'norm1'), p['conv1']['kernel'], 1)
  y = np.maximum(y, 0) + p['prelu']['slope'] * np.minimum(y, 0)
  y = norm(conv_by_hand(y, p['conv2']['kernel'], 2), 'norm2')
  hidden = y.mean((1, 2)) @ p['se']['squeeze']['kernel'][0, 0]
  gate = np.maximum(hidden, 0) @ p['se']['excite']['kernel'][0, 0]
  y = y / (1 + np.exp(-gate))[:, None, None]
  wanted = y + x[:, ::2, ::2]
  got = jax.jit(unit.apply, static_argnums=2)(variables, x, False)
  assert_allclose(got, wanted, atol=1e-5)


def test_e4e_adds_the_first_style_to_the_others():
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 1))
  image = image.astype(np.float32)
  variables = random_variables(PSPEncoder(**TINY), image)
  psp, e4e = jax.jit(
    lambda v, x: (
      PSPEncoder(**TINY).apply(v, x),
      E4EEncoder(**TINY).apply(v, x),
    )
  )(variables, image)
  assert psp.shape == (2, 8, 3)
  assert_array_equal(e4e[:, 0], psp[:, 0])
  assert_allclose(e4e[:, 1:], psp[:, 1:] + psp[:, :1], atol=1e-6)


@pytest.mark.parametrize('encoder, settings', (
  (PSPEncoder, TINY), (E4EEncoder, TINY),
  (ResidualEncoder, dict(resolution=32, w_dim=3, channel_max=4)),
))  # fmt: skip
def test_precision_and_memory_leave_the_variables_alone(encoder, settings):
  variables = shapes(encoder(**settings))
  other = encoder(**settings, dtype=jnp.bfloat16, remat=True)
  assert shapes(other) == variables
  codes, _ = jax.eval_shape(
    lambda: other.init_with_output(jax.random.key(0), IMAGE, train=True)
  )
  assert codes.shape[2] == 3 and codes.dtype == jnp.float32


def test_training_averages_statistics():
  encoder = PSPEncoder(**TINY)
  variables = random_variables(encoder, IMAGE)
  image = jax.random.normal(jax.random.key(0), IMAGE.shape)
  stem = lambda v: v['batch_stats']['body']['norm_stem']['mean']
  step = lambda v, x: encoder.apply(v, x, train=True, mutable=['batch_stats'])
  _, updated = jax.jit(step)(variables, image)
  assert not np.allclose(stem(updated), stem(variables))


@pytest.mark.parametrize('depths, side, limit', (
  ((4, 5, 6), 257, 256), ((4, 5, 5), 256, 128), (None, 64, 32),
))  # fmt: skip
def test_images_that_are_too_large(depths, side, limit):
  encoder = PSPEncoder(**TINY, head_depths=depths)
  image = jnp.zeros((1, 8, side, 3))
  with pytest.raises(ValueError, match=f'8x{side} .* up to {limit}x{limit}'):
    jax.eval_shape(encoder.init, jax.random.key(0), image)


def test_images_that_are_too_large_for_a_feature_pyramid():
  encoder = Encoder(64, 4, width=8, features=8, head_depths=(1, 2, 3))
  with pytest.raises(ValueError, match='32x64 .* up to 32x32'):
    jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 32, 64, 3)))


def shapes(encoder):
  variables = jax.eval_shape(encoder.init, jax.random.key(0), IMAGE)
  return jax.tree.map(lambda x: (x.shape, x.dtype), variables)
