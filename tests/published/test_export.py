"""Networks trained here, as folders that everything here reads."""

import jax
import numpy as np
import pytest
import tiny_config
from numpy.testing import assert_array_equal

from jaxseg import workdir as workdirs
from jaxseg.errors import UserError
from jaxseg.published import export, folder, networks

K = 2


@pytest.fixture(scope='module')
def config():
  return tiny_config.get_config('nowhere')


@pytest.fixture
def workdir(config, monkeypatch):
  """A training whose states are random numbers of the right shapes."""
  rng = np.random.default_rng(0)
  draw = lambda x: (
    jax.random.key(0)
    if x.dtype.name == 'key<fry>'
    else rng.normal(size=x.shape).astype('f')
  )

  def load(workdir, stages, checkpoint='newest'):
    assert checkpoint == 'newest'
    state = workdirs.abstract_state(config, *stages, K)
    stage = workdirs.Stage(None, jax.tree.map(draw, state), '')
    return workdirs.Trained(
      config, ('a', 'b'), None, dict.fromkeys(stages, stage)
    )

  monkeypatch.setattr(workdirs, 'load', load)
  monkeypatch.setattr(workdirs, 'load_config', lambda _: config)
  return 'runs/digits'


def shapes(tree):
  return {name: tuple(x.shape) for name, x in folder.flat(tree).items()}


@pytest.mark.parametrize(
  ('stage', 'names'),
  [('gan', {'g', 'g_ema', 'd_r', 'd_m'}), ('', {'e', 'g_ema', 'd_r', 'd_m'})],
)
def test_what_is_written_is_what_was_trained(workdir, tmp_path, stage, names):
  card = export.export(workdir, tmp_path / 'out', stage)
  assert card['networks'].keys() == names
  found = folder.load(tmp_path / 'out')
  assert (found.kind, found.adds_w_avg) == ('jaxseg', stage == '')
  state = workdirs.load(workdir, (stage or 'encoder',), 'newest')
  state = state.stages[stage or 'encoder'].state
  for name, network in found.networks.items():
    module = networks.module(network.arch, network.settings)
    is_code = network.arch == 'stylegan2_generator'
    inputs = [np.zeros((1, 8) if is_code else (1, 32, 32, 1), 'f')]
    if name == 'd_m':
      inputs.append(np.zeros((1, 32, 32, K), 'f'))
    wanted = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    assert shapes(network.variables) == shapes(wanted), name
    assert shapes(network.variables['params'])
  extras = {'w_avg', *(f'noise/{i}' for i in range(7))}
  assert set(folder.flat(found.extras)) == (set() if stage else extras)
  assert len(jax.tree.leaves(state.params)) > 10


def test_every_number_survives(workdir, tmp_path, monkeypatch):
  trained = workdirs.load(workdir, ('gan',), 'newest')
  monkeypatch.setattr(workdirs, 'load', lambda *_: trained)
  export.export(workdir, tmp_path / 'out', 'gan')
  state = trained.stages['gan'].state
  nets = folder.load(tmp_path / 'out').networks
  for name in ('g', 'd_r', 'd_m'):
    jax.tree.map(
      assert_array_equal, nets[name].variables['params'], state.params[name]
    )
  jax.tree.map(
    assert_array_equal, nets['g_ema'].variables['params'], state.ema['g']
  )
  jax.tree.map(
    assert_array_equal, nets['d_m'].variables['spectral'],
    state.extra['spectral'],
  )  # fmt: skip


def test_a_stage_without_generator(workdir, tmp_path):
  with pytest.raises(UserError, match='expected one of gan, encoder'):
    export.export(workdir, tmp_path / 'out', 'unet')
  assert not (tmp_path / 'out').exists()
