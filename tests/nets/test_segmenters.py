"""Settings of segmenters: each reaches its network, and no other."""

import pytest

from jaxseg.errors import UserError
from jaxseg.nets import segmenters
from jaxseg.nets.segmenters import Net


@pytest.mark.parametrize('arch, field, value', (
  ('unet', 'depth', 2),
  ('unet', 'up', 'transposed'),
  ('unet', 'dropout', 0.25),
  ('deeplab_v2', 'backbone', 'resnet34'),
  ('deeplab_v2', 'output_stride', 8),
  ('deeplab_v2', 'align_corners', True),
  ('deeplab_v2', 'published_aspp_bug', True),
  ('deeplab_v3plus', 'backbone', 'mobilenet_v2'),
  ('deeplab_v3plus', 'align_corners', True),
  ('fcn8s', 'faithful_padding', True),
  ('fcn16s', 'dropout', 0.25),
  ('segnet', 'width', 8),
  ('resnet_generator', 'blocks', 6),
  ('resnet_generator', 'dropout', 0.5),
  ('resnet_generator', 'norm', 'instance'),
  ('resnet_generator', 'width', 8),
))  # fmt: skip
def test_settings_reach_the_network(arch, field, value):
  net = Net(arch, **{'norm': 'group', field: value})
  assert getattr(segmenters.build(net, 3), field) == value
  assert not segmenters.unread(net)
  assert getattr(segmenters.build(Net(arch, norm='group'), 3), field) != value


@pytest.mark.parametrize('arch, field, value', (
  ('unet', 'published_aspp_bug', True),
  ('unet', 'align_corners', True),
  ('deeplab_v3plus', 'published_aspp_bug', True),
  ('deeplab_v3plus', 'depth', 2),
  ('segnet', 'dropout', 0.5),
  ('deeplab_v2', 'faithful_padding', True),
  ('unet', 'blocks', 6),
  ('resnet_generator', 'depth', 2),
))  # fmt: skip
def test_settings_of_other_networks_are_named(arch, field, value):
  assert segmenters.unread(Net(arch, **{field: value})) == (field,)


def test_instance_norm_makes_one_batch_and_many_the_same():
  net = Net('resnet_generator', norm='instance', joint_norm=True)
  assert segmenters.unread(net) == ('joint_norm',)
  assert not segmenters.unread(net._replace(norm='batch'))


@pytest.mark.parametrize('arch, field, value, match', (
  ('unet', 'norm', 'instance', "norm is 'instance', must be one of group"),
  ('fcn8s', 'norm', 'instance', "norm is 'instance', must be one of group"),
  ('resnet_generator', 'norm', 'none', "frozen, instance."),
  ('resnet_generator', 'blocks', 0, 'blocks is 0, must be at least 1'),
  ('resnet_generator', 'dropout', 1.0, 'dropout is 1.0, must be from 0'),
))  # fmt: skip
def test_refuses_a_value(arch, field, value, match):
  with pytest.raises(UserError, match=match):
    segmenters.build(Net(arch, **{field: value}), 3)


def test_refuses_other_values():
  with pytest.raises(UserError, match='args.net.arch is .u-net., must be one'):
    segmenters.build(Net('u-net'), 3, 'args.net')
