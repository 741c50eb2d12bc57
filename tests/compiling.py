"""What programs consist of, and how many XLA compiles."""

from collections import defaultdict
from contextlib import contextmanager

import jax
from jax.extend.core import jaxprs_in_params

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def count_programs():
  """Yield a list that grows by one for each program that XLA compiles.

  A program that JAX reads from its cache on disk counts too.
  """
  programs = []

  def listener(event, duration, **_):
    if event == COMPILED:
      programs.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    yield programs
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)


def dtypes(f, *args):
  """Return {primitive: set of (*operand dtypes, *result dtypes)} of a program.

  Args:
    f: the function that is traced.
    *args: its arguments.
  """
  found = defaultdict(set)

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      arrays = *equation.invars, *equation.outvars
      names = tuple(str(v.aval.dtype) for v in arrays)
      found[equation.primitive.name].add(names)
      for inner in jaxprs_in_params(equation.params):
        visit(inner)

  visit(jax.make_jaxpr(f)(*args).jaxpr)
  return found
