import io
import os
import stat
import struct

import numpy as np
import pytest
from PIL import Image

from jaxseg.data.formats import decode, images
from jaxseg.errors import UserError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], -1)


def save(path, array, mode=None, **kwargs):
  Image.fromarray(array, mode).save(path, **kwargs)
  return path


@pytest.mark.parametrize('channels', [1, 3])
def test_grey_and_rgb(tmp_path, channels):
  grey = images.read_image(save(tmp_path / 'g.png', GREY), channels)
  np.testing.assert_array_equal(grey, np.repeat(GREY[..., None], channels, 2))
  rgb = images.read_image(save(tmp_path / 'c.png', RGB), channels)
  assert rgb.shape == (6, 8, channels) and rgb.dtype == np.uint8
  if channels == 3:
    np.testing.assert_array_equal(rgb, RGB)
  else:
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(rgb[..., 0], luma, atol=1)


@pytest.mark.parametrize('suffix', ['png', 'tif', 'bmp', 'webp'])
def test_lossless_formats(tmp_path, suffix):
  options = {'lossless': True} if suffix == 'webp' else {}
  path = save(tmp_path / f'x.{suffix}', RGB, **options)
  np.testing.assert_array_equal(images.read_image(path, 3), RGB)


def test_jpeg_in_a_file_named_png(tmp_path):
  path = tmp_path / 'x.png'
  Image.fromarray(np.full((8, 8), 77, np.uint8)).save(path, 'JPEG')
  np.testing.assert_allclose(images.read_image(path, 1), 77, atol=1)


def test_alpha_over_black(tmp_path):
  alpha = np.full((6, 8, 1), 128, np.uint8)
  path = save(tmp_path / 'a.png', np.concatenate([RGB, alpha], -1))
  np.testing.assert_allclose(
    images.read_image(path, 3), RGB * (128 / 255), atol=1
  )


def test_grey_with_alpha(tmp_path):
  alpha = np.zeros((6, 8), np.uint8)
  path = tmp_path / 'la.png'
  Image.fromarray(np.stack([GREY, alpha], -1), 'LA').save(path)
  assert images.read_image(path, 1).max() == 0


def test_palette_gives_colours(tmp_path):
  image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8))
  image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
  image.save(tmp_path / 'p.png')
  found = images.read_image(tmp_path / 'p.png', 3)
  np.testing.assert_array_equal(found[0], [[10, 20, 30], [200, 100, 50]])


def test_palette_with_transparency(tmp_path):
  image = Image.fromarray(np.array([[0, 1]], np.uint8))
  image.putpalette([10, 20, 30, 200, 100, 50])
  image.save(tmp_path / 'p.png', transparency=1)
  found = images.read_image(tmp_path / 'p.png', 3)
  np.testing.assert_array_equal(found[0], [[10, 20, 30], [0, 0, 0]])


def test_one_bit(tmp_path):
  Image.fromarray(GREY > 99).save(tmp_path / 'b.png')
  found = images.read_image(tmp_path / 'b.png', 1)[..., 0]
  np.testing.assert_array_equal(found, (GREY > 99) * 255)


def test_cmyk_jpeg(tmp_path):
  Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(tmp_path / 'c.jpg')
  found = images.read_image(tmp_path / 'c.jpg', 3)
  np.testing.assert_allclose(found[0, 0], [255, 0, 0], atol=3)


@pytest.mark.parametrize('top', [4095, 65535])
def test_16_bits_keep_their_own_range(tmp_path, top):
  ramp = np.linspace(0, top, 64 * 64).reshape(64, 64)
  path = save(tmp_path / 'x.png', ramp.astype(np.uint16))
  found = images.read_image(path, 1)[..., 0]
  low, high = np.quantile(ramp, [0.005, 0.995])
  expected = 255 * np.clip((ramp - low) / (high - low), 0, 1)
  np.testing.assert_allclose(found, expected, atol=1)


def test_16_bits_ignore_a_marker(tmp_path):
  ramp = np.linspace(0, 1000, 64 * 64).reshape(64, 64).astype(np.uint16)
  ramp[:2, :2] = 65535
  found = images.read_image(save(tmp_path / 'x.tif', ramp), 1)
  assert np.unique(found).size > 200


def test_16_bits_nearly_constant(tmp_path):
  flat = np.full((64, 64), 700, np.uint16)
  assert images.read_image(save(tmp_path / 'x.png', flat), 1).max() == 0
  flat[0, 0] = 800
  found = images.read_image(save(tmp_path / 'y.png', flat), 1)
  assert found[0, 0] == 255 and found[1:].max() == 0


def test_32_bits_and_floats(tmp_path):
  for dtype in (np.int32, np.float32):
    path = save(tmp_path / 'x.tif', GREY.astype(dtype) * 1000)
    found = images.read_image(path, 1)[..., 0]
    assert found.min() == 0 and found.max() == 255


def test_float_with_nan_is_refused(tmp_path):
  image = GREY.astype(np.float32)
  image[0, :3] = np.nan
  with pytest.raises(UserError, match='3 pixels are NaN'):
    images.read_image(save(tmp_path / 'x.tif', image), 1)


def tiff_of_16_bits(rgb, orientation):
  """A TIFF of uint16 RGB: Pillow writes none."""
  height, width, _ = rgb.shape
  tags = {
    256: width, 257: height, 259: 1, 262: 2, 274: orientation, 277: 3,
    278: height, 279: rgb.nbytes, 284: 1,
  }  # fmt: skip
  data = 8 + 2 + 12 * (len(tags) + 2) + 4
  entries = {tag: struct.pack('<HHII', tag, 4, 1, v) for tag, v in tags.items()}
  entries[258] = struct.pack('<HHII', 258, 3, 3, data)  # bits of each channel
  entries[273] = struct.pack('<HHII', 273, 4, 1, data + 6)
  head = b'II*\0' + struct.pack('<IH', 8, len(entries))
  ifd = b''.join(entries[tag] for tag in sorted(entries)) + bytes(4)
  return head + ifd + struct.pack('<3H', 16, 16, 16) + rgb.tobytes()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation_of_deep_tiffs(tmp_path, orientation):
  """OpenCV, which reads these, turns them by itself."""
  shallow, deep = tmp_path / 'shallow.tif', tmp_path / 'deep.tif'
  Image.fromarray(RGB).save(shallow, tiffinfo={274: orientation})
  deep.write_bytes(tiff_of_16_bits(RGB.astype('<u2') * 257, orientation))
  whole = images.Intensity('window', window=(0, 65535))
  np.testing.assert_array_equal(
    images.read_image(deep, 3, whole), images.read_image(shallow, 3)
  )


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
  turned = {
    1: GREY,
    2: GREY[:, ::-1],
    3: GREY[::-1, ::-1],
    4: GREY[::-1],
    5: GREY.T,
    6: np.rot90(GREY, -1),
    7: GREY[::-1, ::-1].T,
    8: np.rot90(GREY),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = save(tmp_path / 'x.png', GREY, exif=exif)
  np.testing.assert_array_equal(images.read_image(path, 1)[..., 0], turned)


BAD_FILES = {
  'empty': (b'', '0 bytes'),
  'text': (b'this is no image\n', 'is text'),
  'html': (b'\n<!DOCTYPE html><html>404', 'web page'),
  'lfs': (b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
  'gif': (b'GIF89a' + bytes(50), 'a GIF'),
  'heic': (b'\0\0\0\x18ftypheic' + bytes(50), 'a HEIC .*to JPEG or PNG'),
  'zip': (b'PK\3\4' + bytes(50), 'a ZIP archive.*unpack it'),
  'noise': (bytes(range(256)), 'no image of a known kind'),
}


@pytest.mark.parametrize('kind', BAD_FILES)
@pytest.mark.parametrize(
  'read', [lambda p: images.read_image(p, 3), images.read_label]
)
def test_what_is_no_image(tmp_path, kind, read):
  data, sentence = BAD_FILES[kind]
  (tmp_path / 'x.png').write_bytes(data)
  with pytest.raises(UserError, match=sentence) as error:
    read(tmp_path / 'x.png')
  assert str(tmp_path / 'x.png') in str(error.value)


@pytest.mark.parametrize('form', ['PNG', 'JPEG', 'TIFF', 'WEBP', 'BMP'])
def test_truncated(tmp_path, form):
  noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
  data = io.BytesIO()
  Image.fromarray(noise).save(data, form)
  data = data.getvalue()
  (tmp_path / 'x').write_bytes(data[: len(data) * 2 // 3])
  with pytest.raises(UserError, match='damaged or cut off'):
    images.read_image(tmp_path / 'x', 3)


def test_flipped_bit_in_png(tmp_path):
  path = save(tmp_path / 'x.png', RGB)
  data = bytearray(path.read_bytes())
  data[data.index(b'IDAT') + 12] ^= 1
  path.write_bytes(data)
  with pytest.raises(UserError, match='damaged'):
    images.read_image(path, 3)


def test_several_frames(tmp_path):
  frame = Image.fromarray(GREY)
  path = tmp_path / 'x.tif'
  frame.save(path, save_all=True, append_images=[frame, frame])
  with pytest.raises(UserError, match='3 frames'):
    images.read_image(path, 1)


def test_too_large(tmp_path, monkeypatch):
  monkeypatch.setattr(decode, 'MAX_PIXELS', 40)
  with pytest.raises(UserError, match='8x6 pixels'):
    images.read_image(save(tmp_path / 'x.png', GREY), 1)


def test_missing_and_special_files(tmp_path):
  with pytest.raises(UserError, match='missing'):
    images.read_image(tmp_path / 'x.png', 1)
  (tmp_path / 'x.png').mkdir()
  with pytest.raises(UserError, match='not a regular file'):
    images.read_image(tmp_path / 'x.png', 1)
  os.mkfifo(tmp_path / 'y.png')  # opening it would wait for ever
  with pytest.raises(UserError, match='not a regular file'):
    images.read_image(tmp_path / 'y.png', 1)


def test_label_modes(tmp_path):
  ids = np.array([[0, 1], [2, 255]], np.uint8)
  for name, array in {'l': ids, 'i16': ids.astype(np.uint16)}.items():
    path = save(tmp_path / f'{name}.png', array)
    np.testing.assert_array_equal(images.read_label(path), ids)
    assert images.read_label(path).dtype == np.uint8
  Image.fromarray(ids > 0).save(tmp_path / 'b.png')
  np.testing.assert_array_equal(
    images.read_label(tmp_path / 'b.png'), [[0, 1], [1, 1]]
  )


def test_label_palette_indices(tmp_path):
  ids = np.array([[0, 1], [2, 255]], np.uint8)
  palette = np.array([[9, 9, 9], [200, 0, 0], [0, 200, 0]], np.uint8)
  images.write_label(tmp_path / 'p.png', ids.astype(np.int32), palette)
  np.testing.assert_array_equal(images.read_label(tmp_path / 'p.png'), ids)
  with Image.open(tmp_path / 'p.png') as image:
    assert image.mode == 'P'
    colours = np.asarray(image.convert('RGB'))
  np.testing.assert_array_equal(colours[1, 0], [0, 200, 0])
  np.testing.assert_array_equal(colours[1, 1], images.VOID_COLOUR)
  np.testing.assert_array_equal(
    images.label_palette(tmp_path / 'p.png')[:3], palette
  )
  assert images.label_palette(save(tmp_path / 'l.png', ids)) is None


def test_bad_labels(tmp_path):
  with pytest.raises(UserError, match='holds colours'):
    images.read_label(save(tmp_path / 'c.png', RGB))
  deep = np.array([[0, 257]], np.uint16)
  with pytest.raises(UserError, match='value 257'):
    images.read_label(save(tmp_path / 'd.png', deep))
  with pytest.raises(UserError, match='lossy'):
    images.read_label(save(tmp_path / 'j.jpg', GREY))


def test_resize_image_is_antialiased():
  checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
  small = images.resize_image(checkers[..., None], 16)
  assert small.shape == (16, 16, 1)
  np.testing.assert_allclose(small, 127, atol=12)
  assert images.resize_image(RGB, (3, 5)).shape == (3, 5, 3)
  assert images.resize_image(RGB, (6, 8)) is RGB


def test_resize_label_makes_no_new_ids():
  label = np.array([[0, 7], [255, 3]], np.uint8)
  large = images.resize_label(label, (8, 6))
  assert large.shape == (8, 6) and set(np.unique(large)) == {0, 3, 7, 255}
  np.testing.assert_array_equal(images.resize_label(large, 2), label)


def test_to_channels():
  assert images.to_channels(GREY, 3).shape == (6, 8, 3)
  assert images.to_channels(GREY, 1).shape == (6, 8, 1)
  assert images.to_channels(RGB, 1).shape == (6, 8, 1)


def test_write_is_atomic(tmp_path, monkeypatch):
  path = tmp_path / 'x.png'
  images.write_atomically(path, b'old')
  assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    images.write_atomically(path, b'new')
  assert path.read_bytes() == b'old'
  assert os.listdir(tmp_path) == ['x.png']


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask
