import json

import numpy as np
import pytest
from PIL import Image

from jaxseg.data import annotated, fit, pipeline, sources, splits, weak
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError, UserError

NAMES = ('background', 'cat', 'dog')
SPLITS = {
  'train': [f'{i:03d}' for i in range(6)],
  'val': ['006'],
  'test': ['007', '008'],
}
SCRIBBLE = """<annotation><size><width>32</width><height>32</height></size>
<polygon><tag>{}</tag><point><X>11</X><Y>6</Y></point>
<point><X>21</X><Y>6</Y></point></polygon></annotation>"""
BOX = """<annotation><size><width>32</width><height>32</height></size>
<object><name>dog</name><bndbox><xmin>5</xmin><ymin>9</ymin><xmax>12</xmax>
<ymax>20</ymax></bndbox></object></annotation>"""


def scribble(i):
  label = np.full((32, 32), 255, np.uint8)
  label[2], label[10 + i, 4:20], label[20, 4 : 20 + i] = 0, 1, 2
  return label


def save(path, label):
  path.parent.mkdir(exist_ok=True)
  Image.fromarray(label).save(path)


@pytest.fixture
def root(write_folder, config):
  """Full masks of all but 004, scribbles of 000, 001, 002 and 004."""
  folder = write_folder(
    n=9, num_classes=3, classes={'classes': list(NAMES)}, splits=SPLITS
  )
  (folder / 'labels/004.png').unlink()
  for i in (0, 1, 2, 4):
    save(folder / f'scribbles/{i:03d}.png', scribble(i))
  config.data.source = f'folder:{folder}'
  config.data.num_labelled = 0
  return folder


@pytest.fixture
def draw(config):
  """Returns a function that sets the two fields and makes the splits."""

  def source_and_splits(kind='scribbles', name='scribbles'):
    config.data.weak.kind, config.data.weak.drawn = kind, name
    weak.check(config.data.weak)
    source = sources.load(config.data)
    return source, splits.make_splits(source, config.data, 0)

  return source_and_splits


def labels_of(source, config, ids):
  examples = pipeline.Examples(source, config.data)
  return [examples.training_label(id_) for id_ in ids]


def test_scribbles_train_and_masks_score(root, draw, config):
  source, drawn = draw()
  assert set(drawn.labelled) == {'000', '001', '002', '004'}
  assert set(drawn.unlabelled) == set(SPLITS['train'])
  assert drawn.test == ('007', '008')
  for id_, found in zip(
    drawn.labelled, labels_of(source, config, drawn.labelled), strict=True
  ):
    np.testing.assert_array_equal(found, scribble(int(id_)))
  checked = checks.check(source, drawn, config.data)
  assert checked.labelled == drawn.labelled
  (batch,) = pipeline.eval_batches(source, ['000', '007'], config, 2)
  assert (batch['label'] != 255).all()
  batches = pipeline.train_batches(
    source, drawn, config, batch_size=4, unlabelled_batch_size=2, seed=0
  )
  batch = next(batches)
  batches.close()
  # `write_folder` adds the number of an image to its pixels.
  ids = np.round((batch['image'].min((1, 2, 3)) + 1) * 127.5).astype(int)
  for i, label in zip(ids, batch['label'], strict=True):
    np.testing.assert_array_equal(label, scribble(i))


def test_fewer_labels_and_drawn_splits(root, draw, config):
  """Without lists, annotated images are not left out; masks are scored."""
  (root / 'splits.json').unlink()
  config.data.num_labelled = 2
  source, drawn = draw()
  assert '004' in source.splits['all'] and '005' in source.splits['all']
  assert len(drawn.labelled) == 2
  assert set(drawn.labelled) <= source.drawn.paths.keys()
  assert set(drawn.test) <= {f'{i:03d}' for i in range(9)} - {'004'}
  config.data.num_labelled = 5
  with pytest.raises(UserError, match='num_labelled is 5'):
    draw()


def test_annotated_images_of_scored_groups_do_not_train(root, draw, config):
  content = {'groups': {f'{i:03d}': f'p{i // 3}' for i in range(9)}}
  content['train'] = [f'{i:03d}' for i in range(9)]
  (root / 'splits.json').write_text(json.dumps(content))
  config.data.test_fraction = 0.34
  for seed in range(4):
    source, _ = draw()
    drawn = splits.make_splits(source, config.data, seed)
    tested = {source.groups[i] for i in drawn.test}
    assert tested and not tested & {source.groups[i] for i in drawn.labelled}


def test_the_content_is_of_what_trains(root, draw, config):
  before = checks.check(*draw(), config.data).content
  save(root / 'labels/000.png', np.zeros((32, 32), np.uint8))
  assert checks.check(*draw(), config.data).content == before
  save(root / 'scribbles/000.png', scribble(3))
  assert checks.check(*draw(), config.data).content != before


def test_the_same_reading_rules(root, draw, config):
  """Colours of classes.json count; 255 is never a class here."""
  colours = {'background': [0, 0, 0], 'cat': [255, 0, 0], 'void': [9, 9, 9]}
  (root / 'classes.json').write_text(json.dumps(colours))
  lut = np.full((256, 3), 9, np.uint8)
  lut[0], lut[1], lut[2] = colours['background'], colours['cat'], 9
  for i in range(9):
    if i != 4:
      save(root / f'labels/{i:03d}.png', lut[np.eye(32, dtype=np.uint8)])
    if (root / f'scribbles/{i:03d}.png').exists():
      save(root / f'scribbles/{i:03d}.png', lut[scribble(i)])
  source, _ = draw()
  (found,) = labels_of(source, config, ['001'])
  expected = np.where(scribble(1) == 2, 255, scribble(1))
  np.testing.assert_array_equal(found, expected)
  values = {'classes': ['no', 'yes'], 'values': {'255': 1}, 'void': None}
  (root / 'classes.json').write_text(json.dumps(values))
  for i in range(9):
    if i != 4:
      full = 255 * np.eye(32, dtype=np.uint8)
      save(root / f'labels/{i:03d}.png', full)
  for i in (0, 1, 2, 4):
    save(root / f'scribbles/{i:03d}.png', np.minimum(scribble(i), 255))
  label = np.where(scribble(1) == 2, 1, scribble(1))
  save(root / 'scribbles/001.png', label)
  source, _ = draw()
  np.testing.assert_array_equal(labels_of(source, config, ['001'])[0], label)
  assert set(np.unique(source.label('001'))) == {0, 1}


def test_classes_are_inferred_from_scribbles_too(root, draw):
  (root / 'classes.json').unlink()
  for path in (root / 'labels').iterdir():
    save(path, np.zeros((32, 32), np.uint8))
  source, _ = draw()
  assert len(source.class_names) == 3


def test_scribble_xml(root, draw, config):
  (root / 'xml').mkdir()
  (root / 'xml/003.xml').write_text(SCRIBBLE.format('cat'))
  source, drawn = draw(name='xml')
  assert drawn.labelled == ('003',)
  (found,) = labels_of(source, config, ['003'])
  assert found[5, 15] == 1 and set(np.unique(found)) == {1, 255}
  (root / 'xml/003.xml').write_text(SCRIBBLE.format('fox'))
  with pytest.raises(DataError, match="003.xml: there is no class 'fox'"):
    checks.check(*draw(name='xml'), config.data)


def write_boxes(root, *lines):
  text = '\n'.join(['image,class,top,left,bottom,right', *lines])
  (root / 'boxes.csv').write_text(text)


def test_boxes(root, draw, config):
  write_boxes(
    root, '000.png,cat,4,4,20,16', '000,dog,8,8,14,14', 'images/003.png',
  )  # fmt: skip
  source, drawn = draw('boxes', 'boxes.csv')
  assert set(drawn.labelled) == {'000', '003'}
  config.data.weak.width = 1
  one, none = labels_of(source, config, ['000', '003'])
  expected = weak.draw_boxes(
    [(1, 4, 4, 20, 16), (2, 8, 8, 14, 14)], (32, 32), 1
  )
  np.testing.assert_array_equal(one, expected)
  assert not none.any()
  checks.check(source, drawn, config.data)
  config.data.weak.refine = 'grabcut'
  assert labels_of(source, config, ['000'])[0].shape == (32, 32)
  # Drawn at the size of the networks: the band is as wide as it is told.
  config.data.weak.refine, config.data.resolution = '', 64
  (large,) = labels_of(source, config, ['000'])
  assert (large[10, 9:31] == 1).all() and (large[9, 9:31] == 1).all()
  assert (large[8] != 1).all()


def test_boxes_have_no_band_where_they_are_cut(root, draw, config):
  """So that it is known where they are, see `jaxseg.losses.boxes`."""
  image = np.zeros((32, 48), np.uint8)
  save(root / 'images/000.png', image)
  save(root / 'labels/000.png', image)
  write_boxes(root, '000,cat,0,4,20,20', '000,dog,22,30,30,48')
  config.data.fit, config.data.weak.width = 'crop', 2  # columns 8 to 40
  source, _ = draw('boxes', 'boxes.csv')
  (found,) = labels_of(source, config, ['000'])
  expected = np.zeros((32, 32), np.uint8)
  expected[:21, :13], expected[1:19, :11] = 255, 1
  expected[21:31, 21:], expected[23:29, 23:] = 255, 2
  np.testing.assert_array_equal(found, expected)


def test_xml_boxes(root, draw, config):
  (root / 'Annotations').mkdir()
  (root / 'Annotations/002.xml').write_text(BOX)
  source, drawn = draw('boxes', 'Annotations')
  assert drawn.labelled == ('002',)
  config.data.weak.width = 1
  (found,) = labels_of(source, config, ['002'])
  np.testing.assert_array_equal(
    found, weak.draw_boxes([(2, 8, 4, 20, 12)], (32, 32), 1)
  )


@pytest.mark.parametrize('file', ['tags.csv', 'tags.json'])
def test_tags(root, draw, config, file):
  text = 'image,classes\n000,cat;dog\n004.png,\n005,dog\n'
  if file.endswith('json'):
    text = json.dumps({'000': ['cat', 'dog'], '004': [], '005': [2]})
  (root / file).write_text(text)
  source, drawn = draw('tags', file)
  assert weak.gives_tags(config.data.weak)
  assert set(drawn.labelled) == {'000', '004', '005'}
  examples = pipeline.Examples(source, config.data)
  found = {id_: examples.tags(id_).tolist() for id_ in drawn.labelled}
  assert found == {'000': [1, 1, 1], '004': [1, 0, 0], '005': [1, 0, 1]}
  assert (examples.training_label('000') == 255).all()
  before = checks.check(source, drawn, config.data).content
  (root / file).write_text(text.replace('dog', 'cat', 1))
  assert checks.check(*draw('tags', file), config.data).content != before
  batches = pipeline.train_batches(
    source, drawn, config, batch_size=3, unlabelled_batch_size=0, seed=0
  )
  batch = next(batches)
  batches.close()
  assert sorted(batch['tags'].sum(1)) == [1, 2, 3]
  config.data.num_labelled = 1
  assert draw('tags', file)[1].labelled == ('000',)  # it shows all


@pytest.mark.parametrize(
  'kind, name, sentence',
  [
    ('scribbles', 'scribble', 'which holds classes.json, images, labels'),
    ('scribbles', '../other', 'inside of'),
    ('scribbles', 'classes.json', 'a folder of label images is expected'),
    ('boxes', 'scribbles', 'expected ID.xml with the boxes'),
    ('tags', 'scribbles', 'a file ending in .csv or .json is expected'),
  ],
)
def test_nothing_of_that_name_or_kind(root, draw, kind, name, sentence):
  with pytest.raises(UserError, match=sentence) as error:
    draw(kind, name)
  assert 'config.data.weak.drawn' in str(error.value)
  assert '\n' not in str(error.value)


def test_unused_drawings_are_told(root, draw, config, capsys):
  def told(kind, name=''):
    source, drawn = draw(kind, name)
    capsys.readouterr()
    checks.check(source, drawn, config.data)
    return [x for x in capsys.readouterr().err.split('\n') if 'drawn' in x]

  (root / 'tags.csv').write_text('000,cat')
  (line,) = told('scribbles')
  assert line.endswith('drawn set --config.data.weak.drawn=scribbles')
  (line,) = told('boxes')
  assert 'scribbles, tags.csv: not used' in line
  assert 'kind=scribbles and --config.data.weak.drawn=scribbles' in line
  assert not told('scribbles', 'scribbles') and not told('')
  for path in (root / 'labels').iterdir():
    path.unlink()
  with pytest.raises(UserError, match='--config.data.weak.drawn=scribbles'):
    draw('scribbles', '')


def test_sources_without_annotations(draw, config):
  config.data.source = 'digits'
  with pytest.raises(UserError, match="config.data.source is 'digits'"):
    draw()


@pytest.mark.parametrize(
  'case, sentence',
  [
    ('ids', 'scribbles/000.png: its label holds the ids 7 in'),
    ('size', 'scribbles/000.png: the label is 16x16 and the image 32x32'),
    ('void', 'its label is all void'),
    ('orphan', 'scribbles/x.png: the label has no image'),
    ('jpeg', 'scribbles/005.jpg: the label file is JPEG'),
    ('box', 'boxes.csv: a box .* reaches to row 40'),
    ('box_name', 'boxes.csv: 1 names in it are no images in images/ .cow.'),
    ('no_train', 'annotate some where config.data.weak.drawn says'),
  ],
)
def test_bad_annotations(root, draw, config, case, sentence):
  path = root / 'scribbles/000.png'
  args = ('boxes', 'boxes.csv') if 'box' in case else ()
  if case == 'ids':
    save(path, np.minimum(scribble(0), 7))
  elif case == 'size':
    save(path, scribble(0)[:16, :16])
  elif case == 'void':
    save(path, np.full((32, 32), 255, np.uint8))
  elif case == 'orphan':
    save(root / 'scribbles/x.png', scribble(0))
  elif case == 'jpeg':
    save(root / 'scribbles/005.jpg', scribble(0))
  elif case == 'box':
    write_boxes(root, '000,cat,1,1,40,20')
  elif case == 'box_name':
    write_boxes(root, '000,cat,1,1,20,20', 'cow,cat,1,1,20,20')
  else:
    for i in (0, 1, 2, 4):
      (root / f'scribbles/{i:03d}.png').unlink()
    save(root / 'scribbles/006.png', scribble(0))
  with pytest.raises((UserError, DataError), match=sentence) as error:
    checks.check(*draw(*args), config.data)
  assert '\n' not in str(error.value)


def test_inspection(root, draw, config):
  for i in (0, 1, 2, 4):
    label = scribble(i)
    save(root / f'scribbles/{i:03d}.png', np.where(label == 2, 255, label))
  source, _ = draw()
  found, counts = checks.inspect(source, target=(32, 32))
  told = {p.kind: p.message for p in found}
  assert counts.labels == 8
  assert "class 'dog' has no annotated pixel" in told['class_missing']
  assert told['no_annotations'].startswith('2 of 6')
  assert told['contradictions'].split('%')[0].isdecimal()  # noise as masks
  shown = annotated.shown(source)
  assert (shown.label('001') == 255).any() and shown.label('003') is None
  assert (shown.label('007') != 255).all()


def test_thin_strokes_survive():
  label = np.full((128, 96), 255, np.uint8)
  label[:, 50], label[64, :50] = 1, 0
  small = fit.strokes(label, (32, 24), '')
  assert (small[:, 12] == 1).all() and (small[16, :12] == 0).all()
  assert (small != 255).sum() == 32 + 12
  same = fit.strokes(label, (128, 96), '')
  np.testing.assert_array_equal(same, label)
  assert set(np.unique(fit.strokes(label, 256, 'squeeze'))) == {0, 1, 255}
  padded = fit.strokes(label, 32, 'pad')
  assert (padded[:, :4] == 255).all() and (padded[16, 4:16] == 0).all()


@pytest.mark.parametrize('policy', ['crop', 'pad', 'squeeze'])
def test_boxes_are_moved_as_labels_are(policy):
  boxes = [(1, 0, 0, 40, 30), (2, 40, 60, 60, 96), (3, 10, 40, 11, 41)]
  label = np.full((64, 96), 0, np.uint8)
  for class_id, top, left, bottom, right in boxes:
    label[top:bottom, left:right] = class_id
  moved = fit.boxes(boxes, label.shape, (32, 32), policy)
  drawn = np.zeros((32, 32), np.uint8)
  for class_id, top, left, bottom, right in moved:
    assert 0 <= top < bottom <= 32 and 0 <= left < right <= 32
    drawn[top:bottom, left:right] = class_id
  expected = fit.label(label, (32, 32), policy)
  known = expected != 255
  assert (drawn[~known] == 0).all()
  assert (drawn != expected)[known].mean() < 0.06
  assert {b[0] for b in moved} == {1, 2, 3}
  assert fit.boxes([(1, 0, 0, 9, 3)], (64, 96), 32, 'crop') == []


def test_annotations_can_be_sent_to_workers(root, draw, config):
  cloudpickle = pytest.importorskip('cloudpickle')
  write_boxes(root, '000,cat,4,4,20,16')
  for kind, name in (('scribbles', 'scribbles'), ('boxes', 'boxes.csv')):
    source, _ = draw(kind, name)
    sent = cloudpickle.loads(cloudpickle.dumps(source))
    np.testing.assert_array_equal(
      labels_of(sent, config, ['000']), labels_of(source, config, ['000'])
    )


def test_slices_of_volumes(tmp_path, draw, config):
  """Those on which something was drawn are the labelled ones."""
  nibabel = pytest.importorskip('nibabel')
  values = np.random.default_rng(0).normal(0, 9, (32, 32, 4))
  label = np.zeros((32, 32, 4), np.uint8)
  label[5:9, 5:20] = 1
  strokes = np.full_like(label, 255)
  strokes[6, 6:18, 1:3], strokes[20, :, 2] = 1, 0
  for kind, array in (
    ('images', values.astype(np.float32)), ('labels', label),
    ('scribbles', strokes),
  ):  # fmt: skip
    (tmp_path / kind).mkdir()
    image = nibabel.Nifti1Image(array, np.eye(4))
    nibabel.save(image, tmp_path / kind / 'anna.nii.gz')
  (tmp_path / 'splits.json').write_text(
    json.dumps({'train': ['anna'], 'val': [], 'test': []})
  )
  config.data.source, config.data.num_labelled = f'folder:{tmp_path}', 0
  source, drawn = draw()
  assert drawn.labelled == ('anna-ax001', 'anna-ax002')
  one, two = labels_of(source, config, drawn.labelled)
  assert (one == 1).sum() == (two == 1).sum() == 12
  assert set(np.unique(two)) == {0, 1, 255}
  checks.check(source, drawn, config.data)
