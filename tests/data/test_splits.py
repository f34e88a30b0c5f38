import json

import numpy as np
import pytest

from jaxseg.data import drawing, sources, splits
from jaxseg.errors import DataError, UserError


def make_source(labels, groups=None, budgets=None, unlabelled=(), **parts):
  """A source in memory: {id: class ids shown}; parts are its splits."""
  used = set(labels) | set(unlabelled)
  names = {i: i for i in used}
  return sources.Source(
    name='made',
    class_names=tuple('abcd'),
    palette=sources.voc_palette(4),
    channels=1,
    splits={k: tuple(v) for k, v in parts.items()} or {'all': tuple(labels)},
    budgets=budgets or {},
    groups=groups or {},
    image=lambda id_: np.zeros((8, 8, 1), np.uint8),
    label=lambda id_: np.resize(np.array(labels[id_], np.uint8), (8, 8)),
    has_label=labels.__contains__,
    path=lambda id_: f'made:{names[id_]}',
  )


IDS = [f'{i:03d}' for i in range(200)]
PLAIN = {id_: [0, 1, 2, 3] for id_ in IDS}


def test_drawn_parts(config):
  config.data.num_labelled = 30
  s = splits.make_splits(make_source(PLAIN), config.data, 0)
  assert (len(s.test), len(s.val)) == (40, 16)
  assert len(s.labelled) == 30 and set(s.labelled) <= set(s.unlabelled)
  parts = [set(s.unlabelled), set(s.val), set(s.test)]
  assert set.union(*parts) == set(IDS) and sum(map(len, parts)) == 200


def test_drawn_parts_leave_labels_to_train_on(config):
  """A fraction of the labelled images, however many others there are."""
  labels = {i: PLAIN[i] for i in IDS[:20]}
  source = make_source(labels, unlabelled=IDS[20:], train=IDS)
  s = splits.make_splits(source, config.data, 0)
  assert (len(s.test), len(s.val), len(s.labelled)) == (4, 2, 4)


def test_seed_decides(config):
  source = make_source(PLAIN)
  a, b, c = (splits.make_splits(source, config.data, s) for s in (0, 0, 1))
  assert a == b and a.hash == b.hash
  assert set(a.labelled) != set(c.labelled) and a.test != c.test
  assert a.hash != c.hash


def test_nested(config):
  source = make_source(PLAIN)
  drawn = []
  for n in (1, 9, 30, 144):
    config.data.num_labelled = n
    drawn.append(splits.make_splits(source, config.data, 3))
  for small, large in zip(drawn, drawn[1:], strict=False):
    assert large.labelled[: len(small.labelled)] == small.labelled
    assert large.test == small.test and large.val == small.val


def test_stratified(config):
  """Each class first, then each as often as in the whole."""
  labels = {id_: [0, 1 + (i % 10 == 0)] for i, id_ in enumerate(IDS)}
  labels['123'] = [0, 3]
  source = make_source(labels, train=IDS, val=[], test=[])
  for seed in range(5):
    config.data.num_labelled = 3
    few = splits.make_splits(source, config.data, seed).labelled
    assert {c for id_ in few for c in labels[id_]} == {0, 1, 2, 3}
    config.data.num_labelled = 100
    many = splits.make_splits(source, config.data, seed).labelled
    assert sum(2 in labels[id_] for id_ in many) in (9, 10, 11)


def test_few_labels_are_read(config, monkeypatch):
  monkeypatch.setattr(drawing, 'MAX_STRATIFY_LABELS', 7)
  source, read = make_source(PLAIN), []
  label = source.label
  source = source._replace(label=lambda i: (read.append(i), label(i))[1])
  config.data.num_labelled = 50
  assert len(splits.make_splits(source, config.data, 0).labelled) == 50
  assert len(read) == 7


def test_groups_stay_together(config):
  groups = {id_: f'patient {i // 10}' for i, id_ in enumerate(IDS)}
  config.data.num_labelled = 20
  s = splits.make_splits(make_source(PLAIN, groups), config.data, 0)

  def patients(ids):
    return {groups[i] for i in ids}

  assert len(patients(s.labelled)) == 2
  assert patients(s.test).isdisjoint(patients(s.unlabelled))
  assert patients(s.val).isdisjoint(patients(s.unlabelled + s.test))


@pytest.mark.parametrize('apart', [True, False])
def test_unlabelled_images_of_drawn_groups_are_left_out(config, apart):
  """Patients of whom only some images have labels, as frames of a video."""
  groups = {id_: f'p{i // 10}' for i, id_ in enumerate(IDS)}
  labels = {id_: PLAIN[id_] for i, id_ in enumerate(IDS) if i % 10 < 4}
  others = [i for i in IDS if i not in labels]
  source = make_source(labels, groups, unlabelled=others)
  parts = {'train': tuple(IDS)}
  if apart:
    parts = {'all': tuple(labels), 'unlabelled': tuple(others)}
  source = source._replace(splits=parts)
  s = splits.make_splits(source, config.data, 0)
  assert len(s.test) == 16 and len(s.val) == 8  # of 4 and 2 patients of 20
  scored = {groups[i] for i in s.test + s.val}
  assert len(scored) == 6
  assert set(s.unlabelled) == {i for i in IDS if groups[i] not in scored}


def test_budgets_are_scored_on_the_same_images(config):
  budgets = {'4': IDS[:4], '5': IDS[:60:12], '200': IDS}
  source = make_source(PLAIN, budgets=budgets)
  drawn = []
  for n in (3, 4, 5):
    config.data.num_labelled = n
    drawn.append(splits.make_splits(source, config.data, 5))
  assert len({s.test for s in drawn}) == len({s.val for s in drawn}) == 1
  assert len(drawn[0].test) == 40
  assert set(drawn[0].test + drawn[0].val).isdisjoint(IDS[:4] + IDS[:60:12])


def test_part_of_a_group_is_stratified(config):
  """30 slices of a volume are not its first 30, which show no organ."""
  groups = {id_: f'volume {i // 100}' for i, id_ in enumerate(IDS)}
  labels = {id_: [0, 1] if i % 100 > 60 else [0] for i, id_ in enumerate(IDS)}
  labels[IDS[90]] = labels[IDS[190]] = [0, 2]
  drawn = []
  for n in (2, 10, 100, 150):
    config.data.num_labelled = n
    source = make_source(labels, groups, train=IDS, val=[], test=[])
    drawn.append(splits.make_splits(source, config.data, 3).labelled)
    assert {c for i in drawn[-1] for c in labels[i]} == {0, 1, 2}
  assert sum(1 in labels[i] for i in drawn[1]) in (3, 4, 5)
  assert len({groups[i] for i in drawn[2]}) == 1
  for small, large in zip(drawn, drawn[1:], strict=False):
    assert large[: len(small)] == small


def test_official_budget_wins(config):
  budgets = {'4': ('009', '001', '007', '003')}
  source = make_source(PLAIN, budgets=budgets)
  s = splits.make_splits(source, config.data, 5)
  assert s.labelled == budgets['4'] and len(s.test) == 40
  config.data.num_labelled = 3
  assert not set(splits.make_splits(source, config.data, 5).labelled) <= set(
    budgets['4']
  )


def test_budget_outside_train(config):
  source = make_source(
    PLAIN, budgets={'4': IDS[100:104]}, train=IDS[:100], test=IDS[100:], val=[]
  )
  with pytest.raises(UserError, match="made:100: .* budget '4'"):
    splits.make_splits(source, config.data, 0)


def test_zero_means_all(config):
  config.data.num_labelled = 0
  s = splits.make_splits(
    make_source(PLAIN, train=IDS[:50], val=IDS[50:60], test=IDS[60:]),
    config.data,
    0,
  )
  assert s.labelled == tuple(IDS[:50])


def test_unlabelled_parts(config):
  source = make_source(
    {i: PLAIN[i] for i in IDS[:20]},
    unlabelled=['u', 'v', 'w'],
    train=[*IDS[:10], 'u'],
    val=IDS[10:12],
    test=IDS[12:20],
    unlabelled_more=['v'],
    ood_far=['w'],
  )
  source.splits['unlabelled'] = ('w',)
  del source.splits['ood_far']
  config.data.unlabelled = ('unlabelled_more',)
  s = splits.make_splits(source, config.data, 0)
  assert set(s.unlabelled) == {*IDS[:10], 'u', 'v', 'w'}
  config.data.unlabelled_includes_labelled = False
  s = splits.make_splits(source, config.data, 0)
  assert set(s.unlabelled) == {*IDS[:10], 'u', 'v', 'w'} - set(s.labelled)


def test_ood(config):
  parts = dict(train=IDS[:10], val=[], test=IDS[10:12])
  source = make_source(PLAIN, **parts, ood_a=IDS[12:14], ood_b=IDS[14:15])
  s = splits.make_splits(source, config.data, 0)
  assert s.ood == {'ood_a': ('012', '013'), 'ood_b': ('014',)}
  config.data.ood = ('ood_b',)
  assert list(splits.make_splits(source, config.data, 0).ood) == ['ood_b']


@pytest.mark.parametrize('field', ['ood', 'unlabelled'])
def test_unknown_split(config, field):
  config.data[field] = ('nowhere',)
  with pytest.raises(UserError, match=f"data.{field} names .*'nowhere'.*'all'"):
    splits.make_splits(make_source(PLAIN), config.data, 0)


def test_no_train_split(config):
  with pytest.raises(UserError, match="expected one named 'train'"):
    splits.make_splits(make_source(PLAIN, test=IDS), config.data, 0)


def test_zero_labelled(config):
  source = make_source({}, unlabelled=IDS, train=IDS, val=[], test=[])
  with pytest.raises(UserError, match='no labelled image to train on'):
    splits.make_splits(source, config.data, 0)


def test_fewer_than_asked_for(config):
  config.data.num_labelled = 11
  source = make_source(PLAIN, train=IDS[:10], val=[], test=[])
  with pytest.raises(UserError, match='num_labelled is 11, but .* has 10'):
    splits.make_splits(source, config.data, 0)


@pytest.mark.parametrize(
  'field, value',
  [('num_labelled', -1), ('val_fraction', 1.0), ('test_fraction', -0.1)],
)
def test_bad_numbers(config, field, value):
  config.data[field] = value
  with pytest.raises(UserError, match=f'config.data.{field} is {value}'):
    splits.make_splits(make_source(PLAIN), config.data, 0)
  with pytest.raises(UserError, match='config.seed is -1'):
    splits.make_splits(make_source(PLAIN), config.data, -1)


def test_require_unlabelled(config):
  config.data.unlabelled_includes_labelled = False
  config.data.num_labelled = 0
  source = make_source(PLAIN, train=IDS[:10], val=[], test=[])
  s = splits.make_splits(source, config.data, 0)
  with pytest.raises(UserError, match='no unlabelled images'):
    splits.require_unlabelled(s)
  config.data.num_labelled = 9
  splits.require_unlabelled(splits.make_splits(source, config.data, 0))


@pytest.mark.parametrize('part', ['val', 'test', 'ood_x'])
def test_image_in_training_and_scoring(config, part):
  parts = {'val': [], 'test': []} | {part: IDS[9:12]}
  source = make_source(PLAIN, train=IDS[:10], **parts)
  with pytest.raises(UserError, match=f"1 images of split '{part}'.*made:009"):
    splits.make_splits(source, config.data, 0)


def test_group_in_training_and_scoring(config):
  groups = {'003': 'anna', '011': 'anna'}
  source = make_source(PLAIN, groups, train=IDS[:10], val=[], test=IDS[10:12])
  with pytest.raises(UserError, match="group 'anna'.*split 'test'"):
    splits.make_splits(source, config.data, 0)


def test_unlabelled_images_of_a_scored_split(config):
  config.data.unlabelled = ('ood_x',)
  source = make_source(PLAIN, train=IDS[:10], val=[], test=[], ood_x=IDS[20:30])
  with pytest.raises(UserError, match="10 images of split 'ood_x' also train"):
    splits.make_splits(source, config.data, 0)


def test_save_and_load(config, tmp_path):
  source = make_source(
    PLAIN, train=IDS[:10], val=['010'], test=[], ood_x=['011']
  )
  s = splits.make_splits(source, config.data, 0)
  splits.save_splits(tmp_path / 'splits.json', s)
  assert splits.load_splits(tmp_path / 'splits.json') == s


def test_load_refuses_damaged_and_edited_files(config, tmp_path):
  path = tmp_path / 'splits.json'
  with pytest.raises(UserError, match='cannot be read'):
    splits.load_splits(path)
  path.write_text('{"labelled": []}')
  with pytest.raises(UserError, match='cannot be read'):
    splits.load_splits(path)
  splits.save_splits(
    path, splits.make_splits(make_source(PLAIN), config.data, 0)
  )
  content = json.loads(path.read_text())
  content['test'].pop()
  path.write_text(json.dumps(content))
  with pytest.raises(UserError, match='was edited'):
    splits.load_splits(path)


def test_labels_counted_in_groups(config):
  """Budgets of patients: whole groups, nested; an official one wins."""
  groups = {id_: f'p{i // 10:02d}' for i, id_ in enumerate(IDS)}
  config.data.labelled_by = 'group'
  drawn = []
  for n in (2, 5):
    config.data.num_labelled = n
    source = make_source(PLAIN, groups=groups)
    drawn.append(splits.make_splits(source, config.data, 0).labelled)
    patients = {groups[i] for i in drawn[-1]}
    assert len(patients) == n and len(drawn[-1]) == 10 * n
  assert set(drawn[0]) <= set(drawn[1])
  official = [i for i in IDS if groups[i] in ('p03', 'p04')]
  parts = {'train': IDS, 'val': [], 'test': []}
  budgets = {'2': tuple(official)}
  source = make_source(PLAIN, groups=groups, budgets=budgets, **parts)
  config.data.num_labelled = 2
  assert splits.make_splits(source, config.data, 0).labelled == tuple(official)
  # Counted in images, two labels are two labels.
  config.data.labelled_by = 'image'
  assert len(splits.make_splits(source, config.data, 0).labelled) == 2


def test_labelled_by_is_checked(config):
  config.data.labelled_by = 'patient'
  with pytest.raises(UserError, match="'image' or 'group'"):
    splits.make_splits(make_source(PLAIN), config.data, 0)


def test_groups_that_nobody_named_are_not_counted(config):
  config.data.labelled_by = 'group'
  with pytest.raises(UserError, match='made tells no groups'):
    splits.make_splits(make_source(PLAIN), config.data, 0)


def test_a_damaged_label_does_not_stop_the_drawing(config):
  """It is told of, with all others, when the set is checked."""
  source = make_source(PLAIN, train=IDS, val=[], test=[])

  def label(id_):
    if id_ == IDS[0]:
      raise DataError('000.png: damaged')
    return source.label(id_)

  s = splits.make_splits(source._replace(label=label), config.data, 0)
  assert len(s.labelled) == 4


def test_known_classes_spare_the_labels(config):
  def no_label(id_):
    raise AssertionError(f'{id_} was read')

  def classes_in(id_):
    row = np.zeros(256, bool)
    row[[0, 1 + int(id_) % 3]] = True
    return row

  source = make_source(PLAIN, train=IDS, val=[], test=[])
  source = source._replace(label=no_label, classes_in=classes_in)
  config.data.num_labelled = 3
  s = splits.make_splits(source, config.data, 0)
  assert {int(i) % 3 for i in s.labelled} == {0, 1, 2}


def test_rehash(config):
  s = splits.make_splits(make_source(PLAIN), config.data, 0)
  fewer = splits.rehash(s._replace(unlabelled=s.unlabelled[1:]))
  assert fewer.hash != s.hash and splits.rehash(s) == s


def test_a_workdir_keeps_its_images(config, tmp_path):
  source = make_source(PLAIN, train=IDS[:50], test=IDS[50:90], val=IDS[90:95])
  s = splits.make_splits(source, config.data, 0)._replace(content='a1')
  path = tmp_path / 'splits.json'
  splits.refuse_other(path, s)  # a new workdir
  splits.save_splits(path, s)
  splits.refuse_other(path, splits.load_splits(path))
  more = splits.rehash(s._replace(ood={'ood_new': ('999',)}))
  splits.refuse_other(path, more)
  fewer = splits.rehash(s._replace(unlabelled=s.unlabelled[2:]))
  with pytest.raises(UserError, match='unlabelled images.*others.*2 are go'):
    splits.refuse_other(path, fewer)
  with pytest.raises(UserError, match='pixels of some images'):
    splits.refuse_other(path, s._replace(content='b2'))


def test_leaks_that_are_allowed(config):
  """Scored images without labels and groups may cross; scored labels never."""
  groups = {IDS[0]: 'g', IDS[60]: 'g'}
  parts = dict(train=IDS[:50], test=IDS[60:90], val=IDS[90:95])
  source = make_source(PLAIN, groups=groups, pool=IDS[60:70], **parts)
  with pytest.raises(UserError, match="group 'g' is both"):
    splits.make_splits(source, config.data, 0)
  config.data.unlabelled = ('pool',)
  with pytest.raises(UserError, match='10 images of split .test. also train'):
    splits.make_splits(source, config.data, 0)
  config.data.allow_leaks = True
  s = splits.make_splits(source, config.data, 0)
  assert set(s.test) & set(s.unlabelled) == set(IDS[60:70])
  config.data.unlabelled = ()
  parts['test'] = IDS[40:90]
  source = make_source(PLAIN, budgets={'4': IDS[40:44]}, **parts)
  with pytest.raises(UserError, match='4 images of split .test. also train'):
    splits.make_splits(source, config.data, 0)


@pytest.mark.parametrize(
  ('fraction', 'count'), [(1e-4, 1), (0.1, 14), (0.25, 36), (0.5, 72), (1, 144)]
)
def test_fraction_of_images(config, fraction, count):
  """Of the 144 that are left to train when 40 and 16 of 200 are drawn."""
  config.data.num_labelled = 999  # does not count
  config.data.labelled_fraction = float(fraction)
  s = splits.make_splits(make_source(PLAIN), config.data, 3)
  assert len(s.labelled) == count
  config.data.labelled_fraction, config.data.num_labelled = 0.0, count
  same = splits.make_splits(make_source(PLAIN), config.data, 3)
  assert set(s.labelled) == set(same.labelled) and s.test == same.test


def test_fractions_are_nested(config):
  drawn = []
  for fraction in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0):
    config.data.labelled_fraction = fraction
    drawn.append(splits.make_splits(make_source(PLAIN), config.data, 3))
  for small, large in zip(drawn, drawn[1:], strict=False):
    assert set(small.labelled) < set(large.labelled)
    assert (small.test, small.val) == (large.test, large.val)


def test_fraction_of_labels_alone(config):
  """Images that have no label do not count."""
  source = make_source(
    {i: PLAIN[i] for i in IDS[:20]}, unlabelled=IDS[20:100],
    train=IDS[:100], val=[], test=[],
  )  # fmt: skip
  config.data.labelled_fraction = 0.4
  s = splits.make_splits(source, config.data, 0)
  assert len(s.labelled) == 8 and set(s.labelled) <= set(IDS[:20])
  assert len(s.unlabelled) == 100


def test_fraction_of_groups(config):
  """6 patients with 5 to 10 slices; half of them, whatever they hold."""
  sizes = (5, 6, 7, 8, 9, 10)
  groups = {}
  for i, size in enumerate(sizes):
    for id_ in IDS[sum(sizes[:i]) :][:size]:
      groups[id_] = f'p{i}'
  labels = {i: PLAIN[i] for i in groups}
  config.data.labelled_by = 'group'
  drawn = []
  for fraction, patients in ((0.2, 1), (0.5, 3), (0.6, 4), (0.99, 6)):
    config.data.labelled_fraction = fraction
    source = make_source(labels, groups, train=list(labels), val=[], test=[])
    drawn.append(splits.make_splits(source, config.data, 1).labelled)
    shown = {groups[i] for i in drawn[-1]}
    assert len(shown) == patients
    assert len(drawn[-1]) == sum(sizes[int(p[1])] for p in shown)
  for small, large in zip(drawn, drawn[1:], strict=False):
    assert set(small) < set(large)


def test_fraction_prefers_an_official_budget(config):
  budgets = {'36': tuple(IDS[100:136]), '4': tuple(IDS[:4])}
  source = make_source(PLAIN, budgets=budgets)
  config.data.labelled_fraction = 0.25  # 36 of 144
  s = splits.make_splits(source, config.data, 5)
  assert s.labelled == budgets['36'] and (len(s.test), len(s.val)) == (40, 16)
  config.data.labelled_fraction = 0.2  # 29, of which there is none
  other = splits.make_splits(source, config.data, 5)
  assert len(other.labelled) == 29 and other.test == s.test
  assert set(other.labelled) - set(budgets['36'])


def test_fraction_without_the_budget_that_would_change_it(config):
  """Sparing 4 images of a large patient would leave 83 to be labelled, not 4.

  Of 21 patients 16 are scored: among them the large one, as the 4 of budget
  'a' are spared and only one other patient is left to train.
  """
  groups = {id_: f'p{max(0, i - 99)}' for i, id_ in enumerate(IDS[:120])}
  labels = {i: PLAIN[i] for i in groups}  # p0 has 100 images, 20 others one
  budgets = {'a': tuple(IDS[100:104]), '4': tuple(IDS[:4])}
  config.data.test_fraction, config.data.val_fraction = 0.75, 0.0
  config.data.labelled_fraction = 0.8
  source = make_source(labels, groups, budgets=budgets)
  s = splits.make_splits(source, config.data, 0)
  assert 'p0' in {groups[i] for i in s.test} and len(s.test) == 115
  assert len(s.labelled) == 4 and not set(s.labelled) & set(budgets['4'])


@pytest.mark.parametrize('fraction', [-0.1, 1.5, 20.0, float('nan')])
def test_fraction_outside_of_its_range(config, fraction):
  config.data.labelled_fraction = fraction
  message = f'labelled_fraction is {fraction}, must be from 0 to 1: 0.2 for 20'
  with pytest.raises(UserError, match=message):
    splits.make_splits(make_source(PLAIN), config.data, 0)
