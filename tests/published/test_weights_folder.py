"""Folders of converted weights: exact, whole or absent, checked when read."""

import errno
import json
import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import stylegan2_layouts as layouts
import torch_by_hand
from entries import source_of
from numpy.testing import assert_array_equal

from jaxseg import pretrained
from jaxseg.errors import UserError
from jaxseg.nets import discriminators, encoder, stylegan2
from jaxseg.published import folder, kinds, networks, whole
from jaxseg.published.networks import Converted, Network
from jaxseg.published.source import Entry, WeightsError

FILES = ['files.json', 'pretrained.json', 'weights.safetensors']


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """A small file of kind stylegan2."""
  path = tmp_path_factory.mktemp('files') / 'small.pt'
  arrays = layouts.draw(layouts.generator((3, 2), 4))
  average = np.ones(4, np.float32)
  tree = {'g_ema': arrays, 'latent_avg': average, 'rest': {'x': average}}
  path.write_bytes(torch_by_hand.zip_file(tree))
  return str(path)


def inside(path):
  return sorted(p.name for p in path.rglob('*'))


def trained():
  """Networks of every arch that is trained here, with odd numbers in them."""
  modules = {
    'g': ('stylegan2_generator', stylegan2.Generator(
      8, 1, 2, w_dim=4, mapping_depth=1, widths=(3, 2)), [(1, 4)]),
    'd_r': ('stylegan2_discriminator', stylegan2.Discriminator(
      8, widths=(3, 2), stddev_group=2), [(1, 8, 8, 1)]),
    'd_m': ('multiscale_discriminator', discriminators.MultiscaleDiscriminator(
      1, 2), [(1, 16, 16, 1), (1, 16, 16, 2)]),
    'e': ('fpn_encoder', encoder.Encoder(
      8, 4, width=2, depths=(1, 1, 1, 1), features=2, norm='batch'),
      [(1, 8, 8, 1)]),
  }  # fmt: skip
  found, rng = {}, np.random.default_rng(0)
  for name, (arch, module, shapes) in modules.items():
    x = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    tree = jax.eval_shape(module.init, jax.random.key(0), *x)
    draw = lambda leaf: np.asarray(rng.normal(size=leaf.shape), np.float32)
    variables = jax.tree.map(draw, tree)
    fields = {'parent', 'name', 'dtype', 'remat'}
    settings = {k: v for k, v in vars(module).items() if k[0] != '_'}
    settings = {k: v for k, v in settings.items() if k not in fields}
    found[name] = Network(arch, settings, variables), module
  const = found['g'][0].variables['params']['const']
  const.flat[:4] = np.float32('1e-42'), -0.0, np.finfo('f4').max, 2**-149
  return found


def test_round_trip_is_exact(tmp_path):
  made = trained()
  nets = {name: network for name, (network, _) in made.items()}
  ones = lambda *shape: np.ones(shape, np.float32)
  extras = {'w_avg': ones(4, 4), 'noise': {'0': ones(1, 4, 4, 1)}}
  card = folder.save(Converted('jaxseg', nets, extras), tmp_path / 'out')
  assert inside(tmp_path / 'out') == FILES
  loaded = pretrained.load(tmp_path / 'out')
  assert loaded.kind == 'jaxseg' and loaded.card == json.loads(json.dumps(card))
  leaves = {f'extras/{k}': x for k, x in folder.flat(extras).items()}
  assert_equal(loaded.extras, extras)
  for name, (network, module) in made.items():
    found = loaded.networks[name]
    assert networks.module(found.arch, found.settings) == module
    assert_equal(found.variables, network.variables)
    leaves |= folder.flat(network.variables, f'{name}/')
    count = sum(x.size for x in jax.tree.leaves(network.variables['params']))
    assert card['networks'][name]['parameters'] == count
  # Anybody can read it.
  path = tmp_path / 'out' / 'weights.safetensors'
  with safetensors.safe_open(path, framework='numpy') as opened:
    assert set(opened.keys()) == set(leaves)
    for key, leaf in leaves.items():
      assert_same_bits(opened.get_tensor(key), leaf)
  assert path.stat().st_size % 4 == 0
  # And what was read is written alike.
  again = Converted('jaxseg', loaded.networks, loaded.extras)
  folder.save(again, tmp_path / 'again')
  for name in FILES[1:]:
    written = [(tmp_path / x / name).read_bytes() for x in ('out', 'again')]
    assert written[0] == written[1]


def assert_equal(found, wanted):
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(assert_same_bits, found, wanted)


def assert_same_bits(found, wanted):
  assert found.dtype == wanted.dtype == np.float32
  assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_parts_and_what_is_told(file, tmp_path):
  card = pretrained.convert('stylegan2', file, tmp_path / 'a' / 'b' / 'out')
  assert inside(tmp_path) == sorted(['a', 'b', 'out', *FILES])
  assert card['ignored'] == ['rest/x']
  assert card['sources'][0]['file'] == 'small.pt'
  text = pretrained.describe(card)
  for words in (
    'kind stylegan2\n', 'from small.pt, ', '8 x 8, 3 channels, no labels, n_lat'
    'ent 4, w_dim 4, mapping_depth 8, widths 3 2\n', 'w_avg: 4\n',
    'noise: 3 maps\n', 'not converted: rest/x',
  ):  # fmt: skip
    assert words in text
  path = tmp_path / 'a' / 'b' / 'out'
  loaded = folder.load(path, ())
  assert not loaded.networks and set(loaded.extras) == {'w_avg', 'noise'}
  with pytest.raises(UserError, match="no network 'd_r', found g_ema"):
    folder.load(path, ('d_r',))


def test_an_empty_folder_is_filled(file, tmp_path, monkeypatch):
  (tmp_path / 'out').mkdir()
  monkeypatch.chdir(tmp_path / 'out')
  before = (tmp_path / 'out').stat().st_ino
  pretrained.convert('stylegan2', file, '.')
  assert (tmp_path / 'out').stat().st_ino == before
  assert sorted(os.listdir()) == FILES  # the same folder for a shell in it
  assert inside(tmp_path / 'out') == FILES and inside(tmp_path) != FILES


def dead_process():
  child = subprocess.Popen([sys.executable, '-c', ''])
  child.wait()
  return child.pid


@pytest.mark.parametrize('exists', (False, True))
def test_what_killed_conversions_left_is_removed(file, tmp_path, exists):
  out = tmp_path / 'out'
  place = out if exists else tmp_path
  host = whole._host()
  dead = place / f'.out.partial-{host}-{dead_process()}'
  others = [
    tmp_path / f'.out.partial-{host}-{os.getppid()}',
    tmp_path / f'.other.partial-{host}-{dead_process()}',
    tmp_path / '.out.partial-elsewhere.example-1',
  ]
  for path in (dead, *others):
    path.mkdir(parents=True)
    (path / 'weights.safetensors').write_text('half')
  pretrained.convert('stylegan2', file, out)
  assert sorted(os.listdir(out)) == FILES
  assert not dead.exists() and all(path.exists() for path in others)


def test_a_move_that_fails_leaves_the_folder_empty(file, tmp_path, monkeypatch):
  (tmp_path / 'out').mkdir()
  rename = os.rename

  def fails(source, target):
    if str(target).endswith('pretrained.json'):
      raise OSError(errno.EIO, 'Input/output error')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', fails)
  with pytest.raises(UserError, match=r'written \(Input/output error\)'):
    pretrained.convert('stylegan2', file, tmp_path / 'out')
  assert inside(tmp_path) == ['out']


@pytest.mark.parametrize('make', (
  lambda path: path.write_text('mine'),
  lambda path: (path.mkdir(), (path / 'mine').write_text('')),
  lambda path: path.symlink_to('nowhere'),
))  # fmt: skip
def test_existing_folders_stay(file, tmp_path, make):
  make(tmp_path / 'out')
  before = inside(tmp_path)
  with pytest.raises(UserError, match=r'out exists, expected a new folder'):
    pretrained.convert('stylegan2', file, tmp_path / 'out')
  assert inside(tmp_path) == before


def test_places_that_cannot_be(file, tmp_path):
  (tmp_path / 'file').write_text('')
  for output in (tmp_path / 'file' / 'out', tmp_path / ('x' * 300)):
    with pytest.raises(UserError, match='cannot be (written|looked into)'):
      pretrained.convert('stylegan2', file, output)
  assert inside(tmp_path) == ['file']


@pytest.mark.parametrize('error, raised, words', (
  (OSError(errno.ENOSPC, 'No space left on device'), UserError,
   r'cannot be written \(No space left on device\)'),
  (WeightsError('numbers are damaged'), WeightsError, 'numbers are damaged'),
  (KeyboardInterrupt(), KeyboardInterrupt, '^$'),
))  # fmt: skip
def test_nothing_is_left_of_what_fails(tmp_path, error, raised, words):
  def read():
    raise error

  part = {'a': np.ones(5000, 'f4'), 'b': Entry((2,), read, 'b')}
  network = Network('stylegan2_generator', {'widths': [1]}, {'params': part})
  converted = Converted('stylegan2', {'g': network}, {})
  with pytest.raises(raised, match=words) as caught:
    folder.save(converted, tmp_path / 'new' / 'out')
  assert '\n' not in str(caught.value)
  assert inside(tmp_path) == []


@pytest.mark.parametrize('value', (np.nan, np.inf, 1e300))
def test_numbers_that_are_not_finite(tmp_path, value, recwarn):
  arrays = layouts.draw(layouts.generator((3, 2), 4))
  arrays['style.2.bias'] = np.array([0, 0, value, 0])
  found = kinds.convert('stylegan2', source_of(arrays))
  with pytest.raises(WeightsError, match='in style.2.bias that are not finite'):
    folder.save(found, tmp_path / 'out')
  assert inside(tmp_path) == [] and not recwarn.list


def flip(path):
  data = bytearray(path.read_bytes())
  data[-9] ^= 16
  path.write_bytes(data)


@pytest.mark.parametrize('name, damage, words', (
  ('weights.safetensors', flip, 'weights.safetensors has other bytes'),
  ('weights.safetensors', lambda p: p.write_bytes(p.read_bytes()[:-4]),
   'bytes, expected'),
  ('weights.safetensors', lambda p: p.unlink(), 'cannot be read'),
  ('pretrained.json', lambda p: p.write_text(
    p.read_text().replace('"w_dim": 4', '"w_dim": 5')),
   'pretrained.json has other bytes'),
  ('pretrained.json', lambda p: p.write_text('{'), 'pretrained.json cannot be'),
  ('pretrained.json', lambda p: p.write_text('[]'), 'pretrained.json cannot'),
  ('pretrained.json', lambda p: p.write_bytes(b'\xff'), 'pretrained.json can'),
  ('pretrained.json', lambda p: p.write_text('{"format": 9}'), 'of format 9'),
  ('files.json', lambda p: p.unlink(), 'files.json is missing or damaged'),
  ('files.json', flip, 'files.json is missing or damaged'),
))  # fmt: skip
def test_damaged_folders(file, tmp_path, name, damage, words):
  pretrained.convert('stylegan2', file, tmp_path / 'out')
  damage(tmp_path / 'out' / name)
  with pytest.raises(WeightsError, match=words) as error:
    pretrained.load(tmp_path / 'out')
  message = str(error.value)
  assert '\n' not in message and 'convert the file anew' in message


def test_folders_of_other_makers(file, tmp_path):
  """Whole, but not what is written here."""
  out = tmp_path / 'out'
  card = pretrained.convert('stylegan2', file, out)
  g = card['networks']['g_ema']
  networks = card['networks'] | {'e': g}
  edit = lambda **change: {'networks': {'g_ema': g | change}}
  setting = lambda **change: edit(settings=g['settings'] | change)
  for change, words in (
    ({'networks': networks}, "weights.safetensors has no arrays of 'e'"),
    ({'remarks': None}, "pretrained.json has no field 'remarks'"),
    ({'networks': []}, "has a field 'networks' of list, expected dict"),
    ({'networks': {'g_ema': 1}}, 'has no network in networks, g_ema'),
    (edit(arch='nope'), "arch 'nope', expected one of stylegan2_generator"),
    (edit(arch='lpips'), "lacks the setting 'net' in networks, g_ema"),
    (edit(settings=None), "'settings' of NoneType, expected dict"),
    (setting(extra=1), "setting 'extra', which stylegan2_generator has not"),
    (setting(mapping_depth=10**9), 'impossible setting mapping_depth = 1000'),
    (setting(mapping_depth=-1), 'impossible setting mapping_depth = -1'),
    (setting(w_dim=True), 'impossible setting w_dim = True'),
    (setting(widths='ab'), "impossible setting widths = 'ab'"),
    (setting(widths=[0, 2]), 'impossible setting widths'),
    (setting(resolution=2**20), 'impossible setting resolution'),
    (setting(widths=[4, 2]), r'const of shape .*, but by pretrained.json exp'),
    (setting(mapping_depth=9), 'dense_8/bias of shape nothing, but by'),
    ({'extras': card['extras'] | {'w_avg': [5]}}, 'w_avg of shape .5., exp'),
    ({'sources': [1]}, "'sources' of something else than dict"),
    ({'adds_w_avg': 1}, "'adds_w_avg' of int, expected bool"),
    ({'remarks': [1]}, "'remarks' of something else than str"),
  ):
    edited = {k: v for k, v in (card | change).items() if v is not None}
    (out / 'pretrained.json').write_text(json.dumps(edited))
    folder.manifest.write_files(out)
    with pytest.raises(WeightsError, match=words) as error:
      pretrained.load(out)
    assert '\n' not in str(error.value)


def sign(out, **change):
  """Writes a files.json with a right checksum, of whatever files."""
  files = json.loads((out / 'files.json').read_text())['files'] | change
  crc = folder.manifest.of_json(files)
  text = json.dumps({'files': files, 'crc32': crc})
  (out / 'files.json').write_text(text)


def link(out):
  (out / 'weights.safetensors').rename(out.parent / 'elsewhere')
  (out / 'weights.safetensors').symlink_to(out.parent / 'elsewhere')


def garble(out):
  (out / 'weights.safetensors').write_bytes(b'x' * 99)
  (out / 'files.json').unlink()
  folder.manifest.write_files(out)


@pytest.mark.parametrize('damage, words', (
  (lambda out: sign(out, **{'/dev/zero': [0, 0]}), 'tells of other files'),
  (lambda out: sign(out, **{'../x': [0, 0]}), 'tells of other files'),
  (lambda out: sign(out, **{'pretrained.json': 1}), 'tells no size'),
  (lambda out: sign(out, **{'weights.safetensors': [9, 9]}), 'expected 9'),
  (link, 'weights.safetensors is a link or no regular file'),
  (garble, 'weights.safetensors cannot be read'),
))  # fmt: skip
def test_files_of_strangers(file, tmp_path, damage, words):
  pretrained.convert('stylegan2', file, tmp_path / 'out')
  damage(tmp_path / 'out')
  with pytest.raises(WeightsError, match=words):
    pretrained.load(tmp_path / 'out')


def test_the_card_alone_is_checked_too(file, tmp_path):
  card = pretrained.convert('stylegan2', file, tmp_path / 'out')
  assert folder.read_card(tmp_path / 'out') == json.loads(json.dumps(card))
  path = tmp_path / 'out' / 'pretrained.json'
  path.write_text(path.read_text().replace('"w_dim": 4', '"w_dim": 5'))
  with pytest.raises(WeightsError, match='other bytes than were written'):
    folder.read_card(tmp_path / 'out')


def test_other_folders(tmp_path):
  for path in (tmp_path, tmp_path / 'missing'):
    with pytest.raises(UserError, match='holds no pretrained.json'):
      pretrained.load(path)


@pytest.mark.parametrize('form', ('zip', 'legacy'))
def test_memory_holds_one_array_at_a_time(tmp_path, form):
  shapes = layouts.generator((256,) * 8, 256, depth=16)
  arrays = {k: np.zeros(s, 'f4') for k, s in shapes.items()}
  arrays |= {k: layouts.BINOMIAL for k in shapes if k.endswith('kernel')}
  write = getattr(torch_by_hand, f'{form}_file')
  path = tmp_path / 'x.pt'
  path.write_bytes(write({'g_ema': arrays}))
  del arrays
  size = path.stat().st_size
  assert size > 40e6
  tracemalloc.start()
  pretrained.convert('stylegan2', str(path), tmp_path / 'out')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < size / 4
