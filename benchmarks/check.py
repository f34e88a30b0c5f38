"""Shows that both sides of the comparison compute the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import encoder_sides
from benchmarks.sides import (
  Setup,
  gan_arguments,
  init,
  make_batch,
  make_encoder,
  perceptual_weights,
  quick_jit,
  to_torch,
  torch_device,
  torch_networks,
)
from jaxseg.losses import gan
from jaxseg.methods import perceptual, semantic_gan
from jaxseg.nets.stylegan2 import noise_shapes


def compare(
  resolution: int = 32, channel_max: int = 16, n: int = 4
) -> dict[str, float]:
  """Runs every network on both sides, small and with random parameters.

  Returns:
    for each output the largest difference, relative to its largest value; the
    same of an encoder's training step.
  """
  setup = Setup(
    gan_arguments(resolution, channel_max), batch_size=n, depths=(2, 1, 1, 1)
  )
  state, e_params = init(setup)
  rng = np.random.default_rng(1)
  # Biases and noise strengths start at zero, where a fault would not show.
  move = lambda x: x + np.float32(0.1) * rng.standard_normal(x.shape, 'float32')
  jitter = lambda tree: jax.tree.map(move, jax.device_get(tree))
  state, e_params = state.replace(params=jitter(state.params)), jitter(e_params)
  with jax.default_matmul_precision('highest'):
    values = quick_jit(lambda *x: _jaxseg_outputs(setup, n, *x))(
      state, e_params
    )
  ours = jax.device_get(values)
  theirs = _torch_outputs(setup, n, state, e_params)
  found = {
    name: float(np.max(np.abs(value - theirs[name])) / np.max(np.abs(value)))
    for name, value in ours.items()
  }
  return found | encoder_sides.differences(setup, state, e_params)


def _inputs(setup, n):
  """z, noise, batch and path directions of `compare`, NHWC."""
  rng = np.random.default_rng(2)
  normal = lambda *shape: rng.standard_normal(shape, np.float32)
  size = setup.arguments['resolution']
  noise = [normal(n, *shape, 1) for shape in noise_shapes(size)]
  z, y = normal(n, setup.arguments['w_dim']), normal(n, size, size, 3)
  return z, noise, make_batch(setup.arguments, n), y


def _jaxseg_outputs(setup, n, state, e_params):
  z, noise, batch, y = _inputs(setup, n)
  g, d_r, d_m = semantic_gan.networks(**setup.arguments)
  metric = perceptual.make(setup.perceptual, d_r)
  weights = perceptual_weights(metric, state)
  real, fake = batch['unlabelled'], batch['image']
  image, logits = g.apply({'params': state.params['g']}, z, noise)
  codes = make_encoder(setup).apply({'params': e_params}, fake)
  synthesize = lambda w: g.apply(
    {'params': state.params['g']}, w, noise, method='synthesize'
  )[0]
  score = lambda x: d_r.apply({'params': state.params['d_r']}, x)
  variables = {
    'params': state.params['d_m'],
    'spectral': state.extra['spectral'],
  }
  label = jax.nn.one_hot(batch['label'], setup.arguments['num_classes'])
  maps, _ = d_m.apply(variables, fake, label, True, mutable=['spectral'])
  lengths = gan.path_length_penalty(synthesize, codes, y, jnp.zeros(()))[2]
  outputs = {
    'generator image': image,
    'generator logits': logits,
    'D_r scores': score(real),
    'D_r R1 penalty': gan.r1_penalty(score, real),
    'encoder codes': codes,
    'path lengths': lengths,
    'perceptual distance': metric.distance(
      weights, metric.features(weights, real), metric.features(weights, fake)
    ),
  }
  for i, scale in enumerate(maps):
    for j, x in enumerate(scale):
      outputs[f'D_m scale {i} layer {j}'] = x
  return outputs


def _torch_outputs(setup, n, state, e_params):
  import torch

  from benchmarks import torch_steps

  torch.set_float32_matmul_precision('highest')
  torch.backends.cudnn.allow_tf32 = False
  device = torch_device()
  nets = torch_networks(setup, state, e_params, device)
  g, d_r, metric = nets['g'], nets['d_r'], nets['perceptual']
  z, noise, batch, y = _inputs(setup, n)
  to = lambda x: to_torch(x, device)
  noise = [to(x) for x in noise]
  real, fake = to(batch['unlabelled']), to(batch['image'])
  w = g.mapping(to(z))[:, None].expand(-1, nets['e'].num_latents, -1)
  image, logits = g(w, noise)
  codes = nets['e'](fake)
  one_hot = torch.nn.functional.one_hot(to(batch['label']).long(), 8)
  maps = nets['d_m'](fake, one_hot.permute(0, 3, 1, 2).float(), update=True)
  path_image = g(codes, noise, label=False)[0]
  outputs = {
    'generator image': image,
    'generator logits': logits,
    'D_r scores': d_r(real),
    'D_r R1 penalty': torch_steps.r1_penalty(d_r, real),
    'encoder codes': codes,
    'path lengths': torch_steps.path_lengths(path_image, codes, to(y)),
    'perceptual distance': metric.distance(
      metric.features(real), metric.features(fake)
    ),
  }
  for i, scale in enumerate(maps):
    for j, x in enumerate(scale):
      outputs[f'D_m scale {i} layer {j}'] = x
  torch.backends.cudnn.allow_tf32 = True
  to_numpy = lambda x: x.detach().cpu().numpy()
  return {
    name: to_numpy(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)
    for name, x in outputs.items()
  }
