"""The segmenters' speed comparison compares what it says."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg.errors import UserError
from jaxseg.nets.segmenters import Net


@pytest.fixture
def speed(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import segmenter_speed

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return segmenter_speed


@pytest.fixture
def torch(monkeypatch):
  """PyTorch on one thread: others would spin while they wait."""
  torch = pytest.importorskip(
    'torch', reason='PyTorch is needed to compare with it'
  )
  before, set_threads = torch.get_num_threads(), torch.set_num_threads
  set_threads(1)
  monkeypatch.setattr(torch, 'set_num_threads', lambda n: None)
  yield torch
  set_threads(before)


@pytest.fixture
def tiny(speed):
  return speed.U_NET._replace(width=8, depth=2)


def test_the_same_network_is_the_same(speed, torch):
  assert 'agree' in speed.check_same(width=4, depth=2, resolution=16)


def test_a_difference_is_found(speed, monkeypatch, torch):
  from benchmarks import torch_segmenters

  load = torch_segmenters.load

  def wrong(module, variables):
    module = load(module, variables)
    module.encoder['bottom'].conv0.weight.data[0] += 1
    return module

  monkeypatch.setattr(torch_segmenters, 'load', wrong)
  with pytest.raises(AssertionError, match='differ in .*logits'):
    speed.check_same(width=4, depth=2, resolution=16)


def test_both_sides_learn(speed, tiny, torch):
  setup = speed.Setup(32, 2)
  ours = speed.jaxseg_side(tiny, setup)
  theirs = speed.torch_side(speed.Case(tiny, 'same'), setup)
  assert ours.parameters == theirs.parameters
  assert ours.flops == theirs.flops
  for side in (ours, theirs):
    losses = [float(side.run()) for _ in range(4)]
    assert losses[-1] < losses[0] < 3
  times = speed.speed.measure([{'step': s.run} for s in (ours, theirs)], 2, 1)
  assert [len(t['step']) for t in times] == [2, 2]
  lines = speed.networks_table({'unet': [ours, theirs]}).splitlines()
  assert lines[2] == '| unet | jaxseg unet, width 8 | 0.02 | 0.01 |'
  assert lines[3] == '| unet | the same in PyTorch | 0.02 | 0.01 |'


def test_operations_by_hand(speed):
  """Width 2, depth 1: the 3x3 convolutions and the scores of 4 classes."""
  net = speed.segmenters.build(Net(width=2, depth=1), speed.NUM_CLASSES)
  image = jnp.zeros((1, 8, 8, 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), image)
  full = 64 * (9 * (3 * 2 + 2 * 2 + 4 * 2 + 2 * 2) + 2 * 4)
  half = 16 * 9 * (2 * 2 + 2 * 2)
  assert speed.forward_flops(net, variables, 8) == 2 * (full + half)


@pytest.mark.parametrize('name', ('Unet resnet18', 'DeepLabV3Plus resnet50'))
def test_peers_can_be_built(speed, torch, name):
  pytest.importorskip('segmentation_models_pytorch')
  from benchmarks import torch_segmenters

  module = torch_segmenters.build(name, speed.U_NET, 'batch', 4).eval()
  with torch.no_grad():
    assert module(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 32, 32)


@pytest.mark.parametrize('name, value', (
  ('networks', []), ('networks', ['unet']), ('resolution', 40),
  ('batch_size', 1), ('rounds', 0),
))  # fmt: skip
def test_mistakes_are_named(speed, name, value):
  speed.check_flags()
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=f'--{name} '):
      speed.check_flags()


def test_report_without_peers(speed, tiny, monkeypatch):
  """Whatever is missing, the rest runs, and a sentence says what to install."""
  cases = {
    'unet': speed.Case(tiny, 'same'),
    'beside_smp': speed.Case(tiny, 'Unet resnet18'),
  }
  monkeypatch.setattr(speed, 'CASES', cases)
  monkeypatch.setattr(speed.importlib.util, 'find_spec', lambda name: None)
  with flagsaver.flagsaver(networks=['unet'], resolution=32, batch_size=2):
    report = speed.run()
  assert 'pip install torch' in report
  assert 'pip install segmentation-models-pytorch' in report
  assert '| unet | 1 |' in report and 'beside_smp' not in report
