"""The affine map that every cell and the readout share, and its backward.

Forward                          Backward, from da
  a = x W + b                      dx = da Wᵀ
                                   dW = Σ xᵀ da
                                   db = Σ da

The sums run over every leading axis of x, so the same lines serve one example,
a batch, and a whole sequence. An integer x stands for its one-hot row: x W is
then row x of W (a gather), and Σ xᵀ da adds the rows of da that share a token.

Precision: the operands of a product have the dtype of its weights, and it
accumulates in float32 or wider; every result has that wider dtype, and a
gradient is cast to the dtype of its primal once, at the end.
"""

import jax
import jax.numpy as jnp

from lstm_jax.cells.precision import wide, wider

# Up to this many rows the gather's transpose is a one-hot product, and beyond
# it a scatter. Not tuned: on two Zen 4 cores (4,096 tokens, K 2048, float32,
# jax 0.10.2) a scatter took 4 ms against 12 at 65 rows, 13 against 93 at 1024.
ONE_HOT_ROWS = 1024


def is_token(x: jax.Array) -> bool:
  """Return whether x holds integer tokens rather than vectors."""
  return jnp.issubdtype(x.dtype, jnp.integer)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
  """Return x W, [..., K], for x [..., D] and w [D, K]."""
  x = x.astype(w.dtype)
  return jnp.matmul(x, w, preferred_element_type=wider(w.dtype))


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
  if is_token(x):  # one addition a row of W, not one a token
    table = jnp.asarray(wide(w) + wide(b)[None])
    return table[x.astype(jnp.int32)]
  a = product(x, w)
  return a + jnp.expand_dims(wide(b), range(a.ndim - 1))


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
  x: jax.Array, w: jax.Array, b: jax.Array, da: jax.Array
) -> tuple[jax.Array | None, jax.Array, jax.Array]:
  """Return (dx, dW, db), the cotangents of `affine(x, w, b)`'s inputs.

  Tokens have no cotangent: their dx is None.
  """
  db = total(da)
  if is_token(x):
    dx, dw = None, _token_gradient(x, w, da)
  else:
    dx, dw = product(da, w.T).astype(x.dtype), outer(x, da, w.dtype)
  return dx, dw.astype(w.dtype), db.astype(b.dtype)


def _token_gradient(x: jax.Array, w: jax.Array, da: jax.Array) -> jax.Array:
  """Return dW, [D, K], from tokens x [...]: the sum of each token's rows."""
  x = x.astype(jnp.int32)  # a narrow integer cannot count the rows of W
  if w.shape[0] <= ONE_HOT_ROWS:
    rows = jax.nn.one_hot(x, w.shape[0], dtype=w.dtype)
    return outer(rows, da, w.dtype)
  return jnp.zeros(w.shape, wider(w.dtype)).at[x].add(wide(da))


@jax.custom_vjp
def linear(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
  """Return `affine(x, w, b)`, with `affine_backward` as its gradient."""
  return affine(x, w, b)


def _linear_forward(x, w, b):
  return affine(x, w, b), (x, w, b)


def _linear_backward(residuals, da):
  x, w, b = residuals
  return affine_backward(x, w, b, da)


linear.defvjp(_linear_forward, _linear_backward)
