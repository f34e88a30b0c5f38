import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg.data import pipeline, sources, splits, synthetic, weak
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError, UserError

# Grey levels: `write_folder` adds the number of an image to its pixels.
MADE = 60


@pytest.fixture
def root(write_folder, tmp_path, config):
  """Twelve real images, and five synthetic ones that are brighter."""
  made = write_folder(n=MADE + 5)
  for i in range(MADE):
    for kind in ('images', 'labels'):
      (made / kind / f'{i:03d}.png').unlink()
  (made / 'splits.json').write_text(
    json.dumps({'train': [f'{MADE + i:03d}' for i in range(5)]})
  )
  shutil.move(made, tmp_path / 'made')
  config.data.source = f'folder:{write_folder(n=12)}'
  config.data.synthetic.folder = str(tmp_path / 'made')
  return tmp_path


@pytest.fixture
def stream(root, config):
  """Returns a function that gives batches first..last of a training run."""

  def batches(first=0, last=16, **kwargs):
    source = sources.load(config.data)
    drawn = splits.make_splits(source, config.data, 0)
    kwargs = dict(batch_size=4, unlabelled_batch_size=2, seed=1) | kwargs
    it = pipeline.train_batches(
      source, drawn, config, start_step=first, **kwargs
    )
    found = list(itertools.islice(it, last - first))
    it.close()
    return found

  return batches


def numbers(found, key='image'):
  """The number of each image, in the order of the stream."""
  pixels = np.concatenate([b[key] for b in found])
  return np.round((pixels.min((1, 2, 3)) + 1) * 127.5).astype(int)


@pytest.mark.parametrize('part', [0.0, 0.25, 1 / 3, 0.5, 1.0])
def test_the_part_is_exact_and_each_number_comes_once(part):
  n = 30 * synthetic.BLOCK
  found = [synthetic.mixed(i, 5, part) for i in range(n)]
  made = np.array([is_made for is_made, _ in found])
  assert abs(made.sum() - part * n) <= 1
  for start in range(0, n, synthetic.BLOCK):
    block = made[start : start + synthetic.BLOCK]
    assert abs(block.sum() - part * len(block)) < 1 + 1e-3
  for kind in (False, True):
    order = [index for is_made, index in found if is_made == kind]
    assert sorted(order) == list(range(len(order)))
  assert found == [synthetic.mixed(i, 5, part) for i in range(n)]
  if 0 < part < 1:
    assert found != [synthetic.mixed(i, 6, part) for i in range(n)]
    # At random, not every other.
    assert 1 < max(len(list(g)) for _, g in itertools.groupby(made)) < 64


def test_half_of_the_batches_is_synthetic(stream, config):
  found = stream()
  made = numbers(found)
  assert (made >= MADE).sum() == 32 == len(made) // 2
  counts = np.bincount(made)[MADE:]
  assert counts.sum() == 32 and counts.min() >= 32 // 5
  real = np.bincount(made[made < MADE], minlength=12)
  assert sorted(real[real > 0]) == [8] * 4  # labelled images, eight epochs
  assert numbers(found, 'unlabelled').max() < MADE
  for b in found:
    level = (b['image'][..., 0] + 1) * 127.5
    expected = level - level.min((1, 2), keepdims=True) > 50
    np.testing.assert_array_equal(b['label'], expected)


def test_the_same_batches_again_later_and_in_parts(stream, config):
  config.data.augment.shift = 0.2
  found = stream(0, 8)
  for again in (stream(0, 8), [*stream(0, 3), *stream(3, 8)]):
    for a, b in zip(found, again, strict=True):
      for key in a:
        np.testing.assert_array_equal(a[key], b[key])
  halves = [stream(0, 8, process_index=i, process_count=2) for i in (0, 1)]
  for a, *parts in zip(found, *halves, strict=True):
    np.testing.assert_array_equal(
      a['label'], np.concatenate([p['label'] for p in parts])
    )


def test_no_real_label_trains_at_part_one(stream, config, monkeypatch):
  config.data.synthetic.part = 1.0
  config.data.augment.copy_paste = 0.5
  read = pipeline.Examples.training_label
  seen = []

  def training_label(self, id_):
    seen.append(id_)
    return read(self, id_)

  monkeypatch.setattr(pipeline.Examples, 'training_label', training_label)
  stream()
  assert seen and min(map(int, seen)) >= MADE


@pytest.mark.parametrize('kind', ['clicks', 'tags'])
def test_synthetic_labels_are_full(stream, config, kind):
  config.data.weak.kind = kind
  found = stream()
  void = np.concatenate([(b['label'] == 255).mean((1, 2)) for b in found])
  made = numbers(found) >= MADE
  assert not void[made].any() and (void[~made] > 0.5).all()
  if kind == 'tags':
    assert all((b['tags'] == 1).all() for b in found)


def test_synthetic_labels_are_boxes_where_labels_are(stream, config):
  """Masks would be read as filled boxes; refined boxes are masks."""
  config.data.weak.kind = 'boxes'
  found = stream(0, 4)
  made = numbers(found) >= MADE
  label = np.concatenate([b['label'] for b in found])[made]
  image = np.concatenate([b['image'] for b in found])[made]
  level = (image[..., 0] + 1) * 127.5
  masks = level - level.min((1, 2), keepdims=True) > 50
  for mask, found in zip(masks, label, strict=True):
    wanted = weak.weaken(mask.astype(np.uint8), 'boxes', num_classes=2)
    np.testing.assert_array_equal(found, wanted)
  config.data.weak.refine = 'grabcut'
  config.data.synthetic.part = 1.0
  for b in stream(0, 1):
    level = (b['image'][..., 0] + 1) * 127.5
    mask = level - level.min((1, 2), keepdims=True) > 50
    np.testing.assert_array_equal(b['label'], mask)


def test_off(root, stream, config):
  found = stream(0, 4)
  config.data.synthetic.part = 0.0
  plain = stream(0, 4)
  config.data.synthetic.folder = ''
  for a, b in zip(plain, stream(0, 4), strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
  assert (numbers(found) >= MADE).any() and (numbers(plain) < MADE).all()
  # Scoring opens no synthetic images.
  config.data.synthetic.folder, config.data.synthetic.part = 'gone', 0.5
  source = sources.load(config.data)
  assert list(pipeline.eval_batches(source, ['003'], config, 1))


def checked(config):
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  return checks.check(source, drawn, config.data)


def test_a_workdir_keeps_its_synthetic_images(root, config, tmp_path):
  before = checked(config)
  assert before == checked(config)
  splits.save_splits(tmp_path / 'splits.json', before)
  (root / 'made/labels/060.png').write_bytes(
    (root / 'made/labels/061.png').read_bytes()
  )
  with pytest.raises(UserError, match='synthetic ones too'):
    splits.refuse_other(tmp_path / 'splits.json', checked(config))
  config.data.synthetic.folder = ''
  assert checked(config).hash == before.hash
  assert checked(config).content != before.content


@pytest.mark.parametrize(
  'case, sentence',
  [
    ('missing', 'there is no such folder'),
    ('classes', 'with the classes background, cat, but those of set are'),
    ('labels', 'no image has a label'),
    ('size', 'the label is 32x32 and the image 16x16'),
    ('leak', 'the image is scored, and .*made/images/060.png that trains'),
  ],
)
def test_bad_folders(root, config, case, sentence):
  made = root / 'made'
  image = made / 'images/060.png'
  if case == 'missing':
    config.data.synthetic.folder = str(root / 'none')
  elif case == 'classes':
    text = json.dumps({'classes': ['background', 'cat']})
    (made / 'classes.json').write_text(text)
  elif case == 'labels':
    shutil.rmtree(made / 'labels')
    names = {'classes': ['background', 'class 1']}
    (made / 'classes.json').write_text(json.dumps(names))
  elif case == 'size':
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(image)
  else:
    source = sources.load(config.data)
    test = splits.make_splits(source, config.data, 0).test[0]
    shutil.copy(source.path(test), image)
  with pytest.raises((UserError, DataError), match=sentence) as error:
    checked(config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('part', [-0.1, 1.5, float('nan')])
def test_settings(part):
  data = jaxseg_config.default().data
  data.synthetic.part = part
  with pytest.raises(UserError, match='synthetic.part'):
    synthetic.check(data.synthetic)


def test_workers(stream, config):
  expected = stream(0, 3)
  config.data.workers = 1
  for a, b in zip(expected, stream(0, 3), strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
