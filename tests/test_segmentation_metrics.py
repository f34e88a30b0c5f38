"""Scores are exact: by hand, by brute force and against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as oracle

from jaxseg.metrics import segmentation

GOLDEN = Path(__file__).parent / 'goldens' / 'cyclegan_bookkeeping.npz'
NAMES = ('background', 'a', 'b')


def _random(seed=0, k=4, shape=(5, 9, 7), void=0.1):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, k, shape).astype(np.uint8)
  labels[rng.random(shape) < void] = 255
  return labels, rng.integers(0, k, shape).astype(np.int32)


def test_three_by_three_by_hand():
  label = np.array([[0, 0, 1], [0, 1, 1], [2, 255, 2]])
  predicted = np.array([[0, 1, 1], [0, 1, 0], [2, 1, 2]])
  cm = segmentation.confusion_matrix(label, predicted, 3)
  np.testing.assert_array_equal(cm, [[2, 1, 0], [1, 2, 0], [0, 0, 2]])
  assert cm.dtype == np.int64
  scores = segmentation.summarize(cm, NAMES)
  assert scores['iou'] == {'background': 0.5, 'a': 0.5, 'b': 1.0}
  assert scores['miou'] == pytest.approx(2 / 3)
  assert scores['dice_per_class'] == pytest.approx(
    {'background': 2 / 3, 'a': 2 / 3, 'b': 1.0}
  )
  assert scores['dice'] == pytest.approx(7 / 9)
  assert scores['dice_foreground'] == pytest.approx(5 / 6)
  assert scores['pixel_accuracy'] == 0.75
  assert scores['pixels'] == 8


def test_brute_force_per_pixel():
  labels, predictions = _random()
  expected = np.zeros((4, 4), int)
  for t, p in zip(labels.ravel(), predictions.ravel(), strict=True):
    if t != 255:
      expected[t, p] += 1
  cm = segmentation.confusion_matrix(labels, predictions, 4)
  np.testing.assert_array_equal(cm, expected)
  np.testing.assert_array_equal(
    segmentation.class_counts(labels, 4), expected.sum(1)
  )
  np.testing.assert_array_equal(
    segmentation.class_counts(list(labels), 4), expected.sum(1)
  )


def test_agrees_with_sklearn():
  labels, predictions = _random(1)
  t, p = labels[labels != 255], predictions[labels != 255]
  cm = segmentation.confusion_matrix(labels, predictions, 4)
  np.testing.assert_array_equal(cm, oracle.confusion_matrix(t, p))
  scores = segmentation.summarize(cm, list('xyzw'))
  assert list(scores['iou'].values()) == pytest.approx(
    oracle.jaccard_score(t, p, average=None).tolist()
  )
  assert scores['dice'] == pytest.approx(oracle.f1_score(t, p, average='macro'))
  assert scores['dice_foreground'] == pytest.approx(
    oracle.f1_score(t, p, average='macro', labels=[1, 2, 3])
  )
  assert scores['pixel_accuracy'] == pytest.approx(oracle.accuracy_score(t, p))


def test_order_padding_and_batching_do_not_matter():
  labels, predictions = _random(2)
  cm = segmentation.confusion_matrix(labels, predictions, 4)
  order = np.random.default_rng(0).permutation(len(labels))
  same = segmentation.confusion_matrix(labels[order], predictions[order], 4)
  np.testing.assert_array_equal(cm, same)
  pad = ((0, 3), (0, 2), (0, 0))
  padded = segmentation.confusion_matrix(
    np.pad(labels, pad, constant_values=255),
    np.pad(predictions, pad, constant_values=77),  # free where void
    4,
  )
  np.testing.assert_array_equal(cm, padded)
  parts = [
    segmentation.confusion_matrix(t, p, 4)
    for t, p in zip(labels, predictions, strict=True)
  ]
  np.testing.assert_array_equal(cm, sum(parts))


def test_class_permutation_permutes_the_scores():
  labels, predictions = _random(3, void=0)
  new = np.array([2, 0, 3, 1])
  cm = segmentation.confusion_matrix(labels, predictions, 4)
  moved = segmentation.confusion_matrix(new[labels], new[predictions], 4)
  a = segmentation.summarize(cm, list('abcd'))
  b = segmentation.summarize(moved, [list('abcd')[i] for i in np.argsort(new)])
  assert a['iou'] == pytest.approx(b['iou'])
  assert a['miou'] == pytest.approx(b['miou'])


def test_absent_class_is_nan_and_skipped_but_invented_class_is_zero():
  label = np.array([0, 0, 1, 1])
  cm = segmentation.confusion_matrix(label, label, 3)
  scores = segmentation.summarize(cm, NAMES)
  assert np.isnan(scores['iou']['b'])
  assert scores['miou'] == scores['dice'] == 1.0
  invented = segmentation.confusion_matrix(label, np.array([0, 0, 1, 2]), 3)
  scores = segmentation.summarize(invented, NAMES)
  assert scores['iou']['b'] == 0
  assert scores['miou'] == pytest.approx((1 + 0.5 + 0) / 3)


def test_a_split_is_not_the_mean_of_its_images():
  labels = np.array([[0, 0, 0, 1], [0, 1, 1, 1]])
  predictions = np.array([[0, 0, 0, 0], [0, 1, 1, 1]])
  whole = segmentation.summarize(
    segmentation.confusion_matrix(labels, predictions, 2), NAMES[:2]
  )
  # Class 'a' scores 0 and 1 in the two images, but 3 of 4 pixels in the split.
  assert whole['iou']['a'] == 0.75


def test_all_void_has_no_score():
  void = np.full((2, 2), 255)
  cm = segmentation.confusion_matrix(void, np.zeros((2, 2), int), 3)
  scores = segmentation.summarize(cm, NAMES)
  assert scores['pixels'] == 0
  assert np.isnan(scores['miou']) and np.isnan(scores['pixel_accuracy'])


def test_uint8_labels_do_not_overflow():
  label = np.full(3, 20, np.uint8)
  cm = segmentation.confusion_matrix(label, label, 21)
  assert cm[20, 20] == 3 and cm.sum() == 3


def test_majority_class_baseline():
  train = segmentation.class_counts(np.array([1, 1, 1, 0, 255, 255]), 3)
  truth = np.array([0, 0, 0, 1, 2, 255])
  cm = segmentation.majority_class_baseline(
    train, segmentation.class_counts(truth, 3)
  )
  by_pixel = segmentation.confusion_matrix(truth, np.full(6, 1), 3)
  np.testing.assert_array_equal(cm, by_pixel)
  assert segmentation.summarize(cm, NAMES)['pixel_accuracy'] == 0.2


@pytest.mark.parametrize(
  ('label', 'predicted', 'word'),
  [
    ([0, 3], [0, 0], 'label holds class 3'),
    ([0, -1], [0, 0], 'label holds class -1'),
    ([0, 1], [0, 3], 'prediction holds class 3'),
    ([0, 1], [0, 1, 1], 'shape'),
  ],
)
def test_bad_input_is_named(label, predicted, word):
  with pytest.raises(ValueError, match=word):
    segmentation.confusion_matrix(np.array(label), np.array(predicted), 3)


def test_names_must_fit():
  for names in (('a', 'b'), ('a', 'b', 'b')):
    with pytest.raises(ValueError, match='class names'):
      segmentation.summarize(np.eye(3), names)


def test_median_frequency_weights_by_hand():
  # Class 1 is in one of two labels of 100 pixels, class 3 in none.
  weights = segmentation.median_frequency_weights(
    [150, 30, 20, 0], [200, 100, 200, 0]
  )
  f = np.array([0.75, 0.3, 0.1])
  np.testing.assert_allclose(weights[:3], 0.3 / f)
  assert np.isnan(weights[3])


def test_cut_miou_by_hand():
  cm = np.array([[50, 30, 0], [10, 6, 4], [0, 2, 8]])
  # Class 0 gone, 30 + 10 pixels count nowhere.
  expected = (6 / (6 + 4 + 2) + 8 / (8 + 2 + 4)) / 2
  assert segmentation.cut_miou(cm, slice(1, None)) == pytest.approx(expected)
  assert segmentation.cut_miou(cm, slice(None)) == pytest.approx(
    segmentation.summarize(cm, ['a', 'b', 'c'])['miou']
  )
  # Missing most of every object costs nothing.
  cm = np.array([[90, 0, 0], [9, 1, 0], [9, 0, 1]])
  assert segmentation.cut_miou(cm, slice(1, None)) == 1.0


@pytest.mark.parametrize(
  ('data', 'classes'),
  [('voc2012', slice(1, 21)), ('cityscapes', slice(0, 19)), ('acdc', slice(4))],
)
def test_cut_miou_is_that_of_the_published_code(data, classes):
  recorded = np.load(GOLDEN)
  found = segmentation.cut_miou(recorded[f'{data}/confusion'], classes)
  assert found == pytest.approx(float(recorded[f'{data}/miou_peer']))
