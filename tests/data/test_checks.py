import numpy as np
import pytest
from PIL import Image

from jaxseg.data import checks, pipeline, sources, splits
from jaxseg.errors import UserError

SPLITS = {
  'train': [f'{i:03d}' for i in range(8)],
  'val': ['008'],
  'test': ['009'],
  'ood_x': ['010', '011'],
}


@pytest.fixture
def root(write_folder):
  return write_folder(
    unlabelled=2,
    splits=SPLITS | {'unlabelled': ['012', '013']},
    meta={'classes': ['a', 'b']},
  )


def run(root, config):
  source = sources.load(f'folder:{root}', config.data.channels)
  drawn = splits.make_splits(source, config.data, 0)
  pipeline.check(source, drawn, config.data)
  return source


def test_good_data_is_read_once(root, config):
  source = run(root, config)
  kinds = [kind for kind, _, _ in source.cache]
  assert kinds.count('image') == 14 and kinds.count('label') == 8
  for path in (root / 'images').iterdir():
    path.unlink()
  drawn = splits.make_splits(source, config.data, 0)
  batches = pipeline.train_batches(
    source, drawn, config, batch_size=2, unlabelled_batch_size=20, seed=0
  )
  assert next(batches)['unlabelled'].shape == (20, 32, 32, 1)


def test_cache_can_be_off(root, config):
  config.data.cache = False
  assert run(root, config).cache == {}


@pytest.mark.parametrize('side', [16, 33, 48, 2048])
def test_resolution(root, config, side):
  config.data.resolution = side
  with pytest.raises(UserError, match=f'resolution is {side}, expected a pow'):
    run(root, config)


def test_memory(root, config, monkeypatch):
  monkeypatch.setattr(checks.os, 'sysconf', lambda name: 100)
  with pytest.raises(UserError, match='config.data.cache would keep'):
    run(root, config)
  config.data.cache = False
  run(root, config)


@pytest.mark.parametrize('id_', ['000', '008', '009', '011', '012'])
def test_truncated_image_of_any_split(root, config, id_):
  path = root / f'images/{id_}.png'
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(UserError, match=f'{id_}.png: the image file is damaged'):
    run(root, config)


def test_truncated_label(root, config):
  path = root / 'labels/009.png'
  path.write_bytes(path.read_bytes()[:-60])
  with pytest.raises(UserError, match='009.png: the label file is damaged'):
    run(root, config)


@pytest.mark.parametrize('id_', ['008', '009', '010'])
def test_scored_image_without_mask(root, config, id_):
  (root / f'labels/{id_}.png').unlink()
  with pytest.raises(UserError, match=f'{id_}.png: the image has no label'):
    run(root, config)


def test_labelled_image_without_mask(root, config):
  """A labelled split that was saved before its mask was removed."""
  source = sources.load(f'folder:{root}', 1)
  drawn = splits.make_splits(source, config.data, 0)
  (root / f'labels/{drawn.labelled[0]}.png').unlink()
  source = sources.load(f'folder:{root}', 1)
  with pytest.raises(UserError, match=f'{drawn.labelled[0]}.png: the image ha'):
    pipeline.check(source, drawn, config.data)


def test_size_mismatch(root, config):
  Image.new('L', (32, 40)).save(root / 'labels/009.png')
  with pytest.raises(UserError, match='label is 32x40 and the image 32x32'):
    run(root, config)


def test_too_small(root, config):
  Image.new('L', (1, 1)).save(root / 'images/012.png')
  with pytest.raises(UserError, match='012.png: the image is 1x1'):
    run(root, config)


def test_unknown_id(root, config):
  label = np.zeros((32, 32), np.uint8)
  label[0, 0], label[0, 1], label[0, 2] = 2, 255, 254
  Image.fromarray(label).save(root / 'labels/009.png')
  with pytest.raises(UserError, match='ids 2, 254, expected 0 to 1 .2 cla'):
    run(root, config)


def test_void_is_allowed(root, config):
  label = np.full((32, 32), 255, np.uint8)
  label[0, 0] = 1
  Image.fromarray(label).save(root / 'labels/009.png')
  run(root, config)


def test_black_and_white_masks(root, config):
  for path in (root / 'labels').iterdir():
    white = np.asarray(Image.open(path)) * np.uint8(255)
    Image.fromarray(white).save(path)
  with pytest.raises(UserError, match='only 0 and 255.*white pixels'):
    run(root, config)


def test_errors_are_collected(root, config):
  config.data.num_labelled = 0
  for i in range(8):
    (root / f'images/{i:03d}.png').write_bytes(b'')
  with pytest.raises(UserError) as error:
    run(root, config)
  message = str(error.value)
  assert message.count('(0 bytes)') == 5 and '000.png' in message
  assert 'and 3 more files' in message


def test_surprises_are_mentioned(root, config, capfd):
  for path in (root / 'labels').iterdir():
    Image.new('L', (32, 32)).save(path)
  Image.new('L', (32, 64)).save(root / 'images/012.png')
  run(root, config)
  told = capfd.readouterr().err
  assert 'no labelled image shows b;' in told
  assert '1 of 14 images are not square (up to 2.0:1)' in told


def test_progress(capfd, monkeypatch):
  clock = iter([0.0, 1.0, 3.0, 4.0, 9.0, 9.5])
  monkeypatch.setattr(checks.time, 'monotonic', lambda: next(clock))
  assert list(checks._with_progress('abcd', 4)) == list('abcd')
  lines = capfd.readouterr().err.splitlines()
  assert lines == ['jaxseg: read 2 of 4 images']
