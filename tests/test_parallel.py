"""Where arrays live: the rule of sizes, and which batches are refused."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from jaxseg import parallel
from jaxseg.errors import UserError

TREE = {
  'kernel': jax.ShapeDtypeStruct((3, 3, 64, 64), 'float32'),
  'odd': jax.ShapeDtypeStruct((3, 3, 4096, 3), 'float32'),
  'undivided': jax.ShapeDtypeStruct((127, 129), 'float32'),
  'bias': jax.ShapeDtypeStruct((64,), 'float32'),
  'count': jax.ShapeDtypeStruct((), 'int32'),
}


def specs(tree, mesh, **args):
  found = parallel.state_shardings(tree, mesh, **args)
  return jax.tree.map(lambda s: s.spec, found)


def test_large_arrays_are_split_over_model():
  assert specs(TREE, parallel.make_mesh(4, 2)) == {
    'kernel': PartitionSpec(None, None, None, 'model'),
    'odd': PartitionSpec(None, None, 'model'),  # three channels: no
    'undivided': PartitionSpec(),
    'bias': PartitionSpec(),
    'count': PartitionSpec(),
  }
  small = specs(TREE, parallel.make_mesh(2, 4), min_size=64)
  assert small['bias'] == PartitionSpec('model')


def test_everything_is_whole_without_model():
  found = specs(TREE, parallel.make_mesh(8), min_size=1)
  assert set(found.values()) == {PartitionSpec()}


def test_keys_are_whole():
  keys = {'rng': jax.random.split(jax.random.key(0), 64)}
  found = specs(keys, parallel.make_mesh(4, 2), min_size=1)
  assert found == {'rng': PartitionSpec()}


def test_arrays_of_a_shape_are_together():
  """A parameter lives where its moments do."""
  params = {'w': jnp.zeros((8, 16))}
  tree = {'params': params, 'mu': params, 'ema': params}
  found = specs(tree, parallel.make_mesh(4, 2), min_size=128)
  assert {str(s['w']) for s in found.values()} == {
    str(PartitionSpec(None, 'model'))
  }


@pytest.mark.parametrize(('size', 'parts', 'message'), (
  (6, 1, 'is 6, which 4 devices cannot share evenly; set config.s.batch_size='
         '8 or config.mesh.data to a divisor of 6'),
  (12, 2, 'is 12, which 4 devices cannot share evenly in 2 parts; set '
          'config.s.batch_size=16 or config.mesh.data to a divisor of 6'),
))  # fmt: skip
def test_uneven_batches_are_refused(size, parts, message):
  mesh = parallel.make_mesh(4, 2)
  with pytest.raises(UserError, match=message):
    parallel.check_batch_size('config.s.batch_size', size, mesh, parts)
  parallel.check_batch_size('config.s.batch_size', 16, mesh, parts)
  parallel.check_batch_size('config.s.unlabelled_batch_size', 0, mesh, parts)
