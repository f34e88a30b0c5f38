"""A batch in parts gives the step of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import jaxseg.config
from jaxseg import parallel
from jaxseg.errors import UserError
from jaxseg.losses.segmentation import Loss
from jaxseg.methods import (
  accumulation,
  mean_teacher,
  semantic_gan,
  semantic_gan_encoder,
  supervised,
)
from jaxseg.nets.segmenters import Net
from jaxseg.nets.stylegan2 import minibatch_stddev
from jaxseg.optimizers import Optimizer

K, SIZE = 3, 32
COMMON = dict(num_classes=K, resolution=SIZE, channels=1)
GAN = dict(
  w_dim=8, mapping_depth=2, channel_max=8, d_m_width=8, d_m_scales=1,
)  # fmt: skip
SGD = Optimizer(
  'sgd', lr=1.0, momentum=0.0, weight_decay=0.0, schedule='constant'
)


def batch():
  """8 images each; every pixel has a label, so that all parts have as many."""
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (8, SIZE, SIZE, 1)).astype(np.float32)
  label = rng.integers(0, K, (8, SIZE, SIZE)).astype(np.int32)
  return {'image': image, 'label': label, 'unlabelled': image[::-1].copy()}


def test_parts_are_averaged_and_put_together():
  x, keys = np.arange(12.0, dtype=np.float32).reshape(6, 2), []

  def function(part, key):
    keys.append(key)
    return {'mean': part['x'].mean()}, (10 * part['x'], part['none'])

  data, rng = {'x': x, 'none': None}, jax.random.key(0)
  for parts in (1, 2, 3, 6):
    averaged, (each, none) = jax.jit(
      lambda k, parts=parts: accumulation.over_parts(function, data, k, parts)
    )(rng)
    assert none is None
    assert_allclose(averaged['mean'], x.mean(), rtol=1e-6)
    assert_array_equal(each, 10 * x)


def test_each_part_has_its_images_and_its_key():
  function = lambda part, key: ((), (part, jax.random.bits(key, (2,))))
  x = jnp.arange(6)
  _, (seen, bits) = accumulation.over_parts(function, x, jax.random.key(0), 3)
  assert_array_equal(seen, x)
  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
  wanted = np.stack([jax.random.bits(key, (2,)) for key in keys], axis=1)
  assert_array_equal(bits, wanted.reshape(-1))  # 0, 3 first: part 0


def test_groups_of_images_stay_together():
  x = jax.random.normal(jax.random.key(0), (16, 2, 2, 3))
  function = lambda part, _: ((), minibatch_stddev(part, 4))
  _, found = accumulation.over_parts(function, x, jax.random.key(0), 2)
  assert_allclose(found, minibatch_stddev(x, 4), rtol=1e-6)


def test_memory_is_that_of_a_part_and_the_gradient_that_of_the_whole():
  def loss(w, part, _):
    y = part @ w
    for _ in range(4):
      y = jnp.sin(y @ w)
    return jnp.square(y).mean(), (y.mean(), ())

  x, w = jnp.ones((1024, 64)).at[::3].mul(2), jnp.eye(64) / 2
  found, memory = [], []
  for parts in (1, 8):
    run = jax.jit(
      lambda w, x, k=parts: accumulation.gradient(
        loss, w, x, jax.random.key(0), k
      )
    )
    compiled = run.lower(w, x).compile()
    found.append(compiled(w, x)[:2])
    memory.append(compiled.memory_analysis().temp_size_in_bytes)
  assert memory[1] < memory[0] / 3
  jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), *found)


def check_alike(whole, cut, tolerance=1e-5):
  jax.tree.map(lambda a, b: assert_allclose(a, b, atol=tolerance), whole, cut)


def segmenter(module, parts, remat=False):
  return module.make(
    **COMMON, total_steps=10, loss=Loss(dice=0.0),
    net=Net(width=8, depth=2, norm='group', remat=remat),
    optimizer=SGD._replace(accumulate=parts),
  )  # fmt: skip


def test_mean_teacher():
  found = []
  for parts in (1, 2):
    method = segmenter(mean_teacher, parts)
    state = jax.jit(method.init)(jax.random.key(0))
    found.append(jax.jit(method.train_step)(state, batch()))
  (whole, metrics), (cut, others) = found
  check_alike(metrics, others)
  check_alike((whole.params, whole.ema), (cut.params, cut.ema))


def test_supervised_with_remat_on_four_devices():
  """All at once, and no device sees another's images."""
  method = segmenter(supervised, 1)
  state = jax.jit(method.init)(jax.random.key(0))
  whole, metrics = jax.jit(method.train_step)(state, batch())
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), state.params, whole.params
  )
  assert max(jax.tree.leaves(moved)) > 0.05, 'too small a step to compare'
  mesh = parallel.make_mesh(4)
  state = jax.device_put(state, parallel.replicated(mesh))
  data = parallel.put_batch(batch(), mesh)
  with jax.set_mesh(mesh):
    step = jax.jit(
      segmenter(supervised, 2, remat=True).train_step,
      out_shardings=parallel.replicated(mesh),
    )
    compiled = step.lower(state, data).compile()
  cut, others = compiled(state, data)
  check_alike(metrics, others)
  check_alike((whole.params, whole.ema), (cut.params, cut.ema))
  program = compiled.as_text()
  assert 'all-reduce' in program  # of gradients, which is all that is sent
  for other in ('all-gather', 'all-to-all', 'collective-permute'):
    assert other not in program


def first_moments(state, name):
  """Adam's average of the gradient, after one step the gradient itself."""
  states = jax.tree.leaves(
    state.opt_state[name], is_leaf=lambda x: hasattr(x, 'mu')
  )
  return next(s.mu for s in states if hasattr(s, 'mu'))


def check_gradients(whole, cut, tolerance):
  """tolerance: {network: of the largest entry of its gradient}."""
  for name, relative in tolerance.items():
    a, b = first_moments(whole, name), first_moments(cut, name)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
    jax.tree.map(
      lambda a, b: assert_allclose(a, b, rtol=0, atol=relative * scale),  # noqa: B023
      a, b,
    )  # fmt: skip


def test_gan_with_remat():
  """R1 of D_r and path length are in this step."""
  found, data = [], jax.tree.map(lambda x: x[:, :8, :8], batch())
  for settings in ({}, dict(accumulate=2, remat=True)):
    method = semantic_gan.make(
      **COMMON | {'resolution': 8}, **GAN, r1_gamma_m=0.0, **settings
    )
    state = jax.jit(method.init)(jax.random.key(0))
    found.append(jax.jit(method.train_step)(state, data))
  (whole, metrics), (cut, others) = found
  # The running mean of path lengths is, within the penalty, that of a part.
  check_gradients(whole, cut, {'d_r': 1e-4, 'd_m': 1e-4, 'g': 1e-2})
  for name, value in metrics.items():
    rtol = 1e-2 if name == 'path' else 2e-4
    assert_allclose(others[name], value, rtol, atol=1e-5, err_msg=name)
  assert_allclose(cut.extra['path_mean'], whole.extra['path_mean'], rtol=1e-4)


def test_encoder_with_remat():
  common = COMMON | {'resolution': 16}
  gan = jax.jit(semantic_gan.make(**common, **GAN).init)(jax.random.key(0))
  found, data = [], jax.tree.map(lambda x: x[:, :16, :16], batch())
  for parts, remat in ((1, False), (2, True)):
    method = semantic_gan_encoder.make(
      **common, gan=GAN, width=8, depths=(1, 1, 1, 1), features=8,
      perceptual_kind='discriminator', lambda_dice=0.0, optimizer='adam',
      accumulate=parts, remat=remat,
    )  # fmt: skip
    state = jax.jit(method.init)(jax.random.key(0), gan)
    found.append(jax.jit(method.train_step)(state, data))
  (whole, metrics), (cut, others) = found
  # Group norm of single pixels magnifies rounding.
  check_gradients(whole, cut, {'e': 2e-3})
  for name in set(metrics) - {'dice'}:
    assert_allclose(others[name], metrics[name], rtol=1e-4, err_msg=name)


EIGHT = dict(batch_size=8, unlabelled_batch_size=8)


@pytest.mark.parametrize('method, fields, message', (
  ('supervised', dict(batch_size=8, optimizer={'accumulate': 3}),
   'config.s.args.optimizer.accumulate is 3, but config.s.batch_size is 8, '
   'which cannot be cut into 3 equal parts; set config.s.batch_size=9'),
  ('supervised', dict(optimizer={'accumulate': 0}), 'must be at least 1'),
  ('supervised', dict(net={'arch': 'deeplab_v3plus'}, batch_size=4,
                      optimizer={'accumulate': 4}),
   'one image at a time .batch_size 4.* in 4 parts'),
  ('mean_teacher', dict(batch_size=8, unlabelled_batch_size=6,
                        optimizer={'accumulate': 4}),
   'config.s.unlabelled_batch_size is 6'),
  ('graph', EIGHT | dict(optimizer={'accumulate': 2}),
   'the graph of images joins all images of a batch'),
  ('unimatch', EIGHT | dict(optimizer={'accumulate': 8}),
   'must be at least 16 .* in 8 parts: boxes show another image of the part'),
  ('bcp', dict(batch_size=8, pretrain=True, optimizer={'accumulate': 8}),
   'must be at least 16: .* in each of 8 parts'),
  ('cyclegan', EIGHT | dict(d_optimizer={'accumulate': 2}),
   'd_optimizer.accumulate is 2, must be 1: all networks see the same parts'),
  ('semantic_gan', EIGHT | dict(accumulate=3), 'config.s.args.accumulate is 3'),
  ('semantic_gan', EIGHT | dict(accumulate=0), 'must be at least 1'),
  ('semantic_gan', dict(batch_size=12, accumulate=2),
   'stddev_group is 4, which does not divide a batch of 12 images in 2 part'),
))  # fmt: skip
def test_refused(method, fields, message):
  c = jaxseg.config.default()
  c.data.resolution = 64
  c.data.strong.views = 2
  stage = jaxseg.config.stage(method, **fields)
  c = jaxseg.config.add_stages(c, s=stage)
  with pytest.raises(UserError, match=message):
    jaxseg.config.check(c)
