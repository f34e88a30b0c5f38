"""What stages with a segmenter are refused for, one sentence each."""

import pytest

import jaxseg.config
from jaxseg.errors import UserError
from jaxseg.methods import segmenting_checks


def config_of(stages, **data):
  """A checked config; stages: {name: (method, fields)}."""
  c = jaxseg.config.default()
  c.data.resolution = 64
  c.data.strong.views = 2
  for name, value in data.items():
    c.data[name] = value
  c = jaxseg.config.add_stages(
    c, **{
      name: jaxseg.config.stage(method, **fields)
      for name, (method, fields) in stages.items()
    }
  )  # fmt: skip
  jaxseg.config.check(c)
  return c


NARROW = {'width': 4, 'depth': 2}


@pytest.mark.parametrize('method, fields, message', (
  ('supervised', dict(net={'arch': 'deeplab_v3plus'}, batch_size=1),
   'one image at a time .batch_size 1.* map of one pixel'),
  ('mean_teacher', dict(net={'arch': 'deeplab_v3plus'}, batch_size=4,
                        unlabelled_batch_size=1), 'unlabelled_batch_size 1'),
  ('bcp', dict(net={'depth': 6}, batch_size=2, unlabelled_batch_size=2,
               pretrain=False), 'one image at a time'),
  ('unimatch', dict(batch_size=4, unlabelled_batch_size=1),
   'unlabelled_batch_size is 1, must be at least 2 with config.data.strong'),
  ('supervised', dict(loss={'class_weights': (1.0, -1.0)}),
   'config.s.args.loss.class_weights is .1.0, -1.0., must be numbers'),
  ('supervised', dict(loss={'class_weights': (0.0, 0.0)}), 'not all 0'),
  ('supervised', dict(net={'norm': 'frozen'}), 'the statistics of no images'),
  ('supervised', dict(net={'norm': 'frozen', 'arch': 'segnet',
                           'weights': 'x.pth'}), 'the decoder of segnet'),
))  # fmt: skip
def test_refused(method, fields, message):
  with pytest.raises(UserError, match=message):
    config_of({'s': (method, fields)})


@pytest.mark.parametrize('method, fields', (
  ('supervised', dict(net={'arch': 'deeplab_v3plus', 'norm': 'group'},
                      batch_size=1)),
  ('mean_teacher', dict(net={'arch': 'deeplab_v3plus', 'joint_norm': True},
                        batch_size=1, unlabelled_batch_size=1)),
  ('supervised', dict(net={'depth': 5}, batch_size=1)),
  ('supervised', dict(loss={'class_weights': (0.0, 2)})),
))  # fmt: skip
def test_accepted(method, fields):
  config_of({'s': (method, fields)})


@pytest.mark.parametrize('there, here, message', (
  ({'arch': 'fcn8s', 'norm': 'group', 'faithful_padding': True},
   {'arch': 'fcn8s', 'norm': 'group'},
   'args.net.faithful_padding is False, but that of its teacher, .*is True'),
  ({'norm': 'group'}, {'norm': 'frozen'}, 'leaves no statistics'),
))  # fmt: skip
def test_students_have_the_teachers_network(there, here, message):
  stages = lambda student: {
    'first': ('supervised', dict(net=NARROW | there)),
    'bcp': ('bcp', dict(init_from='first', net=NARROW | student,
                        unlabelled_batch_size=8)),
  }  # fmt: skip
  config_of(stages(there))
  with pytest.raises(UserError, match=message):
    config_of(stages(here))


def test_a_student_that_starts_anew_has_no_statistics():
  student = lambda from_teacher: {
    'first': ('supervised', dict(net=NARROW)),
    'next': ('self_training', dict(
      init_from='first', net=NARROW | {'norm': 'frozen'},
      unlabelled_batch_size=8, from_teacher=from_teacher,
    )),
  }  # fmt: skip
  config_of(student(True))
  with pytest.raises(UserError, match='the statistics of no images'):
    config_of(student(False))


def test_class_weights_of_other_classes():
  c = config_of({'s': ('supervised', dict(loss={'class_weights': (1.0, 2.0)}))})
  segmenting_checks.check_classes('config.s', c.s, 2)
  with pytest.raises(UserError, match='is 2 numbers, must be 3'):
    segmenting_checks.check_classes('config.s', c.s, 3)


def test_joint_norm_where_it_changes_nothing(capsys):
  for method, net in (
    ('supervised', {'joint_norm': True}),
    ('entropy', {'joint_norm': True, 'norm': 'group'}),
  ):
    config_of({'s': (method, dict(net=net, unlabelled_batch_size=8))})
    said = ''.join(capsys.readouterr())
    assert 'config.s.args.net.joint_norm=True has no effect' in said


@pytest.mark.parametrize('method, args, size, told', (
  ('supervised', {}, 8, ('joint_norm', 'unlabelled_batch_size=8')),
  ('cam', {}, 8, ('joint_norm', 'unlabelled_batch_size=8')),
  ('sec', {'seed': 0.0}, 8, ('joint_norm', 'unlabelled_batch_size=8')),
  ('sec', {'seed': 0.0}, 0, ('joint_norm',)),
  ('weak', {}, 8, ('unlabelled_batch_size=8',)),
  ('weak', {}, 0, ('joint_norm',)),
  ('weak', {'regularizer': {'potts': 1.0}}, 8, ()),
))  # fmt: skip
def test_unlabelled_images_without_effect(method, args, size, told, capsys):
  c = jaxseg.config.default().unlock()
  c.data.resolution = 64
  c.data.weak.kind = 'tags' if method in ('cam', 'sec') else ''
  fields = jaxseg.config.stage(
    method, net=NARROW | {'joint_norm': True}, unlabelled_batch_size=size,
    **args,
  )  # fmt: skip
  jaxseg.config.check(jaxseg.config.add_stages(c, s=fields))
  said = ''.join(capsys.readouterr())
  found = [x for x in ('joint_norm', 'unlabelled_batch_size=8') if x in said]
  assert said.count('has no effect') == len(told) and found == list(told)
