"""A published generator, never trained, with its encoder where it has one.

What `label_branch` learns labels on, and what test-time optimisation of a
pretrained generator needs. The weights are arguments everywhere, so that they
are no constants of a compiled program.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import writers
from jaxseg.errors import UserError
from jaxseg.methods import inversion, perceptual, semantic_gan
from jaxseg.nets import stylegan2
from jaxseg.published import networks
from jaxseg.published.folder import Pretrained

# Larger images are averaged to this before they are compared, as in pSp and
# in SemanticGAN's published inference.
COMPARED_SIZE = 256


class Frozen(NamedTuple):
  """The modules; their weights are in what `weights` returns.

  Attributes:
    g: the generator.
    e: the encoder, or None.
    d_r: the discriminator, or None.
    input_size: side of the images that e sees.
    adds_w_avg: whether the mean w is added to what e gives.
  """

  g: stylegan2.Generator
  e: nn.Module | None
  d_r: stylegan2.Discriminator | None
  input_size: int
  adds_w_avg: bool


def build(card: Mapping[str, Any], dtype: str = 'float32') -> Frozen:
  """Builds the modules.

  Args:
    card: what pretrained.json tells; 'networks' and 'adds_w_avg' suffice.
    dtype: of the generator's convolutions.

  Raises:
    UserError: there is no generator among them, or an encoder of label maps.
  """
  found = card['networks']
  name = 'g_ema' if 'g_ema' in found else 'g'
  if name not in found:
    raise UserError(
      f'the converted weights hold {", ".join(found)}, expected a generator; '
      'convert a file of kind stylegan2, semanticgan, psp, e4e or stylegan2-ada'
    )
  make = lambda name: networks.module(
    found[name]['arch'], found[name]['settings']
  )
  g = make(name).clone(dtype=dtype)
  e = make('e') if 'e' in found else None
  d_r = make('d_r') if 'd_r' in found else None
  size = found['e']['settings'].get('input_size', 0) if e else 0
  seen = getattr(e, 'channels', g.channels)
  if seen not in (1, g.channels):
    raise UserError(
      f'the encoder of the converted weights sees {seen} channels, but the '
      f'generator draws {g.channels}: it is no encoder of images; convert the '
      'generator alone, --kind=stylegan2'
    )
  return Frozen(g, e, d_r, size or g.resolution, card['adds_w_avg'])


def weights(loaded: Pretrained) -> dict[str, Any]:
  """The weights that the functions here expect.

  Returns:
    {'g': params, 'e': variables (with an encoder), 'd_r': params (with a
    discriminator), 'w_avg': [L, D], 'noise': list of [1, h, w, 1]}.
  """
  nets, extras = loaded.networks, loaded.extras
  g_name = 'g_ema' if 'g_ema' in nets else 'g'
  g = networks.module(nets[g_name].arch, nets[g_name].settings)
  found = {'g': nets[g_name].variables['params']}
  if 'e' in nets:
    found['e'] = nets['e'].variables
  if 'd_r' in nets:
    found['d_r'] = nets['d_r'].variables['params']
  w_avg = extras.get('w_avg')
  if w_avg is None:
    w_avg = semantic_gan.mean_w(g, found['g'])
  latents = stylegan2.num_latents(g.resolution)
  found['w_avg'] = jnp.broadcast_to(jnp.asarray(w_avg), (latents, g.w_dim))
  noise, drawn = extras.get('noise', {}), semantic_gan.fixed_noise(g.resolution)
  found['noise'] = [noise.get(str(i), maps) for i, maps in enumerate(drawn)]
  return found


def abstract_weights(frozen: Frozen) -> dict[str, Any]:
  """Shapes of what `weights` returns, without anything computed."""
  g, key = frozen.g, jax.random.key(0)
  square = lambda side: jnp.zeros((1, side, side, g.channels))
  found = {
    'g': jax.eval_shape(g.init, key, jnp.zeros((1, g.w_dim)))['params'],
    'w_avg': jnp.zeros((stylegan2.num_latents(g.resolution), g.w_dim)),
    'noise': [
      jnp.zeros((1, *shape, 1))
      for shape in stylegan2.noise_shapes(g.resolution)
    ],
  }
  if frozen.e is not None:
    seen = getattr(frozen.e, 'channels', g.channels)
    inputs = square(frozen.input_size)[..., :seen]
    found['e'] = jax.eval_shape(frozen.e.init, key, inputs)
  if frozen.d_r is not None:
    inputs = square(g.resolution)
    found['d_r'] = jax.eval_shape(frozen.d_r.init, key, inputs)['params']
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  return jax.tree.map(shape, found)


def encode(
  frozen: Frozen, weights: Mapping[str, Any], images: jax.Array
) -> jax.Array:
  """The code to begin with: of the encoder, or else the mean w.

  Args:
    frozen: the modules.
    weights: theirs.
    images: float32 [N, R, R, C] in [-1, 1], of any side.

  Returns:
    w_plus, float32 [N, L, D].
  """
  n, size = images.shape[0], frozen.input_size
  w_avg = jnp.broadcast_to(weights['w_avg'], (n, *weights['w_avg'].shape))
  if frozen.e is None:
    return w_avg
  if getattr(frozen.e, 'channels', None) == 1:  # of sketches, and the like
    images = images.mean(-1, keepdims=True)
  if images.shape[1:3] != (size, size):
    shape = (n, size, size, images.shape[-1])
    images = jax.image.resize(images, shape, 'bilinear')
  # One by one: some encoders compare the images of a batch.
  one = lambda image: frozen.e.apply(weights['e'], image[None])[0]
  codes = jax.vmap(one)(images)
  return codes + w_avg if frozen.adds_w_avg else codes


def invert_all(
  invert: Callable[[np.ndarray], inversion.Inversion],
  images: np.ndarray,
  size: int,
  alive: Callable[[], None],
) -> np.ndarray:
  """Codes of many images, some at a time; says how it goes.

  Args:
    invert: of a batch, compiled.
    images: float32 [M, R, R, C] in [-1, 1], on the host.
    size: images of a batch; the last is filled up.
    alive: called after each batch.

  Returns:
    w_plus, float32 [M, L, D].
  """
  count, size = len(images), min(size, len(images))
  progress = writers.Progress('inversion', count)
  codes, losses = [], []
  for start in range(0, count, size):
    part = images[start : start + size]
    filling = part[:1].repeat(size - len(part), 0)
    found = invert(np.concatenate([part, filling]))
    codes.append(np.asarray(found.w_plus)[: len(part)])
    losses.append(np.asarray(found.trace)[:, : len(part)])
    trace = np.concatenate(losses, 1).mean(1)
    values = {'before': float(trace[0]), 'after': float(trace[-1])}
    writers.say(progress.line(start + len(part), values))
    alive()
  return np.concatenate(codes)


def synthesize(
  frozen: Frozen, weights: Mapping[str, Any], w_plus: jax.Array, noise: Any
) -> tuple[jax.Array, jax.Array | None]:
  """(image, label logits or None) of codes, see `Generator.synthesize`."""
  return frozen.g.apply(
    {'params': weights['g']}, w_plus, noise, method='synthesize'
  )


def metric(
  frozen: Frozen, kind: str, lpips_weights: str = ''
) -> perceptual.Perceptual | None:
  """The perceptual distance; None: there is nothing to compute one with.

  'auto' is LPIPS where its weights are found, else 'discriminator', which is
  None where the file has no discriminator.

  Raises:
    UserError: an unknown kind, or 'lpips' without weights.
  """
  if frozen.d_r is None:
    kind = perceptual.resolve(kind, lpips_weights)
    if kind == 'discriminator':
      return None
  return perceptual.make(kind, frozen.d_r, lpips_weights)


def metric_weights(
  distance: perceptual.Perceptual | None, weights: Mapping[str, Any]
) -> Any:
  """The weights of `metric`'s networks."""
  if distance is None:
    return ()
  return distance.params() if distance.params else weights['d_r']


def model(
  frozen: Frozen,
  weights: Mapping[str, Any],
  distance: perceptual.Perceptual | None,
  distance_weights: Any,
) -> inversion.Model:
  """Binds weights for `inversion.invert`; with no distance L2 alone counts."""
  if distance is None:
    features, compare = lambda images: [], lambda a, b: jnp.zeros(())
  else:
    features = lambda images: distance.features(
      distance_weights, shrink(images)
    )
    compare = lambda a, b: distance.distance(distance_weights, a, b)
  return inversion.Model(
    synthesize=lambda w, noise: synthesize(frozen, weights, w, noise),
    encode=lambda images: encode(frozen, weights, images),
    features=features,
    distance=compare,
  )


def shrink(images: jax.Array) -> jax.Array:
  """Means of blocks, so that no side exceeds COMPARED_SIZE."""
  n, height, width, channels = images.shape
  k = max(1, height // COMPARED_SIZE)
  shape = (n, height // k, k, width // k, k, channels)
  return images.reshape(shape).mean((2, 4)) if k > 1 else images
