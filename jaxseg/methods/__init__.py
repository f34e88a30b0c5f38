"""How to learn: one file a method; this dict is the list of them."""

from jaxseg.methods import semantic_gan, semantic_gan_encoder, supervised

METHODS = {
  'supervised': supervised,
  'semantic_gan': semantic_gan,
  'semantic_gan_encoder': semantic_gan_encoder,
}
