"""The networks that converted weights are of, by name, and how to build one."""

import functools
import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxseg.nets import discriminators, encoder, inception, ir_se, stylegan2
from jaxseg.published.source import MAX_RESOLUTION, shown

# arch -> module; its attributes are the settings.
ARCHS: dict[str, Any] = {
  'stylegan2_generator': stylegan2.Generator,
  'stylegan2_discriminator': stylegan2.Discriminator,
  'multiscale_discriminator': discriminators.MultiscaleDiscriminator,
  'fpn_encoder': encoder.Encoder,
  'residual_encoder': encoder.ResidualEncoder,
  'psp_encoder': ir_se.PSPEncoder,
  'e4e_encoder': ir_se.E4EEncoder,
  'inception_v3': inception.InceptionV3,
}

# Those whose variables others read, and their settings.
READ_ELSEWHERE = {
  'lpips': {'net': str},
  'torchvision': {'backbone': str, 'width': int, 'num_classes': int},
}
# Settings that must be told, beside those without a default.
TOLD = {
  'stylegan2_generator': {'channels', 'num_classes', 'w_dim', 'mapping_depth'},
}
# Those that no folder tells, those that may be 0, and those that count layers.
NOT_TOLD = {'dtype', 'remat', 'parent', 'name'}
MAY_BE_ZERO = {'num_classes', 'conv_clamp', 'se_widths'}
COUNTS = {
  'mapping_depth', 'num_scales', 'num_styles', 'depths', 'units', 'head_depths'
}  # fmt: skip
MAX_COUNT, MAX_SIZE, MAX_LEVELS = 256, 1 << 20, 16
# Where a network has the kernel that sees images.
FIRST = {
  'stylegan2_discriminator': 'params/from_rgb/kernel',
  'residual_encoder': 'params/from_rgb/kernel',
  'fpn_encoder': 'params/pyramid/stem/kernel',
  'psp_encoder': 'params/body/stem/kernel',
  'e4e_encoder': 'params/body/stem/kernel',
  'multiscale_discriminator': 'params/scale_0/layer0/kernel',
}


class Network(NamedTuple):
  """One network of a file.

  Attributes:
    arch: a key of ARCHS, or a name that says what reads its variables.
    settings: of the module, plain data.
    variables: {collection: nested dict}, whose leaves are `source.Entry` before
      they are read and float32 arrays after.
  """

  arch: str
  settings: dict[str, Any]
  variables: dict[str, Any]


class Converted(NamedTuple):
  """What a file holds, in the terms used here.

  Attributes:
    kind: as given on the command line.
    networks: by name: 'g' and 'g_ema' (its average), 'd_r', 'd_m', 'e', ...
    extras: nested dict of `source.Entry`: 'w_avg' [D] or [L, D], 'noise' {'0':
      [1, h, w, 1], ..}, the maps stored with a generator.
    remarks: sentences for the user, e.g. on settings that are not used.
    adds_w_avg: whether 'w_avg' is to be added to what the encoder gives.
    label_output: of a generator with labels, see `semantic_gan.make`.
  """

  kind: str
  networks: dict[str, Network]
  extras: dict[str, Any]
  remarks: tuple[str, ...] = ()
  adds_w_avg: bool = False
  label_output: str = 'logits'


def module(arch: str, settings: dict[str, Any]) -> nn.Module:
  """Builds the module of a network; lists of its settings become tuples."""
  fixed = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in settings.items()
  }
  return ARCHS[arch](**fixed)


def fault(arch: str, settings: Mapping[str, Any]) -> str | None:
  """What is wrong with a network as a stranger describes it, or None."""
  if arch in READ_ELSEWHERE:
    types = READ_ELSEWHERE[arch]
    told = types.keys() - {'num_classes'}
  elif arch in ARCHS:
    fields = ARCHS[arch].__dataclass_fields__
    types = {n: f.type for n, f in fields.items() if n not in NOT_TOLD}
    told = TOLD.get(arch, set()) | ({'resolution'} & types.keys())
  else:
    known = ', '.join([*ARCHS, *READ_ELSEWHERE])
    return f'has the arch {shown(arch)}, expected one of {known},'
  if missing := sorted(told - settings.keys()):
    return f'lacks the setting {missing[0]!r}'
  if unknown := sorted(settings.keys() - types.keys()):
    return f'has a setting {unknown[0][:50]!r}, which {arch} has not,'
  for name, value in settings.items():
    if not _is_possible(name, value, types[name]):
      return f'has the impossible setting {name} = {shown(value)}'
  return None


def _is_possible(name, value, kind):
  kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
  if isinstance(value, list | tuple):
    return (
      any(get_origin(part) is Sequence for part in kinds)
      and len(value) <= MAX_LEVELS
      and all(_is_possible(name, item, int) for item in value)
    )
  if type(value) not in (int, float):
    return type(value) in kinds
  if type(value) not in kinds and (type(value), *kinds) != (int, float):
    return False
  if name in ('resolution', 'input_size'):
    is_power = name == 'input_size' or value & (value - 1) == 0
    return 8 <= value <= MAX_RESOLUTION and is_power
  limit = MAX_COUNT if name in COUNTS else MAX_SIZE
  return (0 if name in MAY_BE_ZERO else 1) <= value <= limit


def extras_fault(
  nets: Mapping[str, Any], extras: Mapping[str, Sequence[int]]
) -> str | None:
  """What is wrong with shapes of arrays beside a generator, or None."""
  g = nets.get('g_ema') or nets.get('g')
  if not g or g['arch'] != 'stylegan2_generator':
    return None
  size, w_dim = g['settings']['resolution'], g['settings']['w_dim']
  allowed = {'w_avg': [[w_dim], [stylegan2.num_latents(size), w_dim]]}
  for i, shape in enumerate(stylegan2.noise_shapes(size)):
    allowed[f'noise/{i}'] = [[1, *shape, 1]]
  for name, shape in extras.items():
    if list(shape) not in allowed.get(name, [list(shape)]):
      wanted = ' or '.join(map(str, allowed[name]))
      return f'tells of {name} of shape {str(shape)[:50]}, expected {wanted}'
  return None


def shapes(
  arch: str,
  settings: Mapping[str, Any],
  found: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
  """Shapes of a network's variables by path, such as 'params/const'.

  Args:
    arch: a key of ARCHS or READ_ELSEWHERE.
    settings: without fault.
    found: those in the file, which tell the channels of images; where others
      read the variables, they are returned.
  """
  if arch in READ_ELSEWHERE:
    return dict(found)
  kernel = found.get(FIRST.get(arch), ())
  channels = kernel[2] if len(kernel) == 4 else 3
  return _shapes(arch, json.dumps(settings), max(1, channels))


@functools.lru_cache
def _shapes(arch, settings, channels):
  settings = json.loads(settings)
  net = module(arch, settings)
  side = settings.get('resolution') or settings.get('input_size') or 64
  if arch == 'stylegan2_generator':
    inputs = [(1, net.w_dim)]
  elif arch == 'multiscale_discriminator':  # sees images beside labels
    side = 16 * 2**net.num_scales
    inputs = [(1, side, side, channels - 1), (1, side, side, 1)]
  elif arch == 'inception_v3':
    inputs = [(1, 75, 75, 3)]
  else:
    inputs = [(1, side, side, channels)]
  zeros = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in inputs]
  variables = jax.eval_shape(lambda *x: net.init(jax.random.key(0), *x), *zeros)
  flat = traverse_util.flatten_dict(dict(variables), sep='/')
  return {path: leaf.shape for path, leaf in flat.items()}
