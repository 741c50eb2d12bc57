"""The value and gradients of `unroll`, compiled once for tests to share."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from lstm_jax import Autodiff, Explicit, unroll
from lstm_jax.sequence.linear import is_linear
from tests.draws import arguments, weighed


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
      They are arguments of the compiled function, so that others reuse it.

  Returns:
    (scalar, gradients of args).
  """
  tokens = jnp.issubdtype(args[2].dtype, jnp.integer)
  argnums = (0, 1) if tokens else (0, 1, 2)
  f = _compiled(cell, argnums, adjoint, reverse, compute_dtype)
  return f(*args, arrays)


def planted_error(cell, planted, key):
  """Return the largest relative error of the gradient of a planted cell.

  Each array's error is relative to its largest element. The gradient of the
  planted cell is not compiled, as each term would have its own program.

  Args:
    cell: the correct cell, differentiated by JAX.
    planted: the cell with an error (`plant`), or `cell` itself.
    key: a PRNG key for the arguments.
  """
  args = arguments(cell, key, steps=3)
  value, expected = value_and_gradient(cell, args, adjoint=Autodiff())
  # With the cotangents of `_compiled`.
  f = weighed(partial(unroll, planted), jax.random.key(0))
  with jax.disable_jit():
    found_value, found = jax.value_and_grad(f, (0, 1, 2))(*args)
  # The forward is unchanged, except that of a linear recurrence: `unroll` gets
  # its λ from `recur_backward`, where an error may be planted.
  if not is_linear(cell):
    assert abs(found_value - value) < 1e-12
  errors = jax.tree.map(
    lambda a, b: np.abs(a - b).max() / (np.abs(b).max() or 1), found, expected
  )
  return float(np.max(jax.tree.leaves(errors)))


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
