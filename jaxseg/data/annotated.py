"""A data set with the labels that train, where people drew weak ones."""

from collections.abc import Collection

import numpy as np

from jaxseg.data import weak
from jaxseg.data.source import Source


def view(source: Source, ids: Collection[str] | None = None) -> Source:
  """Returns the source whose labels are the drawn ones, if there are any.

  Boxes are shown filled. Images with tags have a label, which is None when it
  is read; `classes_in` tells what they show.

  Args:
    source: the data set.
    ids: of the images for which drawn labels count, others keep their own;
      None: for all.
  """
  drawn = source.drawn
  if drawn is None:
    return source

  def counts(id_):
    return ids is None or id_ in ids

  def label(id_):
    if not counts(id_):
      return source.label(id_)
    if id_ not in drawn.paths or drawn.tags is not None:
      return None
    if drawn.label is not None:
      return drawn.label(id_)
    shape = source.image(id_).shape[:2]
    return weak.draw_boxes(drawn.boxes(id_), shape, 0)

  def has_label(id_):
    return id_ in drawn.paths if counts(id_) else source.has_label(id_)

  def label_path(id_):
    if counts(id_) and id_ in drawn.paths:
      return drawn.paths[id_]
    return source.path(id_)

  return source._replace(
    label=label,
    has_label=has_label,
    label_path=label_path,
    in_memory=False,
    classes_in=None if drawn.tags is None else _of_tags(drawn.tags),
  )


def shown(source: Source) -> Source:
  """Returns the source whose images show what people drew, for pictures.

  Those of its splits that are scored keep their full masks; tags are no
  picture.
  """
  if source.drawn is None or source.drawn.tags is not None:
    return source
  trains = {
    id_
    for name, ids in source.splits.items()
    if name not in ('val', 'test') and not name.startswith('ood')
    for id_ in ids
  }
  return view(source, trains)._replace(drawn=None)


def _of_tags(tags):
  def classes_in(id_):
    present = np.zeros(256, bool)
    found = tags.get(id_, ())
    present[: len(found)] = found
    return present

  return classes_in
