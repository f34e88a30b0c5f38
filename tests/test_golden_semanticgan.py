"""The published SemanticGAN's networks and losses: every recorded output.

The recordings are float64 runs; images there are NCHW.
"""

import functools

import golden_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_weights import nhwc
from numpy.testing import assert_allclose

from jaxseg.losses import gan
from jaxseg.method import ema_decay
from jaxseg.methods import semantic_gan
from jaxseg.nets import stylegan2
from jaxseg.nets.discriminators import MultiscaleDiscriminator, scores

G = stylegan2.Generator(64, 3, 8, w_dim=64, channel_max=64)
D_R = stylegan2.Discriminator(64, channel_max=64)
D_M = MultiscaleDiscriminator(3, 8)
CLOSE = dict(rtol=0, atol=1e-4)


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


@jax.jit
def mapping(params, z):
  return G.apply({'params': params}, z, method='mapping')


@jax.jit
def synthesize(params, w_plus, noise):
  return G.apply({'params': params}, w_plus, noise, method='synthesize')


@jax.jit
def d_r(params, image):
  return D_R.apply({'params': params}, image)


@jax.jit
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
  train = jax.jit(
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
    value = jax.jit(loss)(*args)
    assert_allclose(value, d_out[f'loss_{name}'], err_msg=name, **CLOSE)


def test_r1_of_d_r(weights, d_out):
  params = golden_weights.discriminator(weights, 'd_img/')
  penalty = jax.jit(
    lambda p, x: gan.r1_penalty(lambda x: D_R.apply({'params': p}, x), x)
  )(params, nhwc(d_out['image']))
  assert_allclose(penalty, d_out['r1_img'], rtol=1e-3)


def test_r1_of_d_m(d_m_variables, d_out):
  def penalty(variables, image, mask):
    score = lambda x, y: gan.patch_mean(scores(D_M.apply(variables, x, y)))
    return gan.r1_penalty(score, image, mask)

  ours = jax.jit(penalty)(
    d_m_variables, nhwc(d_out['image']), nhwc(d_out['mask'])
  )
  # The published penalty differentiates the mean over its 8 pairs.
  assert_allclose(ours / 8**2, d_out['r1_seg'], rtol=1e-3)


def assert_gradient_norms(weights, grads, names, wanted):
  """Norms of all parameters' gradients, in the published order."""
  found = golden_weights.by_published_name(weights, 'g_ema/', grads)
  norms = np.array([np.linalg.norm(found[name]) for name in names])
  # A noise strength is one number, the small rest of a sum over all pixels.
  loose = np.array([name.endswith('noise.weight') for name in names])
  assert len(norms) == len(jax.tree.leaves(grads))
  assert_allclose(norms[~loose], wanted[~loose], rtol=1e-3)
  assert_allclose(norms[loose], wanted[loose], rtol=1e-2)


def test_path_length(weights, g_params, g_out, d_out, noise):
  def penalty(params, z, noise, y, mean):
    w = G.apply({'params': params}, z, method='mapping')
    render = lambda w: G.apply(
      {'params': params}, w, noise, method='synthesize'
    )[0]
    penalty, mean, lengths = gan.path_length_penalty(
      render, stylegan2.broadcast_w(w, 64), y, mean
    )
    return penalty, (mean, lengths)

  (value, (mean, lengths)), grads = jax.jit(
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
  assert_gradient_norms(weights, grads, names, d_out['path_grad_norms'])


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

  value, grads = jax.jit(jax.value_and_grad(loss))(
    g_params,
    g_out['z1'],
    noise,
    golden_weights.discriminator(weights, 'd_img/'),
    d_m_variables,
    jax.tree.map(lambda x: x[:4], d_m_outputs[0]),
  )
  assert_allclose(value, d_out['gstep_loss'], **CLOSE)
  names = d_out['gstep_grad_param_names']
  assert_gradient_norms(weights, grads, names, d_out['gstep_grad_norms'])


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
