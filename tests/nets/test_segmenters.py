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
))  # fmt: skip
def test_settings_reach_the_network(arch, field, value):
  net = Net(arch, norm='group', **{field: value})
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
))  # fmt: skip
def test_settings_of_other_networks_are_named(arch, field, value):
  assert segmenters.unread(Net(arch, **{field: value})) == (field,)


def test_refuses_other_values():
  with pytest.raises(UserError, match='args.net.arch is .u-net., must be one'):
    segmenters.build(Net('u-net'), 3, 'args.net')
