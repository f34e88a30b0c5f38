"""What every method promises, and what SemanticGAN's alone do."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_weights

from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.losses.regularized import Regularizer
from jaxseg.losses.tags import Pool
from jaxseg.methods import (
  METHODS,
  semantic_gan,
  semantic_gan_encoder,
  supervised,
)  # fmt: skip
from jaxseg.nets.segmenters import Net
from jaxseg.nets.tag_classifier import Head
from jaxseg.optimizers import Optimizer

K, SIZE, CHANNELS = 3, 32, 1
TINY_GAN = dict(
  w_dim=8, mapping_depth=2, channel_max=8, d_m_width=8, d_m_scales=1,
)  # fmt: skip
NET = Net(width=8, depth=2, norm='group')
BATCH_NORM = NET._replace(norm='batch', dropout=0.1)
# name: its arguments; a name may go on after the method's with '-'.
TINY = {
  'supervised': dict(net=NET),
  'supervised-deeplab': dict(
    net=Net('deeplab_v3plus', 8, backbone='resnet18', norm='batch', dropout=0.1)
  ),
  'semantic_gan': dict(TINY_GAN, diffaugment_policy='color,translation,cutout'),
  'semantic_gan_encoder': dict(
    gan=TINY_GAN, width=8, depths=(1, 1, 1, 1), features=8,
    perceptual_kind='discriminator', lambda_synthetic=1.0, refine_steps=3,
  ),
  'label_branch': dict(
    card=toy_weights.card('g', 'd_r', 'e'), folder='', max_images=8,
    perceptual_kind='discriminator', refine_steps=2, lr=1e-2,
  ),
  'label_branch-pixels': dict(
    card=toy_weights.card('g'), folder='', max_images=8, head='pixels',
    members=2, head_widths=(8, 8), pixels=16, refine_steps=2,
    perceptual_kind='discriminator',
  ),
  'mean_teacher': dict(net=BATCH_NORM),
  'mean_teacher-cutmix': dict(net=NET, cutmix=True),
  'adv_ssl': dict(net=BATCH_NORM, d_width=8, semi_start=0.0),
  'gct': dict(net=BATCH_NORM),
  'self_training': dict(net=NET),
  'self_training-own': dict(net=BATCH_NORM),
  'entropy': dict(net=BATCH_NORM),
  'graph': dict(net=BATCH_NORM),
  'weak': dict(
    net=BATCH_NORM,
    regularizer=Regularizer(
      crf=0.1, ncut=0.1, clustering=0.1, potts=0.1, entropy=0.1, shrink=2,
      filter='exact',
    ),
  ),
  'unimatch': dict(net=BATCH_NORM),
  'cam': dict(net=BATCH_NORM, head=Head(0, 8)),
  'sec': dict(net=BATCH_NORM, head=Head(0, 8), grid=8),
  'sec-mil': dict(net=NET, seed=0.0, constrain=0.0, pool=Pool('max')),
  'bcp-pretrain': dict(net=BATCH_NORM, pretrain=True),
  'bcp': dict(net=BATCH_NORM),
  'cyclegan': dict(
    net=Net('resnet_generator', 8, norm='instance', blocks=1), g_width=8,
    g_blocks=1, d_width=8, pool_size=5,
  ),
}  # fmt: skip
PREVIOUS = {
  'semantic_gan_encoder': 'semantic_gan',
  'self_training': 'supervised',
  'bcp': 'bcp-pretrain',
  'sec': 'cam',
}
# Those whose large arrays are also split over two devices each.
SPLIT = ('supervised-deeplab', 'semantic_gan', 'cyclegan')


def make(name, args=None):
  build = METHODS[name.partition('-')[0]].make
  args = dict(args or TINY[name])
  if 'total_steps' in inspect.signature(build).parameters:
    args['total_steps'] = 20
  if 'image_size' in inspect.signature(build).parameters:
    args['image_size'] = (SIZE, SIZE)
  return build(num_classes=K, resolution=SIZE, channels=CHANNELS, **args)


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  label = rng.integers(0, K, (8, SIZE, SIZE)).astype(np.int32)
  label[0, :8] = 255
  image = rng.uniform(-1, 1, (8, SIZE, SIZE, 1)).astype(np.float32)
  cutmix = np.zeros((8, 2, SIZE, SIZE), np.float32)
  cutmix[:, 0, 4:20, 6:14] = cutmix[::2, 1, 8:, :12] = 1
  return {
    'image': image,
    'label': label,
    'unlabelled': image[::-1].copy(),
    'unlabelled_strong': np.stack([0.5 * image, image + 0.1], 1)[::-1].copy(),
    'cutmix': cutmix,
    'tags': (np.add.outer(np.arange(8), np.arange(K)) % K < 2).astype('f4'),
  }


@functools.cache
def initial(name):
  previous = initial(PREVIOUS[name]) if name in PREVIOUS else None
  state = jax.jit(make(name).init)(jax.random.key(0), previous)
  # Its generator comes from a folder.
  return toy_weights.fill(state, K) if 'label_branch' in name else state


@functools.cache
def stepped(name):
  """(jitted step, states after 0, 1 and 2 steps, metrics of the two)."""
  step = jax.jit(make(name).train_step)
  first, metrics1 = step(initial(name), batch())
  second, metrics2 = step(first, batch())
  return step, (initial(name), first, second), (metrics1, metrics2)


@functools.cache
def compiled(name, way):
  """`predict` or `refine` of a method, which several tests call."""
  return jax.jit(getattr(make(name), way))


def test_every_method_is_covered():
  assert {name.partition('-')[0] for name in TINY} == set(METHODS)


@pytest.mark.parametrize('name', TINY)
def test_contract(name):
  step, states, metrics = stepped(name)
  for before, after in zip(states, states[1:], strict=False):
    assert jax.tree.structure(before) == jax.tree.structure(after)
    jax.tree.map(
      lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(
        f'{a.shape} {a.dtype} became {b.shape} {b.dtype}'
      ),
      before, after,
    )  # fmt: skip
  assert [int(s.step) for s in states] == [0, 1, 2]
  for values in metrics:
    assert all(v.shape == () and np.isfinite(v) for v in values.values()), (
      values
    )
  for network in states[0].params:
    old, new = states[0].params[network], states[2].params[network]
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), old, new)
    assert any(jax.tree.leaves(changed)), f'{network} did not learn'
  assert step._cache_size() == 1, 'the second step compiled anew'


@pytest.mark.parametrize('name', TINY)
def test_steps_depend_on_the_state_alone(name):
  step, states, metrics = stepped(name)
  again, _ = step(states[1], batch())
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.tree.map(_raw, again), jax.tree.map(_raw, states[2]),
  )  # fmt: skip


def _raw(x):
  is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.random.key_data(x) if is_key else x


@pytest.mark.parametrize('name', [n for n in TINY if n != 'semantic_gan'])
@pytest.mark.parametrize('way', ['predict', 'refine'])
def test_predictions(name, way):
  function = getattr(make(name), way)
  if function is None:
    assert way == 'refine'
    assert name not in ('semantic_gan_encoder', 'label_branch')
    return
  images = batch()['image'][:4]
  prediction = compiled(name, way)(stepped(name)[1][2], images)
  assert prediction.probabilities.shape == (4, SIZE, SIZE, K)
  np.testing.assert_allclose(prediction.probabilities.sum(-1), 1, atol=1e-5)
  assert prediction.trust.shape == (4,)
  if name.partition('-')[0] in (
    'semantic_gan_encoder', 'label_branch', 'cyclegan',
  ):  # fmt: skip
    assert prediction.reconstruction.shape == images.shape


def test_refine_lowers_the_distance_and_ignores_batch_mates():
  predict, refine = (
    compiled('semantic_gan_encoder', way) for way in ('predict', 'refine')
  )
  state = stepped('semantic_gan_encoder')[1][2]
  images = batch()['image'][:4]
  together = refine(state, images)
  assert (together.trust >= predict(state, images).trust).all()
  others = images.copy()
  others[1:] = images[:3]
  apart = refine(state, others)
  np.testing.assert_allclose(
    together.reconstruction[0], apart.reconstruction[0], atol=1e-5
  )


@pytest.mark.parametrize('name', TINY)
def test_eight_devices_give_the_numbers_of_one(name):
  assert jax.device_count() >= 8, 'conftest.py asks for 8 virtual devices'
  mesh = parallel.make_mesh(4, 2) if name in SPLIT else parallel.make_mesh(8)
  shardings = parallel.state_shardings(initial(name), mesh, min_size=64)
  state = jax.device_put(initial(name), shardings)
  with jax.set_mesh(mesh):
    step = jax.jit(
      make(name).train_step,
      out_shardings=(shardings, parallel.replicated(mesh)),
    )
    after, metrics = step(state, parallel.put_batch(batch(), mesh))
  expected = stepped(name)[2][0]
  assert metrics.keys() == expected.keys()
  for key, value in metrics.items():
    np.testing.assert_allclose(value, expected[key], rtol=2e-4, atol=1e-5,
                               err_msg=key)  # fmt: skip
  assert len(after.step.sharding.device_set) == 8
  for pool in {'pool_i', 'pool_s'} & set(after.extra):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-5),
      after.extra[pool], stepped(name)[1][1].extra[pool],
    )  # fmt: skip
  if name in SPLIT:
    _check_halves(after, shardings)
    _check_alike(after, stepped(name)[1][1])


def _check_halves(state, shardings):
  """Large arrays are in two halves, before and after the step."""
  jax.tree.map(
    lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(
      f'{x.shape} is {x.sharding}, not {s}'
    ),
    state, shardings,
  )  # fmt: skip
  for tree in (state.params, state.opt_state, state.ema):
    large = [
      x for x in jax.tree.leaves(tree)
      if x.size >= 64 and any(side % 2 == 0 for side in x.shape)
    ]  # fmt: skip
    assert large
    for x in large:
      assert {2 * s.data.size for s in x.addressable_shards} == {x.size}


def _check_alike(state, expected):
  """Gradients, as Adam's averages, are the same; so are parameters.

  But for those of (nearly) no gradient, whose first step is a rounding error
  divided by itself.
  """
  for name in state.params:
    found, wanted = (
      [np.asarray(x) for x in jax.tree.leaves(s.opt_state[name])]
      for s in (state, expected)
    )
    scale = max(np.abs(x).max() for x in wanted if x.ndim)
    for a, b in zip(found, wanted, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * scale)
    off = [
      np.abs(np.asarray(a) - b).ravel() > 1e-5
      for a, b in zip(
        jax.tree.leaves(state.params[name]),
        jax.tree.leaves(expected.params[name]), strict=True,
      )
    ]  # fmt: skip
    assert np.concatenate(off).mean() < 0.02, name


def test_sample_and_pictures():
  method, state = make('semantic_gan'), stepped('semantic_gan')[1][2]
  image, probabilities = jax.jit(method.sample, static_argnums=2)(
    state, jax.random.key(0), 5
  )
  assert image.shape == (5, SIZE, SIZE, 1)
  np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
  pictures = jax.jit(method.pictures)(state, batch())
  assert pictures['sample'].shape == (8, SIZE, SIZE, 1)
  assert pictures['sample_label'].max() < K


def test_void_is_the_same_for_real_and_fake():
  label = jnp.asarray([[[0, 255], [2, 1]]])
  fake = jnp.arange(12.0).reshape(1, 2, 2, 3) + 1
  real, seen = semantic_gan.label_pairs(label, fake)
  np.testing.assert_array_equal(real[0, 0, 0], [1, -1, -1])
  np.testing.assert_array_equal(real[0, 1, 0], [-1, -1, 1])
  for pair in (real, seen):
    np.testing.assert_array_equal(pair[0, 0, 1], 0)
  np.testing.assert_array_equal(seen[0, 1], fake[0, 1])
  gradient = jax.grad(lambda f: semantic_gan.label_pairs(label, f)[1].sum())(
    fake
  )
  np.testing.assert_array_equal(gradient[0, 0, 1], 0)


def test_lazy_terms_come_every_few_steps():
  _, _, (first, second) = stepped('semantic_gan')
  for term in ('r1', 'r1_m', 'path'):
    assert first[term] > 0
    # Step 1 is not a multiple of the period: the old value is carried.
    assert second[term] == first[term]


def test_ema_half_life_counts_images():
  _, (zero, first, _), _ = stepped('semantic_gan')
  decay = 0.5 ** (8 / 10_000)
  leaf = lambda tree: tree['g']['const']
  expected = decay * leaf(zero.ema) + (1 - decay) * leaf(first.params)
  np.testing.assert_allclose(leaf(first.ema), expected, atol=1e-6)


def test_encoder_starts_from_mean_w_and_keeps_the_generator():
  _, (zero, _, second), _ = stepped('semantic_gan_encoder')
  gan_state = initial('semantic_gan')
  g = semantic_gan.networks(K, SIZE, CHANNELS, **TINY_GAN).g
  expected = semantic_gan.mean_w(g, gan_state.ema['g'])
  np.testing.assert_allclose(zero.extra['w_avg'], expected, atol=1e-6)
  jax.tree.map(
    np.testing.assert_array_equal, second.extra['g'], gan_state.ema['g']
  )


def test_encoder_without_generator_is_refused():
  with pytest.raises(UserError, match='init_from'):
    make('semantic_gan_encoder').init(jax.random.key(0), None)


def test_supervised_starts_from_no_generator():
  gan = jax.eval_shape(make('semantic_gan').init, jax.random.key(0))
  with pytest.raises(UserError, match='supervised stage .* no segmenter'):
    jax.eval_shape(make('supervised').init, jax.random.key(0), gan)


@pytest.mark.parametrize(
  ('module', 'field', 'value'),
  [
    (semantic_gan, 'label_output', 'tanh'),
    (semantic_gan, 'diffaugment_policy', 'blur'),
    (semantic_gan_encoder, 'optimizer', 'sgd'),
    (semantic_gan_encoder, 'perceptual_kind', 'vgg'),
  ],
)
def test_bad_choices_are_refused(module, field, value):
  extra = {'gan': TINY_GAN} if module is semantic_gan_encoder else {}
  with pytest.raises(UserError, match=value):
    module.make(num_classes=K, resolution=SIZE, channels=CHANNELS,
                **extra, **{field: value})  # fmt: skip


def test_supervised_learns_a_threshold():
  method = supervised.make(
    num_classes=2, resolution=32, channels=1, total_steps=60, net=NET,
    optimizer=Optimizer(lr=5e-3), ema_half_life=16.0,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (8, 4, 4, 1)).repeat(8, 1).repeat(8, 2)
  image = image.astype(np.float32)
  data = {'image': image, 'label': (image[..., 0] > 0).astype(np.int32)}
  state = jax.jit(method.init)(jax.random.key(0))
  step = jax.jit(method.train_step)
  for _ in range(60):
    state, _ = step(state, data)
  found = jax.jit(method.predict)(state, image).probabilities.argmax(-1)
  assert (found == data['label']).mean() > 0.95


def test_diffaugment_moves_labels_with_images():
  from jaxseg.methods import diffaugment

  rng = np.random.default_rng(0)
  image = rng.uniform(0.5, 1, (16, 16, 16, 1)).astype(np.float32)
  moved, label = diffaugment.augment(
    jax.random.key(1), 'translation,cutout', image, 2 * image
  )
  np.testing.assert_allclose(label, 2 * moved, rtol=1e-6)
  assert (moved == 0).any() and not np.array_equal(moved, image)
  assert (np.asarray(moved) > 0).any((1, 2, 3)).all()
  same, _ = diffaugment.augment(jax.random.key(1), '', image)
  np.testing.assert_array_equal(same, image)
