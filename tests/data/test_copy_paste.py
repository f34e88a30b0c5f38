import numpy as np
import pytest

from jaxseg.data import transforms


def rng(seed):
  return np.random.default_rng(seed)


@pytest.fixture
def pair():
  """Two examples whose image is drawn from the label, [16, 16, 1]."""
  label, other = np.zeros((2, 16, 16), np.uint8)
  label[2:6, 2:6] = 1
  label[12:, :] = 255
  other[4:8, 4:8] = 1
  other[10:14, 4:8] = 2
  other[:2] = 255
  return [(np.float32(x[..., None]) / 300, x) for x in (label, other)]


def test_copy_paste(pair):
  (image, label), (other, other_label) = pair
  before = image.copy(), label.copy()
  chosen = []
  for seed in range(60):
    mixed, mixed_label = transforms.copy_paste(
      image, label, other, other_label, rng(seed), 3
    )
    assert mixed.dtype == image.dtype and mixed_label.dtype == np.uint8
    np.testing.assert_array_equal(mixed[..., 0] * 300, mixed_label)
    pasted = mixed_label != label
    assert set(other_label[pasted]) <= {1, 2}  # neither background nor void
    chosen.append((mixed_label[7, 7] == 1, mixed_label[11, 5] == 2))
    assert (mixed_label[14:] == 255).all()
  shares = [
    chosen.count(c) / 60 for c in ((True, True), (True, False), (False, True))
  ]
  np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.15)
  np.testing.assert_array_equal(image, before[0])
  np.testing.assert_array_equal(label, before[1])


def test_copy_paste_of_nothing(pair):
  (image, label), (other, other_label) = pair
  ends = set()
  for empty in (0, 255, 7):  # 7 is no class
    generator = rng(1)
    mixed, mixed_label = transforms.copy_paste(
      image, label, other, np.full_like(other_label, empty), generator, 3
    )
    np.testing.assert_array_equal(mixed, image)
    np.testing.assert_array_equal(mixed_label, label)
    assert mixed is not image
    ends.add(generator.integers(2**62))
  generator = rng(1)
  transforms.copy_paste(image, label, other, other_label, generator, 3)
  assert ends == {generator.integers(2**62)}
