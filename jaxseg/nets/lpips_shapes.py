"""The networks that LPIPS compares features of, as tables.

Sources: Simonyan and Zisserman 2015 (VGG16), Krizhevsky 2014 (AlexNet, "one
weird trick"), Iandola et al. 2016 (SqueezeNet, its version 1.1); which layers
are compared: Zhang et al., CVPR 2018, section 3, and the authors' version 0.1.
"""

# Output channels of VGG16's 13 convolutions, grouped by resolution. The
# distance compares the output of each group's last one, before the maximum.
GROUPS = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)

# Side and output channels of AlexNet's convolutions; each is compared.
ALEX = ((11, 64), (5, 192), (3, 384), (3, 256), (3, 256))

# Channels of SqueezeNet's Fire modules between the maxima, squeezed and of
# each of the two expansions. Compared: the first convolution, the last module
# of the first two groups, every one of the third.
FIRES = (
  ((16, 64), (16, 64)),
  ((32, 128), (32, 128)),
  ((48, 192), (48, 192), (64, 256), (64, 256)),
)

# By the number of convolutions, which tells parameters apart.
NETS = {13: 'vgg16', 5: 'alexnet', 25: 'squeezenet'}


def shapes(net: str) -> dict[str, tuple[int, ...]]:
  """Shape of every array of a network.

  Args:
    net: 'vgg16', 'alexnet' or 'squeezenet'.

  Returns:
    by path in the parameters: 'convs/0/kernel' [k, k, I, O], 'convs/0/bias'
    [O], .., 'lin/0' [C], ..; a Fire module is its squeezing convolution, then
    its expanding ones of 1x1 and 3x3.
  """
  convs, lin = _squeezenet() if net == 'squeezenet' else _chain(net)
  found = {}
  for i, (size, fan_in, features) in enumerate(convs):
    found[f'convs/{i}/kernel'] = size, size, fan_in, features
    found[f'convs/{i}/bias'] = (features,)
  return found | {f'lin/{i}': (width,) for i, width in enumerate(lin)}


def _squeezenet():
  """[(side, inputs, outputs)] of the convolutions, [channels] compared."""
  convs, lin, fan_in = [(3, 3, 64)], [64], 64
  for i, group in enumerate(FIRES):
    for squeezed, expanded in group:
      convs += [(1, fan_in, squeezed), (1, squeezed, expanded)]
      convs.append((3, squeezed, expanded))
      fan_in = 2 * expanded
      lin += [fan_in] if i == 2 else []
    lin += [fan_in] if i < 2 else []
  return convs, lin


def _chain(net):
  """The same of the networks whose convolutions follow one another."""
  if net == 'alexnet':
    layers, lin = ALEX, [features for _, features in ALEX]
  else:
    layers = [(3, features) for group in GROUPS for features in group]
    lin = [group[-1] for group in GROUPS]
  convs, fan_in = [], 3
  for size, features in layers:
    convs.append((size, fan_in, features))
    fan_in = features
  return convs, lin


def nested(arrays: dict) -> dict:
  """Values by path, as `shapes` names them -> {'convs': [..], 'lin': [..]}."""
  lin = [arrays[name] for name in arrays if name.startswith('lin/')]
  convs = [
    {what: arrays[f'convs/{i}/{what}'] for what in ('kernel', 'bias')}
    for i in range((len(arrays) - len(lin)) // 2)
  ]
  return {'convs': convs, 'lin': lin}
