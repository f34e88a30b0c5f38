"""CycleGAN: recorded steps, every term by NumPy, void, pools, switches."""

import functools
import inspect

import golden_cyclegan
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from numpy.testing import assert_allclose, assert_array_equal

import jaxseg.config
from jaxseg.errors import UserError
from jaxseg.methods import cyclegan, supervised
from jaxseg.nets import discriminators
from jaxseg.nets.discriminators import PixelDiscriminator
from jaxseg.nets.resnet_generator import ResnetGenerator
from jaxseg.nets.segmenters import Net
from jaxseg.optimizers import Optimizer

K, SIZE, N, M = 4, 32, 2, 3
NET = Net('resnet_generator', 8, norm='instance', blocks=1)
SEG = ResnetGenerator(K, 8, 1)
G_SI = ResnetGenerator(1, 8, 1, output='tanh')
D = PixelDiscriminator(8, 'batch')
# A step of this moves the parameters by minus the gradient.
PLAIN = Optimizer(
  name='sgd', lr=1.0, schedule='constant', momentum=0.0, weight_decay=0.0
)
COMMON = dict(
  num_classes=K, resolution=SIZE, image_size=(SIZE, SIZE), channels=1,
  total_steps=100, net=NET, g_width=8, g_blocks=1, d_width=8,
)  # fmt: skip
# Every term is seen in the gradient.
LAMBDAS = dict(
  lambda_1=2.0, lambda_2=0.5, lambda_3=3.0, lambda_4=4.0, lambda_5=5.0
)
OFF = dict.fromkeys(LAMBDAS, 0.0)


def make(**fields):
  fields = dict(
    optimizer=PLAIN, d_optimizer=PLAIN, pool_size=0, **COMMON
  ) | fields  # fmt: skip
  return cyclegan.make(**fields)


@functools.cache
def batch(void=True):
  rng = np.random.default_rng(0)
  uniform = lambda n: rng.uniform(-1, 1, (n, SIZE, SIZE, 1)).astype(np.float32)
  label = rng.integers(0, K, (N, SIZE, SIZE)).astype(np.int32)
  if void:
    label[0, :12] = 255
  return {'image': uniform(N), 'label': label, 'unlabelled': uniform(M)}


@functools.cache
def start():
  """A state whose networks have opinions: fresh ones say 0, almost."""
  state = jax.jit(make().init)(jax.random.key(0))
  larger = lambda tree: jax.tree.map(lambda x: 4 * x, tree)
  params = {name: larger(tree) for name, tree in state.params.items()}
  ema = {name: {**state.ema[name], 'params': params[name]}
         for name in state.ema}  # fmt: skip
  return state.replace(params=params, ema=ema)


@functools.cache
def step(**fields):
  return jax.jit(make(**fields).train_step)


def formulas(params, data):
  """Every term of one step, as the paper writes it, one network at a time."""
  seg = lambda x: SEG.apply({'params': params['seg']}, x)
  g_si = lambda maps: G_SI.apply({'params': params['g_si']}, maps)
  x, y, x_u = data['image'], data['label'], data['unlabelled']
  valid = y != 255
  score = lambda name, x, where=None: D.apply(
    {'params': params[name]}, x, where
  )[..., 0]
  mean = lambda values: (values * valid).sum() / valid.sum()
  onehot = jnp.eye(K)[jnp.where(valid, y, 0)] * valid[..., None]
  maps = jax.nn.softmax(seg(x_u))
  fake = g_si(onehot)
  h = lambda logits: -(onehot * jax.nn.log_softmax(logits)).sum(-1)
  return {
    'gen_s': mean(h(seg(x))),
    'gen_i': mean(((fake - x) ** 2)[..., 0]),
    'cycle_s': mean(h(seg(fake))),
    'cycle_i': jnp.abs(g_si(maps) - x_u).mean(),
    'disc_s': ((score('d_s', maps) - 1) ** 2).mean(),
    'disc_i': mean((score('d_i', fake, valid) - 1) ** 2),
    'd_s': 0.5 * mean((score('d_s', onehot, valid) - 1) ** 2)
    + 0.5 * (score('d_s', maps) ** 2).mean(),
    'd_i': 0.5 * ((score('d_i', x_u) - 1) ** 2).mean()
    + 0.5 * mean(score('d_i', fake, valid) ** 2),
  }


terms_of = jax.jit(formulas)


# ---- Against the published implementation


@functools.cache
def recorded():
  return golden_cyclegan.load('step_paper')


def recorded_params(prefix):
  return {
    'seg': golden_cyclegan.generator(recorded(), f'{prefix}Gis/'),
    'g_si': golden_cyclegan.generator(recorded(), f'{prefix}Gsi/'),
    'd_i': golden_cyclegan.pixel(recorded(), f'{prefix}Di/'),
    'd_s': golden_cyclegan.pixel(recorded(), f'{prefix}Ds/'),
  }


def recorded_steps(**fields):
  """(terms of two steps, the state after them)."""
  adam = Optimizer(
    'adam', lr=2e-4, schedule='constant', weight_decay=0.0, b1=0.5
  )
  method = make(optimizer=adam, d_optimizer=adam, **RECORDED, **fields)
  state = jax.jit(method.init)(jax.random.key(0))
  params = jax.tree.map(jnp.asarray, recorded_params('init/'))
  if fields.get('published_code_compat'):
    params['d_s'] = state.params['d_s']  # that of one channel is not recorded
  state, terms = state.replace(params=params), []
  run = jax.jit(method.train_step)
  for t in range(2):
    image = lambda name: golden_cyclegan.nhwc(recorded()[f'in/{t}/{name}'])  # noqa: B023
    data = {
      'image': image('x_l'), 'unlabelled': image('x_u'),
      'label': image('y_l')[..., 0].astype(np.int32),
    }  # fmt: skip
    state, found = run(state, data)
    terms.append(found)
  return terms, state


# As they were trained, but for Adam.
RECORDED = dict(net=NET._replace(blocks=2), g_blocks=2, d_norm='instance')
RECORDED_NAMES = {
  'gen_s': 'sup_ce', 'gen_i': 'sup_mse', 'cycle_s': 'cyc_gt',
  'cycle_i': 'cyc_img', 'disc_s': 'adv_gt', 'disc_i': 'adv_img',
  'd_s': 'd_gt', 'd_i': 'd_img',
}  # fmt: skip


def test_two_recorded_steps():
  terms, state = recorded_steps()
  for t in range(2):
    assert terms[t].keys() == RECORDED_NAMES.keys()
    for name, theirs in RECORDED_NAMES.items():
      wanted = recorded()[f'loss/{t}/{theirs}']
      assert_allclose(terms[t][name], wanted, atol=1e-5, err_msg=name)
  # Adam makes whole steps of gradients that are rounding errors, so that some
  # parameters go astray by up to two steps of 2e-4 in any two programs.
  for name, wanted in recorded_params('final/').items():
    ours = golden_cyclegan.without_idle(state.params[name])
    theirs = golden_cyclegan.without_idle(wanted)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).ravel(), ours, theirs)
    apart = np.concatenate(jax.tree.leaves(apart))
    assert apart.max() < 8e-4
    assert np.mean(apart < 2e-5) > 0.95


def test_gradients_of_a_recorded_step(shared):
  arrays = dict(np.load(shared / 'golden/cyclegan/step_paper.npz'))
  method = make(**RECORDED)
  state = jax.jit(method.init)(jax.random.key(0))
  params = jax.tree.map(jnp.asarray, recorded_params('init/'))
  data = {
    'image': golden_cyclegan.nhwc(arrays['in/0/x_l']),
    'label': arrays['in/0/y_l'][:, 0].astype(np.int32),
    'unlabelled': golden_cyclegan.nhwc(arrays['in/0/x_u']),
  }
  after, _ = jax.jit(method.train_step)(state.replace(params=params), data)
  for name, theirs in (('seg', 'Gis'), ('g_si', 'Gsi')):
    wanted = golden_cyclegan.without_idle(
      golden_cyclegan.generator(arrays, f'grad/0/{theirs}/')
    )
    found = golden_cyclegan.without_idle(
      jax.tree.map(jnp.subtract, params[name], after.params[name])
    )
    jax.tree.map(
      lambda a, b: assert_allclose(a, b, atol=1e-3 * np.abs(b).max()),
      found, wanted,
    )  # fmt: skip


def test_published_code_of_a_recorded_step():
  terms, _ = recorded_steps(published_code_compat=True)
  # Losses recorded of the same networks with D_S on class ids; its D_S itself
  # was not kept. The second step shows that it gave no gradient: with one,
  # gen_s is 1.414822.
  for t, wanted in enumerate((
    dict(gen_s=1.401427984, gen_i=0.391588569, disc_i=1.041361094,
         cycle_i=0.533538461, cycle_s=1.413469076, d_i=0.522118628),
    dict(gen_s=1.414845467, gen_i=0.368790299, disc_i=1.040579319,
         cycle_i=0.513072670, cycle_s=1.412549734, d_i=0.521434903),
  )):  # fmt: skip
    for name, value in wanted.items():
      assert_allclose(terms[t][name], value, atol=5e-6, err_msg=name)


# ---- Against the formulas


def test_every_term():
  after, terms = step(**LAMBDAS)(start(), batch())
  # D's terms are of the fakes before the generators' step, as are G's.
  wanted = terms_of(start().params, batch())
  assert terms.keys() == wanted.keys()
  for name, value in wanted.items():
    assert_allclose(terms[name], value, rtol=2e-5, err_msg=name)
  assert int(after.step) == 1


def test_generators_descend_equation_8_and_discriminators_their_own():
  weights = {
    'gen_s': 1.0, 'gen_i': 2.0, 'cycle_s': 0.5, 'cycle_i': 3.0, 'disc_s': 4.0,
    'disc_i': 5.0,
  }  # fmt: skip

  def equation_8(generators):
    terms = formulas(start().params | generators, batch())
    return sum(weight * terms[name] for name, weight in weights.items())

  def halves(discriminators):
    terms = formulas(start().params | discriminators, batch())
    return terms['d_s'] + terms['d_i']

  after, _ = step(**LAMBDAS)(start(), batch())
  for loss, names in ((equation_8, ('seg', 'g_si')), (halves, ('d_s', 'd_i'))):
    wanted = jax.jit(jax.grad(loss))({n: start().params[n] for n in names})
    for name in names:
      found = jax.tree.map(
        jnp.subtract, start().params[name], after.params[name]
      )
      scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(wanted))
      jax.tree.map(
        lambda a, b: assert_allclose(a, b, atol=1e-3 * scale),  # noqa: B023
        found, wanted[name],
      )  # fmt: skip


# ---- What the terms do not see


def test_void_counts_in_no_term():
  data = batch()
  other = data | {'image': data['image'].copy()}
  other['image'][0, :2] = 1.0
  # G_IS sees the pixels beside the void ones, so all but its own term are
  # exactly the same.
  first, second = (step(**LAMBDAS)(start(), d)[1] for d in (data, other))
  for name in first.keys() - {'gen_s'}:
    assert_allclose(first[name], second[name], rtol=1e-6, err_msg=name)


def test_labels_that_are_all_void():
  data = batch() | {'label': np.full((N, SIZE, SIZE), 255, np.int32)}
  after, terms = step(**LAMBDAS)(start(), data)
  for name in ('gen_s', 'gen_i', 'cycle_s', 'disc_i'):
    assert terms[name] == 0, name
  assert all(np.isfinite(v) for v in terms.values())
  assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after.params))


@pytest.mark.parametrize(
  ('weights', 'gone'),
  [
    (('lambda_1', 'lambda_4'), ('gen_i', 'disc_s', 'd_s')),
    (('lambda_2', 'lambda_3', 'lambda_5'),
     ('cycle_s', 'cycle_i', 'disc_i', 'd_i')),
  ],
)  # fmt: skip
def test_a_weight_of_zero_leaves_the_term_out(weights, gone):
  after, terms = step(**LAMBDAS | dict.fromkeys(weights, 0.0))(start(), batch())
  full, every = step(**LAMBDAS)(start(), batch())
  assert every.keys() - terms.keys() == set(gone)
  for key in terms:
    assert_allclose(terms[key], every[key], rtol=1e-5)
  for name in ('d_s', 'd_i'):
    old, new = start().params[name], after.params[name]
    same = jax.tree.map(lambda a, b: bool((a == b).all()), old, new)
    assert all(jax.tree.leaves(same)) == (name in gone)
  for name in ('seg', 'g_si'):
    bias = lambda state: state.params[name]['decoder']['out']['bias']  # noqa: B023
    assert not np.allclose(bias(after), bias(full), rtol=1e-3, atol=1e-7)


def test_void_is_hidden_from_patches_of_either_kind():
  """Else D would know real labels, and drawn images, by their void."""
  method = make(discriminator='patch', d_norm='none', **LAMBDAS)
  state = jax.jit(method.init)(jax.random.key(0))
  state = state.replace(params={n: jax.tree.map(lambda x: 4 * x, p)
                                for n, p in state.params.items()})  # fmt: skip
  data = batch() | {'unlabelled': batch()['image']}
  run = jax.jit(method.train_step)
  # One class everywhere, predicted as drawn: D_S sees the same twice.
  seg = jax.tree.map(jnp.zeros_like, state.params['seg'])
  seg['decoder']['out']['bias'] = jnp.array([60.0, 0, 0, 0])
  data['label'] = np.where(data['label'] == 255, 255, 0)
  state = state.replace(params=state.params | {'seg': seg})
  _, terms = run(state, data)
  d = discriminators.PatchGAN(8, norm='none')
  valid = data['label'] != 255
  maps = jnp.zeros((N, SIZE, SIZE, K)).at[..., 0].set(valid)
  scores = d.apply({'params': state.params['d_s']}, maps)[..., 0]
  weight = discriminators.patch_coverage(jnp.asarray(valid))
  mean = lambda x: (x * weight).sum() / weight.sum()
  wanted = 0.5 * (mean((scores - 1) ** 2) + mean(scores**2))
  assert_allclose(terms['d_s'], wanted, rtol=1e-5)
  assert_allclose(terms['disc_s'], mean((scores - 1) ** 2), rtol=1e-5)


def test_pixel_mean_by_hand():
  losses = jnp.array([[[[1.0, 3.0], [9.0, 9.0]], [[5.0, 5.0], [0.0, 1.0]]]])
  valid = jnp.array([[[True, False], [True, True]]])
  assert_allclose(cyclegan.pixel_mean(losses, valid), (2 + 5 + 0.5) / 3)
  assert cyclegan.pixel_mean(losses, valid & False) == 0


def test_class_ids_give_the_generator_no_gradient():
  alone = OFF | {'lambda_4': 7.0}
  method = make(published_code_compat=True, **alone)
  state = jax.jit(method.init)(jax.random.key(0))
  state = state.replace(params=start().params | {'d_s': jax.tree.map(
    lambda x: 4 * x, state.params['d_s'])})  # fmt: skip
  after, _ = jax.jit(method.train_step)(state, batch())
  none, _ = step(**OFF)(start(), batch())
  jax.tree.map(assert_array_equal, after.params['seg'], none.params['seg'])
  with_gradient, _ = step(**alone)(start(), batch())
  assert not np.allclose(
    with_gradient.params['seg']['decoder']['out']['kernel'],
    none.params['seg']['decoder']['out']['kernel'], atol=1e-7,
  )  # fmt: skip
  assert state.params['d_s']['conv0']['kernel'].shape[2] == 1
  assert with_gradient.params['d_s']['conv0']['kernel'].shape[2] == K


def test_alone_it_is_the_supervised_step():
  state = start()
  ours, terms = step(**OFF)(state, batch())
  method = supervised.make(
    num_classes=K, resolution=SIZE, channels=1, total_steps=100, net=NET,
    loss=cyclegan.Loss(dice=0.0), optimizer=PLAIN, ema_half_life=0.0,
  )  # fmt: skip
  seg = jax.jit(method.init)(jax.random.key(0))
  seg = seg.replace(params={'seg': state.params['seg']})
  theirs, loss = jax.jit(method.train_step)(seg, batch())
  assert terms.keys() == {'gen_s'}
  assert_allclose(terms['gen_s'], loss['ce'], rtol=1e-5)
  jax.tree.map(
    lambda a, b: assert_allclose(a, b, atol=1e-5),
    ours.params['seg'], theirs.params['seg'],
  )  # fmt: skip


# ---- Pools, prediction, variants


def test_discriminators_see_earlier_fakes():
  method = make(pool_size=M, **LAMBDAS)
  state = jax.jit(method.init)(jax.random.key(3))
  run = jax.jit(method.train_step)
  state = state.replace(params=start().params, ema=start().ema)
  first = terms_of(state.params, batch())
  state, terms = run(state, batch())
  # The pools were empty: the first step is as without them.
  for name in first:
    assert_allclose(terms[name], first[name], rtol=2e-5, err_msg=name)
  pool = state.extra['pool_i']
  assert int(pool.count) == N
  assert_array_equal(pool.items['valid'][:N], batch()['label'] != 255)
  assert int(state.extra['pool_s'].count) == M
  apart = []
  for _ in range(3):
    wanted = terms_of(state.params, batch())
    state, terms = run(state, batch())
    assert_allclose(terms['disc_i'], wanted['disc_i'], rtol=2e-5)
    apart += [abs(float(terms[n] / wanted[n]) - 1) for n in ('d_i', 'd_s')]
  # What they were trained on is not always what was made in that step.
  assert max(apart) > 1e-4


def test_prediction():
  state, images = start(), batch()['image']
  found = jax.jit(make().predict)(state, images)
  run = lambda net, name, x: net.apply({'params': state.params[name]}, x)
  maps = jax.nn.softmax(run(SEG, 'seg', images))
  drawn = run(G_SI, 'g_si', maps)
  assert_allclose(found.probabilities, maps, atol=1e-5)
  assert_allclose(found.reconstruction, drawn, atol=1e-4)
  error = np.abs(np.asarray(drawn) - images).mean((1, 2, 3))
  assert_allclose(found.trust, -error, atol=1e-4)


def test_the_newest_weights_predict():
  after, _ = step(**LAMBDAS)(start(), batch())
  for name in ('seg', 'g_si'):
    jax.tree.map(
      assert_array_equal, after.ema[name]['params'], after.params[name]
    )


def test_batch_normalised_segmenter_of_colour_images_on_a_rectangle():
  """Another segmenter, patches, bfloat16, class ids, batches in pools."""
  method = cyclegan.make(
    num_classes=K, resolution=32, image_size=(32, 48), channels=3,
    total_steps=10, net=Net(width=8, depth=2, dropout=0.1, dtype='bfloat16'),
    g_width=8, g_blocks=1, g_norm='batch', g_dropout=0.5,
    discriminator='patch', d_width=8, adversarial='logistic', pool_size=6,
    pool_whole_batches=True, ema_half_life=10.0,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  uniform = lambda: rng.uniform(-1, 1, (2, 32, 48, 3)).astype(np.float32)
  data = {'image': uniform(), 'unlabelled': uniform(),
          'label': rng.integers(0, K, (2, 32, 48), np.int32)}  # fmt: skip
  state = jax.jit(method.init)(jax.random.key(0))
  after, terms = jax.jit(method.train_step)(state, data)
  assert all(np.isfinite(v) for v in terms.values())
  for name in ('seg', 'g_si'):
    stats = jax.tree.leaves(after.extra[name])
    assert stats and all(bool(jnp.isfinite(x).all()) for x in stats)
    assert any(
      (a != b).any()
      for a, b in zip(stats, jax.tree.leaves(state.extra[name]), strict=True)
    )
  found = jax.jit(method.predict)(after, data['image'])
  assert found.reconstruction.shape == data['image'].shape
  assert int(after.extra['pool_s'].count) == 2


def test_learns_a_threshold():
  adam = Optimizer('adam', lr=4e-3, schedule='linear', hold=0.5, b1=0.5,
                   weight_decay=0.0)  # fmt: skip
  method = cyclegan.make(
    num_classes=2, resolution=32, image_size=(32, 32), channels=1,
    total_steps=60, net=NET, g_width=8, g_blocks=1,
    d_width=8, optimizer=adam, d_optimizer=adam, pool_size=8,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  image = rng.uniform(-1, 1, (8, 4, 4, 1)).repeat(8, 1).repeat(8, 2)
  image = image.astype(np.float32)
  label = (image[..., 0] > 0).astype(np.int32)
  data = {'image': image[:4], 'label': label[:4], 'unlabelled': image[4:]}
  state = jax.jit(method.init)(jax.random.key(0))
  run = jax.jit(method.train_step)
  state, first = run(state, data)
  for _ in range(59):
    state, last = run(state, data)
  found = jax.jit(method.predict)(state, image)
  assert (found.probabilities.argmax(-1) == label).mean() > 0.95
  for name in ('gen_s', 'gen_i', 'cycle_i', 'cycle_s'):
    assert last[name] < 0.8 * first[name], name


# ---- Refusals


def check(changed=None, weak='', **fields):
  """`check` with the defaults of `make`, changed."""
  parameters = inspect.signature(cyclegan.make).parameters.values()
  args = {
    p.name: ConfigDict(p.default._asdict())
    if hasattr(p.default, '_asdict')
    else p.default
    for p in parameters
    if p.default is not p.empty
  }
  fields = ConfigDict(
    dict(method='cyclegan', init_from='', batch_size=4,
         unlabelled_batch_size=4, args=args | (changed or {})) | fields
  )  # fmt: skip
  data = jaxseg.config.default().data
  data.weak.kind = weak
  cyclegan.check('config.cg', fields, data)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(changed={'discriminator': 'image'}),
     "config.cg.args.discriminator is 'image'.*pixel, patch"),
    (dict(changed={'d_norm': 'layer'}), "args.d_norm is 'layer'.*batch"),
    (dict(changed={'g_norm': 'none'}), "args.g_norm is 'none'.*instance"),
    (dict(changed={'adversarial': 'hinge'}), "is 'hinge'.*least_squares"),
    (dict(changed={'d_optimizer': {**cyclegan.ADAM._asdict(), 'name': 'lion'}}),
     "config.cg.args.d_optimizer.name is 'lion'"),
    (dict(changed={'d_width': 0}), 'args.d_width is 0, must be at least 1'),
    (dict(changed={'g_width': 0}), 'cg.args.g_width is 0, must be at least 1'),
    (dict(changed={'g_dropout': 1.0}), 'cg.args.g_dropout is 1.0, must be'),
    (dict(changed={'pool_size': 3, 'pool_whole_batches': True}),
     'config.cg.args.pool_size is 3.*batch of 4'),
    (dict(changed={'d_optimizer': cyclegan.ADAM._replace(
      head_factor=10.0)._asdict()}), 'd_optimizer.head_factor is 10.0'),
    (dict(unlabelled_batch_size=0), 'config.cg.unlabelled_batch_size is 0'),
    (dict(weak='scribbles'), 'weak.kind.*whole masks'),
    (dict(init_from='unet'), "config.cg.init_from is 'unet'"),
  ],
)  # fmt: skip
def test_stages_that_cannot_train_are_refused(fields, message):
  with pytest.raises(UserError, match=message):
    check(**fields)


def test_the_default_stage_can_train():
  check()


def test_bad_choices_are_refused_by_make():
  with pytest.raises(UserError, match="^discriminator is 'image'"):
    make(discriminator='image')
