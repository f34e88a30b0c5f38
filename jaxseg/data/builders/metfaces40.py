"""MetFaces-40: faces in works of art, with the 8 classes of `celeba_mask_hq`.

The out-of-domain test set of SemanticGAN (Li et al., CVPR 2021, section 4.2):
40 images of MetFaces (Karras et al., 2020), annotated by the authors, released
in February 2022.

What is in the archive is not confirmed by any public source, so the layout is
read tolerantly: a folder of images (images, image, img or imgs) beside a folder
of label files (labels, label, annotations, annotation, masks, mask, seg), in
--manual_dir or in one folder below it; a label has the stem of its image.
Labels hold class ids 0 to 7, as the authors' code reads them, or the authors'
colours. Images without a label are left out, so that all 1,336 images of
MetFaces may lie there. Whether the ids mean the same as in `celeba_mask_hq`
should be seen on a contact sheet (`python -m jaxseg.datasets show`).
"""

import functools
from pathlib import Path

import tensorflow_datasets as tfds

from jaxseg.data.builders import base, celeba_mask_hq
from jaxseg.data.formats import images

IMAGES = ('images', 'image', 'img', 'imgs')
LABELS = (
  'labels',
  'label',
  'annotations',
  'annotation',
  'masks',
  'mask',
  'seg',
)
COLOURS = {colour: i for i, colour in enumerate(celeba_mask_hq.COLOURS8)}


class MetFaces40(base.Builder, skip_registration=True):
  """See the module."""

  name = 'metfaces40'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    base.Config(
      name='metfaces40',
      description='All 40, out of domain.',
      class_names=celeba_mask_hq.NAMES8,
      palette=celeba_mask_hq.COLOURS8,
      counts={'ood_metfaces': 40},
    )
  ]
  TITLE = 'Faces in paintings, drawings and sculptures, 8 classes'
  HOMEPAGE = 'https://github.com/nv-tlabs/semanticGAN_code'
  LICENCE = 'CC BY-NC 4.0, NVIDIA Corporation'
  CITATION = """\
@inproceedings{li2021semantic,
  title={Semantic Segmentation with Generative Models: Semi-Supervised Learning
    and Strong Out-of-Domain Generalization},
  author={Li, Daiqing and Yang, Junlin and Kreis, Karsten and Torralba, Antonio
    and Fidler, Sanja},
  booktitle={CVPR}, year={2021}
}
@inproceedings{karras2020training,
  title={Training Generative Adversarial Networks with Limited Data},
  author={Karras, Tero and Aittala, Miika and Hellsten, Janne and Laine, Samuli
    and Lehtinen, Jaakko and Aila, Timo},
  booktitle={NeurIPS}, year={2020}
}"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = """\
download MetFaces40 from the Google Drive folder that
https://github.com/nv-tlabs/semanticGAN_code links to under "Dataset" (CC BY-NC
4.0), so that --manual_dir holds images/NAME.png and labels/NAME.png; if it has
labels only, take the images of the same names from
https://github.com/NVlabs/metfaces-dataset.
"""

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    """See `base.Builder.scan`."""
    found = _files(self._folder(root, IMAGES, 'the folder of images'))
    labels = _files(
      self._folder(root, LABELS, 'the folder of labels'), ('.png',)
    )
    records = [
      base.Record(
        id_,
        found[id_],
        functools.partial(images.read_label, path, colours=COLOURS),
      )
      for id_, path in labels.items()
      if id_ in found
    ]
    return {'ood_metfaces': records}

  def _folder(self, root, names, what):
    """Returns the folder of one of these names, in `root` or one below."""
    inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
    for folder in (root, *inner):
      for name in names:
        if (folder / name).is_dir():
          return folder / name
    raise self.missing(root / names[0], what)


def _files(folder, suffixes=('.png', '.jpg', '.jpeg')):
  """Returns {stem: path}, sorted."""
  return {
    path.stem: path
    for path in sorted(folder.iterdir())
    if path.suffix.lower() in suffixes and not path.name.startswith('.')
  }
