"""What is wrong with generated images that are to train beside others."""

from typing import Any

from jaxseg.data import fit, synthetic
from jaxseg.data.examples import Examples
from jaxseg.data.inspection import look, set_checks
from jaxseg.data.inspection.examine import Seen
from jaxseg.data.problems import Problem
from jaxseg.data.source import Source


def look_at(
  source: Source, data_config: Any
) -> tuple[dict[str, Seen], list[Problem]]:
  """Reads every image and label of `config.data.synthetic.folder`.

  Args:
    source: the data set that they train beside.
    data_config: `config.data`.

  Returns:
    What was seen by id after `synthetic.PREFIX`, and what is wrong; nothing
    where there is no such folder.

  Raises:
    UserError: as `synthetic.opener`.
  """
  if source.synthetic is None:
    return {}, []
  generated, target = source.synthetic(), fit.size(data_config)
  roles = dict.fromkeys(synthetic.ids(generated), look.Role('refuse', True))
  keep = Examples(generated, data_config, full=True).keep
  every = list(look.look_through(generated, roles, target, keep).values())
  found = [p for p in generated.problems if p.severity == 'refuse']
  found += [problem for s in every for problem in s.problems]
  found += set_checks.about_labels(generated, every, [])
  found += set_checks.about_images(generated, every, target)
  if not data_config.fit:
    found += set_checks.about_shapes(generated, every, target=target)
  return {synthetic.PREFIX + s.id: s for s in every}, found


def with_paths(source: Source) -> Source:
  """Returns the source that knows the files of synthetic ids too."""
  if source.synthetic is None:
    return source
  generated = source.synthetic()

  def path(id_):
    if id_.startswith(synthetic.PREFIX):
      return generated.path(id_.removeprefix(synthetic.PREFIX))
    return source.path(id_)

  return source._replace(path=path)
