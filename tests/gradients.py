"""The value and gradients of `unroll`, compiled once for tests to share."""

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
  """Return the value and gradients of `unroll`, reduced to a scalar.

  The scalar is the sum of all outputs times random cotangents (`weighed`).

  Args:
    cell: the cell.
    args: (params, state, xs). If xs are tokens, they have no gradient.
    adjoint, reverse, compute_dtype: as in `unroll`.
    **arrays: the options of `unroll` that are arrays: mask, lengths and so on.
      They are arguments of the compiled function, which is reused for others.

  Returns:
    (scalar, gradients of args).
  """
  tokens = jnp.issubdtype(args[2].dtype, jnp.integer)
  argnums = (0, 1) if tokens else (0, 1, 2)
  f = _compiled(cell, argnums, adjoint, reverse, compute_dtype)
  return f(*args, arrays)


@cache
def _compiled(cell, argnums, adjoint, reverse, compute_dtype):
  static = {
    "adjoint": adjoint,
    "reverse": reverse,
    "compute_dtype": compute_dtype,
  }

  def run(params, state, xs, arrays):
    return unroll(cell, params, state, xs, **static, **arrays)

  scalar = weighed(run, jax.random.key(0))
  return jax.jit(jax.value_and_grad(scalar, argnums))
