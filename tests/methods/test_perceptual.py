"""Which perceptual distance a config asks for, and what its weights tell."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg import workdir
from jaxseg.errors import UserError
from jaxseg.methods import perceptual
from jaxseg.nets import lpips


@pytest.fixture(scope='module')
def squeezed(tmp_path_factory):
  """An .npz of SqueezeNet's weights."""
  path = tmp_path_factory.mktemp('weights') / 'squeeze.npz'
  params = lpips.random_weights(1, 'squeezenet')
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  leaves = jax.tree_util.tree_leaves_with_path(params)
  np.savez(path, **{name(where): leaf for where, leaf in leaves})
  return str(path)


def config_of(kind, path=''):
  args = {'perceptual_kind': kind, 'lpips_weights': path}
  return ConfigDict(
    {'stages': ('e', 'g'), 'e': {'args': args}, 'g': {'args': {}}}
  )


@pytest.mark.parametrize('kind', ('auto', 'lpips'))
def test_the_file_decides_the_network(squeezed, kind):
  config = perceptual.resolve_kinds(config_of(kind, squeezed))
  assert config.e.args.perceptual_kind == 'lpips_squeezenet'
  again = perceptual.resolve_kinds(config)
  assert again.to_dict() == config.to_dict()
  metric = perceptual.make(kind, None, squeezed)
  assert metric.kind == 'lpips_squeezenet'
  assert lpips.net_of(metric.params()) == 'squeezenet'


def test_a_checkpoint_is_read_without_the_file(squeezed):
  """What stands in for the weights has their shapes."""
  for kind, path, net in (
    ('lpips', squeezed, 'squeezenet'),
    ('lpips', '', 'vgg16'),
    ('lpips', 'moved.npz', 'vgg16'),
  ):
    config = perceptual.resolve_kinds(config_of(kind, path))
    config = workdir._lpips_from_checkpoint(config)
    params = perceptual.make(config.e.args.perceptual_kind, None).params()
    assert lpips.net_of(params) == net
  assert 'perceptual_kind' not in config.g.args


def test_mistakes_are_told(squeezed):
  with pytest.raises(UserError, match='squeezenet, expected alexnet'):
    perceptual.make('lpips_alexnet', None, squeezed).params()
  with pytest.raises(UserError, match="'lpips_vgg'.*lpips_squeezenet"):
    perceptual.resolve('lpips_vgg')
  with pytest.raises(UserError, match='moved.npz are not a file'):
    perceptual.make('lpips', None, 'moved.npz').params()
