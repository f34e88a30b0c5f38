"""Sample grids show weak labels as they train, beside full masks."""

import numpy as np
import pytest

from jaxseg import config as jaxseg_config
from jaxseg import train


@pytest.mark.parametrize('kind', ['', 'scribbles', 'tags'])
def test_half_of_the_pictures_train(tmp_path, kind):
  c = jaxseg_config.default().unlock()
  c.data.source, c.data.resolution, c.data.channels = 'digits', 32, 1
  c.data.weak.kind, c.mesh.data = kind, 1
  config = jaxseg_config.add_stages(c, unet=jaxseg_config.stage('supervised'))
  data = train.Data(config, str(tmp_path))
  label = np.asarray(
    data.picture_batch(config, train.make_mesh(config))['label']
  )
  few = (label == 255).mean((1, 2)) > 0.5
  assert label.shape == (8, 32, 32)
  assert few.tolist() == [kind == 'scribbles'] * 4 + [False] * 4
