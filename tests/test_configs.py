"""Every config loads, is locked, passes the checks, and its steps trace."""

import importlib.util
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from jaxseg import config as jaxseg_config
from jaxseg import errors, workdir
from jaxseg.errors import UserError
from jaxseg.methods import perceptual

FOLDER = Path(__file__).parents[1] / 'configs'
CASES = {  # file: {argument: number of classes}
  'quickstart': {'digits': 11, 'avatars': 6},
  'chest_xray': {'9': 2, '35,laptop': 2},
  'faces': {'30': 6},
  'celeba_mask': {'30': 8},
}


def load(name, arg):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def test_every_config_is_covered():
  assert {p.stem for p in FOLDER.glob('*.py')} == set(CASES)


@pytest.mark.parametrize(
  ('name', 'arg'), [(n, a) for n, args in CASES.items() for a in args]
)
def test_config(name, arg):
  config, k = load(name, arg), CASES[name][arg]
  jaxseg_config.check(config)
  assert config.is_locked
  config = perceptual.resolve_kinds(config)
  size, channels = config.data.resolution, config.data.channels
  images = lambda n: jax.ShapeDtypeStruct((n, size, size, channels), 'float32')
  for stage in config.stages:
    fields = config[stage]
    state = workdir.abstract_state(config, stage, k)
    batch = {
      'image': images(fields.batch_size),
      'label': jax.ShapeDtypeStruct((fields.batch_size, size, size), 'int32'),
    }
    if fields.unlabelled_batch_size:
      batch['unlabelled'] = images(fields.unlabelled_batch_size)
    step = workdir.make_method(config, stage, k).train_step
    after, metrics = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(m.dtype == jnp.float32 for m in metrics.values())


@pytest.mark.parametrize(
  ('name', 'arg'), [('quickstart', 'cats'), ('chest_xray', '9,tiny')]
)
def test_unknown_argument_is_refused(name, arg):
  with pytest.raises(ValueError, match=arg.split(',')[-1]):
    load(name, arg)


@pytest.mark.parametrize(
  ('field', 'value', 'sentence'),
  [
    ('fit', 'centre', "fit is 'centre', must be one of '', 'crop', 'pad'"),
    ('labelled_by', 'patient', "must be one of 'image', 'group'"),
    ('volume.axis', 3, 'volume.axis is 3, must be one of 0, 1, 2'),
    ('workers', 10_000, 'workers is 10000, must be at most'),
    ('resolution', 100, '128 is the nearest'),
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
