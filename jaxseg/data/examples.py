"""Images and labels at the resolution of the networks."""

import os
from typing import Any

import numpy as np

from jaxseg.data import images
from jaxseg.data.source import Source
from jaxseg.errors import UserError


class Examples:
  """Images and labels of a source at the resolution of the networks.

  Arrays are kept in `source.cache` when `config.data.cache` says so, whoever
  asks first; they are shared and read-only.
  """

  def __init__(self, source: Source, data_config: Any):
    self._source = source
    self._side = data_config.resolution
    self._cache = source.cache if data_config.cache else None

  def image(self, id_: str) -> np.ndarray:
    """Returns uint8 [R, R, C]; images of other shapes are squeezed."""
    return self._get('image', id_)

  def label(self, id_: str) -> np.ndarray:
    """Returns uint8 [R, R]; all void for an unlabelled image."""
    return self._get('label', id_)

  def original_label(self, id_: str) -> np.ndarray:
    """Returns uint8 [H, W], the label at its own resolution.

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
    resize = images.resize_image if kind == 'image' else images.resize_label
    array = resize(original, self._side)
    array.flags.writeable = False
    if self._cache is not None:
      self._cache[kind, id_, self._side] = array
    return array

  def _get(self, kind, id_):
    if self._cache is not None and (kind, id_, self._side) in self._cache:
      return self._cache[kind, id_, self._side]
    if kind == 'image':
      return self.keep(kind, id_, self._source.image(id_))
    label = self._source.label(id_)
    if label is None:
      label = np.full((self._side, self._side), images.VOID, np.uint8)
    return self.keep(kind, id_, label)


def num_threads() -> int:
  """Threads for decoding files; Pillow decodes without Python's lock."""
  return min(8, os.cpu_count() or 1)
