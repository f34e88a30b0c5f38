"""Upsampling: the worked example of a lecture, PyTorch, and equivalences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from numpy.testing import assert_allclose, assert_array_equal

from jaxseg import ops
from jaxseg.nets import upsampling

# Example of a lecture on segmentation: stride 2, padding 1.
X = np.arange(16, dtype=np.float32).reshape(4, 4)
TENT = np.float32([[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]])
# The kernel, times each pixel, added at twice the pixel's place. The lecture
# prints 1.5 for 1.25 in the product of the third pixel, so its sums on the way
# are wrong in the last row; its final table is this one.
STAMPED = np.float32([
  [0, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 0.75],
  [0, 0, 0.5, 1, 1.5, 2, 2.5, 3, 1.5],
  [1, 2, 2.5, 3, 3.5, 4, 4.5, 5, 2.5],
  [2, 4, 4.5, 5, 5.5, 6, 6.5, 7, 3.5],
  [3, 6, 6.5, 7, 7.5, 8, 8.5, 9, 4.5],
  [4, 8, 8.5, 9, 9.5, 10, 10.5, 11, 5.5],
  [5, 10, 10.5, 11, 11.5, 12, 12.5, 13, 6.5],
  [6, 12, 12.5, 13, 13.5, 14, 14.5, 15, 7.5],
  [3, 6, 6.25, 6.5, 6.75, 7, 7.25, 7.5, 3.75],
])  # fmt: skip
# Sums after the third pixel of row 0, with 2.25 and 1.25 where it errs.
THREE = np.float32([
  [0, 0, 0.25, 0.5, 0.75, 1, 0.5],
  [0, 0, 0.5, 1, 1.5, 2, 1],
  [0, 0, 0.25, 0.5, 0.75, 1, 0.5],
])  # fmt: skip


def image(x):
  return jnp.asarray(x)[None, :, :, None]


def plain(x):
  return np.asarray(x)[0, :, :, 0]


def kernel(k):
  return jnp.asarray(k)[:, :, None, None]


def normal(*shape, seed=0):
  x = np.random.default_rng(seed).normal(size=shape)
  return np.asarray(x, np.float32)


def stamp_and_add(x, k, stride):
  """Transposed convolution pixel by pixel, as it is drawn on a blackboard."""
  height, width = x.shape
  size = len(k)
  y = np.zeros(((height - 1) * stride + size, (width - 1) * stride + size))
  for i in range(height):
    for j in range(width):
      y[i * stride :, j * stride :][:size, :size] += x[i, j] * k
  return y


def test_lecture_transposed_convolution():
  assert_array_equal(stamp_and_add(X, TENT, 2), STAMPED)
  assert_array_equal(stamp_and_add(X[:1, :3], TENT, 2), THREE)
  full = upsampling.conv_transpose(image(X), kernel(TENT), 2)
  assert_array_equal(plain(full), STAMPED)
  three = upsampling.conv_transpose(image(X[:1, :3]), kernel(TENT), 2)
  assert_array_equal(plain(three), THREE)
  row, column = np.mgrid[:7, :7]
  cropped = upsampling.conv_transpose(image(X), kernel(TENT), 2, 1)
  assert_array_equal(plain(cropped), 2 * row + 0.5 * column)
  assert_array_equal(plain(cropped), STAMPED[1:-1, 1:-1])


def test_lecture_equivalences():
  """Padding 1 is: a resize, zeros between and a convolution, XLA's form."""
  wanted = STAMPED[1:-1, 1:-1]
  corners = upsampling.resize(image(X), (7, 7), align_corners=True)
  assert_array_equal(plain(corners), wanted)
  half_pixel = upsampling.resize(image(X), (7, 7))
  assert np.abs(plain(half_pixel) - wanted).max() > 0.2
  nails = plain(upsampling.bed_of_nails(image(X), 2))[:7, :7]
  table = np.zeros((7, 7))
  table[::2, ::2] = X
  assert_array_equal(nails, table)
  padded = np.pad(nails, 1)
  by_hand = sum(
    TENT[i, j] * padded[i : i + 7, j : j + 7]
    for i in range(3)
    for j in range(3)
  )
  assert_array_equal(by_hand, wanted)
  y = upsampling.conv_fractional(image(X), kernel(TENT), 2, 1)
  assert_array_equal(plain(y), wanted)
  y = jax.lax.conv_general_dilated(
    image(X), kernel(TENT), (1, 1), ((1, 1), (1, 1)), (2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )  # fmt: skip
  assert_array_equal(plain(y), wanted)


def test_lecture_asymmetric_kernels_turn():
  """The stamp is the kernel itself; the convolution's is turned."""
  k = np.arange(9, dtype=np.float32).reshape(3, 3)
  y = plain(upsampling.conv_transpose(image(X), kernel(k), 2))
  assert_array_equal(y, stamp_and_add(X, k, 2))
  assert_array_equal(y[0, :5], [0, 0, 0, 1, 2 + 2 * 0])
  turned = plain(upsampling.conv_transpose(image(X), kernel(k[::-1, ::-1]), 2))
  assert_array_equal(turned[0, :5], [0, 0, 8, 7, 22])


def test_lecture_nearest_and_bed_of_nails():
  y = plain(upsampling.nearest(image(X), 2))
  assert_array_equal(y, X.repeat(2, 0).repeat(2, 1))
  y = plain(upsampling.bed_of_nails(image(X), 3))
  assert y.shape == (12, 12)
  assert_array_equal(y[::3, ::3], X)
  assert y.sum() == X.sum()


def test_bilinear_kernels():
  assert_allclose(upsampling.tent(2), [0.25, 0.75, 0.75, 0.25])
  assert_allclose(upsampling.tent(3), np.array([1, 2, 3, 2, 1]) / 3, rtol=1e-6)
  assert_allclose(upsampling.tent(4)[:4], [0.125, 0.375, 0.625, 0.875])
  assert_allclose(upsampling.tent(8)[:8], np.arange(1, 16, 2) / 16)
  for factor in (2, 3, 4, 8):
    taps = upsampling.tent(factor)
    assert_allclose(taps, taps[::-1])
    assert_allclose(taps.sum(), factor, rtol=1e-6)
    dense = upsampling.bilinear_kernel(factor, 2)
    assert_allclose(dense[:, :, 1, 1], np.outer(taps, taps))
    assert not dense[:, :, 0, 1].any()


@pytest.mark.parametrize('factor', (2, 3, 4, 8))
def test_half_pixel_resize_is_bilinear_transposition(factor):
  """Zeros around darken the border; copies of the border pixels do not."""
  x, crop = normal(2, 5, 4, 3), factor // 2
  wanted = jax.image.resize(x, (2, 5 * factor, 4 * factor, 3), 'bilinear')
  k = jnp.asarray(upsampling.bilinear_kernel(factor, 3))
  y = upsampling.conv_transpose(x, k, factor, crop)
  inside = np.s_[:, crop:-crop, crop:-crop]
  assert_allclose(y[inside], wanted[inside], atol=1e-6)
  assert np.abs(y - wanted).max() > 0.1
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), 'edge')
  y = upsampling.conv_transpose(padded, k, factor, crop + factor)
  assert_allclose(y, wanted, atol=1e-6)


def test_border_of_half_pixel_transposition():
  k = kernel(np.outer(upsampling.tent(2), upsampling.tent(2)))
  y = plain(upsampling.conv_transpose(image(X), k, 2, 1))
  assert_allclose(y[0, :3], [0, 0.1875, 0.5625])
  y = plain(upsampling.resize(image(X), (8, 8)))
  assert_allclose(y[0, :3], [0, 0.25, 0.75])


@pytest.mark.parametrize('factor', (2, 3, 8))
@pytest.mark.parametrize('padding', (0, 1))
def test_fixed_interpolation_is_the_convolution(factor, padding):
  x = normal(2, 3, 5, 2)
  k = jnp.asarray(upsampling.bilinear_kernel(factor, 2))
  assert_allclose(
    upsampling.interpolate_transposed(jnp.asarray(x), factor, padding),
    upsampling.conv_transpose(x, k, factor, padding),
    atol=1e-6,
  )


@t.needed
@pytest.mark.parametrize(
  'size, align',
  (
    ((7, 9), True), ((1, 5), True), ((3, 2), True), ((8, 10), True),
    ((8, 10), False), ((12, 5), False), ((7, 9), False), ((3, 2), False),
  ),
)  # fmt: skip
def test_resize_as_torch(size, align):
  x = normal(2, 4, 5, 3)
  wanted = t.F.interpolate(
    t.to_torch(x), size, mode='bilinear', align_corners=align
  )
  y = upsampling.resize(jnp.asarray(x), size, align)
  assert_allclose(y, t.from_torch(wanted), atol=1e-6)


# kernel size, stride, padding, output padding
TRANSPOSED = (
  (2, 2, 0, 0), (3, 2, 1, 1), (4, 2, 1, 0), (4, 2, 0, 1), (3, 1, 1, 0),
  (5, 3, 0, 2), (2, 3, 0, 0), (8, 4, 2, 0),
)  # fmt: skip


@t.needed
@pytest.mark.parametrize('implementation', ('fast', 'lax'))
@pytest.mark.parametrize('k, stride, padding, extra', TRANSPOSED)
def test_conv_transpose_as_torch(k, stride, padding, extra, implementation):
  """Values, and gradients of both arguments."""
  x, w = normal(2, 5, 4, 3), normal(k, k, 3, 2, seed=1)
  args = [t.to_torch(x), t.tensor(w).permute(2, 3, 0, 1).contiguous()]
  for arg in args:
    arg.requires_grad_()
  wanted = t.F.conv_transpose2d(
    *args, stride=stride, padding=padding, output_padding=extra
  )
  g = normal(*t.from_torch(wanted).shape, seed=2)
  wanted.backward(t.to_torch(g))

  @jax.jit
  def run(x, w, g):
    y, pull = jax.vjp(
      lambda x, w: upsampling.conv_transpose(x, w, stride, padding, extra), x, w
    )
    return y, *pull(g)

  with ops.implementation(implementation):
    y, dx, dw = run(x, w, g)
  assert_allclose(y, t.from_torch(wanted), atol=1e-5)
  assert_allclose(dx, t.from_torch(args[0].grad), atol=1e-5)
  assert_allclose(dw, args[1].grad.permute(2, 3, 0, 1), atol=1e-4)


@pytest.mark.parametrize('k, stride, padding', ((3, 2, 1), (4, 3, 0)))
def test_fractional_stride_is_transposition(k, stride, padding):
  x, w = normal(2, 4, 5, 3), normal(k, k, 3, 2, seed=1)
  assert_allclose(
    upsampling.conv_fractional(x, w, stride, padding),
    upsampling.conv_transpose(x, w, stride, padding),
    atol=1e-5,
  )


def loop_unpool(x):
  """Pool and unpool in plain Python: maxima in place, zeros elsewhere."""
  n, height, width, channels = x.shape
  y = np.zeros_like(x)
  for index in np.ndindex(n, -(-height // 2), -(-width // 2), channels):
    a, i, j, c = index
    window = x[a, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
    row, column = np.unravel_index(window.argmax(), window.shape)
    y[a, 2 * i + row, 2 * j + column, c] = window.max()
  return y


@t.needed
@pytest.mark.parametrize('size', ((6, 4), (5, 7), (1, 2)))
def test_max_pooling_and_unpooling_as_torch(size):
  """Also the gradients, and of equal values the first."""
  x = np.round(normal(2, *size, 3) * 2)
  x_torch = t.to_torch(x).requires_grad_()
  pooled_torch, indices_torch = t.F.max_pool2d(
    x_torch, 2, ceil_mode=True, return_indices=True
  )
  unpooled_torch = t.F.max_unpool2d(
    pooled_torch, indices_torch, 2, output_size=size
  )
  g = normal(2, *size, 3, seed=1)
  unpooled_torch.backward(t.to_torch(g))

  def run(x):
    pooled, indices = upsampling.max_pool_with_indices(x)
    flat = upsampling.flat_indices(indices, size)
    return upsampling.max_unpool(pooled, indices, size), (pooled, flat)

  @jax.jit
  def all_of(x, g):
    y, pull, aux = jax.vjp(run, x, has_aux=True)
    return y, *aux, *pull(g)

  y, pooled, flat, dx = all_of(x, g)
  assert_array_equal(pooled, t.from_torch(pooled_torch))
  assert_array_equal(flat, t.from_torch(indices_torch))
  assert_array_equal(y, t.from_torch(unpooled_torch))
  assert_array_equal(y, loop_unpool(x))
  assert y.sum() == pooled.sum()
  assert_array_equal(dx, t.from_torch(x_torch.grad))


@t.needed
def test_max_pooling_keeps_nan_and_infinities():
  x = normal(1, 4, 4, 1)
  x[0, :2, :2, 0] = [[1, np.nan], [3, 2]]
  x[0, 2:, 2:, 0] = -np.inf
  x[0, :2, 2:, 0] = [[np.nan, 5], [3, 2]]
  pooled, _ = upsampling.max_pool_with_indices(jnp.asarray(x))
  wanted = t.F.max_pool2d(t.to_torch(x), 2)
  assert_array_equal(pooled, t.from_torch(wanted))


def test_unpooling_refuses_another_size():
  x = jnp.zeros((1, 2, 2, 1))
  with pytest.raises(ValueError, match=r'unpooled to \(5, 4\)'):
    upsampling.max_unpool(x, x.astype(jnp.int8), (5, 4))


@pytest.mark.parametrize('k, stride', ((4, 2), (3, 2), (2, 2), (5, 3), (8, 4)))
def test_layer_multiplies_the_size(k, stride):
  layer = upsampling.ConvTranspose(2, k, stride, 'normal')
  y, variables = jax.eval_shape(
    layer.init_with_output, jax.random.key(0), normal(1, 3, 5, 4)
  )
  assert y.shape == (1, 3 * stride, 5 * stride, 2)
  shapes = jax.tree.map(lambda p: p.shape, variables['params'])
  assert shapes == {'kernel': (k, k, 4, 2), 'bias': (2,)}


def test_layer_starts_as_interpolation():
  x = jnp.asarray(normal(1, 3, 5, 4))
  layer = upsampling.ConvTranspose(4, 4, 2)
  y, _ = layer.init_with_output(jax.random.key(0), x)
  assert_allclose(
    y, upsampling.interpolate_transposed(x, 2, 1), atol=1e-6
  )  # fmt: skip
  y, variables = upsampling.ConvTranspose(
    4, 4, 2, padding=0, use_bias=False, dtype=jnp.bfloat16
  ).init_with_output(jax.random.key(0), x)
  assert (y.shape, y.dtype) == ((1, 8, 12, 4), jnp.bfloat16)
  assert set(variables['params']) == {'kernel'}
  assert variables['params']['kernel'].dtype == jnp.float32


def test_normal_initialisation_keeps_the_variance():
  x = normal(4, 16, 16, 64)
  for k in (2, 4):
    layer = upsampling.ConvTranspose(64, k, 2, 'normal')
    y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    assert_allclose(y[:, 2:-2, 2:-2].std(), 1, atol=0.05)


@pytest.mark.parametrize(
  'arguments, message',
  (
    ((3, 4, 2), r'needs a kernel \(4, 4, 4, 4\), not \(4, 4, 4, 3\)'),
    ((4, 2, 2), r'needs a kernel \(4, 4, 4, 4\), not \(2, 2, 4, 4\)'),
    (
      (4, 4, 2, 'cubic'),
      "'cubic', must be one of bilinear, normal",
    ),
  ),
)
def test_layer_refuses_initialisations(arguments, message):
  with pytest.raises(ValueError, match=message):
    upsampling.ConvTranspose(*arguments).init(
      jax.random.key(0), normal(1, 3, 3, 4)
    )
