"""Faces inverted with pSp's published weights, as its first users did it.

The encoder's code (step 0), then 100 steps of Adam at a constant rate of 0.01.

  python -m jaxseg.pretrained convert --kind=psp \
    --source=psp_ffhq_encode.pt --output=weights/psp_ffhq
  python -m jaxseg.predict --pretrained=weights/psp_ffhq \
    --config=configs/psp_ffhq.py --images=faces --output=out

`out/strips` then shows original, step 0 and step 100 of every image. Images
should be aligned as FFHQ is; that is not done here. Add --tto.steps=500 for a
closer code, --tto.steps=0 for the encoder alone.
"""

from jaxseg import config as jaxseg_config
from jaxseg import predict_tto


def get_config(arg: str = ''):
  """arg: none is read."""
  if arg:
    raise ValueError(f'{arg!r} is given, but this config takes no argument')
  c = jaxseg_config.default()
  c.data.resolution = 1024
  c.data.channels = 3
  c.data.fit = 'crop'
  with c.unlocked():
    c.tto = predict_tto.group(steps=100, lr=0.01, schedule='constant')
  return c.lock()
