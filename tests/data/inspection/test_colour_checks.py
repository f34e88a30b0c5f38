"""Label files in colours, or with palettes of their own."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import splits
from jaxseg.data.folders import folder
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)


def recolour(path, colours, mode='P'):
  """Stores a label file's ids with these colours."""
  image = Image.open(path)
  image.putpalette(np.array(colours, np.uint8).tobytes())
  image.convert(mode).save(path)


def grave(opened):
  return [p for p in checks.inspect(opened)[0] if p.severity == 'refuse']


def test_files_that_number_their_colours_themselves(write_folder, config):
  root = write_folder(n=8, num_classes=3)
  for i, path in enumerate(sorted((root / 'labels').iterdir())):
    recolour(path, [BLACK, GREEN, RED] if i == 5 else [BLACK, RED, GREEN])
  opened = folder.load(root, 1)
  (problem,) = grave(opened)
  assert problem.kind == 'palettes_differ'
  assert problem.path.endswith('005.png')
  assert '[0, 255, 0] is id 1' in problem.message
  config.data.num_labelled = 0
  drawn = splits.make_splits(opened, config.data, 0)
  with pytest.raises(DataError, match='expected one palette for all'):
    checks.check(opened, drawn, config.data)
  # Either advice is enough: the ids are right, or the colours.
  line = problem.message.partition('put ')[2].removesuffix(' there')
  (root / 'classes.json').write_text(line)
  assert grave(folder.load(root, 1)) == []
  for path in (root / 'labels').iterdir():
    Image.open(path).convert('RGB').save(path)
  names = {'back': BLACK, 'red': RED, 'green': GREEN}
  (root / 'classes.json').write_text(json.dumps(names))
  assert grave(folder.load(root, 1)) == []


def test_palettes_of_other_colours_are_no_mistake(write_folder):
  root = write_folder(n=4, num_classes=3)
  for i, path in enumerate(sorted((root / 'labels').iterdir())):
    recolour(path, [BLACK, (i, 0, 1), (0, i, 2)])
  assert grave(folder.load(root, 1)) == []


def test_one_line_names_the_colours_of_all_files(write_folder):
  root = write_folder(n=6, num_classes=3)
  for i, path in enumerate(sorted((root / 'labels').iterdir())):
    second = (9, 9, 200) if i == 3 else GREEN
    recolour(path, [RED, BLACK, second], 'RGB')
  found = grave(folder.load(root, 1))
  assert found[0].kind == 'all_colours' and len(found) == 7
  line = found[0].message.partition('colour, ')[2]
  assert list(json.loads(line).values())[:2] == [[0, 0, 0], [255, 0, 0]]
  (root / 'classes.json').write_text(line)
  opened = folder.load(root, 1)
  assert grave(opened) == [] and len(opened.class_names) == 4
