"""How to learn: one file a method; this dict is the list of them."""

from jaxseg.methods import (
  adv_ssl,
  bcp,
  cam,
  cyclegan,
  entropy,
  gct,
  graph,
  label_branch,
  mean_teacher,
  sec,
  self_training,
  semantic_gan,
  semantic_gan_encoder,
  supervised,
  unimatch,
  weak,
)

METHODS = {
  'supervised': supervised,
  'semantic_gan': semantic_gan,
  'semantic_gan_encoder': semantic_gan_encoder,
  'label_branch': label_branch,
  'mean_teacher': mean_teacher,
  'adv_ssl': adv_ssl,
  'gct': gct,
  'self_training': self_training,
  'entropy': entropy,
  'graph': graph,
  'unimatch': unimatch,
  'weak': weak,
  'cam': cam,
  'sec': sec,
  'bcp': bcp,
  'cyclegan': cyclegan,
}
