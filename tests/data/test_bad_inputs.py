"""Every mistake that is known from users' files, one row each.

Each row makes a good set of twelve images, spoils it, and says what must be
found: severity, kind, file and a part of the sentence; or that nothing is.
'refuse' keeps training from starting, 'skip' leaves the file out, 'note' is
told. Volumes have their own rows in test_volumes.py and test_folder.py.
"""

import errno
import io
import json
import os
import re
import struct
import types
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from jaxseg.data import problems, sources, splits
from jaxseg.data.formats import decode, files, images
from jaxseg.data.inspection import checks
from jaxseg.errors import DataError

SIDE = 32
SPLITS = {
  'train': [f'{i:03d}' for i in range(8)],
  'val': ['008'],
  'test': ['009'],
  'ood_x': ['010', '011'],
  'unlabelled': [f'{i:03d}' for i in range(12, 16)],
}
CLASSES = {'classes': ['background', 'lung', 'heart']}
NOISE = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE, 3), np.uint8)
GREY = NOISE[..., 0]


@pytest.fixture
def root(write_folder):
  return write_folder(
    unlabelled=4, num_classes=3, splits=SPLITS, classes=CLASSES
  )


def png(array, form='PNG', **options):
  data = io.BytesIO()
  Image.fromarray(array).save(data, form, **options)
  return data.getvalue()


def bomb(width, height):
  """A PNG of a few bytes that claims to be huge."""

  def chunk(kind, data):
    crc = zlib.crc32(kind + data)
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  pixels = zlib.compress(bytes(10**6))
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', pixels)
    + chunk(b'IEND', b'')
  )


def flipped(data):
  data = bytearray(data)
  data[data.index(b'IDAT') + 30] ^= 4
  return bytes(data)


def frames():
  data = io.BytesIO()
  frame = Image.fromarray(GREY)
  frame.save(data, 'TIFF', save_all=True, append_images=[frame])
  return data.getvalue()


def exif(orientation):
  tags = Image.Exif()
  tags[0x0112] = orientation
  return tags


def palette_photo():
  image = Image.fromarray(NOISE).quantize(16)
  data = io.BytesIO()
  image.save(data, 'PNG')
  return data.getvalue()


def cmyk():
  data = io.BytesIO()
  Image.fromarray(NOISE).convert('CMYK').save(data, 'JPEG')
  return data.getvalue()


def apng():
  data = io.BytesIO()
  frame = Image.fromarray(NOISE)
  frame.save(data, 'PNG', save_all=True, append_images=[Image.fromarray(GREY)])
  return data.getvalue()


def nan():
  image = GREY.astype(np.float32)
  image[0, :3] = np.nan, np.inf, -np.inf
  return png(image, 'TIFF')


JPEG = png(NOISE, 'JPEG', quality=95)
PNG = png(NOISE)
RGBA = np.dstack([NOISE, np.full((SIDE, SIDE), 255, np.uint8)])
CLEAR = RGBA.copy()
CLEAR[:4, :, 3] = 99
ICC = b'odd profile' * 20

# row: (content of the image file, kind of the problem or None, words)
IMAGES = {
  'A1 JPEG cut': (JPEG[: len(JPEG) * 2 // 3], 'truncated', 'cut off'),
  'A2 PNG cut': (PNG[: len(PNG) // 2], 'truncated|damaged', 'cut off'),
  'A3 flipped bit': (flipped(PNG), 'damaged', 'copy or download it again'),
  'A4 empty': (b'', 'empty', '0 bytes'),
  'A4 zeros': (bytes(5000), 'not_an_image', 'all zero bytes'),
  'A5 text': (b'hello\n', 'not_an_image', 'is text, not an image'),
  'A6 web page': (b'<!DOCTYPE html>404', 'not_an_image', 'download it again'),
  'A7 git-LFS': (b'version https://git-lfs.x', 'not_an_image', 'git lfs pull'),
  'A15 NaN': (nan(), 'not_finite', '3 pixels are NaN or infinite'),
  'A18 TIFF frames': (frames(), 'frames', 'holds 2 frames'),
  'A18 APNG frames': (apng(), 'frames', 'holds 2 frames'),
  'A18 GIF': (png(GREY, 'GIF'), 'not_an_image', 'is a GIF'),
  'A19 1x1': (png(GREY[:1, :1]), 'too_small', 'the image is 1x1'),
  'A22 bomb': (bomb(20000, 20000), 'too_large', '400000000 pixels'),
  'A22 small bomb': (bomb(13000, 12000), 'too_large', '13000x12000 pixels'),
}  # fmt: skip
# Read all the same, and mentioned where the pixels are not what was stored.
GOOD = {
  'A9 RGBA': (png(CLEAR), 'transparent', 'over black'),
  'A9 RGBA, opaque': (png(RGBA), None, ''),
  'A10 grey and alpha': (png(CLEAR[..., 2:]), 'transparent', 'over black'),
  'A11 grey among RGB': (png(GREY), None, ''),
  'A13 CMYK': (cmyk(), 'cmyk', 'was converted'),
  'A14 16 bits': (png(GREY.astype(np.uint16) * 16), None, ''),
  'A16 palette': (palette_photo(), None, ''),
  'A17 rotated': (png(NOISE, exif=exif(3)), 'exif_rotation', 'orientation 3'),
  'A24 extension': (JPEG, 'extension', 'is a JPEG'),
  'A29 profile': (png(NOISE, icc_profile=ICC), 'colour_profile', 'sRGB'),
  'A30 one colour': (png(GREY * 0), 'flat', '1 of 16 images'),
}  # fmt: skip


def inspect(root, config, channels=3):
  config.data.source, config.data.channels = f'folder:{root}', channels
  return checks.inspect(sources.load(config.data), target=(32, 32))


def train(root, config, channels=3):
  """The splits that training would use."""
  config.data.source, config.data.channels = f'folder:{root}', channels
  config.data.num_labelled = 0
  source = sources.load(config.data)
  drawn = splits.make_splits(source, config.data, 0)
  return checks.check(source, drawn, config.data)


def the(found, kind, severity=None):
  """The one problem of a kind; the others of the same severity are none."""
  severe = [p for p in found if p.severity != 'note']
  named = [p for p in found if re.fullmatch(kind, p.kind)]
  assert len(named) == 1, found
  if severity:
    assert named[0].severity == severity
  assert severity == 'note' or severe == named, found
  return named[0]


@pytest.mark.parametrize('row', IMAGES)
def test_bad_unlabelled_image(root, config, row):
  content, kind, words = IMAGES[row]
  (root / 'images/013.png').write_bytes(content)
  problem = the(inspect(root, config)[0], kind, 'skip')
  assert problem.path == str(root / 'images/013.png')
  assert words in problem.message and 'expected' in problem.message
  config.data.max_bad_fraction = 0.3
  assert '013' not in train(root, config).unlabelled
  config.data.max_bad_fraction = 0.01
  with pytest.raises(DataError, match='max_bad_fraction'):
    train(root, config)


@pytest.mark.parametrize('row', IMAGES)
@pytest.mark.parametrize('id_', ['001', '009'])
def test_bad_labelled_image(root, config, row, id_):
  content, kind, words = IMAGES[row]
  (root / f'images/{id_}.png').write_bytes(content)
  problem = the(inspect(root, config)[0], kind, 'refuse')
  assert problem.path.endswith(f'images/{id_}.png')
  config.data.max_bad_fraction = 1.0
  with pytest.raises(DataError, match=re.escape(words)) as error:
    train(root, config)
  assert f'{id_}.png' in str(error.value) and error.value.exit_code == 3


@pytest.mark.parametrize('row', GOOD)
def test_unusual_image(root, config, row):
  content, kind, words = GOOD[row]
  (root / 'images/013.png').write_bytes(content)
  found, counts = inspect(root, config)
  if kind is None:
    assert found == []
  else:
    problem = the(found, kind, 'note')
    assert words in problem.message
  assert counts.images == 16
  assert '013' in train(root, config).unlabelled


def test_bomb_stays_small():
  """A22: refused from its header."""
  import resource  # noqa: PLC0415

  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for width in (13000, 20000):
    with pytest.raises(DataError, match='million; make it smaller'):
      images.decode_image(bomb(width, width), 'x.png', 3)
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 50 * 1024  # KiB


def test_clutter_is_no_image(root, config):
  """A8."""
  for name in ('._000.png', '.DS_Store', 'Thumbs.db', 'desktop.ini'):
    (root / 'images' / name).write_bytes(b'x')
    (root / 'labels' / name).write_bytes(b'x')
  assert inspect(root, config)[0] == []


def test_colour_where_grey_is_asked_for(root, config):
  """A12: the config says grey, so the luma is used, and said."""
  (root / 'images/012.png').write_bytes(PNG)
  (root / 'images/013.png').write_bytes(png(np.dstack([GREY] * 3)))
  problem = the(inspect(root, config, 1)[0], 'colour_as_grey', 'note')
  assert '012.png' in problem.path


@pytest.mark.parametrize('shape', [(), (3,)])
def test_12_bits_are_not_clipped(shape):
  """A14: against NumPy, grey and colour, above and below 255."""
  ramp = np.linspace(100, 4095, 64 * 64 * 3)[: 64 * 64 * (3 if shape else 1)]
  stored = ramp.astype(np.uint16).reshape(64, 64, *shape)
  if shape:
    import cv2  # noqa: PLC0415

    content = cv2.imencode('.png', stored[..., ::-1])[1].tobytes()
  else:
    content = png(stored)
  found = images.decode_image(content, 'x.png', 3 if shape else 1)
  low, high = np.percentile(stored, [0.5, 99.5])
  expected = 255 * np.clip((stored - low) / (high - low), 0, 1)
  np.testing.assert_allclose(found.reshape(stored.shape), expected, atol=1)
  assert len(np.unique(found)) > 200


def test_16_bit_colour_label_is_refused():
  import cv2  # noqa: PLC0415

  stored = np.ones((8, 8, 3), np.uint16)  # its upper bytes are all 0
  content = cv2.imencode('.png', stored)[1].tobytes()
  with pytest.raises(DataError, match='16 bits a channel') as error:
    images.decode_label(content, 'x.png')
  assert error.value.kind == 'deep_colour'


@pytest.mark.parametrize('size', [(4000, 10), (40, 32), (33, 32)])
def test_shapes(root, config, size):
  """A20, A21: refused until it is said how they become square."""
  pixels = np.random.default_rng(0).integers(0, 255, size[::-1], np.uint8)
  (root / 'images/013.png').write_bytes(png(pixels))
  the(inspect(root, config)[0], 'not_square', 'note')
  with pytest.raises(DataError) as error:
    train(root, config)
  assert error.value.kind == 'not_square'
  assert f'1 of 16 images are not square ({size[0]}x{size[1]} (1))' in str(
    error.value
  )
  assert 'crop' in str(error.value) and 'pad' in str(error.value)
  config.data.fit = 'pad'
  train(root, config)
  elongated = [p for p in inspect(root, config)[0] if p.kind == 'elongated']
  assert len(elongated) == (size[0] == 4000)


def test_upper_case_suffix(root, config):
  """A25."""
  os.rename(root / 'images/000.png', root / 'images/000.PNG')
  os.rename(root / 'labels/000.png', root / 'labels/000.PNG')
  assert inspect(root, config)[0] == []


def test_no_permission(root, config, monkeypatch):
  """A26; os.open stands in, as tests may run with all rights."""
  really = os.open

  def refuse(path, *args, **kwargs):
    if str(path).endswith('013.png'):
      raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    return really(path, *args, **kwargs)

  monkeypatch.setattr(files.os, 'open', refuse)
  problem = the(inspect(root, config)[0], 'unreadable', 'skip')
  assert 'unreadable (Permission denied)' in problem.message


SPECIAL = {
  'dangling link': (lambda p: p.symlink_to('gone.png'), 'link', 'gone.png'),
  'link loop': (lambda p: p.symlink_to(p.name), 'link', 'leads to itself'),
  'pipe': (os.mkfifo, 'not_a_file', 'a pipe'),
  'folder': (os.mkdir, 'not_a_file', 'a folder'),
}


@pytest.mark.parametrize('case', SPECIAL)
def test_special_files(root, config, case):
  """A27: none is waited for."""
  make, kind, words = SPECIAL[case]
  for place in ('images/013.png', 'labels/000.png'):
    (root / place).unlink()
    make(root / place)
  found, _ = inspect(root, config)
  image, label = sorted(
    (p for p in found if p.kind == kind), key=lambda p: p.path
  )
  assert (image.severity, label.severity) == ('skip', 'refuse')
  assert image.path.endswith('013.png') and label.path.endswith('000.png')
  assert words in image.message and words in label.message


NAMES = {
  'emoji': '\N{LUNGS} \N{GREEK SMALL LETTER ALPHA}',
  'newline': 'a\nb',
  'comma': 'a,"b";c',
  'not UTF-8': os.fsdecode(b'caf\xe9'),
  'long': 'x' * 251,
  'dots': 'a.b.c',
  'spaces': ' a ',
}


@pytest.mark.parametrize('case', NAMES)
def test_odd_names(root, config, tmp_path, case):
  """A28: read, listed, reported."""
  name = NAMES[case]
  (root / f'images/{name}.png').write_bytes(png(GREY))
  Image.new('L', (SIDE, SIDE), 1).save(root / f'labels/{name}.png')
  listed = SPLITS | {'train': [*SPLITS['train'], name]}
  (root / 'splits.json').write_text(json.dumps(listed))
  found, counts = inspect(root, config)
  assert found == [] and counts.images == 17
  drawn = train(root, config)
  assert name in drawn.labelled
  splits.save_splits(tmp_path / 'drawn.json', drawn)
  assert splits.load_splits(tmp_path / 'drawn.json') == drawn
  (root / f'labels/{name}.png').write_bytes(b'')
  found, _ = inspect(root, config)
  problem = the(found, 'empty', 'refuse')
  assert problem.path == str(root / f'labels/{name}.png')
  problems.to_table(found).encode()
  assert len(problems.to_table(found).splitlines()) == len(found) + 1
  problems.write_report(tmp_path / 'report.csv', found)
  json.dumps(problems.to_json(found))
  images.write_label(root / f'labels/{name}.png', GREY % 3, NOISE[0, :3])


def test_two_forms_of_a_letter(root, config):
  """A28: macOS writes accents apart."""
  (root / 'images/e\u0301.png').write_bytes(png(GREY))
  Image.new('L', (SIDE, SIDE), 1).save(root / 'labels/\xe9.png')
  listed = SPLITS | {'train': [*SPLITS['train'], 'e\u0301']}
  (root / 'splits.json').write_text(json.dumps(listed))
  found, counts = inspect(root, config)
  assert found == [] and counts.labels == 13


def test_exact_duplicate(root, config):
  """A31; with another label it is worth a look."""
  (root / 'images/003.png').write_bytes((root / 'images/002.png').read_bytes())
  found, _ = inspect(root, config)
  assert '003 as 002' in the(found, 'duplicates', 'note').message
  assert '003.png' in the(found, 'two_labels', 'note').path
  train(root, config)


class Changing:
  """Stands in for os.fstat: a copy is in progress for some time."""

  def __init__(self, times, what):
    self._times = times
    self._what = what
    self._really = os.fstat

  def __call__(self, handle):
    status = self._really(handle)
    if self._times <= 0:
      return status
    self._times -= 1
    fields = {k: getattr(status, k) for k in dir(status) if k[:3] == 'st_'}
    fields[self._what] += self._times + 1
    return types.SimpleNamespace(**fields)


@pytest.mark.parametrize('what', ['st_size', 'st_mtime_ns'])
@pytest.mark.parametrize('times, passes', [(3, True), (100, False)])
def test_copy_in_progress(root, monkeypatch, times, passes, what):
  """A34."""
  waited = []
  monkeypatch.setattr(files.time, 'sleep', waited.append)
  monkeypatch.setattr(files.os, 'fstat', Changing(times, what))
  if passes:
    assert images.read_image(root / 'images/000.png', 1).shape[0] == SIDE
    assert len(waited) == 2
  else:
    with pytest.raises(DataError, match='changes while it is read') as error:
      images.read_image(root / 'images/000.png', 1)
    assert error.value.kind == 'changing' and len(waited) == 3


@pytest.mark.parametrize('code, times', [(errno.EIO, 1), (errno.ESTALE, 9)])
def test_passing_error_of_a_disk(root, monkeypatch, code, times):
  """A35: once is tried again, always is told."""
  left, really = [times], os.open

  def stumble(*args, **kwargs):
    left[0] -= 1
    if left[0] >= 0:
      raise OSError(code, os.strerror(code))
    return really(*args, **kwargs)

  monkeypatch.setattr(files.time, 'sleep', lambda _: None)
  monkeypatch.setattr(files.os, 'open', stumble)
  if times == 1:
    assert images.read_image(root / 'images/000.png', 1).shape[0] == SIDE
  else:
    with pytest.raises(DataError, match='unreadable'):
      images.read_image(root / 'images/000.png', 1)


def test_large_file_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'MAX_BYTES', 100)
  (tmp_path / 'x.png').write_bytes(PNG)
  with pytest.raises(DataError, match='GiB') as error:
    images.read_image(tmp_path / 'x.png', 1)
  assert error.value.kind == 'too_large'


def test_large_text_chunk(tmp_path):
  """A PNG whose text unpacks to much more than its pixels."""
  info = PngImagePlugin.PngInfo()
  info.add_text('bomb', 'a' * 10**8, zip=True)
  data = io.BytesIO()
  Image.fromarray(GREY).save(data, 'PNG', pnginfo=info)
  with pytest.raises(DataError):
    images.decode_image(data.getvalue(), 'x.png', 1)


def test_first_picture_of_a_phone(tmp_path):
  """An MPO, a JPEG with a second picture behind it."""
  data = io.BytesIO()
  first = Image.fromarray(NOISE)
  first.save(data, 'MPO', save_all=True, append_images=[first], quality=95)
  found = images.decode_image(data.getvalue(), 'x.jpg', 3)
  alone = images.decode_image(JPEG, 'x.jpg', 3)
  np.testing.assert_array_equal(found, alone)


def test_max_pixels_is_below_pillow():
  """Else Pillow would refuse, without naming the size."""
  assert decode.MAX_PIXELS <= 2 * Image.MAX_IMAGE_PIXELS
