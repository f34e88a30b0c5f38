"""Inverts images with published weights: nothing is trained here.

  python -m jaxseg.predict --pretrained=DIR --images=DIR --output=DIR \
    [--config=configs/psp_ffhq.py] [--tto.steps=100]

DIR of --pretrained is what `python -m jaxseg.pretrained convert` wrote. Each
image is cut (--fit) and resized to the generator's size; the encoder gives its
code (step 0; without an encoder it is the mean w), Adam brings the code nearer
to the image. Written are strips/NAME.png (original, step 0, ..., last step),
reconstructions/NAME.png (the last step), codes/NAME.npy (its w+, float32 [L,
D]) and inversions.csv; where the generator has a label branch also NAME.png and
overlays/NAME.png as for a trained workdir. What is shown as the last step is
the last iterate, not the best; only where its loss is not finite the best one
stands in for it.

Faces are not aligned here: encoders and generators published for FFHQ expect
images that were cut and turned as FFHQ was, and invert others badly.
"""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import config as jaxseg_config
from jaxseg import inference, parallel, predict_files, visualize, writers
from jaxseg.data import fit
from jaxseg.data.formats.files import write_atomically
from jaxseg.data.source import voc_palette
from jaxseg.errors import DataError
from jaxseg.nets import lpips
from jaxseg.predict_inversion import System, inverter
from jaxseg.predict_table import Table
from jaxseg.predict_tto import Settings, shown_steps

# Images at a time, and pixels of them: one of 1024x1024 takes some 2 GB.
BATCH_SIZE, BATCH_PIXELS = 4, 4 * 512**2


def invert_folder(
  system: System,
  images: str | os.PathLike,
  output: str | os.PathLike,
  settings: Settings,
  data: ConfigDict | None = None,
  batch_size: int | None = None,
) -> list[str]:
  """Inverts every image of a folder; see the top of this file.

  Args:
    system: from `predict_inversion.load`.
    images: folder of images; volumes of more than one slice are skipped.
    output: folder for the results, made if need be; what an earlier call with
      the same weights and settings did is kept.
    settings: of the optimisation.
    data: `config.data`, of which fit and intensity count; None: 'crop'.
    batch_size: images at a time; None: `BATCH_SIZE`, or fewer large ones.

  Returns:
    Names of the files that could not be read; each was told on the console.

  Raises:
    UserError: the folder is missing, holds no image or is the output folder.
  """
  images, output = Path(images), Path(output)
  names = predict_files.names_of(images, output)
  config = _config(system, data)
  places = {
    file: _Places.of(output / name, bool(system.num_classes))
    for file, name in names.items()
  }
  output.mkdir(parents=True, exist_ok=True)
  for path in itertools.chain.from_iterable(places.values()):
    if path is not None:
      path.parent.mkdir(exist_ok=True)
  writers.say(_describe(system, settings))
  table = _table(output, system, settings, config)
  todo = [f for f in names if not _is_done(table, images / f, places[f])]
  if len(todo) < len(names):
    writers.say(f'{len(names) - len(todo)} of {len(names)} files are done')
  if not todo:
    return []
  size = min(batch_size or _batch_size(system), len(todo))
  run = _compile(system, settings, size)
  bad, done = [], 0
  progress = writers.Progress('invert', len(todo))
  pictures = _read(images, todo, config, bad)
  try:
    while batch := list(itertools.islice(pictures, size)):
      inputs = [inference.to_input(p.picture, config) for p in batch]
      found, seconds = run(np.stack(inputs))
      for i, picture in enumerate(batch):
        one, place = _entry(found, i), places[picture.file]
        _write(place, picture, one, settings, config)
        table.add(_row(picture.file, place, one, seconds, system.distance))
      table.save_at_times()
      done += len(batch)
      writers.say(progress.line(min(done + len(bad), len(todo))))
  finally:
    table.save()
  return sorted(bad)


_DIVERGED = (
  '{}: the loss of the last step is not finite, the best step is kept; lower '
  '--tto.lr'
)


class _Picture(NamedTuple):
  file: str
  picture: np.ndarray  # uint8 [H, W, C]
  opened: predict_files.Opened


class _Places(NamedTuple):
  """Where the results of an image go; None: there are none."""

  strip: Path
  reconstruction: Path
  mask: Path | None
  overlay: Path | None
  code: Path  # written last

  @classmethod
  def of(cls, mask, has_labels):
    overlay = predict_files.overlay_path(mask)
    return cls(
      mask.parent / 'strips' / overlay.name,
      predict_files.reconstruction_path(mask),
      mask if has_labels else None,
      overlay if has_labels else None,
      mask.parent / 'codes' / (overlay.stem + '.npy'),
    )


def _config(system, data):
  """A config whose data are what the generator draws."""
  config, g = jaxseg_config.default(), system.modules.g
  config.data.fit = 'crop'
  if data is not None:
    config.data.fit = data.fit or 'crop'
    config.data.intensity = data.intensity
  config.data.resolution, config.data.width = g.resolution, 0
  config.data.channels = g.channels
  return config


def _describe(system, settings):
  g, networks = system.modules.g, system.card['networks']
  start = networks['e']['arch'] if system.modules.e else 'the mean w'
  lines = [
    f'{system.card["kind"]}: a generator of {g.resolution}x{g.resolution}x'
    f'{g.channels}, begins with {start}, {settings.steps} steps of Adam'
  ]
  if system.distance:
    lines[0] += f', perceptual distance: {system.distance.kind}'
  else:
    lines.append(
      'no perceptual distance: no LPIPS weights are found and the file has no '
      f'discriminator, so the squared error alone counts; {lpips.HOW_TO_GET}'
    )
  return '\n'.join(lines)


def _table(output, system, settings, config):
  fields = ['file', 'strip']
  for step in shown_steps(settings):
    fields += [f'perceptual_{step}'] if system.distance else []
    fields += [f'l2_{step}']
  kind = system.distance.kind if system.distance else ''
  identity = {
    'networks': system.card['networks'],
    'adds_w_avg': system.card['adds_w_avg'],
    'weights': inference.checksum(system.weights),
    'perceptual': [kind, inference.checksum(system.distance_weights)],
    'tto': settings._asdict() | {'snapshots': list(settings.snapshots)},
    'fit': config.data.fit,
    'intensity': json.loads(config.data.intensity.to_json()),
  }
  path, made_by = output / 'inversions.csv', output / 'inverted_by.json'
  return Table(path, made_by, [*fields, 'seconds'], identity)


def _is_done(table, image, places):
  row = table.row(image.name)
  return (
    row is not None
    and row['strip'] == places.strip.name
    and all(path is None or path.exists() for path in places)
    and places.code.stat().st_mtime_ns >= predict_files.changed(image)
  )


def _batch_size(system):
  fitting = BATCH_PIXELS // system.modules.g.resolution**2
  return max(1, min(BATCH_SIZE, fitting))


def _compile(system, settings, size):
  g = system.modules.g
  devices = jax.local_devices()[:size]
  return inference.compile_batches(
    inverter(system, settings),
    (system.weights, system.distance_weights),
    (g.resolution, g.resolution, g.channels),
    size,
    parallel.make_mesh(devices=devices),
  )


def _entry(found, i):
  return jax.tree.map(lambda x: x[i], found)


def _read(images, files, config, bad) -> Iterator[_Picture]:
  for file in files:
    with predict_files.skipping(file, bad):
      opened = predict_files.open_file(images / file, config)
      with contextlib.closing(opened):
        if opened.count != 1:
          raise DataError(
            f'{images / file}: the volume has {opened.count} slices, expected '
            'one image; save the slices as images'
          )
        yield _Picture(file, opened.read(0), opened)


def _write(places, picture, found, settings, config):
  if found.diverged:
    writers.say(_DIVERGED.format(picture.file))
  rendered = visualize.to_uint8(found.rendered)
  seen = fit.image(picture.picture, fit.size(config.data), config.data.fit)
  captions = [f'step {step}' for step in shown_steps(settings)]
  strip = visualize.captioned([seen, *rendered], ['original', *captions])
  visualize.write_png(places.strip, strip)
  visualize.write_png(places.reconstruction, visualize.to_rgb(rendered[-1]))
  if places.mask:
    shape = picture.picture.shape[:2]
    mask = inference.label_image(found.probabilities, shape, config)
    palette = voc_palette(found.probabilities.shape[-1])
    drawing = predict_files.draw([picture.picture], [mask], palette)
    visualize.write_png(places.overlay, drawing)
    picture.opened.save(places.mask, [mask], palette)
  data = io.BytesIO()
  np.save(data, np.asarray(found.w_plus, np.float32))
  write_atomically(places.code, data.getvalue())


def _row(file, places, found, seconds, with_perceptual):
  """A row of the table, in the order of `_table`'s fields."""
  values = [file, places.strip.name]
  for perceptual_loss, l2 in zip(found.perceptual, found.l2, strict=True):
    values += [f'{perceptual_loss:.6g}'] if with_perceptual else []
    values += [f'{l2:.6g}']
  return [*values, f'{seconds:.4g}']
