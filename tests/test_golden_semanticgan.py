"""Every recorded output of the published SemanticGAN, small widths, 64 px.

The recordings are float64 runs; images there are NCHW.
"""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose
from quick import quick_jit

from jaxseg import optimizers
from jaxseg.losses import gan, segmentation
from jaxseg.method import ema_decay
from jaxseg.methods import semantic_gan
from jaxseg.metrics.segmentation import confusion_matrix, summarize
from jaxseg.nets import lpips, stylegan2
from jaxseg.nets.discriminators import MultiscaleDiscriminator, scores
from jaxseg.nets.encoder import Encoder

G = stylegan2.Generator(64, 3, 8, w_dim=64, channel_max=64)
D_R = stylegan2.Discriminator(64, channel_max=64)
D_M = MultiscaleDiscriminator(3, 8)
E = Encoder(64, 64, width=8, features=64, head_depths=(4, 5, 6), norm='batch')
CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def recorded(shared):
  folder = shared / 'golden' / 'semanticgan'
  return functools.cache(lambda name: dict(np.load(folder / f'{name}.npz')))


@pytest.fixture(scope='module')
def weights(recorded):
  return recorded('semgan_gan_rgb8_64_weights')


@pytest.fixture(scope='module')
def g_out(recorded):
  return recorded('semgan_gan_rgb8_64_g')


@pytest.fixture(scope='module')
def d_out(recorded):
  return recorded('semgan_gan_rgb8_64_d')


@pytest.fixture(scope='module')
def g_params(weights):
  return golden_weights.generator(weights, 'g_ema/')


@pytest.fixture(scope='module')
def noise(g_out):
  return [nhwc(g_out[f'noise_{i}']) for i in range(9)]


def nhwc(x):
  return jnp.asarray(x.transpose(0, 2, 3, 1))


@quick_jit
def mapping(params, z):
  return G.apply({'params': params}, z, method='mapping')


@quick_jit
def synthesize(params, w_plus, noise):
  return G.apply({'params': params}, w_plus, noise, method='synthesize')


@quick_jit
def d_r(params, image):
  return D_R.apply({'params': params}, image)


@quick_jit
def d_m(variables, image, label):
  return D_M.apply(variables, image, label)


@pytest.mark.parametrize('i', (1, 2))
def test_mapping(g_params, g_out, i):
  assert_allclose(mapping(g_params, g_out[f'z{i}']), g_out[f'w{i}'], **CLOSE)


@pytest.mark.parametrize('case', ('', '_mix', '_bufnoise', '_trunc', '_wplus'))
def test_generator(weights, g_params, g_out, noise, case):
  w1, w2 = g_out['w1'], g_out['w2']
  if case == '_mix':
    index = int(g_out['mix_inject_index'])
    w_plus = stylegan2.mix_styles(w1, w2, index, 64)
    assert_allclose(w_plus, g_out['wplus_mix'], **CLOSE)
  elif case == '_trunc':
    w = stylegan2.truncate(w1, g_out['w_mean'], g_out['trunc_psi'])
    w_plus = stylegan2.broadcast_w(w, 64)
  elif case == '_wplus':
    w_plus = g_out['wplus_in']
  else:
    w_plus = stylegan2.broadcast_w(w1, 64)
    assert_allclose(w_plus, g_out['wplus'], **CLOSE)
  if case == '_bufnoise':
    stored = golden_weights.registered_noise(weights, 'g_ema/')
    noise = [np.repeat(x, 4, axis=0) for x in stored]
  image, seg = synthesize(g_params, w_plus, noise)
  assert_allclose(image, nhwc(g_out[f'image{case}']), **CLOSE)
  assert_allclose(seg, nhwc(g_out[f'seg{case}']), **CLOSE)


@pytest.fixture(scope='module')
def d_r_scores(weights, g_out, d_out):
  params = golden_weights.discriminator(weights, 'd_img/')
  image = nhwc(d_out['image'])
  real = {n: d_r(params, image[:n]) for n in (1, 2, 8)}
  return real, d_r(params, nhwc(g_out['image']))


def test_d_r(d_out, d_r_scores):
  real, fake = d_r_scores
  for n, score in real.items():
    assert_allclose(score, d_out[f'd_img_{n}'][:, 0], **CLOSE)
  assert_allclose(fake, d_out['d_img_fake4'][:, 0], **CLOSE)


def test_logistic_losses(d_out, d_r_scores):
  real, fake = d_r_scores
  loss = gan.logistic_d(real[8], fake)
  assert_allclose(loss, d_out['loss_d_logistic'], **CLOSE)
  assert_allclose(gan.logistic_g(fake), d_out['loss_g_nonsat'], **CLOSE)


@pytest.fixture(scope='module')
def d_m_variables(weights):
  return golden_weights.multiscale(weights, 'd_seg/')


@pytest.fixture(scope='module')
def d_m_outputs(d_m_variables, g_out, d_out):
  """Outputs for the 8 real pairs (in one batch) and the 4 fake ones."""
  real = d_m(d_m_variables, nhwc(d_out['image']), nhwc(d_out['mask']))
  fake = d_m(d_m_variables, nhwc(g_out['image']), nhwc(g_out['seg']))
  return jax.device_get((real, fake))


@pytest.mark.parametrize('scale', range(3))
def test_d_m(d_out, d_m_outputs, scale):
  real, fake = d_m_outputs
  for i in range(5):
    wanted = nhwc(d_out[f'd_seg_real_s{scale}_l{i}'])
    assert_allclose(real[scale][i][:2], wanted, **CLOSE)
  wanted = nhwc(d_out[f'd_seg_fake_s{scale}_l4'])
  assert_allclose(fake[scale][4], wanted, **CLOSE)


def test_d_m_in_training_refines_its_spectral_norms(d_m_variables, d_out):
  train = quick_jit(
    functools.partial(D_M.apply, update=True, mutable=['spectral'])
  )
  outputs, new = train(d_m_variables, nhwc(d_out['image']), nhwc(d_out['mask']))
  for scale in range(3):
    wanted = nhwc(d_out[f'd_seg_train1_s{scale}_l4'])
    assert_allclose(outputs[scale][4], wanted, **CLOSE)
    for i in (1, 2, 3):
      wanted = d_out[f'after_train1/scale{2 - scale}_layer{i}.0.0.weight_u']
      u = new['spectral'][f'scale_{scale}'][f'layer{i}']['u']
      assert_allclose(u, wanted, rtol=0, atol=1e-5)


def test_hinge_and_feature_matching(d_out, d_m_outputs):
  real, fake = d_m_outputs
  real4 = jax.tree.map(lambda x: x[:4], real)
  matching = lambda real, fake: 2 * gan.feature_matching(real, fake)
  for loss, args, name in (
    (gan.hinge_real, [scores(real)], 'd_seg_hinge_real'),
    (gan.hinge_fake, [scores(fake)], 'd_seg_hinge_fake'),
    (gan.hinge_g, [scores(fake)], 'g_seg_adv'),
    (matching, [real4, fake], 'g_seg_feat_lambda2'),
  ):
    value = quick_jit(loss)(*args)
    assert_allclose(value, d_out[f'loss_{name}'], err_msg=name, **CLOSE)


def test_r1_of_d_r(weights, d_out):
  params = golden_weights.discriminator(weights, 'd_img/')
  penalty = quick_jit(
    lambda p, x: gan.r1_penalty(lambda x: D_R.apply({'params': p}, x), x)
  )(params, nhwc(d_out['image']))
  assert_allclose(penalty, d_out['r1_img'], rtol=1e-3)


def test_r1_of_d_m(d_m_variables, d_out):
  def penalty(variables, image, mask):
    score = lambda x, y: gan.patch_mean(scores(D_M.apply(variables, x, y)))
    return gan.r1_penalty(score, image, mask)

  ours = quick_jit(penalty)(
    d_m_variables, nhwc(d_out['image']), nhwc(d_out['mask'])
  )
  # The published penalty differentiates the mean over its 8 pairs.
  assert_allclose(ours / 8**2, d_out['r1_seg'], rtol=1e-3)


def assert_gradient_norms(grads, names, wanted):
  """Norms of all parameters' gradients, in the published order."""
  norms = np.array(
    [np.linalg.norm(golden_weights.parameter(grads, name)) for name in names]
  )
  # A noise strength is one number, the small rest of a sum over all pixels.
  loose = np.array([name.endswith('noise.weight') for name in names])
  assert len(norms) == len(jax.tree.leaves(grads))
  assert_allclose(norms[~loose], wanted[~loose], rtol=1e-3)
  assert_allclose(norms[loose], wanted[loose], rtol=1e-2)


def test_path_length(g_params, g_out, d_out, noise):
  def penalty(params, z, noise, y, mean):
    w = G.apply({'params': params}, z, method='mapping')
    render = lambda w: G.apply(
      {'params': params}, w, noise, method='synthesize'
    )[0]
    penalty, mean, lengths = gan.path_length_penalty(
      render, stylegan2.broadcast_w(w, 64), y, mean
    )
    return penalty, (mean, lengths)

  (value, (mean, lengths)), grads = quick_jit(
    jax.value_and_grad(penalty, has_aux=True)
  )(
    g_params,
    g_out['z1'][:2],
    [x[:2] for x in noise],
    nhwc(d_out['path_noise']),
    d_out['path_mean_in'],
  )
  assert_allclose(lengths, d_out['path_lengths'], rtol=1e-4)
  assert_allclose(value, d_out['path_penalty'], rtol=1e-4)
  assert_allclose(mean, d_out['path_mean_out'], rtol=1e-5)
  names = d_out['gstep_grad_param_names']
  assert_gradient_norms(grads, names, d_out['path_grad_norms'])


def test_generator_step(
  weights, g_params, g_out, d_out, noise, d_m_variables, d_m_outputs
):
  def loss(params, z, noise, d_r_params, d_m_variables, real):
    image, seg = G.apply({'params': params}, z, noise)
    fake = D_M.apply(d_m_variables, jax.lax.stop_gradient(image), seg)
    return (
      gan.logistic_g(D_R.apply({'params': d_r_params}, image))
      + gan.hinge_g(scores(fake))
      + 2.0 * gan.feature_matching(real, fake)
    )

  value, grads = quick_jit(jax.value_and_grad(loss))(
    g_params,
    g_out['z1'],
    noise,
    golden_weights.discriminator(weights, 'd_img/'),
    d_m_variables,
    jax.tree.map(lambda x: x[:4], d_m_outputs[0]),
  )
  assert_allclose(value, d_out['gstep_loss'], **CLOSE)
  names = d_out['gstep_grad_param_names']
  assert_gradient_norms(grads, names, d_out['gstep_grad_norms'])


@pytest.fixture(scope='module')
def metric(recorded):
  """LPIPS's structure on a random VGG16, with the published last layers."""
  losses = recorded('semgan_losses')
  params = lpips.random_weights(0)
  total = params['convs'][0]['kernel'].sum()
  assert_allclose(total, losses['vgg_conv1_1_w_sum'], rtol=1e-5)
  return {**params, 'lin': [losses[f'lpips_lin{i}'] for i in range(5)]}


@pytest.fixture(scope='module')
def encoder_step(recorded, noise, metric):
  """(losses, everything in between), gradients of the labelled half step."""
  weights = recorded('semgan_enc_fpn_rgb8_64_weights')
  variables = golden_weights.encoder(weights, 'e/')

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
  return quick_jit(jax.value_and_grad(loss, has_aux=True))(
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
  w_plus, _ = quick_jit(apply)(
    golden_weights.encoder(weights, 'e/'), nhwc(wanted['image'])
  )
  assert_allclose(w_plus, wanted['wplus_train'], **CLOSE)


def test_perceptual_distance(recorded, metric):
  wanted = recorded('semgan_losses')
  features = quick_jit(lpips.features)
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
  value = quick_jit(gan.noise_penalty)(maps)
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


def test_moving_average_of_weights(recorded):
  decay = ema_decay(32, 10_000)
  assert_allclose(decay, recorded('semgan_const')['ema_decay'], rtol=1e-6)


@pytest.mark.parametrize('network', ('g', 'd'))
def test_adam_allows_for_lazy_regularisation(recorded, network):
  r = recorded('semgan_const')
  tx = semantic_gan._optimizers(0.002, 0.002, 0.0, 0.99, True, 16, 4)
  tx = tx['g' if network == 'g' else 'd_r']
  params = jnp.zeros(())
  first, state = tx.update(jnp.ones(()), tx.init(params))
  second, _ = tx.update(jnp.full((), 2.0), state)
  # With b1 = 0 the updates are -lr and -2 lr sqrt((1 + b2) / (4 + b2)).
  lr, b2 = r[f'{network}_lr'], r[f'{network}_beta2']
  assert_allclose(first, -lr, rtol=1e-5)
  ratio = 2 * np.sqrt((1 + b2) / (4 + b2))
  assert_allclose(second / first, ratio, rtol=1e-5)
