"""Where an annotator would draw in a region: strokes and clicks.

All take a bool mask [h, w] of one connected region; points are (row, column).
The mask's frame counts as border, so that strokes keep away from it.
"""

import cv2
import numpy as np
from scipy import ndimage
from scipy.sparse import csgraph
from skimage.graph import pixel_graph
from skimage.morphology import skeletonize

# Labelled part of an image at density 1; ScribbleSup's scribbles, and those
# of ACDC by Valvano et al. 2021, label about 3 % of the pixels.
SHARE = 0.03
SMOOTHING = 2.0  # std along a path, pixels
# Part of the greatest depth from which on a pixel is in the middle.
MIDDLE = 0.5
CLICK_DEPTH = 0.8


def depth(mask: np.ndarray) -> np.ndarray:
  """Returns each pixel's distance to the nearest outside, float32 [h, w]."""
  padded = np.pad(mask.astype(np.uint8), 1)
  return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]


def innermost(mask: np.ndarray) -> tuple[int, int]:
  """Returns the (first) pixel farthest from the outside."""
  return np.unravel_index(np.argmax(depth(mask)), mask.shape)


def path(mask: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
  """Returns one smooth stroke that runs through the whole region.

  It is the longest path of the region's skeleton, away from its border. Rings
  are cut open at a random place. A round region's skeleton is hardly more
  than a point; it gets a stroke around its middle.

  Args:
    mask: bool [h, w].
    width: of the stroke, in pixels.
    rng: source of randomness.

  Returns:
    float32 [n, 2], its points about a pixel apart.
  """
  distance = depth(mask)
  deepest = distance.max()
  margin = min(width / 2 + 1, MIDDLE * deepest)
  skeleton = _main_path(skeletonize(mask) & (distance >= margin), rng)
  if len(skeleton) < 2 * deepest:
    around = _around(distance >= MIDDLE * deepest, rng)
    skeleton = max(skeleton, around, key=len)
  if not len(skeleton):
    skeleton = np.array([innermost(mask)])
  return ndimage.gaussian_filter1d(
    skeleton.astype(np.float32), SMOOTHING, axis=0, mode='nearest'
  )


def cut(
  points: np.ndarray, part: float, rng: np.random.Generator
) -> np.ndarray:
  """Returns a random stretch of a path, `part` of it, at least a point."""
  n = max(1, round(part * len(points)))
  start = rng.integers(len(points) - n + 1)
  return points[start : start + n]


def draw(points: np.ndarray, shape: tuple[int, int], width: int) -> np.ndarray:
  """Returns bool `shape`, True on the line through `points`."""
  canvas = np.zeros(shape, np.uint8)
  # The last point twice, as a line of one point would not be drawn.
  line = np.rint(points[[*range(len(points)), -1], ::-1]).astype(np.int32)
  cv2.polylines(canvas, [line.reshape(-1, 1, 2)], False, 1)
  # Not polylines' own thickness: its round joints make short pieces wider.
  brush = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
  return cv2.dilate(canvas, brush) > 0


def disc(
  point: tuple[int, int], shape: tuple[int, int], width: int
) -> np.ndarray:
  """Returns bool `shape`, True on the disc of that diameter."""
  y, x = np.ogrid[: shape[0], : shape[1]]
  return (y - point[0]) ** 2 + (x - point[1]) ** 2 <= (width / 2) ** 2


def interior_points(
  mask: np.ndarray, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
  """Returns `count` random points deep in the region, apart from each other.

  Each is drawn among the pixels at least 0.8 times as deep as the deepest;
  those drawn count as outside for the next.
  """
  left = mask.copy()
  points = []
  for _ in range(min(count, np.count_nonzero(mask))):
    distance = depth(left)
    deep = np.argwhere(distance >= CLICK_DEPTH * distance.max())
    points.append(tuple(deep[rng.integers(len(deep))].tolist()))
    left[points[-1]] = False
  return points


def _main_path(skeleton, rng):
  """Returns the longest path in a skeleton, int [n, 2] in order.

  Random weights make the spanning tree cut each ring at a random place; the
  longest path of a tree runs from the pixel farthest from anywhere.
  """
  if np.count_nonzero(skeleton) < 2:
    return np.argwhere(skeleton)
  lengths, nodes = pixel_graph(skeleton, connectivity=2)
  weights = lengths.copy()
  weights.data = 1 + rng.uniform(size=len(weights.data))
  tree = csgraph.minimum_spanning_tree(weights)
  tree = tree.astype(bool).multiply(lengths).tocsr()
  start = int(np.argmax(_pixels_per_part(tree)))
  distances = csgraph.dijkstra(tree, directed=False, indices=start)
  end = _farthest(distances)
  distances, previous = csgraph.dijkstra(
    tree, directed=False, indices=end, return_predecessors=True
  )
  route = [_farthest(distances)]
  while route[-1] != end:
    route.append(int(previous[route[-1]]))
  return np.column_stack(np.unravel_index(nodes[route], skeleton.shape))


def _pixels_per_part(graph):
  """Returns for each node the size of its connected part."""
  _, parts = csgraph.connected_components(graph, directed=False)
  return np.bincount(parts)[parts]


def _farthest(distances):
  return int(np.argmax(np.where(np.isfinite(distances), distances, -1)))


def _around(core, rng):
  """Returns the contour of a core from a random start, int [n, 2]."""
  contours, _ = cv2.findContours(
    core.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
  )
  contour = max(contours, key=len)[:, 0, ::-1]
  return np.roll(contour, rng.integers(len(contour)), axis=0)
