"""ScribbleSup: PASCAL VOC 2012 with scribbles instead of full masks.

Official layout: VOC 2012 as in `voc2012`, and beside it scribble_annotation.zip
(Lin et al., CVPR 2016):

  scribble_annotation/pascal_2012/2007_000032.xml  12,031 files: the 10,582
      images of the augmented training list and VOC's 1,449 val images

Each file holds polylines with a class name. They are drawn 3 pixels wide, as
Tang et al. do (ECCV 2018, convertscribbles.m); all other pixels are 255. The
training images are those with scribbles that are not in VOC's val list, whose
full masks are scored as 'test'; 'val' is drawn by jaxseg from the training
images, and so has scribbles only.
"""

import functools
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data.annotations.readers import read_scribble_xml
from jaxseg.data.builders import base, voc2012

WIDTH = 3  # of the drawn lines, in pixels

# What the XML files call the classes of VOC, in the order of their ids.
XML_NAMES = (
  'background',
  'plane',
  'bike',
  'bird',
  'boat',
  'bottle',
  'bus',
  'car',
  'cat',
  'chair',
  'cow',
  'table',
  'dog',
  'horse',
  'motorbike',
  'person',
  'plant',
  'sheep',
  'sofa',
  'train',
  'monitor',
)


class ScribbleSup(base.Builder, skip_registration=True):
  """See the module."""

  name = 'scribblesup'
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [
    base.Config(
      name='scribblesup',
      description='10,582 images with scribbles; full masks only for scoring.',
      class_names=voc2012.CLASS_NAMES,
      counts={'train': 10582, 'test': 1449},
    )
  ]
  TITLE = 'Everyday photographs of PASCAL VOC with scribbles, 21 classes'
  HOMEPAGE = 'https://jifengdai.org/downloads/scribble_sup/'
  LICENCE = (
    f'{voc2012.LICENCE}; nor is one for the scribbles, which ask to be cited'
  )
  CITATION = """\
@inproceedings{lin2016scribblesup,
  title={ScribbleSup: Scribble-Supervised Convolutional Networks for Semantic
    Segmentation},
  author={Lin, Di and Dai, Jifeng and Jia, Jiaya and He, Kaiming and Sun, Jian},
  booktitle={CVPR}, year={2016}
}"""
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    voc2012.INSTRUCTIONS
    + """\
Unpack scribble_annotation.zip (of
https://jifengdai.org/downloads/scribble_sup/) beside it, as
scribble_annotation/pascal_2012/*.xml.
"""
  )

  def scan(self, root: Path) -> dict[str, list[base.Record]]:
    """See `base.Builder.scan`."""
    folder = voc2012.devkit(self, root)
    scribbles = self.require(
      root / 'scribble_annotation' / 'pascal_2012', 'the folder of scribbles'
    )
    photographs = voc2012.photographs(folder)
    labels = {
      path.stem: functools.partial(
        read_scribbles, path, photographs.get(path.stem)
      )
      for path in scribbles.glob('[!.]*.xml')
    }
    test = voc2012.dense(self, folder, 'val')
    scored = set(voc2012.ids(folder, 'val'))
    train = sorted(id_ for id_ in labels if id_ not in scored)
    return {'train': voc2012.records(folder, train, labels), 'test': test}


def read_scribbles(path: Path, photograph: Path) -> np.ndarray:
  """Draws the scribbles of one image.

  Args:
    path: the XML file.
    photograph: gives the size.

  Returns:
    uint8 [H, W], class ids 0..20 and 255 elsewhere.
  """
  with Image.open(photograph) as image:
    size = (image.height, image.width)
  return read_scribble_xml(path, XML_NAMES, size, WIDTH)
