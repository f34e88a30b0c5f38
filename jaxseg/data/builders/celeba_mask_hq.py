"""CelebAMask-HQ: 30,000 portraits with masks of 18 parts.

Official layout (CelebAMask-HQ.zip):

  CelebAMask-HQ/CelebA-HQ-img/{0..29999}.jpg                  1024x1024
  CelebAMask-HQ/CelebAMask-HQ-mask-anno/{0..14}/00000_skin.png  512x512, 0/255
  CelebAMask-HQ/CelebA-HQ-to-CelebA-mapping.txt

A part that is not visible has no file. Masks are painted over one another in
the order of the official g_mask.py, so later parts win. Images are reduced to
the 512x512 of the masks with antialiased bilinear filtering, which is what the
official face_parsing code gives the network, and kept as JPEG (quality 95, all
of the colour).

Splits. The configs 'classes8' and 'parts19' have the split of SemanticGAN's
author (nv-tlabs/semanticGAN_code, issue 2): 0-27999 unlabelled, 28000-29499
train, 29500-29999 test; labels of unlabelled images are not written. It is by
image: a person of 'test' may well be in 'train'. The configs '*_celeba' have
the partition of the official g_partition.py, which is CelebA's own, where no
person is on both sides: 24,183, 2,993 and 2,824, all with labels.

Persons. With identity_CelebA.txt (given by CelebA's authors on request) beside
the mapping file, each image's group is its person. The author's split then has
groups in both training and test; `check` says how many, moves nothing, and
training refuses it. Take a '*_celeba' config, or do without the file to follow
the paper.
"""

import dataclasses
import functools
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data.builders import base, celeba_tables
from jaxseg.data.formats import images
from jaxseg.errors import DataError

SIDE = 512
QUALITY = 95


class Part(NamedTuple):
  """A part of the face; its id is its place in `PARTS`."""

  name: str
  class_of_8: str
  colour: tuple[int, int, int]


# In the order of the official g_mask.py, in the colours of its g_color.py.
# Which parts make up the 8 classes is what a user supposed in
# nv-tlabs/semanticGAN_code, issue 3; no public source confirms it.
PARTS = (
  Part('background', 'background', (0, 0, 0)),
  Part('skin', 'skin', (204, 0, 0)),
  Part('nose', 'nose', (76, 153, 0)),
  Part('eye_g', 'background', (204, 204, 0)),
  Part('l_eye', 'eye', (51, 51, 255)),
  Part('r_eye', 'eye', (204, 0, 204)),
  Part('l_brow', 'brow', (0, 255, 255)),
  Part('r_brow', 'brow', (255, 204, 204)),
  Part('l_ear', 'ear', (102, 51, 0)),
  Part('r_ear', 'ear', (255, 0, 0)),
  Part('mouth', 'mouth', (102, 204, 0)),
  Part('u_lip', 'mouth', (255, 255, 0)),
  Part('l_lip', 'mouth', (0, 0, 153)),
  Part('hair', 'hair', (0, 0, 204)),
  Part('hat', 'background', (255, 51, 153)),
  Part('ear_r', 'background', (0, 204, 204)),
  Part('neck_l', 'background', (0, 51, 0)),
  Part('neck', 'background', (255, 153, 51)),
  Part('cloth', 'background', (0, 204, 0)),
)
NAMES19 = tuple(part.name for part in PARTS)
COLOURS19 = tuple(part.colour for part in PARTS)
# Ids and colours of SemanticGAN.
CLASSES8 = {
  'background': (0, 0, 0),
  'skin': (0, 0, 205),
  'nose': (132, 112, 255),
  'eye': (25, 25, 112),
  'brow': (187, 255, 255),
  'ear': (102, 205, 170),
  'mouth': (227, 207, 87),
  'hair': (142, 142, 56),
}
NAMES8, COLOURS8 = tuple(CLASSES8), tuple(CLASSES8.values())
# First ids of the author's train and test.
AUTHOR_TRAIN, AUTHOR_TEST = 28000, 29500


@dataclasses.dataclass
class Config(base.Config):
  """A variant of CelebAMask-HQ.

  Attributes:
    class_of_part: class id of each of the 19 part ids.
    partition: 'author' or 'celeba', see the module.
  """

  class_of_part: tuple[int, ...] = ()
  partition: str = 'author'


def _config(name, partition):
  parts = name.startswith('parts19')
  names = NAMES19 if parts else NAMES8
  author = partition == 'author'
  return Config(
    name=name,
    description=f'{len(names)} classes; '
    + ('the split of SemanticGAN.' if author else "CelebA's split, by person."),
    class_names=names,
    palette=COLOURS19 if parts else COLOURS8,
    counts={'unlabelled': 28000, 'train': 1500, 'test': 500}
    if author
    else {'train': 24183, 'val': 2993, 'test': 2824},
    class_of_part=tuple(
      names.index(part.name if parts else part.class_of_8) for part in PARTS
    ),
    partition=partition,
  )


class CelebAMaskHQ(base.Builder, skip_registration=True):
  """See the module."""

  name = 'celeba_mask_hq'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    _config('classes8', 'author'),
    _config('parts19', 'author'),
    _config('classes8_celeba', 'celeba'),
    _config('parts19_celeba', 'celeba'),
  ]
  TITLE = 'Portraits of celebrities, 8 or 19 parts of the face'
  HOMEPAGE = 'https://github.com/switchablenorms/CelebAMask-HQ'
  LICENCE = (
    'Non-commercial research only; no redistribution, no publishing of any '
    'portion'
  )
  CITATION = """\
@inproceedings{CelebAMask-HQ,
  title={MaskGAN: Towards Diverse and Interactive Facial Image Manipulation},
  author={Lee, Cheng-Han and Liu, Ziwei and Wu, Lingyun and Luo, Ping},
  booktitle={CVPR}, year={2020}
}"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
download CelebAMask-HQ.zip (3 GB) from the Google Drive or Baidu link of
https://github.com/switchablenorms/CelebAMask-HQ (non-commercial research only,
no redistribution), and unpack it so that --manual_dir holds
CelebAMask-HQ/{CelebA-HQ-img,CelebAMask-HQ-mask-anno}.
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    """See `base.Builder.scan`."""
    folder = root / 'CelebAMask-HQ'
    if not folder.exists() and (root / 'CelebA-HQ-img').is_dir():
      folder = root
    found = self.require(folder / 'CelebA-HQ-img', 'the folder of images')
    found = {int(p.stem): p for p in found.glob('*.jpg') if p.stem.isdecimal()}
    masks = list_masks(
      self.require(folder / 'CelebAMask-HQ-mask-anno', 'the folder of masks')
    )
    mapping = folder / 'CelebA-HQ-to-CelebA-mapping.txt'
    if self.builder_config.partition == 'celeba':
      self.require(mapping, "the table of CelebA's ids")
      splits = celeba_tables.partition(sorted(found), mapping)
    else:
      splits = _by_author(sorted(found))
    groups = celeba_tables.persons(folder / 'identity_CelebA.txt', mapping)
    return {
      split: [
        self._record(found[i], masks.get(i), split, groups.get(i, ''))
        for i in ids
        # Without any mask it is a part of the archive that is missing.
        if split == 'unlabelled' or i in masks
      ]
      for split, ids in splits.items()
    }

  def check(self, root: Path, allow_partial: bool) -> dict[str, int]:
    """See `base.Builder.check`; says which persons are on both sides."""
    counts = super().check(root, allow_partial)
    splits = self.scan(root)
    scored = [r for r in splits['test'] if r.group]
    training = {
      r.group for name in splits if name != 'test' for r in splits[name]
    }
    crossing = [r for r in scored if r.group in training]
    if crossing:
      print(
        f'jaxseg: {self.name}: {len(crossing)} of {len(scored)} test images '
        'show a person of the training images (first '
        f'{crossing[0].id}, {crossing[0].group}), so training will refuse '
        "this split; prepare a config '*_celeba', which is by person, or take "
        'identity_CelebA.txt away to follow the paper',
        file=sys.stderr,
      )
    return counts

  def _record(self, path, masks, split, group):
    label = None
    if split != 'unlabelled':
      lookup = self.builder_config.class_of_part
      label = functools.partial(read_label, masks, lookup)
    return base.Record(
      f'{int(path.stem):05d}', functools.partial(read_jpeg, path), label, group
    )


def read_jpeg(path: Path) -> bytes:
  """Reads an image, reduced to at most 512x512, as a JPEG file's content."""
  image = Image.fromarray(images.read_image(path, 3))
  if max(image.size) > SIDE:
    image = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
  data = io.BytesIO()
  image.save(data, 'JPEG', quality=QUALITY, subsampling=0)
  return data.getvalue()


def read_label(
  masks: dict[int, Path], class_of_part: Sequence[int]
) -> np.ndarray:
  """Paints the masks of one face over one another.

  Args:
    masks: {part id: file}; pixels other than 0 are the part.
    class_of_part: class id of each part id.

  Returns:
    uint8 [H, W] of class ids.

  Raises:
    DataError: a damaged file, or masks of several sizes.
  """
  label = None
  for part in sorted(masks):
    mask = images.read_image(masks[part], 1)[..., 0] > 0
    if label is None:
      label = np.zeros(mask.shape, np.uint8)
    if mask.shape != label.shape:
      raise DataError(
        f'{masks[part]}: the mask is {mask.shape[1]}x{mask.shape[0]} and '
        f'another one of this face {label.shape[1]}x{label.shape[0]}, expected '
        'one size; unpack the archive again',
        'size_mismatch',
      )
    label[mask] = part
  return np.asarray(class_of_part, np.uint8)[label]


def list_masks(folder: Path) -> dict[int, dict[int, Path]]:
  """Returns {image number: {part id: file}} of folder/*/00000_PART.png.

  Raises:
    DataError: a file of a part that the official table does not have.
  """
  masks = {}
  for path in folder.glob('*/*.png'):
    match = re.fullmatch(r'(\d+)_(\w+)', path.stem)
    if not match:
      continue
    if match[2] not in NAMES19[1:]:
      raise DataError(
        f'{path}: the mask is of the part {match[2]!r}, expected one of '
        f'{", ".join(NAMES19[1:])}; unpack the archive again',
        'unknown_ids',
      )
    masks.setdefault(int(match[1]), {})[NAMES19.index(match[2])] = path
  return masks


def _by_author(ids):
  return {
    'unlabelled': [i for i in ids if i < AUTHOR_TRAIN],
    'train': [i for i in ids if AUTHOR_TRAIN <= i < AUTHOR_TEST],
    'test': [i for i in ids if i >= AUTHOR_TEST],
  }
