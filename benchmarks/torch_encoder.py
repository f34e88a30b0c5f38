"""The training step of SemanticGAN's encoder in PyTorch.

The same passes as `jaxseg.methods.semantic_gan_encoder` with its default
losses, Adam, and without averaged weights.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.torch_steps import Batch
from jaxseg.losses.segmentation import VOID

# The defaults of `jaxseg.methods.semantic_gan_encoder.make`.
WEIGHTS = {'perceptual': 10.0, 'l2': 1.0, 'ce': 1.0, 'dice': 1.0}
CLIP_NORM, LR = 5.0, 1e-3


class EncoderTrainer:
  """The encoder and its optimiser beside frozen networks.

  Args:
    nets: 'e', and frozen 'g' and 'perceptual'.
    w_avg: [D], what codes are told against.
  """

  # What `torch.compile` can have.
  FIRST_ORDER = ('loss',)

  def __init__(self, nets: dict[str, nn.Module], w_avg: Tensor):
    self.e, self.w_avg = nets['e'], w_avg
    self.g = nets['g'].requires_grad_(False)
    self.perceptual = nets['perceptual'].requires_grad_(False)
    self.adam = torch.optim.Adam(self.e.parameters(), lr=LR, fused=True)

  def step(
    self, batch: Batch, noise: list[Tensor] | None = None
  ) -> dict[str, Tensor]:
    """One step; returns the terms of the loss. `noise`: None: drawn."""
    images = torch.cat([batch.image, batch.unlabelled])
    if noise is None:
      noise = self.g.make_noise(len(images))
    total, terms = self.loss(images, batch.label, noise)
    self.adam.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(self.e.parameters(), CLIP_NORM, foreach=True)
    self.adam.step()
    return {name: term.detach() for name, term in terms.items()}

  def loss(
    self, images: Tensor, label: Tensor, noise: list[Tensor]
  ) -> tuple[Tensor, dict[str, Tensor]]:
    """(the loss, its terms without weights).

    Args:
      images: [N, C, R, R], the labelled ones first.
      label: ids [M, R, R], M <= N.
      noise: maps [N, 1, h, w].
    """
    rendered, logits = self.g(self.e(images) + self.w_avg, noise)
    with torch.no_grad():
      wanted = self.perceptual.features(images)
    distance = self.perceptual.distance(
      self.perceptual.features(rendered), wanted
    )
    logits = logits[: label.shape[0]]
    terms = {
      'perceptual': distance.mean(),
      'l2': (rendered - images).square().mean(),
      'ce': F.cross_entropy(logits / 0.1, label, ignore_index=VOID),
      'dice': dice_loss(torch.sigmoid(logits / 0.3), label),
    }
    return sum([WEIGHTS[k] * term for k, term in terms.items()]), terms


def dice_loss(p: Tensor, label: Tensor) -> Tensor:
  """1 - Dice with squared denominators, mean over classes but the first.

  Args:
    p: probabilities [M, K, R, R].
    label: ids [M, R, R].
  """
  valid = (label != VOID)[:, None].float()
  ids = torch.where(label == VOID, 0, label)
  target = F.one_hot(ids, p.shape[1]).permute(0, 3, 1, 2).float() * valid
  p = p * valid
  overlap = (p * target).sum((0, 2, 3))
  size = p.square().sum((0, 2, 3)) + target.square().sum((0, 2, 3))
  dice = (2 * overlap + 1e-5) / (size + 1e-5)
  return (1 - dice[1:]).mean()
