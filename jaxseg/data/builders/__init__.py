"""Builders of public data sets; one module each, imported when needed."""

import importlib

# name -> 'module:class'
BUILDERS = {
  'celeba_mask_hq': 'celeba_mask_hq:CelebAMaskHQ',
  'metfaces40': 'metfaces40:MetFaces40',
  'chest_xray': 'chest_xray:ChestXray',
  'skin_lesion': 'skin_lesion:SkinLesion',
  'liver': 'liver:Liver',
  'voc2012': 'voc2012:VOC2012',
  'cityscapes': 'cityscapes:Cityscapes',
  'acdc': 'acdc:ACDC',
  'scribblesup': 'scribblesup:ScribbleSup',
}


def builder_class(name: str) -> type:
  """Returns the TFDS builder of a name in `BUILDERS`."""
  module, _, cls = BUILDERS[name].partition(':')
  return getattr(importlib.import_module(f'{__name__}.{module}'), cls)
