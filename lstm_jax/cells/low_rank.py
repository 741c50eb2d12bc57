"""A dense matrix W, or its low-rank factorization L R.

Forward                          Backward, from da
  dense     a = x W                dx = da Wᵀ
                                   dW = Σ xᵀ da
  low rank  a = (x L) R            dy = da Rᵀ
                                   dx = dy Lᵀ
                                   dL = Σ xᵀ dy
                                   dR = Σ (x L)ᵀ da

W is [D, K], L [D, rank] and R [rank, K]. The sums run over all leading axes.
With a rank below D K / (D + K), the factors have fewer weights than W. Products
accumulate as those of `affine`.
"""

from typing import NamedTuple

import jax

from lstm_jax.cells.affine import outer, product, product_transposed
from lstm_jax.cells.initializers import input_weights
from lstm_jax.cells.serialization import serializable


@serializable
class LowRank(NamedTuple):
  """The factors of a matrix [D, K]."""

  left: jax.Array  # [D, rank]
  right: jax.Array  # [rank, K]


Matrix = jax.Array | LowRank


def forward(x: jax.Array, w: Matrix) -> jax.Array:
  """Return x W, [..., K]."""
  if isinstance(w, LowRank):
    return product(product(x, w.left), w.right)
  return product(x, w)


def backward(w: Matrix, da: jax.Array) -> jax.Array:
  """Return dx = da Wᵀ, [..., D], the cotangent of x."""
  if not isinstance(w, LowRank):
    return product_transposed(da, w)
  dy = product_transposed(da, w.right)
  dx = product_transposed(dy, w.left)
  return dx


def parameter_gradients(x: jax.Array, w: Matrix, da: jax.Array) -> Matrix:
  """Return dW, [D, K], or the gradients dL and dR of its factors."""
  if not isinstance(w, LowRank):
    dw = outer(x, da, w.dtype)
    return dw
  dy = product_transposed(da, w.right)
  dleft = outer(x, dy, w.left.dtype)
  dright = outer(product(x, w.left), da, w.right.dtype)
  return LowRank(dleft, dright)


def init(
  key: jax.Array, rows: int, columns: int, rank: int | None, dtype
) -> Matrix:
  """Return a matrix [rows, columns] such that x W has the scale of x.

  Both factors are drawn like a whole matrix, as `initializers` draws input
  weights.

  Args:
    key: a typed PRNG key.
    rows: D.
    columns: K.
    rank: columns of the left factor; None for a whole matrix.
    dtype: the dtype of the weights.
  """
  if rank is None:
    return input_weights(key, rows, columns, gates=1, dtype=dtype)
  key_left, key_right = jax.random.split(key)
  return LowRank(
    input_weights(key_left, rows, rank, gates=1, dtype=dtype),
    input_weights(key_right, rank, columns, gates=1, dtype=dtype),
  )
