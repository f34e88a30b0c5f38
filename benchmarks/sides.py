"""The two sides of the comparison: jaxseg and its PyTorch counterpart.

Each side is a dict: case -> function that runs the case to its end once. Both
start from the same parameters and see the same batches.
"""

import copy
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UserError
from jaxseg.method import TrainState
from jaxseg.methods import inversion, perceptual, semantic_gan
from jaxseg.nets.encoder import Encoder

# The lazy terms join the steps whose number these divide. 17 in place of the
# usual 16, so that there are steps with R1 and without path length.
R1_EVERY, PATH_EVERY = 17, 4
STEPS = {'gan_step': 1, 'r1_step': R1_EVERY, 'path_step': PATH_EVERY}
ENCODER = 'encoder_step'
TTO_BATCHES = {'tto_step_b1': 1, 'tto_step_b8': 8}

Runs = dict[str, Callable[[], Any]]


class Setup(NamedTuple):
  """What both sides are to compute.

  Attributes:
    arguments: of `semantic_gan.make`, see `gan_arguments`.
    batch_size: images of the labelled and of the unlabelled batch.
    tto_steps: steps of one test-time optimisation.
    perceptual: 'random' (VGG16's structure) or 'discriminator'.
    depths: residual blocks of the encoder's stages; these are ResNet-50's.
  """

  arguments: dict[str, Any]
  batch_size: int = 8
  tto_steps: int = 10
  perceptual: str = 'random'
  depths: tuple[int, ...] = (3, 4, 6, 3)


def gan_arguments(
  resolution: int,
  channel_max: int,
  channel_multiplier: float = 1.0,
  dtype: str = 'float32',
) -> dict[str, Any]:
  """All widths as fractions of `channel_max`; 512 gives the published ones."""
  return dict(
    num_classes=8,
    resolution=resolution,
    channels=3,
    w_dim=channel_max,
    channel_multiplier=channel_multiplier,
    channel_max=channel_max,
    d_m_width=narrow(channel_max),
    dtype=dtype,
  )


def narrow(width: int) -> int:
  """First layer's width of D_m and E; group norm needs 8 channels."""
  return max(8, width // 8)


def make_encoder(setup: Setup) -> Encoder:
  """The encoder whose widths go with those of the generator."""
  width = setup.arguments['channel_max']
  return Encoder(
    setup.arguments['resolution'],
    width,
    narrow(width),
    setup.depths,
    width,
    dtype=setup.arguments['dtype'],
  )


def make_batch(arguments: dict[str, Any], n: int) -> dict[str, np.ndarray]:
  """Random images and labels; no pixel is void."""
  rng = np.random.default_rng(0)
  size = arguments['resolution']
  image = lambda: rng.uniform(-1, 1, (n, size, size, 3)).astype(np.float32)
  label = rng.integers(0, arguments['num_classes'], (n, size, size), np.int32)
  return {'image': image(), 'label': label, 'unlabelled': image()}


def make_method(arguments: dict[str, Any]):
  """The GAN stage whose step numbers choose the lazy terms."""
  return semantic_gan.make(
    **arguments, r1_every=R1_EVERY, path_every=PATH_EVERY
  )


def init(setup: Setup) -> tuple[TrainState, Any]:
  """Returns (state of the GAN stage, parameters of the encoder)."""
  image = jnp.zeros((1, *(setup.arguments['resolution'],) * 2, 3))
  # A simpler generator of random numbers compiles several times faster.
  key = jax.random.key(0, impl='unsafe_rbg')
  state = quick_jit(make_method(setup.arguments).init)(key)
  e = quick_jit(make_encoder(setup).init)(key, image)
  return state.replace(rng=jax.random.key(0)), e['params']


def quick_jit(function: Callable[..., Any]) -> Callable[..., Any]:
  """For what runs once and is not timed: compiled fast, not well."""
  return jax.jit(function, compiler_options=quick_options())


def quick_options() -> dict[str, Any] | None:
  """Options of a compilation that is fast and does not optimise."""
  if jax.default_backend() != 'cpu':
    return None
  return {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }


def perceptual_weights(metric: perceptual.Perceptual, state: TrainState) -> Any:
  """Those of the metric's own network, or of D_r."""
  return metric.params() if metric.params else state.params['d_r']


def jaxseg_side(
  setup: Setup, cases: Iterable[str], state: TrainState, e_params: Any
) -> tuple[Runs, dict[str, tuple[float, float]]]:
  """Compiles jaxseg's programs.

  Returns:
    the runs, and for each program the seconds to lower and to compile it.
  """
  runs, seconds = {}, {}
  for case in cases:
    if case in TTO_BATCHES:
      function, values = jaxseg_inversion(
        setup, TTO_BATCHES[case], state, e_params
      )
      program, seconds[case] = timed_compile(jax.jit(function), *values)
      runs[case] = lambda program=program, values=values: jax.block_until_ready(
        program(*values)
      )
  if ENCODER in cases:
    from benchmarks import encoder_sides

    runs[ENCODER], seconds[ENCODER] = encoder_sides.jaxseg_side(
      setup, state, e_params
    )
  steps = [case for case in cases if case in STEPS]
  if not steps:
    return runs, seconds
  batch = jax.device_put(make_batch(setup.arguments, setup.batch_size))
  copy_tree = quick_jit(lambda tree: jax.tree.map(jnp.copy, tree))
  state = copy_tree(state)  # it is donated
  train_step = jax.jit(
    make_method(setup.arguments).train_step, donate_argnums=0
  )
  step, seconds['gan_step'] = timed_compile(train_step, state, batch)

  def run_step(number):
    nonlocal state
    number = jnp.asarray(number, jnp.int32)
    state, metrics = step(state.replace(step=number), batch)
    jax.block_until_ready((state, metrics))

  for case in steps:
    runs[case] = lambda number=STEPS[case]: run_step(number)
  return runs, seconds


def timed_compile(
  function: Any, *args: Any
) -> tuple[Callable[..., Any], tuple[float, float]]:
  """Returns a jitted function's program, seconds to lower and to compile it."""
  start = time.perf_counter()
  lowered = function.lower(*args)
  middle = time.perf_counter()
  compiled = lowered.compile()
  return compiled, (middle - start, time.perf_counter() - middle)


def jaxseg_inversion(
  setup: Setup, n: int, state: TrainState, e_params: Any
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """One test-time optimisation of n images: a function and its arguments.

  The function returns the best codes [n, L, D] and their losses [n].
  """
  g, d_r, _ = semantic_gan.networks(**setup.arguments)
  e = make_encoder(setup)
  metric = perceptual.make(setup.perceptual, d_r)

  def invert(g_params, e_params, weights, target, noise):
    model = inversion.Model(
      lambda w_plus, noise: g.apply(
        {'params': g_params}, w_plus, noise, method='synthesize'
      ),
      lambda images: e.apply({'params': e_params}, images),
      lambda images: metric.features(weights, images),
      lambda a, b: metric.distance(weights, a, b),
    )
    found = inversion.invert(
      model,
      target,
      model.encode(target),
      noise,
      steps=setup.tto_steps,
      schedule=lambda step: 0.1,
    )
    return found.w_plus, found.loss

  values = (
    state.params['g'],
    e_params,
    perceptual_weights(metric, state),
    make_batch(setup.arguments, n)['image'],
    semantic_gan.fixed_noise(setup.arguments['resolution']),
  )
  return invert, jax.device_put(values)


def torch_device() -> Any:
  """The device that matches JAX's.

  Raises:
    UserError: one of the two sees a GPU and the other does not.
  """
  import torch

  cuda = torch.cuda.is_available()
  if cuda != (jax.default_backend() == 'gpu'):
    raise UserError(
      f'JAX runs on {jax.default_backend()}, PyTorch on '
      f'{"cuda" if cuda else "cpu"}; install both for the same device, or set '
      'JAX_PLATFORMS=cpu and CUDA_VISIBLE_DEVICES= to compare on the CPU.'
    )
  return torch.device('cuda' if cuda else 'cpu')


def start_torch() -> tuple[Any, Callable[[], None]]:
  """Chooses what PyTorch runs on, and how, as JAX does.

  Returns:
    the device, and a function that waits until it has finished.
  """
  import torch

  device = torch_device()
  wait = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
  # What JAX does on GPUs unless told otherwise.
  torch.set_float32_matmul_precision('high')
  torch.backends.cudnn.benchmark = True
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  return device, wait


def torch_networks(
  setup: Setup, state: TrainState, e_params: Any, device: Any
) -> dict[str, Any]:
  """PyTorch's 'g', 'd_r', 'd_m', 'e' and 'perceptual' with these values."""
  import torch

  from benchmarks import torch_counterpart as nets
  from benchmarks.torch_layers import load

  a = setup.arguments
  dtype = getattr(torch, a['dtype'])
  size, width = a['resolution'], a['channel_max']
  channels = dict(
    channel_multiplier=a['channel_multiplier'], channel_max=width, dtype=dtype
  )
  g = nets.Generator(size, 3, a['num_classes'], width, **channels)
  d_r = nets.Discriminator(size, **channels)
  d_m = nets.MultiscaleDiscriminator(
    3 + a['num_classes'], width=a['d_m_width'], dtype=dtype
  )
  e = nets.Encoder(
    size, 3, width, narrow(width), setup.depths, width, dtype=dtype
  )
  loaded = {
    'g': load(g, state.params['g']),
    'd_r': load(d_r, state.params['d_r']),
    'd_m': load(d_m, state.params['d_m'], state.extra['spectral']),
    'e': load(e, e_params),
  }
  if setup.perceptual == 'discriminator':
    metric = nets.PerceptualDiscriminator(copy.deepcopy(loaded['d_r']))
  else:
    metric = load(
      nets.PerceptualVGG(), perceptual.make('random', None).params()
    )
  return {k: v.to(device) for k, v in (loaded | {'perceptual': metric}).items()}


def to_torch(x: Any, device: Any) -> Any:
  """NHWC to NCHW in channels-last memory (no copy); other ranks as they are."""
  import torch

  x = torch.tensor(np.asarray(x), device=device)
  return x.permute(0, 3, 1, 2) if x.ndim == 4 else x


def torch_side(
  setup: Setup,
  cases: Iterable[str],
  state: TrainState,
  e_params: Any,
  compiled: bool = False,
) -> Runs:
  """Builds PyTorch's runs; the GPU has finished when they return.

  `compiled` gives all first derivatives to torch.compile, which has no second
  ones: R1 and path lengths stay eager. The first run of a case compiles it.
  """
  from benchmarks import torch_steps

  device, wait = start_torch()
  nets = torch_networks(setup, state, e_params, device)
  runs = {}
  for case in cases:
    if case in TTO_BATCHES:
      runs[case] = torch_inversion(
        setup, TTO_BATCHES[case], copy.deepcopy(nets), compiled
      )
  if ENCODER in cases:
    from benchmarks import encoder_sides

    runs[ENCODER] = encoder_sides.torch_side(setup, state, e_params, compiled)
  steps = [case for case in cases if case in STEPS]
  if not steps:
    return runs
  batch = make_batch(setup.arguments, setup.batch_size)
  batch = torch_steps.Batch(
    to_torch(batch['image'], device),
    to_torch(batch['label'], device).long(),
    to_torch(batch['unlabelled'], device),
  )
  trainer = torch_steps.GanTrainer(
    nets['g'], nets['d_r'], nets['d_m'], setup.arguments['num_classes']
  )
  if compiled:
    compile_methods(trainer, trainer.FIRST_ORDER)

  def run_step(case):
    trainer.step(batch, r1=case == 'r1_step', path=case == 'path_step')
    wait()

  for case in steps:
    runs[case] = lambda case=case: run_step(case)
  return runs


def compile_methods(owner: Any, names: Iterable[str]) -> None:
  """Replaces methods of an object by what torch.compile makes of them."""
  import torch

  for name in names:
    setattr(owner, name, torch.compile(getattr(owner, name)))


def torch_inversion(
  setup: Setup, n: int, nets: dict[str, Any], compiled: bool = False
) -> Callable[..., tuple[Any, Any]]:
  """PyTorch's test-time optimisation of n images.

  Args:
    setup: see `Setup`.
    n: images of `make_batch`.
    nets: of `torch_networks`; they are frozen.
    compiled: whether torch.compile makes loss and gradient of each step.

  Returns:
    a function that makes a run and returns the codes and their losses; of the
    images from `first` to before `last` only, if they are given.
  """
  import torch

  from benchmarks import torch_steps

  device, wait = start_torch()
  g, e, metric = (
    nets[name].requires_grad_(False) for name in ('g', 'e', 'perceptual')
  )
  target = to_torch(make_batch(setup.arguments, n)['image'], device)
  noise = semantic_gan.fixed_noise(setup.arguments['resolution'])
  noise = [to_torch(x, device) for x in noise]
  losses = torch_steps.inversion_losses
  if compiled:
    losses = torch.compile(losses)

  def run(first=0, last=n):
    part = target[first:last]
    found = torch_steps.invert(
      g, e, metric, part, noise, setup.tto_steps, losses=losses
    )
    wait()
    return found

  return run
