"""CycleGAN's speed comparison compares what it says."""

from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg.errors import UserError

# Names of the terms and of the networks in the recording.
TERMS = {
  'gen_s': 'sup_ce', 'gen_i': 'sup_mse', 'cycle_s': 'cyc_gt',
  'cycle_i': 'cyc_img', 'disc_s': 'adv_gt', 'disc_i': 'adv_img',
  'd_s': 'd_gt', 'd_i': 'd_img',
}  # fmt: skip
NETWORKS = {'seg': 'Gis', 'g_si': 'Gsi', 'd_s': 'Ds', 'd_i': 'Di'}
LR = 2e-4


@pytest.fixture
def speed(monkeypatch):
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
  from benchmarks import cyclegan_speed

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  return cyclegan_speed


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
def golden(shared):
  return dict(np.load(shared / 'golden' / 'cyclegan' / 'step_paper.npz'))


def recorded(golden, prefix):
  """A network's arrays, in the order of its layers."""
  return [golden[name] for name in golden if name.startswith(f'{prefix}/')]


@pytest.fixture
def trainer(speed, torch, golden):
  """PyTorch's side at the start of the recording."""
  from benchmarks import torch_cyclegan as peer

  nets = {
    'seg': peer.Generator(1, 4, 8, 2, tanh=False),
    'g_si': peer.Generator(4, 1, 8, 2, tanh=True),
    'd_s': peer.PixelDiscriminator(4, 8, 'instance'),
    'd_i': peer.PixelDiscriminator(1, 8, 'instance'),
  }
  for name, net in nets.items():
    arrays = recorded(golden, f'init/{NETWORKS[name]}')
    for parameter, array in zip(net.parameters(), arrays, strict=True):
      assert parameter.shape == array.shape
      parameter.data.copy_(torch.from_numpy(array))
  return peer.Trainer(nets, 4)


def recorded_batch(torch, golden, step):
  from benchmarks.torch_cyclegan import Batch

  image, label, unlabelled = (
    torch.from_numpy(golden[f'in/{step}/{name}'])
    for name in ('x_l', 'y_l', 'x_u')
  )
  return Batch(image, label[:, 0], unlabelled)


def test_published_steps(torch, golden, trainer):
  """Losses of two steps, gradients of the first, weights after the second."""
  for step in (0, 1):
    losses = trainer.step(recorded_batch(torch, golden, step))
    assert losses.keys() == TERMS.keys()
    for name, loss in losses.items():
      expected = golden[f'loss/{step}/{TERMS[name]}']
      np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
    for name in ('seg', 'g_si') if step == 0 else ():
      arrays = recorded(golden, f'grad/0/{NETWORKS[name]}')
      for parameter, array in zip(
        trainer.nets[name].parameters(), arrays, strict=True
      ):
        np.testing.assert_allclose(parameter.grad, array, atol=1e-5)
  for name, net in trainer.nets.items():
    arrays = recorded(golden, f'final/{NETWORKS[name]}')
    for parameter, array in zip(net.parameters(), arrays, strict=True):
      # Biases before a norm have no gradient, only noise, which Adam scales up.
      if parameter.ndim == 4:
        difference = np.abs(parameter.detach().numpy() - array)
        assert np.median(difference) < 0.01 * LR
        assert difference.max() < 4 * LR


def test_weights_of_equation_8(speed, torch, golden, trainer):
  from benchmarks.torch_cyclegan import WEIGHTS

  losses = trainer.step(recorded_batch(torch, golden, 0))
  total = sum(weight * float(losses[name]) for name, weight in WEIGHTS.items())
  assert total == pytest.approx(float(golden['loss/0/gen_total']), rel=1e-6)


@pytest.fixture
def small(speed):
  return speed.Setup(resolution=32, batch_size=2, width=4, blocks=1, d_width=8)


@pytest.fixture
def quick(speed, monkeypatch):
  """Programs are compiled fast, and once for all: alike in precision."""
  compiled = lambda function, *args: (
    speed.sides.quick_jit(function.__wrapped__),
    (1.0, 2.0),
  )
  monkeypatch.setattr(speed.sides, 'timed_compile', compiled)
  with jax.default_matmul_precision('highest'):
    yield


def test_both_sides_make_the_same_step(speed, torch, small, quick):
  """Losses, gradients, updates; then the losses of further steps."""
  found = speed.differences(small)
  assert len(found) == len(TERMS) + 2 * len(NETWORKS)
  assert max(found.values()) < 1e-3
  state = speed.init(small)
  ours, _ = speed.jaxseg_side(small, state)
  trainer, batch = speed.torch_trainer(small, state)
  for _ in range(3):
    losses, expected = ours(), trainer.step(batch)
    for name, loss in losses.items():
      assert float(loss) == pytest.approx(float(expected[name]), rel=1e-3)


def test_a_difference_is_found(speed, monkeypatch, torch):
  from benchmarks import torch_cyclegan

  monkeypatch.setitem(torch_cyclegan.WEIGHTS, 'cycle_s', 1.0)
  with pytest.raises(AssertionError, match='differ in .*gradient of seg'):
    speed.check_same(width=4, blocks=1)


def test_operations_by_hand(speed, torch, small):
  """A pass back costs two forward: G_IS sees 3 images a pair, G_SI 2."""
  run, flops = speed.torch_side(small, speed.init(small))
  pixels, w = 32 * 32, small.width

  def forward(inputs, outputs):
    ends = 49 * (inputs * w + w * outputs)
    # Four layers beside full and half size, two at a quarter of the side.
    between = 9 * (2 * 2 * w * w / 4 + 2 * 8 * w * w / 16)
    return 2 * pixels * (ends + between + 9 * 2 * 16 * w * w / 16)

  pairs = small.batch_size
  generators = 3 * pairs * (3 * forward(3, 4) + 2 * forward(4, 3))
  # No gradient of images.
  first = 2 * pixels * 49 * w * pairs * 2 * 3
  scores = lambda inputs: 2 * pixels * (8 * inputs + 16 * 8 + 16)
  # Of D: forward and back to the fakes, then both kinds with the weights.
  both = pairs * (scores(3) + scores(4))
  images = 2 * pixels * 8 * pairs * (3 + 4)
  discriminators = 2 * both + 2 * 3 * both - 2 * images
  assert flops == generators - first + discriminators
  before = float(run()['gen_s'])
  for _ in range(3):
    after = float(run()['gen_s'])
  assert after < before


@pytest.mark.parametrize('name, value', (
  ('resolution', 28), ('resolution', 66), ('batch_size', 0), ('width', 1),
  ('blocks', 0), ('rounds', 0),
))  # fmt: skip
def test_mistakes_are_named(speed, name, value):
  speed.check_flags()
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=f'--{name} '):
      speed.check_flags()


def test_program_and_its_seconds(speed):
  program, seconds = speed.sides.timed_compile(jax.jit(lambda x: x + 1), 1.0)
  assert program(1.0) == 2
  assert len(seconds) == 2 and min(seconds) > 0


def test_report_without_torch(speed, monkeypatch):
  monkeypatch.setattr(speed.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(speed.jax.config, 'update', lambda name, value: None)
  done = lambda setup, state: (lambda: None, (1.0, 2.0))
  monkeypatch.setattr(speed, 'jaxseg_side', done)
  sizes = dict(resolution=32, batch_size=2, width=4, blocks=1)
  with flagsaver.flagsaver(**sizes, rounds=1):
    report = speed.run()
  assert 'pip install torch' in report
  assert '| cyclegan_step | 1 |' in report
  assert '| cyclegan_step | 1.0 | 2.0 |' in report
  assert 'width 4, 1 blocks' in report
