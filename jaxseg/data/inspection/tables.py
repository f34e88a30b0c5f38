"""What is known of data sets, as text and as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.data import builders, prepared, problems
from jaxseg.data.formats.images import VOID
from jaxseg.data.inspection.checks import Statistics
from jaxseg.data.problems import Problem
from jaxseg.metrics.segmentation import median_frequency_weights

SHOWN = 20  # problems of each kind in a table


def list_sets(data_dir: str = '') -> str:
  """Returns a table of the public sets, each with its variants.

  Args:
    data_dir: see `prepared.root_folder`.
  """
  blocks = []
  for name in builders.BUILDERS:
    cls = builders.builder_class(name)
    lines = [f'{name}: {cls.TITLE}']
    width = max(len(c.name) for c in cls.BUILDER_CONFIGS)
    for config in cls.BUILDER_CONFIGS:
      spec = f'{name}:{config.name}'
      done = 'prepared' if prepared.is_prepared(spec, data_dir) else ''
      lines.append(
        f'  :{config.name:{width}}  {len(config.class_names):3} classes  '
        f'{_counts(config)}  {done}'.rstrip()
      )
    lines += [f'  licence: {one_line(cls.LICENCE)}', f'  from: {cls.HOMEPAGE}']
    blocks.append('\n'.join(lines))
  return '\n\n'.join(
    [
      *blocks,
      'The first variant is meant where none is named; in parentheses are '
      'splits that may be absent. How to get and unpack a '
      'set: python -m jaxseg.datasets list NAME\n'
      f'Prepared sets are in {prepared.root_folder(data_dir)}.',
    ]
  )


def describe_set(spec: str, data_dir: str = '') -> str:
  """Returns all that is known of a public set, 'NAME' or 'NAME:CONFIG'.

  Raises:
    UserError: an unknown name.
  """
  builder = prepared.find_builder(spec, data_dir)
  lines = [f'{builder.name}: {builder.TITLE}', '']
  for config in builder.BUILDER_CONFIGS:
    lines += [
      f'{builder.name}:{config.name}  {one_line(config.description or "")}',
      f'  images: {_counts(config)}',
      f'  classes: {", ".join(config.class_names)}',
    ]
    if config.budgets:
      lines.append(
        f'  published choices of labels: {", ".join(config.budgets)}'
      )
    lines.append('')
  lines += [
    f'licence: {one_line(builder.LICENCE)}',
    f'described in: {builder.HOMEPAGE}',
    '',
    'How to get it:',
    builder.MANUAL_DOWNLOAD_INSTRUCTIONS.strip(),
    '',
    builder.CITATION.strip(),
    '',
    f'python -m jaxseg.datasets prepare {spec} --manual_dir=DIR',
  ]
  return '\n'.join(lines)


def _counts(config):
  """The images of each split of the whole set."""
  counts = dict(config.counts)
  text = [f'{name} {n:,}' for name, n in counts.items()]
  optional = getattr(config, 'optional', {})
  text += [f'({name} {n:,})' for name, n in optional.items()]
  patients = getattr(config, 'patients', {})
  text += [
    f'{name} {n:,} patients'
    for name, n in patients.items()
    if name not in counts
  ]
  return ', '.join(text) or 'as many as there are'


def problem_table(found: Sequence[Problem], most: int = SHOWN) -> str:
  """Returns the first problems of each kind, gravest first, and how many.

  Args:
    found: all problems.
    most: lines of each kind.
  """
  if not found:
    return 'no problems found'
  kinds = {}
  for problem in problems.in_order(found):
    kinds.setdefault((problem.severity, problem.kind), []).append(problem)
  lines = []
  for (severity, kind), same in kinds.items():
    lines.append(f'{severity}  {kind}  ({len(same):,})')
    lines += [f'  {problem}' for problem in same[:most]]
    if len(same) > most:
      lines.append(f'  ... and {len(same) - most:,} more; all: --csv=FILE')
  return '\n'.join([*lines, problems.count(found)])


def statistics_table(statistics: Statistics, names: Sequence[str]) -> str:
  """Returns what was counted, as text.

  Args:
    statistics: from `checks.inspect`.
    names: of the classes.
  """

  def counts(items, name):
    most = sorted(items.items(), key=lambda item: -item[1])
    return problems.some([f'{name(k)} ({n:,})' for k, n in most], 8) or 'none'

  lines = [
    f'{statistics.images:,} images, {statistics.labels:,} labels',
    f'sizes: {counts(statistics.sizes, lambda s: f"{s[1]}x{s[0]}")}',
    f'modes: {counts(statistics.modes, str)}',
  ]
  if statistics.labels:
    pixels = statistics.class_pixels / max(1, statistics.class_pixels.sum())
    images = statistics.class_images / statistics.labels
    width = max(len(name) for name in (*names, 'class', 'void'))
    lines.append(f'  id  {"class":{width}}   pixels   labels   weight')
    weights = _weights(statistics, len(names))
    for i, name in [*enumerate(names), (VOID, 'void')]:
      if i != VOID or pixels[i]:
        weight = f'{weights[i]:7.4g}' if i in weights else ''
        lines.append(
          f' {i:3}  {name:{width}}  {100 * pixels[i]:6.2f}%  '
          f'{100 * images[i]:6.1f}%  {weight}'.rstrip()
        )
    lines.append(
      'weight: median-frequency weights of all these labels, for '
      'loss.class_weights'
    )
  return '\n'.join(lines)


def _weights(statistics, num_classes):
  """{id: median-frequency weight} of the classes that occur."""
  k = slice(num_classes)
  if not statistics.class_pixels[k].any():
    return {}
  weights = median_frequency_weights(
    statistics.class_pixels[k], statistics.beside_class[k]
  )
  return {i: w for i, w in enumerate(weights) if np.isfinite(w)}


def report_json(
  source: str,
  found: Sequence[Problem],
  statistics: Statistics | None,
  names: Sequence[str],
) -> dict[str, Any]:
  """Returns the report of `check` as an object for JSON.

  Args:
    source: as it was named.
    found: all problems.
    statistics: from `checks.inspect`, or None.
    names: of the classes.
  """
  counts = {
    severity: sum(p.severity == severity for p in found)
    for severity in problems.SEVERITIES
  }
  numbers = None
  if statistics is not None:
    present = np.flatnonzero(statistics.class_images)
    weights = _weights(statistics, len(names))
    numbers = {
      'images': statistics.images,
      'labels': statistics.labels,
      'sizes': [
        {'height': int(h), 'width': int(w), 'images': n}
        for (h, w), n in statistics.sizes.items()
      ],
      'modes': dict(statistics.modes),
      'classes': [
        {
          'id': int(i),
          'name': names[i] if i < len(names) else 'void',
          'pixels': int(statistics.class_pixels[i]),
          'images': int(statistics.class_images[i]),
        }
        | ({'weight': float(weights[i])} if i in weights else {})
        for i in present
      ],
    }
  return {
    'source': source,
    'counts': counts,
    'problems': problems.to_json(found),
    'statistics': numbers,
  }


def one_line(text: str) -> str:
  """Returns a text without line breaks."""
  return ' '.join(text.split())
