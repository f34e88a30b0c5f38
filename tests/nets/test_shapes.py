"""Sizes of every network, without running one: the published numbers."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxseg.nets import stylegan2
from jaxseg.nets.discriminators import MultiscaleDiscriminator
from jaxseg.nets.encoder import Encoder
from jaxseg.nets.stylegan2 import Discriminator, Generator
from jaxseg.nets.unet import UNet

POWERS = (32, 64, 128, 256, 512, 1024)


def variables_of(module, *args, **kwargs):
  """Shapes of a module's variables; `args` are shapes of inputs."""
  inputs = [jax.ShapeDtypeStruct(a, jnp.float32) for a in args]
  init = functools.partial(module.init, **kwargs)
  return jax.eval_shape(init, jax.random.key(0), *inputs)


def outputs_of(module, *args, **kwargs):
  """Shapes of a module's outputs."""
  inputs = [jax.ShapeDtypeStruct(a, jnp.float32) for a in args]
  run = lambda *x: module.init_with_output(jax.random.key(0), *x, **kwargs)[0]
  return jax.eval_shape(run, *inputs)


def count(variables):
  leaves = jax.tree.leaves(variables['params'])
  return sum(leaf.size for leaf in leaves)


@pytest.mark.parametrize('resolution, multiplier, channels, classes, wanted', (
  (256, 2, 3, 8, 31_568_218),
  (256, 2, 1, 1, 31_541_659),
  (64, 2, 3, 8, 28_366_400),
  (1024, 2, 3, 8, 31_953_972),
  (256, 1, 3, 8, 26_067_930),
))  # fmt: skip
def test_generator_parameters(
  resolution, multiplier, channels, classes, wanted
):
  g = Generator(resolution, channels, classes, channel_multiplier=multiplier)
  assert count(variables_of(g, (1, 512))) == wanted


@pytest.mark.parametrize('resolution, multiplier, channels, wanted', (
  (256, 2, 3, 28_864_129),
  (256, 2, 1, 28_863_873),
  (64, 2, 3, 26_488_833),
  (1024, 2, 3, 29_012_513),
  (256, 1, 3, 24_001_089),
))  # fmt: skip
def test_d_r_parameters(resolution, multiplier, channels, wanted):
  d_r = Discriminator(resolution, multiplier)
  image = 4, resolution, resolution, channels
  assert count(variables_of(d_r, image)) == wanted


@pytest.mark.parametrize(
  'channels, classes, wanted', ((3, 8, 8_316_099), (1, 1, 8_288_451))
)
def test_d_m_parameters(channels, classes, wanted):
  image, label = (1, 64, 64, channels), (1, 64, 64, classes)
  assert count(variables_of(MultiscaleDiscriminator(), image, label)) == wanted


@pytest.mark.parametrize('resolution, channels, wanted', (
  (256, 3, 210_858_560), (256, 1, 210_852_288), (64, 3, 153_172_544),
))  # fmt: skip
def test_encoder_parameters(resolution, channels, wanted):
  e = Encoder(resolution, head_depths=(4, 5, 6), norm='batch')
  image = 1, resolution, resolution, channels
  assert count(variables_of(e, image)) == wanted


@pytest.mark.parametrize('channels, classes', ((3, 8), (1, 2)))
@pytest.mark.parametrize('resolution', POWERS)
def test_gan_shapes(resolution, channels, classes):
  r = resolution
  latents = stylegan2.num_latents(r)
  assert latents == 2 * (r.bit_length() - 1) - 2
  shapes = stylegan2.noise_shapes(r)
  assert len(shapes) == latents - 1 and shapes[-1] == (r, r)
  image, logits = outputs_of(Generator(r, channels, classes), (2, 512))
  assert image.shape == (2, r, r, channels)
  assert logits.shape == (2, r, r, classes)
  assert image.dtype == logits.dtype == jnp.float32
  assert outputs_of(Discriminator(r), image.shape).shape == (2,)
  maps = outputs_of(MultiscaleDiscriminator(), image.shape, logits.shape)
  assert [len(m) for m in maps] == [5, 5, 5]
  for i, layers in enumerate(maps):
    side = (r >> i) // 8 + 3
    assert layers[-1].shape == (2, side, side, 1)


def test_generator_without_labels():
  image, logits = outputs_of(
    Generator(32, 1, w_dim=16, channel_max=16), (2, 16)
  )
  assert image.shape == (2, 32, 32, 1) and logits is None


@pytest.mark.parametrize('resolution', POWERS)
def test_encoder_gives_one_code_an_image(resolution):
  e = Encoder(resolution, w_dim=8, width=8, features=16)
  codes = outputs_of(e, (3, resolution, resolution, 1))
  assert codes.shape == (3, stylegan2.num_latents(resolution), 8)
  assert codes.dtype == jnp.float32


@pytest.mark.parametrize('norm', ('group', 'batch'))
def test_encoder_statistics_only_with_batch_norm(norm):
  e = Encoder(32, w_dim=8, width=8, features=16, depths=(1,) * 4, norm=norm)
  assert ('batch_stats' in variables_of(e, (1, 32, 32, 3))) == (norm == 'batch')


def test_encoder_refuses_other_norms():
  with pytest.raises(ValueError, match="'layer', must be one of group"):
    variables_of(Encoder(32, norm='layer'), (1, 32, 32, 3))


@pytest.mark.parametrize('channels, classes', ((3, 8), (1, 2)))
@pytest.mark.parametrize('resolution', POWERS)
def test_unet_shapes(resolution, channels, classes):
  shape = 2, resolution, resolution, channels
  logits = outputs_of(UNet(classes), shape)
  assert logits.shape == (*shape[:3], classes)
  assert logits.dtype == jnp.float32


def test_d_r_features_halve():
  d_r = Discriminator(64, channel_max=16)
  features = outputs_of(d_r, (3, 64, 64, 3), features_only=True)
  assert [f.shape[1] for f in features] == [64, 32, 16, 8, 4]


@pytest.mark.parametrize('dtype', (jnp.bfloat16, jnp.float32))
def test_parameters_and_outputs_stay_in_float32(dtype):
  g = Generator(32, 3, 2, w_dim=16, channel_max=16, dtype=dtype)
  d_r = Discriminator(32, channel_max=16, dtype=dtype)
  d_m = MultiscaleDiscriminator(2, 8, dtype)
  e = Encoder(32, 16, 8, (1,) * 4, 16, dtype=dtype)
  unet = UNet(2, 8, 2, dtype=dtype)
  image, label = (2, 32, 32, 3), (2, 32, 32, 2)
  for module, *shapes in (
    (g, (2, 16)), (d_r, image), (d_m, image, label), (e, image), (unet, image)
  ):  # fmt: skip
    leaves = jax.tree.leaves(variables_of(module, *shapes))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype('float32')}
    final = jax.tree.leaves(outputs_of(module, *shapes))[-1]
    assert final.dtype == jnp.float32
