import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.morphology import skeletonize

from jaxseg.data import weak
from jaxseg.data.annotations import strokes
from jaxseg.errors import UserError

DRAWN = ('scribbles', 'clicks', 'boxes', 'polygons')


def ellipse(label, class_id, y, x, ry, rx):
  rows, columns = np.indices(label.shape)
  label[((rows - y) / ry) ** 2 + ((columns - x) / rx) ** 2 <= 1] = class_id


@pytest.fixture
def face():
  """Background, skin, hair around it, two eyes, a mouth; a void corner."""
  label = np.zeros((128, 128), np.uint8)
  ellipse(label, 2, 58, 64, 50, 44)
  ellipse(label, 1, 70, 64, 44, 30)
  ellipse(label, 3, 60, 52, 4, 7)
  ellipse(label, 3, 60, 76, 4, 7)
  ellipse(label, 4, 95, 64, 4, 12)
  label[:20, :20] = 255
  return label


@pytest.fixture
def ring():
  """A ring of radius 20 around a disc of another class."""
  label = np.zeros((96, 96), np.uint8)
  ellipse(label, 2, 48, 48, 25, 25)
  ellipse(label, 3, 48, 48, 15, 15)
  return label


def weaken(label, kind, **kwargs):
  return weak.weaken(label, kind, **(dict(num_classes=5) | kwargs))


@pytest.mark.parametrize('kind', DRAWN)
def test_a_pure_function_of_label_and_seed(face, kind):
  before = face.copy()
  a, b = weaken(face, kind, seed=3), weaken(face, kind, seed=3)
  np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(face, before)
  assert a.dtype == np.uint8 and a.shape == face.shape
  random = kind in ('scribbles', 'clicks')
  assert np.array_equal(a, weaken(face, kind, seed=4)) != random
  frozen = face.copy()
  frozen.flags.writeable = False
  np.testing.assert_array_equal(weaken(frozen, kind, seed=3), a)


@pytest.mark.parametrize('kind', DRAWN)
def test_void_stays_void_and_every_class_is_there(face, kind):
  for density in (0.05, 1.0, 4.0):
    drawn = weaken(face, kind, density=density)
    assert (drawn[face == 255] == 255).all()
    assert set(np.unique(drawn)) | {255} == {0, 1, 2, 3, 4, 255}


@pytest.mark.parametrize('kind', DRAWN)
def test_labels_of_one_pixel_and_of_none(kind):
  label = np.zeros((32, 32), np.uint8)
  label[4, 5] = 1
  drawn = weaken(label, kind, width=1)
  assert drawn[4, 5] == 1 and np.count_nonzero(drawn == 1) == 1
  void = np.full((32, 32), 255, np.uint8)
  drawn = weaken(void, kind)
  np.testing.assert_array_equal(drawn, void)
  whole = np.ones((32, 32), np.uint8)
  assert (weaken(whole, kind) == 1).any()


@pytest.mark.parametrize('side', [64, 128, 256])
def test_scribbles_label_three_percent_rightly(face, side):
  zoomed = np.asarray(Image.fromarray(face).resize((side, side), 0))
  drawn = weaken(zoomed, 'scribbles')
  known = drawn != 255
  assert 0.025 < known.mean() < 0.035
  np.testing.assert_array_equal(drawn[known], zoomed[known])
  assert 0.01 < (weaken(zoomed, 'scribbles', density=0.5) != 255).mean() < 0.02


def test_scribbles_keep_to_the_middle_and_to_their_width(face):
  for width in (1, 3, 5):
    drawn = weaken(face, 'scribbles', width=width, density=9.0)
    for class_id in (1, 2):
      stroke = drawn == class_id
      depth = strokes.depth(face == class_id)
      line = skeletonize(stroke)
      path = strokes.path(face == class_id, width, np.random.default_rng(0))
      rows, columns = np.rint(path).astype(int).T
      assert depth[rows, columns].min() > width / 2
      assert stroke.sum() < 1.5 * width * line.sum()
      assert stroke.sum() > 0.6 * width * line.sum()
      # One connected line without side branches: two ends, or a ring.
      assert ndimage.label(stroke, np.ones((3, 3)))[1] == 1
      neighbours = ndimage.convolve(line.astype(int), np.ones((3, 3)))
      assert (neighbours[line] == 2).sum() in (0, 2)


def test_scribbles_of_rings_and_discs_go_around(ring):
  drawn = weaken(ring, 'scribbles', width=1, density=9.0)
  for class_id, radius in ((2, 20), (3, 7.5)):
    y, x = np.nonzero(drawn == class_id)
    np.testing.assert_allclose(np.hypot(y - 48, x - 48), radius, atol=3)
    angles = np.sort(np.arctan2(y - 48, x - 48))
    gap = np.diff(angles, append=angles[0] + 2 * np.pi).max()
    assert gap < np.deg2rad(60)
  cuts = set()
  for seed in range(6):
    drawn = weaken(ring, 'scribbles', width=1, density=1.0, seed=seed)
    y, x = np.nonzero(drawn == 2)
    cuts.add(round(float(np.arctan2(y - 48, x - 48).mean()), 1))
  assert len(cuts) > 3  # opened at different places


def test_short_strokes_are_dots(face):
  drawn = weaken(face, 'scribbles', density=1e-3, width=1)
  for class_id, count in enumerate((1, 1, 1, 2, 1)):
    assert np.count_nonzero(drawn == class_id) == count


def test_longer_strokes_with_density(face):
  drawn = [
    (weaken(face, 'scribbles', density=d) == 1).sum() for d in (0.1, 0.5, 1, 9)
  ]
  assert (np.diff(drawn) > 0).all()


def test_one_click_in_the_middle_of_each_component(face):
  drawn = weaken(face, 'clicks', width=1)
  counts = [np.count_nonzero(drawn == k) for k in range(5)]
  assert counts == [1, 1, 1, 2, 1]
  for class_id in (1, 2, 3, 4):
    depth = strokes.depth(face == class_id)
    parts, n = ndimage.label(face == class_id, np.ones((3, 3)))
    for i in range(1, n + 1):
      (there,) = depth[(parts == i) & (drawn == class_id)]
      assert there >= 0.8 * depth[parts == i].max()
  disc = weaken(face, 'clicks', width=3)
  assert np.count_nonzero(disc == 1) == 9
  np.testing.assert_array_equal(disc[disc != 255], face[disc != 255])


def test_number_of_clicks_with_density(face):
  def count(density):
    drawn = weaken(face, 'clicks', width=1, density=density)
    return [np.count_nonzero(drawn == k) for k in (1, 3)]

  assert count(3.0) == [3, 6]
  assert count(0.5) == [1, 1]
  drawn = weaken(face, 'clicks', width=1, density=3.0)
  y, x = np.nonzero(drawn == 1)
  assert min(np.hypot(np.diff(y), np.diff(x))) > 5  # apart from each other


def test_specks_are_left_out_unless_they_are_all_there_is(face):
  face[100:102, 2] = 1
  face[110, 110] = 3
  for kind in DRAWN:
    drawn = weaken(face, kind, width=1, density=3.0)
    assert not (drawn[100:102, 2] == 1).any() and drawn[110, 110] != 3
  assert all(box[1:3] != (110, 110) for box in weak.boxes(face, 5))


def test_boxes(ring):
  assert weak.boxes(ring, 5) == [(2, 23, 23, 74, 74), (3, 33, 33, 64, 64)]
  drawn = weaken(ring, 'boxes', width=3)
  assert (drawn[25:31, 26:70] == 2).all()
  assert (drawn[36:61, 36:61] == 3).all()  # the smaller one lies on top
  assert (drawn[22:25, 22:75] == 255).all() and (drawn[:21] == 0).all()
  band = drawn == 255
  assert ndimage.label(band)[1] == 2 and band[32:35, 40].all()
  assert weak.boxes(np.full((8, 8), 255, np.uint8), 5) == []


def test_two_objects_two_boxes(face):
  eyes = [box[1:] for box in weak.boxes(face, 5) if box[0] == 3]
  assert sorted(eyes) == [(56, 45, 65, 60), (56, 69, 65, 84)]


def test_polygons_are_near_the_contour_and_keep_holes(ring):
  drawn = weaken(ring, 'polygons')
  assert (drawn != 255).all()
  for class_id in (2, 3):
    a, b = drawn == class_id, ring == class_id
    assert 0.7 < (a & b).sum() / (a | b).sum() < 0.99
  assert (drawn[45:52, 45:52] == 3).all()
  ring[ring == 3] = 0  # now a hole
  drawn = weaken(ring, 'polygons')
  assert (drawn[40:57, 40:57] == 0).all() and drawn[48, 28] == 2
  right = [
    (weaken(ring, 'polygons', density=d) == ring).mean() for d in (0.5, 1, 3)
  ]
  assert right[0] < right[1] < right[2]


def test_tags(face):
  present = weak.tags(face, 7)
  assert present.dtype == np.float32
  np.testing.assert_array_equal(present, [1, 1, 1, 1, 1, 0, 0])
  assert (weaken(face, 'tags') == 255).all()


def test_ids_without_class_are_void(face):
  drawn = weaken(face, 'polygons', num_classes=4)
  assert (drawn[face == 4] == 255).all()


@pytest.mark.parametrize(
  'field, value, said',
  [
    ('kind', 'scribble', 'scribbles, clicks'),
    ('density', 0.0, 'above 0'),
    ('density', float('nan'), 'above 0'),
    ('width', 0, '1 pixel'),
  ],
)
def test_mistakes_are_named(config, field, value, said):
  weak.check(config.data.weak)
  config.data.weak[field] = value
  with pytest.raises(UserError, match=said) as error:
    weak.check(config.data.weak)
  assert f'config.data.weak.{field} is' in str(error.value)


def test_unknown_kind(face):
  with pytest.raises(ValueError, match='scribbles, clicks'):
    weaken(face, 'points')


def test_like_the_scribbles_that_people_drew(shared):
  """Share of each class that is labelled, beside ACDC's real scribbles."""
  root = shared / 'data/cardiac_mr'
  train = json.loads((root / 'splits.json').read_text())['train']
  pixels, real, ours = np.zeros((3, 4))
  for id_ in train[::60]:
    label = np.asarray(Image.open(root / f'labels/{id_}.png'))
    scribble = np.asarray(Image.open(root / f'scribbles/{id_}.png'))
    drawn = weaken(label, 'scribbles', num_classes=4, width=1)
    for shares, array in ((pixels, label), (real, scribble), (ours, drawn)):
      shares += np.bincount(array.ravel(), minlength=256)[:4]
  np.testing.assert_allclose(ours.sum(), real.sum(), rtol=0.35)
  ratio = (ours / pixels) / (real / pixels)
  assert (0.35 < ratio).all() and (ratio < 1.5).all()
