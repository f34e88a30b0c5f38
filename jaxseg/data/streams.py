"""Endless streams of training examples, pure functions of their position."""

import functools
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np

from jaxseg.data import synthetic, transforms, views
from jaxseg.data.examples import Examples

# Of config.data.augment; the unlabelled images are moved but not recoloured:
# a generator would learn to draw the recoloured ones, and for consistency
# methods this is the weak view.
COLOUR_FIELDS = (*transforms.COLOUR, 'copy_paste')

Element = dict[str, np.ndarray]


class Generated(NamedTuple):
  """Synthetic images of a labelled stream.

  Attributes:
    examples: with full labels, or boxes, see `Examples`.
    ids: of them.
    part: of the elements that are synthetic, in [0, 1].
  """

  examples: Examples
  ids: Sequence[str]
  part: float


def labelled(
  examples: Examples,
  ids: Sequence[str],
  data_config: Any,
  seed: int,
  length: int,
  generated: Generated | None = None,
) -> grain.MapDataset:
  """Elements {'image': uint8 or float32 [H, W, C], 'label': uint8 [H, W]}.

  With `weak.kind` 'tags' the label is void and 'tags' float32 [K] tells the
  classes of the image. The label is that of `Examples.training_label`. Where
  images are generated, some elements are of them, see `synthetic.mixed`; both
  kinds come epoch after epoch.
  """
  augment = _fields(data_config.augment)
  real = examples, ids, _reader(ids, seed)
  if generated is not None:
    made = *generated[:2], _reader(generated.ids, seed)

  def pool(position):
    """Returns (examples, ids, the position's id)."""
    if generated is None:
      return *real[:2], real[2](position)
    is_made, index = synthetic.mixed(position, seed, generated.part)
    chosen = made if is_made else real
    return *chosen[:2], chosen[2](index)

  def read(examples, id_):
    return examples.image(id_), examples.training_label(id_), examples.tags(id_)

  def element(image, label, tags):
    found = {'image': image, 'label': label}
    return found if tags is None else found | {'tags': tags}

  def augmented(position, rng):
    examples, ids, id_ = pool(position)
    image, label, tags = read(examples, id_)
    if augment.copy_paste and rng.uniform() < augment.copy_paste:
      other = ids[rng.integers(len(ids))]
      image, label = transforms.copy_paste(
        image, label, examples.image(other),
        examples.training_label(other), rng, examples.num_classes,
      )  # fmt: skip
    image, label = transforms.augment(image, label, rng, augment)
    return element(image, label, tags)

  ds = grain.MapDataset.range(length).seed(seed)
  if transforms.is_identity(augment):

    def plain(position):
      examples, _, id_ = pool(position)
      return element(*read(examples, id_))

    return ds.map(plain)
  return ds.random_map(augmented)


def unlabelled(
  examples: Examples,
  ids: Sequence[str],
  data_config: Any,
  seed: int,
  length: int,
) -> grain.MapDataset:
  """Elements {'unlabelled': [H, W, C]}, moved but not recoloured.

  With `strong.views` V > 0 also 'unlabelled_strong' [V, H, W, C], the same
  image recoloured strongly, and 'cutmix' float32 [V, H, W], 1 where the strong
  view shall show another image of the batch (see `views.cutmix`).
  """
  augment = _fields(data_config.augment, **dict.fromkeys(COLOUR_FIELDS, 0))
  strong = _fields(data_config.strong)
  read_id = _reader(ids, seed)

  def read(position):
    return {'unlabelled': examples.image(read_id(position))}

  def augmented(position, rng):
    image = read(position)['unlabelled']
    image, _ = transforms.augment(image, None, rng, augment)
    if not strong.views:
      return {'unlabelled': image}
    image = transforms.normalise(image)
    seen = [views.strong(image, rng, strong) for _ in range(strong.views)]
    boxes = [
      views.cutmix_box(rng, image.shape[:2], strong)
      for _ in range(strong.views)
    ]
    return {
      'unlabelled': image,
      'unlabelled_strong': np.stack(seen),
      'cutmix': np.stack(boxes),
    }

  ds = grain.MapDataset.range(length).seed(seed)
  if transforms.is_identity(augment) and not strong.views:
    return ds.map(read)
  return ds.random_map(augmented)


def collate(elements: Sequence[Element]) -> Element:
  """Stacks elements; images become float32 in [-1, 1], labels int32."""
  batch = {}
  for name, first in elements[0].items():
    dtype = np.int32 if name == 'label' else np.float32
    batch[name] = np.empty((len(elements), *first.shape), dtype)
    # Row by row: an array of all pixels before conversion would be one more.
    for row, element in zip(batch[name], elements, strict=True):
      if name != 'label' and first.dtype == np.uint8:
        transforms.normalise(element[name], out=row)
      else:
        row[...] = element[name]
  return batch


def _fields(config, **changes):
  """Returns fields of a config that are looked up twenty times faster."""
  return types.SimpleNamespace(**(config.to_dict() | changes))


def _reader(ids, seed):
  """Returns position -> id: epoch after epoch, each in an order of its own."""

  def read_id(position):
    epoch, i = divmod(position, len(ids))
    return ids[_permutation(len(ids), seed, epoch)[i]]

  return read_id


# Instead of grain's `shuffle`, which takes 2 ms an element for a set of 9
# images (0.6 ms for 30): it walks a cycle through at least 2^16 indices.
@functools.lru_cache(maxsize=16)
def _permutation(n, seed, epoch):
  return np.random.default_rng([seed, epoch]).permutation(n)
