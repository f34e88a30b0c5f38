"""Labels a folder of images: masks, overlays and a table.

  python -m jaxseg.predict --workdir=W --images=DIR --output=DIR

Writes DIR/NAME.png (indexed, the image's own size), DIR/overlays/NAME.png and
DIR/predictions.csv. Run it again after an interruption: what is done is kept.
"""

import collections
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from jaxseg import errors, visualize, workdir, writers
from jaxseg.config import parse_flags
from jaxseg.data.formats import images as image_files
from jaxseg.data.formats import intensity
from jaxseg.errors import UserError
from jaxseg.inference import (
  choose,
  compile_system,
  fingerprint,
  label_image,
  predict_images,
  to_input,
)

__all__ = ['main', 'output_names', 'predict_folder', 'predict_images']


def predict_folder(
  trained: workdir.Trained,
  images: str | os.PathLike,
  output: str | os.PathLike,
  stage: str | None = None,
  refine: bool = True,
  batch_size: int | None = None,
) -> list[str]:
  """Labels every image of a folder; see the top of this file.

  Args:
    trained: from `jaxseg.workdir.load`.
    images: folder of PNG, JPEG, TIFF, WebP and BMP files; its subfolders are
      not read.
    output: folder for the results, made if need be.
    stage: see `choose`.
    refine: use test-time optimisation where the method has it.
    batch_size: default: config.eval.batch_size.

  Returns:
    Names of the files that could not be read; each was told on the console.

  Raises:
    UserError: the folder is missing, holds no image or is the output folder.
  """
  images, output = Path(images), Path(output)
  names = output_names(_list_images(images))
  if output.resolve() == images.resolve():
    raise UserError(
      f'--output={output} is the folder of the images, expected another one: '
      'masks would overwrite images of the same name'
    )
  (output / 'overlays').mkdir(parents=True, exist_ok=True)
  system = choose(trained, stage, refine)
  table = _Table(output, system, trained.class_names)
  todo = [n for n in names if not table.has(images / n, names[n])]
  if len(todo) < len(names):
    writers.say(f'{len(names) - len(todo)} of {len(names)} images are done')
  size = min(batch_size or trained.config.eval.batch_size, len(todo) or 1)
  run = compile_system(system, trained.config, size) if todo else None
  progress = writers.Progress('predict', len(todo))
  bad = []
  for i in range(0, len(todo), size):
    batch = _read_batch(images, todo[i : i + size], trained.config, bad)
    if batch:
      inputs = np.stack([to_input(x, trained.config) for x in batch.values()])
      prediction, seconds = run(inputs)
      for j, (file, image) in enumerate(batch.items()):
        mask = label_image(
          prediction.probabilities[j], image.shape[:2], trained.config
        )
        _write(output, names[file], image, mask, trained.palette)
        trust = None if prediction.trust is None else prediction.trust[j]
        table.add(file, names[file], trust, seconds, mask)
      table.save()
    writers.say(progress.line(min(i + size, len(todo))))
  return bad


def output_names(files: Sequence[str]) -> dict[str, str]:
  """Maps file names to mask names: the same stem, '.png'.

  Files that share a stem (a.jpg, a.png) keep their suffix: a.jpg.png,
  a.png.png. Upper and lower case count as the same, as on some disks.
  """
  files = sorted(files)
  stems = collections.Counter(Path(file).stem.casefold() for file in files)
  names, taken = {}, set()
  for unique in (True, False):
    for file in files:
      stem = Path(file).stem
      if (stems[stem.casefold()] == 1) != unique:
        continue
      name = f'{stem}.png' if unique else f'{file}.png'
      while name.casefold() in taken:
        name = f'{name[:-4]}_.png'
      taken.add(name.casefold())
      names[file] = name
  return {file: names[file] for file in files}


class _Table:
  """predictions.csv, and which of its rows still hold."""

  def __init__(self, output, system, class_names):
    self._path = output / 'predictions.csv'
    self._output = output
    self._fields = ['file', 'mask', 'trust', 'seconds'] + [
      f'fraction_{name}' for name in class_names
    ]
    self._rows = {}
    made_by = output / 'predicted_by.json'
    identity = {
      'system': system.name,
      'stage': system.stage,
      'weights': fingerprint(system.state),
      'classes': list(class_names),
    }
    with_same = made_by.exists() and _read_json(made_by) == identity
    if with_same and self._path.exists():
      with self._path.open(newline='', encoding='utf-8') as file:
        self._rows = {row['file']: row for row in csv.DictReader(file)}
    else:
      self._path.unlink(missing_ok=True)
      data = json.dumps(identity, indent=1) + '\n'
      image_files.write_atomically(made_by, data.encode())

  def has(self, image, mask):
    row = self._rows.get(image.name)
    made = self._output / mask
    return (
      row is not None
      and row['mask'] == mask
      and (self._output / 'overlays' / mask).exists()
      and made.exists()
      and made.stat().st_mtime_ns >= image.stat().st_mtime_ns
    )

  def add(self, file, mask_name, trust, seconds, mask):
    classes = len(self._fields) - 4
    fractions = np.bincount(mask.ravel(), minlength=256)[:classes] / mask.size
    values = [file, mask_name, '' if trust is None else f'{float(trust):.6g}']
    values += [f'{seconds:.4g}', *(f'{f:.6f}' for f in fractions)]
    self._rows[file] = dict(zip(self._fields, values, strict=True))

  def save(self):
    text = io.StringIO()
    table = csv.DictWriter(text, self._fields, lineterminator='\n')
    table.writeheader()
    table.writerows(self._rows[file] for file in sorted(self._rows))
    image_files.write_atomically(self._path, text.getvalue().encode())


def _list_images(folder):
  if not folder.is_dir():
    what = 'a file' if folder.exists() else 'missing'
    raise UserError(
      f'--images={folder}: the folder is {what}, expected a folder of images'
    )
  files = [
    path.name
    for path in folder.iterdir()
    if path.suffix.lower() in image_files.IMAGE_SUFFIXES
    and not path.name.startswith('.')
  ]
  if not files:
    kinds = ', '.join(image_files.IMAGE_SUFFIXES)
    raise UserError(
      f'--images={folder}: the folder holds no image, expected files ending '
      f'in {kinds} (subfolders are not read)'
    )
  return files


def _read_batch(folder, files, config, bad):
  """Returns {file: image}; files that cannot be read are told and noted."""
  batch = {}
  values = intensity.from_config(config.data.intensity)
  for file in files:
    try:
      batch[file] = image_files.read_image(
        folder / file, config.data.channels, values
      )
    except UserError as error:
      writers.say(f'skipped: {error}')
      bad.append(file)
  return batch


def _write(output, name, image, mask, palette):
  # The mask comes last: its presence says that the image is done.
  picture = visualize.overlay(image, mask, palette)
  visualize.write_png(output / 'overlays' / name, picture)
  image_files.write_label(output / name, mask, palette)


def _read_json(path):
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError:
    return None


def _define_flags(to=flags.FLAGS):
  def define(kind, name, default, text, **kwargs):
    kind(name, default, text, flag_values=to, **kwargs)

  string = flags.DEFINE_string
  define(string, 'workdir', None, 'Folder of a training run.')
  define(string, 'images', None, 'Folder of images to label.')
  define(string, 'output', None, 'Folder for masks and overlays.')
  define(string, 'stage', None, 'Stage that labels; default: one that refines.')
  define(flags.DEFINE_bool, 'refine', True, 'Use test-time optimisation.')
  define(
    flags.DEFINE_integer, 'batch_size', None, 'Images at a time.',
    lower_bound=1,
  )  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command line; returns 1 if a file could not be read."""
  args = flags.FLAGS
  with errors.friendly():
    if len(argv) > 1:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    for name in ('workdir', 'images', 'output'):
      if not args[name].value:
        raise UserError(f'--{name} is missing; add --{name}=FOLDER')
    _list_images(Path(args.images))  # before the slow part
    bad = predict_folder(
      workdir.load(args.workdir), args.images, args.output, args.stage,
      args.refine, args.batch_size,
    )  # fmt: skip
    if bad:
      files = 'file' if len(bad) == 1 else 'files'
      writers.say(f'{len(bad)} {files} could not be read: {", ".join(bad)}')
    return 1 if bad else 0


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
