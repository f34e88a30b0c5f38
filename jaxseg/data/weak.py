"""Weak labels made from full ones: scribbles, clicks, boxes, polygons, tags.

What an annotator would have drawn, for measuring how far it takes a method.
Each is a pure function of the label, its arguments and the seed.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from jaxseg.data.annotations import strokes
from jaxseg.data.source import Box as Box
from jaxseg.errors import UserError

KINDS = ('scribbles', 'clicks', 'boxes', 'polygons', 'tags')
REFINEMENTS = ('', 'grabcut')
VOID = 255
# Annotators leave out specks: components below this part of the largest one
# of their class.
SPECK = 0.02
# Largest distance of a polygon of density 1 from its contour, as a part of
# the contour's length; gives a circle about 6 corners.
POLYGON_ERROR = 0.02


class Component(NamedTuple):
  """A connected region of one class.

  Attributes:
    class_id: its class.
    top, left: where `mask` lies in the label.
    mask: bool [h, w], its bounding box.
    area: pixels.
  """

  class_id: int
  top: int
  left: int
  mask: np.ndarray
  area: int


def check(weak_config: Any) -> None:
  """Refuses values without meaning in `config.data.weak`.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  c, where = weak_config, 'config.data.weak'
  if c.kind not in ('', *KINDS):
    raise UserError(
      f"{where}.kind is {c.kind!r}, must be '' (full labels) or one of "
      f'{", ".join(KINDS)}.'
    )
  if not (math.isfinite(c.density) and c.density > 0):
    raise UserError(
      f'{where}.density is {c.density}, must be above 0; 1 is what annotators '
      'usually give.'
    )
  if c.width < 1:
    raise UserError(f'{where}.width is {c.width}, must be 1 pixel or more.')
  if c.drawn and not c.kind:
    raise UserError(
      f'{where}.drawn is {c.drawn!r} and {where}.kind is empty, expected what '
      f'was drawn; set --config.data.weak.kind to one of {", ".join(KINDS)}.'
    )
  if c.refine not in REFINEMENTS:
    raise UserError(
      f"{where}.refine is {c.refine!r}, must be '' (labels as they are) or "
      "'grabcut'."
    )
  if c.refine and c.kind != 'boxes':
    raise UserError(
      f'{where}.refine is {c.refine!r} and {where}.kind is {c.kind!r}, but '
      "only boxes can be refined; set the kind to 'boxes' or refine to ''."
    )


def gives_tags(weak_config: Any) -> bool:
  """Whether labelled images come with tags, the classes that they show."""
  return weak_config.kind == 'tags'


def weaken(
  label: np.ndarray,
  kind: str,
  *,
  num_classes: int,
  density: float = 1.0,
  width: int = 3,
  seed: int = 0,
) -> np.ndarray:
  """Returns the label that a quicker annotation would have given.

  - scribbles: a stroke along the middle of each component of each class,
    background too, or around the middle of round ones (`strokes`). At density
    1 about 3 % of the pixels are labelled, as in ScribbleSup (Lin et al.
    2016), or the whole strokes where these are less.
  - clicks: discs in the middle of each component, `density` of them rounded;
    below 1, that part of each class's components, the largest first.
  - boxes: the inside of each component's box is its class, a smaller box
    lies over a larger one, outside of all is background. A band of `width`
    pixels along the edges is void: there boxes are least exact.
  - polygons: each component's contour with few corners (about 6 `density`
    for a circle), filled but for its holes, smaller over larger; outside of
    all is background.
  - tags: nothing is labelled; see `tags`.

  Components below 2 % of their class's largest are left out. Every class
  present keeps at least a pixel (background only in scribbles and clicks).

  Args:
    label: uint8 [H, W], ids 0..K-1, 255 = void; other ids are void.
    kind: one of KINDS.
    num_classes: K.
    density: above 0, see above; boxes have none.
    width: of strokes, clicks and bands, in pixels.
    seed: of where strokes are cut and clicks lie.

  Returns:
    uint8 [H, W], 255 = not labelled; void stays void.

  Raises:
    ValueError: an unknown kind.
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}, must be one of {", ".join(KINDS)}')
  label = np.where(label < num_classes, label, VOID).astype(np.uint8)
  if kind == 'tags':
    return np.full_like(label, VOID)
  rng = np.random.default_rng(seed)
  # Larger ones first, so that smaller ones lie over them.
  components = sorted(_components(label, num_classes), key=lambda c: -c.area)
  if kind == 'scribbles':
    weak = _scribbles(label, components, density, width, rng)
  elif kind == 'clicks':
    weak = _clicks(label, components, density, width, rng)
  elif kind == 'boxes':
    found = [_box(c) for c in components if c.class_id]
    weak = draw_boxes(found, label.shape, width)
  else:
    weak = _polygons(label, components, density)
  weak[label == VOID] = VOID
  return _with_every_class(weak, components, kind in ('boxes', 'polygons'))


def tags(label: np.ndarray, num_classes: int) -> np.ndarray:
  """Returns which classes a label shows.

  Args:
    label: uint8 [H, W], 255 = void.
    num_classes: K.

  Returns:
    float32 [K] of 0 and 1.
  """
  counts = np.bincount(label.ravel(), minlength=256)
  return (counts[:num_classes] > 0).astype(np.float32)


def boxes(label: np.ndarray, num_classes: int) -> list[Box]:
  """Returns the box of each component of the classes other than 0.

  Args:
    label: uint8 [H, W], 255 = void.
    num_classes: K.

  Returns:
    (class id, top, left, bottom, right) in pixels, bottom and right excluded,
    by class, then from large to small; without specks, see `weaken`.
  """
  components = [c for c in _components(label, num_classes) if c.class_id]
  components.sort(key=lambda c: (c.class_id, -c.area))
  return [_box(c) for c in components]


def draw_boxes(
  boxes: Sequence[Box], size: tuple[int, int], width: int = 3
) -> np.ndarray:
  """Fills boxes as a weak label, smaller ones over larger ones.

  Args:
    boxes: (class id, top, left, bottom, right); they may reach out of the
      label, so that a box that is cut there has no band at the cut.
    size: (height, width) of the label.
    width: of the void band along the edges, in pixels.

  Returns:
    uint8 [H, W]: the class inside a box, 0 outside of all, 255 in the bands.
  """
  label = np.zeros(size, np.uint8)
  outer, inner = width // 2, width - width // 2  # of the band
  by_area = sorted(boxes, key=lambda b: (b[1] - b[3]) * (b[4] - b[2]))
  for class_id, top, left, bottom, right in by_area:
    label[
      max(0, top - outer) : bottom + outer,
      max(0, left - outer) : right + outer,
    ] = VOID
    # The band must leave something of a small box.
    dy = min(inner, (bottom - top - 1) // 2)
    dx = min(inner, (right - left - 1) // 2)
    label[
      max(0, top + dy) : max(0, bottom - dy),
      max(0, left + dx) : max(0, right - dx),
    ] = class_id
  return label


def _components(label, num_classes):
  """Returns the 8-connected `Component`s that are no specks."""
  found = []
  for class_id in np.unique(label[label < num_classes]):
    _, ids, stats, _ = cv2.connectedComponentsWithStats(
      (label == class_id).astype(np.uint8), connectivity=8
    )
    largest = stats[1:, cv2.CC_STAT_AREA].max()
    for i, (left, top, w, h, area) in enumerate(stats[1:].tolist(), 1):
      if area >= SPECK * largest:
        mask = ids[top : top + h, left : left + w] == i
        found.append(Component(int(class_id), top, left, mask, area))
  return found


def _box(c):
  height, width = c.mask.shape
  return c.class_id, c.top, c.left, c.top + height, c.left + width


def _part(array, component):
  """The component's bounding box in an array [H, W], as a view."""
  h, w = component.mask.shape
  return array[
    component.top : component.top + h, component.left : component.left + w
  ]


def _scribbles(label, components, density, width, rng):
  weak = np.full_like(label, VOID)
  paths = [strokes.path(c.mask, width, rng) for c in components]
  kept = density * strokes.SHARE * np.count_nonzero(label != VOID)
  kept = min(1.0, kept / (width * max(1, sum(map(len, paths)))))
  for component, path in zip(components, paths, strict=True):
    stroke = strokes.cut(path, kept, rng)
    drawn = strokes.draw(stroke, component.mask.shape, width)
    _part(weak, component)[drawn & component.mask] = component.class_id
  return weak


def _clicks(label, components, density, width, rng):
  weak = np.full_like(label, VOID)
  quota = {}
  for c in components:
    quota[c.class_id] = quota.get(c.class_id, 0) + min(density, 1)
  for c in components:
    if quota[c.class_id] <= 0:
      continue
    quota[c.class_id] -= 1
    points = strokes.interior_points(c.mask, max(1, round(density)), rng)
    for point in points:
      drawn = strokes.disc(point, c.mask.shape, width)
      _part(weak, c)[drawn & c.mask] = c.class_id
  return weak


def _polygons(label, components, density):
  weak = np.zeros_like(label)
  for c in components:
    if c.class_id == 0:
      continue
    contours, _ = cv2.findContours(
      c.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    # The distance from a smooth contour falls with the corners squared.
    polygons = [
      cv2.approxPolyDP(
        contour,
        POLYGON_ERROR * cv2.arcLength(contour, True) / density**2,
        True,
      )
      for contour in contours
    ]
    filled = np.zeros(c.mask.shape, np.uint8)
    cv2.fillPoly(filled, polygons, 1)
    _part(weak, c)[filled > 0] = c.class_id
  return weak


def _with_every_class(weak, components, only_foreground):
  """Gives classes that lost all their pixels their innermost one."""
  lost = {c.class_id for c in components} - set(np.unique(weak).tolist())
  for c in components:
    if c.class_id in lost and (c.class_id or not only_foreground):
      y, x = strokes.innermost(c.mask)
      weak[c.top + y, c.left + x] = c.class_id
      lost.remove(c.class_id)
  return weak
