"""How undecided predictions are; minimised, they become confident.

Sources: Grandvalet and Bengio, Semi-supervised Learning by Entropy
Minimization (NeurIPS 2004), the empirical entropy of section 2; Vu et al.,
ADVENT (CVPR 2019), equations 2 and 3, normalised; Chen et al., Domain
Adaptation for Semantic Segmentation with Maximum Squares Loss (ICCV 2019),
whose loss is -1 / (2 N) sum_n sum_k p_nk^2 over N pixels.
"""

import math

import jax
import jax.numpy as jnp

KINDS = ('shannon', 'normalized', 'max_square')


def uncertainty(
  logits: jax.Array, kind: str = 'shannon', valid: jax.Array | None = None
) -> jax.Array:
  """One of KINDS, averaged over pixels.

  Args:
    logits: float32 [N, H, W, K].
    kind: 'shannon', in nats; 'normalized', Shannon entropy divided by log K;
      'max_square', whose gradient does not single out the pixels that are
      decided already.
    valid: [N, H, W], the pixels that count (others 0); None: all.

  Returns:
    scalar, in [0, log K], [0, 1] or [-1/2, -1/(2 K)]; 0 without valid pixels.

  Raises:
    ValueError: another kind.
  """
  if kind not in KINDS:
    raise ValueError(f'kind is {kind!r}, must be one of {", ".join(KINDS)}')
  if kind == 'max_square':
    values = max_square(logits)
  else:
    values = shannon(logits)
  if kind == 'normalized':
    values = values / math.log(max(2, logits.shape[-1]))
  if valid is None:
    return values.mean()
  valid = valid.astype(values.dtype)
  return (values * valid).sum() / jnp.maximum(valid.sum(), 1.0)


def shannon(logits: jax.Array) -> jax.Array:
  """-sum_k p_k log p_k of p = softmax(logits), in nats: [..., K] -> [...]."""
  log_p = jax.nn.log_softmax(logits)
  p = jnp.exp(log_p)
  # A logit of -inf has p = 0 and contributes nothing.
  return -jnp.where(p > 0, p * log_p, 0.0).sum(-1)


def max_square(logits: jax.Array) -> jax.Array:
  """-1/2 sum_k p_k^2 of p = softmax(logits): [..., K] -> [...]."""
  return -0.5 * jnp.square(jax.nn.softmax(logits)).sum(-1)
