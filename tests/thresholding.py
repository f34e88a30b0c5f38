"""A trained run that labels by brightness: what is right can be told."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxseg.config
from jaxseg import workdir
from jaxseg.method import Method, Prediction, new_state

PALETTE = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
SIDE = 8


def _threshold(images, at):
  """Class 1 where the image is brighter than `at`, in [-1, 1]."""
  bright = jax.nn.sigmoid(50 * (images.mean(-1) - at))
  return jnp.stack([1 - bright, bright], -1)


def make_trained(at=0.0, refined_at=None, resolution=SIDE, channels=1, batch=3):
  """Class 1 is brighter than `at`, in [-1, 1]; `refined_at` if refined."""

  def predict_(state, images):
    probabilities = _threshold(images, state.params['seg']['at'])
    return Prediction(probabilities, trust=probabilities.max(-1).mean((1, 2)))

  def refine(state, images):
    del state
    return Prediction(_threshold(images, refined_at), reconstruction=images)

  state = new_state(jax.random.key(0), {}, {}).replace(
    params={'seg': {'at': jnp.float32(at)}}, step=jnp.int32(7)
  )
  method = Method(None, None, predict_, refine if refined_at else None)
  config = jaxseg.config.default()
  config.data.resolution, config.data.channels = resolution, channels
  config.eval.batch_size = batch
  stages = {
    'gan': workdir.Stage(Method(None, None), state, 'gan'),
    'seg': workdir.Stage(method, state, 'U-Net'),
  }
  return workdir.Trained(config, ('background', 'lung'), PALETTE, stages)
