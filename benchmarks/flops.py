"""Counts the operations of a function's convolutions and matrix products."""

import math
from collections.abc import Callable
from typing import Any

import jax

from jaxseg import ops


def count(
  function: Callable[..., Any], *args: Any, products: bool = True
) -> int:
  """Operations of one call, a multiply-add as two.

  Only convolutions and matrix products count, in their plain forms, without
  multiplications by the zeros of a dilated input. Of branches the one with the
  most counts; the body of a scan once for each of its steps.

  Args:
    function: can be traced; is not run.
    *args: its arguments, or their shapes.
    products: whether matrix products count.

  Raises:
    ValueError: a while loop, whose steps cannot be told.
  """
  with ops.implementation('lax'):
    jaxpr = jax.make_jaxpr(function)(*args)
  return _of_jaxpr(jaxpr.jaxpr, products)


def _of_jaxpr(jaxpr, products):
  return sum(_of_equation(eqn, products) for eqn in jaxpr.eqns)


def _of_equation(eqn, products):
  name, params = eqn.primitive.name, eqn.params
  if name == 'conv_general_dilated':
    return _of_convolution(eqn)
  if name == 'dot_general':
    return _of_product(eqn) if products else 0
  inner = [_of_jaxpr(jaxpr, products) for jaxpr in _jaxprs(params)]
  if name == 'cond':
    return max(inner)
  if name == 'while' and any(inner):
    raise ValueError('the steps of a while loop cannot be counted')
  return sum(inner) * (params['length'] if name == 'scan' else 1)


def _of_product(eqn):
  (contracted, _), _ = eqn.params['dimension_numbers']
  lhs, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  return 2 * math.prod(out) * math.prod(lhs[axis] for axis in contracted)


def _of_convolution(eqn):
  params = eqn.params
  kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  features = kernel[params['dimension_numbers'].rhs_spec[0]]
  total = 2 * math.prod(out) * math.prod(kernel) // features
  return total // math.prod(params['lhs_dilation'])


def _jaxprs(params):
  """Those among the parameters of an equation."""
  is_jaxpr = lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')
  leaves = jax.tree.leaves(list(params.values()), is_leaf=is_jaxpr)
  return [getattr(x, 'jaxpr', x) for x in leaves if is_jaxpr(x)]
