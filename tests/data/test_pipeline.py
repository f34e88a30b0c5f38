import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import pipeline, sources, splits, transforms
from jaxseg.data.formats import images
from jaxseg.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(write_folder, config):
  root = write_folder(
    n=12,
    unlabelled=3,
    splits={
      'train': [f'{i:03d}' for i in range(7)] + ['012', '013', '014'],
      'val': ['007'],
      'test': [f'{i:03d}' for i in range(8, 12)],
    },
  )
  config.data.source = f'folder:{root}'
  return sources.load(config.data)


@pytest.fixture
def stream(source, config):
  """Returns a function that gives batches first..last of a training run."""
  drawn = splits.make_splits(source, config.data, 0)

  def batches(first=0, last=8, **kwargs):
    kwargs = dict(batch_size=4, unlabelled_batch_size=6, seed=1) | kwargs
    it = pipeline.train_batches(
      source, drawn, config, start_step=first, **kwargs
    )
    found = list(itertools.islice(it, last - first))
    it.close()
    return found

  return batches


@pytest.fixture(params=[False, True], ids=['plain', 'augmented'])
def augmented(request, config):
  if request.param:
    config.data.augment.flip = True
    config.data.augment.shift = 0.2
    config.data.augment.brightness = 0.2
  return request.param


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    assert x.keys() == y.keys()
    for key in x:
      np.testing.assert_array_equal(x[key], y[key])


def numbers(batch_images):
  """The number of each image, which `write_folder` adds to its pixels."""
  return [round(float((x.min() + 1) * 127.5)) for x in batch_images]


def test_batches(stream, augmented):
  (batch,) = stream(0, 1)
  assert batch['image'].shape == (4, 32, 32, 1)
  assert batch['image'].dtype == batch['unlabelled'].dtype == np.float32
  assert batch['label'].shape == (4, 32, 32)
  assert batch['label'].dtype == np.int32
  assert batch['unlabelled'].shape == (6, 32, 32, 1)
  for key in ('image', 'unlabelled'):
    assert -1 <= batch[key].min() < batch[key].max() <= 1


def test_image_fits_its_label(stream):
  for batch in stream(0, 3):
    number = np.array(numbers(batch['image'])).reshape(-1, 1, 1)
    expected = (batch['label'] * 100 + number) / 127.5 - 1
    np.testing.assert_allclose(batch['image'][..., 0], expected, atol=1e-6)


def test_grey_levels_span_the_range():
  ends = transforms.normalise(np.array([0, 255], np.uint8))
  np.testing.assert_array_equal(ends, np.float32([-1, 1]))


def test_every_epoch_shows_every_image_once(stream, source, config):
  drawn = splits.make_splits(source, config.data, 0)
  seen = [numbers(b['unlabelled']) for b in stream(0, 10)]  # 6 epochs of 10
  epochs = np.array(seen).reshape(6, 10)
  for epoch in epochs:
    assert sorted(epoch) == sorted(map(int, drawn.unlabelled))
  assert len({tuple(epoch) for epoch in epochs}) > 1
  labelled = {n for b in stream(0, 4) for n in numbers(b['image'])}
  assert labelled == set(map(int, drawn.labelled))


def test_same_seed_same_batches(stream, augmented):
  assert_same(stream(0, 4), stream(0, 4))
  other = stream(0, 4, seed=2)
  assert not np.array_equal(stream(0, 1)[0]['image'], other[0]['image'])


def test_resume(stream, augmented):
  whole = stream(0, 8)
  for k in (1, 5):
    assert_same(whole[k:], stream(k, 8))


def test_state(source, config):
  drawn = splits.make_splits(source, config.data, 0)
  kwargs = dict(batch_size=2, unlabelled_batch_size=2, seed=0)
  a = pipeline.train_batches(source, drawn, config, **kwargs)
  for _ in range(3):
    next(a)
  state = json.loads(json.dumps(a.state()))
  assert state == {'next_step': 3}
  b = pipeline.train_batches(
    source, drawn, config, start_step=state['next_step'], **kwargs
  )
  assert b.state() == state
  assert_same([next(a), next(a)], [next(b), next(b)])


@pytest.mark.parametrize('count', [2])
def test_processes_share_the_same_batches(stream, augmented, count):
  whole = stream(0, 5)
  parts = [
    stream(0, 5, process_index=i, process_count=count) for i in range(count)
  ]
  for step, batch in enumerate(whole):
    for key, array in batch.items():
      for part in parts:
        assert len(part[step][key]) == len(array) // count
      merged = np.concatenate([part[step][key] for part in parts])
      np.testing.assert_array_equal(merged, array)


def test_augmentation_differs_between_epochs(stream, config):
  config.data.augment.shift = 0.2
  config.data.num_labelled = 4
  pictures = {x.tobytes() for b in stream(0, 5) for x in b['image']}
  assert len(pictures) == 20


def test_one_stream_alone(stream):
  assert set(stream(0, 1, unlabelled_batch_size=0)[0]) == {'image', 'label'}
  assert set(stream(0, 1, batch_size=0)[0]) == {'unlabelled'}
  with pytest.raises(UserError, match='both 0'):
    stream(0, 1, batch_size=0, unlabelled_batch_size=0)


def test_uncached_files_give_the_same(stream, config):
  cached = stream(0, 2)
  config.data.cache = False
  assert_same(cached, stream(0, 2))


def test_empty_stream(source, config):
  drawn = splits.make_splits(source, config.data, 0)._replace(unlabelled=())
  with pytest.raises(UserError, match='no unlabelled images'):
    pipeline.train_batches(
      source, drawn, config, batch_size=1, unlabelled_batch_size=1, seed=0
    )


def test_batch_that_cannot_be_shared(stream):
  with pytest.raises(UserError, match='batch_size is 3, expected a multiple'):
    stream(0, 1, batch_size=3, process_count=2)


@pytest.mark.parametrize('n, batch_size', [(4, 3), (4, 4), (1, 8), (0, 2)])
def test_eval_batches(source, config, n, batch_size):
  ids = ['008', '009', '010', '011'][:n]
  batches = list(pipeline.eval_batches(source, ids, config, batch_size))
  assert len(batches) == -(-n // batch_size)
  for batch in batches:
    assert batch['image'].shape == (batch_size, 32, 32, 1)
    assert batch['image'].dtype == np.float32
    assert batch['label'].dtype == np.int32 and len(batch['ids']) == batch_size
    padding = ~batch['valid']
    assert (batch['label'][padding] == images.VOID).all()
    assert (batch['label'][batch['valid']] < 2).all()
    for id_, valid, number in zip(
      batch['ids'], batch['valid'], numbers(batch['image']), strict=True
    ):
      assert valid == bool(id_)
      assert not valid or number == int(id_)
  assert [i for b in batches for i in b['ids'] if i] == ids
  assert sum(b['valid'].sum() for b in batches) == n


def test_eval_of_unlabelled_images(source, config):
  (batch,) = pipeline.eval_batches(source, ['012'], config, 1)
  assert (batch['label'] == images.VOID).all() and batch['valid'].all()


def test_resolutions(write_folder, config):
  config.data.source = f'folder:{write_folder(n=2, side=50)}'
  config.data.channels = 3
  source = sources.load(config.data)
  examples = pipeline.Examples(source, config.data)
  assert examples.image('000').shape == (32, 32, 3)
  assert examples.label('000').shape == (32, 32)
  assert examples.original_label('000').shape == (50, 50)
  assert examples.image('000') is examples.image('000')
  with pytest.raises(ValueError, match='read-only'):
    examples.image('000')[0] = 0


def test_original_label_must_exist(source, config):
  with pytest.raises(UserError, match='012.png: the image has no label'):
    pipeline.Examples(source, config.data).original_label('012')


def test_unlabelled_images_are_moved_but_not_recoloured(stream, config):
  plain = stream(0, 2)
  config.data.augment.brightness = 0.9
  config.data.augment.copy_paste = 1.0
  recoloured = stream(0, 2)
  for a, b in zip(plain, recoloured, strict=True):
    np.testing.assert_allclose(a['unlabelled'], b['unlabelled'], atol=1e-6)
    assert not np.allclose(a['image'], b['image'], atol=0.01)
  config.data.augment.shift = 0.3
  (moved,) = stream(0, 1)
  assert not np.allclose(moved['unlabelled'], plain[0]['unlabelled'], atol=0.01)


def test_strong_views(stream, config):
  config.data.strong.views = 2
  config.data.strong.cutmix_probability = 1.0
  config.data.augment.shift = 0.2
  whole = stream(0, 4)
  batch = whole[0]
  assert batch['unlabelled_strong'].shape == (6, 2, 32, 32, 1)
  assert batch['unlabelled_strong'].dtype == np.float32
  assert -1 <= batch['unlabelled_strong'].min()
  assert batch['unlabelled_strong'].max() <= 1
  assert batch['cutmix'].shape == (6, 2, 32, 32)
  assert set(np.unique(batch['cutmix'])) == {0, 1}
  shares = batch['cutmix'].mean((2, 3))
  assert 0.005 < shares.min() and shares.max() < 0.45
  views = batch['unlabelled_strong']
  assert np.abs(views[:, 0] - views[:, 1]).mean() > 0.01  # drawn apart
  assert_same(whole[2:], stream(2, 4))  # and again alike


def test_copy_paste(stream, config):
  """Pasted pixels bring their labels: the image still fits its label."""
  plain = stream(0, 3)
  config.data.augment.copy_paste = 1.0
  pasted = stream(0, 3)
  moved = 0
  for a, b in zip(plain, pasted, strict=True):
    grey = (b['image'][..., 0] + 1) * 127.5
    np.testing.assert_array_equal(grey > 50, b['label'] == 1)
    moved += (a['label'] != b['label']).sum()
  assert moved


def test_one_source_serves_several_configs(source, config):
  """What one config left in the cache is not taken for another's."""
  config.data.weak.kind = 'boxes'
  for field, value in (('fit', 'crop'), ('weak.width', 9), ('resolution', 64)):
    pipeline.Examples(source, config.data).training_label('003')
    config.update_from_flattened_dict({f'data.{field}': value})
    found = pipeline.Examples(source, config.data).training_label('003')
    fresh = pipeline.Examples(source._replace(cache={}), config.data)
    np.testing.assert_array_equal(found, fresh.training_label('003'))


@pytest.mark.parametrize('kind', ['scribbles', 'clicks', 'boxes', 'polygons'])
def test_weak_labels_train_and_full_ones_score(source, config, kind):
  root = config.data.source.partition(':')[2]
  for i in range(12):
    label = np.zeros((32, 32), np.uint8)
    label[8:24, 8 + i : 20 + i] = 1
    Image.fromarray(label).save(f'{root}/labels/{i:03d}.png')
  source = sources.load(config.data)
  config.data.weak.kind = kind
  config.data.weak.width = 1
  examples = pipeline.Examples(source, config.data)
  full, weak = examples.label('003'), examples.training_label('003')
  known = weak != images.VOID
  assert set(np.unique(weak[known])) == {0, 1}
  # Boxes and polygons of a rectangle are the rectangle, or all but its edge.
  assert (weak[known] == full[known]).mean() > 0.99
  assert known.mean() < 0.2 if kind in ('scribbles', 'clicks') else 0.5
  again = pipeline.Examples(sources.load(config.data), config.data)
  np.testing.assert_array_equal(again.training_label('003'), weak)
  drawn = splits.make_splits(source, config.data, 0)
  (batch,) = pipeline.eval_batches(source, drawn.test[:1], config, 1)
  assert (batch['label'] != images.VOID).all()
  with contextlib.closing(
    pipeline.train_batches(
      source, drawn, config, batch_size=2, unlabelled_batch_size=0, seed=0
    )
  ) as batches:
    trained = next(batches)['label']
  expected = [examples.training_label(id_) for id_ in drawn.labelled]
  assert all(any((t == e).all() for e in expected) for t in trained)


def test_tags(stream, config):
  config.data.weak.kind = 'tags'
  (batch,) = stream(0, 1)
  assert (batch['label'] == images.VOID).all()
  np.testing.assert_array_equal(batch['tags'], np.ones((4, 2), np.float32))


def test_worker_processes_give_the_same_batches(stream, config):
  config.data.augment.shift = 0.2
  config.data.strong.views = 1
  expected = stream(1, 4)
  config.data.workers = 2
  assert_same(stream(1, 4), expected)


WORKERS = """
import os, signal, subprocess, sys, time
from jaxseg import config as jaxseg_config
from jaxseg.data import pipeline, sources, splits

def main():
  config = jaxseg_config.default().unlock()
  config.data.source, config.data.channels = sys.argv[1], 1
  config.data.resolution, config.data.num_labelled = 32, 4
  config.data.workers = 1
  source = sources.load(config.data)
  batches = pipeline.train_batches(
    source, splits.make_splits(source, config.data, 0), config,
    batch_size=2, unlabelled_batch_size=0, seed=0,
  )
  next(batches)
  children = ['pgrep', '-P', str(os.getpid()), '-f', 'spawn_main']
  found = subprocess.run(children, capture_output=True, text=True).stdout
  worker = int(found.split()[-1])
  for number in (signal.SIGINT, signal.SIGTERM):
    os.kill(worker, number)
  for _ in range(20):  # more than are read ahead
    next(batches)
  print(worker, flush=True)
  os.kill(os.getpid(), signal.SIGKILL)

if __name__ == '__main__':
  main()
"""


@pytest.mark.skipif(not shutil.which('pgrep'), reason='needs pgrep')
def test_workers_live_as_long_as_their_parent(source, config, tmp_path):
  """Signals to all processes leave them; a killed parent takes them along."""
  script = tmp_path / 'workers.py'
  script.write_text(WORKERS)
  done = subprocess.run(
    [sys.executable, script, config.data.source],
    cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == -signal.SIGKILL, done.stderr
  worker = int(done.stdout)
  for _ in range(100):
    if not Path(f'/proc/{worker}').exists():
      return
    time.sleep(0.1)
  os.kill(worker, signal.SIGKILL)
  raise AssertionError('the worker outlived its parent')


@pytest.mark.parametrize(
  'policy, share', [('crop', 1.0), ('pad', 0.5), ('squeeze', 1.0)]
)
def test_fit(write_folder, config, policy, share):
  root = write_folder(n=2)
  for i in range(2):
    for kind in ('images', 'labels'):
      picture = Image.open(root / f'{kind}/{i:03d}.png')
      nearest = Image.Resampling.NEAREST
      picture.resize((80, 40), nearest).save(root / f'{kind}/{i:03d}.png')
  config.data.source, config.data.fit = f'folder:{root}', policy
  examples = pipeline.Examples(sources.load(config.data), config.data)
  image, label = examples.image('001'), examples.label('001')
  assert image.shape == (32, 32, 1) and label.shape == (32, 32)
  assert (label != images.VOID).mean() == share
  if policy == 'pad':
    padding = image[label == images.VOID].reshape(2, 8, 32)
    assert (padding[0, :5] == 0).all() and (padding[1, 3:] == 0).all()


def test_an_unknown_fit_is_refused(source, config):
  config.data.fit = 'stretch'
  with pytest.raises(UserError, match="config.data.fit is 'stretch'"):
    pipeline.Examples(source, config.data)
