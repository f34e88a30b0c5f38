"""The speed comparisons compare the same computation, and count right."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from absl.testing import flagsaver

from jaxseg.errors import UserError
from jaxseg.methods import supervised
from jaxseg.nets.layers import Conv
from jaxseg.nets.segmenters import Net
from jaxseg.ops.conv import conv2d_transpose


@pytest.fixture
def benchmark_of(monkeypatch):
  """Imports a module of benchmarks/, flags parsed."""
  monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])

  def load(name):
    module = importlib.import_module(f'benchmarks.{name}')
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    return module

  return load


@pytest.fixture
def speed(benchmark_of):
  return benchmark_of('speed')


def test_both_sides_compute_the_same(speed):
  pytest.importorskip('torch', reason='PyTorch is needed to compare with it')
  assert 'agree' in speed.check_outputs(resolution=16)


def test_measures_in_turns(speed):
  calls = []
  side = lambda name: {'case': lambda: calls.append(name)}
  times = speed.measure([side('a'), side('b')], rounds=2, repeats=1)
  assert ''.join(calls) == 'ab' + 'abab'
  assert [len(t['case']) for t in times] == [2, 2]


def test_amortised_and_table(speed):
  ours = {'gan_step': [2.0], 'r1_step': [18.0], 'path_step': [6.0]}
  theirs = {case: [3 * t for t in ms] for case, ms in ours.items()}
  for times in (ours, theirs):
    speed.add_amortised(times)
  assert ours['gan_amortised'] == [4.0]
  lines = speed.table(['gan_amortised'], [ours, theirs], absolute=True)
  assert lines.splitlines()[2] == (
    '| gan_amortised | 1 | 3.00 (3.00 to 3.00) | 4.0 (4.0) | 12.0 (12.0) |'
  )


def test_a_failing_compiler_leaves_a_dash(speed):
  def fail():
    raise RuntimeError('no second derivative\nand more lines')

  able, failed = speed.able({'gan_step': lambda: None, 'r1_step': fail})
  assert list(able) == ['gan_step']
  (sentence,) = speed.failures(failed)
  assert 'r1_step (RuntimeError: no second derivative)' in sentence
  every = {'gan_step': lambda: None, 'r1_step': lambda: None}
  times = speed.measure([every, every, able], rounds=1, repeats=1)
  speed.add_amortised(times[2])  # one of its parts is missing
  assert times[2].keys() == {'gan_step'}
  lines = speed.table(list(every), times, absolute=True).splitlines()
  assert 'PyTorch compiled' in lines[0]
  assert '–' not in lines[2]
  cells = lines[3].split(' | ')
  assert cells[3] == '–' and cells[-1] == '– |'


def test_operations_by_hand(benchmark_of):
  flops = benchmark_of('flops')
  x = jnp.zeros((2, 8, 8, 3))
  net = Conv(4)
  params = net.init(jax.random.key(0), x)
  forward = 2 * 2 * 8 * 8 * 9 * 3 * 4
  assert flops.count(net.apply, params, x) == forward
  loss = lambda params, x: jnp.square(net.apply(params, x)).sum()
  assert flops.count(jax.grad(loss, (0, 1)), params, x) == 3 * forward
  product = lambda a, b: a @ b
  a, b = jnp.zeros((5, 6)), jnp.zeros((6, 7))
  assert flops.count(product, a, b) == 2 * 5 * 6 * 7
  assert flops.count(product, a, b, products=False) == 0
  narrow = lambda a, b: jnp.zeros((5, 7)) + a[:, :1] @ b[:1]
  either = lambda which: jax.lax.cond(which, product, narrow, a, b)
  assert flops.count(either, True) == 2 * 5 * 6 * 7
  square = jnp.zeros((4, 4))
  repeat = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, 3)[0]
  assert flops.count(jax.jit(repeat), square) == 3 * 2 * 4**3
  endless = lambda x: jax.lax.while_loop(jnp.any, lambda x: x @ x, x)
  with pytest.raises(ValueError, match='while loop'):
    flops.count(endless, square)


def test_doubled_size_counts_no_zeros(benchmark_of):
  """A transposed convolution multiplies each input with each tap once."""
  flops = benchmark_of('flops')
  x, w = jnp.zeros((1, 4, 4, 3)), jnp.zeros((2, 2, 3, 5))
  assert flops.count(conv2d_transpose, x, w) == 2 * 16 * 4 * 3 * 5


def test_share_of_the_peak(benchmark_of):
  peak = benchmark_of('peak')
  run, count = peak.product_run(8, 'float32')
  assert run().shape == (8, 8) and count == peak.PRODUCTS * 2 * 8**3
  # 10 and 8 TFLOP/s beside 20 and 40.
  times = {'product': [1.0, 0.5], 'gan_step': [200.0, 250.0]}
  lines = peak.table(times, {'gan_step': [2e12]}, int(2e10)).splitlines()
  assert lines[2] == '| product | 0.02 | 30 | 100.0% (100.0% to 100.0%) |'
  assert lines[3] == '| gan_step | 2 | 9 | 35.0% (20.0% to 50.0%) |'


def test_mean_operations_of_a_step(benchmark_of):
  peak, sides = benchmark_of('peak'), benchmark_of('sides')
  arguments = sides.gan_arguments(8, 8) | dict(d_m_scales=1, mapping_depth=1)
  found = peak.step_flops(arguments, 1)
  plain, r1, path, mean = (values[0] for values in found.values())
  assert 0 < plain < min(r1, path)
  assert mean == plain + (r1 - plain) / 16 + (path - plain) / 4


def test_programs_of_a_config(benchmark_of):
  compile_time = benchmark_of('compile_time')
  config = compile_time.load('configs/quickstart.py:avatars', 32)
  shapes = {n: x for n, _, x in compile_time.programs(config, 'encoder', 6)}
  assert set(shapes) == set(compile_time.PROGRAMS)
  assert shapes['train_step'][-1]['unlabelled'].shape == (16, 32, 32, 3)
  built = compile_time.build(config, 'unet', 6, ['predict'], 'wall')
  lower, compiled, count = built['predict']
  assert lower > 0 and compiled > 0 and count > 100


def test_programs_that_take_too_long(benchmark_of):
  compile_time = benchmark_of('compile_time')
  first = {'predict': (1.0, 2.0, 1234), 'refine': (1.0, 60.0, 5)}
  second = {'predict': (1.0, 9.5, 1234), 'refine': (1.0, 1.0, 5)}
  lines = compile_time.table({'s': (first, second)}).splitlines()
  assert lines[2] == '| s predict | 1,234 | 1.0 | 2.0 | **10.5** |'
  assert lines[3] == '| s refine | 5 | 1.0 | **60.0** | 2.0 |'


@pytest.mark.parametrize('name, value, sentence', (
  ('programs', ['train'], '--programs has train; valid'),
  ('stages', ['cats'], '--stages has cats; the configs have'),
  ('configs', ['configs/none.py'], "'configs/none.py', which is not a file"),
  ('num_classes', 1, '--num_classes is 1'),
))  # fmt: skip
def test_mistakes_of_compile_time(benchmark_of, name, value, sentence):
  compile_time = benchmark_of('compile_time')
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=sentence):
      compile_time.check_flags()
      compile_time.chosen()


@pytest.fixture
def scaling(benchmark_of, monkeypatch):
  """With a smaller network in place of the three, compiled fast."""
  module = benchmark_of('scaling')
  method = supervised.make(
    num_classes=8, resolution=32, channels=3, total_steps=1,
    net=Net(width=4, depth=1),
  )  # fmt: skip
  make_step = lambda *_: (method, lambda key: method.init(key, None))
  monkeypatch.setattr(module, 'make_step', make_step)
  with flagsaver.flagsaver(
    channel_max=8, rounds=1, resolution=32, batch_size=4
  ):
    yield module


def test_memory_grows_with_the_images(scaling, monkeypatch):
  points = {
    ('unet', 32, n): scaling.measure('unet', 32, n, False) for n in (2, 4)
  }
  two, four = points.values()
  assert four.temporary > 1.5 * two.temporary > 0
  images = 2 * 32 * 32 * 4 * 4  # of 3 channels, and labels
  assert four.arguments - two.arguments == images
  points['unet', 64, 4] = two._replace(milliseconds=(3.0,))
  points['unet', 128, 4] = 'out of memory'
  lines = scaling.sizes_table(points).splitlines()
  assert lines[2].endswith('| – |')
  assert lines[4].endswith('| 1.00 |')
  assert '| out of memory |' in lines[5]


def test_a_batch_over_devices(scaling):
  runs = scaling.sharded_runs('unet', [1, 2])
  for side in runs.values():
    side['unet']()
  assert list(runs) == ['1', '2']


@pytest.mark.parametrize('name, value', (
  ('steps', []), ('sides', ['100']), ('batches', ['x']),
  ('batches', ['6']), ('device_counts', ['3']),
))  # fmt: skip
def test_mistakes_of_scaling(scaling, name, value):
  scaling.check_flags()
  with flagsaver.flagsaver(**{name: value}):
    with pytest.raises(UserError, match=f'--{name} has'):
      scaling.check_flags()


def test_optimised_one_by_one_reaches_the_same(benchmark_of, monkeypatch):
  """Losses after a few steps; of images that only one side runs, none."""
  pytest.importorskip('torch', reason='PyTorch is needed to compare with it')
  tto, sides = benchmark_of('tto_speed'), benchmark_of('sides')
  setup = sides.Setup(
    sides.gan_arguments(16, 8), tto_steps=3, perceptual='discriminator',
    depths=(1, 1, 1, 1),
  )  # fmt: skip
  quick = lambda function, *args: (
    sides.quick_jit(function.__wrapped__),
    (1.0, 2.0),
  )
  monkeypatch.setattr(sides, 'timed_compile', quick)
  with jax.default_matmul_precision('highest'):
    runs, failed = tto.make_runs(setup, 2, False, True)
  assert not failed
  found = tto.measure(runs, 2, 1, 1, 'wall')
  assert [len(side.losses) for side in found] == [2, 1]
  assert found[1].losses[0] == pytest.approx(found[0].losses[0], rel=1e-3)
  lines = tto.table(found).splitlines()
  assert lines[2].startswith('| jaxseg | 2 | 1 |')
  assert lines[3].startswith('| PyTorch | 1 |')
