"""Published files through the whole route: converted, loaded, recorded numbers.

The recordings are float64 runs; images there are NCHW.
"""

import jax
import numpy as np
import pytest
from golden_weights import nhwc
from numpy.testing import assert_allclose

from jaxseg import pretrained
from jaxseg.nets import stylegan2
from jaxseg.published import networks

CLOSE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope='module')
def converted(shared, tmp_path_factory):
  """Converts a file and loads the folder."""

  def convert(kind, name):
    output = tmp_path_factory.mktemp('weights') / 'out'
    source = shared / 'golden' / 'semanticgan' / name
    pretrained.convert(kind, str(source), output, size=64)
    return pretrained.load(output)

  return convert


def applied(loaded, name, *args, **kwargs):
  network = loaded.networks[name]
  module = networks.module(network.arch, network.settings)
  run = jax.jit(
    lambda variables, args: module.apply(variables, *args, **kwargs)
  )
  return run(network.variables, args)


def stored_noise(loaded):
  return [loaded.extras['noise'][str(i)] for i in range(9)]


def test_stylegan2(converted, recorded):
  wanted = recorded('sg2_rosinality_64_io')
  loaded = converted('stylegan2', 'sg2_rosinality_64.pt')
  assert list(loaded.networks) == ['g', 'g_ema', 'd_r']
  assert_allclose(loaded.extras['w_avg'], wanted['latent_avg'])
  image, seg = applied(loaded, 'g_ema', wanted['z'], stored_noise(loaded))
  assert seg is None
  assert_allclose(image, nhwc(wanted['image_bufnoise']), **CLOSE)
  assert_allclose(applied(loaded, 'd_r', image), wanted['d'][:, 0], **CLOSE)


@pytest.mark.parametrize('name', (
  'semgan_gan_rgb8_64.pt', 'semgan_gan_rgb8_64_weights.npz',
))  # fmt: skip
def test_semanticgan(converted, recorded, name):
  loaded = converted('semanticgan', name)
  assert list(loaded.networks) == ['g', 'g_ema', 'd_r', 'd_m']
  g = recorded('semgan_gan_rgb8_64_g')
  given = [nhwc(g[f'noise_{i}']) for i in range(9)]
  stored = [np.repeat(x, 4, 0) for x in stored_noise(loaded)]
  w = stylegan2.truncate(g['w1'], g['w_mean'], g['trunc_psi'])
  codes = {
    '': (g['wplus'], given), '_mix': (g['wplus_mix'], given),
    '_bufnoise': (g['wplus'], stored), '_wplus': (g['wplus_in'], given),
    '_trunc': (stylegan2.broadcast_w(w, 64), given),
  }  # fmt: skip
  batch = [np.concatenate([x for x, _ in codes.values()])]
  maps = zip(*(noise for _, noise in codes.values()), strict=True)
  batch.append([np.concatenate(parts) for parts in maps])
  outputs = applied(loaded, 'g_ema', *batch, method='synthesize')
  for i, case in enumerate(codes):
    image, seg = (x[4 * i : 4 * i + 4] for x in outputs)
    assert_allclose(image, nhwc(g[f'image{case}']), **CLOSE)
    assert_allclose(seg, nhwc(g[f'seg{case}']), **CLOSE)
  d = recorded('semgan_gan_rgb8_64_d')
  pair = nhwc(d['image']), nhwc(d['mask'])
  scores = applied(loaded, 'd_r', pair[0])
  assert_allclose(scores, d['d_img_8'][:, 0], **CLOSE)
  for scale, layers in enumerate(applied(loaded, 'd_m', *pair)):
    for i, found in enumerate(layers):
      wanted = nhwc(d[f'd_seg_real_s{scale}_l{i}'])
      assert_allclose(found[:2], wanted, **CLOSE)


def test_semanticgan_encoder(converted, recorded):
  name = 'semgan_enc_fpn_rgb8_64'
  loaded = converted('semanticgan', f'{name}_weights.npz')
  assert list(loaded.networks) == ['g_ema', 'e'] and not loaded.adds_w_avg
  wanted = recorded(name)
  codes = applied(loaded, 'e', nhwc(wanted['image']))
  assert_allclose(codes, wanted['wplus_eval'], **CLOSE)
  g = recorded('semgan_gan_rgb8_64_g')
  noise = [nhwc(g[f'noise_{i}']) for i in range(9)]
  image, seg = applied(loaded, 'g_ema', codes[:4], noise, method='synthesize')
  assert_allclose(image, nhwc(wanted['rec_image']), **CLOSE)
  assert_allclose(seg, nhwc(wanted['rec_seg']), **CLOSE)


def test_psp(converted, recorded):
  wanted = recorded('psp_rgb_64_io')
  loaded = converted('psp', 'psp_rgb_64.pt')
  assert loaded.adds_w_avg
  codes = applied(loaded, 'e', nhwc(wanted['x'].astype(np.float32)))
  assert_allclose(codes, wanted['codes'], **CLOSE)
  w_plus = codes + loaded.extras['w_avg']
  assert_allclose(w_plus, wanted['wplus'], **CLOSE)
  noise = [np.repeat(x, 2, 0) for x in stored_noise(loaded)]
  image, _ = applied(loaded, 'g_ema', w_plus, noise, method='synthesize')
  assert_allclose(image, nhwc(wanted['y']), **CLOSE)
