"""The work of `jaxseg.synthesize`: what is asked for, drawn, kept, told."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxseg
from jaxseg import (
  parallel,
  runtime,
  synthesis_filter,
  synthesis_folder,
  synthesis_report,
  visualize,
  workdir,
  writers,
)
from jaxseg.errors import UserError
from jaxseg.inference import fingerprint
from jaxseg.synthesis_draw import Drawn, choose, compile_draw
from jaxseg.synthesis_filter import KEPT, Rule, Settings

SAY_EVERY = 5.0  # seconds between progress lines


class _Job(NamedTuple):
  """What a process works with; as in `synthesize`."""

  folder: Path
  trained: workdir.Trained
  settings: Settings
  rule: Rule
  draw: Callable[[Any], Drawn]
  real: synthesis_report.Real | None


def synthesize(
  trained: workdir.Trained,
  output: str | Path,
  n: int,
  settings: Settings = Settings(),  # noqa: B008  immutable
  *,
  stage: str | None = None,
  shard: tuple[int, int] = (0, 1),
  real: synthesis_report.Real | None = None,
  stop: Sequence[str] = (),
) -> dict[str, Any]:
  """Draws images into a folder; see `jaxseg.synthesize`.

  Args:
    trained: from `jaxseg.workdir.load`.
    output: the folder, new or begun by the same call.
    n: images that are to be kept, about; exactly so many where all are kept.
    settings: what is drawn, and what is kept.
    stage: that draws; None: see `synthesis_draw.choose`.
    shard: (which share of the work this process does, of how many).
    real: the labelled training images, for a comparison.
    stop: what a signal appends its name to, see `runtime.interruptible`.

  Returns:
    what synthesis.json holds: 'settings', 'rule', 'versions', 'n', 'images' to
    be drawn, and 'summary' of what is done so far, by all processes.

  Raises:
    UserError: a setting that cannot work, or a folder that holds other things;
      before anything is drawn.
    runtime.Interrupted: stopped; what is done is in the folder.
  """
  synthesis_filter.check(settings)
  check_share(n, shard)
  folder, stage = Path(output), choose(trained, stage)
  old = synthesis_folder.stored(folder)
  identity = _identity(trained, stage, settings)
  synthesis_folder.refuse_other(folder, old, identity, n)
  chosen = trained.stages[stage]
  names = _measures(chosen)
  synthesis_filter.check_measure(settings.rank_by, stage, names)
  writers.say(f'{stage}: compiling ...')
  draw = compile_draw(
    chosen, settings.seed, settings.truncation, settings.batch_size,
    _mesh(trained.config.mesh.data),
  )  # fmt: skip
  num_classes = len(trained.class_names)
  rule = _stored_rule(old) or synthesis_filter.make_rule(
    draw, settings, num_classes
  )
  images = max(math.ceil(n / rule.rate), old.get('images', 0))
  content = {
    'settings': identity, 'rule': rule._asdict(), 'n': n, 'images': images,
    'versions': {'jaxseg': jaxseg.__version__, 'jax': jax.__version__},
  }  # fmt: skip
  synthesis_folder.begin(folder, content, trained.class_names, trained.palette)
  writers.say(f'{images} images are drawn for {n}: {_told(rule)}')
  job = _Job(folder, trained, settings, rule, draw, real)
  _draw_all(job, images, shard, stop)
  content['summary'] = _finish(job, content)
  if stop:
    raise runtime.Interrupted(
      f'{stop[0]}: {content["summary"]["drawn"]} of {images} images are done. '
      'Run the same command again to continue.'
    )
  return content


def check_share(n: int, shard: tuple[int, int]) -> None:
  """Refuses numbers that cannot be.

  Raises:
    UserError: fewer than one image, or a shard that there is not.
  """
  if n < 1:
    raise UserError(f'--n is {n}, expected 1 image or more; change it')
  part, count = shard
  if not 0 <= part < count:
    raise UserError(
      f'--shard is {part}/{count}, expected i/n with i from 0 to n-1, such as '
      '0/4; change it'
    )


def _draw_all(job, images, shard, stop):
  """Draws the batches of this process that are not done."""
  size, (part, count) = job.settings.batch_size, shard
  numbers = {
    batch: np.arange(batch * size, min((batch + 1) * size, images))
    for batch in range(part, -(-images // size), count)
  }
  done = synthesis_folder.done(job.folder, images, size)
  todo = [batch for batch in numbers if batch not in done]
  total = sum(map(len, numbers.values()))
  ready = total - sum(len(numbers[batch]) for batch in todo)
  if ready:
    writers.say(f'{ready} of {total} images are done')
  progress = writers.Progress('synthesize', total, first_step=ready)
  said, kept, new = time.monotonic(), 0, 0
  for batch in todo:
    if stop:
      return
    drawn = job.draw(numbers[batch])
    rows = make_rows(
      numbers[batch], drawn, job.rule, job.settings.seed,
      job.trained.class_names, job.real,
    )  # fmt: skip
    synthesis_folder.write_batch(
      job.folder, batch, rows, drawn, job.trained.palette
    )
    new += len(rows)
    kept += sum(row['outcome'] == KEPT for row in rows)
    if time.monotonic() - said > SAY_EVERY or batch == todo[-1]:
      said = time.monotonic()
      writers.say(progress.line(ready + new, {'kept': kept / new}))


def make_rows(
  numbers: np.ndarray,
  drawn: Drawn,
  rule: Rule,
  seed: int,
  names: Sequence[str],
  real: synthesis_report.Real | None,
) -> list[synthesis_folder.Row]:
  """Returns a row of synthesis.csv for each image of a batch.

  Args:
    numbers: of the images, integers [n].
    drawn: the images.
    rule: what decides.
    seed: of the images.
    names: of the K classes.
    real: the labelled training images, if they can be read.
  """
  shares = synthesis_filter.fractions(drawn.labels, len(names))
  shows = synthesis_filter.shown(drawn.labels, len(names))
  if real:
    near, far = synthesis_report.nearest(
      real.vectors, synthesis_report.vectors(drawn.images)
    )
  rows = []
  for i, index in enumerate(map(int, numbers)):
    own = {name: float(values[i]) for name, values in drawn.measures.items()}
    rows.append({
      'id': synthesis_folder.id_of(seed, index),
      'seed': str(seed),
      'index': str(index),
      'outcome': synthesis_filter.decide(rule, seed, index, own, shows[i]),
      **{name: f'{own[name]:.6g}' for name in sorted(own)},
      'nearest': real.ids[near[i]] if real else '',
      'distance': f'{far[i]:.6f}' if real else '',
      **{f'fraction_{n}': f'{shares[i, k]:.6f}' for k, n in enumerate(names)},
    })  # fmt: skip
  return rows


def _finish(job, content):
  """Writes what is about all images that are done; returns the summary."""
  names, palette = job.trained.class_names, job.trained.palette
  batches = -(-content['images'] // job.settings.batch_size)
  # Of two processes that end at once, the one that saw less may write last.
  for _ in range(2):
    rows = synthesis_folder.merge(job.folder)
    summary = synthesis_report.summarize(rows, names, job.real)
    synthesis_folder.save(job.folder, content | {'summary': summary})
    if rows:
      lines = synthesis_report.for_sheet(rows, job.rule.rank_by)
      picture = synthesis_report.sheet(
        lines, _pictures(job, lines), job.rule.rank_by, names, palette
      )
      visualize.write_png(job.folder / 'contact_sheet.png', picture)
    seen_all = len(rows) >= content['images']
    if seen_all or synthesis_folder.count_records(job.folder) < batches:
      break
  writers.say(synthesis_report.text(summary))
  missing = content['images'] - len(rows)
  writers.say(
    f'{missing} images are not drawn yet'
    if missing > 0
    else f'{job.folder}: done; look at contact_sheet.png'
  )
  return summary


def _pictures(job, lines):
  """(image, label) by id: out of the files, or drawn again where not kept."""
  pictures, again = {}, {}
  for row in (row for line in lines for row in line):
    if row['outcome'] == KEPT:
      pictures[row['id']] = synthesis_folder.read(job.folder, row['id'])
    else:
      again[row['id']] = int(row['index'])
  size = job.settings.batch_size
  for i in range(0, len(again), size):
    ids = list(again)[i : i + size]
    drawn = job.draw([again[id_] for id_ in ids])
    pairs = zip(drawn.images, drawn.labels, strict=True)
    pictures |= dict(zip(ids, pairs, strict=True))
  return pictures


def _mesh(data):
  """The training's mesh, or what this machine has instead of it."""
  devices = jax.local_devices()
  data = data if 0 < data <= len(devices) else -1
  return parallel.make_mesh(data, devices=devices)


def _measures(stage):
  """Names of what a stage's images are measured by."""
  own = ['entropy', 'uncertainty']
  if stage.method.judge is None:
    return own

  def names(state):
    image, p = stage.method.sample(state, jax.random.key(0), 1)
    return stage.method.judge(state, image, p)

  return sorted(jax.eval_shape(names, stage.state)) + own


def _identity(trained, stage, settings):
  """What the images depend on, as plain data."""
  data = trained.config.data
  return {
    'stage': stage,
    'weights': fingerprint(trained.stages[stage].state),
    'classes': list(trained.class_names),
    'resolution': data.resolution,
    'channels': data.channels,
    **settings._asdict(),
  }


def _stored_rule(old):
  if 'rule' not in old:
    return None
  fields = {n: tuple(v) if isinstance(v, list) else v
            for n, v in old['rule'].items()}  # fmt: skip
  return Rule(**fields)


def _told(rule):
  """The rule in words."""
  parts = []
  if rule.min_score is not None:
    parts.append(f'score ({rule.rank_by}) from {rule.min_score:.3g} up')
  if rule.max_entropy is not None:
    parts.append(f'entropy up to {rule.max_entropy:.3g}')
  if min(rule.accept) < 1:
    parts.append('more of those that show rare classes')
  return ', '.join(parts) or 'all are kept'
