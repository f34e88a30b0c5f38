"""Published SemanticGAN checkpoints as parameter trees of our networks.

The names are those of the published PyTorch modules; `weights` maps them to
arrays, `prefix` ends in '/'. PyTorch stores kernels as [O, I, kh, kw].
"""

import re

import numpy as np


def nhwc(x: np.ndarray) -> np.ndarray:
  """Images or maps [N, C, H, W] with the channels last."""
  return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def generator(weights, prefix: str) -> dict:
  """'params' of `Generator`."""
  get = _getter(weights, prefix)
  names = _names(weights, prefix)
  params = {
    'const': get('input.input')[0].transpose(1, 2, 0),
    'mapping_network': {
      f'dense_{i}': _dense(get, f'style.{i + 1}')
      for i in range(_count(names, r'style\.(\d+)\.weight'))
    },
    'conv_first': _styled(get, 'conv1'),
  }
  for i in range(_count(names, r'convs\.(\d+)\.conv\.weight')):
    kind = 'conv' if i % 2 else 'conv_up'
    params[f'{kind}_{i // 2}'] = _styled(get, f'convs.{i}')
  for kind in ('to_rgb', 'to_seg'):
    params[f'{kind}_0'] = _output(get, f'{kind}1')
    for i in range(_count(names, rf'{kind}s\.(\d+)\.bias')):
      params[f'{kind}_{i + 1}'] = _output(get, f'{kind}s.{i}')
  return params


def registered_noise(weights, prefix: str) -> list[np.ndarray]:
  """The stored noise maps, each [1, h, w, 1]."""
  get = _getter(weights, prefix)
  count = _count(_names(weights, prefix), r'noises\.noise_(\d+)')
  return [get(f'noises.noise_{i}').transpose(0, 2, 3, 1) for i in range(count)]


def discriminator(weights, prefix: str) -> dict:
  """'params' of `Discriminator`."""
  get = _getter(weights, prefix)
  names = _names(weights, prefix)
  params = {'from_rgb': _plain(get, 'convs.0.0.weight', 'convs.0.1.bias')}
  blocks = _count(names, r'convs\.(\d+)\.conv1\.0\.weight')
  for i in range(1, blocks + 1):
    name = f'convs.{i}'
    params[f'block_{4 * 2 ** (blocks - i)}'] = {
      'conv1': _plain(get, f'{name}.conv1.0.weight', f'{name}.conv1.1.bias'),
      'conv2': _plain(get, f'{name}.conv2.1.weight', f'{name}.conv2.2.bias'),
      'skip': _plain(get, f'{name}.skip.1.weight'),
    }
  params['conv_last'] = _plain(get, 'final_conv.0.weight', 'final_conv.1.bias')
  # Its input is the 4x4 map, flattened as (C, 4, 4) there, (4, 4, C) here.
  kernel = get('final_linear.0.weight')
  kernel = kernel.reshape(len(kernel), -1, 4, 4).transpose(2, 3, 1, 0)
  params['dense'] = {
    'kernel': kernel.reshape(-1, kernel.shape[-1]),
    'bias': get('final_linear.0.bias'),
  }
  params['score'] = _dense(get, 'final_linear.1')
  return params


def multiscale(weights, prefix: str, scales: int = 3) -> dict:
  """Variables of `MultiscaleDiscriminator`: 'params' and 'spectral'."""
  get = _getter(weights, prefix)
  params, spectral = {}, {}
  for scale in range(scales):
    # Published scale 2 sees full resolution, which is our scale 0.
    name = f'scale{scales - 1 - scale}_layer'
    plain = lambda i, name=name: _plain(
      get, f'{name}{i}.0.weight', f'{name}{i}.0.bias'
    )
    layers, vectors = {'layer0': plain(0), 'layer4': plain(4)}, {}
    for i in (1, 2, 3):
      weight = get(f'{name}{i}.0.0.weight_orig')
      v = get(f'{name}{i}.0.0.weight_v').reshape(weight.shape[1:])
      layers[f'layer{i}'] = {'kernel': _kernel(weight)}
      vectors[f'layer{i}'] = {
        'u': get(f'{name}{i}.0.0.weight_u'),
        'v': v.transpose(1, 2, 0).reshape(-1),  # (I, kh, kw) to (kh, kw, I)
      }
    params[f'scale_{scale}'] = layers
    spectral[f'scale_{scale}'] = vectors
  return {'params': params, 'spectral': spectral}


def encoder(weights, prefix: str) -> dict:
  """Variables of `Encoder` with norm 'batch': 'params' and 'batch_stats'."""
  get = _getter(weights, prefix)
  names = _names(weights, prefix)
  pyramid, stats = {}, {}

  def conv_norm(params, stats, theirs, ours):
    (conv, norm), (our_conv, our_norm) = theirs, ours
    params[our_conv] = _plain(get, f'FPN_module.{conv}.weight')
    params[our_norm], stats[our_norm] = _norm(get, f'FPN_module.{norm}')

  conv_norm(pyramid, stats, ('conv1', 'bn1'), ('stem', 'norm_stem'))
  for stage in range(4):
    layer = f'layer{stage + 1}'
    pattern = rf'FPN_module\.{layer}\.(\d+)\.conv1\.weight'
    for block in range(_count(names, pattern)):
      theirs, ours = f'{layer}.{block}', f'stage{stage}_block{block}'
      pyramid[ours], stats[ours] = {}, {}
      parts = [(f'conv{i}', f'bn{i}', i) for i in (1, 2, 3)]
      if f'FPN_module.{theirs}.shortcut.0.weight' in names:
        parts.append(('shortcut.0', 'shortcut.1', 0))
      for conv, norm, i in parts:
        conv_norm(
          pyramid[ours],
          stats[ours],
          (f'{theirs}.{conv}', f'{theirs}.{norm}'),
          (f'conv{i}', f'norm{i}'),
        )
  for ours, theirs in {
    'top': 'toplayer',
    'lateral4': 'latlayer1',
    'lateral3': 'latlayer2',
    'lateral2': 'latlayer3',
    'smooth4': 'smooth1',
    'smooth3': 'smooth2',
    'smooth2': 'smooth3',
  }.items():
    name = f'FPN_module.{theirs}'
    pyramid[ours] = _plain(get, f'{name}.weight', f'{name}.bias')
  params = {'pyramid': pyramid}
  for kind in ('course_styles', 'medium_styles', 'fine_styles'):
    for i in range(_count(names, rf'{kind}\.(\d+)\.linear\.weight')):
      head = {'dense': _dense(get, f'{kind}.{i}.linear')}
      # Odd places of the published sequence are activations.
      pattern = rf'{kind}\.{i}\.convs\.(\d+)\.weight'
      for j in range(_count(names, pattern)):
        name = f'{kind}.{i}.convs.{2 * j}'
        head[f'conv{j}'] = _plain(get, f'{name}.weight', f'{name}.bias')
      params[f'style{len(params) - 1}'] = head
  return {'params': params, 'batch_stats': {'pyramid': stats}}


def parameter(params: dict, name: str) -> np.ndarray:
  """The leaf of a generator's tree that holds the published `name`."""
  replace = [
    (r'^style\.(\d+)', lambda m: f'mapping_network/dense_{int(m[1]) - 1}'),
    (r'^input\.input', 'const'),
    (r'^conv1\.', 'conv_first.'),
    (
      r'^convs\.(\d+)',
      lambda m: f'conv{"" if int(m[1]) % 2 else "_up"}_{int(m[1]) // 2}',
    ),
    (r'^(to_rgb|to_seg)1', r'\1_0'),
    (r'^(to_rgb|to_seg)s\.(\d+)', lambda m: f'{m[1]}_{int(m[2]) + 1}'),
    (r'\.modulation', '.affine'),
    (r'\.noise\.weight$', '.noise_strength'),
    (r'\.activate\.bias$', '.bias'),
    (r'\.weight$', '.kernel'),
  ]
  for pattern, new in replace:
    name = re.sub(pattern, new, name)
  node = params
  for key in re.split(r'[./]', name):
    node = node[key]
  return node


def _getter(weights, prefix):
  return lambda name: np.asarray(weights[prefix + name], np.float32)


def _names(weights, prefix):
  return {k.removeprefix(prefix) for k in weights if k.startswith(prefix)}


def _count(names, pattern):
  """How many different numbers the group of `pattern` takes."""
  found = (re.fullmatch(pattern, name) for name in names)
  return len({match[1] for match in found if match})


def _kernel(weight):
  return weight.transpose(2, 3, 1, 0)


def _plain(get, weight, bias=None):
  layer = {'kernel': _kernel(get(weight))}
  return layer if bias is None else {**layer, 'bias': get(bias).reshape(-1)}


def _dense(get, name):
  return {'kernel': get(f'{name}.weight').T, 'bias': get(f'{name}.bias')}


def _modulated(get, name):
  return {
    'kernel': _kernel(get(f'{name}.weight')[0]),
    'affine': _dense(get, f'{name}.modulation'),
  }


def _styled(get, name):
  return {
    'conv': _modulated(get, f'{name}.conv'),
    'noise_strength': get(f'{name}.noise.weight')[0],
    'bias': get(f'{name}.activate.bias'),
  }


def _output(get, name):
  bias = get(f'{name}.bias').reshape(-1)
  return {'conv': _modulated(get, f'{name}.conv'), 'bias': bias}


def _norm(get, name):
  """(parameters, statistics) of batch normalisation."""
  params = {'scale': get(f'{name}.weight'), 'bias': get(f'{name}.bias')}
  stats = {
    'mean': get(f'{name}.running_mean'),
    'var': get(f'{name}.running_var'),
  }
  return params, stats
