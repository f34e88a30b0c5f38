"""Images and labels at the size that the networks see."""

import os
import zlib
from typing import Any

import numpy as np

from jaxseg.data import fit, grabcut, weak
from jaxseg.data.formats import images
from jaxseg.data.source import Source
from jaxseg.errors import UserError


class Examples:
  """Images and labels of a source at the size that the networks see.

  Arrays are kept in `source.cache` when `config.data.cache` says so, whoever
  asks first; they are shared and read-only. Masks of GrabCut, seconds of work
  each, are kept whatever it says.

  Args:
    source: the data set.
    data_config: `config.data`.
    full: whether full labels train, whatever `weak.kind` says; but boxes where
      labels are boxes, since a method that takes them as such would misread
      masks.
  """

  def __init__(self, source: Source, data_config: Any, full: bool = False):
    if data_config.fit not in fit.POLICIES:
      raise UserError(
        f'config.data.fit is {data_config.fit!r}, expected one of '
        f'{fit.POLICIES}; change --config.data.fit'
      )
    self._source = source
    self._size = fit.size(data_config)
    self._fit = data_config.fit
    self._weak = data_config.weak
    boxes = self._weak.kind == 'boxes' and not self._weak.refine
    self._kind = '' if full and not boxes else self._weak.kind
    self._cache = source.cache if data_config.cache else None
    self._refined = {} if source.cache is None else source.cache
    # What the arrays depend on: one source may serve several configs.
    self._made_by = {'image': (self._size, self._fit)}
    self._made_by['label'] = self._made_by['image']
    self._made_by['weak'] = (self._size, self._fit, str(self._weak))
    self.num_classes = len(source.class_names)

  def image(self, id_: str) -> np.ndarray:
    """Returns uint8 [H, W, C], brought there as `config.data.fit` says."""
    return self._get('image', id_)

  def label(self, id_: str) -> np.ndarray:
    """Returns uint8 [H, W]; all void for an unlabelled image."""
    return self._get('label', id_)

  def training_label(self, id_: str) -> np.ndarray:
    """Returns uint8 [H, W]: the label, the drawn one, or what `weak` leaves."""
    if not self._kind:
      return self.label(id_)
    if self._kind == 'tags':
      return np.full(self._size, images.VOID, np.uint8)
    return self._get('weak', id_)

  def tags(self, id_: str) -> np.ndarray | None:
    """Returns float32 [K], 1 for the classes of the image, 'tags' only."""
    if not weak.gives_tags(self._weak):
      return None
    if self._source.drawn is not None and self._kind:
      return self._source.drawn.tags[id_]
    return weak.tags(self.label(id_), self.num_classes)

  def original_label(self, id_: str) -> np.ndarray:
    """Returns uint8, the label at its own height and width.

    Raises:
      UserError: an image without a label.
    """
    label = self._source.label(id_)
    if label is None:
      raise UserError(
        f'{self._source.path(id_)}: the image has no label file, expected one '
        'as it is in a labelled or scored split; add labels/NAME.png or list '
        'the image as unlabelled'
      )
    return label

  def keep(self, kind: str, id_: str, original: np.ndarray) -> np.ndarray:
    """Resizes a decoded 'image' or 'label' and caches the result."""
    resize = fit.image if kind == 'image' else fit.label
    return self._keep(kind, id_, resize(original, self._size, self._fit))

  def _keep(self, kind, id_, array):
    array.flags.writeable = False
    cache = self._cache_of(kind)
    if cache is not None:
      cache[kind, id_, self._made_by[kind]] = array
    return array

  def _cache_of(self, kind):
    refined = kind == 'weak' and self._weak.refine
    return self._refined if refined else self._cache

  def _get(self, kind, id_):
    key = kind, id_, self._made_by[kind]
    cache = self._cache_of(kind)
    if cache is not None and key in cache:
      return cache[key]
    if kind == 'image':
      return self.keep(kind, id_, self._source.image(id_))
    if kind == 'weak':
      return self._keep(kind, id_, self._weaken(id_))
    label = self._source.label(id_)
    if label is None:
      label = np.full(self._size, images.VOID, np.uint8)
    return self.keep(kind, id_, label)

  def _weaken(self, id_):
    w = self._weak
    if self._source.drawn is not None:
      return self._drawn(id_)
    if w.refine:
      label = self.label(id_)
      refined = self._refine(id_, weak.boxes(label, self.num_classes))
      refined[label == images.VOID] = images.VOID
      return refined
    return weak.weaken(
      self.label(id_), w.kind, num_classes=self.num_classes,
      density=w.density, width=w.width,
      seed=zlib.crc32(f'{w.seed}/{id_}'.encode()),
    )  # fmt: skip

  def _drawn(self, id_):
    """Returns what people drew, at the size that the networks see."""
    drawn = self._source.drawn
    if drawn.label is not None:
      resize = fit.label if drawn.kind == 'polygons' else fit.strokes
      return resize(drawn.label(id_), self._size, self._fit)
    shape = self._source.image(id_).shape[:2]
    move = lambda beyond: fit.boxes(
      drawn.boxes(id_), shape, self._size, self._fit, beyond
    )
    if self._weak.refine:
      label = self._refine(id_, move(0))
    else:
      width = self._weak.width
      label = weak.draw_boxes(move(width), self._size, width)
    outside = fit.label(np.zeros(shape, np.uint8), self._size, self._fit)
    label[outside == images.VOID] = images.VOID
    return label

  def _refine(self, id_, boxes):
    return grabcut.refine(self.image(id_), boxes, self._weak.width)


def num_threads() -> int:
  """Threads for decoding files; Pillow decodes without Python's lock."""
  return min(8, os.cpu_count() or 1)
