"""Constraints of boxes: worked by hand, in loops, and what they lead to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose

from jaxseg.data import weak
from jaxseg.errors import UserError
from jaxseg.losses import boxes
from jaxseg.losses.boxes import Boxes


@pytest.fixture
def boxed():
  """(logits [2, 8, 8, 3], labels of boxes of two classes; none)."""
  label = np.stack(
    [
      weak.draw_boxes([(1, 0, 0, 4, 5), (2, 4, 4, 8, 8)], (8, 8), 1),
      weak.draw_boxes([], (8, 8), 1),
    ]
  ).astype(np.int32)
  logits = np.random.default_rng(0).normal(size=(2, 8, 8, 3))
  return logits.astype(np.float32), label


@pytest.mark.parametrize('cut', [0, 1, 2])
def test_in_loops(boxed, cut):
  """Of a cut image too, whose boxes reach its left and upper border."""
  logits, label = (x[:, cut:, cut:] for x in boxed)
  p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  bags, filled, other, outside = [], [], [], []
  for image, ids in zip(p, label, strict=True):
    outside += [-np.log(image[y, x, 0]) for y, x in np.argwhere(ids == 0)]
    for k in (1, 2):
      inside = [(y, x) for y, x in np.argwhere(ids == k)]
      if not inside:
        continue
      for axis in (0, 1):
        for line in {at[axis] for at in inside}:
          of_line = [at for at in inside if at[axis] == line]
          if not {at[1 - axis] for at in of_line} & {0, len(ids) - 1}:
            bags.append(-np.log(max(image[at][k] for at in of_line)))
      part = np.mean([image[at][k] for at in inside])
      filled.append(max(0, 0.5 - part) ** 2 + max(0, part - 0.6) ** 2)
      other += [-np.log(image[at][0] + image[at][k]) for at in inside]
  settings = Boxes(1.0, 0.5, 2.0, 3.0, smallest=0.5, largest=0.6)
  total, found = boxes.constraints(logits, label, settings)
  wanted = {'outside': outside, 'tight': bags, 'size': filled, 'other': other}
  for name, values in wanted.items():
    assert_allclose(found[name], np.mean(values), rtol=1e-5, err_msg=name)
  sums = [getattr(settings, n) * np.mean(v) for n, v in wanted.items()]
  assert_allclose(total, sum(sums), rtol=1e-5)


def test_the_mask_of_an_ellipse_satisfies_them():
  y, x = np.mgrid[:16, :16]
  ellipse = ((y - 8) / 5.5) ** 2 + ((x - 8) / 4.5) ** 2 < 1
  found = weak.boxes(ellipse.astype(np.uint8), 2)
  label = weak.draw_boxes(found, (16, 16), 1)[None].astype(np.int32)
  logits = lambda mask: 20.0 * jnp.stack([~mask, mask], -1)[None].astype(float)
  good, _ = boxes.constraints(logits(ellipse), label, Boxes())
  assert good < 1e-3
  none, terms = boxes.constraints(logits(ellipse & False), label, Boxes())
  assert terms['tight'] > 1 and terms['size'] > 0.01
  full, terms = boxes.constraints(logits(~(ellipse & False)), label, Boxes())
  assert terms['outside'] > 1 and terms['tight'] < 1e-3
  assert good < 0.1 * min(none, full)


def test_of_a_cut_box_the_cut_lines_say_nothing():
  """An L whose upright is cut off: its box's upper rows are empty."""
  shape = np.zeros((12, 12), np.uint8)
  shape[2:10, 2:4], shape[8:10, 2:10] = 1, 1
  label = weak.draw_boxes(weak.boxes(shape, 2), (12, 12), 1)
  p, inside = (x[None, ..., None].astype(np.float32) for x in (shape, label))
  tight = lambda first: boxes.tightness(
    p[:, :, first:], (inside == 1)[:, :, first:].astype(np.float32)
  )
  assert tight(0) < 1e-3  # whole
  assert tight(5) < 1e-3  # rows say nothing, columns hold
  rows = (inside == 1)[:, :, 5:].any(2).sum()
  columns = (inside == 1)[:, :, 5:].any(1).sum()
  assert rows == 6 and columns == 4
  # Empty, the columns alone count.
  empty = boxes.tightness(
    0 * p[:, :, 5:], (inside == 1)[:, :, 5:].astype(np.float32)
  )
  assert_allclose(empty, -np.log(boxes.SMALLEST), rtol=1e-5)


def test_they_lead_to_an_object_in_every_row(boxed):
  _, label = boxed
  step = jax.jit(jax.grad(lambda x: boxes.constraints(x, label, Boxes())[0]))
  logits, tx = jnp.zeros((2, 8, 8, 3)), optax.adam(0.1)
  state = tx.init(logits)
  for _ in range(150):
    updates, state = tx.update(step(logits), state)
    logits = optax.apply_updates(logits, updates)
  found = np.asarray(logits.argmax(-1))
  assert (found[label == 0] == 0).all()
  for k in (1, 2):
    inside = label[0] == k
    hit = inside & (found[0] == k)
    assert (hit.any(0) == inside.any(0)).all()
    assert (hit.any(1) == inside.any(1)).all()
    assert np.asarray(jax.nn.softmax(logits))[0, inside, k].mean() > 0.29


def test_without_boxes_only_background(boxed):
  logits, label = boxed
  total, found = boxes.constraints(logits[1:], label[1:], Boxes())
  assert found['tight'] == found['size'] == found['other'] == 0
  assert_allclose(total, found['outside'])


@pytest.mark.parametrize(
  'change, told',
  [
    ({'tight': -1.0}, 'tight is -1.0, must be 0 or more'),
    ({'smallest': 1.1}, 'smallest and largest are 1.1 and 1.0'),
    ({'largest': 1.5}, 'parts of a box, 0 to 1'),
  ],
)
def test_settings_are_refused(change, told):
  with pytest.raises(UserError, match=told):
    boxes.check('b', Boxes()._replace(**change))
