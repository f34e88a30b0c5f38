"""Every method as accelerators are given it: bfloat16, in parts, with remat.

One trace shows all three at once; nothing is compiled but a few small steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_methods import PREVIOUS, TINY, batch, initial, make, stepped

from jaxseg import ops
from jaxseg.methods import cyclegan
from jaxseg.methods.graph import ImageGraph
from jaxseg.optimizers import Optimizer

# label_branch takes its few codes whole, and no gradient passes its generator.
NAMES = [n for n in TINY if '-' not in n and n != 'label_branch']


def changed(name, dtype='float32', accumulate=1, remat=False):
  """A method of `TINY` with these settings, which have two forms."""
  args = dict(TINY[name])
  if 'net' in args:
    args['net'] = args['net']._replace(dtype=dtype, remat=remat)
    optimizer = cyclegan.ADAM if name == 'cyclegan' else Optimizer()
    args['optimizer'] = optimizer._replace(accumulate=accumulate)
  else:
    args |= dict(dtype=dtype, accumulate=accumulate, remat=remat)
  if 'gan' in args:
    args['gan'] = args['gan'] | {'dtype': dtype}
  if name == 'graph':  # images of different parts are not joined
    args['image'] = ImageGraph(weight=0.0)
  return make(name, args)


def equations(jaxpr):
  """All equations of a jaxpr, those of inner ones too."""
  for eqn in jaxpr.eqns:
    yield eqn
    yield from (e for j in jax.core.jaxprs_in_params(eqn.params)
                for e in equations(j))  # fmt: skip


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_in_parts_with_remat(name):
  previous = PREVIOUS.get(name)
  if previous:
    previous = jax.eval_shape(make(previous).init, jax.random.key(0))
  method = changed(name, 'bfloat16', 2, True)
  state = jax.eval_shape(method.init, jax.random.key(0), previous)
  names = lambda tree: [
    (path, x.shape, x.dtype) for path, x in jax.tree.leaves_with_path(tree)
  ]
  # A checkpoint of one setting is read with another.
  other = jax.eval_shape(make(name).init, jax.random.key(0), previous)
  assert names(state) == names(other)
  with ops.implementation('lax'):
    jaxpr, (after, metrics) = jax.make_jaxpr(
      method.train_step, return_shape=True
    )(state, batch())
  assert names(after) == names(state)
  assert {m.dtype for m in metrics.values()} == {jnp.dtype('float32')}
  found = list(equations(jaxpr.jaxpr))
  convolutions = [e for e in found if e.primitive.name.startswith('conv_')]
  assert {v.aval.dtype for e in convolutions for v in e.invars} == {
    jnp.dtype('bfloat16')
  }
  assert any(e.primitive.name in ('checkpoint', 'remat2') for e in found)
  of_parts = [e for e in found if e.primitive.name == 'scan']
  assert any(e.params['length'] == 2 for e in of_parts)


@pytest.mark.parametrize('name', ['supervised', 'cyclegan'])
def test_bfloat16_is_near_float32(name):
  after, metrics = jax.jit(changed(name, 'bfloat16').train_step)(
    initial(name), batch()
  )
  for key, value in stepped(name)[2][0].items():
    np.testing.assert_allclose(metrics[key], value, 0.02, 0.002, err_msg=key)
  finite = jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), after.params)
  assert all(jax.tree.leaves(finite))
