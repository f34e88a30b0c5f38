"""The same picture twice: exactly, or scaled and recompressed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image

NEAR = 4  # bits of 64 that differ at most
ALIKE = 0.99  # least correlation of thumbnails
MAX_LOOKED_AT = 2_000_000  # pairs of like dHash; radiographs have many
_BLOCK = 1024


def digest(array: np.ndarray) -> bytes:
  """Returns 16 bytes that stand for an array's shape, type and content."""
  hash_ = hashlib.blake2b(digest_size=16)
  hash_.update(f'{array.shape} {array.dtype}'.encode())
  hash_.update(np.ascontiguousarray(array))
  return hash_.digest()


def look(image: np.ndarray) -> tuple[np.uint64, np.ndarray]:
  """Returns what stays alike when an image is scaled or recompressed.

  Args:
    image: uint8 [H, W, 1 or 3].

  Returns:
    dHash, whether grey grows from left to right on an 8x8 grid (N. Krawetz,
    "Kind of like that", 2013), and the image itself, uint8 [256], 16x16 grey.
  """
  squeezed = image[..., 0] if image.shape[-1] == 1 else image
  grey = Image.fromarray(np.ascontiguousarray(squeezed)).convert('L')
  small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX))
  bits = np.packbits(small[:, 1:] > small[:, :-1]).view(np.uint64)[0]
  return bits, np.asarray(grey.resize((16, 16), Image.Resampling.BOX)).ravel()


def near_pairs(
  left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
  """Returns the pairs of images that look alike.

  Their dHash differs in at most 4 of 64 bits and their thumbnails correlate
  with 0.99 or more: radiographs of one kind agree in dHash by the thousand.
  All pairs are compared, a block of rows at a time: 50,000 with 5,000 in
  about a second. After `MAX_LOOKED_AT` pairs of like dHash the search ends:
  what it is good for, a hint, it has given by then.

  Args:
    left: hashes uint64 [n], thumbnails uint8 [n, 256]; see `look`.
    right: the same of m images.

  Returns:
    int64 [pairs, 2], indices into left and right.
  """
  found, looked_at = [np.empty((0, 2), np.int64)], 0
  for start in range(0, len(left[0]), _BLOCK):
    differ = left[0][start : start + _BLOCK, None] ^ right[0][None]
    pairs = np.argwhere(np.bitwise_count(differ) <= NEAR) + (start, 0)
    for part in np.array_split(pairs, 1 + len(pairs) // 65536):
      a = _standardised(left[1][part[:, 0]])
      b = _standardised(right[1][part[:, 1]])
      found.append(part[(a * b).mean(-1) >= ALIKE])
    looked_at += len(pairs)
    if looked_at > MAX_LOOKED_AT:
      break
  return np.concatenate(found)


def _standardised(rows):
  rows = rows.astype(np.float32)
  rows -= rows.mean(-1, keepdims=True)
  return rows / np.maximum(rows.std(-1, keepdims=True), 1)


def same(
  digests: Mapping[str, bytes], left: Sequence[str], right: Sequence[str]
) -> Iterator[tuple[str, str]]:
  """Yields (id of left, id of right) for each of `right` that left has too.

  Args:
    digests: of the images, by id; those without one are passed over.
    left: ids.
    right: ids; the same id on both sides is no pair.
  """
  first = {}
  for id_ in left:
    if id_ in digests:
      first.setdefault(digests[id_], id_)
  for id_ in right:
    other = first.get(digests.get(id_))
    if other is not None and other != id_:
      yield other, id_


def repeats(
  digests: Mapping[str, bytes], ids: Sequence[str]
) -> Iterator[tuple[str, str]]:
  """Yields (first id, later id) of the same content within `ids`."""
  first = {}
  for id_ in ids:
    if id_ in digests:
      other = first.setdefault(digests[id_], id_)
      if other != id_:
        yield other, id_
