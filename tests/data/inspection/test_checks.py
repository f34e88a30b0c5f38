import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import pipeline, problems, sources, splits
from jaxseg.data.inspection import checks, look
from jaxseg.errors import DataError, UserError

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


def run(root, config, report=None):
  config.data.source = f'folder:{root}'
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  return source, drawn, checks.check(source, drawn, config.data, report)


def copy(root, start, end):
  shutil.copy(root / start, root / end)


def test_good_data_is_read_once(root, config):
  source, drawn, _ = run(root, config)
  kinds = [kind for kind, _, _ in source.cache]
  assert kinds.count('image') == 14 and kinds.count('label') == 8
  for path in (root / 'images').iterdir():
    path.unlink()
  batches = pipeline.train_batches(
    source, drawn, config, batch_size=2, unlabelled_batch_size=20, seed=0
  )
  assert next(batches)['unlabelled'].shape == (20, 32, 32, 1)


def test_cache_can_be_off(root, config):
  config.data.cache = False
  assert run(root, config)[0].cache == {}


@pytest.mark.parametrize('side', [16, 33, 50, 2048])
def test_resolution(root, config, side):
  config.data.resolution = side
  with pytest.raises(UserError, match=f'resolution is {side}, must be a mult'):
    run(root, config)


@pytest.mark.parametrize('workers, images', [(0, 14), (2, 34)])
def test_memory_of_all_that_is_kept(root, config, monkeypatch, workers, images):
  """10 images train, in each worker too; 4 are scored."""
  config.data.workers = workers
  size = {'SC_PAGE_SIZE': 32 * 32 * 2}
  for more, enough in ((0.1, True), (-0.1, False)):
    size['SC_PHYS_PAGES'] = (images + more) / 0.8
    monkeypatch.setattr(checks.os, 'sysconf', size.__getitem__)
    if enough:
      run(root, config)
    else:
      with pytest.raises(UserError, match='config.data.cache would keep'):
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
  source, drawn, _ = run(root, config)
  (root / f'labels/{drawn.labelled[0]}.png').unlink()
  source = sources.load(config.data)
  with pytest.raises(DataError, match=f'{drawn.labelled[0]}.png: the image ha'):
    checks.check(source, drawn, config.data)


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
  with pytest.raises(
    UserError,
    match='ids 2 in 1 pixels, 254 in 1 pixels, expected 0 to 1 .2 cla',
  ):
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


def test_errors_are_collected(root, config, tmp_path):
  config.data.num_labelled = 0
  for i in range(8):
    (root / f'images/{i:03d}.png').write_bytes(b'')
  with pytest.raises(DataError) as error:
    run(root, config, tmp_path / 'bad.csv')
  message = str(error.value)
  assert message.count('(0 bytes)') == 5 and '000.png' in message
  assert 'and 3 more mistakes (8 to refuse (8 empty))' in message
  assert error.value.kind == 'empty' and error.value.exit_code == 3
  assert f'all are listed in {tmp_path / "bad.csv"}' in message
  rows = list(csv.DictReader((tmp_path / 'bad.csv').open(newline='')))
  assert [r['kind'] for r in rows if r['severity'] == 'refuse'] == ['empty'] * 8


def test_bad_unlabelled_images_are_left_out(root, config, capfd, tmp_path):
  (root / 'images/012.png').write_bytes(b'')
  config.data.max_bad_fraction = 0.1
  source, before, after = run(root, config, tmp_path / 'bad.csv')
  assert set(before.unlabelled) - set(after.unlabelled) == {'012'}
  assert after.hash != before.hash
  assert splits.rehash(after) == after
  told = capfd.readouterr().err
  assert 'left out:' in told and '012.png: the image file is empty' in told
  assert '012.png' in (tmp_path / 'bad.csv').read_text()
  # Twelve that could train (10 with a label), one is bad: 8.3 %.
  config.data.max_bad_fraction = 0.08
  with pytest.raises(DataError, match='1 of 10 unlabelled.*at most 8.00%'):
    run(root, config)


def test_nothing_found_changes_nothing_but_the_content(root, config):
  _, before, after = run(root, config)
  assert after._replace(content='') == before
  assert after.content


def test_content_follows_pixels(root, config):
  first = run(root, config)[2].content
  assert run(root, config)[2].content == first
  label = np.array(Image.open(root / 'labels/009.png'))
  label[0, 0] = 1 - label[0, 0]
  Image.fromarray(label).save(root / 'labels/009.png')
  assert run(root, config)[2].content != first


def test_other_domains_do_not_change_the_content(root, config):
  source, before, after = run(root, config)
  more = before._replace(ood={'ood_x': before.test[:1]}, test=before.test[1:])
  changed = checks.check(source, more, config.data)
  assert changed.content != after.content
  ood = before._replace(ood={'ood_x': ()})
  assert checks.check(source, ood, config.data).content == after.content


def test_leak_by_content(root, config):
  copy(root, 'images/013.png', 'images/009.png')
  with pytest.raises(
    DataError, match='009.png: the image is scored, and .*013'
  ):
    run(root, config)
  config.data.allow_leaks = True
  run(root, config)


def test_near_duplicate_is_told(root, config, capfd):
  y, x = np.indices((64, 64))
  picture = (127 + 60 * np.sin(x / 9) * np.cos(y / 7) + x / 2).astype(np.uint8)
  Image.fromarray(picture).save(root / 'images/013.png')
  Image.fromarray(picture).resize((32, 32)).save(
    root / 'images/009.png', 'JPEG', quality=80
  )
  run(root, config)
  told = capfd.readouterr().err
  assert '009.png: the image is scored and looks like' in told


def test_not_square(root, config):
  Image.new('L', (32, 64), 3).save(root / 'images/012.png')
  with pytest.raises(DataError) as error:
    run(root, config)
  assert '1 of 14 images are not square (32x64 (1))' in str(error.value)
  for choice in ('crop', 'pad', 'squeeze'):
    assert choice in str(error.value)
    config.data.fit = choice
    run(root, config)


def test_shape_is_that_of_the_networks(root, config, capfd):
  """Of 14 images one is twice as wide as high, and large enough."""
  config.data.resolution, config.data.width = 32, 64
  Image.new('L', (128, 64), 3).save(root / 'images/012.png')
  with pytest.raises(DataError) as error:
    run(root, config)
  assert error.value.kind == 'other_aspect'
  said = '13 of 14 images are of another aspect than the 64x32 of networks (32x'
  assert said in str(error.value)
  config.data.fit = 'pad'
  opened = run(root, config)[0]
  told = capfd.readouterr().err
  assert '13 of 14 images are smaller than the 64x32 of the networks' in told
  shapes = {key[0]: array.shape for key, array in opened.cache.items()}
  assert shapes == {'image': (32, 64, 1), 'label': (32, 64)}


def test_classes_lost_in_the_rectangle(root, config):
  """A column between those that the networks see."""
  label = np.zeros((64, 128), np.uint8)
  label[:, 64] = 1
  for path in (root / 'labels').iterdir():
    Image.fromarray(label).save(path)
    Image.new('L', (128, 64), 9).save(root / f'images/{path.stem}.png')
  config.data.source = f'folder:{root}'
  opened = sources.load(config.data)
  for target, lost in (((64, 128), False), ((32, 32), True)):
    found, _ = checks.inspect(opened, target=target, policy='squeeze')
    assert any(p.kind == 'lost_class' for p in found) == lost


def test_problems_of_opening_count(root, config):
  Image.new('L', (32, 32)).save(root / 'labels/nobody.png')
  with pytest.raises(DataError, match='nobody.png: the label has no image'):
    run(root, config)


def test_surprises_are_mentioned(root, config, capfd):
  label = np.zeros((32, 32), np.uint8)
  for path in (root / 'labels').iterdir():
    Image.fromarray(label).save(path)
  label[0, 0] = 1
  Image.fromarray(label).save(root / 'labels/009.png')
  with pytest.raises(
    DataError, match="nothing but 'background'|nothing but 'a'"
  ):
    run(root, config)
  Image.fromarray(label).save(root / f'labels/{SPLITS["train"][0]}.png')
  config.data.num_labelled = 8
  run(root, config)
  told = capfd.readouterr().err
  assert "7 of 8 labelled images show nothing but 'a'" in told
  assert "of the labelled pixels are 'a'" in told


def test_inspect_finds_everything_at_once(root, config):
  (root / 'images/003.png').write_bytes(b'')
  (root / 'images/013.png').write_bytes(b'')
  (root / 'labels/011.png').unlink()
  Image.new('L', (32, 32), 7).save(root / 'labels/004.png')
  Image.new('L', (32, 40)).save(root / 'labels/005.png')
  config.data.source = f'folder:{root}'
  found, counts = checks.inspect(sources.load(config.data), target=(64, 64))
  kinds = {(p.severity, p.kind, p.path[-7:]) for p in found}
  assert {
    ('refuse', 'empty', '003.png'),
    ('skip', 'empty', '013.png'),
    ('refuse', 'no_label', '011.png'),
    ('refuse', 'unknown_ids', '004.png'),
    ('refuse', 'size_mismatch', '005.png'),
  } <= kinds
  assert ('note', 'small_images') in {k[:2] for k in kinds}
  assert [p.severity for p in found] == sorted(
    (p.severity for p in found), key=problems.SEVERITIES.index
  )
  assert counts.images == 12 and counts.labels == 8
  assert counts.sizes == {(32, 32): 12} and counts.modes == {'PNG L': 12}
  assert counts.class_pixels.sum() == 8 * 32 * 32
  assert list(counts.class_images[:3]) == [8, 8, 0]


def test_inspect_does_not_need_labels_to_train(root, config):
  (root / 'labels/000.png').unlink()
  config.data.source = f'folder:{root}'
  found, _ = checks.inspect(sources.load(config.data))
  assert not [p for p in found if p.severity != 'note']


def test_inspect_some(root, config):
  config.data.source = f'folder:{root}'
  _, counts = checks.inspect(sources.load(config.data), ['000', '009'])
  assert counts.images == counts.labels == 2


def test_progress(capfd, monkeypatch):
  clock = iter([0.0, 1.0, 3.0, 4.0, 9.0, 9.5])
  monkeypatch.setattr(look.time, 'monotonic', lambda: next(clock))
  assert list(look._with_progress('abcd', 4)) == list('abcd')
  lines = capfd.readouterr().err.splitlines()
  assert lines == ['jaxseg: read 2 of 4 images']
