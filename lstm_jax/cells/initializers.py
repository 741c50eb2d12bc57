"""Initial weights of the cells, drawn for each gate separately.

Input weights are LeCun normal (standard deviation 1/√D), so that initial
pre-activations have unit scale for any input size. Recurrent weights are
orthogonal: products of orthogonal matrices preserve the norm of a vector, and
with it that of a gradient on its way back through time (Saxe, McClelland and
Ganguli, 2014). Flax's cells have the same defaults.
Each gate has its own draw, so that its scale does not depend on how many gates
share the matrix.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.precision import accumulation_dtype

# Larger blocks are made by matrix products rather than by LAPACK's QR, which
# takes seconds at H 2048, most of them in threads that wait for each other at
# every column. Blocks up to this size are those of `jax.nn.initializers`, bit
# for bit.
LARGE = 1024


def input_weights(
  key: jax.Array, input_size: int, hidden_size: int, gates: int, dtype
) -> jax.Array:
  """Return w_x, [D, gates·H], LeCun normal."""
  draw = jax.nn.initializers.lecun_normal()
  return _per_gate(draw, key, (input_size, hidden_size), gates, dtype)


def recurrent_weights(
  key: jax.Array, output_size: int, hidden_size: int, gates: int, dtype
) -> jax.Array:
  """Return w_h, [P, gates·H], each gate's [P, H] block orthogonal.

  P is the size of the output h, and H that of the gates. A block that is not
  square has orthonormal rows or columns, whichever are fewer.
  """
  large = min(output_size, hidden_size) > LARGE
  draw = _large_orthogonal if large else jax.nn.initializers.orthogonal()
  return _per_gate(draw, key, (output_size, hidden_size), gates, dtype)


def check_sizes(input_size: int, hidden_size: int) -> None:
  """Raise ValueError unless both sizes are positive."""
  if input_size < 1 or hidden_size < 1:
    raise ValueError(
      "input_size and hidden_size must be at least 1, "
      f"got {input_size} and {hidden_size}"
    )


def _per_gate(draw, key, shape, gates, dtype):
  # Drawn in float32 or wider: bfloat16 has no QR decomposition.
  keys = jax.random.split(key, gates)
  blocks = [draw(k, shape, accumulation_dtype(dtype)) for k in keys]
  return jnp.concatenate(blocks, axis=1).astype(dtype)


def _large_orthogonal(key, shape, dtype):
  """Draw what `jax.nn.initializers.orthogonal()` draws, up to rounding."""
  rows, columns = shape
  q = orthonormal_columns(
    jax.random.normal(key, (max(shape), min(shape)), dtype)
  )
  return q.T if rows < columns else q


@jax.jit
def orthonormal_columns(a: jax.Array) -> jax.Array:
  """Return the Q of a = Q R with a positive diagonal of R, by few products.

  There is one such Q, so that it is that of Householder's QR but for rounding.
  All but the last 1/32 of the columns of a Gaussian matrix have a condition
  number of at most about 130, for which the Cholesky factor of their Gram
  matrix is accurate in float32; done twice, they are orthonormal to rounding.
  The last columns may have any condition number. They are made orthogonal to
  the others, then to each other by Householder's QR, and both once more.

  Args:
    a: a Gaussian matrix, [M, N] with M ≥ N.

  Returns:
    Orthonormal columns, [M, N].

  Reference: Yamamoto et al. (2015), Roundoff error analysis of the CholeskyQR2
  algorithm.
  """
  cut = a.shape[1] - max(a.shape[1] // 32, 1)
  q, last = a[:, :cut], a[:, cut:]
  for _ in range(2):
    r = lax.linalg.cholesky(_product(q.T, q), symmetrize_input=False)
    q = lax.linalg.triangular_solve(r, q, lower=True, transpose_a=True)
  for _ in range(2):
    last -= _product(q, _product(q.T, last))
    last, r = lax.linalg.qr(last, full_matrices=False)
    last *= jnp.sign(jnp.diagonal(r))[None]
  return jnp.concatenate([q, last], axis=1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
