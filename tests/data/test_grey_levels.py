"""Masks whose grey levels are no class ids, in folders without a class list."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import sources, splits
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError


def load(root, config):
  config.data.source = f'folder:{root}'
  config.data.num_labelled = 0
  return sources.load(config.data)


def grave(root, config):
  found, _ = checks.inspect(load(root, config), target=(32, 32))
  return [p for p in found if p.severity == 'refuse']


def refused(root, config, kind, words):
  """What `inspect` finds and training refuses: one problem."""
  (problem,) = grave(root, config)
  assert problem.kind == kind and re.search(words, problem.message), problem
  source = load(root, config)
  with pytest.raises(DataError, match=words):
    checks.check(
      source, splits.make_splits(source, config.data, 0), config.data
    )
  return problem


def rewrite(root, change):
  """Replaces each label by `change(ids, i)`, an image or an array."""
  for i, path in enumerate(sorted((root / 'labels').iterdir())):
    new = change(np.asarray(Image.open(path)), i)
    new = new if isinstance(new, Image.Image) else Image.fromarray(new)
    new.save(path, 'PNG')


def as_jpeg(array):
  data = io.BytesIO()
  Image.fromarray(array).save(data, 'JPEG', quality=90)
  return Image.open(data)


@pytest.mark.parametrize('levels', [(0, 128), (0, 128, 255), (0, 63, 126, 252)])
def test_grey_levels(write_folder, config, levels):
  root = write_folder(n=12, num_classes=len(levels))
  rewrite(root, lambda ids, i: np.array(levels, np.uint8)[ids])
  problem = refused(root, config, 'grey_levels', 'class ids without gaps')
  line = problem.message.partition('put ')[2].partition(' into')[0]
  line, _, white = line.partition(' (')
  assert bool(white) == (255 in levels)
  (root / 'classes.json').write_text(line)
  assert grave(root, config) == []
  ids = [i if level < 255 else 255 for i, level in enumerate(levels)]
  np.testing.assert_array_equal(np.unique(load(root, config).label('000')), ids)


@pytest.mark.parametrize('levels', [(0, 255), (0, 60, 120)])
def test_masks_that_were_jpeg(write_folder, config, levels):
  y, x = np.mgrid[:96, :96]

  def change(_, i):
    mask = np.zeros((96, 96), np.uint8)
    for j, level in enumerate(levels[1:]):
      far = (y - 40 - 9 * j) ** 2 + (x - 40 - 19 * j) ** 2
      mask[far < 300 + 90 * i] = level
    return as_jpeg(mask)

  root = write_folder(n=12, side=96)
  rewrite(root, change)
  found = grave(root, config)
  assert found and {p.kind for p in found} <= {
    'grey_levels',
    'interpolated_ids',
  }
  assert all('export the labels again' in p.message for p in found)


def test_photographs_as_labels(write_folder, config):
  rng = np.random.default_rng(0)

  def change(*_):
    coarse = Image.fromarray(rng.integers(0, 250, (6, 6), np.uint8))
    return coarse.resize((96, 96), Image.Resampling.BICUBIC)

  root = write_folder(n=12, side=96)
  rewrite(root, change)
  refused(root, config, 'interpolated_ids', 'as in photographs')


def test_mostly_black_and_white_masks(write_folder, config):
  root = write_folder(n=12)
  rewrite(root, lambda ids, i: ids * np.uint8(255 if i < 9 else 1))
  line = '{"values": {"1": 1, "255": 1}}'
  refused(root, config, 'black_and_white', re.escape(line))
  (root / 'classes.json').write_text(line)
  assert grave(root, config) == []
