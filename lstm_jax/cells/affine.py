"""The affine map of every cell and of the readout, and its backward.

Forward                          Backward, from da
  a = x W + b                      dx = da Wᵀ
                                   dW = Σ xᵀ da
                                   db = Σ da

The sums run over all leading axes of x, so the same code serves one example, a
batch, and a whole sequence. An integer x stands for a one-hot row: x W is then
row x of W (a gather), and Σ xᵀ da adds up the rows of da that have the same
token (a scatter).

Precision: the operands of a product are cast to the dtype of its weights, and
the product accumulates in float32 or wider. All results have that accumulation
dtype, gradients included, and the caller casts gradients to the dtypes of their
primals. Only the gradient of `linear` is cast already.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.mesh import auto_sharded, leading_sharding, vary_alike
from lstm_jax.cells.platform import is_cpu
from lstm_jax.cells.precision import (
  accumulation_dtype,
  cast_like,
  cast_matrices,
  upcast,
)


def is_token(x: jax.Array) -> bool:
  """Return whether x holds integer tokens rather than vectors."""
  return jnp.issubdtype(x.dtype, jnp.integer)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x W, [..., K], for x [..., D] and w [D, K]."""
  x = x.astype(w.dtype)
  return jnp.matmul(x, w, preferred_element_type=accumulation_dtype(w.dtype))


def product_transposed(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x Wᵀ, [..., D], for x [..., K] and w [D, K].

  On a CPU, the product of few rows is computed as (W xᵀ)ᵀ, with the large
  matrix on the left. XLA's products on the CPU copy their right operand into
  blocks at every call; for a matrix as large as W this copy takes longer than
  the product of a few rows with it. At H 1024, B 32, T 64 the products of the
  backward scan took 90 ms instead of 150. With more rows than D / 2, the
  transposes of x and of the result take longer than that copy: a time step at
  H 128, B 256 took 72 µs with x on the left, and 161 with W on the left.
  """
  rows = math.prod(x.shape[:-1])
  # A symbolic number of rows (`jax.export`) counts as few.
  many = isinstance(rows, int) and 2 * rows > len(w)
  if many or not is_cpu():
    return product(x, w.T)
  y = jnp.einsum(
    "dk,...k->d...",
    w,
    x.astype(w.dtype),
    preferred_element_type=accumulation_dtype(w.dtype),
  )
  # The barrier keeps XLA from fusing the product into each of its consumers,
  # where it would be computed again.
  return jnp.moveaxis(lax.optimization_barrier(y), 0, -1)


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """Return x W + b.

  Args:
    x: inputs, [..., D], or integer tokens in [0, D), [...]. Tokens outside
      that range are not detected: they read some row of w, and their gradients,
      that of b included, may be missing.
    w: weights, [D, K].
    b: bias, [K].

  Returns:
    [..., K], in float32 or wider.
  """
  a = select_or_multiply(x, w)
  return a + as_row(b, a)


def select_or_multiply(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x W, [..., K]: a product, or for tokens x [...] the rows of W."""
  if is_token(x):
    return upcast(jnp.asarray(w)[_as_index(x)])
  return product(x, w)


def _as_index(x: jax.Array) -> jax.Array:
  """Return tokens as int32: int8 or uint8 could not index all rows of W.

  Tokens outside the range of int32 are clipped to it. Modulo 2³², the token
  2³² − 1 would become −1, which is in range: it stands for the last row.
  """
  own, index = jnp.iinfo(x.dtype), jnp.iinfo(jnp.int32)
  if own.max > index.max:  # uint32, int64 or uint64
    x = x.clip(max(own.min, index.min), index.max)
  return x.astype(jnp.int32)


def as_row(vector: jax.Array, like: jax.Array) -> jax.Array:
  """Return a vector [K] with the rank and dtype of an array [..., K].

  JAX can be set to refuse a sum of arrays of different ranks or dtypes.
  """
  return jnp.expand_dims(vector.astype(like.dtype), range(like.ndim - 1))


def outer(x: jax.Array, da: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Return Σ xᵀ da, [D, K], for x [..., D] and da [..., K].

  It is the sum of the outer products over all leading axes. The operands are
  cast to `dtype`, that of the weights.
  """
  return jnp.einsum(
    "...d,...k->dk",
    x.astype(dtype),
    da.astype(dtype),
    preferred_element_type=accumulation_dtype(dtype),
  )


def total(da: jax.Array) -> jax.Array:
  """Return Σ da, [K], over all leading axes of da [..., K]."""
  return upcast(da).sum(range(da.ndim - 1))


def affine_backward(
  x: jax.Array, w: jax.Array, da: jax.Array
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
  """Return (dx, dW, db), the cotangents of the arguments of `affine`.

  Tokens have no cotangent: their dx is None.
  """
  if is_token(x):
    dw_tokens = _token_gradient(x, w, da)
    # Every row of da is added to one row of dW, so the rows of both have the
    # same sum. A symbolic number of tokens (`jax.export`) cannot be compared.
    few = isinstance(x.size, int) and len(dw_tokens) < x.size
    db_tokens = total(dw_tokens if few else da)
    return None, dw_tokens, db_tokens
  dx, dw, db = product(da, w.T), outer(x, da, w.dtype), total(da)
  return dx, dw, db


def _token_gradient(x: jax.Array, w: jax.Array, da: jax.Array) -> jax.Array:
  """Return dW, [D, K]: in row n, the sum of the rows of da whose token is n.

  Args:
    x: integer tokens, [...].
    w: weights, [D, K].
    da: cotangent of x W, [..., K].
  """
  zeros = jnp.zeros(w.shape, accumulation_dtype(w.dtype))
  return zeros.at[_as_index(x)].add(da.astype(zeros.dtype))


def linear(
  x: jax.Array,
  w: jax.Array,
  b: jax.Array,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return `affine(x, w, b)`, whose gradient is `affine_backward`.

  Args:
    x: as in `affine`.
    w: as in `affine`.
    b: as in `affine`.
    compute_dtype: the dtype of the products' operands; None for w's dtype.
  """
  sharding = leading_sharding(x, x.ndim - (not is_token(x)))  # all axes but D
  rule = auto_sharded(partial(_linear, compute_dtype), sharding)
  return rule(*vary_alike((x, w, b)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(compute_dtype, x, w, b):
  return affine(x, cast_matrices(w, compute_dtype), b)


def _linear_forward(compute_dtype, x, w, b):
  # Call `affine`: `_linear` has no forward mode, which `jax.hessian` needs.
  return affine(x, cast_matrices(w, compute_dtype), b), (x, w, b)


def _linear_backward(compute_dtype, residuals, da):
  x, w, b = residuals
  dx, dw, db = affine_backward(x, cast_matrices(w, compute_dtype), da)
  return cast_like((dx, dw, db), (None if dx is None else x, w, b))


_linear.defvjp(_linear_forward, _linear_backward)
