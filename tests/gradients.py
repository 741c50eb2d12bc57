"""The value and gradients of `unroll`, compiled once for all tests that ask."""

from functools import cache

import jax
import jax.numpy as jnp

from lstm_jax import Explicit, unroll
from tests.draws import weighed


def value_and_gradient(
  cell,
  args,
  *,
  adjoint=Explicit(),
  reverse=False,
  compute_dtype=None,
  **arrays,
):
  """Return the weighed outputs of `unroll`, and the gradients for args.

  Args:
    cell: the cell.
    args: (params, state, xs). Tokens have no gradient.
    adjoint, reverse, compute_dtype: as in `unroll`.
    **arrays: the other options of `unroll`: mask, lengths and so on. They are
      arguments of the compiled program, which therefore serves other ones too.
  """
  tokens = jnp.issubdtype(args[2].dtype, jnp.integer)
  argnums = (0, 1) if tokens else (0, 1, 2)
  return _program(cell, argnums, adjoint, reverse, compute_dtype)(*args, arrays)


@cache
def _program(cell, argnums, adjoint, reverse, compute_dtype):
  own = {"adjoint": adjoint, "reverse": reverse, "compute_dtype": compute_dtype}

  def run(params, state, xs, arrays):
    return unroll(cell, params, state, xs, **own, **arrays)

  scalar = weighed(run, jax.random.key(0))
  return jax.jit(jax.value_and_grad(scalar, argnums))
