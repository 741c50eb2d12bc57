"""The affine map that every cell and the readout share, and its backward.

Forward                          Backward, from da
  a = x W + b                      dx = da Wᵀ
                                   dW = Σ xᵀ da
                                   db = Σ da

The sums run over every leading axis of x, so the same lines serve one example,
a batch, and a whole sequence. An integer x stands for its one-hot row: x W is
then row x of W (a gather), and Σ xᵀ da adds the rows of da that share a token.

Precision: the operands of a product have the dtype of its weights, and it
accumulates in float32 or wider. Every result has that wider dtype, gradients
too: who asked for them casts them to the dtype of their primals, once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.precision import cast_like, lower, wide, wider


def is_token(x: jax.Array) -> bool:
  """Return whether x holds integer tokens rather than vectors."""
  return jnp.issubdtype(x.dtype, jnp.integer)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x W, [..., K], for x [..., D] and w [D, K]."""
  x = x.astype(w.dtype)
  return jnp.matmul(x, w, preferred_element_type=wider(w.dtype))


def product_transposed(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x Wᵀ, [..., D], for few rows x [..., K] and w [D, K].

  Computed as (W xᵀ)ᵀ, with the large matrix on the left: XLA's products on the
  CPU copy their right operand into blocks at every call, and as many numbers as
  W has cost more than the products of few rows with them. At H 1024, B 32, T 64
  the products of the loop backward took 90 ms instead of 150.
  """
  y = jnp.einsum(
    "dk,...k->d...", w, x.astype(w.dtype), preferred_element_type=wider(w.dtype)
  )
  return jnp.moveaxis(once(y), 0, -1)


def once(x: jax.Array) -> jax.Array:
  """Return x, computed once: XLA may not repeat it in what consumes it."""
  return lax.optimization_barrier(x)


def affine(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """Return x W + b.

  Args:
    x: inputs, [..., D], or integer tokens in [0, D), [...]. A token outside
      that range is not noticed.
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
    return wide(jnp.asarray(w)[x.astype(jnp.int32)])
  return product(x, w)


def as_row(vector: jax.Array, like: jax.Array) -> jax.Array:
  """Return a vector [K] that goes with every row of an array [..., K]."""
  return jnp.expand_dims(vector.astype(like.dtype), range(like.ndim - 1))


def outer(x: jax.Array, da: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """Return Σ xᵀ da, [D, K], for x [..., D] and da [..., K].

  The operands are read in `dtype`, that of the weights.
  """
  return jnp.einsum(
    "...d,...k->dk",
    x.astype(dtype),
    da.astype(dtype),
    preferred_element_type=wider(dtype),
  )


def total(da: jax.Array) -> jax.Array:
  """Return Σ da, [K], over every leading axis of da [..., K]."""
  return wide(da).sum(range(da.ndim - 1))


def affine_backward(
  x: jax.Array, w: jax.Array, da: jax.Array
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
  """Return (dx, dW, db), the cotangents of the inputs of x W + b.

  Tokens have no cotangent: their dx is None.
  """
  if is_token(x):
    dx, dw = None, _token_gradient(x, w, da)
    db = total(dw if len(dw) < x.size else da)  # one sum; the shorter of two
  else:
    dx, dw, db = product(da, w.T), outer(x, da, w.dtype), total(da)
  return dx, dw, db


def _token_gradient(x: jax.Array, w: jax.Array, da: jax.Array) -> jax.Array:
  """Return dW, [D, K], from tokens x [...]: the sum of each token's rows."""
  x = x.astype(jnp.int32)  # a narrow integer cannot count the rows of W
  return jnp.zeros(w.shape, wider(w.dtype)).at[x].add(wide(da))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def linear(
  x: jax.Array,
  w: jax.Array,
  b: jax.Array,
  compute_dtype: jnp.dtype | None = None,
) -> jax.Array:
  """Return `affine(x, w, b)`, with `affine_backward` as its gradient.

  Args:
    x: as in `affine`.
    w: as in `affine`.
    b: as in `affine`.
    compute_dtype: of the products' operands; None for that of w.
  """
  return affine(x, lower(w, compute_dtype), b)


def _linear_forward(x, w, b, compute_dtype):
  return linear(x, w, b, compute_dtype), (x, w, b)


def _linear_backward(compute_dtype, residuals, da):
  x, w, b = residuals
  dx, dw, db = affine_backward(x, lower(w, compute_dtype), da)
  return cast_like((dx, dw, db), (None if dx is None else x, w, b))


linear.defvjp(_linear_forward, _linear_backward)
