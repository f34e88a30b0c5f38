"""Which images batch normalisation sees together."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxseg.methods import segmenting
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer


def make(**net):
  return segmenting.segmenter(
    num_classes=3, resolution=8, channels=1, total_steps=1,
    net=Net(width=8, depth=1, **net), optimizer=Optimizer(),
  )  # fmt: skip


def run(seg, images, split):
  params, stats = segmenting.init(seg, jax.random.key(0))

  def everything(params, stats):
    key = jax.random.key(1)
    whole = segmenting.train_logits(seg, params, stats, images, key, split)
    features, after = segmenting.train_encode(
      seg, params, stats, images, key, split
    )
    halves = segmenting.train_decode(
      seg, params, after, features, images.shape[1:3], key, split
    )
    return whole, halves

  return jax.jit(everything)(params, stats)


@pytest.mark.parametrize('norm, joint', (
  ('batch', False), ('batch', True), ('group', False),
))  # fmt: skip
def test_batch_norm_of_each_kind_by_itself(norm, joint):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
  images[2:] = 3 * images[2:] + 1
  seg = make(norm=norm, joint_norm=joint)
  (logits, stats), (by_halves, _) = run(seg, images, (2,))
  assert_allclose(logits, by_halves, atol=1e-5)
  (together, together_stats), _ = run(seg, images, ())
  first = run(seg, images[:2], ())[0]
  rest = run(seg, images[2:], ())[0]
  alone = np.concatenate([first[0], rest[0]])
  if norm == 'group':
    assert_allclose(alone, together, atol=1e-5)  # images never meet
  else:
    assert np.abs(alone - together).max() > 0.1
  assert_allclose(logits, together if joint else alone, atol=1e-5)
  if norm == 'batch' and not joint:
    # Each kind moves the average by a tenth, labelled images first.
    initial = segmenting.init(seg, jax.random.key(0))[1]
    wanted = jax.tree.map(
      lambda a, b, c: 0.9 * b + (c - 0.9 * a), initial, first[1], rest[1]
    )
    jax.tree.map(lambda *x: assert_allclose(*x, atol=1e-4), stats, wanted)
  else:
    jax.tree.map(
      lambda *x: assert_allclose(*x, atol=1e-4), stats, together_stats
    )
