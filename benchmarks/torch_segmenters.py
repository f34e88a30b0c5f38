"""Segmenters in eager PyTorch, and their training step.

`UNet` is jaxseg's once more, with the same names; the others are those of
segmentation_models_pytorch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jaxseg.nets.segmenters import Net

# Flax's names -> PyTorch's, of convolutions and of normalisation.
NAMES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}


class DoubleConv(nn.Module):
  """Two 3x3 convolutions, each with normalisation and ReLU."""

  def __init__(self, inputs: int, middle: int, features: int, norm: str):
    super().__init__()
    self.conv0 = nn.Conv2d(inputs, middle, 3, padding=1, bias=False)
    self.norm0 = normalization(middle, norm)
    self.conv1 = nn.Conv2d(middle, features, 3, padding=1, bias=False)
    self.norm1 = normalization(features, norm)

  def forward(self, x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, features, H, W]."""
    x = F.relu(self.norm0(self.conv0(x)), inplace=True)
    return F.relu(self.norm1(self.conv1(x)), inplace=True)


class UNet(nn.Module):
  """`jaxseg.nets.unet.UNet` with bilinear upsampling and no dropout."""

  def __init__(
    self, num_classes: int, width: int, depth: int, norm: str, channels: int = 3
  ):
    super().__init__()
    self.depth = depth
    down, up, inputs = {}, {}, channels
    for i in range(depth):
      features = width * 2**i
      down[f'down{i}'] = DoubleConv(inputs, features, features, norm)
      inputs = features
      out = features // 2 if i else features
      # The path from below has as many channels as the skip connection.
      up[f'up{i}'] = DoubleConv(2 * features, features, out, norm)
    down['bottom'] = DoubleConv(inputs, inputs, inputs, norm)
    up['out'] = nn.Conv2d(width, num_classes, 1)
    self.encoder, self.decoder = nn.ModuleDict(down), nn.ModuleDict(up)

  def forward(self, x: Tensor) -> Tensor:
    """[N, C, H, W] -> logits [N, K, H, W]."""
    skips = []
    for i in range(self.depth):
      x = self.encoder[f'down{i}'](x)
      skips.append(x)
      x = F.max_pool2d(x, 2)
    x = self.encoder['bottom'](x)
    for i in reversed(range(self.depth)):
      x = F.interpolate(x, scale_factor=2, mode='bilinear')
      x = self.decoder[f'up{i}'](torch.cat([skips[i], x], 1))
    return self.decoder['out'](x)


def normalization(features: int, norm: str) -> nn.Module:
  """The layer that `jaxseg.nets.layers.normalize` adds."""
  if norm == 'batch':
    return nn.BatchNorm2d(features)
  return nn.GroupNorm(features // math.gcd(8, features), features, eps=1e-6)


def load(module: nn.Module, variables: dict[str, Any]) -> nn.Module:
  """Copies jaxseg's variables into a module, every name must match.

  Args:
    module: of the same settings and names.
    variables: {'params': .., 'batch_stats': ..}.

  Returns:
    the module.

  Raises:
    RuntimeError: a name or a shape differs.
  """
  state = {
    k: v for k, v in module.state_dict().items() if k.endswith('tracked')
  }
  modules = dict(module.named_modules())
  for where, leaf in jax.tree_util.tree_leaves_with_path(variables):
    *parents, name = (entry.key for entry in where[1:])
    array, parent = np.asarray(leaf), '.'.join(parents)
    if array.ndim == 4:
      turned = isinstance(modules.get(parent), nn.ConvTranspose2d)
      array = array.transpose((2, 3, 0, 1) if turned else (3, 2, 0, 1))
    state[f'{parent}.{NAMES[name]}'] = torch.tensor(array)
  module.load_state_dict(state)
  return module


def build(peer: str, net: Net, norm: str, num_classes: int) -> nn.Module:
  """A network that is measured beside one of jaxseg.

  Args:
    peer: 'same', or a class of segmentation_models_pytorch and its encoder,
      such as 'Unet resnet18'.
    net: jaxseg's, a U-Net where the peer is the same.
    norm: 'batch' or 'group', of the same network.
    num_classes: K.
  """
  if peer == 'same':
    return UNet(num_classes, net.width, net.depth, norm)
  import segmentation_models_pytorch as smp

  kind, encoder = peer.split()
  kwargs = dict(encoder_weights=None, classes=num_classes)
  if kind == 'DeepLabV3Plus':
    kwargs |= dict(encoder_output_stride=16, decoder_aspp_dropout=0.0)
  return getattr(smp, kind)(encoder, **kwargs)


def step(
  module: nn.Module,
  image: Tensor,
  label: Tensor,
  dtype: str,
  lr: float,
  weight_decay: float,
) -> Callable[[], Tensor]:
  """A function that makes one training step and returns the loss.

  Args:
    module: trained by AdamW.
    image: [N, C, H, W].
    label: int64 [N, H, W].
    dtype: 'float32', or 'bfloat16' by automatic mixed precision.
    lr: learning rate.
    weight_decay: of AdamW.
  """
  adamw = torch.optim.AdamW(
    module.parameters(), lr, weight_decay=weight_decay, fused=True
  )
  half = torch.autocast(
    image.device.type, torch.bfloat16, enabled=dtype == 'bfloat16'
  )

  def run():
    adamw.zero_grad(set_to_none=True)
    with half:
      logits = module(image)
    loss = F.cross_entropy(logits.float(), label)
    loss.backward()
    adamw.step()
    return loss.detach()

  return run
