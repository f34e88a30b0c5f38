"""Flaw detector: the published network's numbers, PyTorch's, its sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_functions as t
from numpy.testing import assert_allclose

from jaxseg.nets import flaw_detector
from jaxseg.nets.flaw_detector import FlawDetector

STRIDED = ('conv1', 'conv2', 'conv3', 'conv4', 'classifier')


def variables_of(weights):
  """Flax variables of a state dict in PyTorch's layout."""
  params, stats = {}, {}
  for name in (*(name for name, _, _ in flaw_detector.LAYERS), 'classifier'):
    kernel = weights[f'{name}.weight'].transpose(2, 3, 1, 0)
    params[name] = {'kernel': kernel, 'bias': weights[f'{name}.bias']}
    if name == 'classifier':
      break
    norm = name.replace('conv', 'ibn') + '.bnorm.'
    to = name.replace('conv', 'norm')
    params[to] = {'batch': {'scale': weights[norm + 'weight'],
                            'bias': weights[norm + 'bias']}}  # fmt: skip
    stats[to] = {'batch': {'mean': weights[norm + 'running_mean'],
                           'var': weights[norm + 'running_var']}}  # fmt: skip
  return {'params': params, 'batch_stats': stats}


def in_torch(weights, image, probabilities, stride, train):
  """The same network out of torch.nn.functional; NCHW."""
  tensors = {k: t.tensor(v) for k, v in weights.items()}
  x = t.torch.cat([image, probabilities], 1)
  halvings = STRIDED[: stride.bit_length() - 1]
  for name, _, _ in flaw_detector.LAYERS:
    x = t.F.conv2d(
      x, tensors[f'{name}.weight'], tensors[f'{name}.bias'],
      stride=2 if name in halvings else 1, padding=1,
    )  # fmt: skip
    half = x.shape[1] // 2
    norm = name.replace('conv', 'ibn') + '.bnorm.'
    first = t.F.batch_norm(
      x[:, :half], tensors[norm + 'running_mean'],
      tensors[norm + 'running_var'], tensors[norm + 'weight'],
      tensors[norm + 'bias'], training=train,
    )  # fmt: skip
    rest = x[:, half:]
    rest = t.F.instance_norm(rest) if rest[0, 0].numel() > 1 else 0 * rest
    x = t.F.leaky_relu(t.torch.cat([first, rest], 1), 0.2)
  x = t.F.conv2d(
    x, tensors['classifier.weight'], tensors['classifier.bias'],
    stride=2 if 'classifier' in halvings else 1, padding=1,
  )  # fmt: skip
  return t.F.interpolate(
    x, image.shape[2:], mode='bilinear', align_corners=True
  )


def random_weights(width, channels):
  rng = np.random.default_rng(0)
  weights, before = {}, channels
  for name, factor, _ in (*flaw_detector.LAYERS, ('classifier', None, None)):
    features = width * factor if factor else 1
    weights[f'{name}.weight'] = 0.2 * rng.normal(size=(features, before, 4, 4))
    weights[f'{name}.bias'] = 0.2 * rng.normal(size=features)
    if factor:
      norm = name.replace('conv', 'ibn') + '.bnorm.'
      for key in ('weight', 'bias', 'running_mean', 'running_var'):
        weights[norm + key] = 0.5 + rng.uniform(size=features // 2)
    before = features
  return {k: v.astype(np.float32) for k, v in weights.items()}


def nhwc(x):
  return np.transpose(x, (0, 2, 3, 1))


def test_published_numbers(shared):
  recorded = np.load(
    shared / 'golden' / 'baselines' / 'gct_flaw_detector_ndf8.npz'
  )
  variables = variables_of(
    {k[2:]: recorded[k] for k in recorded if k.startswith('p/')}
  )
  net = FlawDetector(width=8)
  image, prediction = nhwc(recorded['x']), nhwc(recorded['pred'])

  @jax.jit
  def run(prediction):
    def mean_square(prediction):
      flaw, updated = net.apply(
        variables, image, prediction, train=True, mutable=['batch_stats']
      )
      return jnp.square(flaw).mean(), (flaw, updated)

    return jax.grad(mean_square, has_aux=True)(prediction)

  gradient, (flaw, updated) = run(prediction)
  assert_allclose(flaw, recorded['flawmap'][:, 0], atol=1e-4)
  assert_allclose(
    gradient, nhwc(recorded['dpred']),
    atol=1e-3 * np.abs(recorded['dpred']).max(),
  )  # fmt: skip
  assert jax.tree.structure(updated['batch_stats']) == jax.tree.structure(
    variables['batch_stats']
  )


@t.needed
@pytest.mark.parametrize(
  ('stride', 'side', 'train'), [(32, 92, True), (4, 32, True), (1, 16, False)]
)
def test_every_stride_is_pytorch(stride, side, train):
  weights = random_weights(4, 3)
  rng = np.random.default_rng(1)
  image = rng.uniform(-1, 1, (2, 1, side, side)).astype(np.float32)
  p = rng.dirichlet((1, 1), (2, side, side)).astype(np.float32)
  wanted = in_torch(
    weights, t.tensor(image), t.to_torch(p),
    stride, train,
  )  # fmt: skip
  net = FlawDetector(width=4, stride=stride)
  found = jax.jit(
    lambda v: net.apply(
      v, nhwc(image), p, train=train, mutable=['batch_stats']
    )[0]
  )(variables_of(weights))
  assert found.std() > 0.01
  assert_allclose(found, wanted[:, 0], atol=2e-4)
  cells = flaw_detector.cells(side, stride)
  assert cells >= 2


@pytest.mark.parametrize('stride', (32, 4))
def test_parameters_are_those_published_whatever_the_stride(stride):
  variables = jax.eval_shape(
    FlawDetector(stride=stride).init, jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 64, 21)),
  )  # fmt: skip
  sizes = jax.tree.map(lambda x: x.size, variables['params'])
  # Kernels; biases; scale and bias of half of the normalised channels.
  pairs = 24 * 64 + 64 * 128 + 128**2 + 128 * 256 + 256**2 + 256 * 512 + 512**2
  channels = 64 + 2 * (128 + 256 + 512)
  wanted = 16 * (pairs + 512) + channels + 1 + channels
  assert sum(jax.tree.leaves(sizes)) == wanted == 8_294_017
  half = variables['batch_stats']['norm4_1']['batch']['mean']
  assert half.shape == (256,)


@pytest.mark.parametrize('stride', flaw_detector.STRIDES)
def test_smallest_sides(stride):
  run = lambda side: jax.eval_shape(
    FlawDetector(width=2, stride=stride).init,
    jax.random.key(0), jnp.zeros((1, side, side, 1)),
    jnp.zeros((1, side, side, 2)),
  )  # fmt: skip
  least = flaw_detector.smallest_side(stride, 1)
  run(least)
  with pytest.raises(ValueError, match=f'at least {least}'):
    run(least - 1)


def test_stride_fits_the_images():
  published = {64: 1, 92: 2, 188: 5, 256: 7, 321: 9}
  for side, cells in published.items():
    assert flaw_detector.cells(side, 32) == cells
  for side in range(13, 400):
    stride = flaw_detector.fitting_stride(side)
    assert flaw_detector.cells(side, stride) >= 5
    assert stride == 32 or flaw_detector.cells(side, 2 * stride) < 5
  assert flaw_detector.fitting_stride(188) == 32
  assert flaw_detector.fitting_stride(187) == 16
  assert flaw_detector.fitting_stride(4) == 1


def test_images_meet_in_batch_norm_alone():
  """In use, what is said of an image does not depend on its batch."""
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
  p = rng.dirichlet((1, 1), (3, 16, 16)).astype(np.float32)
  net = FlawDetector(width=2, stride=1)
  variables = variables_of(random_weights(2, 3))
  run = jax.jit(
    lambda x, p, train: net.apply(
      variables, x, p, train=train, mutable=['batch_stats']
    )[0],
    static_argnums=2,
  )
  # The others change, not the number, so that one program serves both.
  mates = np.concatenate([image[:1], image[:0:-1] ** 2])
  for train, changes in ((False, False), (True, True)):
    difference = np.abs(run(image, p, train)[0] - run(mates, p, train)[0]).max()
    assert (difference > 0.01) if changes else (difference < 1e-5)
