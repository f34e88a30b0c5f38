"""Stages that start from a folder: what is taken, told and refused."""

import json

import jax
import numpy as np
import pytest
import toy_weights
from numpy.testing import assert_array_equal

from jaxseg import config as jaxseg_config
from jaxseg import train
from jaxseg import workdir as workdirs
from jaxseg.errors import UserError
from jaxseg.methods import semantic_gan, semantic_gan_encoder
from jaxseg.published import folder, networks, overlay, start
from jaxseg.published.networks import Converted, Network

SIZE, K = toy_weights.SIZE, 2
GAN = dict(
  w_dim=8, mapping_depth=2, widths=(8, 8, 8, 4), d_m_width=8, d_m_scales=1,
)  # fmt: skip
SHAPE = dict(num_classes=K, resolution=SIZE, channels=1)


@pytest.fixture(scope='module')
def gan_state():
  method = semantic_gan.make(**SHAPE, **GAN)
  return jax.jit(method.init)(jax.random.key(0))


def pretrained(*names, num_classes=K, **more):
  """Weights in memory, as `folder.load` gives them."""
  made = toy_weights.converted(*names, num_classes=num_classes)
  nets = made.networks | more
  return folder.Pretrained('semanticgan', nets, {}, False, {})


def shifted(state):
  """Weights of d_m, with their vectors, that the state does not have."""
  shift = lambda tree: jax.tree.map(lambda x: np.asarray(x) + 1, tree)
  variables = {
    'params': shift(state.params['d_m']),
    'spectral': shift(state.extra['spectral']),
  }
  return Network('multiscale_discriminator', {}, variables)


def assert_equal(a, b):
  jax.tree.map(assert_array_equal, a, b)


def test_every_network_finds_its_own(gan_state):
  d_m = shifted(gan_state)
  weights = pretrained('g', 'g_ema', 'd_r', 'e', d_m=d_m)
  state, report = overlay.overlay(gan_state, weights, 'there')
  nets = weights.networks
  for name in ('g', 'd_r', 'd_m'):
    assert_equal(state.params[name], nets[name].variables['params'])
  assert_equal(state.ema['g'], nets['g_ema'].variables['params'])
  assert_equal(state.extra['spectral'], d_m.variables['spectral'])
  assert_equal(state.extra['lazy'], gan_state.extra['lazy'])
  count = len(jax.tree.leaves(state.params))
  assert len(report.loaded) == len(set(report.loaded)) == count
  assert (report.other_shape, report.fresh) == ([], [])
  # There is no encoder here.
  encoder = folder.flat(nets['e'].variables, 'e/')
  assert sorted(report.unused) == sorted(encoder)
  # Donated buffers are not shared.
  shared = overlay.overlay(gan_state, pretrained('g_ema'), 'there')[0]
  one, other = shared.params['g']['const'], shared.ema['g']['const']
  assert not np.shares_memory(one, other)


def test_each_array_is_told(gan_state, tmp_path, capsys):
  weights = pretrained('g_ema', num_classes=3)
  extra = {**weights.networks['g_ema'].variables['params'], 'more': {'x': 1}}
  del extra['const']
  extra['more']['x'] = np.zeros(2, np.float32)
  weights.networks['g_ema'] = weights.networks['g_ema']._replace(
    variables={'params': extra}
  )
  state, report = overlay.overlay(gan_state, weights, 'there')
  assert_equal(state.params['d_r'], gan_state.params['d_r'])
  bias = lambda s: s.params['g']['to_seg_0']['bias']
  assert_equal(bias(state), bias(gan_state))
  assert 'g/conv_first/bias' in report.loaded
  assert ('g/to_seg_0/bias', (K,), (3,)) in report.other_shape
  assert all('to_seg' in name for name, *_ in report.other_shape)
  assert 'g/const' in report.fresh
  assert {n.partition('/')[0] for n in report.fresh} == {'g', 'd_r', 'd_m'}
  assert report.unused == ['g_ema/more/x']
  overlay.tell(report, 'gan', tmp_path)
  lines = (tmp_path / 'init_from.txt').read_text().splitlines()
  assert lines[0] == 'weights of there'
  assert 'loaded       g/conv_first/bias' in lines
  assert 'other shape  g/to_seg_0/bias (2,) here, (3,) there' in lines
  assert 'fresh        g/const' in lines
  assert lines[-1] == 'unused       g_ema/more/x'
  told = capsys.readouterr().out
  assert told.startswith(f'gan: {len(report.loaded)} arrays from there, ')
  assert '1 unused (g_ema/more/x); see' in told and told.count('\n') == 1


def test_nothing_that_fits_is_one_sentence(gan_state):
  with pytest.raises(UserError, match=r'nothing fits \(it holds e\); set the'):
    overlay.overlay(gan_state, pretrained('e'), 'there')
  wide = networks.module(
    'stylegan2_generator',
    dict(resolution=8, channels=3, w_dim=4, mapping_depth=1, widths=[3, 3]),
  )
  shapes = jax.eval_shape(wide.init, jax.random.key(0), np.zeros((1, 4)))
  zeros = jax.tree.map(lambda x: np.zeros(x.shape), shapes['params'])
  # A scalar has the same shape in all networks.
  zeros = {'const': zeros['const'], 'conv_up_0': zeros['conv_up_0']['conv']}
  wrong = Network('stylegan2_generator', {}, {'params': zeros})
  with pytest.raises(UserError, match=r'\(4, 4, 8\) here and \(4, 4, 3\) the'):
    overlay.overlay(gan_state, pretrained(g=wrong), 'there')


def encoder_state(gan_state):
  method = semantic_gan_encoder.make(
    **SHAPE, gan=GAN, width=8, depths=(1, 1, 1, 1), features=8,
    perceptual_kind='discriminator',
  )  # fmt: skip
  return jax.jit(method.init)(jax.random.key(1), gan_state)


def test_an_encoder_goes_on_or_begins_on_a_generator(gan_state):
  fresh = encoder_state(gan_state)
  weights = pretrained('g_ema', 'e')
  state, report = overlay.overlay(fresh, weights, 'there', ('g_ema',))
  wanted = weights.networks['e'].variables['params']
  assert_equal((state.params['e'], state.ema['e']), (wanted, wanted))
  # Ranger would go back to where its slow weights are.
  slow = [
    x.slow
    for x in jax.tree.leaves(
      state.opt_state['e'], is_leaf=lambda x: hasattr(x, 'slow')
    )
    if hasattr(x, 'slow')
  ]
  assert len(slow) == 1
  assert_equal(slow[0], wanted)
  assert 'g_ema/const' in report.loaded and not report.unused
  state, report = overlay.overlay(
    fresh, pretrained('g_ema'), 'there', ('g_ema',)
  )
  assert_equal(state.params, fresh.params)
  assert 'e/style0/dense/kernel' in report.fresh and 'g_ema/const' in (
    report.loaded
  )


def test_batch_statistics_and_other_encoders_do_not_fit(gan_state):
  fresh = encoder_state(gan_state)
  e = toy_weights.network('e')
  e = e._replace(settings=e.settings | {'norm': 'batch'})
  _, report = overlay.overlay(fresh, pretrained(e=e), 'there')
  assert report.fresh and all('/norm' in name for name in report.fresh)
  psp = Network('psp_encoder', {}, e.variables)
  with pytest.raises(UserError, match='nothing fits'):
    overlay.overlay(fresh, pretrained(e=psp), 'there')


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  path = tmp_path_factory.mktemp('weights')
  write = lambda name, *nets, k: toy_weights.write(
    path / name, *nets, num_classes=k
  )
  stem = {'params': {'stem': {'kernel': np.zeros((7, 7, 3, 64), np.float32)}}}
  settings = {'backbone': 'resnet18', 'width': 64}
  backbone = Network('torchvision', settings, stem)
  folder.save(
    Converted('torchvision', {'backbone': backbone}, {}), path / 'backbone'
  )
  return {
    'whole': write('whole', 'g', 'g_ema', 'd_r', k=K),
    'bare': write('bare', 'g_ema', k=0),
    'no_d_r': write('no_d_r', 'g_ema', 'e', k=K),
    'backbone': str(path / 'backbone'),
  }


def config_of(method, source, **fields):
  c = jaxseg_config.default()
  c.data.source = 'digits'
  c.data.resolution, c.data.channels = SIZE, 1
  if 'perceptual_kind' not in fields and method != 'semantic_gan':
    fields['perceptual_kind'] = 'discriminator'
  s = jaxseg_config.stage(method, init_from=source, **fields)
  return jaxseg_config.add_stages(c, s=s)


@pytest.mark.parametrize('method', start.METHODS)
def test_a_folder_of_another_kind_is_refused(folders, method):
  config = config_of(method, folders['backbone'])
  jaxseg_config.check(config)
  with pytest.raises(UserError, match=f'holds backbone, but {method} needs a '):
    start.resolve(config)


@pytest.mark.parametrize(
  ('method', 'source', 'fields', 'sentence'),
  [
    ('label_branch', 'bare', {'data.resolution': 64},
     '32 x 32 images of 1 channels, but config.data.resolution is 64'),
    ('semantic_gan_encoder', 'whole', {'data.channels': 3},
     'and config.data.channels 3; set them to those'),
    ('semantic_gan_encoder', 'bare', {}, 'draws no labels, but semantic_gan_e'),
    ('semantic_gan_encoder', 'no_d_r', {}, 'holds no discriminator, but .*lp'),
    ('label_branch', '', {}, 'needs a folder of converted weights; make one'),
    ('label_branch', 'gone/folder', {}, 'holds no pretrained.json'),
    ('mean_teacher', 'x/y', {'s.args.net.weights': 'z'}, 'but both begin'),
    ('mean_teacher', 'x/y', {'s.args.net.arch': 'unet'}, 'no ImageNet encoder'),
    ('cyclegan', 'x/y', {}, 'no ImageNet encoder'),
  ],
)  # fmt: skip
def test_refused_before_any_work(folders, method, source, fields, sentence):
  config = (
    config_of(method, folders.get(source, source))
    if method in start.METHODS
    else segmenter(method, source)
  )
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=sentence) as told:
    jaxseg_config.check(config)
    start.resolve(config)
  assert '\n' not in str(told.value)


def segmenter(method, source):
  c = jaxseg_config.default()
  c.data.source, c.data.resolution = 'digits', SIZE
  fields = {} if method == 'cyclegan' else {'net': {'arch': 'deeplab_v3plus'}}
  s = jaxseg_config.stage(
    method, init_from=source, unlabelled_batch_size=8, **fields
  )
  return jaxseg_config.add_stages(c, s=s)


def test_classes_of_the_generator_are_those_of_the_data(folders):
  config = start.resolve(config_of('semantic_gan_encoder', folders['whole']))
  workdirs.abstract_state(config, 's', K)
  with pytest.raises(UserError, match='labels of 2 classes, but the data have'):
    workdirs.abstract_state(config, 's', 5)


def test_a_segmenter_takes_the_folder_as_its_encoder(folders):
  config = segmenter('mean_teacher', folders['backbone'])
  jaxseg_config.check(config)
  found = start.resolve(config).s
  assert (found.init_from, found.args.net.weights) == ('', folders['backbone'])
  assert config.s.init_from == folders['backbone']
  # A later stage must see images as the earlier one does.
  c = segmenter('supervised', folders['backbone']).unlock()
  c.s.unlabelled_batch_size = 0
  later = jaxseg_config.stage(
    'supervised', init_from='s', net={'arch': 'deeplab_v3plus'}
  )
  c = jaxseg_config.add_stages(c, s=c.s, later=later)
  with pytest.raises(UserError, match='standardised as there'):
    jaxseg_config.check(c)


def test_what_the_folder_held_is_remembered(folders, tmp_path):
  config = config_of('label_branch', folders['bare'])
  first = start.resolve(config, tmp_path)
  assert json.loads(first.s.init_networks)['networks'].keys() == {'g_ema'}
  workdirs.save_config(tmp_path, first)
  gone = config_of('label_branch', str(tmp_path / 'gone'))
  with first.unlocked():
    first.s.init_from = str(tmp_path / 'gone')
  workdirs.save_config(tmp_path, first)
  found = start.resolve(gone, tmp_path)
  assert found.s.init_networks == first.s.init_networks
  workdirs.refuse_other_config(tmp_path, found)
  # It has not begun, and so needs the folder.
  with pytest.raises(UserError, match='gone holds no pretrained.json'):
    train.check_weights(found, tmp_path)
  (workdirs.checkpoint_folder(tmp_path, 's') / '5').mkdir(parents=True)
  train.check_weights(found, tmp_path)
  toy_weights.write(tmp_path / 'gone', 'g', 'g_ema')
  other = start.resolve(gone, tmp_path)
  with pytest.raises(UserError, match='other weights than .*gone now holds'):
    workdirs.refuse_other_config(tmp_path, other)
