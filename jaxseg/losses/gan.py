"""Adversarial losses and the regularisers of generators.

Sources: Goodfellow et al. (2014); Lim and Ye, Geometric GAN (2017), hinge;
Wang et al. (pix2pixHD, 2018), feature matching; Mescheder et al., Which
Training Methods for GANs do actually Converge? (2018), R1; Karras et al.
(StyleGAN2, 2020), section 3.2, path length; appendix D, noise; Mao et al.,
Least Squares Generative Adversarial Networks (ICCV 2017), equation 9.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def logistic_d(real: jax.Array, fake: jax.Array) -> jax.Array:
  """Discriminator: mean softplus(-real) + mean softplus(fake); scores [N]."""
  return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def logistic_g(fake: jax.Array) -> jax.Array:
  """Generator, non-saturating: mean softplus(-fake); scores [N]."""
  return jax.nn.softplus(-fake).mean()


def hinge_d(real: Sequence[jax.Array], fake: Sequence[jax.Array]) -> jax.Array:
  """Discriminator: (hinge(1 - real) + hinge(1 + fake)) / 2, over scales.

  Args:
    real: patch scores of each scale, [N, h, w, 1].
    fake: likewise.

  Returns:
    scalar, the mean over scales of means over patches.
  """
  return (hinge_real(real) + hinge_fake(fake)) / 2


def hinge_real(scores: Sequence[jax.Array]) -> jax.Array:
  """mean max(0, 1 - score), averaged over scales."""
  return _mean([jax.nn.relu(1 - s).mean() for s in scores])


def hinge_fake(scores: Sequence[jax.Array]) -> jax.Array:
  """mean max(0, 1 + score), averaged over scales."""
  return _mean([jax.nn.relu(1 + s).mean() for s in scores])


def hinge_g(fake: Sequence[jax.Array]) -> jax.Array:
  """Generator: -mean score, averaged over scales."""
  return _mean([-s.mean() for s in fake])


def feature_matching(
  real: Sequence[Sequence[jax.Array]], fake: Sequence[Sequence[jax.Array]]
) -> jax.Array:
  """L1 distance of D_m's inner features (pix2pixHD, equation 3).

  Args:
    real: for each scale the outputs of all layers; the last (the score) is
      not compared. No gradient flows into them.
    fake: likewise, same shapes.

  Returns:
    scalar: summed over layers, averaged over scales.
  """
  return _mean(
    [
      sum(
        jnp.abs(f.astype(jnp.float32) - jax.lax.stop_gradient(r)).mean()
        for r, f in zip(real_scale[:-1], fake_scale[:-1], strict=True)
      )
      for real_scale, fake_scale in zip(real, fake, strict=True)
    ]
  )


def _mean(values):
  return sum(values) / len(values)


def r1_penalty(
  score: Callable[..., jax.Array], *inputs: jax.Array
) -> jax.Array:
  """Mean over images of the squared gradient of that image's score.

  Args:
    score: (*inputs) -> [N], entry i a function of image i alone (apart from
      batch statistics).
    *inputs: arrays [N, ...]; the squared gradients of all are added.

  Returns:
    scalar, without the factor gamma / 2.
  """
  grads = jax.grad(lambda *a: score(*a).sum(), tuple(range(len(inputs))))(
    *inputs
  )
  square = lambda g: jnp.square(g).reshape(g.shape[0], -1).sum(1)
  return sum(square(g) for g in grads).mean()


def patch_mean(scores: Sequence[jax.Array]) -> jax.Array:
  """D_m's score of each pair [N]: mean over patches, summed over scales."""
  return sum(s.mean((1, 2, 3)) for s in scores)


def path_length_penalty(
  synthesize: Callable[[jax.Array], jax.Array],
  w_plus: jax.Array,
  y: jax.Array,
  mean: jax.Array,
  decay: float = 0.01,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Squared deviation of |J^T y| from its running mean (equation 4).

  Args:
    synthesize: W+ codes -> images [N, R, R, C].
    w_plus: [N, L, D].
    y: standard normal [N, R, R, C]; divided by R here.
    mean: scalar, the running mean a.
    decay: weight of this batch in the running mean.

  Returns:
    (penalty, new mean, lengths [N]).
  """
  y = y / (y.shape[1] * y.shape[2]) ** 0.5
  grad = jax.grad(lambda w: (synthesize(w) * y).sum())(w_plus)
  lengths = jnp.sqrt(jnp.square(grad).sum(2).mean(1))
  new_mean = mean + decay * (lengths.mean() - mean)
  penalty = jnp.square(lengths - new_mean).mean()
  return penalty, jax.lax.stop_gradient(new_mean), lengths


def noise_penalty(noise: Sequence[jax.Array]) -> jax.Array:
  """Autocorrelation of noise maps at shifts of one pixel, over a pyramid.

  Args:
    noise: maps [N, h, w, 1], square, sides powers of two.

  Returns:
    [N]; each map is also halved (2x2 mean) down to 8x8. Circular shifts.
  """
  total = 0.0
  for level in noise:
    while True:
      for axis in (1, 2):
        shifted = jnp.roll(level, 1, axis)
        total = total + jnp.square((level * shifted).mean((1, 2, 3)))
      size = level.shape[1]
      if size <= 8:
        break
      n = level.shape[0]
      level = level.reshape(n, size // 2, 2, size // 2, 2, 1).mean((2, 4))
  return total


def normalize_noise(noise: Sequence[jax.Array]) -> list[jax.Array]:
  """Each map of each image to zero mean and unit standard deviation."""

  def normalize(x):
    x = x - x.mean((1, 2, 3), keepdims=True)
    return x / x.std((1, 2, 3), keepdims=True, ddof=1)

  return [normalize(x) for x in noise]


ADVERSARIAL = ('least_squares', 'logistic')


def pixel_adversarial(
  scores: jax.Array,
  real: bool,
  weight: jax.Array | None = None,
  kind: str = 'least_squares',
) -> jax.Array:
  """Distance of pixel or patch scores from what real or fake ones should be.

  'least_squares' (Mao et al., 2017): (score - 1)^2 if `real`, else score^2;
  'logistic': softplus(-score), softplus(score). The discriminator takes half
  the sum of both, the generator that of its fakes with `real`.

  Args:
    scores: float32 [N, h, w, 1].
    real: whether they should look real.
    weight: of each, bool or float [N, h, w], 0 or more; None: all alike.
    kind: one of ADVERSARIAL.

  Returns:
    scalar, the weighted mean; 0 when nothing counts.
  """
  if kind == 'least_squares':
    losses = jnp.square(scores - 1.0 if real else scores)
  else:
    losses = jax.nn.softplus(-scores if real else scores)
  if weight is None:
    return losses.mean()
  weight = weight.astype(jnp.float32)
  total = weight.sum()
  return (losses[..., 0] * weight).sum() / jnp.where(total > 0, total, 1.0)
