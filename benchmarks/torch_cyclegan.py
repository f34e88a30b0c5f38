"""CycleGAN for segmentation in eager PyTorch: networks and training step.

Source: Mondal et al., Revisiting CycleGAN for Semi-Supervised Segmentation
(2019), section 3, equation 8. The same passes as `jaxseg.methods.cyclegan`
without replay pools.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADAM = dict(lr=2e-4, betas=(0.5, 0.999), eps=1e-8)


# Of equation 8, lambda 1 to 5 from the second on; names as jaxseg's metrics.
WEIGHTS = {
  'gen_s': 1.0,
  'gen_i': 1.0,
  'cycle_s': 0.05,
  'cycle_i': 1.0,
  'disc_s': 0.5,
  'disc_i': 0.5,
}


class Batch(NamedTuple):
  """Images [N, C, H, W] in [-1, 1]; label ids int64 [N, H, W], none void."""

  image: Tensor
  label: Tensor
  unlabelled: Tensor


def reflect(x: Tensor, width: int) -> Tensor:
  """Mirrors [N, C, H, W] at its borders, which are not repeated."""
  return F.pad(x, (width,) * 4, mode='reflect')


def instance_norm(x: Tensor) -> Tensor:
  """Each channel of each image with mean 0 and variance 1."""
  # The same as F.instance_norm, which copies channels-last memory.
  return F.group_norm(x, x.shape[1])


class Layer(nn.Module):
  """Convolution, instance norm, ReLU.

  Args:
    inputs: channels of x.
    features: output channels.
    kernel_size: side of the kernel.
    mode: 'same' size, borders mirrored; 'down': half of it; 'up': twice.
    activate: whether ReLU follows.
  """

  def __init__(
    self,
    inputs: int,
    features: int,
    kernel_size: int = 3,
    mode: str = 'same',
    activate: bool = True,
  ):
    super().__init__()
    self.mirrored = kernel_size // 2 if mode == 'same' else 0
    self.activate = activate
    if mode == 'up':
      self.conv = nn.ConvTranspose2d(inputs, features, 3, 2, 1, 1)
    elif mode == 'down':
      self.conv = nn.Conv2d(inputs, features, 3, 2, 1)
    else:
      self.conv = nn.Conv2d(inputs, features, kernel_size)

  def forward(self, x: Tensor) -> Tensor:
    if self.mirrored:
      x = reflect(x, self.mirrored)
    x = instance_norm(self.conv(x))
    return F.relu(x, inplace=True) if self.activate else x


class Block(nn.Module):
  """x + two layers of it."""

  def __init__(self, features: int):
    super().__init__()
    self.first = Layer(features, features)
    self.second = Layer(features, features, activate=False)

  def forward(self, x: Tensor) -> Tensor:
    return x + self.second(self.first(x))


class Generator(nn.Module):
  """`jaxseg.nets.resnet_generator.ResnetGenerator`, with the same names.

  Args:
    inputs: channels of x.
    features: channels of the output.
    width: channels of the first layer.
    blocks: residual blocks.
    tanh: whether tanh ends it (images) or nothing (logits).
  """

  def __init__(
    self, inputs: int, features: int, width: int, blocks: int, tanh: bool
  ):
    super().__init__()
    w, self.tanh = width, tanh
    down = {
      'stem': Layer(inputs, w, 7),
      'down0': Layer(w, 2 * w, mode='down'),
      'down1': Layer(2 * w, 4 * w, mode='down'),
    }
    down |= {f'block{i}': Block(4 * w) for i in range(blocks)}
    self.encoder = nn.Sequential(OrderedDict(down))
    self.decoder = nn.ModuleDict(
      {
        'up0': Layer(4 * w, 2 * w, mode='up'),
        'up1': Layer(2 * w, w, mode='up'),
        'out': nn.Conv2d(w, features, 7),
      }
    )

  def forward(self, x: Tensor) -> Tensor:
    """[N, inputs, H, W] -> float32 [N, features, H, W]; H, W by 4."""
    x = self.encoder(x)
    x = self.decoder['up1'](self.decoder['up0'](x))
    x = self.decoder['out'](reflect(x, 3)).float()
    return torch.tanh(x) if self.tanh else x


class PixelDiscriminator(nn.Module):
  """jaxseg's, with the same names; `norm` is 'batch' or 'instance'."""

  def __init__(self, inputs: int, width: int, norm: str = 'batch'):
    super().__init__()
    bias = norm == 'instance'
    self.conv0 = nn.Conv2d(inputs, width, 1)
    self.conv1 = nn.Conv2d(width, 2 * width, 1, bias=bias)
    if norm == 'instance':
      self.norm1 = nn.InstanceNorm2d(2 * width)
    else:
      self.norm1 = nn.BatchNorm2d(2 * width, track_running_stats=False)
    self.conv2 = nn.Conv2d(2 * width, 1, 1, bias=bias)

  def forward(self, x: Tensor) -> Tensor:
    """[N, inputs, H, W] -> float32 [N, 1, H, W]."""
    x = F.leaky_relu(self.conv0(x), 0.2, inplace=True)
    x = F.leaky_relu(self.norm1(self.conv1(x)), 0.2, inplace=True)
    return self.conv2(x).float()


class Trainer:
  """Two generators, two discriminators and their optimisers.

  Args:
    nets: 'seg' (image to logits), 'g_si' (label map to image), 'd_s' (of label
      maps) and 'd_i' (of images).
    num_classes: K.
    dtype: 'float32', or 'bfloat16' by automatic mixed precision.
  """

  # What `torch.compile` can have.
  FIRST_ORDER = ('generator_terms', 'discriminator_loss')

  def __init__(
    self,
    nets: dict[str, nn.Module],
    num_classes: int,
    dtype: str = 'float32',
  ):
    self.nets, self.num_classes, self.dtype = nets, num_classes, dtype
    adam = lambda *names: torch.optim.Adam(
      [p for name in names for p in nets[name].parameters()], fused=True, **ADAM
    )
    self.g_adam, self.d_adam = adam('seg', 'g_si'), adam('d_s', 'd_i')

  def step(self, batch: Batch) -> dict[str, Tensor]:
    """Generators, then discriminators; returns all terms of both losses."""
    real = F.one_hot(batch.label, self.num_classes).permute(0, 3, 1, 2).float()
    half = torch.autocast(
      real.device.type, torch.bfloat16, enabled=self.dtype == 'bfloat16'
    )
    with half:
      self.train_discriminators(False)
      terms, fake_label, fake_image = self.generator_terms(batch, real)
    total = sum(weight * terms[name] for name, weight in WEIGHTS.items())
    update(self.g_adam, total)
    self.train_discriminators(True)
    with half:
      d_s = self.discriminator_loss('d_s', real, fake_label)
      d_i = self.discriminator_loss('d_i', batch.unlabelled, fake_image)
    update(self.d_adam, d_s + d_i)
    terms |= {'d_s': d_s, 'd_i': d_i}
    return {name: term.detach() for name, term in terms.items()}

  def train_discriminators(self, on: bool) -> None:
    """Whether backward passes reach the discriminators' weights."""
    for name in ('d_s', 'd_i'):
      self.nets[name].requires_grad_(on)

  def generator_terms(
    self, batch: Batch, real: Tensor
  ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """All terms of equation 8, without weights.

    Args:
      batch: images and ids.
      real: float32 [N, K, H, W], one-hot.

    Returns:
      the terms; softmax of the unlabelled images' logits [N, K, H, W]; images
      [N, C, H, W] made from labels.
    """
    n = batch.image.shape[0]
    logits = self.nets['seg'](torch.cat([batch.image, batch.unlabelled]))
    fake_label = logits[n:].softmax(1)
    images = self.nets['g_si'](torch.cat([real, fake_label]))
    fake_image, cycle = images[:n], images[n:]
    again = self.nets['seg'](fake_image)
    terms = {
      'gen_s': F.cross_entropy(logits[:n], batch.label),
      'gen_i': F.mse_loss(fake_image, batch.image),
      'cycle_s': F.cross_entropy(again, batch.label),
      'cycle_i': F.l1_loss(cycle, batch.unlabelled),
      'disc_s': (self.nets['d_s'](fake_label) - 1).square().mean(),
      'disc_i': (self.nets['d_i'](fake_image) - 1).square().mean(),
    }
    return terms, fake_label, fake_image

  def discriminator_loss(self, name: str, real: Tensor, fake: Tensor) -> Tensor:
    """Least squares, 1 for what is real and 0 for what is not."""
    d = self.nets[name]
    real_loss = (d(real) - 1).square().mean()
    return (real_loss + d(fake.detach()).square().mean()) / 2


def update(adam: torch.optim.Optimizer, loss: Tensor) -> None:
  """One step down the gradient of `loss`."""
  adam.zero_grad(set_to_none=True)
  loss.backward()
  adam.step()
