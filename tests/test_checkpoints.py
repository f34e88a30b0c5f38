"""Checkpoints: verified, fallen back from, kept; any mesh, a full disk."""

import os
import random
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxseg import checkpoints, guard, manifest, method, parallel
from jaxseg.checkpoints import CannotSave, CheckpointError, Checkpoints

TX = {'seg': optax.adam(1e-3)}


def state(step, width=16):
  values = np.random.default_rng(step).standard_normal((32, 8, width))
  params = {
    'kernel': jnp.asarray(values, jnp.float32),
    'bias': jnp.full(7, step, jnp.bfloat16),
  }
  made = method.new_state(
    jax.random.key(step), {'seg': params}, TX, extra={'count': jnp.arange(3)}
  )
  return made.replace(step=jnp.asarray(step, jnp.int32))


def like(mesh=None, width=16):
  mesh = mesh or parallel.make_mesh(1)
  shapes = jax.eval_shape(lambda: state(0, width))
  return checkpoints.abstract(
    shapes, parallel.state_shardings(shapes, mesh, min_size=100)
  )


def save(folder, *steps, **kwargs):
  with Checkpoints(folder, **kwargs) as ckpts:
    for step in steps:
      assert ckpts.save(state(step), {'next_step': step})
      assert ckpts.wait()


def assert_is(found, step):
  restored, data = found
  assert data == {'next_step': step}
  assert (
    manifest.changed_arrays(restored, manifest.of_arrays(state(step))) == []
  )


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A folder with the checkpoints of steps 1 and 2."""
  folder = tmp_path_factory.mktemp('two') / 'checkpoints'
  save(folder, 1, 2)
  return folder


@pytest.fixture
def copy(two, tmp_path):
  return shutil.copytree(two, tmp_path / 'checkpoints')


def files_of(folder):
  return sorted(p for p in folder.rglob('*') if p.is_file())


@pytest.mark.parametrize('shape', [(1, 1), (8, 1), (4, 2)])
def test_any_mesh_reads_what_any_other_wrote(tmp_path, shape):
  wanted = like(parallel.make_mesh(*shape))
  shardings = jax.tree.map(lambda x: x.sharding, wanted)
  with Checkpoints(tmp_path / 'a') as ckpts:
    ckpts.save(jax.device_put(state(3), shardings), {'next_step': 3})
    ckpts.wait()
    for other in (wanted, like(), like(parallel.make_mesh(2, 4))):
      found = ckpts.restore(other)
      assert_is(found, 3)
      kernel = found[0].params['seg']['kernel']
      assert kernel.sharding == other.params['seg']['kernel'].sharding


def test_a_flipped_bit_anywhere_is_never_silent(two, tmp_path):
  draw = random.Random(0)
  files = files_of(two / '2')
  sizes = [path.stat().st_size for path in files]
  fell_back = 0
  for trial in range(24):
    folder = shutil.copytree(two, tmp_path / str(trial))
    # Half of them where the bytes are, half in any file.
    weights = sizes if trial % 2 else None
    path = folder / draw.choices(files, weights)[0].relative_to(two)
    content = bytearray(path.read_bytes())
    if content:
      content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    with Checkpoints(folder) as ckpts:
      found = ckpts.restore(like())
    assert_is(found, found[1]['next_step'])
    fell_back += found[1]['next_step'] == 1
  assert fell_back > 12


@pytest.mark.parametrize('damage', ['truncate', 'zero', 'delete'])
def test_the_damaged_file_is_named_and_the_one_before_used(
  copy, capsys, damage
):
  path = max(files_of(copy / '2'), key=lambda p: p.stat().st_size)
  if damage == 'delete':
    path.unlink()
  else:
    size = path.stat().st_size
    path.write_bytes(bytes(size) if damage == 'zero' else path.read_bytes()[:9])
  with Checkpoints(copy, read_only=True) as ckpts:
    assert_is(ckpts.restore(like()), 1)
    assert ckpts.steps() == [1, 2], 'a reader must not change anything'
  assert str(path) in capsys.readouterr().out
  with Checkpoints(copy) as ckpts:
    assert_is(ckpts.restore(like()), 1)
    assert ckpts.steps() == [1]
    assert (copy.parent / 'damaged_checkpoints' / '2').is_dir()
    assert ckpts.save(state(2), {'next_step': 2}) and ckpts.wait()
    assert_is(ckpts.restore(like()), 2)


def test_without_checksums_of_files_those_of_arrays_tell(copy, monkeypatch):
  for step in '12':
    os.remove(copy / step / manifest.FILES)
  with Checkpoints(copy) as ckpts:
    assert_is(ckpts.restore(like()), 2)
    read = ckpts._read_items

    def other_bits(folder, step, like):
      found, data, sums = read(folder, step, like)
      if step == 2:
        params = jax.tree.map(lambda x: x * 2, found.params)
        found = found.replace(params=params)
      return found, data, sums

    monkeypatch.setattr(ckpts, '_read_items', other_bits)
    assert_is(ckpts.restore(like()), 1)


def test_when_all_are_damaged_nothing_is_lost_or_started_anew(copy):
  for step in '12':
    path = max(files_of(copy / step), key=lambda p: p.stat().st_size)
    path.write_bytes(b'')
  before = files_of(copy)
  with Checkpoints(copy) as ckpts:
    with pytest.raises(CheckpointError, match='step 2: .* step 1: ') as caught:
      ckpts.restore(like())
  assert caught.value.exit_code == 4
  assert files_of(copy) == before


def test_another_model_is_told_and_not_taken_for_damage(copy):
  with Checkpoints(copy) as ckpts:
    with pytest.raises(CheckpointError, match='as this stage.*config'):
      ckpts.restore(like(width=8))
    assert ckpts.steps() == [1, 2]


def test_checkpoints_without_any_checksum_can_be_read(tmp_path):
  with ocp.CheckpointManager(tmp_path / 'old') as old:
    args = ocp.args.Composite(
      state=ocp.args.StandardSave(state(4)),
      data=ocp.args.JsonSave({'next_step': 4}),
    )
    old.save(4, args=args)
  with Checkpoints(tmp_path / 'old') as ckpts:
    assert_is(ckpts.restore(like()), 4)


def test_the_newest_and_the_best_are_kept(tmp_path):
  scores = {1: 0.2, 2: 0.9, 3: np.nan, 4: None}
  for steps in ((1, 2), (3, 4)):  # also by a run that was continued
    with Checkpoints(tmp_path / 'a', keep=1, keep_best=1) as ckpts:
      for step in steps:
        assert ckpts.save(state(step), {'next_step': step}, scores[step])
      ckpts.wait()
  with Checkpoints(tmp_path / 'a', 1, 1, read_only=True) as ckpts:
    assert (ckpts.steps(), ckpts.best_step()) == ([2, 4], 2)
    assert_is(ckpts.restore(like()), 4)
    assert_is(ckpts.restore(like(), ckpts.best_step()), 2)


def test_what_a_killed_save_left_is_cleared_by_the_next_run_alone(copy):
  left = copy / '3.orbax-checkpoint-tmp'
  shutil.copytree(copy / '2', left)
  with Checkpoints(copy, read_only=True) as ckpts:
    assert ckpts.latest_step() == 2 and left.exists()
  with Checkpoints(copy) as ckpts:
    assert ckpts.latest_step() == 2 and not left.exists()


@pytest.fixture
def small_files():
  """Yields a function that sets the largest file the system lets us write."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(
    resource.RLIMIT_FSIZE, (size or old[0], old[1])
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_disk_that_takes_no_more_loses_nothing(copy, small_files, capsys):
  with Checkpoints(copy) as ckpts:
    small_files(4096)
    ckpts.save(state(3), {'next_step': 3})
    assert not ckpts.wait() and ckpts.unsaved
    small_files(None)
    assert 'step 3 could not be saved' in capsys.readouterr().out
    assert ckpts.steps() == [1, 2]
    assert ckpts.save(state(4), {'next_step': 4}) and ckpts.wait()
    assert not ckpts.unsaved and not list(copy.glob('*tmp*'))
    assert_is(ckpts.restore(like()), 4)


def test_a_failed_save_is_noticed_soon(copy, small_files):
  with Checkpoints(copy) as ckpts:
    small_files(4096)
    ckpts.save(state(3), {'next_step': 3})
    end = time.monotonic() + 30
    while not ckpts.unsaved and time.monotonic() < end:
      time.sleep(0.05)
      ckpts.poll()
    small_files(None)
    assert ckpts.unsaved and ckpts.steps() == [1, 2]


def test_saves_one_after_the_other_all_have_checksums(tmp_path):
  with Checkpoints(tmp_path / 'a', keep=5) as ckpts:
    for step in range(1, 5):
      ckpts.save(state(step, 4096), {'next_step': step})
    ckpts.wait()
    for step in range(1, 5):
      assert manifest.changed_files(tmp_path / 'a' / str(step)) == []


def test_the_last_save_waits_for_room(copy, small_files):
  waited = []

  def sleep(seconds):
    waited.append(seconds)
    if len(waited) == 2:
      small_files(None)

  with Checkpoints(copy) as ckpts:
    small_files(4096)
    ckpts.save_and_wait(state(3), {'next_step': 3}, patience=60, sleep=sleep)
    assert len(waited) == 2
    assert_is(ckpts.restore(like()), 3)
    small_files(4096)
    with pytest.raises(CannotSave, match='Make room') as caught:
      ckpts.save_and_wait(
        state(4), {'next_step': 4}, patience=0, sleep=waited.append
      )
    small_files(None)
  assert caught.value.exit_code == 5


def test_all_finite():
  good = {'a': jnp.ones(3), 'b': jnp.ones((2, 2))}
  assert bool(guard.all_finite(good))
  assert not bool(guard.all_finite(good | {'c': jnp.array([1.0, jnp.nan])}))
