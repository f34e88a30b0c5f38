"""jaxseg: learning to segment with generative models, from few labels."""

from jaxseg import _xla_flags

__version__ = '0.1.0'

_xla_flags.set_for_cpu()


def load(workdir: str, checkpoint: str = 'newest'):
  """Opens a trained workdir; see `jaxseg.workdir.load`."""
  from jaxseg import workdir as workdirs

  return workdirs.load(workdir, checkpoint=checkpoint)
