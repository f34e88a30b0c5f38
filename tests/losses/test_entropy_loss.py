"""Entropy and maximum squares: SciPy, PyTorch, finite differences, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose

from jaxseg.losses import entropy

uncertainty = jax.jit(entropy.uncertainty, static_argnums=1)
gradient = jax.jit(jax.value_and_grad(entropy.uncertainty), static_argnums=1)


@pytest.fixture
def logits():
  rng = np.random.default_rng(0)
  return (3 * rng.normal(size=(2, 3, 4, 5))).astype(np.float32)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_shannon_is_scipys(logits):
  wanted = scipy.stats.entropy(softmax(logits.astype(np.float64)), axis=-1)
  assert_allclose(entropy.shannon(logits), wanted, rtol=1e-5, atol=1e-6)
  assert_allclose(uncertainty(logits), wanted.mean(), rtol=1e-5)
  normalized = scipy.stats.entropy(softmax(logits), base=5, axis=-1)
  assert_allclose(
    uncertainty(logits, 'normalized'), normalized.mean(), rtol=1e-5
  )


def test_max_square_is_the_papers_sum(logits):
  # Chen et al.: -1 / (2 N) sum_n sum_c p_nc^2.
  p = softmax(logits.astype(np.float64)).reshape(-1, 5)
  wanted = -sum(v**2 for row in p for v in row) / (2 * len(p))
  assert_allclose(uncertainty(logits, 'max_square'), wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ('kind', 'flat', 'sure'),
  [
    ('shannon', np.log(4), 0.0),
    ('normalized', 1.0, 0.0),
    ('max_square', -1 / 8, -1 / 2),
  ],
)
def test_the_range_is_from_one_class_to_all_alike(kind, flat, sure):
  even = jnp.zeros((1, 2, 2, 4))
  one = jnp.where(jnp.arange(4) == 2, 200.0, 0.0) * jnp.ones((1, 2, 2, 1))
  assert_allclose(uncertainty(even, kind), flat, rtol=1e-6)
  assert_allclose(uncertainty(one, kind), sure, atol=1e-6)


@pytest.mark.parametrize('kind', entropy.KINDS)
def test_gradients_are_pytorchs(logits, kind):
  torch = pytest.importorskip('torch')
  x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
  if kind == 'max_square':
    value = -0.5 * torch.softmax(x, -1).square().sum(-1).mean()
  else:
    value = torch.distributions.Categorical(logits=x).entropy().mean()
    value = value / (np.log(5) if kind == 'normalized' else 1)
  value.backward()
  found, grad = gradient(logits, kind)
  assert_allclose(found, value.item(), rtol=1e-5)
  assert_allclose(grad, x.grad.numpy(), atol=1e-7)


@pytest.mark.parametrize('kind', entropy.KINDS)
def test_only_valid_pixels_count(logits, kind):
  valid = np.zeros((2, 3, 4), bool)
  valid[0, 1, :3] = valid[1, 2, 0] = True
  wanted = np.mean(
    [
      uncertainty(logits[i][None, None, None], kind)
      for i in zip(*valid.nonzero(), strict=True)
    ]
  )
  assert_allclose(uncertainty(logits, kind, valid), wanted, rtol=1e-5)
  grad = np.asarray(gradient(logits, kind, valid)[1])
  assert_allclose(grad[~valid], 0)
  assert np.abs(grad[valid]).max() > 1e-4
  none = gradient(logits, kind, 0 * valid)
  assert none[0] == 0 and not np.asarray(none[1]).any()


def test_a_step_down_the_gradient_decides(logits):
  before = softmax(logits).max(-1).mean()
  grad = gradient(logits)[1]
  assert softmax(logits - 5 * np.asarray(grad)).max(-1).mean() > before


def test_extreme_logits_stay_finite():
  x = jnp.array([[[[1e4, -1e4, 0.0], [-jnp.inf, 0.0, 0.0]]]])
  assert_allclose(entropy.shannon(x)[0, 0], [0, np.log(2)], atol=1e-6)
  grad = gradient(x[:, :, :1])[1]
  assert np.isfinite(grad).all()


def test_another_kind_is_refused(logits):
  with pytest.raises(ValueError, match='renyi'):
    entropy.uncertainty(logits, 'renyi')
