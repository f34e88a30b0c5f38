"""SemanticGAN's training step and test-time optimisation in eager PyTorch.

The same passes in the same order as `jaxseg.methods.semantic_gan` and
`jaxseg.methods.inversion`, with PyTorch's own second-order gradients.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_counterpart import (
  Discriminator,
  Encoder,
  Generator,
  MultiscaleDiscriminator,
  PerceptualDiscriminator,
  PerceptualVGG,
)
from jaxseg.losses.segmentation import VOID
from jaxseg.nets.stylegan2 import num_latents

ADAM = dict(lr=0.002, betas=(0.0, 0.99), eps=1e-8)


class Batch(NamedTuple):
  """Images [N, C, R, R] in [-1, 1], label ids [N, R, R]."""

  image: Tensor
  label: Tensor
  unlabelled: Tensor


class GanTrainer:
  """The three networks, their optimisers, the averaged generator."""

  # What has first derivatives only, so that `torch.compile` can have it.
  FIRST_ORDER = ('draw_fakes', 'd_r_loss', 'd_m_loss', 'g_loss')

  def __init__(
    self,
    g: Generator,
    d_r: Discriminator,
    d_m: MultiscaleDiscriminator,
    num_classes: int,
  ):
    self.g, self.d_r, self.d_m = g, d_r, d_m
    self.num_classes = num_classes
    self.ema = copy.deepcopy(g).requires_grad_(False)
    self.path_mean = torch.zeros((), device=g.const.device)
    self.adam = {
      net: torch.optim.Adam(net.parameters(), fused=True, **ADAM)
      for net in (g, d_r, d_m)
    }

  def step(self, batch: Batch, r1: bool = False, path: bool = False) -> Tensor:
    """One step of all networks; returns the generator's loss."""
    n = batch.unlabelled.shape[0]
    real_label, valid = signed_one_hot(batch.label, self.num_classes)
    fake, fake_label = self.draw_fakes(n)
    self.update_d_r(batch.unlabelled, fake, r1)
    self.update_d_m(batch.image, real_label, fake, fake_label * valid, r1)
    loss = self.update_g(batch.image, real_label, valid, n, path)
    with torch.no_grad():
      torch._foreach_lerp_(
        list(self.ema.parameters()),
        list(self.g.parameters()),
        1 - 0.5 ** (n / 10_000),
      )
    return loss

  @torch.no_grad()
  def draw_fakes(self, n: int) -> tuple[Tensor, Tensor]:
    """Images and label logits of fresh codes, for both discriminators."""
    return self.g(*self.draw_codes(n))

  def draw_codes(self, n: int) -> tuple[Tensor, list[Tensor]]:
    """W+ codes [n, L, D] of fresh z, some with two styles; noise maps."""
    device, latents = self.g.const.device, num_latents(self.g.resolution)
    w = self.g.mapping(torch.randn(2 * n, self.g.w_dim, device=device))
    crossover = torch.randint(1, latents, (n,), device=device)
    mix = torch.rand(n, device=device) < 0.9
    crossover = torch.where(mix, crossover, latents)
    first = torch.arange(latents, device=device) < crossover[:, None]
    w_plus = torch.where(first[:, :, None], w[:n, None], w[n:, None])
    return w_plus, self.g.make_noise(n)

  def update(self, net: nn.Module) -> None:
    """Applies and forgets the accumulated gradients."""
    self.adam[net].step()
    self.adam[net].zero_grad(set_to_none=True)

  def update_d_r(self, real: Tensor, fake: Tensor, r1: bool) -> None:
    """Logistic loss; with `r1` also the penalty."""
    self.d_r_loss(real, fake).backward()
    if r1:
      (10 / 2 * 16 * r1_penalty(self.d_r, real)).backward()
    self.update(self.d_r)

  def d_r_loss(self, real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of real and fake images."""
    real_loss = F.softplus(-self.d_r(real)).mean()
    return real_loss + F.softplus(self.d_r(fake)).mean()

  def update_d_m(
    self,
    image: Tensor,
    label: Tensor,
    fake: Tensor,
    fake_label: Tensor,
    r1: bool,
  ) -> None:
    """Hinge loss over scales; with `r1` also the penalty."""
    self.d_m_loss(image, label, fake, fake_label).backward()
    if r1:
      score = lambda *pair: sum(
        scale[-1].mean((1, 2, 3)) for scale in self.d_m(*pair)
      )
      (10 / 2 * 16 * r1_penalty(score, image, label)).backward()
    self.update(self.d_m)

  def d_m_loss(
    self, image: Tensor, label: Tensor, fake: Tensor, fake_label: Tensor
  ) -> Tensor:
    """Hinge loss of real and fake pairs."""
    m = image.shape[0]
    outputs = self.d_m(
      torch.cat([image, fake[:m]]), torch.cat([label, fake_label]), update=True
    )
    scores = [scale[-1] for scale in outputs]
    real_loss = mean([F.relu(1 - s[:m]).mean() for s in scores])
    fake_loss = mean([F.relu(1 + s[m:]).mean() for s in scores])
    return (real_loss + fake_loss) / 2

  def update_g(
    self, image: Tensor, label: Tensor, valid: Tensor, n: int, path: bool
  ) -> Tensor:
    """Adversarial losses and feature matching; with `path` path lengths."""
    # No gradients of the discriminators' weights.
    self.d_r.requires_grad_(False)
    self.d_m.requires_grad_(False)
    loss = self.g_loss(image, label, valid, n)
    loss.backward()
    if path:
      self.path_penalty(max(1, n // 2)).backward()
    self.update(self.g)
    self.d_r.requires_grad_(True)
    self.d_m.requires_grad_(True)
    return loss.detach()

  def g_loss(
    self, image: Tensor, label: Tensor, valid: Tensor, n: int
  ) -> Tensor:
    """Adversarial losses and feature matching of n fresh images."""
    fake, fake_label = self.g(*self.draw_codes(n))
    adversarial = F.softplus(-self.d_r(fake)).mean()
    m = image.shape[0]
    fake_maps = self.d_m(fake[:m].detach(), fake_label[:m] * valid)
    with torch.no_grad():
      real_maps = self.d_m(image, label)
    hinge = mean([-scale[-1].mean() for scale in fake_maps])
    matching = mean(
      [
        sum([F.l1_loss(f, r) for f, r in zip(fs[:-1], rs[:-1], strict=True)])
        for fs, rs in zip(fake_maps, real_maps, strict=True)
      ]
    )
    return adversarial + hinge + 2.0 * matching

  def path_penalty(self, n: int) -> Tensor:
    """2 * 4 * the squared deviation of path lengths from their mean."""
    w_plus, noise = self.draw_codes(n)
    image, _ = self.g(w_plus, noise, label=False)
    lengths = path_lengths(image, w_plus, torch.randn_like(image))
    new_mean = torch.lerp(self.path_mean, lengths.mean(), 0.01)
    self.path_mean = new_mean.detach()
    return 8 * (lengths - new_mean).square().mean()


def mean(values: list[Tensor]) -> Tensor:
  """Mean of scalars."""
  return sum(values) / len(values)


def signed_one_hot(label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
  """One-hot in {-1, 1}, 0 where void, and the mask of what is not void.

  Args:
    label: ids [N, R, R].
    num_classes: K.

  Returns:
    float32 [N, K, R, R] and [N, 1, R, R], channels last.
  """
  valid = (label != VOID)[:, None].float()
  ids = torch.where(label == VOID, 0, label)
  one_hot = F.one_hot(ids, num_classes).permute(0, 3, 1, 2).float()
  return (2 * one_hot - 1) * valid, valid


def r1_penalty(score, *inputs: Tensor) -> Tensor:
  """Mean over images of the squared gradient of `score(*inputs)` [N]."""
  inputs = [x.detach().requires_grad_(True) for x in inputs]
  grads = torch.autograd.grad(score(*inputs).sum(), inputs, create_graph=True)
  return sum(g.square().sum((1, 2, 3)) for g in grads).mean()


def path_lengths(image: Tensor, w_plus: Tensor, y: Tensor) -> Tensor:
  """|J^T y| of each image, y ~ N(0, 1) divided by the side; [N]."""
  side = (image.shape[2] * image.shape[3]) ** 0.5
  (grad,) = torch.autograd.grad(
    (image * y).sum() / side, w_plus, create_graph=True
  )
  return grad.square().sum(2).mean(1).sqrt()


def inversion_losses(
  g: Generator,
  e: Encoder,
  perceptual: PerceptualVGG | PerceptualDiscriminator,
  target: Tensor,
  wanted: list[Tensor],
  noise: list[Tensor],
  w: Tensor,
) -> Tensor:
  """What `invert` minimises, [N]; `wanted` are the target's features."""
  image, _ = g(w, noise, label=False)
  loss = perceptual.distance(perceptual.features(image), wanted)
  loss = loss + 0.1 * (image - target).square().mean((1, 2, 3))
  with torch.no_grad():
    natural = e(image)
  return loss + 1e-3 * (w - natural).square().mean((1, 2))


def invert(
  g: Generator,
  e: Encoder,
  perceptual: PerceptualVGG | PerceptualDiscriminator,
  target: Tensor,
  noise: list[Tensor],
  steps: int,
  lr: float = 0.1,
  losses: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
  """Optimises the W+ codes of images, from the encoder's guess on.

  Args:
    g: frozen, as all networks (`requires_grad_(False)`).
    e: also called at each step, without gradient.
    perceptual: features and distance.
    target: [N, C, R, R] in [-1, 1].
    noise: maps [1 or N, 1, h, w], not optimised.
    steps: Adam steps.
    lr: constant learning rate.
    losses: `inversion_losses`, or the same compiled.

  Returns:
    the best codes [N, L, D] and their losses [N].
  """
  with torch.no_grad():
    wanted = perceptual.features(target)
    w = e(target)
  w.requires_grad_(True)
  adam = torch.optim.Adam([w], lr=lr, fused=True)

  losses = losses or inversion_losses
  models = g, e, perceptual, target, wanted, noise

  best_w = w.detach().clone()
  best_loss = torch.full((len(w),), torch.inf, device=w.device)

  def keep_better(loss):
    better = loss < best_loss
    best_w.copy_(torch.where(better[:, None, None], w, best_w))
    best_loss.copy_(torch.where(better, loss, best_loss))

  for _ in range(steps):
    loss = losses(*models, w)
    (w.grad,) = torch.autograd.grad(loss.sum(), w)
    with torch.no_grad():
      keep_better(loss)
    adam.step()
  with torch.no_grad():
    keep_better(losses(*models, w))
  return best_w, best_loss
