"""Records survive a crash; the progress line is right to the digit."""

import importlib.util
import inspect
import json
import os
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from jaxseg import writers


def _lines(folder):
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def _events(folder):
  """Every event of a folder's TensorBoard files, in order of writing."""
  found = []
  for path in sorted(folder.glob('events.out.tfevents.*')):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
      at += 16 + size
  return found


def test_scalars_go_to_jsonl_and_tensorboard(tmp_path):
  writer = writers.create(tmp_path / 'gan')
  writer.write_scalars(
    3, {'d_r': jnp.float32(0.1), 'n': 4, 'bad': np.float32('nan')}
  )
  writer.write_scalars(6, {'d_r': jnp.bfloat16(1.5), 'ok': np.bool_(True)})
  writer.write_texts(6, {'config': '# x'})
  writer.write_histograms(6, {'w': np.arange(10.0)}, {'w': 5})
  writer.write_hparams({'lr': 0.1, 'stages': ('a', 'b'), 'flip': True})
  writer.close()
  writer.close()
  assert _lines(tmp_path / 'gan') == [
    {'step': 3, 'd_r': 0.1, 'n': 4, 'bad': None},
    {'step': 6, 'd_r': 1.5, 'ok': True},
  ]
  values = [
    (event.step, value)
    for event in _events(tmp_path / 'gan')
    for value in event.summary.value
  ]
  scalars = {(s, v.tag): v.simple_value for s, v in values if v.tag == 'd_r'}
  assert scalars == {(3, 'd_r'): np.float32(0.1), (6, 'd_r'): 1.5}
  tags = {value.tag for _, value in values}
  assert {'n', 'w', 'config/text_summary'} <= tags
  assert any(tag.startswith('_hparams_') for tag in tags)
  (histogram,) = [v.histo for _, v in values if v.tag == 'w']
  assert sum(histogram.bucket) == 10


def test_float32_is_exact():
  for value in np.random.default_rng(0).normal(size=50).astype(np.float32):
    assert np.float32(writers._number(value)) == value
  assert writers._number(np.float64(1) / 3) == 1 / 3


def test_pictures_are_png_files_and_events(tmp_path):
  image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
  writer = writers.create(tmp_path)
  writer.write_images(
    12, {'a/b': image, 'many': np.stack([image[..., :1]] * 2)}
  )
  writer.close()
  names = sorted(path.name for path in (tmp_path / 'samples').iterdir())
  assert names == ['a_b_0000012.png', 'many_0000012.png']
  saved = np.asarray(Image.open(tmp_path / 'samples' / names[0]))
  np.testing.assert_array_equal(saved, image)
  assert Image.open(tmp_path / 'samples' / names[1]).size == (18, 6)
  events = [v for e in _events(tmp_path) for v in e.summary.value]
  assert {(v.tag, v.image.width, v.image.height) for v in events} == {
    ('a/b', 8, 6), ('many', 18, 6)
  }  # fmt: skip
  with pytest.raises(TypeError, match="'x': float32, expected uint8"):
    writer.write_images(1, {'x': np.zeros((2, 2, 3), np.float32)})


def _run(folder, first, last):
  writer = writers.create(folder, first)
  for step in range(first + 1, last + 1):
    writer.write_scalars(step, {'loss': np.float32(1 / step)})
  return writer


def test_resumed_file_equals_the_uninterrupted_one(tmp_path):
  _run(tmp_path / 'straight', 0, 9).close()
  killed = _run(tmp_path / 'killed', 0, 7)
  killed.flush()
  with (tmp_path / 'killed' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 8, "lo')  # the process died while writing
  _run(tmp_path / 'killed', 5, 9).close()
  killed.close()
  straight = (tmp_path / 'straight' / 'metrics.jsonl').read_bytes()
  assert (tmp_path / 'killed' / 'metrics.jsonl').read_bytes() == straight
  starts = [
    e.step
    for e in _events(tmp_path / 'killed')
    if e.HasField('session_log') and e.session_log.status == 1
  ]
  assert starts == [1, 6]  # TensorBoard forgets steps 6 and 7 of the killed run


def test_a_new_run_forgets_the_old_records(tmp_path):
  _run(tmp_path, 0, 4).close()
  writers.create(tmp_path, 0).close()
  assert _lines(tmp_path) == []


def test_methods_are_those_of_clu():
  spec = importlib.util.find_spec('clu')
  path = os.path.join(
    spec.submodule_search_locations[0], 'metric_writers', 'interface.py'
  )
  spec = importlib.util.spec_from_file_location('clu_interface', path)
  clu = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(clu)
  for name in (
    'write_scalars', 'write_images', 'write_texts', 'write_histograms',
    'write_hparams', 'flush', 'close',
  ):  # fmt: skip
    theirs = inspect.signature(getattr(clu.MetricWriter, name)).parameters
    ours = inspect.signature(getattr(writers.Writer, name)).parameters
    assert list(ours) == list(theirs), name


def _progress(*args, **kwargs):
  clock = [0.0]
  return clock, writers.Progress(*args, clock=lambda: clock[0], **kwargs)


def test_progress_line():
  clock, progress = _progress('gan', 40000, 16, first_step=1000)
  clock[0] = 15.0
  line = progress.line(1200, {'d_r': 1.314, 'g': np.float32(0.41)})
  assert line == (
    'gan   1200/40000  3.0%  213 img/s  48m30s left  d_r 1.31 g 0.41'
  )


def test_progress_skips_compilation_and_pauses():
  clock, progress = _progress('e', 100, 1)
  clock[0] = 60.0  # compilation
  progress.mark(1)
  clock[0] = 70.0
  with progress.pause():
    clock[0] = 500.0  # a checkpoint
  assert progress.line(11) == 'e   11/100  11.0%  1 img/s  1m29s left'


def test_progress_forgets_old_speed():
  clock, progress = _progress('e', 1000, 1)
  for step in range(1, 31):
    clock[0] += 10 if step <= 15 else 1
    line = progress.line(step)
  assert '1 img/s  16m10s left' in line


def test_progress_without_time_or_steps():
  _, progress = _progress('e', 0, 1)
  assert progress.line(0, {'loss': float('nan')}) == 'e  0/0  0.0%  loss nan'


def test_durations():
  texts = [writers.duration(s) for s in (0, 59.6, 725, 4320, 183600)]
  assert texts == ['0s', '1m00s', '12m05s', '1h12m', '2d03h']


def test_say_outlives_its_reader():
  code = (
    'from jaxseg import writers\n'
    'for i in range(20000): writers.say("line " + str(i))\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  assert process.stdout.readline() == b'line 0\n'
  process.stdout.close()
  assert process.stderr.read() == b''
  process.stderr.close()
  assert process.wait() == 0


def test_say_without_stdout(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', None)
  writers.say('nobody hears this')


@pytest.fixture
def small_files():
  """Yields a function that sets the largest file the system lets us write."""
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(
    resource.RLIMIT_FSIZE, (size or old[0], old[1])
  )
  resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_loses_no_number(tmp_path, small_files, capsys):
  writer = writers.create(tmp_path)
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  writer.write_scalars(1, {'loss': 1.0})
  size = (tmp_path / 'metrics.jsonl').stat().st_size
  small_files(size + 10)  # room for half a line
  for step in range(2, 30):
    writer.write_scalars(step, {'loss': 1.0})
    writer.write_images(step, {'samples': noise})
    writer.flush()
  assert (tmp_path / 'metrics.jsonl').stat().st_size == size
  assert not list((tmp_path / 'samples').glob('*.png'))
  small_files(None)
  writer.write_scalars(30, {'loss': 1.0})
  writer.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == list(range(1, 31))
  assert capsys.readouterr().out.count('records may be late') == 1


def test_processes_that_do_not_write(tmp_path):
  writer = writers.create(tmp_path / 'none', write=False)
  writer.write_scalars(1, {'loss': 1.0})
  writer.write_images(1, {'samples': np.zeros((2, 2, 3), np.uint8)})
  writer.flush()
  writer.close()
  assert not (tmp_path / 'none').exists()
