"""Segmentation scores, all from one confusion matrix over a whole split.

Sums are divided once, at the end: the mean of the IoUs of batches or of images
is another, easier number.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxseg.data.formats.images import VOID


def class_counts(
  labels: np.ndarray | Iterable[np.ndarray], num_classes: int
) -> np.ndarray:
  """Counts the pixels of each class, void left out.

  Args:
    labels: integers of any shape, or an iterable of such arrays; 255 = void.
    num_classes: K.

  Returns:
    int64 [K].

  Raises:
    ValueError: a class id outside 0..K-1 that is not 255.
  """
  if isinstance(labels, np.ndarray):
    labels = [labels]
  counts = np.zeros(num_classes, np.int64)
  for label in labels:
    label = np.asarray(label)
    ids = label[label != VOID]
    _check_ids(ids, num_classes, 'label')
    counts += np.bincount(ids.astype(np.int64), minlength=num_classes)
  return counts


def confusion_matrix(
  labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts pixels by true class (row) and predicted class (column).

  Args:
    labels: integers of any shape; 255 = void, ignored.
    predictions: integers, same shape; free where the label is void.
    num_classes: K.

  Returns:
    int64 [K, K]; matrices of several images add up.

  Raises:
    ValueError: the shapes differ, or a class id outside 0..K-1.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.shape != predictions.shape:
    raise ValueError(
      f'labels have shape {labels.shape}, predictions {predictions.shape}'
    )
  scored = labels != VOID
  true, predicted = labels[scored], predictions[scored]
  _check_ids(true, num_classes, 'label')
  _check_ids(predicted, num_classes, 'prediction')
  pairs = true.astype(np.int64) * num_classes + predicted
  counts = np.bincount(pairs, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes).astype(np.int64)


def summarize(
  cm: np.ndarray, class_names: Sequence[str], background: int | None = 0
) -> dict:
  """Turns a confusion matrix into scores, all in [0, 1].

  With TP, FP, FN counted in pixels: IoU = TP / (TP + FP + FN), Dice =
  2 TP / (2 TP + FP + FN). A class that is neither in the truth nor in the
  prediction has no score: it is nan, and left out of the means.

  Args:
    cm: int [K, K], rows true, columns predicted.
    class_names: K different names.
    background: the class left out of `dice_foreground`; None: none is.

  Returns:
    {'miou', 'dice', 'dice_foreground', 'pixel_accuracy': float,
     'pixels': int, 'iou': {name: float}, 'dice_per_class': {name: float}};
    `dice` and `miou` are means over all classes.

  Raises:
    ValueError: the names do not fit the matrix.
  """
  cm = np.asarray(cm, np.float64)
  if cm.shape != (len(set(class_names)),) * 2 or len(cm) != len(class_names):
    raise ValueError(
      f'a confusion matrix of shape {cm.shape} needs as many different class '
      f'names, found {list(class_names)}'
    )
  tp, true, predicted = np.diag(cm), cm.sum(1), cm.sum(0)
  iou = _ratio(tp, true + predicted - tp)
  dice = _ratio(2 * tp, true + predicted)
  foreground = np.arange(len(cm)) != (-1 if background is None else background)
  return {
    'miou': _mean(iou),
    'dice': _mean(dice),
    'dice_foreground': _mean(dice[foreground]),
    'pixel_accuracy': float(_ratio(tp.sum(), cm.sum())),
    'pixels': int(cm.sum()),
    'iou': dict(zip(class_names, iou.tolist(), strict=True)),
    'dice_per_class': dict(zip(class_names, dice.tolist(), strict=True)),
  }


def cut_miou(cm: np.ndarray, classes: slice) -> float:
  """Mean IoU as the published code of Mondal et al. (2019) computes it.

  The matrix is cut before the IoUs: a pixel that the truth or the prediction
  gives to a class outside the cut counts nowhere. They cut VOC to classes 1 to
  20, so that missed objects and objects found in the background cost nothing;
  Cityscapes to 19 of 20, the last being void; ACDC not at all. Not comparable
  with `summarize`'s mIoU.

  Args:
    cm: int [K, K], rows true, columns predicted.
    classes: those that are kept.

  Returns:
    mean over the classes kept that occur, in [0, 1]; nan if none does.
  """
  cm = np.asarray(cm, np.float64)[classes, classes]
  tp = np.diag(cm)
  return _mean(_ratio(tp, cm.sum(0) + cm.sum(1) - tp))


def median_frequency_weights(
  class_pixels: np.ndarray, beside_class: np.ndarray
) -> np.ndarray:
  """Weights of classes in cross entropy (Eigen and Fergus 2015, section 6.3.2).

  The weight of class c is median(f) / f(c), where f(c) are its pixels divided
  by all pixels of the images that show it.

  Args:
    class_pixels: int [K], pixels of each class.
    beside_class: int [K], pixels that are not void in the labels that hold it.

  Returns:
    float64 [K]; nan for a class that never occurs.
  """
  frequency = _ratio(np.asarray(class_pixels, np.float64), beside_class)
  return np.nanmedian(frequency) / frequency


def majority_class_baseline(
  train_counts: np.ndarray, eval_counts: np.ndarray
) -> np.ndarray:
  """Scores a predictor that always says the most frequent training class.

  Args:
    train_counts: int [K], pixels of each class in the labelled training
      masks, from `class_counts`.
    eval_counts: int [K], the same of the split to be scored.

  Returns:
    int64 [K, K], its confusion matrix on that split.
  """
  cm = np.zeros((len(eval_counts),) * 2, np.int64)
  cm[:, int(np.argmax(train_counts))] = eval_counts
  return cm


def _check_ids(ids, num_classes, what):
  if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
    bad = ids.min() if ids.min() < 0 else ids.max()
    raise ValueError(
      f'{what} holds class {int(bad)}, expected 0 to {num_classes - 1}'
      f' (or {VOID} for void in labels)'
    )


def _ratio(a, b):
  out = np.full(np.shape(a), np.nan)
  return np.divide(a, b, out=out, where=np.asarray(b) > 0)


def _mean(values):
  values = values[~np.isnan(values)]
  return float(values.mean()) if values.size else float('nan')
