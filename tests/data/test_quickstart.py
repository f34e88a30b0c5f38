import builtins

import numpy as np
import pytest

from jaxseg import config as jaxseg_config
from jaxseg.data import quickstart, sources, splits
from jaxseg.errors import UserError


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """A user cache folder of its own."""
  with pytest.MonkeyPatch.context() as patch:
    folder = tmp_path_factory.mktemp('cache')
    patch.setenv('XDG_CACHE_HOME', str(folder))
    quickstart.digits.cache_clear()
    yield folder / 'jaxseg'
  quickstart.digits.cache_clear()


def open_set(source, channels):
  data = jaxseg_config.default().data.copy_and_resolve_references()
  with data.unlocked():
    data.source, data.channels = source, channels
  return sources.load(data)


@pytest.fixture(scope='module')
def digits(cache):
  return open_set('digits', 1)


def test_digits(digits):
  counts = {name: len(ids) for name, ids in digits.splits.items()}
  assert counts == dict(train=4000, val=200, test=800, ood_optdigits=1797)
  assert len(digits.class_names) == 11 and digits.palette.shape == (11, 3)
  assert len({i for ids in digits.splits.values() for i in ids}) == 6797
  for id_ in ('mnist_0000', 'mnist_4999', 'optdigits_0005'):
    image, label = digits.image(id_), digits.label(id_)
    assert image.shape == (32, 32, 1) and image.dtype == np.uint8
    np.testing.assert_array_equal(label > 0, image[..., 0] >= 96)
    assert len(np.unique(label[label > 0])) == 1
  assert digits.path('mnist_0000') == 'digits:mnist_0000'


def test_digits_in_equal_parts(digits):
  for name, each in (('train', 400), ('val', 20), ('test', 80)):
    digit = [digits.label(i).max() - 1 for i in digits.splits[name]]
    np.testing.assert_array_equal(np.bincount(digit), [each] * 10)


def test_thirty_labels_show_every_digit(digits, config):
  config.data.num_labelled = 30
  drawn = splits.make_splits(digits, config.data, 7)
  shown = [digits.label(id_).max() for id_ in drawn.labelled]
  np.testing.assert_array_equal(np.bincount(shown), [0] + [3] * 10)


def test_digits_equal_the_reference(digits, shared):
  folder = shared / 'data' / 'quickstart_digits'
  if not folder.is_dir():
    pytest.skip(f'no reference data in {folder}')

  def load(*names):
    pairs = []
    for name in names:
      with np.load(folder / f'{name}.npz') as f:
        pairs += zip(f['images'], f['labels'], strict=True)
    return sorted(x.tobytes() + y.tobytes() for x, y in pairs)

  def ours(*names):
    ids = [id_ for name in names for id_ in digits.splits[name]]
    return sorted(
      digits.image(i).tobytes() + digits.label(i).tobytes() for i in ids
    )

  assert ours('train', 'val', 'test') == load('train', 'val', 'test')
  assert ours('ood_optdigits') == load('ood_optdigits')


def test_digits_in_colour(digits):
  colour = open_set('digits', 3)
  np.testing.assert_array_equal(
    colour.image('mnist_0007'),
    np.repeat(digits.image('mnist_0007'), 3, axis=-1),
  )


def arrays():
  return {'a': (['x', 'y'], np.ones((2, 4, 4)), np.zeros((2, 4, 4)))}


def refuse():
  raise AssertionError('drawn again')


def test_cache_is_used(cache):
  quickstart._cached('t1', {'a': 2}, 4, arrays)
  found = quickstart._cached('t1', {'a': 2}, 4, refuse)
  assert found['a'][0] == ['x', 'y']
  np.testing.assert_array_equal(found['a'][1], np.ones((2, 4, 4)))


@pytest.mark.parametrize('damage', ['cut', 'flip', 'pickle', 'shape'])
def test_damaged_cache_is_drawn_again(cache, damage):
  path = cache / 't2.npz'
  quickstart._cached('t2', {'a': 2}, 4, arrays)
  data = bytearray(path.read_bytes())
  if damage == 'cut':
    path.write_bytes(data[: len(data) // 2])
  elif damage == 'flip':
    data[data.index(b'a/x.npy') + 40] ^= 16
    path.write_bytes(data)
  elif damage == 'pickle':
    objects = np.array([{}, {}], object)
    np.savez(path, **{'a/ids': ['x', 'y'], 'a/x': objects, 'a/y': objects})
  counts = {'a': 3} if damage == 'shape' else {'a': 2}
  calls = []

  def make():
    calls.append(1)
    return arrays()

  found = quickstart._cached('t2', counts, 4, make)
  assert calls == [1]
  np.testing.assert_array_equal(found['a'][1], np.ones((2, 4, 4)))


def test_no_place_for_a_cache(tmp_path, monkeypatch, capfd):
  (tmp_path / 'file').touch()
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  assert quickstart._cached('t3', {'a': 2}, 4, arrays)['a'][0] == ['x', 'y']
  assert 'is not cached' in capfd.readouterr().err


def test_avatars_without_their_packages(monkeypatch):
  original = builtins.__import__

  def fake(name, *args, **kwargs):
    if name == 'resvg_py':
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    return original(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', fake)
  quickstart.avatars.cache_clear()
  with pytest.raises(UserError, match='pip install python-avatars resvg-py'):
    open_set('avatars', 3)


@pytest.fixture
def drawing():
  pytest.importorskip('python_avatars', reason='extra "avatars" not installed')
  pytest.importorskip('resvg_py', reason='extra "avatars" not installed')


def test_draw_avatar(drawing):
  drawn = [
    quickstart.draw_avatar(np.random.default_rng([9, i])) for i in range(6)
  ]
  again = quickstart.draw_avatar(np.random.default_rng([9, 0]))
  np.testing.assert_array_equal(drawn[0][0], again[0])
  np.testing.assert_array_equal(drawn[0][1], again[1])
  for image, label in drawn:
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(np.unique(label), range(6))
    # The commonest colour of the skin is one of the skin colours.
    colours, counts = np.unique(image[label == 1], axis=0, return_counts=True)
    red, green, blue = colours[counts.argmax()]
    assert f'#{red:02X}{green:02X}{blue:02X}' in quickstart.SKIN_COLOURS
    # Eyes above the nose above the mouth.
    rows = [np.nonzero(label == c)[0].mean() for c in (3, 4, 5)]
    assert rows == sorted(rows)


def test_unseen_avatars_differ_in_hair_and_skin(drawing):
  import python_avatars

  names = {hair.name for hair in python_avatars.HairType}
  assert set(quickstart.OOD_HAIR) | set(quickstart.NO_HAIR) <= names
  image, label = quickstart.draw_avatar(np.random.default_rng(0), ood=True)
  colours, counts = np.unique(image[label == 1], axis=0, return_counts=True)
  red, green, blue = colours[counts.argmax()]
  assert f'#{red:02X}{green:02X}{blue:02X}' in quickstart.OOD_SKIN_COLOURS


def test_avatars(drawing, cache, monkeypatch):
  counts = dict(train=4, val=1, test=1, ood_unseen=2)
  monkeypatch.setattr(quickstart, 'AVATAR_COUNTS', counts)
  quickstart.avatars.cache_clear()
  source = open_set('avatars', 3)
  quickstart.avatars.cache_clear()
  assert {k: len(v) for k, v in source.splits.items()} == counts
  assert source.class_names == quickstart.AVATAR_CLASSES
  assert source.image('train_0003').shape == (64, 64, 3)
  assert source.label('ood_unseen_0001').shape == (64, 64)
