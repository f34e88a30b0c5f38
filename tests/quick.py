"""Compilation that is cheap where a test runs a program once or twice."""

import functools

import jax

quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
