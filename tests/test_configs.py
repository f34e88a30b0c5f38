"""Every config loads, is locked, passes the checks, and its steps trace."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import toy_weights
from absl import flags
from ml_collections import config_flags

from jaxseg import config as jaxseg_config
from jaxseg import errors, plan_compile, presets, workdir
from jaxseg.errors import UserError
from jaxseg.methods import perceptual
from jaxseg.published import start

FOLDER = Path(__file__).parents[1] / 'configs'
CASES = {  # file: {argument: number of classes}
  'quickstart': {'digits': 11, 'avatars': 6},
  'chest_xray': {'9': 2, '35,laptop': 2},
  'faces': {'30': 6},
  'celeba_mask': {'30': 8},
  'unet': {'liver,8': 2},
  'deeplab_v3plus': {'voc2012,92': 21},
  'deeplab_v2': {'digits': 11},
  'fcn8s': {'digits': 11},
  'segnet': {'skin_lesion': 2},
  'mean_teacher': {'acdc,3': 4},
  'adv_ssl': {'voc2012': 21},
  'gct': {'acdc': 4},
  'self_training': {'folder:mydata,20': 3},
  'entropy': {'avatars': 6},
  'graph': {'celeba_mask_hq': 8},
  'fixmatch': {'cityscapes': 19},
  'unimatch': {'chest_xray,35': 2},
  'bcp': {'acdc,3': 4},
  'weak': {
    'scribble,acdc': 4,
    'click,digits': 11,
    'polygon,folder:mydata,20': 3,
    'box,skin_lesion,all,laptop': 2,
    'grabcut,avatars': 6,
    'tags,digits,all': 11,
  },
  'baselines': {'chest_xray,9,laptop': 2},
  'cyclegan': {
    'digits': 11,
    'voc,20%': 21,
    'cityscapes,20%': 19,
    'acdc,10%': 4,
    'acdc,all': 4,
  },
}


def load(name, arg):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def test_every_config_is_covered():
  # One of a prediction, see test_predict_pretrained; one below.
  covered = {*CASES, 'psp_ffhq', 'label_branch'}
  assert {p.stem for p in FOLDER.glob('*.py')} == covered


@pytest.mark.parametrize(
  ('name', 'arg'), [(n, a) for n, args in CASES.items() for a in args]
)
def test_config(name, arg):
  config, k = load(name, arg), CASES[name][arg]
  jaxseg_config.check(config)
  assert config.is_locked
  trace(perceptual.resolve_kinds(config), k)


def test_label_branch_has_the_size_of_its_folder(tmp_path):
  folder = toy_weights.write(tmp_path / 'weights', 'g_ema', 'e')
  config = load('label_branch', folder)
  assert (config.data.resolution, config.data.channels) == (32, 1)
  jaxseg_config.check(config)
  trace(start.resolve(perceptual.resolve_kinds(config)), 3)
  skips = load('label_branch', f'{folder},skips').labels
  assert (skips.init_from, skips.args.head) == (str(folder), 'skips')
  # Without the folder, sizes are those of the example.
  assert load('label_branch', 'gone/folder').data.resolution == 1024


def trace(config, k):
  """Every stage's step keeps the shapes of its state."""
  for stage in config.stages:
    state = workdir.abstract_state(config, stage, k)
    batch = plan_compile.batch_shapes(config, stage, k)
    step = workdir.make_method(config, stage, k).train_step
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(m.dtype == jnp.float32 for m in metrics.values())


@pytest.mark.parametrize(
  ('name', 'arg'),
  [
    ('quickstart', 'cats'),
    ('chest_xray', '9,tiny'),
    ('unet', 'digit'),
    ('weak', 'scribbles'),
    ('weak', 'scribble,digit'),
    ('unet', 'acdc,many'),
    ('unet', 'acdc,7,small'),
    ('unet', 'acdc,7,laptop,more'),
  ],
)
def test_unknown_argument_is_refused(name, arg):
  with pytest.raises(ValueError, match=arg.split(',')[-1]):
    load(name, arg)


def test_every_preset_passes_the_checks():
  for name in (*presets.SETS, 'folder:mydata'):
    for arg in (name, f'{name},5', f'{name},5,laptop'):
      preset = presets.load(arg)
      config = jaxseg_config.add_stages(
        preset.config, unet=preset.stage('supervised', net={'up': 'transposed'})
      )
      jaxseg_config.check(config)
      assert ',' not in arg or config.data.num_labelled == 5
      assert config.unet.args.net.width == preset.net.get('width', 64)
      assert config.unet.args.net.up == 'transposed'
      assert config.unet.args.optimizer.lr == preset.optimizer['lr']


def test_a_config_with_a_network_of_its_own_is_alike_on_all_presets():
  for name in ('deeplab_v3plus', 'deeplab_v2', 'fcn8s', 'segnet'):
    digits, photographs = (load(name, arg) for arg in ('digits', 'voc2012'))
    for stage in digits.stages:
      one, other = digits[stage].args, photographs[stage].args
      assert (one.net.width, other.net.width) == (16, 64)
      assert one.net.to_dict() | {'width': 64} == other.net.to_dict()
      assert one.optimizer == other.optimizer


def test_a_preset_of_photographs_is_not_called_unet():
  for name in ('unet', 'self_training', 'baselines'):
    assert load(name, 'voc2012').unet.label == 'DeepLab v3+'
    assert load(name, 'voc2012,92,laptop').unet.label == 'U-Net'


def test_self_training_is_alike_alone_and_among_baselines():
  alone, among = (load(n, 'digits') for n in ('self_training', 'baselines'))
  assert alone.self_training == among.self_training
  assert alone.data.strong.views == 1  # among: 2, of which the first is used


@pytest.mark.parametrize(
  ('arg', 'path', 'labels', 'resolution'),
  [
    ('folder:a,b', 'a,b', 30, 128),
    ('folder:a,b,12', 'a,b', 12, 128),
    ('folder:/a b,1/c,12,laptop', '/a b,1/c', 12, 64),
    ('folder:a,,laptop', 'a', 30, 64),
    ('folder:a,b,all,laptop', 'a,b', 0, 64),
    ('folder:a,b,20%', 'a,b', 30, 128),
  ],
)
def test_folders_with_commas(arg, path, labels, resolution):
  data = presets.load(arg).config.data
  assert data.source == f'folder:{path}'
  assert (data.num_labelled, data.resolution) == (labels, resolution)


@pytest.mark.parametrize(
  ('arg', 'number', 'fraction'),
  [
    ('acdc', 7, 0.0),
    ('acdc,3', 3, 0.0),
    ('acdc,20%', 7, 0.2),
    ('acdc,12.5%,laptop', 7, 0.125),
    ('acdc,100%', 7, 1.0),
    ('acdc,all', 0, 0.0),
    ('folder:a,5%,laptop', 30, 0.05),
  ],
)
def test_labels_of_an_argument(arg, number, fraction):
  data = presets.load(arg).config.data
  jaxseg_config.check_data(data)
  assert (data.num_labelled, data.labelled_fraction) == (number, fraction)


@pytest.mark.parametrize(
  'labels', ['0%', '101%', '%', '2.%', '-5', '0.2', 'al']
)
def test_labels_that_are_no_number(labels):
  with pytest.raises(ValueError, match=f"'{labels}' is not a number, such as"):
    presets.load(f'acdc,{labels}')


def test_groups_of_a_stage():
  fields = jaxseg_config.stage(
    'supervised', net={'width': 16}, ema_half_life=0.0
  )
  assert (fields.args.net.width, fields.args.net.depth) == (16, 4)
  with pytest.raises(KeyError, match='wdth'):
    jaxseg_config.stage('supervised', net={'wdth': 16})
  with pytest.raises(TypeError):
    jaxseg_config.stage('supervised', net={'width': 'wide'})


@pytest.mark.parametrize(
  ('group', 'field', 'value', 'sentence'),
  [
    ('net', 'arch', 'unet++', "net.arch is 'unet\\+\\+', must be one of unet"),
    ('net', 'norm', 'layer', "net.norm is 'layer', must be one of group"),
    ('net', 'up', 'nearest', "net.up is 'nearest', must be one of bilinear"),
    ('net', 'depth', 6, 'depth is 6, but 32 pixels'),
    ('net', 'dtype', 'float8', 'net.dtype is .float8., must be one of float32'),
    ('net', 'dropout', 1.0, 'net.dropout is 1.0, must be from 0 to below 1'),
    ('net', 'width', 1, '^config.unet.args.net.width is 1, must be at least 2'),
    ('optimizer', 'warmup', 2.0, 'optimizer.warmup is 2.0, must be from 0'),
    ('net', 'norm', 'frozen', "net.norm is 'frozen', but .*args.net.weights"),
    ('net', 'weights', 'x.pth', 'unet has no ImageNet encoder'),
    ('optimizer', 'name', 'lion', "optimizer.name is 'lion'"),
    ('optimizer', 'schedule', 'step', "optimizer.schedule is 'step'"),
  ],
)
def test_settings_of_a_segmenter(group, field, value, sentence):
  config = load('unet', 'digits').unlock()
  config.unet.args[group][field] = value
  with pytest.raises(UserError, match=sentence):
    jaxseg_config.check(config)


@pytest.mark.parametrize(
  ('changes', 'unread'),
  [
    ({}, ()),
    ({'depth': 3, 'up': 'transposed', 'dropout': 0.5}, ()),
    (
      {'backbone': 'resnet18', 'output_stride': 8},
      ('backbone', 'output_stride'),
    ),
    ({'arch': 'segnet', 'dropout': 0.5, 'depth': 3}, ('depth', 'dropout')),
    ({'arch': 'fcn8s', 'norm': 'none', 'dropout': 0.5}, ()),
    ({'arch': 'fcn8s', 'output_stride': 8}, ('output_stride',)),
    ({'arch': 'deeplab_v2', 'output_stride': 8, 'dropout': 0.5}, ('dropout',)),
    ({'arch': 'deeplab_v3plus', 'up': 'transposed', 'width': 8}, ('up',)),
  ],
)
def test_settings_without_effect_are_told(changes, unread, capsys):
  config = load('unet', 'digits').unlock()
  config.unet.args.net.depth = 4
  config.unet.args.net.update(changes)
  jaxseg_config.check(config)
  told = capsys.readouterr().out.splitlines()
  assert len(told) == len(unread)
  for line, name in zip(told, unread, strict=True):
    assert line.startswith(f'config.unet.args.net.{name}=')


def test_no_config_sets_what_has_no_effect(capsys):
  for name in ('baselines', 'deeplab_v3plus', 'deeplab_v2', 'fcn8s', 'segnet'):
    for data in presets.SETS:
      jaxseg_config.check(load(name, data))
  assert not capsys.readouterr().out


@pytest.mark.parametrize('name', ['unet', 'entropy', 'bcp'])
def test_tags_are_no_labels(name):
  config = load(name, 'digits').unlock()
  config.data.weak.kind = 'tags'
  with pytest.raises(UserError, match="kind is 'tags', but config"):
    jaxseg_config.check(config)


@pytest.mark.parametrize('name', ['fixmatch', 'unimatch'])
def test_strong_views_are_needed(name):
  config = load(name, 'digits').unlock()
  config.data.strong.views = 0
  with pytest.raises(UserError, match='strong.views is 0, but'):
    jaxseg_config.check(config)


@pytest.mark.parametrize('name', ['mean_teacher', 'adv_ssl', 'gct', 'graph'])
def test_unlabelled_images_are_needed(name):
  config = load(name, 'digits').unlock()
  config[name].unlabelled_batch_size = 0
  with pytest.raises(UserError, match=f'{name}.unlabelled_batch_size is 0'):
    jaxseg_config.check(config)


@pytest.mark.parametrize(
  'name', ['mean_teacher', 'adv_ssl', 'gct', 'entropy', 'graph', 'unimatch']
)
def test_an_earlier_stage_is_not_ignored(name):
  config = load('baselines', 'digits').unlock()
  jaxseg_config.check(config)
  config[name].init_from = 'unet'
  with pytest.raises(UserError, match=f'{name}.init_from is .unet., but'):
    jaxseg_config.check(config)


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('fit', 'centre', "fit is 'centre', must be one of '', 'crop', 'pad'"),
    ('labelled_by', 'patient', "must be one of 'image', 'group'"),
    ('volume.axis', 3, 'volume.axis is 3, must be one of 0, 1, 2'),
    ('workers', 10_000, 'workers is 10000, must be at most'),
    ('resolution', 99, '100 is the nearest'),
    ('resolution', 1028, 'a multiple of 4 from 32 to 1024; 1024 is the'),
    ('width', 24, 'width is 24, must be a multiple of 4 .* 32 is the nearest'),
    ('labelled_fraction', 1.5, 'labelled_fraction is 1.5, must be from 0 to 1'),
    ('channels', 4, 'channels is 4, must be one of 1, 3'),
    ('ood_sources', (3,), 'ood_sources holds 3, must be texts'),
    ('unlabelled', ('',), "unlabelled holds '', must be texts"),
    ('intensity.percentiles', ('a', 'b'), "holds 'a', must be numbers"),
    ('intensity.mode', 'Auto', 'must be one of auto'),
    ('weak.kind', 'scribble', 'one of scribbles'),
  ],
)
def test_fields_of_data(field, value, sentence):
  data = jaxseg_config.default().data.unlock()
  jaxseg_config.check_data(data)
  *group, name = field.split('.')
  (data[group[0]] if group else data)[name] = value
  with pytest.raises(UserError, match=f'^config.data.*{sentence}'):
    jaxseg_config.check_data(data)


def test_stages_that_do_not_exist():
  config = load('quickstart', 'digits').unlock()
  config.stages = ('gan', 'unett')
  with pytest.raises(
    UserError, match="names 'unett', must be some of encoder, gan"
  ):
    jaxseg_config.check(config)


@pytest.mark.parametrize(
  ('args', 'sentence'),
  [
    (['--config.data.sorce=x'], "no field 'sorce', did you mean 'source'"),
    (['--config.data.resolution=big'], "base 10: 'big' Fields and"),
    (['--config=configs/quickstart.py:x'], "quickstart.py:x: .*'x'"),
  ],
)
def test_flags_in_one_sentence(monkeypatch, capsys, args, sentence):
  monkeypatch.chdir(FOLDER.parent)
  values = flags.FlagValues()
  if not args[0].startswith('--config='):
    args = ['--config=configs/quickstart.py', *args]
  argv = ['train', *args]
  monkeypatch.setattr(flags, 'FLAGS', values)
  monkeypatch.setattr(sys, 'argv', argv)
  with pytest.raises(SystemExit) as stop:
    with errors.friendly():
      try:
        config_flags.DEFINE_config_file('config', flag_values=values)
      except KeyError as error:  # some fields are looked up at once
        raise UserError(jaxseg_config.in_short(error)) from error
    jaxseg_config.parse_flags(argv)
  told = capsys.readouterr().err
  assert stop.value.code == 2 and re.search(sentence, told), told
  assert told.count('\n') == 1 and 'Traceback' not in told
