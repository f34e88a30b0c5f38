"""Which files of a folder are images, labels and volumes, and which are not."""

import os
import pathlib
import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import NamedTuple

from jaxseg.data.formats import images, volumes
from jaxseg.data.problems import Problem, some

# Written by operating systems and archive programs.
_CLUTTER = {'thumbs.db', 'desktop.ini', '__macosx', '@eadir', 'icon\r'}
_OTHER_IMAGES = re.compile(
  r'\.(gif|jp2|j2k|jfif|heic|heif|avif|svg|psd|pdf|ppm|pgm|npy|npz|mha|mhd|'
  r'nrrd|cr2|cr3|nef|arw|dng)$',
  re.IGNORECASE,
)
_OTHER_VOLUMES = re.compile(r'\.(mha|mhd|nrrd)$', re.IGNORECASE)
_VOLUME = re.compile(r'\.(nii\.gz|nii|dcm|dicom|ima)$', re.IGNORECASE)
_NIFTI = re.compile(r'\.nii(\.gz)?$', re.IGNORECASE)


class Listing(NamedTuple):
  """Files by stem, in Unicode's composed form (NFC), sorted.

  Attributes:
    files: image or label files.
    volumes: NIfTI and DICOM files and folders of DICOM files.
    problems: files that cannot be used.
  """

  files: dict[str, pathlib.Path]
  volumes: dict[str, pathlib.Path]
  problems: list[Problem]


def scan(folder: pathlib.Path, what: str) -> Listing:
  """Lists the images or labels in a folder; its subfolders are not read.

  Hidden files and those of operating systems do not count.

  Args:
    folder: which.
    what: 'image' or 'label'.

  Raises:
    OSError: the folder cannot be listed.
  """
  suffixes = images.IMAGE_SUFFIXES if what == 'image' else images.LABEL_SUFFIXES
  found = Listing({}, {}, [])
  others = []
  for name in sorted(os.listdir(folder)):
    path = folder / name
    if name.startswith('.') or name.casefold() in _CLUTTER:
      continue
    if name.lower().endswith(suffixes) and not volumes.is_volume(path):
      _add(found, found.files, path, pathlib.PurePath(name).stem)
    elif is_volume(path):
      _add(found, found.volumes, path, volume_stem(name))
    elif what == 'label' and name.lower().endswith(images.IMAGE_SUFFIXES):
      found.problems.append(
        Problem(
          'refuse',
          'lossy',
          str(path),
          'the label file is JPEG or WebP, which change class ids, expected '
          f'{", ".join(suffixes)}; export it again as PNG from what it was '
          'made with',
        )  # fmt: skip
      )
    elif _OTHER_IMAGES.search(name):
      mend = 'PNG'
      if _OTHER_VOLUMES.search(name):
        mend = 'NIfTI (.nii.gz), as which 3D Slicer and ITK-SNAP export'
      found.problems.append(
        Problem(
          'skip' if what == 'image' else 'refuse',
          'format',
          str(path),
          f'the {what} file is of a kind that is not read, expected '
          f'{", ".join(suffixes)} or a volume; convert it to {mend}',
        )  # fmt: skip
      )
    else:
      others.append(name + '/' * path.is_dir())
  if others and what == 'label' and not (found.files or found.volumes):
    found.problems.append(
      Problem(
        'refuse',
        'no_labels',
        str(folder),
        f'there is no label file in it ({some(others)}), expected '
        f'{", ".join(suffixes)} or volumes; save what the annotation program '
        'drew as masks, one indexed PNG an image',
      )  # fmt: skip
    )
  elif others:
    found.problems.append(
      Problem(
        'note',
        'other_files',
        str(folder),
        f'{len(others)} files or folders are no {what}s and are not read '
        f'({some(others)}), expected {", ".join(suffixes)} or volumes',
      )  # fmt: skip
    )
  found.problems.extend(_differ_in_case(folder, found))
  return found


def is_volume(path: pathlib.Path) -> bool:
  """Tells NIfTI and DICOM; looks inside only where the name allows it."""
  name = path.name
  if _NIFTI.search(name):
    return True
  may_be = _VOLUME.search(name) or path.is_dir() or '.' not in name
  return bool(may_be) and volumes.is_volume(path)


def volume_stem(name: str) -> str:
  """Returns the name of a file or folder without .nii.gz, .dcm and so on."""
  return _VOLUME.sub('', name)


def _add(found, group, path, stem):
  stem = unicodedata.normalize('NFC', stem)
  other = found.files.get(stem) or found.volumes.get(stem)
  if other is None:
    group[stem] = path
    return
  found.problems.append(
    Problem(
      'refuse',
      'two_files',
      str(path),
      f'{other.name} beside it has the same stem, expected one file a name; '
      'rename or remove one',
    )  # fmt: skip
  )


def _differ_in_case(folder, found):
  """Names that are one name on other disks."""
  folded = {}
  for stem in (*found.files, *found.volumes):
    folded.setdefault(stem.casefold(), []).append(stem)
  for stems in folded.values():
    if len(stems) > 1:
      yield Problem(
        'note', 'case', str(folder / stems[1]),
        f'{some(stems)} differ in upper and lower case only, expected names '
        'that stay apart on every disk; rename one',
      )  # fmt: skip


def orphans(
  labels: Mapping[str, pathlib.Path],
  ids: Collection[str],
  others: Mapping[str, pathlib.Path],
) -> list[Problem]:
  """Returns a problem for each label without an image of its name.

  Args:
    labels: label files, or label volumes, by stem.
    ids: the stems of image files, or of volumes.
    others: the volumes, or image files: of the kind that the labels are not.
  """
  folded = {id_.casefold(): id_ for id_ in ids}
  found = []
  for stem, path in labels.items():
    if stem in ids:
      continue
    if stem in others:
      found.append(
        Problem(
          'refuse',
          'no_image',
          str(path),
          f'the label and its image {others[stem].name} are not both volumes, '
          'or both image files, expected one kind; convert one of them',
        )  # fmt: skip
      )
      continue
    meant = folded.get(stem.casefold()) or _beginning(stem, ids)
    suffix = unicodedata.normalize('NFC', path.name).removeprefix(stem)
    hint = (
      f'rename it {meant + suffix!r}, as its image'
      if meant
      else 'add the image, rename the label or remove it'
    )
    found.append(
      Problem(
        'refuse',
        'no_image',
        str(path),
        f'the label has no image of the same name, expected images/{stem} '
        f'with any suffix; {hint}',
      )  # fmt: skip
    )
  return found


def _beginning(stem, ids):
  """Returns the id that a name like ID_mask begins or ends with, or None."""
  for match in re.finditer(r'[_\-. ]', stem):
    for part in (stem[: match.start()], stem[match.end() :]):
      if part in ids:
        return part
  return None
