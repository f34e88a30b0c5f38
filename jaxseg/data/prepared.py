"""Public data sets: prepared once from their archives, then read by name."""

import contextlib
import functools
import io
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
from absl import logging

from jaxseg import writers
from jaxseg.data.builders import BUILDERS, builder_class
from jaxseg.data.formats import images
from jaxseg.data.formats.intensity import Intensity
from jaxseg.data.source import Source, voc_palette
from jaxseg.errors import DataError, UserError

# What opening a set needs to know of its examples without decoding them.
INDEX = 'jaxseg_index.json'
SAY_EVERY = 5.0  # seconds between progress lines


def root_folder(data_dir: str = '') -> Path:
  """Returns where prepared sets are: `data_dir`, else as TFDS decides."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return Path(data_dir or default).expanduser()


def find_builder(spec: str, data_dir: str = ''):
  """Returns the TFDS builder of 'NAME' or 'NAME:CONFIG'.

  Raises:
    UserError: an unknown name or config.
  """
  name, _, config = spec.partition(':')
  if name not in BUILDERS:
    raise UserError(
      f'{name!r} is no data set that jaxseg can prepare, expected one of '
      f'{", ".join(BUILDERS)}; see `python -m jaxseg.datasets list`'
    )
  cls = builder_class(name)
  known = [c.name for c in cls.BUILDER_CONFIGS]
  if config and config not in known:
    raise UserError(
      f'{spec!r}: {name} has no config {config!r}, expected one of '
      f'{", ".join(known)}; see `python -m jaxseg.datasets list`'
    )
  with _quiet():
    return cls(data_dir=str(root_folder(data_dir)), config=config or known[0])


def is_prepared(spec: str, data_dir: str = '') -> bool:
  """Whether `open_prepared` will find the set."""
  return (Path(find_builder(spec, data_dir).data_dir) / INDEX).exists()


def prepare(
  spec: str,
  manual_dir: str | os.PathLike,
  data_dir: str = '',
  *,
  allow_partial: bool = False,
  overwrite: bool = False,
  max_side: int = 0,
) -> Path:
  """Writes a public set as ArrayRecord files, whole or not at all.

  Args:
    spec: 'NAME' or 'NAME:CONFIG'.
    manual_dir: the folder of the unpacked archives.
    data_dir: see `root_folder`.
    allow_partial: take what is there when the counts are not the official.
    overwrite: do it anew where it is done.
    max_side: reduce larger images, and their labels, to this many pixels; 0:
      keep them as they are. Training reads smaller files faster, but the
      labels that are scored are the reduced ones.

  Returns:
    The folder of the prepared set.

  Raises:
    UserError: an unknown set, another layout, other counts, a damaged file.
  """
  import tensorflow_datasets as tfds

  builder = find_builder(spec, data_dir)
  folder = Path(builder.data_dir)
  builder.max_side = max_side
  if (folder / INDEX).exists() and not overwrite:
    before = json.loads((folder / INDEX).read_text('utf-8'))['max_side']
    if before != max_side:
      raise UserError(
        f'{folder}: {spec} is prepared with --max_side={before}, and '
        f'--max_side={max_side} was asked for, expected the same; add '
        '--overwrite to write it anew'
      )
    return folder
  manual_dir = Path(manual_dir).expanduser()
  counts = builder.check(manual_dir, allow_partial)
  _check_disk(folder)
  _say(
    f'{spec}: writing {sum(counts.values()):,} examples ('
    + ', '.join(f'{n:,} {name}' for name, n in counts.items())
    + f') to {folder}'
  )
  optional = getattr(builder.builder_config, 'optional', {})
  absent = [name for name in optional if name not in counts]
  if absent:
    _say(
      f'{spec}: {", ".join(absent)} will be missing, as the archives are not '
      f'where `python -m jaxseg.datasets list {spec}` wants them in '
      f'{manual_dir}; that may be meant'
    )
  if folder.exists():
    shutil.rmtree(folder)
    builder = find_builder(spec, data_dir)
    builder.max_side = max_side
  builder.on_example = _counter(spec, sum(counts.values()))
  with _plain_errors(spec), _quiet():
    builder.download_and_prepare(
      file_format='array_record',
      download_config=tfds.download.DownloadConfig(manual_dir=str(manual_dir)),
    )
  _records.cache_clear()
  _say(f'{spec}: reading it back')
  with _quiet():
    _write_index(builder, folder)
  return folder


def open_prepared(
  spec: str,
  channels: int,
  *,
  intensity: Intensity | None = None,
  data_dir: str = '',
) -> Source:
  """Opens a prepared set; images are decoded when asked for.

  Raises:
    UserError: an unknown set, or one that is not prepared.
  """
  builder = find_builder(spec, data_dir)
  folder = Path(builder.data_dir)
  if not (folder / INDEX).exists():
    raise UserError(
      f'config.data.source is {spec!r}, which is not prepared in '
      f'{root_folder(data_dir)}, expected the folder {folder}; run `python -m '
      f'jaxseg.datasets prepare {spec} --manual_dir=DIR`, or name the folder '
      'of prepared sets in --config.data.data_dir'
    )
  index = json.loads((folder / INDEX).read_text('utf-8'))
  with _quiet():  # threads then find them open
    for split in index['splits']:
      _records(str(folder), split)
  where = {
    id_: (split, i)
    for split, part in index['splits'].items()
    for i, id_ in enumerate(part['ids'])
  }

  def lookup(id_, field):
    split, i = where[id_]
    return index['splits'][split][field][i]

  def read(id_, field):
    split, i = where[id_]
    return _records(str(folder), split)[i][field]

  def label(id_):
    if not lookup(id_, 'has_label'):
      return None
    return images.decode_label(read(id_, 'label'), f'{spec}:{id_}')

  def classes_in(id_):
    present = np.zeros(256, bool)
    present[lookup(id_, 'classes')] = True
    return present

  names = tuple(index['class_names'])
  palette = np.array(index['palette'] or voc_palette(len(names)), np.uint8)
  return Source(
    name=spec,
    class_names=names,
    palette=palette,
    channels=channels,
    splits={name: tuple(p['ids']) for name, p in index['splits'].items()},
    budgets=_budgets(index),
    groups={id_: lookup(id_, 'groups') for id_ in where},
    image=lambda id_: images.decode_image(
      read(id_, 'image'), f'{spec}:{id_}', channels, intensity or Intensity()
    ),
    label=label,
    has_label=lambda id_: lookup(id_, 'has_label'),
    path=lambda id_: f'{spec}:{id_}',
    cache={},
    classes_in=classes_in,
    licence=index['licence'],
  )


def _budgets(index):
  """Returns the ids of the published choices of groups."""
  train = index['splits'].get('train', {'ids': (), 'groups': ()})
  pairs = list(zip(train['ids'], train['groups'], strict=True))
  return {
    number: tuple(id_ for id_, group in pairs if group in groups)
    for number, groups in index['budgets'].items()
  }


@functools.lru_cache(maxsize=64)
def _records(folder, split):
  """Returns the random-access records of a split, images not decoded."""
  import tensorflow_datasets as tfds

  skip = tfds.decode.SkipDecoding()
  return tfds.builder_from_directory(folder).as_data_source(
    split=split, decoders={'image': skip, 'label': skip}
  )


def _write_index(builder, folder):
  """Reads every record once and notes what `open_prepared` needs."""
  config = builder.builder_config
  splits = {}
  with futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
    for split in builder.info.splits:
      records = _records(str(folder), split)
      facts = list(
        pool.map(lambda i, r=records: _facts(r[i]), range(len(records)))
      )
      fields = ('ids', 'groups', 'has_label', 'classes')
      columns = list(zip(*facts, strict=True))
      splits[split] = dict(zip(fields, columns, strict=True))
  index = {
    'class_names': config.class_names,
    'palette': config.palette,
    'licence': builder.LICENCE,
    'budgets': config.budgets,
    'max_side': builder.max_side,
    'splits': splits,
  }
  text = json.dumps(index, separators=(',', ':'))
  images.write_atomically(folder / INDEX, text.encode())


def _facts(record):
  """Returns (id, group, has label, ids in the label) of one record."""
  name = record['id'].decode()
  has_label = bool(record['has_label'])
  found = []
  if has_label:
    found = np.unique(images.decode_label(record['label'], name)).tolist()
  return name, record['group'].decode(), has_label, found


def _check_disk(folder):
  parent = next(p for p in (folder, *folder.parents) if p.exists())
  if not os.access(parent, os.W_OK):
    raise UserError(
      f'{parent}: the folder for prepared sets is not writable, expected one '
      'that is; name another with --data_dir'
    )


@contextlib.contextmanager
def _plain_errors(spec) -> Iterator[None]:
  """Gives errors of reading and writing as one sentence."""
  try:
    yield
  except (OSError, ValueError, zlib.error, UserError) as error:
    cause = error
    while not isinstance(cause, UserError) and cause.__cause__ is not None:
      cause = cause.__cause__
    if isinstance(cause, UserError):
      raise cause from None
    raise DataError(
      f'{spec} cannot be prepared: {error}; nothing is left half written, so '
      'mend that and run the same command again',
      kind='prepare',
    ) from error


def _counter(spec, total):
  """Returns a function to call at each example; it tells how far it is."""
  progress = writers.Progress(spec, total)
  done, said = 0, time.monotonic()

  def count():
    nonlocal done, said
    done += 1
    if time.monotonic() - said > SAY_EVERY or done == total:
      said = time.monotonic()
      _say(progress.line(done))

  return count


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences TFDS, whose bars do not know how much there is to do."""
  from tensorflow_datasets.core.utils import tqdm_utils

  level = logging.get_verbosity()
  logging.set_verbosity(logging.WARNING)
  tqdm_utils.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(level)
    tqdm_utils.enable_progress_bar()


def _say(text):
  print(f'jaxseg: {text}', file=sys.stderr, flush=True)
