from concurrent import futures

import numpy as np
import pytest

from jaxseg.data import grabcut, pipeline, sources, weak
from jaxseg.data.formats import images
from jaxseg.errors import UserError


def scene(seed, side=64):
  """An ellipse with noise and its mask."""
  rng = np.random.default_rng(seed)
  rows, columns = np.indices((side, side))
  y, x = rng.uniform(0.4, 0.6, 2) * side
  ry, rx = rng.uniform(0.15, 0.3, 2) * side
  label = ((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 <= 1
  noise = rng.normal(0, 15, (side, side, 1))
  image = np.clip(90 + 80 * label[..., None] + noise, 0, 255).astype(np.uint8)
  return image, label.astype(np.uint8)


def iou(found, label):
  """Of class 1 where something is said."""
  both, either = (found & label) == 1, (found | label) == 1
  return np.sum(both[found != 255]) / np.sum(either[found != 255])


@pytest.mark.parametrize('channels', [1, 3])
def test_masks_are_better_than_boxes(channels):
  before, after = [], []
  for seed in range(6):
    image, label = scene(seed)
    boxes = weak.boxes(label, 2)
    image = images.to_channels(image, channels)
    before.append(iou(weak.draw_boxes(boxes, label.shape, 1), label))
    after.append(iou(grabcut.refine(image, boxes, 1), label))
  assert np.mean(before) < 0.9 and np.mean(after) > 0.95
  assert min(np.subtract(after, before)) > 0


def test_labels():
  """Outside of boxes all is background, along objects a ring is void."""
  image, label = scene(0)
  ((_, top, left, bottom, right),) = boxes = weak.boxes(label, 2)
  found = grabcut.refine(image, [(4, *boxes[0][1:])], 3)
  assert set(np.unique(found)) == {0, 4, 255}
  far = np.ones_like(label, bool)
  far[top - 1 : bottom + 1, left - 1 : right + 1] = False
  assert (found[far] == 0).all()
  known = found != 255
  assert ((found > 0) == (label > 0))[known].mean() > 0.98
  thin = grabcut.refine(image, boxes, 1)
  assert (thin == 255).sum() < (found == 255).sum()
  frozen = image.copy()
  frozen.flags.writeable = False
  np.testing.assert_array_equal(grabcut.refine(frozen, boxes, 1), thin)


def test_a_pure_function_in_any_thread():
  image, label = scene(1)
  boxes = weak.boxes(label, 2)
  expected = grabcut.refine(image, boxes)
  with futures.ThreadPoolExecutor(4) as pool:
    for found in pool.map(lambda _: grabcut.refine(image, boxes), range(8)):
      np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
  'box',
  [(1, 0, 0, 64, 64), (1, 3, 3, 4, 4), (1, 2, 2, 30, 30), (1, 60, 60, 64, 64)],
)
def test_boxes_that_cannot_be_cut_stay(box):
  image = np.full((64, 64, 1), 100, np.uint8)
  found = grabcut.refine(image, [box], 3)
  np.testing.assert_array_equal(found, weak.draw_boxes([box], (64, 64), 3))


def test_small_over_large():
  image, label = scene(2, 96)
  ((_, top, left, bottom, right),) = weak.boxes(label, 2)
  inner = (2, top + 8, left + 8, top + 18, left + 18)
  found = grabcut.refine(image, [inner, (1, top, left, bottom, right)], 1)
  # Flat inside: that box stays one.
  assert (found[inner[1] + 1 : inner[3] - 1, inner[2] + 1] == 2).all()
  assert (found == 1).sum() > 100
  assert not grabcut.refine(image, []).any()


def test_labels_that_train(config):
  config.data.source = 'digits'
  config.data.weak.kind = 'boxes'
  source = sources.load(config.data)
  id_ = source.splits['train'][0]
  boxes = pipeline.Examples(source, config.data).training_label(id_)
  config.data.weak.refine = 'grabcut'
  weak.check(config.data.weak)
  examples = pipeline.Examples(source, config.data)
  refined = examples.training_label(id_)
  full = examples.label(id_)
  accuracy = [
    np.mean((f == full)[(f != 255) & (full != 255)]) for f in (boxes, refined)
  ]
  assert accuracy[1] > accuracy[0]
  config.data.cache = False  # its masks are kept all the same
  for kept in (examples, pipeline.Examples(source, config.data)):
    assert kept.training_label(id_) is refined
  again = pipeline.Examples(source._replace(cache={}), config.data)
  np.testing.assert_array_equal(again.training_label(id_), refined)


@pytest.mark.parametrize(
  'changes, sentence',
  [
    ({'kind': 'polygons', 'refine': 'grabcut'}, 'only boxes can be refined'),
    ({'refine': 'grabcut'}, 'only boxes can be refined'),
    ({'kind': 'boxes', 'refine': 'snakes'}, "weak.refine is 'snakes'"),
    ({'drawn': 'scribbles'}, 'weak.kind is empty'),
  ],
)
def test_settings(config, changes, sentence):
  config.data.weak.update(changes)
  with pytest.raises(UserError, match=sentence):
    weak.check(config.data.weak)
