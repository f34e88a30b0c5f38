"""Cross entropy on few pixels: against NumPy and PyTorch's definition."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.losses import partial, segmentation


@pytest.fixture
def scribbled():
  """(logits, label): a scribble, a click, and an image without any."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 4, 5, 3)).astype(np.float32)
  label = np.full((3, 4, 5), 255, np.int32)
  label[0, 1, :4] = [0, 0, 1, 2]
  label[1, 2, 2] = 1
  return logits, label


def losses_by_image(logits, label):
  """For each image -log p of each labelled pixel, one by one."""
  found = []
  for scores, ids in zip(logits.astype(np.float64), label, strict=True):
    log = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    found.append([-log[y, x][ids[y, x]] for y, x in np.argwhere(ids < 255)])
  return found


def test_by_hand(scribbled):
  by_image = losses_by_image(*scribbled)
  pixels = sum(by_image, [])
  means = [np.mean(x) if x else 0.0 for x in by_image]
  for normalize, wanted in (
    ('labelled', np.mean(pixels)), ('image', np.mean(means)),
    ('pixel', np.sum(pixels) / 60), ('sum', np.sum(pixels)),
  ):  # fmt: skip
    found = partial.cross_entropy(*scribbled, normalize)
    assert_allclose(found, wanted, rtol=1e-5, err_msg=normalize)


def test_labelled_is_cross_entropy_with_void(scribbled):
  found, gradient = jax.value_and_grad(partial.cross_entropy)(*scribbled)
  wanted, other = jax.value_and_grad(segmentation.cross_entropy)(*scribbled)
  assert_allclose(found, wanted, rtol=1e-6)
  assert_allclose(gradient, other, atol=1e-7)
  assert not np.any(gradient[scribbled[1] == 255])


@pytest.mark.parametrize('normalize', partial.NORMALIZERS)
def test_nothing_labelled_costs_nothing(scribbled, normalize):
  logits, label = scribbled
  found, gradient = jax.value_and_grad(partial.cross_entropy)(
    logits[2:], label[2:], normalize
  )
  assert found == 0 and not np.any(gradient)


def test_another_normaliser_is_refused(scribbled):
  with pytest.raises(ValueError, match='must be one of labelled, image'):
    partial.cross_entropy(*scribbled, 'mean')
