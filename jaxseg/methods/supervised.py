"""Supervised segmentation: cross entropy and Dice on labelled pixels."""

from jaxseg.losses import segmentation
from jaxseg.losses.segmentation import Loss
from jaxseg.method import Method, ema_decay
from jaxseg.methods import accumulation, handover, segmenting
from jaxseg.methods.segmenting_checks import check  # noqa: F401
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer


def make(
  *,
  num_classes: int,
  resolution: int,
  channels: int,
  total_steps: int,
  net: Net = Net(),
  loss: Loss = Loss(),
  optimizer: Optimizer = Optimizer(),
  ema_half_life: float = 500.0,  # of the averaged weights, in images; 0: off
) -> Method:
  """A segmenter trained on the labelled images alone.

  With `init_from` it starts from the averaged weights of that stage, wherever
  both networks have an array of the same name and shape.

  Args:
    num_classes: K.
    resolution: shorter side of the images.
    channels: image channels.
    total_steps: length of the learning-rate curve.
    net: see `jaxseg.nets.segmenters.Net`.
    loss: see `jaxseg.losses.segmentation.Loss`.
    optimizer: see `jaxseg.optimizers.Optimizer`.
    ema_half_life: see the signature.

  Returns:
    a `Method` whose trust is the mean over pixels of the largest probability.

  Raises:
    UserError: a setting outside its choices; from `init`, a stage before that
      trained no segmenter, or one that has nothing in common.
  """
  seg = segmenting.segmenter(
    num_classes=num_classes, resolution=resolution, channels=channels,
    total_steps=total_steps, net=net, optimizer=optimizer,
  )  # fmt: skip

  def init(rng, previous=None):
    return handover.begin(segmenting.start(seg, rng), previous, 'supervised')

  def train_step(state, batch):
    def loss_fn(params, part, key):
      logits, stats = segmenting.train_logits(
        seg, params, state.extra['seg'], part['image'], key
      )
      total, terms = segmentation.supervised(logits, part['label'], loss)
      return total, ((stats, terms), ())

    grads, (stats, terms), _ = accumulation.gradient(
      loss_fn, state.params['seg'], batch, segmenting.step_key(state), seg.parts
    )
    decay = ema_decay(batch['image'].shape[0], ema_half_life)
    state = segmenting.advance(state, 'seg', seg.tx, grads, stats, decay)
    return state.replace(step=state.step + 1), terms

  return segmenting.as_method(seg, init, train_step)
