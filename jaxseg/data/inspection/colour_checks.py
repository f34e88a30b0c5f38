"""Colours of label files taken together: palettes, and colours without ids."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence

from jaxseg.data.inspection.examine import Seen
from jaxseg.data.problems import Problem
from jaxseg.data.source import Source

MOST = 64  # colours that are suggested as classes


def about_colours(source: Source, seen: Sequence[Seen]) -> Iterator[Problem]:
  """Yields what classes.json must say of all colours, and palettes that differ.

  Args:
    source: the data set.
    seen: images whose labels were read.
  """
  files = [s for s in seen if s.colours]
  found = Counter(colour for s in files for colour in s.colours)
  # Where all hold the same, what is said of each file is enough.
  differ = len({frozenset(s.colours) for s in files}) > 1
  if differ and len(found) <= MOST:
    # Black is the background in most programs, else what most files hold.
    order = sorted(found, key=lambda c: (any(c), -found[c]))
    names = ['background', *(f'class {i}' for i in range(1, len(order)))]
    line = json.dumps(dict(zip(names, order, strict=True)))
    yield Problem(
      'refuse', 'all_colours', source.name,
      f'{len(files)} label files hold {len(found)} colours in all, expected '
      'class ids; write a file classes.json beside images/ that names each '
      f'colour, {line}',
    )  # fmt: skip
  yield from _different_palettes(source, seen)


def _different_palettes(source, seen):
  """One colour that stands for different ids: files numbered one by one."""
  first, clashes = {}, {}
  for s in seen:
    uses = Counter(s.palette.values())
    for id_, colour in s.palette.items():
      if uses[colour] > 1:  # says nothing of which id is meant
        continue
      before, where = first.setdefault(colour, (id_, s.id))
      if before != id_:
        clashes.setdefault(s.id, (id_, colour, before, where))
  if clashes:
    id_, colour, before, where = next(iter(clashes.values()))
    ids = {str(i): i for i in sorted({i for s in seen for i in s.palette})}
    yield Problem(
      'refuse', 'palettes_differ', source.path(next(iter(clashes))),
      f'in its label the colour {list(colour)} is id {id_}, in that of '
      f'{source.path(where)} id {before} ({len(clashes)} such files), expected '
      'one palette for all; save the labels as RGB and name the colours in '
      'classes.json, or, if the ids are right, put '
      f'{json.dumps({"values": ids})} there',
    )  # fmt: skip
