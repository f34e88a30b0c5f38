"""What the builders of public data sets share.

A builder turns the archives of a public set, in the layout in which they are
published, into a TFDS data set of ArrayRecord files. It lists the examples
(`scan`, which opens no pixel data); reading, counting, writing and indexing are
the same for all.
"""

import abc
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from jaxseg.data.builders import layout
from jaxseg.errors import DataError, UserError

# Near the end of files that were copied whole; what is cut off lacks them.
_LAST = {'JPEG': b'\xff\xd9', 'PNG': b'IEND'}
_TAIL = 64


class Record(NamedTuple):
  """One example to be written.

  Attributes:
    id: unique in the data set; letters, digits and '._-/' only.
    image: a JPEG or PNG file, kept as it is, or a function that returns the
      content of one, or uint8 [H, W] or [H, W, 3], which become a PNG.
    label: a function that returns uint8 [H, W], class ids and 255 (void), of
      the image's size; None: unlabelled.
    group: patient, sequence or subject; '': the example is its own.
  """

  id: str
  image: Path | Callable[[], np.ndarray | bytes]
  label: Callable[[], np.ndarray] | None = None
  group: str = ''


@dataclasses.dataclass
class Config(tfds.core.BuilderConfig):
  """A variant of a set.

  Attributes:
    class_names: in the order of their ids.
    palette: RGB colour of each class; (): PASCAL VOC's.
    channels: 1 (grey) or 3 (RGB).
    counts: the number of examples of each split in the complete set.
    budgets: published choices of few labelled groups of 'train', by their
      number; used with config.data.labelled_by='group'.
  """

  class_names: tuple[str, ...] = ()
  palette: tuple[tuple[int, int, int], ...] = ()
  channels: int = 3
  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  budgets: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A public set; a subclass gives the attributes and `scan`.

  Attributes:
    VERSION, BUILDER_CONFIGS: as TFDS wants them; the configs are `Config`s,
      the first is the default.
    TITLE: one line: what it shows.
    HOMEPAGE: where it is described.
    LICENCE: its terms, in one line.
    CITATION: BibTeX.
    MANUAL_DOWNLOAD_INSTRUCTIONS: where to get which archives, under which
      terms, and the layout that --manual_dir must have once they are unpacked.
    max_side: larger images are written reduced to this, in pixels; 0: none.
    on_example: called with nothing whenever another example is read.
  """

  TITLE = ''
  HOMEPAGE = ''
  LICENCE = ''
  CITATION = ''
  max_side = 0
  on_example: Callable[[], None] | None = None

  @abc.abstractmethod
  def scan(self, root: Path) -> dict[str, list[Record]]:
    """Lists the examples of each split; opens no pixel data.

    Splits are named as `jaxseg.data.splits` wants them: 'train', and 'val' and
    'test' where the publisher gives them (else they are drawn later);
    'unlabelled' or 'unlabelled_x'; 'ood_x' for other domains.

    Args:
      root: the folder of the unpacked archives.

    Raises:
      UserError: the layout is another; see `missing`.
    """

  def missing(self, path: Path, what: str) -> UserError:
    """Returns the error for a file or folder of the layout that is absent."""
    mend = layout.advice(path)
    if mend:
      mend += f' (all of it: python -m jaxseg.datasets list {self.name})'
    else:
      mend = ' '.join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    return UserError(f'{path}: {what} of {self.name} is missing; {mend}')

  def require(self, path: Path, what: str) -> Path:
    """Returns `path`; raises `missing` where there is nothing."""
    if not path.exists():
      raise self.missing(path, what)
    return path

  def check(self, root: Path, allow_partial: bool) -> dict[str, int]:
    """Scans and counts, before anything is written.

    Returns:
      {split: number of examples}.

    Raises:
      UserError: another layout, an id twice, or other counts than
        `Config.counts` unless `allow_partial`.
    """
    if not root.is_dir():
      found = 'is no folder' if root.exists() else 'is missing'
      raise UserError(
        f'{root}: --manual_dir {found}, expected that of the unpacked archives '
        f'of {self.name}; '
        f'{" ".join(self.MANUAL_DOWNLOAD_INSTRUCTIONS.split())}'
      )
    splits = self.scan(root)
    splits = {name: records for name, records in splits.items() if records}
    ids = [r.id for records in splits.values() for r in records]
    if len(set(ids)) < len(ids):
      twice = sorted(ids)
      twice = next(a for a, b in itertools.pairwise(twice) if a == b)
      raise UserError(
        f'{root}: {self.name} has the example {twice!r} twice, expected each '
        'once; is one archive unpacked twice?'
      )
    counts = {name: len(records) for name, records in splits.items()}
    if not counts:
      raise self.missing(root, 'every file')
    wrong = [
      f'{counts.get(name, 0)} in {name!r} instead of {n}'
      for name, n in self.builder_config.counts.items()
      if counts.get(name, 0) != n
    ]
    if wrong and not allow_partial:
      raise UserError(
        f'{root}: {self.name} is not whole: {", ".join(wrong)} examples, '
        'expected all of them; unpack what is missing, or prepare what is '
        'there with --allow_partial'
      )
    if 'train' in self.builder_config.counts and not counts.get('train'):
      raise self.missing(root, 'every image of the training split')
    return counts

  def _info(self) -> tfds.core.DatasetInfo:
    channels = self.builder_config.channels
    return tfds.core.DatasetInfo(
      builder=self,
      description=f'{self.TITLE}\n{self.LICENCE}',
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Text(),
          'group': tfds.features.Text(),
          'has_label': np.bool_,
          'image': tfds.features.Image(shape=(None, None, channels)),
          'label': tfds.features.Image(
            shape=(None, None, 1), encoding_format='png'
          ),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    splits = self.scan(Path(dl_manager.manual_dir))
    return {
      name: self._generate_examples(records)
      for name, records in splits.items()
      if records
    }

  def _generate_examples(
    self, records: Sequence[Record]
  ) -> Iterator[tuple[int, dict]]:
    for i, record in enumerate(records):
      try:
        example = self.example(record)
      except UserError as error:
        told, _, mend = str(error).rpartition('; ')
        if 'classes.json' not in mend:  # which only folders have
          raise
        mend = f'unpack the official archive of {self.name} again'
        raise DataError(f'{told}; {mend}') from error
      except Exception as error:  # decoders raise many types
        where = record.image if isinstance(record.image, Path) else record.id
        raise DataError(
          f'{where}: the image or the label of {self.name} cannot be read '
          f'({error}), expected whole files; copy or download them again'
        ) from error
      if self.on_example:
        self.on_example()
      yield i, example

  def example(self, record: Record) -> dict:
    """Returns the features of one record; reads its pixels.

    Raises:
      UserError: a label of another size than its image, or with ids that are
        no class.
    """
    if isinstance(record.image, Path):
      image = record.image.read_bytes()
    else:
      image = record.image()
    image = io.BytesIO(image) if isinstance(image, bytes) else _png(image)
    with Image.open(image) as opened:
      width, height = opened.size
      # Of a PNG without the tag, `getexif` would decode all pixels.
      may_be_turned = opened.format != 'PNG' or 'exif' in opened.info
      if may_be_turned and opened.getexif().get(0x0112, 1) > 4:
        width, height = height, width  # as readers see it
      if not _ends(opened.format, image.getvalue()[-_TAIL:]):
        opened.load()  # raises what is wrong, unless it is whole all the same
    image.seek(0)
    if record.label is None:
      label = np.full((height, width), 255, np.uint8)
    else:
      label = record.label()
    if label.shape != (height, width):
      raise UserError(
        f'{record.id}: the label of {self.name} is {label.shape[1]}x'
        f'{label.shape[0]} and the image {width}x{height}, expected one size; '
        'download the files again'
      )
    k = len(self.builder_config.class_names)
    strange = np.unique(label[(label >= k) & (label < 255)])
    if len(strange):
      raise UserError(
        f'{record.id}: the label of {self.name} holds the ids '
        f'{strange[:5].tolist()}, expected 0 to {k - 1} and 255; download the '
        'files again'
      )
    if 0 < self.max_side < max(width, height):
      image, label = _reduced(image, label, self.max_side)
    return {
      'id': record.id,
      'group': record.group or record.id,
      'has_label': record.label is not None,
      'image': image,
      'label': _png(label),
    }


def _ends(kind, tail):
  """Whether a file's last bytes are those of a whole one."""
  return _LAST.get(kind, b'') in tail


def _reduced(file, label, side):
  """Returns (image file, label) with a longer side of `side` pixels.

  The image by Lanczos, the label by nearest neighbour; what was a JPEG stays
  one, of quality 95.
  """
  with Image.open(file) as opened:
    kind, image = opened.format, ImageOps.exif_transpose(opened)
  width, height = (round(n * side / max(image.size)) for n in image.size)
  size = max(width, 1), max(height, 1)
  if image.mode in ('1', 'P'):  # which cannot be averaged
    image = image.convert('RGB')
  data = io.BytesIO()
  image = image.resize(size, Image.Resampling.LANCZOS)
  image.save(data, 'JPEG' if kind == 'JPEG' else 'PNG', quality=95)
  data.seek(0)
  label = Image.fromarray(label).resize(size, Image.Resampling.NEAREST)
  return data, np.asarray(label)


def _png(array):
  """Encodes uint8 [H, W] or [H, W, 3]; TFDS would want TensorFlow for it."""
  data = io.BytesIO()
  Image.fromarray(array).save(data, 'PNG')
  data.seek(0)
  return data
