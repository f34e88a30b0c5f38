"""A head that learns labels on a frozen generator, alone and in a training."""

import json
import shutil

import jax
import numpy as np
import pytest
import toy_weights
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg import train
from jaxseg import workdir as workdirs
from jaxseg.errors import UserError
from jaxseg.methods import frozen, label_branch
from jaxseg.published import folder as folders

SIZE = toy_weights.SIZE


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """Folders by name; 'bare' has a generator alone, 'psp' sees 64 pixels."""
  path = tmp_path_factory.mktemp('weights')
  return {
    'whole': toy_weights.write(path / 'whole', 'g', 'g_ema', 'd_r', 'e'),
    'bare': toy_weights.write(path / 'bare', 'g_ema'),
    'psp': toy_weights.write(path / 'psp', 'g_ema', 'psp'),
    'labels': toy_weights.write(path / 'labels', 'g_ema', num_classes=2),
  }


def make(folder, resolution=SIZE, **args):
  args = dict(
    max_images=6, invert_steps=2, refine_steps=2,
    perceptual_kind='discriminator', lr=2e-2,
  ) | args  # fmt: skip
  card = folders.read_card(folder)
  return label_branch.make(
    num_classes=2, resolution=resolution, channels=1, card=card, folder=folder,
    **args,
  )  # fmt: skip


def started(method):
  return method.pretrained(jax.jit(method.init)(jax.random.key(0), None), None)


def render(folder, state, w_plus):
  net, given = frozen.build(folders.read_card(folder)), state.extra['frozen']
  draw = jax.jit(lambda w: frozen.synthesize(net, given, w, given['noise']))
  return draw(w_plus)[0]


def images(n=5):
  return np.random.default_rng(1).uniform(-1, 1, (n, SIZE, SIZE, 1)).astype('f')


def miou(predicted, label):
  valid = label != 255
  scores = []
  for k in (0, 1):
    a, b = (predicted == k) & valid, (label == k) & valid
    scores.append((a & b).sum() / max(1, (a | b).sum()))
  return np.mean(scores)


@pytest.mark.parametrize(
  ('head', 'args'),
  [
    ('skips', dict(lr=5e-2)),
    ('pixels', dict(members=2, head_widths=(16, 8), pixels=64)),
  ],
)
def test_learns_what_the_generator_draws_and_leaves_it_alone(
  weights, head, args
):
  folder = weights['whole' if head == 'skips' else 'bare']
  method = make(folder, head=head, **args)
  state = started(method)
  if head == 'skips':
    codes = np.random.default_rng(2).normal(size=(6, 8, 8)).astype('f')
    count = np.int32(5)
    state = state.replace(extra=state.extra | {'codes': codes, 'count': count})
  else:  # which needs the statistics of the features
    void = np.full((5, SIZE, SIZE), 255)
    state = method.absorb(state, images(), void)
  drawn = render(folder, state, state.extra['codes'][:5])
  label = np.array(drawn[..., 0] > np.median(drawn), np.uint8)
  label[:, :4] = 255
  labels = np.array(state.extra['labels'])
  labels[:5] = label
  state = state.replace(extra=state.extra | {'labels': labels})
  before = jax.tree.map(np.array, state.extra['frozen'])
  step, batch = jax.jit(method.train_step), {'image': images(4)}
  for _ in range(60):
    state, metrics = step(state, batch)
    assert np.isfinite(metrics['loss'])
  pictures = jax.jit(method.pictures)(state, batch)
  assert pictures['label'].shape == (8, SIZE, SIZE)
  assert_array_equal(pictures['label'][5:], label[:3])  # and again from 0 on
  found = np.asarray(pictures['predicted'][:5])
  majority = miou(np.zeros_like(label), label)
  assert miou(found, label) > majority + 0.2
  jax.tree.map(assert_array_equal, state.extra['frozen'], before)
  image, probabilities = jax.jit(method.sample, static_argnums=2)(
    state, jax.random.key(3), 2
  )
  assert image.shape == (2, SIZE, SIZE, 1)
  assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_absorbing_fills_up_batches_and_tells_how_it_goes(weights, capsys):
  method = make(weights['bare'], invert_batch=3)
  state, calls = started(method), []
  labels = np.random.default_rng(0).integers(0, 2, (5, SIZE, SIZE))
  all_ = method.absorb(state, images(), labels, lambda: calls.append(1))
  assert len(calls) == 2
  told = capsys.readouterr().out.splitlines()
  assert len(told) == 2 and 'inversion  5/5' in told[-1]
  assert int(all_.extra['count']) == 5
  assert_array_equal(all_.extra['labels'][:5], labels)
  assert (all_.extra['labels'][5] == 255).all()
  assert not all_.extra['codes'][5].any()
  # Fewer images than a batch, each on its own.
  one = method.absorb(state, images()[4:], labels[4:])
  assert_allclose(
    one.extra['codes'][0], all_.extra['codes'][4], rtol=0, atol=1e-4
  )


def test_encoders_of_another_size_see_resized_images(weights):
  net = frozen.build(folders.read_card(weights['psp']))
  assert (net.input_size, net.adds_w_avg) == (64, True)
  given = frozen.weights(folders.load(weights['psp']))
  small = images(3)
  large = jax.image.resize(small, (3, 64, 64, 1), 'bilinear')
  wanted = jax.jit(net.e.apply)(given['e'], large) + given['w_avg']
  found = jax.jit(lambda x: frozen.encode(net, given, x))(small)
  assert_allclose(found, wanted, atol=1e-4)
  method = make(weights['psp'])
  assert method.refine is not None
  state = started(method)
  assert jax.jit(method.predict)(state, small).trust.shape == (3,)


def test_without_encoder_a_label_is_an_inversion_from_the_mean(weights):
  method = make(weights['bare'], refine_steps=0)
  assert method.refine is None
  state = started(method)
  prediction = jax.jit(method.predict)(state, images(2))
  w_avg = state.extra['frozen']['w_avg']
  mean = np.broadcast_to(w_avg, (2, *w_avg.shape))
  drawn = render(weights['bare'], state, mean)
  assert_allclose(prediction.reconstruction, drawn, atol=1e-4)


@pytest.mark.parametrize('reuse', (True, False))
def test_a_label_branch_of_as_many_classes_is_the_start(weights, reuse):
  method = make(weights['labels'], reuse_labels=reuse)
  state = started(method)
  theirs = folders.load(weights['labels']).networks['g_ema'].variables['params']
  ours = state.params['head']['to_seg_0']['conv']['kernel']
  same = np.array_equal(ours, theirs['to_seg_0']['conv']['kernel'])
  assert same == reuse
  jax.tree.map(assert_array_equal, state.params, state.ema)
  assert not any(n.startswith('to_seg') for n in state.extra['frozen']['g'])


def test_images_of_another_size_are_refused(weights):
  with pytest.raises(UserError, match='32 x 32 .*resolution is 64'):
    make(weights['bare'], resolution=64)


@pytest.mark.parametrize(
  ('changes', 'sentence'),
  [
    ({'args.head': 'mlp'}, "args.head is 'mlp', must be one of skips, pixels"),
    ({'args.max_images': 0}, 'args.max_images is 0, must be 1 or more'),
    ({'args.head_widths': (8,)}, r'head_widths is \(8,\), must be two'),
    ({'unlabelled_batch_size': 4}, 'learns from labelled images alone'),
  ],
)
def test_settings_that_cannot_work(changes, sentence):
  c = jaxseg_config.default()
  c.data.source = 'digits'
  fields = jaxseg_config.stage('label_branch', init_from='a/b')
  c = jaxseg_config.add_stages(c, head=fields)
  jaxseg_config.check(c)
  c.update_from_flattened_dict({f'head.{k}': v for k, v in changes.items()})
  with pytest.raises(UserError, match=f'^config.head.*{sentence}'):
    jaxseg_config.check(c)


@pytest.fixture(scope='module')
def squares(tmp_path_factory):
  """16 light squares on darker noise, each with its label."""
  path = tmp_path_factory.mktemp('squares')
  (path / 'images').mkdir()
  (path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for i in range(16):
    image = rng.integers(0, 80, (SIZE, SIZE), np.uint8)
    top, left = rng.integers(2, 16, 2)
    label = np.zeros((SIZE, SIZE), np.uint8)
    label[top : top + 12, left : left + 12] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(path / 'images' / f'{i:02d}.png')
    Image.fromarray(label).save(path / 'labels' / f'{i:02d}.png')
  return path


def config_of(squares, folder, steps=4):
  c = jaxseg_config.default()
  c.data.source = f'folder:{squares}'
  c.data.resolution, c.data.channels, c.data.num_labelled = SIZE, 1, 6
  c.data.weak.kind = 'scribbles'
  c.eval.splits, c.eval.batch_size, c.eval.max_images = ('test',), 4, 4
  c.mesh.data, c.compilation_cache = 1, ''
  return jaxseg_config.add_stages(
    c,
    head=jaxseg_config.stage(
      'label_branch', init_from=str(folder), total_steps=steps, batch_size=2,
      log_every=1, checkpoint_every=2, picture_every=2, max_images=4,
      perceptual_kind='discriminator', invert_steps=2, refine_steps=2,
      head='pixels', members=2, head_widths=(8, 4), pixels=16,
    ),
  )  # fmt: skip


def test_a_training_goes_on_bit_for_bit_when_the_folder_is_gone(
  weights, squares, tmp_path, capsys
):
  folder = shutil.copytree(weights['bare'], tmp_path / 'folder')
  whole, parts = str(tmp_path / 'whole'), str(tmp_path / 'parts')
  train.train(config_of(squares, folder), whole, evaluate_after=False)
  assert 'of 6 labelled images the first 4 are used' in capsys.readouterr().out
  train.train(config_of(squares, folder, 2), parts, evaluate_after=False)
  shutil.rmtree(folder)
  train.train(config_of(squares, folder), parts)
  assert 'head: continues from step 2' in capsys.readouterr().out
  raw = lambda x: jax.random.key_data(x) if x.dtype.name == 'key<fry>' else x
  states = [workdirs.load(w).stages['head'].state for w in (whole, parts)]
  jax.tree.map(
    assert_array_equal, *[jax.tree.map(raw, state) for state in states]
  )
  # Labels are those that training may see, and the rest is void.
  labels = states[0].extra['labels']
  assert int(states[0].extra['count']) == 4
  assert 0.3 < (np.asarray(labels) == 255).mean() < 1
  assert json.loads((tmp_path / 'parts/evaluation/metrics.json').read_text())
