"""Files of generators in every format, to folders, to images.

They are made here, of random numbers, with and without PyTorch.
"""

import io

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import stylegan2_layouts as layouts
import torch_by_hand
import torch_functions
import torch_stylegan2 as reference
from entries import arrays_of
from numpy.testing import assert_allclose, assert_array_equal
from torch_by_hand import Namespace

from jaxseg import pretrained
from jaxseg.published import kinds, networks, read

WIDTHS, W_DIM = (6, 5, 4), 7


def generator(seed=0, widths=WIDTHS, **kwargs):
  return layouts.draw(layouts.generator(widths, W_DIM, **kwargs), seed)


def discriminator(widths=WIDTHS, channels=3):
  return layouts.draw(layouts.discriminator(widths, channels), 2)


@torch_functions.needed
def test_images_labels_and_scores_are_pytorchs(tmp_path):
  """Widths that differ, so that no axis can be taken for another."""
  arrays = generator(channels=1, classes=2, depth=3)
  d = discriminator(channels=1)
  tree = {'g_ema': arrays, 'd_img': d}
  (tmp_path / 'x.pt').write_bytes(torch_by_hand.zip_file(tree))
  pretrained.convert('semanticgan', tmp_path / 'x.pt', tmp_path / 'out')
  loaded = pretrained.load(tmp_path / 'out')
  g, d_r = (loaded.networks[name] for name in ('g_ema', 'd_r'))
  module = networks.module(g.arch, g.settings)
  critic = networks.module(d_r.arch, d_r.settings)
  noise = [loaded.extras['noise'][str(i)] for i in range(5)]
  rng = np.random.default_rng(5)
  z = rng.normal(size=(4, W_DIM)).astype(np.float32)

  @jax.jit
  def run(variables, d_variables, z, noise):
    w = module.apply(variables, z, method='mapping')
    w_plus = w[:, None] * jnp.linspace(0.5, 1.5, 6)[:, None]
    image, seg = module.apply(variables, w_plus, noise, method='synthesize')
    return w, w_plus, image, seg, critic.apply(d_variables, image)

  w, w_plus, image, seg, score = run(g.variables, d_r.variables, z, noise)
  there, tensor = reference.as_ada(arrays), torch_functions.tensor
  assert_allclose(w, reference.mapping(there, tensor(z)), atol=1e-5)
  wanted, wanted_seg = reference.generator(there, tensor(w_plus))
  assert_allclose(image, torch_functions.from_torch(wanted), atol=1e-4)
  assert_allclose(seg, torch_functions.from_torch(wanted_seg), atol=1e-4)
  wanted = reference.discriminator(reference.as_ada(d), wanted)
  assert_allclose(score, wanted, atol=1e-4)


def tree_of_training():
  """A checkpoint as a training leaves it, with what is of no use here."""
  state = {0: {'exp_avg': np.ones((2, 2), np.float32), 'step': 3}}
  return {
    'g': layouts.prefixed('module.', generator(1)),
    'd': layouts.prefixed('module.', discriminator()),
    'g_ema': generator(),
    'g_optim': {'state': state, 'param_groups': {'lr': 0.002}},
    'args': Namespace(size=16, path='x', ckpt=None, r1=10.0, arch='stylegan2'),
    'ada_aug_p': 0.0,
    'latent_avg': np.ones(W_DIM, np.float32),
  }


@pytest.mark.parametrize('form', ('zip', 'legacy', 'npz', 'safetensors'))
def test_formats(tmp_path, form):
  tree, path = tree_of_training(), tmp_path / 'x'
  if form in ('zip', 'legacy'):
    path.write_bytes(getattr(torch_by_hand, f'{form}_file')(tree))
  else:
    arrays = {
      f'{name}/{key.removeprefix("module.")}': x
      for name in ('g', 'd', 'g_ema') for key, x in tree[name].items()
    } | {'latent_avg': tree['latent_avg']}  # fmt: skip
    out = io.BytesIO()
    np.savez(out, **arrays)
    saved = safetensors.numpy.save(arrays)
    path.write_bytes(out.getvalue() if form == 'npz' else saved)
  card = pretrained.convert('stylegan2', str(path), tmp_path / 'out', size=16)
  loaded = pretrained.load(tmp_path / 'out')
  assert list(loaded.networks) == ['g', 'g_ema', 'd_r']
  rest = ['g_optim/state/0/exp_avg'] if form in ('zip', 'legacy') else []
  assert card['ignored'] == rest
  params = loaded.networks['g_ema'].variables['params']
  kernel = params['conv_up_0']['conv']['kernel']
  wanted = tree['g_ema']['convs.0.conv.weight'][0].transpose(2, 3, 1, 0)
  assert_array_equal(kernel, wanted)
  assert kernel.flags.c_contiguous and kernel.dtype == np.float32


@pytest.mark.parametrize('dtype', (np.float16, ml_dtypes.bfloat16, np.float64))
def test_other_precisions(tmp_path, dtype):
  arrays = {key: x.astype(dtype) for key, x in generator().items()}
  (tmp_path / 'x').write_bytes(torch_by_hand.legacy_file({'g_ema': arrays}))
  source = read.open_source(str(tmp_path / 'x'))
  assert source.tensors['g_ema/input.input'].dtype == dtype
  found = kinds.convert('stylegan2', source).networks['g_ema']
  variables = arrays_of(found.variables)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {np.dtype('f4')}
  const = arrays['input.input'][0].transpose(1, 2, 0).astype('f4')
  assert_array_equal(variables['params']['const'], const)


@torch_functions.needed
@pytest.mark.parametrize('is_zip', (True, False))
def test_files_by_torch(tmp_path, is_zip):
  """Those by hand are as PyTorch itself writes them."""
  tree, torch = tree_of_training(), torch_functions.torch
  tensors = jax.tree.map(torch_functions.tensor, tree['g_ema'])
  tensors['input.input'] = tensors['input.input'].half()
  saved = tree | {'g_ema': tensors, 'g': {}, 'd': {}, 'latent_avg': None}
  saved['g_optim'] = None
  path = tmp_path / 'x.pt'
  torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
  source = read.open_source(str(path))
  found = kinds.convert('stylegan2', source).networks['g_ema']
  first = found.variables['params']['conv_0']['bias'].read()
  assert_array_equal(first, tree['g_ema']['convs.1.activate.bias'])
  for write in (torch_by_hand.zip_file, torch_by_hand.legacy_file):
    path.write_bytes(write(tree))
    for name, x in torch.load(path, weights_only=False)['g_ema'].items():
      assert_array_equal(x.numpy(), tree['g_ema'][name])
