"""The published encoder, its losses, metrics and optimiser: every recording.

The recordings are float64 runs; images there are NCHW.
"""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_weights import nhwc
from numpy.testing import assert_allclose

from jaxseg import optimizers
from jaxseg.losses import gan, segmentation
from jaxseg.metrics.segmentation import confusion_matrix, summarize
from jaxseg.nets import lpips, stylegan2
from jaxseg.nets.encoder import Encoder

G = stylegan2.Generator(64, 3, 8, w_dim=64, channel_max=64)
E = Encoder(64, 64, width=8, features=64, head_depths=(4, 5, 6), norm='batch')
CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def metric(recorded):
  """LPIPS's structure on a random VGG16, with the published last layers."""
  losses = recorded('semgan_losses')
  params = lpips.random_weights(0)
  total = params['convs'][0]['kernel'].sum()
  assert_allclose(total, losses['vgg_conv1_1_w_sum'], rtol=1e-5)
  return {**params, 'lin': [losses[f'lpips_lin{i}'] for i in range(5)]}


@pytest.fixture(scope='module')
def encoder_step(recorded, metric):
  """(losses, everything in between), gradients of the labelled half step."""
  weights = recorded('semgan_enc_fpn_rgb8_64_weights')
  variables = golden_weights.encoder(weights, 'e/')
  g_out = recorded('semgan_gan_rgb8_64_g')
  noise = [nhwc(g_out[f'noise_{i}']) for i in range(9)]

  def loss(params, stats, g_params, metric, noise, image, label):
    w_plus, state = E.apply(
      {'params': params, 'batch_stats': stats},
      image,
      capture_intermediates=lambda module, _: module.name == 'pyramid',
      mutable=['intermediates'],
    )
    rec, logits = G.apply(
      {'params': g_params}, w_plus[:4], noise, method='synthesize'
    )
    features = functools.partial(lpips.features, metric)
    losses = {
      'mse': jnp.square(rec - image[:4]).mean(),
      'lpips': lpips.distance(
        metric, features(rec), features(image[:4])
      ).mean(),
      'ce_tau01': segmentation.cross_entropy(logits, label, 0.1),
      'dice': segmentation.dice_loss(jax.nn.sigmoid(logits / 0.3), label),
    }
    total = sum(losses.values()) + 9 * losses['lpips']
    pyramid = state['intermediates']['pyramid']['__call__'][0]
    return total, (losses, w_plus, pyramid, rec, logits)

  gan_out = recorded('semgan_gan_rgb8_64_d')
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(
    variables['params'],
    variables['batch_stats'],
    golden_weights.generator(weights, 'g_ema/'),
    metric,
    noise,
    nhwc(gan_out['image']),
    gan_out['label'][:4].astype(np.int32),
  )


def test_encoder(recorded, encoder_step):
  wanted = recorded('semgan_enc_fpn_rgb8_64')
  (_, (_, w_plus, pyramid, rec, logits)), _ = encoder_step
  assert_allclose(w_plus, wanted['wplus_eval'], **CLOSE)
  for i, level in enumerate(pyramid, start=2):
    assert_allclose(level[:2], nhwc(wanted[f'fpn_p{i}']), **CLOSE)
  assert_allclose(rec, nhwc(wanted['rec_image']), **CLOSE)
  assert_allclose(logits, nhwc(wanted['rec_seg']), **CLOSE)


def test_encoder_losses_and_gradient(recorded, encoder_step):
  wanted = recorded('semgan_enc_fpn_rgb8_64')
  (total, (losses, *_)), grads = encoder_step
  for name, loss in losses.items():
    assert_allclose(loss, wanted[f'loss_{name}'], rtol=1e-5, err_msg=name)
  assert_allclose(total, wanted['total_label_loss'], rtol=1e-5)
  leaves = jax.device_get(jax.tree.leaves(grads))
  squares = [np.square(g).sum() for g in leaves]
  assert_allclose(
    np.sqrt(sum(squares)), wanted['label_grad_norm_total'], rtol=1e-3
  )


def test_encoder_on_batch_statistics(recorded):
  weights = recorded('semgan_enc_fpn_rgb8_64_weights')
  wanted = recorded('semgan_enc_fpn_rgb8_64')
  apply = functools.partial(E.apply, train=True, mutable=['batch_stats'])
  w_plus, _ = jax.jit(apply)(
    golden_weights.encoder(weights, 'e/'), nhwc(wanted['image'])
  )
  assert_allclose(w_plus, wanted['wplus_train'], **CLOSE)


def test_perceptual_distance(recorded, metric):
  wanted = recorded('semgan_losses')
  features = jax.jit(lpips.features)
  a, b = (features(metric, nhwc(wanted[f'lpips_{x}'])) for x in 'ab')
  value = lpips.distance(metric, a, b)
  assert_allclose(value, wanted['lpips_value'], rtol=1e-5)


def test_segmentation_losses(recorded):
  r = recorded('semgan_losses')
  logits, label = nhwc(r['logits']), r['labels'].astype(np.int32)
  dice = functools.partial(
    segmentation.dice_loss, jax.nn.sigmoid(logits / 0.3), label
  )
  cross_entropy = segmentation.cross_entropy
  for value, name in (
    (cross_entropy(logits, label, 0.1), 'softmax_tau01'),
    (cross_entropy(logits, label), 'softmax_tau1'),
    (dice(), 'dice_tau03_nobg'),
    (dice(include_background=True), 'dice_tau03_bg'),
  ):
    assert_allclose(value, r[name], rtol=1e-5, err_msg=name)


def test_binary_losses(recorded):
  r = recorded('semgan_losses')
  logits, label = nhwc(r['logits1']), r['labels1'][:, 0].astype(np.int32)
  # A binary cross-entropy is that of two classes, one with logit 0.
  two = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
  loss = segmentation.cross_entropy(two, label, 0.3)
  assert_allclose(loss, r['bce_tau03'], rtol=1e-5)
  # The only channel is class 0, here the foreground.
  loss = segmentation.dice_loss(jax.nn.sigmoid(logits / 0.3), 1 - label)
  assert_allclose(loss, r['dice1'], rtol=1e-5)


def test_noise_regulariser(recorded):
  r = recorded('semgan_losses')
  maps = [nhwc(r[f'nr_noise_{i}']) for i in range(9)]
  value = jax.jit(gan.noise_penalty)(maps)
  assert_allclose(value, r['noise_regularize'], rtol=1e-5)


def test_metrics(recorded):
  r = recorded('semgan_metrics')
  cm = confusion_matrix(r['labels'], r['logits'].argmax(1), 8)
  result = summarize(cm, [str(i) for i in range(8)])
  tp = np.diag(cm)
  assert_allclose(tp, r['inter'])
  assert_allclose(cm.sum(0) + cm.sum(1) - tp, r['union'])
  assert (tp.sum(), cm.sum()) == (r['correct'], r['labeled'])
  assert_allclose(result['miou'], r['miou'], rtol=1e-5)
  assert_allclose(result['pixel_accuracy'], r['pix_acc'], rtol=1e-5)


def test_ranger(recorded):
  r = recorded('semgan_ranger')
  params = {'kernel': r['W0'].transpose(2, 3, 1, 0), 'bias': r['b0']}
  tx = optimizers.ranger(float(r['lr']))
  x, y = nhwc(r['X']), nhwc(r['Y'])

  def loss(params):
    out = jax.lax.conv_general_dilated(
      x,
      params['kernel'],
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    return jnp.square(out + params['bias'] - y).mean()

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for i in range(1, 21):
    params, state = step(params, state)
    kernel = r[f'W_{i}'].transpose(2, 3, 1, 0)
    assert_allclose(params['kernel'], kernel, rtol=0, atol=1e-5)
    assert_allclose(params['bias'], r[f'b_{i}'], rtol=0, atol=1e-5)


def test_encoder_learning_rates(recorded):
  wanted = recorded('semgan_const')['enc_lr_curve']
  schedule = optimizers.constant_then_cosine(1e-3, 30, 100, 1e-5)
  ours = jax.vmap(schedule)(jnp.arange(len(wanted)))
  assert_allclose(ours, wanted, rtol=1e-5)
