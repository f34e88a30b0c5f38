"""Labels a folder of images and volumes: masks, overlays and a table.

  python -m jaxseg.predict --workdir=W --images=DIR --output=DIR

Writes DIR/NAME.png (indexed, the image's own size), DIR/overlays/NAME.png,
DIR/reconstructions/NAME.png (the image as a generative method draws it, at the
networks' size) and DIR/predictions.csv. Run it again after an interruption:
what is done is kept.

Of a volume (.nii, .nii.gz, a DICOM file, a folder with one DICOM series) every
slice is labelled, cut and shown as in training. It gets one DIR/NAME.nii.gz of
its own shape and place, a contact sheet as overlay, and one row in the table:
the mean trust of its slices, the seconds of all, the fractions of its voxels.

With --crf a dense CRF corrects the labels, see jaxseg/ops/dense_crf.py; the
trust stays the network's.

With --pretrained=DIR in place of --workdir, published weights invert the
images, see jaxseg/predict_pretrained.py.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

from jaxseg import (
  errors,
  mean_field,
  predict_files,
  predict_inversion,
  predict_pretrained,
  predict_table,
  predict_tto,
  visualize,
  workdir,
  writers,
)
from jaxseg.config import parse_flags
from jaxseg.errors import UserError
from jaxseg.inference import (
  choose,
  compile_system,
  fingerprint,
  label_image,
  predict_images,
  to_input,
)
from jaxseg.ops.dense_crf import CRF

__all__ = ['main', 'predict_folder', 'predict_images']


def predict_folder(
  trained: workdir.Trained,
  images: str | os.PathLike,
  output: str | os.PathLike,
  stage: str | None = None,
  refine: bool = True,
  batch_size: int | None = None,
  crf: CRF | None = None,
) -> list[str]:
  """Labels every image and volume of a folder; see the top of this file.

  Args:
    trained: from `jaxseg.workdir.load`.
    images: folder of PNG, JPEG, TIFF, WebP, BMP, NIfTI and DICOM files;
      subfolders are read as one DICOM series each, or not at all.
    output: folder for the results, made if need be.
    stage: see `choose`.
    refine: use test-time optimisation where the method has it.
    batch_size: images or slices at a time; default: config.eval.batch_size.
    crf: settings of a dense CRF that corrects the labels; None: none does.

  Returns:
    Names of the files that could not be read; each was told on the console.

  Raises:
    UserError: the folder is missing, holds no image or is the output folder;
      nibabel or pydicom is not installed.
  """
  images, output = Path(images), Path(output)
  names = predict_files.names_of(images, output)
  (output / 'overlays').mkdir(parents=True, exist_ok=True)
  system = choose(trained, stage, refine, crf)
  table = _Table(output, system, trained)
  todo = [n for n in names if not table.has(images / n, names[n])]
  if len(todo) < len(names):
    writers.say(f'{len(names) - len(todo)} of {len(names)} files are done')
  _tell_of_loose_slices(images, todo)
  bad = []
  counts = _count_pictures(images, todo, trained.config, bad)
  total = sum(counts.values())
  size = min(batch_size or trained.config.eval.batch_size, total or 1)
  run = compile_system(system, trained.config, size) if total else None
  progress = writers.Progress('predict', total)
  pictures = _read_pictures(images, counts, trained.config, bad)
  done = 0
  try:
    while batch := list(itertools.islice(pictures, size)):
      for answer in _label(batch, run, trained.config):
        mask = output / names[answer.file]
        answer.write(mask, trained.palette)
        table.add(answer, mask.name)
      table.save_at_times()
      done += len(batch)
      skipped = sum(counts.get(file, 0) for file in bad)
      writers.say(progress.line(min(done + skipped, total)))
  finally:
    table.save()
  return sorted(bad)


class _Answer:
  """What is found out about one file, picture by picture."""

  def __init__(self, file, opened):
    self.file = file
    self.masks = []
    self.trusts = []
    self.seconds = 0.0
    self._opened = opened
    self._shown = dict.fromkeys(predict_files.shown(opened.count))
    self._reconstructions = []  # of the pictures that are shown

  def add(self, picture, mask, trust, reconstruction, seconds):
    """Takes the next picture; tells whether it was the last."""
    if len(self.masks) in self._shown:
      self._shown[len(self.masks)] = picture
      if reconstruction is not None:
        self._reconstructions.append(visualize.to_rgb(reconstruction))
    self.masks.append(mask)
    if trust is not None:
      self.trusts.append(trust)
    self.seconds += seconds
    return len(self.masks) == self._opened.count

  def write(self, path, palette):
    # The mask comes last: its presence says that the file is done.
    masks = [self.masks[i] for i in self._shown]
    drawing = predict_files.draw(list(self._shown.values()), masks, palette)
    visualize.write_png(predict_files.overlay_path(path), drawing)
    if self._reconstructions:
      drawing = predict_files.sheet(self._reconstructions)
      visualize.write_png(predict_files.reconstruction_path(path), drawing)
    self._opened.save(path, self.masks, palette)


class _Table:
  """predictions.csv, and which of its rows still hold."""

  def __init__(self, output, system, trained):
    class_names, data = trained.class_names, trained.config.data
    self._output = output
    fields = ['file', 'mask', 'trust', 'seconds']
    fields += [f'fraction_{name}' for name in class_names]
    identity = {
      'system': system.name,
      'stage': system.stage,
      'weights': fingerprint(system.state),
      'classes': list(class_names),
      'intensity': json.loads(data.intensity.to_json()),
      'fit': data.fit,
    }
    if system.crf:
      identity['crf'] = system.crf._asdict()
    if system.refined:
      identity['refine'] = _refine_settings(trained.config, system.stage)
    path, made_by = output / 'predictions.csv', output / 'predicted_by.json'
    self._table = predict_table.Table(path, made_by, fields, identity)
    self.save, self.save_at_times = self._table.save, self._table.save_at_times

  def has(self, image, mask):
    row = self._table.row(image.name)
    made = self._output / mask
    return (
      row is not None
      and row['mask'] == mask
      and image.exists()
      and predict_files.overlay_path(made).exists()
      and made.exists()
      and made.stat().st_mtime_ns >= predict_files.changed(image)
    )

  def add(self, answer, mask_name):
    counts = sum(np.bincount(m.ravel(), minlength=256) for m in answer.masks)
    fractions = counts[: len(self._table.fields) - 4] / counts.sum()
    trust = f'{np.mean(answer.trusts):.6g}' if answer.trusts else ''
    values = [answer.file, mask_name, trust, f'{answer.seconds:.4g}']
    self._table.add(values + [f'{f:.6f}' for f in fractions])


def _refine_settings(config, stage):
  """Those of test-time optimisation, which may change after the training."""
  if stage not in config:
    return {}
  args = json.loads(config[stage].args.to_json_best_effort())
  return {k: v for k, v in args.items() if k.startswith('refine_')}


def _tell_of_loose_slices(folder, files):
  if loose := predict_files.loose_slices(folder, files):
    writers.say(
      f'{folder}: {len(loose)} DICOM files are of one series with another '
      f'({loose[0]}, ...), yet each is labelled as a volume of its own, with '
      'grey values of its own; move each series to its own folder for one '
      'label volume'
    )


def _count_pictures(folder, files, config, bad) -> dict[str, int]:
  """Returns the number of pictures by file, of those that can be opened."""
  counts = {}
  for file in files:
    with predict_files.skipping(file, bad):
      counts[file] = predict_files.open_file(folder / file, config).count
  return counts


def _read_pictures(
  folder, files, config, bad
) -> Iterator[tuple[_Answer, np.ndarray]]:
  """Yields the pictures of all files, one volume in memory at a time."""
  for file in files:
    with predict_files.skipping(file, bad):
      opened = predict_files.open_file(folder / file, config)
      answer = _Answer(file, opened)
      with contextlib.closing(opened):
        for i in range(opened.count):
          yield answer, opened.read(i)


def _label(batch, run, config) -> Iterator[_Answer]:
  """Labels pictures; yields the answers that are complete by that."""
  inputs = np.stack([to_input(picture, config) for _, picture in batch])
  prediction, seconds = run(inputs)
  for i, (answer, picture) in enumerate(batch):
    mask = label_image(prediction.probabilities[i], picture.shape[:2], config)
    trust, reconstruction = (
      None if values is None else values[i]
      for values in (prediction.trust, prediction.reconstruction)
    )
    if answer.add(picture, mask, trust, reconstruction, seconds):
      yield answer


def _define_flags(to=flags.FLAGS):
  def define(kind, name, default, text, **kwargs):
    kind(name, default, text, flag_values=to, **kwargs)

  string = flags.DEFINE_string
  define(string, 'workdir', None, 'Folder of a training run.')
  define(string, 'images', None, 'Folder of images and volumes.')
  define(string, 'output', None, 'Folder for masks and overlays.')
  define(string, 'stage', None, 'Stage that labels; default: one that refines.')
  define(
    string, 'checkpoint', 'newest',
    'Which: newest, best (where config.STAGE.keep_best is set), or a step.',
  )  # fmt: skip
  define(flags.DEFINE_bool, 'refine', True, 'Use test-time optimisation.')
  define(
    flags.DEFINE_list, 'window', None,
    'LOWEST,HIGHEST value shown, where training read slices that were windowed '
    'before (the prepared set "liver"); default: as config.data.intensity.',
  )  # fmt: skip
  define(
    flags.DEFINE_integer, 'batch_size', None, 'Images or slices at a time.',
    lower_bound=1,
  )  # fmt: skip
  mean_field.define_flags(to)
  predict_tto.define_flags(to)


# Flags that say which of a workdir's stages labels, and how.
OF_WORKDIR = ('workdir', 'stage', 'checkpoint', 'refine', 'window', 'crf')


def _show_window(config, window):
  """Sets `config.data.intensity` to the window of the command line."""
  try:
    low, high = map(float, window)
  except ValueError:
    raise UserError(
      f'--window is {",".join(window)!r}, expected the lowest and the highest '
      'value shown, e.g. --window=-150,250'
    ) from None
  config.data.intensity.mode = 'window'
  config.data.intensity.window = (low, high)


def _check_flags(args, argv):
  """Refuses flags that are missing or do not go together."""
  if len(argv) > 1:
    raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
  pretrained = args.pretrained is not None
  other = OF_WORKDIR if pretrained else predict_tto.NAMES
  for name in other:
    if predict_tto.is_given(args, name):
      raise UserError(
        f'--{name} was given with --pretrained, expected one of the two, as '
        f'--{name} is for trained workdirs; leave one out'
        if pretrained
        else f'--{name} was given without --pretrained, expected both, as '
        f'--{name} is for converted weights; leave it out or add '
        '--pretrained=FOLDER'
      )
  source = 'pretrained' if pretrained else 'workdir'
  for name in (source, 'images', 'output'):
    if not args[name].value:
      raise UserError(f'--{name} is missing; add --{name}=FOLDER')


def _run(args):
  """Does what the flags ask for; returns the names of unreadable files."""
  crf = mean_field.from_flags(args)
  predict_files.list_files(Path(args.images))  # before the slow part
  if args.pretrained:
    settings, data = predict_tto.from_flags(args)
    system = predict_inversion.load(
      args.pretrained, args.perceptual_kind, args.lpips_weights
    )
    return predict_pretrained.invert_folder(
      system, args.images, args.output, settings, data, args.batch_size
    )
  trained = workdir.load(args.workdir, checkpoint=args.checkpoint)
  if args.window:
    _show_window(trained.config, args.window)
  return predict_folder(
    trained, args.images, args.output, args.stage, args.refine,
    args.batch_size, crf,
  )  # fmt: skip


def main(argv: list[str]) -> int:
  """Runs the command line; returns 1 if a file could not be read."""
  args = flags.FLAGS
  with errors.friendly():
    _check_flags(args, argv)
    bad = _run(args)
    if bad:
      files = 'file' if len(bad) == 1 else 'files'
      writers.say(f'{len(bad)} {files} could not be read: {", ".join(bad)}')
    return 1 if bad else 0


if __name__ == '__main__':
  _define_flags()
  app.run(main, flags_parser=parse_flags)
