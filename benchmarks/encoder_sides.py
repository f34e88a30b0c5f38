"""The encoder's training step on both sides of the comparison.

Both start from the same parameters and see the same batch; with Adam in place
of Ranger, which PyTorch does not have.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import sides
from jaxseg.method import Method, TrainState
from jaxseg.methods import semantic_gan_encoder
from jaxseg.nets.stylegan2 import make_noise

Run = Callable[[], dict[str, Any]]


def make_method(setup: sides.Setup, **changes: Any) -> Method:
  """The encoder stage whose widths go with those of the generator.

  Args:
    setup: see `sides.Setup`.
    **changes: other arguments of the stage's `make`.
  """
  a = dict(setup.arguments)
  sizes = {k: a.pop(k) for k in ('num_classes', 'resolution', 'channels')}
  return semantic_gan_encoder.make(
    **sizes,
    gan=a,
    width=sides.narrow(a['channel_max']),
    depths=setup.depths,
    features=a['channel_max'],
    perceptual_kind=setup.perceptual,
    optimizer='adam',
    dtype=a['dtype'],
    **changes,
  )


def init(
  setup: sides.Setup, state: TrainState, e_params: Any
) -> tuple[Method, TrainState]:
  """The stage and its state before the first step, on a GAN stage's state."""
  method = make_method(setup)
  # The stage reads averaged weights; PyTorch's side has these.
  state = state.replace(ema={'g': state.params['g']})
  key = jax.random.key(0, impl='unsafe_rbg')  # quicker to compile
  start = sides.quick_jit(method.init)(key, state)
  return method, start.replace(
    rng=jax.random.key(0), params={'e': e_params}, ema={'e': e_params}
  )


def jaxseg_side(
  setup: sides.Setup, state: TrainState, e_params: Any
) -> tuple[Run, tuple[float, float]]:
  """Compiles jaxseg's step.

  Returns:
    a function that makes one step and returns its losses; the seconds to lower
    and to compile it.
  """
  method, state = init(setup, state, e_params)
  batch = jax.device_put(sides.make_batch(setup.arguments, setup.batch_size))
  copy_tree = sides.quick_jit(lambda tree: jax.tree.map(jnp.copy, tree))
  state = copy_tree(state)  # it is donated
  step, seconds = sides.timed_compile(
    jax.jit(method.train_step, donate_argnums=0), state, batch
  )

  def run():
    nonlocal state
    state, losses = step(state, batch)
    return jax.block_until_ready((state, losses))[1]

  return run, seconds


def torch_trainer(
  setup: sides.Setup, state: TrainState, e_params: Any, w_avg: Any
) -> tuple[Any, Any]:
  """PyTorch's side with these parameters: (trainer, batch)."""
  from benchmarks.torch_encoder import EncoderTrainer
  from benchmarks.torch_steps import Batch

  device, _ = sides.start_torch()
  nets = sides.torch_networks(setup, state, e_params, device)
  batch = sides.make_batch(setup.arguments, setup.batch_size)
  batch = {k: sides.to_torch(x, device) for k, x in batch.items()}
  batch['label'] = batch['label'].long()
  w_avg = sides.to_torch(w_avg, device)
  return EncoderTrainer(nets, w_avg), Batch(**batch)


def torch_side(
  setup: sides.Setup,
  state: TrainState,
  e_params: Any,
  compiled: bool = False,
) -> Run:
  """Builds PyTorch's step; the GPU has finished when a run returns."""
  _, start = init(setup, state, e_params)
  trainer, batch = torch_trainer(setup, state, e_params, start.extra['w_avg'])
  _, wait = sides.start_torch()
  if compiled:
    sides.compile_methods(trainer, trainer.FIRST_ORDER)

  def run():
    losses = trainer.step(batch)
    wait()
    return losses

  return run


def differences(
  setup: sides.Setup, state: TrainState, e_params: Any
) -> dict[str, float]:
  """Largest relative differences of a step from the same parameters.

  Returns:
    of each term of the loss; of the gradient after clipping, against its
    largest entry.
  """
  from benchmarks.torch_layers import load

  method, before = init(setup, state, e_params)
  trainer, batch = torch_trainer(setup, state, e_params, before.extra['w_avg'])
  ours = sides.make_batch(setup.arguments, setup.batch_size)
  with jax.default_matmul_precision('highest'):
    after, losses = sides.quick_jit(method.train_step)(before, ours)
  # The maps that the method draws in its first step.
  key, _ = jax.random.split(jax.random.fold_in(before.rng, before.step))
  noise = make_noise(key, 2 * setup.batch_size, setup.arguments['resolution'])
  device, _ = sides.start_torch()
  theirs = trainer.step(batch, [sides.to_torch(x, device) for x in noise])
  found = {
    f'encoder {name}': abs(float(losses[name]) / float(loss) - 1)
    for name, loss in theirs.items()
  }
  moment = optax.tree.get(after.opt_state['e'], 'mu')
  twin = load(copy.deepcopy(trainer.e), moment)
  flat = lambda tensors: np.concatenate(
    [x.cpu().numpy().ravel() for x in tensors]
  )
  # Adam's first moment is 1 - b1 of the gradient.
  ours = 10 * flat(p.detach() for p in twin.parameters())
  # Small images leave the finest level of the pyramid without gradient.
  zero = lambda p: p.detach() * 0
  grads = flat(
    zero(p) if p.grad is None else p.grad for p in trainer.e.parameters()
  )
  found['encoder gradient'] = float(
    np.abs(ours - grads).max() / np.abs(grads).max()
  )
  return found
