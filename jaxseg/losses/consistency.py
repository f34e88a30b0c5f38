"""Agreement of a student with its averaged teacher.

Sources: Tarvainen and Valpola, Mean teachers are better role models (NeurIPS
2017), section 2 and appendix B; French et al., Semi-supervised semantic
segmentation needs strong, varied perturbations (BMVC 2020), section 3.
"""

import jax
import jax.numpy as jnp

COMPARED = ('probabilities', 'logits')


def mean_square(
  student: jax.Array, teacher: jax.Array, compared: str = 'probabilities'
) -> jax.Array:
  """Mean squared difference over classes, pixels and images.

  Args:
    student: float32 logits [N, H, W, K].
    teacher: likewise; no gradient flows into them.
    compared: 'probabilities', the softmax of both (the paper); or 'logits'.

  Returns:
    scalar; in [0, 2 / K] for probabilities.

  Raises:
    ValueError: `compared` is neither.
  """
  if compared not in COMPARED:
    raise ValueError(
      f'compared is {compared!r}, must be one of {", ".join(COMPARED)}'
    )
  teacher = jax.lax.stop_gradient(teacher)
  if compared == 'probabilities':
    student, teacher = jax.nn.softmax(student), jax.nn.softmax(teacher)
  return jnp.square(student - teacher).mean()


def confident(logits: jax.Array, threshold: float) -> jax.Array:
  """Fraction of pixels whose largest probability is at least `threshold`.

  Args:
    logits: float32 [N, H, W, K].
    threshold: in [0, 1].

  Returns:
    scalar in [0, 1], without gradient.
  """
  return (jax.nn.softmax(logits).max(-1) >= threshold).mean()


def teacher_decay(step: jax.Array, limit: float) -> jax.Array:
  """min(1 - 1 / (step + 1), limit): the plain mean of all students at first.

  Args:
    step: finished steps; at 0 the teacher becomes the student.
    limit: decay of the later steps.

  Returns:
    float32 scalar in [0, limit].
  """
  return jnp.minimum(step / (step + 1.0), limit).astype(jnp.float32)


def noise(
  rng: jax.Array, images: jax.Array, std: float, bound: float = 2.0
) -> jax.Array:
  """Adds normal noise, of one draw a value, that is cut off.

  Args:
    rng: key.
    images: [N, H, W, C].
    std: of the noise, in units of the images; 0: none.
    bound: noise beyond so many std becomes that.

  Returns:
    like `images`; values may leave [-1, 1].
  """
  if not std:
    return images
  drawn = jax.random.normal(rng, images.shape, images.dtype)
  return images + std * jnp.clip(drawn, -bound, bound)
