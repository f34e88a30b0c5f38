"""The one XLA flag that decides the speed of training on CPUs."""

import os
from importlib import metadata

# jaxlib's CPU backend gives convolutions to YNNPACK by default, whose weight
# gradients are about 1.6 times slower than Eigen's; this returns them to Eigen
# and leaves matrix products where they are.
FLAG = '--xla_cpu_experimental_ynn_fusion_type=-individual_convolution'

# XLA aborts the process on a flag it does not know, so only versions that were
# tried are listed.
KNOWN_JAXLIB = ('0.10.2',)


def set_for_cpu() -> bool:
  """Adds FLAG to XLA_FLAGS where it is known; returns whether it is set.

  Must run before JAX starts its backend. JAXSEG_XLA_FLAGS=0 switches it off.
  """
  flags = os.environ.get('XLA_FLAGS', '')
  if 'xla_cpu_experimental_ynn_fusion_type' in flags:
    return True
  if os.environ.get('JAXSEG_XLA_FLAGS') == '0':
    return False
  if metadata.version('jaxlib') not in KNOWN_JAXLIB:
    return False
  os.environ['XLA_FLAGS'] = f'{flags} {FLAG}'.strip()
  return True
