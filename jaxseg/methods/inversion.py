"""Test-time optimisation: the W+ code that renders a given image.

w* = argmin_w  L_reconst(x, G_x(w)) + lambda_2 |w - E(G_x(w))|^2
(Li et al., CVPR 2021, equation 8), over W+ and, when asked, the noise maps. A
loss of the rendered labels may go with it, see `follow_edges`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxseg.errors import UserError
from jaxseg.losses import gan, regularized
from jaxseg.losses.regularized import Regularizer

Features = list[jax.Array]
LabelLoss = Callable[[jax.Array], jax.Array]


class Model(NamedTuple):
  """What the optimisation needs of a trained system, parameters bound.

  Attributes:
    synthesize: (w_plus, noise) -> (image, logits), per image.
    encode: images -> w_plus.
    features: images -> perceptual features.
    distance: (features, features) -> [N].
  """

  synthesize: Callable[..., tuple[jax.Array, jax.Array]]
  encode: Callable[[jax.Array], jax.Array]
  features: Callable[[jax.Array], Features]
  distance: Callable[[Features, Features], jax.Array]


class Inversion(NamedTuple):
  """Result for N images; the best iterate of each, not the last.

  Attributes:
    w_plus: [N, L, D].
    noise: noise maps, [N, h, w, 1] when optimised, else as given.
    loss: [N], the loss of `w_plus`.
    trace: [steps + 1, N], the loss before each step and after the last.
    snapshots: [S, N, R, R, C], images rendered before the chosen steps.
    last: (w_plus, noise) after the last step.
  """

  w_plus: jax.Array
  noise: list[jax.Array]
  loss: jax.Array
  trace: jax.Array
  snapshots: jax.Array
  last: tuple[jax.Array, list[jax.Array]]


def ramp_schedule(
  lr: float, steps: int, ramp_up: float = 0.05, ramp_down: float = 0.25
) -> optax.Schedule:
  """Linear rise, constant, cosine fall (Karras et al. 2020, appendix D).

  Args:
    lr: the highest rate.
    steps: length of the optimisation.
    ramp_up: fraction of it that rises; the first rate is not zero.
    ramp_down: fraction of it that falls.
  """

  def schedule(step):
    t = step / steps
    fall = 0.5 - 0.5 * jnp.cos(
      jnp.pi * jnp.minimum(1.0, (1.0 - t) / max(ramp_down, 1e-8))
    )
    rise = jnp.minimum(1.0, (step + 1) / max(ramp_up * steps, 1.0))
    return lr * fall * rise

  return schedule


def losses(
  model: Model,
  target: jax.Array,
  target_features: Features,
  w_plus: jax.Array,
  noise: Sequence[jax.Array],
  *,
  lambda_l2: float,
  lambda_encoder: float,
  lambda_noise: float,
  label_loss: LabelLoss | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns (loss [N], image) of W+ codes; entry i sees image i alone."""
  image, logits = model.synthesize(w_plus, noise)
  loss = model.distance(model.features(image), target_features)
  loss = loss + lambda_l2 * jnp.square(image - target).mean((1, 2, 3))
  if lambda_encoder:
    # E is not differentiated: it says where in W+ natural codes lie.
    natural = lax.stop_gradient(model.encode(lax.stop_gradient(image)))
    loss = loss + lambda_encoder * jnp.square(w_plus - natural).mean((1, 2))
  if lambda_noise:
    loss = loss + lambda_noise * gan.noise_penalty(noise)
  if label_loss is not None:
    loss = loss + label_loss(logits)
  return loss, image


def invert(
  model: Model,
  target: jax.Array,
  w_plus: jax.Array,
  noise: Sequence[jax.Array],
  *,
  steps: int,
  schedule: optax.Schedule,
  lambda_l2: float = 0.1,
  lambda_encoder: float = 1e-3,
  optimize_noise: bool = False,
  lambda_noise: float = 100.0,
  snapshot_steps: Sequence[int] = (),
  label_loss: LabelLoss | None = None,
) -> Inversion:
  """Optimises the codes of a batch of images, each on its own.

  Jit the caller: everything is one program with a `lax.fori_loop`.

  Args:
    model: see `Model`.
    target: float32 [N, R, R, C] in [-1, 1].
    w_plus: [N, L, D], where to start.
    noise: maps [1 or N, h, w, 1]; [N, ...] when `optimize_noise`.
    steps: Adam steps.
    schedule: step -> learning rate.
    lambda_l2: weight of the mean squared error beside the perceptual one.
    lambda_encoder: lambda_2, weight of |w - E(G(w))|^2.
    optimize_noise: optimise the noise maps too; they are normalised to zero
      mean and unit deviation after each step.
    lambda_noise: weight of the noise maps' autocorrelation, when optimised.
    snapshot_steps: render the images before these steps (< steps).
    label_loss: what `synthesize` says of labels -> [N], added to the loss;
      entry i must depend on image i alone. None: labels have no say.
  """
  noise = list(noise)
  target_features = model.features(target)
  weights = dict(
    lambda_l2=lambda_l2,
    lambda_encoder=lambda_encoder,
    lambda_noise=lambda_noise if optimize_noise else 0.0,
    label_loss=label_loss,
  )
  tx = optax.adam(schedule)

  def evaluate(variables):
    z = variables['noise'] if optimize_noise else noise
    loss, image = losses(
      model, target, target_features, variables['w'], z, **weights
    )
    return loss.sum(), (loss, image)

  def step(i, carry):
    variables, opt_state, best, trace, snapshots = carry
    grads, (loss, image) = jax.grad(evaluate, has_aux=True)(variables)
    best = _keep_better(best, (loss, variables))
    trace = trace.at[i].set(loss)
    for slot, at in enumerate(snapshot_steps):
      snapshots = snapshots.at[slot].set(
        jnp.where(i == at, image, snapshots[slot])
      )
    updates, opt_state = tx.update(grads, opt_state)
    variables = optax.apply_updates(variables, updates)
    if optimize_noise:
      variables['noise'] = gan.normalize_noise(variables['noise'])
    return variables, opt_state, best, trace, snapshots

  variables = {'w': w_plus, 'noise': noise} if optimize_noise else {'w': w_plus}
  n = target.shape[0]
  carry = (
    variables,
    tx.init(variables),
    (jnp.full((n,), jnp.inf), variables),
    jnp.zeros((steps + 1, n)),
    jnp.zeros((len(snapshot_steps), *target.shape)),
  )
  last, _, best, trace, snapshots = lax.fori_loop(0, steps, step, carry)
  loss, _ = evaluate(last)[1]
  loss_best, chosen = _keep_better(best, (loss, last))
  return Inversion(
    chosen['w'],
    chosen.get('noise', noise),
    loss_best,
    trace.at[steps].set(loss),
    snapshots,
    (last['w'], last.get('noise', noise)),
  )


def follow_edges(
  images: jax.Array, settings: Regularizer, temperature: float = 1.0
) -> LabelLoss | None:
  """`label_loss` of `invert`: labels have their edges where the images do.

  Args:
    images: float32 [N, R, R, C] in [-1, 1], those that are inverted.
    settings: see `jaxseg.losses.regularized.Regularizer`.
    temperature: of the softmax of the rendered logits [N, R, R, K].

  Returns:
    None with all weights 0. Of an image for whose colours the lattice has no
    room (`max_vertices`) the loss is 0, rather than wrong: it is inverted as
    without one.
  """
  if not regularized.is_on(settings):
    return None

  def label_loss(logits):
    found, terms = regularized.per_image(logits / temperature, images, settings)
    if 'lattice_overflow' not in terms:
      return found
    return jnp.where(terms['lattice_overflow'] > 0, 0.0, found)

  return label_loss


def check_regularizer(
  where: str, settings: Regularizer, size: tuple[int, int]
) -> None:
  """`regularized.check`, of settings for `follow_edges`.

  Raises:
    UserError: as there; or a ramp-up, of which there is none here.
  """
  regularized.check(where, settings, size)
  if settings.ramp_up:
    raise UserError(
      f'{where}.ramp_up is {settings.ramp_up}, but weights of a test-time '
      'optimisation do not climb; set it to 0.'
    )


def _keep_better(best, new):
  """Per image the variables of the lower loss; a loss of nan never wins."""
  better = new[0] < best[0]
  select = lambda b, a: jnp.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b)
  return select(best[0], new[0]), jax.tree.map(select, best[1], new[1])
