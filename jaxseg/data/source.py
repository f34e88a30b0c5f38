"""What a data set is to the rest of the code."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxseg.data.problems import Problem

# (class id, top, left, bottom, right) in pixels, bottom and right excluded.
Box = tuple[int, int, int, int, int]


class Drawn(NamedTuple):
  """Weak labels that people drew, which train in place of full ones.

  Of `label`, `boxes` and `tags` only what `kind` asks for is there.

  Attributes:
    kind: one of `weak.KINDS`.
    paths: the annotation's file by id, for messages; its keys have one.
    label: id -> uint8 [H, W] of class ids and 255 (not annotated).
    boxes: id -> boxes in the pixels of the image, inside of it.
    tags: id -> float32 [K] of 0 and 1.
  """

  kind: str
  paths: dict[str, str]
  label: Callable[[str], np.ndarray] | None = None
  boxes: Callable[[str], list[Box]] | None = None
  tags: dict[str, np.ndarray] | None = None


class Source(NamedTuple):
  """Random access to a data set; nothing downstream knows its files.

  Attributes:
    name: shown in messages and reports.
    class_names: one name a class; their number is K.
    palette: uint8 [K, 3], the colour of each class.
    channels: 1 or 3.
    splits: ids by split name, e.g. 'train', 'val', 'test', 'ood_x'. A source
      that leaves the drawing to `splits.make_splits` has 'all' instead.
    budgets: official label budgets, ids by their number ('9', '35').
    groups: group (patient, sequence) by id; an id not in it is its own group.
    image: id -> uint8 [H, W, channels].
    label: id -> uint8 [H, W] of class ids and 255 (void); None: unlabelled.
    has_label: id -> bool, without decoding anything.
    path: id -> the file, for messages.
    cache: resized arrays by (kind, id, how made), filled by the pipeline.
    in_memory: whether reading a label costs nothing.
    classes_in: id -> bool [256], the ids that its label holds, where that is
      known without decoding it; else None.
    problems: what was found wrong when the set was opened.
    licence: of the data, in words.
    label_path: id -> the label's file, for messages; None: `path` tells.
    drawn: what labels the images that train; None: `label` does.
    synthetic: opens the generated images that train beside these; None: none
      do.
  """

  name: str
  class_names: tuple[str, ...]
  palette: np.ndarray
  channels: int
  splits: dict[str, tuple[str, ...]]
  budgets: dict[str, tuple[str, ...]]
  groups: dict[str, str]
  image: Callable[[str], np.ndarray]
  label: Callable[[str], np.ndarray | None]
  has_label: Callable[[str], bool]
  path: Callable[[str], str]
  cache: dict | None = None
  in_memory: bool = False
  classes_in: Callable[[str], np.ndarray] | None = None
  problems: tuple[Problem, ...] = ()
  licence: str = ''
  label_path: Callable[[str], str] | None = None
  drawn: Drawn | None = None
  synthetic: Callable[[], 'Source'] | None = None


def voc_palette(k: int) -> np.ndarray:
  """Returns PASCAL VOC's colours of classes 0..k-1, uint8 [k, 3].

  Bit j of the class id goes, from the top, to a bit of channel j mod 3 (VOC
  development kit, VOCcolormap), so that class 0 is black and neighbours
  differ strongly.
  """
  ids = np.arange(k)
  colours = np.zeros((k, 3), np.int64)
  for bit in range(8):
    for channel in range(3):
      value = (ids >> (3 * bit + channel)) & 1
      colours[:, channel] |= value << (7 - bit)
  return colours.astype(np.uint8)
