"""Losses that need no label: a segmentation should follow the image.

Written for a soft segmentation S, S_k the probabilities of class k at all P
pixels, and a kernel A_pq = exp(-|f_p - f_q|^2 / 2) of features f, which are
position and colour (`jaxseg.ops.bilateral`), with degrees d = A 1:

  dense CRF         sum_pq A_pq [S_p != S_q], relaxed to
    bilinear          sum_k S_k' A (1 - S_k) = 1' d - sum_k S_k' A S_k
    quadratic         1/2 sum_pq A_pq |S_p - S_q|^2
  normalised cut    sum_k S_k' A (1 - S_k) / (d' S_k)
  kernel k-means    sum_k sum_p S_pk |phi_p - mu_k|^2
                      = tr A - sum_k S_k' A S_k / |S_k|

Sources: Tang et al., On Regularized Losses for Weakly-supervised CNN
Segmentation (ECCV 2018), equations 3 to 9; Tang et al., Normalized Cut Loss for
Weakly-supervised CNN Segmentation (CVPR 2018); Shi and Malik (PAMI 2000). The
quadratic form is content with undecided pixels, the others ask to decide. One
filtering of S gives all values and, since A is symmetric, all gradients: that
of S_k' A S_k is 2 A S_k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.losses import entropy as entropies
from jaxseg.losses import graph
from jaxseg.ops import bilateral


class Regularizer(NamedTuple):
  """Weights of the terms, 0: off; and what they are computed with."""

  crf: float = 0.0  # dense CRF, in [0, 1] unless `published_scale`
  ncut: float = 0.0  # normalised cut, in [0, K]; with crf: KernelCut
  clustering: float = 0.0  # kernel k-means, in [0, 1]
  potts: float = 0.0  # over neighbouring pixels alone, in [0, 1]
  entropy: float = 0.0  # mean over unlabelled pixels, in nats
  form: str = 'bilinear'  # of crf and potts; or 'quadratic'
  # The dense kernel: std of positions, as a part of the longer side (100 of 513
  # pixels as published), and of colours, in grey levels of 0..255.
  sigma_xy: float = 0.195
  sigma_rgb: float = 15.0
  # The dense terms see means over squares of so many pixels a side; 0: as few
  # as leave 64x64 pixels or less.
  shrink: int = 0
  filter: str = 'auto'  # 'exact' or 'lattice', see jaxseg/ops/bilateral.py
  max_vertices: int = 0  # of the lattice; 0: automatic
  # The dense CRF as published, -sum_k S_k' A S_k of about 256x256 pixels, where
  # the lattice gives half of the exact sum, with weights such as 2e-9.
  published_scale: bool = False
  # Of potts, see jaxseg/losses/graph.py.
  connectivity: int = 8
  sigma_contrast: float = 0.0  # of images in [-1, 1]; 0: automatic
  ramp_up: float = 0.0  # fraction of the steps in which all weights climb


class Associations(NamedTuple):
  """What the dense terms are made of, of N images with P pixels.

  Attributes:
    within: float32 [N, K], S_k' A S_k.
    degree: float32 [N, P], A times `mask`.
    probabilities: float32 [N, P, K], S; 0 at pixels that do not count.
    mask: float32 [N, P], the part of each pixel that counts.
    overflow: bool [N], the lattice had no room for the image's colours.
  """

  within: jax.Array
  degree: jax.Array
  probabilities: jax.Array
  mask: jax.Array
  overflow: jax.Array


def is_on(settings: Regularizer) -> bool:
  """Whether any term has a weight."""
  return any(getattr(settings, name) for name in TERMS)


TERMS = ('crf', 'ncut', 'clustering', 'potts', 'entropy')
DENSE = ('crf', 'ncut', 'clustering')


def regularize(
  logits: jax.Array,
  images: jax.Array,
  settings: Regularizer,
  *,
  valid: jax.Array | None = None,
  unlabelled: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The weighted sum of the terms that are on, averaged over images.

  Args:
    logits: float32 [N, H, W, K].
    images: float32 [N, H, W, C] in [-1, 1]; no gradient flows into them.
    settings: see `Regularizer`.
    valid: [N, H, W], pixels that count (others 0), such as all but padding;
      None: all.
    unlabelled: [N, H, W], pixels whose entropy counts; None: all.

  Returns:
    (scalar, {name: scalar, not weighted}); (0, {}) with all weights 0.
    'lattice_overflow' among them is the part of the images for which
    `max_vertices` is too low, whose dense terms are 0.
  """
  total, found = per_image(
    logits, images, settings, valid=valid, unlabelled=unlabelled
  )
  return total.mean(), {name: x.mean() for name, x in found.items()}


def per_image(
  logits: jax.Array,
  images: jax.Array,
  settings: Regularizer,
  *,
  valid: jax.Array | None = None,
  unlabelled: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """As `regularize`, of each image: (float32 [N], {name: [N]})."""
  s, found = settings, {}
  probabilities = jax.nn.softmax(logits)
  if s.crf or s.ncut or s.clustering:
    found = dense(probabilities, images, s, valid)
  if s.potts:
    found['potts'] = potts(probabilities, images, s, valid)
  if s.entropy:
    mask = jnp.ones(logits.shape[:3]) if unlabelled is None else unlabelled
    mask = mask.astype(logits.dtype)
    if valid is not None:
      mask = mask * valid.astype(logits.dtype)
    total = (entropies.shannon(logits) * mask).sum((1, 2))
    found['entropy'] = total / jnp.maximum(mask.sum((1, 2)), 1.0)
  total = jnp.zeros(logits.shape[0])
  for name in TERMS:
    if name in found:
      total = total + getattr(s, name) * found[name]
  return total, found


def dense(
  probabilities: jax.Array,
  images: jax.Array,
  settings: Regularizer,
  valid: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """The terms of the dense kernel that have a weight, {name: float32 [N]}."""
  s = settings
  a = associations(probabilities, images, s, valid)
  found = {}
  if s.crf:
    found['crf'] = dense_crf(a, s.form, s.published_scale)
  if s.ncut:
    found['ncut'] = normalized_cut(a)
  if s.clustering:
    found['clustering'] = kernel_clustering(a)
  # A lattice without room would push labels anywhere.
  found = {name: jnp.where(a.overflow, 0.0, x) for name, x in found.items()}
  return found | {'lattice_overflow': a.overflow.astype(jnp.float32)}


def associations(
  probabilities: jax.Array,
  images: jax.Array,
  settings: Regularizer,
  valid: jax.Array | None = None,
) -> Associations:
  """Filters probabilities with the kernel of their image, once.

  Args:
    probabilities: float32 [N, H, W, K].
    images: float32 [N, H, W, C] in [-1, 1].
    settings: `sigma_xy`, `sigma_rgb`, `shrink`, `filter`, `max_vertices`.
    valid: [N, H, W], pixels that count (others 0); None: all.

  Raises:
    ValueError: `shrink` does not divide H and W.
  """
  s = settings
  factor = s.shrink or automatic_shrink(images.shape[1:3])
  images = shrunk(jax.lax.stop_gradient(images), factor)
  mask = jnp.ones((*probabilities.shape[:3], 1))
  if valid is not None:
    mask = mask * valid[..., None].astype(mask.dtype)
  # Means over the pixels that count; a square has as much weight as it has.
  soft = shrunk(probabilities * mask, factor)
  mask = shrunk(mask, factor)
  flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
  soft, mask = flat(soft), flat(mask)

  size, channels = images.shape[1:3], images.shape[-1]

  def filtered(both):
    kernel = bilateral.prepare(
      both[:, :channels].reshape(*size, channels), s.sigma_xy, s.sigma_rgb,
      s.filter, s.max_vertices,
    )  # fmt: skip
    return bilateral.apply(kernel, both[:, channels:]), kernel.overflow

  # Nothing passes between images, so nothing need pass between devices.
  around, overflow = parallel.on_each_device(
    jax.vmap(filtered),
    jax.lax.stop_gradient(jnp.concatenate([flat(images), soft, mask], -1)),
  )
  around, degree = around[..., :-1], around[..., -1]
  within = (soft * around).sum(1)
  # The value of S' A S, and its gradient 2 A S without a second filtering.
  within = 2 * within - jax.lax.stop_gradient(within)
  return Associations(within, degree, soft, mask[..., 0], overflow)


def automatic_shrink(size: tuple[int, int]) -> int:
  """The smallest common divisor that leaves a longer side of 32 to 64 pixels.

  Where none does, the largest that leaves 32 or more, or 1.

  Args:
    size: (H, W).
  """
  longer = max(size)
  divisors = [
    d
    for d in range(1, max(2, longer // 32 + 1))
    if size[0] % d == 0 and size[1] % d == 0
  ]
  fit = [d for d in divisors if longer // d <= 64]
  return fit[0] if fit else divisors[-1]


def shrunk(x: jax.Array, factor: int) -> jax.Array:
  """Means over squares: [N, H, W, C] -> [N, H / factor, W / factor, C].

  Raises:
    ValueError: factor does not divide H and W.
  """
  n, height, width, c = x.shape
  if height % factor or width % factor:
    raise ValueError(f'shrink is {factor}, must divide {height} and {width}')
  cells = (n, height // factor, factor, width // factor, factor, c)
  return x.reshape(cells).mean((2, 4))


def dense_crf(
  a: Associations, form: str = 'bilinear', published_scale: bool = False
) -> jax.Array:
  """The dense CRF energy of each image.

  Args:
    a: see `associations`.
    form: 'bilinear' or 'quadratic', see the module.
    published_scale: -sum_k S_k' A S_k, as Tang et al.'s code has it: the
      bilinear form without its constant and not normalised.

  Returns:
    float32 [N]; without `published_scale` divided by the total degree 1' d,
    which makes it independent of size and kernel: in [0, 1].

  Raises:
    ValueError: another form.
  """
  if form not in graph.FORMS:
    raise ValueError(f'form is {form!r}, must be one of {graph.FORMS}')
  within = a.within.sum(-1)
  if published_scale:
    return -within
  total = jnp.maximum((a.degree * a.mask).sum(-1), 1e-20)
  if form == 'bilinear':
    return 1.0 - within / total
  squares = jnp.square(a.probabilities).sum(-1)
  # S is the probabilities times the mask, here wanted once and not twice.
  squares = squares / jnp.where(a.mask > 0, a.mask, 1.0)
  alone = (a.degree * squares).sum(-1)
  return (alone - within) / total


def normalized_cut(a: Associations) -> jax.Array:
  """sum_k S_k' A (1 - S_k) / (d' S_k) of each image: float32 [N] in [0, K].

  A class of no pixel counts 0.
  """
  volume = (a.degree[..., None] * a.probabilities).sum(1)
  there = volume > 1e-20
  ratio = a.within / jnp.where(there, volume, 1.0)
  return jnp.where(there, 1.0 - ratio, 0.0).sum(-1)


def kernel_clustering(a: Associations) -> jax.Array:
  """Kernel k-means of each image, divided by its pixels: float32 [N].

  1 - (sum_k S_k' A S_k / |S_k|) / P, in [0, 1] for the exact kernel.
  """
  size = a.probabilities.sum(1)
  there = size > 1e-20
  within = jnp.where(there, a.within / jnp.where(there, size, 1.0), 0.0)
  pixels = size.sum(-1)
  return 1.0 - within.sum(-1) / jnp.where(pixels > 0, pixels, 1.0)


def potts(
  probabilities: jax.Array,
  images: jax.Array,
  settings: Regularizer,
  valid: jax.Array | None = None,
) -> jax.Array:
  """`graph.potts` of each image: float32 [N] in [0, 1]."""
  if valid is None:
    valid = jnp.ones(probabilities.shape[:3])

  def one(p, image, mask):
    return graph.potts(
      p[None], image[None], form=settings.form, valid=mask[None],
      connectivity=settings.connectivity, sigma=settings.sigma_contrast,
    )  # fmt: skip

  return jax.vmap(one)(probabilities, images, valid)


def check(where: str, settings: Regularizer, size: tuple[int, int]) -> None:
  """Refuses settings outside their choices.

  Args:
    where: what holds them, for messages.
    settings: see `Regularizer`.
    size: (H, W) of the images.

  Raises:
    UserError: names the field, what it is and what it must be.
  """
  s = settings
  for name, value, allowed in (
    ('form', s.form, graph.FORMS),
    ('filter', s.filter, bilateral.KINDS),
    ('connectivity', s.connectivity, tuple(graph.OFFSETS)),
  ):
    if value not in allowed:
      raise UserError(
        f'{where}.{name} is {value!r}, must be one of '
        f'{", ".join(map(str, allowed))}.'
      )
  for name in (*TERMS, 'sigma_contrast', 'ramp_up', 'max_vertices'):
    if getattr(s, name) < 0:
      raise UserError(
        f'{where}.{name} is {getattr(s, name)}, must be 0 or more.'
      )
  for name in ('sigma_xy', 'sigma_rgb'):
    if not getattr(s, name) > 0:
      raise UserError(f'{where}.{name} is {getattr(s, name)}, must be above 0.')
  if s.ramp_up > 1:
    raise UserError(
      f'{where}.ramp_up is {s.ramp_up}, must be a part of the steps, 0 to 1.'
    )
  if s.shrink < 0 or (s.shrink and any(side % s.shrink for side in size)):
    raise UserError(
      f'{where}.shrink is {s.shrink}, must divide the {size[0]} and {size[1]} '
      'pixels of a side (config.data.resolution, config.data.width), or be 0.'
    )
  if s.published_scale and s.form != 'bilinear':
    raise UserError(
      f'{where}.published_scale is True and {where}.form is {s.form!r}, but '
      "the published code has the bilinear form alone; set form to 'bilinear'."
    )
