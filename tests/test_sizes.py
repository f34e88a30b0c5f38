"""Images of any height and width, from files to masks."""

import csv
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jaxseg
from jaxseg import config as jaxseg_config
from jaxseg import predict, train, workdir
from jaxseg.data import examples, pipeline, sources, weak
from jaxseg.data import splits as data_splits
from jaxseg.errors import UserError
from jaxseg.methods import METHODS
from jaxseg.nets import segmenters

SIZE = HEIGHT, WIDTH = 32, 48  # of what the networks see
SQUARES_ALONE = ('semantic_gan', 'semantic_gan_encoder')
# label_branch has the size of a published generator.
OTHERS = sorted(METHODS.keys() - {*SQUARES_ALONE, 'label_branch'})


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Bright boxes on darker noise, 16 pictures of 40 x 60 and 4 of 44 x 60."""
  path = tmp_path_factory.mktemp('wide')
  (path / 'images').mkdir()
  (path / 'labels').mkdir()
  rng = np.random.default_rng(0)
  for i in range(20):
    shape = (40 if i % 5 else 44, 60)
    image = rng.integers(0, 80, shape, np.uint8)
    top, left = rng.integers(2, 12), rng.integers(2, 24)
    label = np.zeros(shape, np.uint8)
    label[top : top + 16, left : left + 30] = 1
    image[label == 1] += 150
    Image.fromarray(image).save(path / f'images/{i:02d}.png')
    if i < 16:
      Image.fromarray(label).save(path / f'labels/{i:02d}.png')
  return path


def config_of(folder, method='supervised', **changes):
  """One stage of `method`, after one it starts from where it needs that."""
  c = jaxseg_config.default()
  c.data.source = f'folder:{folder}'
  c.data.resolution, c.data.width = SIZE
  c.data.channels, c.data.fit = 1, 'squeeze'
  c.data.num_labelled = 8
  c.data.strong.views = 2
  c.eval.splits, c.eval.batch_size = ('test',), 4
  c.mesh.data, c.compilation_cache = 1, ''
  fields = {'batch_size': 4, 'unlabelled_batch_size': 4} | changes
  net = inspect.signature(METHODS[method].make).parameters['net'].default
  fields['net'] = {'width': 8} | ({'depth': 2} if net.arch == 'unet' else {})
  stages = {}
  if method in ('cam', 'sec'):
    c.data.weak.kind = 'tags'
  if method == 'sec':
    stages['first'] = jaxseg_config.stage('cam', **fields)
    fields['init_from'] = 'first'
  if method == 'bcp':
    first = fields | {'pretrain': True, 'unlabelled_batch_size': 0}
    stages['first'] = jaxseg_config.stage(method, **first)
    fields['init_from'] = 'first'
  stages['last'] = jaxseg_config.stage(method, **fields)
  return jaxseg_config.add_stages(c, **stages)


@pytest.fixture(scope='module')
def batch(folder):
  """What the pipeline gives methods that compare strong views."""
  c = config_of(folder)
  for name in ('shift', 'scale', 'rotate', 'shear', 'elastic', 'copy_paste'):
    c.data.augment[name] = 0.1
  c.data.augment.flip = c.data.augment.flip_vertical = True
  source = sources.load(c.data)
  splits = data_splits.make_splits(source, c.data, 0)
  batches = pipeline.train_batches(
    source, splits, c, batch_size=4, unlabelled_batch_size=4, seed=0
  )
  found = next(batches)
  batches.close()
  return found


def test_batches(batch):
  shapes = {name: array.shape for name, array in batch.items()}
  assert shapes == {
    'image': (4, *SIZE, 1), 'label': (4, *SIZE), 'unlabelled': (4, *SIZE, 1),
    'unlabelled_strong': (4, 2, *SIZE, 1), 'cutmix': (4, 2, *SIZE),
  }  # fmt: skip
  # Moved alike: the boxes are brighter than -0.2, the rest is not.
  assert ((batch['image'][..., 0] > -0.2) == batch['label']).mean() > 0.97


@pytest.mark.parametrize('kind', weak.KINDS)
def test_weak_labels(kind, folder):
  """Of the label as the networks see it, and right where they say a class."""
  data = config_of(folder).data
  data.weak.kind = kind
  data.fit = 'pad'
  read = examples.Examples(sources.load(data), data)
  for id_ in ('00', '01'):  # 44 x 60 and 40 x 60
    full, drawn = read.label(id_), read.training_label(id_)
    assert full.shape == drawn.shape == SIZE
    said = (drawn != 255) & (full != 255)
    assert said.any() == (kind != 'tags')
    if kind != 'polygons':
      np.testing.assert_array_equal(drawn[said], full[said])
  assert read.tags('00') is None or (read.tags('00') == 1).all()


@pytest.mark.parametrize('method', OTHERS)
def test_every_other_method(method, batch, folder):
  """Nothing is computed: the shapes of a step, and of a prediction."""
  c = config_of(folder, method)
  jaxseg_config.check(c)
  batch = batch | {'tags': np.ones((4, 2), np.float32)}
  for name in c.stages:
    built = workdir.make_method(c, name, 2)
    state = workdir.abstract_state(c, name, 2)
    stepped, metrics = jax.eval_shape(built.train_step, state, batch)
    same = jax.tree.map(lambda a, b: a.shape == b.shape, state, stepped)
    assert jax.tree.all(same)
    assert all(m.shape == () for m in metrics.values())
    predicted = jax.eval_shape(built.predict, state, batch['image'])
    assert predicted.probabilities.shape == (4, *SIZE, 2)
    for picture in jax.eval_shape(built.pictures, state, batch).values():
      assert picture.shape[1:3] == SIZE


@pytest.mark.parametrize('arch', segmenters.ARCHITECTURES)
@pytest.mark.parametrize('size', [(200, 200), (128, 256), (256, 128)])
def test_every_network(arch, size):
  """Parameters made for a square of the shorter side label the rectangle."""
  net = segmenters.build(segmenters.Net(arch, width=4, depth=2), 3)
  square = jnp.zeros((1, min(size), min(size), 3))
  variables = jax.eval_shape(net.init, jax.random.key(0), square)
  logits = jax.eval_shape(net.apply, variables, jnp.zeros((2, *size, 3)))
  assert logits.shape == (2, *size, 3)


@pytest.mark.parametrize('method', SQUARES_ALONE)
@pytest.mark.parametrize('size', [(200, 0), (128, 256), (64, 32)])
def test_gans_draw_squares(method, size):
  data = jaxseg_config.default().data
  data.resolution, data.width = size
  jaxseg_config.check_data(data)
  fields = jaxseg_config.stage(method)
  check = METHODS[method].check
  sentence = f'is {size[0]} and config.data.width {size[1]}, but config.gan .*'
  with pytest.raises(UserError, match=sentence + f'{method}.*power of two'):
    check('config.gan', fields, data)
  data.resolution, data.width = 64, 64
  check('config.gan', fields, data)


@pytest.mark.parametrize(
  ('method', 'size', 'changes', 'sentence'),
  [
    ('supervised', (200, 0), {'net.depth': 4}, '200 pixels .*data.resolution'),
    ('supervised', (64, 100), {'net.depth': 3}, '100 pixels .*data.width'),
    ('graph', (48, 64), {'image.grid': 32}, 'the 48 pixels .*data.resolution'),
    ('graph', (64, 48), {'image.grid': 32}, 'the 48 pixels .*data.width'),
    ('gct', (256, 64), {'detector.stride': 32}, 'the shorter side is 64'),
    ('gct', (64, 256), {'detector.stride': 32}, 'the shorter side is 64'),
  ],
)
def test_sides_that_do_not_fit(folder, method, size, changes, sentence):
  c = config_of(folder, method)
  c.data.resolution, c.data.width = size
  jaxseg_config.check(c)
  for name, value in changes.items():
    group, field = name.split('.')
    c['last'].args[group][field] = value
  with pytest.raises(UserError, match=sentence):
    jaxseg_config.check(c)


def test_one_pixel_needs_both_sides_short(folder):
  """A map of one by two pixels has a variance, one of a pixel has none."""
  c = config_of(folder, batch_size=1, unlabelled_batch_size=0)
  c['last'].args.net.update({'norm': 'batch', 'depth': 5})
  c.data.resolution, c.data.width = 32, 64
  jaxseg_config.check(c)
  c.data.width = 0
  with pytest.raises(UserError, match='a map of one pixel'):
    jaxseg_config.check(c)


def test_detector_of_the_shorter_side():
  """Both orders of the sides build the same flaw detector."""
  shapes = []
  for size in ((64, 128), (128, 64)):
    c = config_of('none', 'gct')
    c.data.resolution, c.data.width = size
    state = workdir.abstract_state(c, 'last', 2)
    images = jnp.zeros((4, *size, 1))
    batch = {
      'image': images, 'unlabelled': images,
      'label': jnp.zeros((4, *size), jnp.int32),
    }  # fmt: skip
    step = workdir.make_method(c, 'last', 2).train_step
    shapes.append(jax.tree.map(jnp.shape, state.params))
    jax.eval_shape(step, state, batch)
  assert shapes[0] == shapes[1]


@pytest.fixture(scope='module')
def trained(folder, tmp_path_factory):
  """A workdir after 40 steps, evaluated."""
  c = config_of(
    folder, unlabelled_batch_size=0, total_steps=40, picture_every=20,
    optimizer={'name': 'adamw', 'lr': 1e-2}, ema_half_life=20.0,
  )  # fmt: skip
  c.data.augment.flip = True
  c.data.augment.shift = 0.1
  path = tmp_path_factory.mktemp('run')
  train.train(c, str(path))
  return path


def test_trained_and_evaluated(trained, folder):
  """Scores are of the masks, and those have the images' own size."""
  content = json.loads((trained / 'evaluation/metrics.json').read_text())
  scores = content['results']['test']['last']['scores']
  assert scores['miou'] > 0.9
  cm = np.zeros((2, 2), int)
  ids = data_splits.load_splits(trained / 'splits.json').test
  for id_ in ids:
    label = np.asarray(Image.open(folder / f'labels/{id_}.png'))
    masks = trained / 'evaluation/masks/test/last'
    mask = np.asarray(Image.open(masks / f'{id_}.png'))
    assert mask.shape == label.shape
    np.add.at(cm, (label.ravel(), mask.ravel()), 1)
  np.testing.assert_array_equal(scores['confusion_matrix'], cm)
  report = (trained / 'evaluation/report.html').read_text()
  assert f'{WIDTH}x{HEIGHT}x1' in report


def test_predicted(trained, folder, tmp_path):
  """As Pillow and the network alone do it."""
  run = jaxseg.load(str(trained))
  predict.predict_folder(run, folder / 'images', tmp_path)
  with (tmp_path / 'predictions.csv').open() as file:
    assert len(list(csv.DictReader(file))) == 20
  method, state, _ = run.stages['last']
  for name in ('00', '01'):  # 44 x 60 and 40 x 60
    picture = Image.open(folder / f'images/{name}.png')
    small = picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    x = np.asarray(small, np.float32)[None, ..., None] / 127.5 - 1
    p = np.asarray(method.predict(state, x).probabilities[0])
    planes = [
      Image.fromarray(p[..., k]).resize(picture.size, Image.Resampling.BILINEAR)
      for k in (0, 1)
    ]
    wanted = np.argmax(np.stack([np.asarray(plane) for plane in planes]), 0)
    mask = np.asarray(Image.open(tmp_path / f'{name}.png'))
    assert mask.shape == picture.size[::-1]
    assert (mask == wanted).mean() > 0.999
