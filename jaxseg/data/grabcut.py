"""Boxes to masks by GrabCut (Rother, Kolmogorov, Blake; SIGGRAPH 2004).

It helps where objects have other colours than what lies around them, as skin
lesions have. In grey images such as MR, where bright tissue is everywhere, most
masks shrink to nothing, so that boxes stay boxes.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxseg.data import weak
from jaxseg.data.formats import images
from jaxseg.data.source import Box

ITERATIONS = 5
# Of a box and its surroundings: with twice the sides, colours of the
# background are learned from what lies near, and large images cost no more.
SURROUNDINGS = 0.5
# A mask of less, or of more, than these parts of its box has most likely
# failed: the box is then kept as it is.
LEAST, MOST = 0.05, 0.95
VOID = images.VOID


def refine(
  image: np.ndarray, boxes: Sequence[Box], width: int = 3
) -> np.ndarray:
  """Cuts the object out of each box, as a weak label.

  Outside of its box a pixel is surely no part of the object; inside, two
  mixtures of five Gaussians and a graph cut decide. A ring of `width` pixels
  along the border of each object is void, as edges of boxes are in
  `weak.draw_boxes`: there masks are least exact. Smaller boxes lie over larger
  ones. Boxes whose mask is below 5 % or above 95 % of them stay as they are
  drawn there.

  Args:
    image: uint8 [H, W, 1 or 3].
    boxes: (class id, top, left, bottom, right) inside of the image.
    width: of the rings, in pixels.

  Returns:
    uint8 [H, W]: the class of an object, 0 elsewhere, 255 in the rings; the
    same for the same arguments.
  """
  image = np.ascontiguousarray(images.to_channels(image, 3))
  size = image.shape[:2]
  label = np.zeros(size, np.uint8)
  for box in sorted(boxes, key=lambda b: (b[1] - b[3]) * (b[4] - b[2])):
    found = cut_out(image, box)
    if found is None:
      drawn = weak.draw_boxes([box], size, width)
      label = np.where(drawn != 0, drawn, label)
      continue
    label[_ring(found, width)] = VOID
    inside = found & ~_ring(found, width)
    # What is too thin to have an inside is all object.
    label[inside if inside.any() else found] = box[0]
  return label


def cut_out(image: np.ndarray, box: Box) -> np.ndarray | None:
  """Returns the object in one box, bool [H, W]; None: GrabCut failed.

  Args:
    image: uint8 [H, W, 3].
    box: see `refine`.
  """
  _, top, left, bottom, right = box
  dy = max(2, round(SURROUNDINGS * (bottom - top)))
  dx = max(2, round(SURROUNDINGS * (right - left)))
  part = (
    slice(max(0, top - dy), bottom + dy),
    slice(max(0, left - dx), right + dx),
  )
  marks = np.full(image.shape[:2], cv2.GC_BGD, np.uint8)
  marks[top:bottom, left:right] = cv2.GC_PR_FGD
  near, marks_near = np.ascontiguousarray(image[part]), marks[part].copy()
  if (marks_near == cv2.GC_PR_FGD).all():  # nothing tells the background
    return None
  cv2.setRNGSeed(0)  # of the mixtures' first centres
  models = np.zeros((1, 65)), np.zeros((1, 65))
  try:
    cv2.grabCut(
      near, marks_near, None, *models, ITERATIONS, cv2.GC_INIT_WITH_MASK
    )
  except cv2.error:  # fewer pixels than Gaussians
    return None
  found = np.zeros(image.shape[:2], bool)
  found[part] = (marks_near == cv2.GC_FGD) | (marks_near == cv2.GC_PR_FGD)
  share = np.count_nonzero(found) / ((bottom - top) * (right - left))
  return found if LEAST <= share <= MOST else None


def _ring(mask, width):
  """The pixels along a mask's border: bool [H, W]; at width 1 inside alone."""
  kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
  mask = mask.astype(np.uint8)
  outer, inner = width // 2, width - width // 2
  # Objects go on beyond the edge of the image.
  wide = cv2.dilate(mask, kernel, iterations=outer) if outer else mask
  narrow = cv2.erode(
    mask, kernel, iterations=inner, borderType=cv2.BORDER_REPLICATE
  )
  return (wide > 0) & (narrow == 0)
