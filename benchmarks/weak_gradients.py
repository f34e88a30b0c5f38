"""Where each loss of weak labels pushes a trained segmenter, as one picture.

  python -m benchmarks.weak_gradients --segmenter=runs/weak_acdc/seed_0/pce \
    --picture=gradients.png

A row an image: the image, its weak label, what the network predicts, and for
one class minus the gradient of each loss with respect to the logits: red where
it raises the class's score, blue where it lowers it (after Tang et al., ECCV
2018, figure 3). The images are labelled ones, those with most classes first.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxseg import inference, visualize, workdir, writers
from jaxseg.config import parse_flags
from jaxseg.data import sources, transforms
from jaxseg.data import splits as data_splits
from jaxseg.data.examples import Examples
from jaxseg.errors import UserError, friendly
from jaxseg.losses import segmentation
from jaxseg.losses.regularized import TERMS, Regularizer
from jaxseg.methods import weak_pictures

SIDE = 128  # pixels of a small image's longer side, magnified
NAMES = {
  'labels': 'labels', 'crf': 'dense CRF', 'ncut': 'normalised cut',
  'clustering': 'kernel k-means', 'potts': 'Potts', 'entropy': 'entropy',
}  # fmt: skip


def columns(folder: str, count: int) -> dict[str, list[np.ndarray]]:
  """{caption: pictures of `count` images} of a trained workdir."""
  trained = workdir.load(folder)
  config = trained.config
  splits = data_splits.load_splits(Path(folder) / 'splits.json')
  examples = Examples(sources.load(config.data), config.data)
  labels = {id_: examples.training_label(id_) for id_ in splits.labelled}
  classes = lambda id_: -len(np.unique(labels[id_]))
  ids = sorted(labels, key=classes)[:count]
  label = np.stack([labels[id_] for id_ in ids]).astype(np.int32)
  images = np.stack([transforms.normalise(examples.image(id_)) for id_ in ids])
  system = inference.choose(trained, refine=False)
  settings = {}
  if 'regularizer' in config[system.stage].args:
    settings = config[system.stage].args.regularizer.to_dict()
  regularizer = Regularizer(**settings | dict.fromkeys(TERMS, 1.0))

  def pushes(images, label):
    p = system.apply(system.state, images).probabilities
    logits = jnp.log(jnp.maximum(p, 1e-7))
    found = weak_pictures.pushes(
      logits, images, label,
      lambda x, y: (segmentation.cross_entropy(x, y), {}),
      regularizer, label == segmentation.VOID,
    )  # fmt: skip
    return logits.argmax(-1), found

  predicted, found = jax.device_get(jax.jit(pushes)(images, label))
  paint = lambda x: visualize.colorize(x, trained.palette)
  shown = {
    'image': images, 'weak label': paint(label), 'predicted': paint(predicted),
  }  # fmt: skip
  shown |= {name: found[f'push_{key}'] for key, name in NAMES.items()}
  return {name: list(pictures) for name, pictures in shown.items()}


def main(argv: list[str]) -> None:
  """Draws the picture."""
  args = flags.FLAGS
  with friendly():
    if argv[1:]:
      raise UserError(f'unexpected argument {argv[1]!r}, expected --name=value')
    for name in ('segmenter', 'picture'):
      if not args[name].value:
        raise UserError(f'--{name} is missing; see --help.')
    shown = columns(args.segmenter, args.rows)
    first, *others = zip(*shown.values(), strict=True)
    parts = [visualize.captioned(first, list(shown), SIDE)]
    if others:
      parts.append(visualize.grid(others, SIDE))
    visualize.write_png(args.picture, np.concatenate(parts))
    writers.say(f'{args.picture}: {args.rows} images')


if __name__ == '__main__':
  flags.DEFINE_string('segmenter', None, 'A trained workdir.')
  flags.DEFINE_string('picture', None, 'The PNG file to write.')
  flags.DEFINE_integer('rows', 4, 'Images.', 1)
  app.run(main, flags_parser=parse_flags)
