"""Many images under the magnifier, in threads."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import NamedTuple

import numpy as np

from jaxseg.data.examples import num_threads
from jaxseg.data.inspection.examine import Seen, examine
from jaxseg.data.source import Source


class Role(NamedTuple):
  """What an image is looked at for; see `examine`.

  Attributes:
    severity: of mistakes in its files, 'refuse' or 'skip'.
    needs_label: whether its label is read, and must be there.
    is_mask: whether the label is brought to the networks' size as masks are,
      so that classes may be lost.
  """

  severity: str
  needs_label: bool
  is_mask: bool = True


def look_through(
  source: Source,
  roles: Mapping[str, Role],
  target: tuple[int, int] | None,
  keep: Callable[[str, str, np.ndarray], object] | None = None,
) -> dict[str, Seen]:
  """Examines images, with lines that tell how far it is.

  Args:
    source: the data set.
    roles: by id.
    target: see `examine`.
    keep: see `examine`.
  """

  def one(item):
    id_, role = item
    return examine(
      source, id_, severity=role.severity, needs_label=role.needs_label,
      target=target if role.is_mask else None, keep=keep,
    )  # fmt: skip

  with futures.ThreadPoolExecutor(num_threads()) as pool:
    results = _with_progress(pool.map(one, roles.items()), len(roles))
    return {seen.id: seen for seen in results}


def _with_progress(results: Iterable[Seen], total: int) -> Iterator[Seen]:
  """Passes results on; a line every 5 seconds when it takes over 2."""
  due = time.monotonic() + 2
  for done, result in enumerate(results, 1):
    if time.monotonic() > due and done < total:
      print(f'jaxseg: read {done} of {total} images', file=sys.stderr)
      due = time.monotonic() + 5
    yield result
