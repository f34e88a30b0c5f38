"""GCT's targets and losses: published numbers, SciPy's, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from jaxseg.losses import flaws
from jaxseg.losses.segmentation import VOID

SIDE, K = 32, 3


@pytest.fixture(scope='module')
def published(shared):
  folder = shared / 'golden' / 'baselines'
  arrays = dict(np.load(folder / 'gct_targets.npz'))
  for key, value in arrays.items():
    if value.ndim == 4 and not key.startswith('k_'):
      value = np.transpose(value, (0, 2, 3, 1))
      arrays[key] = value[..., 0] if value.shape[-1] == 1 else value
  return arrays


def by_name(published, name):
  return published[f'{name}_l'], published[f'{name}_r']


@pytest.mark.parametrize(
  ('name', 'size'), [('k_handler', 5), ('k_blur', 9), ('k_reblur', 17)]
)
def test_published_kernels(published, name, size):
  kernel = flaws.gaussian_kernel(size)
  assert_allclose(np.outer(kernel, kernel), published[name][0, 0], atol=1e-8)


def test_published_target(published):
  found = flaws.target(published['pred_l'], published['y'])
  assert_allclose(found, published['flawmap_gt'], atol=1e-4)


@pytest.mark.parametrize('side', 'lr')
def test_published_handling(published, side):
  wanted = published[f'handled_{side}']
  found = flaws.handle(published[f'raw_{side}'], shift_none=True)
  assert_allclose(found, wanted, atol=1e-4)
  # The one map without flaw is the only difference of the default.
  none = wanted.max((1, 2)) < 0
  assert none.any() == (side == 'r')
  found = flaws.handle(published[f'raw_{side}'])
  assert_array_equal(found[none], 0)
  assert_allclose(found[~none], wanted[~none], atol=1e-4)


def test_published_losses(published):
  predictions = by_name(published, 'pred')
  handled = by_name(published, 'handled')
  where = flaws.both_flawed(handled)
  assert_array_equal(where, published['both_bad'])
  loss = flaws.correction_loss(published['raw_l'], where)
  assert_allclose(loss, published['fc_loss_l'], rtol=1e-5)
  targets = flaws.consistency_targets(predictions, handled)
  for found, p, side in zip(targets, predictions, 'lr', strict=True):
    assert_array_equal(found, published[f'dc_gt_{side}'])
    loss = flaws.consistency_loss(p, found)
    assert_allclose(loss, published[f'dc_loss_{side}'], rtol=1e-5)


@pytest.mark.parametrize('size', (1, 3, 4, 9))
def test_blur_is_scipy(size):
  x = np.random.default_rng(0).normal(size=(2, 12, 15)).astype(np.float32)
  kernel = flaws.gaussian_kernel(size | 1)
  assert_allclose(kernel.sum(), 1, rtol=1e-12)
  assert_allclose(kernel, kernel[::-1], rtol=1e-12)
  wanted = [
    ndimage.correlate(image, np.outer(kernel, kernel), mode='mirror')
    for image in x
  ]
  assert_allclose(flaws.blur(x, size), wanted, atol=1e-6)


@pytest.fixture
def drawn():
  """(probabilities, label) of blocks, one image with void."""
  rng = np.random.default_rng(3)
  p = rng.dirichlet(np.ones(K), (3, 8, 8)).repeat(4, 1).repeat(4, 2)
  label = rng.integers(0, K, (3, SIDE, SIDE)).astype(np.int32)
  label[1, :12] = VOID
  return p.astype(np.float32), label


def in_scipy(p, label, mu, nu, void):
  """One image's target; `void`: the difference of void pixels."""
  flaw = np.zeros(label.shape)
  for i, j in np.ndindex(label.shape):
    truth = np.arange(K) == label[i, j]
    flaw[i, j] = mu * np.abs(p[i, j] - truth).sum()
  flaw[label == VOID] = void
  blur = lambda x, size: ndimage.correlate(
    x, np.outer(flaws.gaussian_kernel(size), flaws.gaussian_kernel(size)),
    mode='mirror',
  )  # fmt: skip
  flaw = blur(flaw, 5)  # 32 / 8, made odd
  for _ in range(nu):
    flaw = blur(ndimage.grey_dilation(flaw, (3, 3), mode='mirror'), 9)
  return (flaw - flaw.min()) / (flaw.max() - flaw.min())


@pytest.mark.parametrize(('mu', 'nu'), [(0.5, 1), (0.5, 0), (0.2, 2)])
@pytest.mark.parametrize('void_as_flaw', (False, True))
def test_target_is_scipy(drawn, mu, nu, void_as_flaw):
  p, label = drawn
  found = flaws.target(p, label, mu=mu, nu=nu, void_as_flaw=void_as_flaw)
  void = mu if void_as_flaw else 0
  wanted = [in_scipy(*x, mu, nu, void) for x in zip(p, label, strict=True)]
  assert_allclose(found, wanted, atol=2e-5)
  assert found.min() == 0 and found.max() == 1


def test_target_of_void_does_not_depend_on_the_prediction(drawn):
  p, label = drawn
  other = p.copy()
  other[label == VOID] = (1, 0, 0)
  assert np.abs(other - p).max() > 0.5
  for void_as_flaw in (False, True):
    first, second = (
      flaws.target(q, label, void_as_flaw=void_as_flaw) for q in (p, other)
    )
    assert_allclose(first, second, atol=1e-5)


def test_a_perfect_or_unlabelled_image_has_no_flaw():
  label = np.random.default_rng(0).integers(0, K, (2, SIDE, SIDE))
  perfect = np.eye(K, dtype=np.float32)[label]
  assert_array_equal(flaws.target(perfect, label), 0)
  void = np.full_like(label, VOID)
  for void_as_flaw in (False, True):
    found = flaws.target(perfect, void, void_as_flaw=void_as_flaw)
    assert_array_equal(found, 0)


def test_target_has_no_gradient(drawn):
  p, label = drawn
  gradient = jax.grad(lambda p: flaws.target(p, label).sum())(p)
  assert_array_equal(gradient, 0)
  gradient = jax.grad(lambda x: flaws.handle(x).sum())(3 * p[..., 0])
  assert_array_equal(gradient, 0)


def test_handling_by_hand():
  flaw = np.zeros((4, 16, 16), np.float32)
  flaw[0, :8] = 2.0  # half of the image
  flaw[0, 8:] = -1.0
  flaw[1, :8] = 0.05  # too little
  flaw[2] = 5.0  # everywhere alike: nothing stands out
  flaw[3] = -5.0
  found = np.asarray(flaws.handle(flaw))
  assert_allclose(found[0, :8], 1)  # 16 / 16 pixels: not blurred
  assert_array_equal(found[0, 8:], 0)
  assert_array_equal(found[1:], 0)
  # Below `smallest` the map is nothing; a smaller one keeps it.
  kept = flaws.handle(flaw[1:2], smallest=0.01)
  assert_allclose(kept[0, :8], 1)


def test_targets_by_hand():
  """Pixels: r better, l better, equal, both too bad, one too bad."""
  first = jnp.asarray([0.5, 0.1, 0.3, 0.7, 0.9]).reshape(1, 1, 5)
  second = jnp.asarray([0.2, 0.4, 0.3, 0.9, 0.6]).reshape(1, 1, 5)
  p = jnp.zeros((1, 1, 5, K)), jnp.ones((1, 1, 5, K))
  for_first, for_second = flaws.consistency_targets(p, (first, second))
  assert_array_equal(for_first[0, 0, :, 0], [1, 0, 0, 0, 1])
  assert_array_equal(for_second[0, 0, :, 0], [1, 0, 1, 1, 1])
  assert_array_equal(flaws.both_flawed((first, second))[0, 0], [0, 0, 0, 1, 0])


def test_only_the_worse_model_learns():
  rng = np.random.default_rng(0)
  p = tuple(
    rng.dirichlet(np.ones(K), (2, 4, 4)).astype(np.float32) for _ in range(2)
  )
  handled = tuple(
    rng.uniform(size=(2, 4, 4)).astype(np.float32) for _ in range(2)
  )

  def loss(p):
    targets = flaws.consistency_targets(p, handled)
    return [flaws.consistency_loss(*x) for x in zip(p, targets, strict=True)]

  gradients = jax.grad(lambda p: sum(loss(p)))(p)
  bad = [np.where(h > 0.6, 1, h) for h in handled]
  for gradient, own, other, q, better in zip(
    gradients, bad, bad[::-1], p, p[::-1], strict=True
  ):
    wanted = 2 * (q - better) * (own > other)[..., None] / q.size
    assert_allclose(gradient, wanted, atol=1e-7)
    assert 0 < (own > other).mean() < 1


def test_correction_counts_all_pixels_but_moves_flawed_ones():
  flaw = jnp.asarray([[[1.0, -2.0], [3.0, 4.0]]])
  where = jnp.asarray([[[1.0, 1.0], [0.0, 0.0]]])
  assert_allclose(flaws.correction_loss(flaw, where), (1 + 4) / 4)
  gradient = jax.grad(flaws.correction_loss)(flaw, where)
  assert_allclose(gradient, [[[0.5, -1], [0, 0]]])


def test_detection_loss_leaves_out_what_does_not_count():
  flaw = jnp.asarray([[[1.0, 2.0], [0.5, 9.0]]])
  target = jnp.asarray([[[0.0, 1.0], [0.5, 0.0]]])
  counted = jnp.asarray([[[1.0, 1.0], [1.0, 0.0]]])
  assert_allclose(flaws.detection_loss(flaw, target, counted), 2 / 3, rtol=1e-6)
  none = jnp.zeros_like(counted)
  assert flaws.detection_loss(flaw, target, none) == 0
  gradient = jax.grad(flaws.detection_loss)(flaw, target, none)
  assert_array_equal(gradient, 0)
