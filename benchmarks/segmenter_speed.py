"""Times training steps of jaxseg's segmenters beside PyTorch's.

  python -m benchmarks.segmenter_speed --resolution=128 --batch_size=8

A step is a forward pass with the statistics of the batch, the mean cross
entropy, the gradient and AdamW. README.md beside this file says what the peers
are and how to install them. Both sides run in turns (A B A B ...) in one
process, as in `benchmarks.speed`.
"""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import jaxseg  # noqa: F401  its XLA flag counts only before JAX starts
from benchmarks import flops, sides, speed
from jaxseg import optimizers
from jaxseg.errors import UserError, friendly
from jaxseg.losses.segmentation import cross_entropy
from jaxseg.nets import segmenters

NUM_CLASSES = 4
TOLERANCE = 1e-3
LR, WEIGHT_DECAY = 1e-3, 1e-4

NO_TORCH = (
  'PyTorch is not installed, so only jaxseg runs; `pip install torch` adds the '
  'comparison.'
)
NO_PEER = (
  'segmentation_models_pytorch is not installed, so the cases beside it are '
  'left out; `pip install segmentation-models-pytorch` adds them.'
)


class Case(NamedTuple):
  """A row of the table.

  Attributes:
    net: jaxseg's network, but for its normalisation and dtype.
    peer: 'same': the same network in PyTorch; else the name of a class of
      segmentation_models_pytorch, and the name of its encoder.
  """

  net: segmenters.Net
  peer: str


U_NET = segmenters.Net(arch='unet')
CASES = {
  'unet_64': Case(U_NET, 'same'),
  'unet_64_beside_smp': Case(U_NET, 'Unet resnet18'),
  'unet_16': Case(U_NET._replace(width=16), 'same'),
  'deeplab_v3plus': Case(
    segmenters.Net(arch='deeplab_v3plus', backbone='resnet50'),
    'DeepLabV3Plus resnet50',
  ),
}

_NETWORKS = flags.DEFINE_list('networks', list(CASES), 'What to measure.')
_NORM = flags.DEFINE_enum(
  'norm',
  'batch',
  ['batch', 'group'],
  'Of jaxseg and of the same network in PyTorch; the others have batch norm.',
)
# Defined in `benchmarks.speed`.
for name in (
  'resolution', 'batch_size', 'rounds', 'repeats', 'dtype', 'clock', 'absolute',
  'compiled',
):  # fmt: skip
  flags.declare_key_flag(name)
FLAGS = flags.FLAGS


class Setup(NamedTuple):
  """What all sides are to compute.

  Attributes:
    resolution: side of the images.
    batch_size: images of a step.
    norm: 'batch' or 'group'.
    dtype: 'float32' or 'bfloat16', of the convolutions.
  """

  resolution: int
  batch_size: int
  norm: str = 'batch'
  dtype: str = 'float32'


class Side(NamedTuple):
  """One network, ready to be trained.

  Attributes:
    name: what it is.
    run: makes one step and waits for its end.
    parameters: how many it has.
    flops: of the convolutions of one image's forward pass.
  """

  name: str
  run: Callable[[], Any]
  parameters: int
  flops: int


def make_batch(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
  """Images [N, R, R, 3] in [-1, 1] and labels int32 [N, R, R], none void."""
  rng = np.random.default_rng(0)
  shape = setup.batch_size, setup.resolution, setup.resolution
  image = rng.uniform(-1, 1, (*shape, 3)).astype(np.float32)
  return image, rng.integers(0, NUM_CLASSES, shape, np.int32)


def init(net: segmenters.Net) -> tuple[Any, dict[str, Any]]:
  """Returns (module, its variables)."""
  module = segmenters.build(net, NUM_CLASSES)
  image = jnp.zeros((1, 32, 32, 3))
  key = jax.random.key(0, impl='unsafe_rbg')  # quicker to compile
  variables = sides.quick_jit(module.init)(key, image)
  return module, {'batch_stats': {}, **variables}


def mean_loss(module, params, stats, image, label):
  """(cross entropy, (logits, new batch statistics)) in training."""
  logits, updated = module.apply(
    {'params': params, 'batch_stats': stats},
    image,
    train=True,
    mutable=['batch_stats'],
  )
  loss = cross_entropy(logits, label)
  return loss, (logits, updated.get('batch_stats', {}))


def jaxseg_side(net: segmenters.Net, setup: Setup) -> Side:
  """Compiles jaxseg's step."""
  net = net._replace(norm=setup.norm, dtype=setup.dtype)
  module, variables = init(net)
  tx = optimizers.make(
    optimizers.Optimizer(lr=LR, schedule='constant', weight_decay=WEIGHT_DECAY),
    total_steps=1,
  )
  params, stats = variables['params'], variables['batch_stats']
  state = params, stats, tx.init(params)
  batch = jax.device_put(make_batch(setup))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, image, label):
    params, stats, opt_state = state
    loss_of = lambda params: mean_loss(module, params, stats, image, label)
    (loss, (_, stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
      params
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(jnp.add, params, updates)
    return (params, stats, opt_state), loss

  count = sum(x.size for x in jax.tree.leaves(params))
  operations = forward_flops(module, variables, setup.resolution)

  def run():
    nonlocal state
    state, loss = step(state, *batch)
    return jax.block_until_ready((state, loss))[1]

  return Side(f'jaxseg {net.arch}, width {net.width}', run, count, operations)


def forward_flops(module: Any, variables: Any, resolution: int) -> int:
  """Operations of all convolutions for one image, a multiply-add as two."""
  image = jax.ShapeDtypeStruct((1, resolution, resolution, 3), jnp.float32)
  return flops.count(module.apply, variables, image, products=False)


def torch_side(case: Case, setup: Setup, compiled: bool = False) -> Side:
  """Builds PyTorch's step; the GPU has finished when a run returns.

  With `compiled` torch.compile makes the network's passes, at the first run.
  """
  import torch
  from torch.utils.flop_counter import FlopCounterMode

  from benchmarks import torch_segmenters

  device, wait = sides.start_torch()
  module = torch_segmenters.build(case.peer, case.net, setup.norm, NUM_CLASSES)
  module = module.to(device, memory_format=torch.channels_last)
  image, label = (sides.to_torch(x, device) for x in make_batch(setup))
  with FlopCounterMode(display=False) as counter, torch.no_grad():
    module.eval()(image[:1])
  if compiled:
    module.compile()
  step = torch_segmenters.step(
    module.train(), image, label.long(), setup.dtype, LR, WEIGHT_DECAY
  )

  def run():
    loss = step()
    wait()
    return loss

  name = 'the same in PyTorch' if case.peer == 'same' else f'smp.{case.peer}'
  count = sum(p.numel() for p in module.parameters())
  return Side(name, run, count, counter.get_total_flops())


def check_same(width: int = 8, depth: int = 2, resolution: int = 32) -> str:
  """Shows that 'same' is the same, in both normalisations.

  Returns:
    a sentence with the largest relative difference.

  Raises:
    AssertionError: logits or gradients differ by more than TOLERANCE.
  """
  found = {}
  for norm in ('batch', 'group'):
    net = U_NET._replace(width=width, depth=depth, norm=norm)
    found |= {
      f'{k}, {norm}': v for k, v in _differences(net, resolution).items()
    }
  wrong = {k: v for k, v in found.items() if not v <= TOLERANCE}
  if wrong:
    raise AssertionError(f"jaxseg's and PyTorch's U-Net differ in {wrong}")
  return (
    "jaxseg's and PyTorch's U-Net agree in logits and gradients; the largest "
    f'relative difference is {max(found.values()):.1e}.'
  )


def _differences(net, resolution):
  import torch.nn.functional as F

  from benchmarks import torch_segmenters

  module, variables = init(net)
  setup = Setup(resolution, 2, net.norm)
  image, label = make_batch(setup)
  args = variables['params'], variables['batch_stats'], image, label
  loss_of = functools.partial(mean_loss, module)
  with jax.default_matmul_precision('highest'):
    grad = sides.quick_jit(jax.grad(loss_of, has_aux=True))
    grads, (logits, _) = grad(*args)
  device = sides.torch_device()
  peer = torch_segmenters.build('same', net, net.norm, NUM_CLASSES)
  peer = torch_segmenters.load(peer, variables).to(device)
  theirs = peer(sides.to_torch(image, device))
  F.cross_entropy(theirs, sides.to_torch(label, device).long()).backward()
  pairs = {'logits': (logits, theirs.permute(0, 2, 3, 1))}
  for part, layer in (('encoder', 'down0'), ('decoder', 'up0')):
    weight = getattr(peer, part)[layer].conv0.weight
    ours = grads[part][layer]['conv0']['kernel']
    pairs[f'gradient of {layer}'] = ours, weight.grad.permute(2, 3, 1, 0)
  found = {}
  for name, (ours, theirs) in pairs.items():
    ours, theirs = np.asarray(ours), theirs.detach().cpu().numpy()
    found[name] = float(np.abs(ours - theirs).max() / np.abs(ours).max())
  return found


def check_flags() -> None:
  """Raises UserError for a value that cannot work."""
  unknown = sorted(set(_NETWORKS.value) - set(CASES))
  if unknown or not _NETWORKS.value:
    raise UserError(
      f'--networks has {", ".join(unknown) or "no network"}; valid, separated '
      f'by commas: {", ".join(CASES)}.'
    )
  if FLAGS.resolution < 32 or FLAGS.resolution % 32:
    raise UserError(
      f'--resolution is {FLAGS.resolution}, must be a multiple of 32.'
    )
  # Batch norm behind DeepLab's image pooling sees one pixel an image.
  if FLAGS.batch_size < 2:
    raise UserError(f'--batch_size is {FLAGS.batch_size}, must be at least 2.')
  if FLAGS.rounds < 1:
    raise UserError(f'--rounds is {FLAGS.rounds}, must be at least 1.')


def measure(
  case: Case,
  setup: Setup,
  with_peer: bool,
  compiled: bool,
  rounds: int,
  repeats: int,
  clock: str,
) -> tuple[list[Side], list[list[float]], str]:
  """Measures one case.

  Returns:
    its sides; of each, and of PyTorch compiled if asked for, the milliseconds
    a step; why torch.compile failed, or ''.
  """
  both = [jaxseg_side(case.net, setup)]
  if with_peer:
    both.append(torch_side(case, setup))
  runs, failed = [{'step': side.run} for side in both], {}
  if with_peer and compiled:
    able, failed = speed.able({'step': torch_side(case, setup, True).run})
    runs.append(able)
  times = speed.measure(runs, rounds, repeats, clock)
  return both, [t.get('step', []) for t in times], failed.get('step', '')


def networks_table(found: dict[str, list[Side]]) -> str:
  """Markdown: what the sides of each case are."""
  rows = [['case', 'network', 'parameters, M', 'GFLOP']]
  rows.append(['---'] * len(rows[0]))
  for case, both in found.items():
    rows += [
      [
        case,
        side.name,
        f'{side.parameters / 1e6:.2f}',
        f'{side.flops / 1e9:.2f}',
      ]
      for side in both
    ]
  return speed.markdown(rows)


def run() -> str:
  """Measures what the flags ask for; returns the report in Markdown."""
  check_flags()
  with_torch = importlib.util.find_spec('torch') is not None
  peers = {'same'} if with_torch else set()
  with_smp = importlib.util.find_spec('segmentation_models_pytorch') is not None
  if with_torch and with_smp:
    peers |= {case.peer for case in CASES.values()}
  setup = Setup(FLAGS.resolution, FLAGS.batch_size, _NORM.value, FLAGS.dtype)
  on_cpu = jax.default_backend() == 'cpu'
  repeats = FLAGS.repeats or (1 if on_cpu else 10)
  lines = [
    check_same() if with_torch else NO_TORCH,
    '' if with_smp else NO_PEER,
  ]
  found, times, failed = {}, {}, {}
  for name in (name for name in CASES if name in _NETWORKS.value):
    case = CASES[name]
    # Beside a missing package a U-Net would only be measured once more.
    if with_torch and case.peer not in peers:
      continue
    found[name], times[name], reason = measure(
      case, setup, case.peer in peers, FLAGS.compiled, FLAGS.rounds, repeats,
      FLAGS.clock,
    )  # fmt: skip
    if reason:
      failed[name] = reason
  absolute = not on_cpu if FLAGS.absolute is None else FLAGS.absolute
  lines.append(describe(setup))
  if found:
    each = zip(*times.values(), strict=True)
    each = [dict(zip(times, side, strict=True)) for side in each]
    lines.append(speed.table(list(found), each, absolute))
    lines += [*speed.failures(failed), networks_table(found)]
  return '\n\n'.join(line for line in lines if line)


def describe(setup: Setup) -> str:
  """What was measured and where, in a sentence."""
  return (
    f'{setup.resolution} px, batches of {setup.batch_size}, {NUM_CLASSES} '
    f'classes, {setup.norm} norm, {setup.dtype}, {FLAGS.clock} time, '
    f'{FLAGS.rounds} rounds; {speed.machine()}'
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
