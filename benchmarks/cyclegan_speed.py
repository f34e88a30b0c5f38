"""Times CycleGAN's training step beside PyTorch's.

  python -m benchmarks.cyclegan_speed --resolution=128 --width=64 --batch_size=2

A step is one of both generators and one of both discriminators, equation 8
with the weights of the paper, without replay pools. `torch_cyclegan.py` is the
other side, with jaxseg's parameters. Both are first shown to compute the same
losses, gradients and updates, then run in turns (A B A B ...) in one process,
as in `benchmarks.speed`.
"""

import copy
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import sides, speed
from jaxseg.errors import UserError, friendly
from jaxseg.method import Method, TrainState
from jaxseg.methods import cyclegan
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

CASE = 'cyclegan_step'
NETWORKS = ('seg', 'g_si', 'd_s', 'd_i')
NUM_CLASSES, CHANNELS = 4, 3
LR = 2e-4
TOLERANCE = 1e-3
# Adam divides by the gradient: of one near zero not even the sign is certain.
CERTAIN = 1e-2

_WIDTH = flags.DEFINE_integer(
  'width', 64, "Channels of the generators' first layer."
)
_BLOCKS = flags.DEFINE_integer(
  'blocks', 9, 'Residual blocks of each generator.'
)
# Defined in `benchmarks.speed`.
for name in (
  'resolution', 'batch_size', 'rounds', 'repeats', 'dtype', 'clock', 'absolute',
  'check', 'compiled',
):  # fmt: skip
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


class Setup(NamedTuple):
  """What both sides are to compute.

  Attributes:
    resolution: side of the images.
    batch_size: images of the labelled, and of the unlabelled batch.
    width: channels of the generators' first layer.
    blocks: residual blocks of each generator.
    d_width: channels of the discriminators' first layer.
    dtype: 'float32' or 'bfloat16', of the convolutions.
  """

  resolution: int
  batch_size: int
  width: int = 64
  blocks: int = 9
  d_width: int = 64
  dtype: str = 'float32'


def make_method(setup: Setup) -> Method:
  """jaxseg's, without pools and averaged weights, at a constant rate."""
  adam = Optimizer(
    name='adam', lr=LR, schedule='constant', weight_decay=0.0, b1=0.5
  )
  return cyclegan.make(
    num_classes=NUM_CLASSES,
    resolution=setup.resolution,
    image_size=(setup.resolution,) * 2,
    channels=CHANNELS,
    total_steps=1,
    net=Net(
      'resnet_generator', setup.width, blocks=setup.blocks, norm='instance',
      dtype=setup.dtype,
    ),
    optimizer=adam,
    g_width=setup.width,
    g_blocks=setup.blocks,
    d_width=setup.d_width,
    d_optimizer=adam,
    pool_size=0,
  )  # fmt: skip


def make_batch(setup: Setup) -> dict[str, np.ndarray]:
  """Random images and labels; no pixel is void."""
  return sides.make_batch(
    dict(resolution=setup.resolution, num_classes=NUM_CLASSES), setup.batch_size
  )


def init(setup: Setup) -> TrainState:
  """The state before the first step."""
  # A simpler generator of random numbers compiles several times faster.
  key = jax.random.key(0, impl='unsafe_rbg')
  state = sides.quick_jit(make_method(setup).init)(key)
  return state.replace(rng=jax.random.key(0))


def jaxseg_side(
  setup: Setup, state: TrainState
) -> tuple[Callable[[], dict[str, Any]], tuple[float, float]]:
  """Compiles jaxseg's step.

  Returns:
    a function that makes one step and returns its losses; the seconds to lower
    and to compile it.
  """
  batch = jax.device_put(make_batch(setup))
  copy_tree = sides.quick_jit(lambda tree: jax.tree.map(jnp.copy, tree))
  state = copy_tree(state)  # it is donated
  step, seconds = sides.timed_compile(
    jax.jit(make_method(setup).train_step, donate_argnums=0), state, batch
  )

  def run():
    nonlocal state
    state, losses = step(state, batch)
    return jax.block_until_ready((state, losses))[1]

  return run, seconds


def torch_trainer(setup: Setup, state: TrainState) -> tuple[Any, Any]:
  """PyTorch's side with the parameters of a state: (trainer, batch)."""
  import torch

  from benchmarks import torch_cyclegan as peer
  from benchmarks.torch_segmenters import load

  device, _ = sides.start_torch()
  generator = lambda *channels, tanh: peer.Generator(
    *channels, setup.width, setup.blocks, tanh
  )
  nets = {
    'seg': generator(CHANNELS, NUM_CLASSES, tanh=False),
    'g_si': generator(NUM_CLASSES, CHANNELS, tanh=True),
    'd_s': peer.PixelDiscriminator(NUM_CLASSES, setup.d_width),
    'd_i': peer.PixelDiscriminator(CHANNELS, setup.d_width),
  }
  for name, net in nets.items():
    load(net, {'params': state.params[name]})
    net.to(device, memory_format=torch.channels_last)
  batch = {k: sides.to_torch(x, device) for k, x in make_batch(setup).items()}
  batch['label'] = batch['label'].long()
  return peer.Trainer(nets, NUM_CLASSES, setup.dtype), peer.Batch(**batch)


def torch_side(
  setup: Setup, state: TrainState, compiled: bool = False
) -> tuple[Callable[[], dict[str, Any]], int]:
  """Builds PyTorch's step; the GPU has finished when a run returns.

  With `compiled` torch.compile makes both losses and their gradients, at the
  first run.

  Returns:
    a function that makes one step and returns its losses; the operations of a
    step's convolutions, a multiply-add as two.
  """
  from torch.utils.flop_counter import FlopCounterMode

  trainer, batch = torch_trainer(setup, state)
  _, wait = sides.start_torch()
  with FlopCounterMode(display=False) as counter:
    trainer.step(batch)
  if compiled:
    sides.compile_methods(trainer, trainer.FIRST_ORDER)

  def run():
    losses = trainer.step(batch)
    wait()
    return losses

  return run, counter.get_total_flops()


def check_same(resolution: int = 32, width: int = 8, blocks: int = 2) -> str:
  """Shows at a tiny size that both steps are the same.

  Returns:
    a sentence with the largest relative difference.

  Raises:
    AssertionError: losses, gradients or updates differ by more than TOLERANCE.
  """
  found = differences(Setup(resolution, 2, width, blocks, d_width=8))
  wrong = {k: v for k, v in found.items() if not v <= TOLERANCE}
  if wrong:
    raise AssertionError(f"jaxseg's and PyTorch's steps differ in {wrong}")
  return (
    "jaxseg's and PyTorch's steps agree in losses, gradients and updates; the "
    f'largest relative difference is {max(found.values()):.1e}.'
  )


def differences(setup: Setup) -> dict[str, float]:
  """Largest relative differences after one step from the same parameters.

  Returns:
    of each loss; of each network's gradient against the largest; of its
    updates against the learning rate, where the gradient is at least CERTAIN
    times the largest.
  """
  import torch

  before = init(setup)
  trainer, torch_batch = torch_trainer(setup, before)
  with jax.default_matmul_precision('highest'):
    step = sides.quick_jit(make_method(setup).train_step)
    after, losses = step(before, make_batch(setup))
  with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
    theirs = trainer.step(torch_batch)
  found = {
    f'loss {name}': abs(float(losses[name]) / float(loss) - 1)
    for name, loss in theirs.items()
  }
  for name, net in trainer.nets.items():
    ours = _in_torch(net, after.params[name])
    moment = _in_torch(net, optax.tree.get(after.opt_state[name], 'mu'))
    peer = _flat(p.detach() for p in net.parameters())
    grads = _flat(p.grad for p in net.parameters())
    largest = np.abs(grads).max()
    # Adam's first moment is 1 - b1 of the gradient.
    found[f'gradient of {name}'] = np.abs(2 * moment - grads).max() / largest
    certain = np.abs(grads) > CERTAIN * largest
    found[f'update of {name}'] = np.abs(ours - peer)[certain].max() / LR
  return {name: float(value) for name, value in found.items()}


def _in_torch(net, tree):
  """jaxseg's parameters, or alike, as a vector in the order of PyTorch's."""
  from benchmarks.torch_segmenters import load

  twin = load(copy.deepcopy(net), {'params': tree})
  return _flat(p.detach() for p in twin.parameters())


def _flat(tensors):
  return np.concatenate([x.cpu().numpy().ravel() for x in tensors])


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  if FLAGS.resolution < 32 or FLAGS.resolution % 4:
    raise UserError(
      f'--resolution is {FLAGS.resolution}, must be a multiple of 4 from 32.'
    )
  for name, least in (
    ('batch_size', 1), ('width', 2), ('blocks', 1), ('rounds', 1),
  ):  # fmt: skip
    if FLAGS[name].value < least:
      raise UserError(
        f'--{name} is {FLAGS[name].value}, must be at least {least}.'
      )


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  # Compile times are those of a first start.
  jax.config.update('jax_enable_compilation_cache', False)
  with_torch = importlib.util.find_spec('torch') is not None
  setup = Setup(
    FLAGS.resolution,
    FLAGS.batch_size,
    _WIDTH.value,
    _BLOCKS.value,
    dtype=FLAGS.dtype,
  )
  lines = [
    check_same() if with_torch and FLAGS.check else '',
    '' if with_torch else speed.NO_TORCH,
  ]
  state = init(setup)
  step, seconds = jaxseg_side(setup, state)
  every, flops, failed = [{CASE: step}], 0, {}
  if with_torch:
    step, flops = torch_side(setup, state)
    every.append({CASE: step})
  if with_torch and FLAGS.compiled:
    step, _ = torch_side(setup, state, compiled=True)
    runs, failed = speed.able({CASE: step})
    every.append(runs)
  on_cpu = jax.default_backend() == 'cpu'
  repeats = FLAGS.repeats or (1 if on_cpu else 10)
  times = speed.measure(every, FLAGS.rounds, repeats, FLAGS.clock)
  absolute = not on_cpu if FLAGS.absolute is None else FLAGS.absolute
  lines += [
    describe(setup, state, flops),
    speed.table([CASE], times, absolute),
    *speed.failures(failed),
    speed.compile_table({CASE: seconds}),
  ]
  return '\n\n'.join(line for line in lines if line)


def describe(setup: Setup, state: TrainState, flops: int) -> str:
  """What was measured and where, in two sentences."""
  millions = [
    sum(x.size for x in jax.tree.leaves(state.params[name])) / 1e6
    for name in NETWORKS
  ]
  work = f', {flops / 1e9:.1f} GFLOP a step' if flops else ''
  return (
    f'{setup.resolution} px, batches of {setup.batch_size} labelled and as '
    f'many unlabelled images, width {setup.width}, {setup.blocks} blocks, '
    f'{NUM_CLASSES} classes; parameters of {", ".join(NETWORKS)}: '
    f'{", ".join(f"{m:.2f}" for m in millions)} M{work}. {setup.dtype}, '
    f'{FLAGS.clock} time, {FLAGS.rounds} rounds; {speed.machine()}'
  )


def main(argv: list[str]) -> None:
  """Prints the report."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  with friendly():
    print(run())


if __name__ == '__main__':
  # Both sides share a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  # PyTorch's waiting threads would spin, see `benchmarks.speed`.
  os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
  app.run(main)
