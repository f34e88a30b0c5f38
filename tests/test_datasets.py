"""The command line that lists, prepares, checks and shows data sets."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from jaxseg import config as jaxseg_config
from jaxseg import datasets
from jaxseg.data import builders, prepared, sources
from jaxseg.data.builders import base


class Cells(base.Builder, skip_registration=True):
  """Photographs NAME.png with masks NAME_mask.png."""

  name = 'cells'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    base.Config(
      name='both', description='Cells and nuclei.', counts={'train': 1200},
      class_names=('background', 'cell', 'nucleus'), channels=1,
    ),
    base.Config(
      name='one', description='Cells.', class_names=('background', 'cell')
    ),
  ]  # fmt: skip
  MANUAL_DOWNLOAD_INSTRUCTIONS = 'Get cells.zip\nfrom the cell bank.'
  TITLE, LICENCE, HOMEPAGE = 'Cells in dishes', 'CC BY 4.0', 'https://cells.org'
  CITATION = '@article{cells}'

  def scan(self, root):
    paths = sorted(p for p in root.glob('*.png') if '_mask' not in p.stem)
    return {
      'train': [
        base.Record(p.stem, p, lambda: np.eye(16, dtype=np.uint8))
        for p in paths
      ]
    }


@pytest.fixture
def cells(tmp_path, monkeypatch):
  """An archive with four of the 1200 images of a public set."""
  for module in (builders, prepared, sources):
    monkeypatch.setattr(module, 'BUILDERS', {'cells': ''})
  for module in (builders, prepared):
    monkeypatch.setattr(module, 'builder_class', lambda name: Cells)
  folder = tmp_path / 'archives'
  folder.mkdir()
  for i in range(4):
    noise = np.random.default_rng(i).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(noise).save(folder / f'c{i}.png')
  return folder


@pytest.fixture
def main(monkeypatch, capsys):
  """Runs a command line; returns (exit code, stdout, stderr)."""

  def run(*args):
    values, argv = flags.FlagValues(), ['datasets', *map(str, args)]
    monkeypatch.setattr(flags, 'FLAGS', values)
    monkeypatch.setattr(sys, 'argv', argv)  # --config.data is read from it
    try:
      datasets._define_flags(values)
      code = datasets.main(jaxseg_config.parse_flags(argv))
    except SystemExit as error:
      code = error.code
    out, err = capsys.readouterr()
    return code, out, err

  return run


@pytest.fixture
def folder(tmp_path):
  """A sound set: six noisy images with labels of three classes, and one."""
  root = tmp_path / 'set'
  (root / 'images').mkdir(parents=True)
  (root / 'labels').mkdir()
  for i in range(7):
    rng = np.random.default_rng(i)
    save(root / f'images/im{i}.png', rng.integers(0, 256, (40, 40, 3)))
    if i < 6:
      label = np.zeros((40, 40))
      label[:20, :20], label[25:, 25:] = 1, 2
      save(root / f'labels/im{i}.png', label)
  names = {'classes': ['background', 'cell', 'nucleus'], 'licence': 'CC0'}
  (root / 'classes.json').write_text(json.dumps(names))
  return root


def save(path, array):
  Image.fromarray(np.asarray(array, np.uint8)).save(path)


def break_files(root):
  """One mistake of each sort; returns {file: kind}."""
  labels, images = root / 'labels', root / 'images'
  data = (images / 'im6.png').read_bytes()
  (images / 'cut.png').write_bytes(data[: len(data) // 2])
  (images / 'nothing.png').write_bytes(b'')
  (images / 'page.jpg').write_text('<html>404 Not Found</html>')
  save(labels / 'im0.png', np.zeros((20, 20)))
  label = np.asarray(Image.open(labels / 'im1.png')).copy()
  label[30:35, :5] = 9
  save(labels / 'im1.png', label)
  save(labels / 'im2.png', np.random.default_rng(0).integers(0, 9, (40, 40, 3)))
  save(labels / 'stray.png', np.zeros((40, 40)))
  (labels / 'im3.png').write_bytes(b'')
  return [
    'cut.png', 'nothing.png', 'page.jpg', 'im0', 'im1', 'im2.png', 'stray.png',
    'labels/im3.png',
  ]  # fmt: skip


def test_a_sound_folder(main, folder, tmp_path):
  report = tmp_path / 'deep/er/report.json'
  code, out, _ = main('check', folder, f'--json={report}')
  assert code == 0
  assert '7 images, 6 labels' in out and 'nucleus' in out
  content = json.loads(report.read_text())
  assert content['source'] == f'folder:{folder}'
  assert content['counts']['refuse'] == content['counts']['skip'] == 0
  statistics = content['statistics']
  assert statistics['images'] == 7 and statistics['labels'] == 6
  assert statistics['sizes'] == [{'height': 40, 'width': 40, 'images': 7}]
  # Frequencies of the classes; each is in every one of the six labels.
  seen = np.array([c['pixels'] for c in statistics['classes'][:3]])
  weights = np.median(seen) / seen
  assert f'{weights[1]:7.4g}' in out
  assert statistics['classes'][1] == {
    'id': 1, 'name': 'cell', 'pixels': 6 * 400, 'images': 6,
    'weight': pytest.approx(weights[1]),
  }  # fmt: skip


def test_all_mistakes_are_listed_in_one_pass(main, folder, tmp_path):
  broken = break_files(folder)
  written = [tmp_path / 'report.json', tmp_path / 'report.csv']
  code, out, err = main(
    'check', f'folder:{folder}', f'--json={written[0]}', f'--csv={written[1]}'
  )
  assert code == 3 and 'Traceback' not in out + err
  content = json.loads(written[0].read_text())
  for name in broken:
    assert any(name in p['path'] for p in content['problems']), name
    assert name in out
  severities = [p['severity'] for p in content['problems']]
  assert severities == sorted(severities, key=['refuse', 'skip', 'note'].index)
  for severity, n in content['counts'].items():
    assert severities.count(severity) == n
  assert content['counts']['refuse'] >= 4 and content['counts']['skip'] >= 3
  for problem in content['problems']:
    assert ', expected ' in problem['message'], problem
    assert '\n' not in problem['message']
  with written[1].open(newline='', encoding='utf-8') as file:
    assert list(csv.DictReader(file)) == content['problems']


def test_the_table_shows_the_first_of_each_kind(main, folder, tmp_path):
  for i in range(35):
    (folder / f'images/empty{i:02d}.png').write_bytes(b'')
  report = tmp_path / 'report.json'
  code, out, _ = main('check', folder, f'--json={report}')
  assert out.count('images/empty') == 20 and '15 more' in out
  content = json.loads(report.read_text())
  skipped = [p for p in content['problems'] if p['severity'] == 'skip']
  assert len(skipped) == 35
  assert code == 3 and 'too_many_bad' in out  # 35 of 42 cannot be used
  code, out, _ = main('check', folder, '--config.data.max_bad_fraction=0.9')
  assert code == 0 and 'too_many_bad' not in out


def test_a_folder_that_cannot_be_opened(main, tmp_path):
  report = tmp_path / 'report.json'
  code, out, _ = main('check', tmp_path / 'nowhere', f'--json={report}')
  assert code == 3 and 'nowhere' in out
  content = json.loads(report.read_text())
  assert [p['severity'] for p in content['problems']] == ['refuse']
  assert content['statistics'] is None


def test_names_of_any_bytes(main, folder, tmp_path):
  (folder / 'images/\udcff\n,".png').write_bytes(b'')
  report = tmp_path / 'r.json'
  code, out, _ = main('check', folder, f'--json={report}', '--csv=' + str(
    tmp_path / 'r.csv'))  # fmt: skip
  assert code == 3
  out.encode()
  assert any(
    p['path'].endswith('\udcff\n,".png')
    for p in json.loads(report.read_text())['problems']
  )


def test_fields_of_the_config(main, folder, tmp_path):
  code, out, err = main('check', folder, '--channels=2')
  assert code == 2 and 'config.data.channels is 2' in err
  code, _, err = main('check', folder, '--config.data.channels=2')
  assert code == 2 and 'config.data.channels is 2' in err
  code, _, err = main('check', folder, '--group_by=(')
  assert code == 2 and 'config.data.group_by' in err
  code, _, err = main('check', folder, '--config.data.colour=1')
  assert code == 2 and 'colour' in err
  code, _, err = main('check', folder, '--config.data.channels=grey')
  assert code == 2 and 'grey' in err and err.count('\n') == 1


def test_axis_of_volumes(main, tmp_path):
  nibabel = pytest.importorskip('nibabel')
  (tmp_path / 'images').mkdir()
  values = np.random.default_rng(0).integers(0, 999, (9, 10, 11), np.int16)
  image = nibabel.Nifti1Image(values, np.eye(4))
  nibabel.save(image, tmp_path / 'images/case.nii.gz')
  for axis, size in enumerate([(11, 10), (11, 9), (10, 9)]):
    report = tmp_path / f'report{axis}.json'
    code, _, err = main(
      'check', tmp_path, f'--axis={axis}', f'--json={report}', '--channels=1',
      '--fit=pad',
    )  # fmt: skip
    assert code == 0, err
    (found,) = json.loads(report.read_text())['statistics']['sizes']
    assert (found['height'], found['width']) == size
    assert found['images'] == values.shape[axis]


def test_shapes_are_refused_until_there_is_a_choice(main, folder):
  for kind in ('images', 'labels'):
    name = sorted((folder / kind).iterdir())[0]
    Image.open(name).resize((40, 20)).save(name)
  code, out, _ = main('check', folder)
  assert code == 3 and 'not_square' in out
  code, out, _ = main('check', folder, '--fit=crop')
  assert 'not_square' not in out
  # For networks that see 64x32 all the others are of another aspect.
  code, out, _ = main('check', folder, '--resolution=32', '--width=64')
  others = len(list((folder / 'images').iterdir())) - 1
  assert code == 3 and f' {others} of {others + 1} images are of another' in out


def test_show(main, folder, tmp_path):
  output = tmp_path / 'new/sheet.png'
  code, out, _ = main('show', folder, f'--output={output}', '--images=4')
  assert code == 0 and '1120x' in out
  few = np.asarray(Image.open(output))
  assert few.shape[1:] == (1120, 3) and few.dtype == np.uint8
  assert str(few.shape[0]) in out
  break_files(folder)
  code, _, err = main('show', folder, f'--output={output}', '--images=20')
  assert code == 0, err
  assert Image.open(output).height > few.shape[0]


def test_show_refuses(main, folder, tmp_path):
  code, _, err = main('show', folder)
  assert code == 2 and '--output' in err
  code, _, err = main('show', folder, f'--output={tmp_path}/sheet.jpg')
  assert code == 2 and '.png' in err
  (tmp_path / 'file').write_text('')
  code, _, err = main('show', folder, f'--output={tmp_path}/file/sheet.png')
  assert code == 2 and 'cannot be written' in err
  code, _, err = main('show', f'{tmp_path}/none', f'--output={tmp_path}/s.png')
  assert code == 3 and err.startswith('jaxseg: ')


@pytest.mark.parametrize('name', builders.BUILDERS)
def test_list_has_every_set(main, tmp_path, name):
  code, out, _ = main('list', f'--data_dir={tmp_path}')
  cls = builders.builder_class(name)
  block = out[out.index(f'{name}: ') :].split('\n\n')[0]
  for config in cls.BUILDER_CONFIGS:
    assert f':{config.name} ' in block
    assert f'{len(config.class_names)} classes' in block
    for split, n in config.counts.items():
      assert f'{split} {n:,}' in block
  assert cls.HOMEPAGE in block and cls.LICENCE.split()[0] in block
  assert code == 0 and 'prepared' not in block
  code, out, _ = main('list', name)
  assert code == 0
  assert cls.MANUAL_DOWNLOAD_INSTRUCTIONS.strip() in out
  for config in cls.BUILDER_CONFIGS:
    assert ', '.join(config.class_names) in out


def test_list_of_an_unknown_set(main):
  code, _, err = main('list', 'imagenet')
  assert code == 2 and "'imagenet'" in err and 'voc2012' in err


def test_prepare(main, cells, tmp_path):
  where = f'--data_dir={tmp_path}/sets'
  manual = f'--manual_dir={cells}'
  code, _, err = main('prepare', 'cells', where)
  assert code == 2 and 'Get cells.zip from the cell bank' in err
  code, _, err = main('prepare', 'cells', where, manual)
  assert code in (2, 3) and "4 in 'train' instead of 1200" in err
  assert not list(tmp_path.glob('sets/cells/*/*'))
  code, out, _ = main('prepare', 'cells', where, manual, '--allow_partial')
  assert code == 0
  assert '--config.data.source=cells --config.data.data_dir=' in out
  assert prepared.is_prepared('cells', str(tmp_path / 'sets'))
  code, out, _ = main('list', where)
  lines = {line.split()[0]: line for line in out.splitlines() if line}
  assert lines[':both'].endswith('  prepared')
  assert not lines[':one'].endswith('prepared')
  code, out, _ = main('prepare', 'cells', where)
  assert code == 0 and 'already prepared' in out
  code, out, _ = main('check', 'cells', where, '--channels=1')
  assert code == 0 and '4 images, 4 labels' in out
  again = (where, manual, '--allow_partial', '--overwrite', '--max_side=8')
  assert main('prepare', 'cells', *again)[0] == 0
  _, out, _ = main('check', 'cells', where, '--channels=1')
  assert '8x8 (4)' in out
  output = tmp_path / 'sheet.png'
  code, out, _ = main('show', 'cells', where, f'--output={output}')
  assert code == 0 and output.exists()


@pytest.mark.parametrize(
  ('args', 'match'),
  [
    ((), 'expected a command'),
    (('chekc', '.'), "'chekc'"),
    (('check',), 'expected one SOURCE'),
    (('check', '.', '.'), '2 words'),
    (('check', 'no_such_set'), "'no_such_set' is neither"),
    (('prepare',), 'expected one NAME'),
    (('prepare', 'no_such_set'), "'no_such_set' is no data set"),
    (('list', '--json=x'), '--json is no flag of list'),
    (('check', '.', '--output=x.png'), '--output is no flag of check'),
    (('check', '.', '--jsn=x'), 'jsn'),
    (('check', '.', '--fit=centre'), "data.fit is 'centre', must be one of"),
    (('check', '.', '--resolution=99'), '100 is the nearest'),
    (('show', '.', '--channels=2', '--output=x.png'), 'channels is 2'),
    (('check', '.', '--config.data.weak.kind=box'), 'data.weak.kind'),
    (('check', '.', '--config.data.ood_sources=(3,)'), 'holds 3, must be'),
    (('check', '.', '--config.data.chanels=1'), "did you mean 'channels'"),
    (('show', '.', '--output=x.png', '--images=-1'), 'images'),
  ],
)
def test_mistakes_on_the_command_line(main, args, match):
  code, out, err = main(*args)
  assert code == 2 and match in err
  assert err.startswith('jaxseg: ') and err.count('\n') == 1


def test_a_bare_path_and_a_home(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine').mkdir()
  assert datasets.find_source('mine') == 'folder:mine'
  assert datasets.find_source('./acdc') == 'folder:./acdc'
  assert datasets.find_source('acdc') == 'acdc'
  assert datasets.find_source('voc2012:aug') == 'voc2012:aug'
  assert datasets.find_source('folder:x') == 'folder:x'
  assert datasets.find_source('digits') == 'digits'


def test_module_runs(folder):
  done = subprocess.run(
    [sys.executable, '-m', 'jaxseg.datasets', 'check', folder, '--fit=crop'],
    capture_output=True, text=True, timeout=120, env=dict(os.environ),
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert '7 images, 6 labels' in done.stdout


def test_images_that_were_never_opened_count_too(main, folder):
  (folder / 'images/a.heic').write_bytes(b'')
  (folder / 'images/b.gif').write_bytes(b'')
  _, out, _ = main('check', folder)
  assert '2 of 9 images for training cannot be used' in out
