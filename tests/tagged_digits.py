"""Handwritten digits of which only tags are known, for methods of tags."""

import functools

import numpy as np

from jaxseg import config
from jaxseg.data import sources, weak
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

K = 4  # background and the digits 0, 1 and 2
STEPS, BATCH, COUNTS = 60, 12, {'train': 480, 'test': 90}
COMMON = dict(
  num_classes=K, resolution=32, channels=1, total_steps=STEPS,
  net=Net(width=8, depth=2, norm='batch'), ema_half_life=64.0,
  optimizer=Optimizer(lr=4e-3),
)  # fmt: skip


@functools.cache
def digits(split):
  """(images [n, 32, 32, 1], labels [n, 32, 32], tags [n, K]) of a split."""
  data = config.default().data
  data.source, data.channels = 'digits', 1
  source = sources.load(data)
  ids = [i for i in source.splits[split] if source.label(i).max() < K]
  ids = ids[:: len(ids) // COUNTS[split]][: COUNTS[split]]
  image = np.stack([source.image(i) for i in ids]).reshape(-1, 32, 32, 1)
  label = np.stack([source.label(i) for i in ids])
  tags = np.stack([weak.tags(x, K) for x in label])
  return (image / 127.5 - 1).astype(np.float32), label.astype(np.int32), tags


def batches(steps=STEPS):
  """Random batches of the training images, without labels."""
  images, _, tags = digits('train')
  rng = np.random.default_rng(0)
  for _ in range(steps):
    some = rng.choice(len(images), BATCH, replace=False)
    yield {'image': images[some], 'tags': tags[some]}


def iou(found, labels):
  """Mean intersection over union of all classes."""
  found, seen = np.asarray(found), labels != 255
  matrix = np.zeros((K, K))
  np.add.at(matrix, (labels[seen], found[seen]), 1)
  both = np.diag(matrix)
  return (both / (matrix.sum(0) + matrix.sum(1) - both)).mean()
