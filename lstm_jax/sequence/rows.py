"""A scan over time whose outputs are written over its inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def scan_rows(
  f: Callable, carry: Any, rows: jax.Array, xs: Any, reverse: bool
) -> tuple[Any, jax.Array, Any]:
  """Scan f over rows and xs, with each new row written over the old one.

  Computes `lax.scan` of (carry, (row, x)) -> (carry, (row, y)). But `lax.scan`
  allocates an array of zeros for its outputs and writes the new rows there;
  this writes them into the array of the old rows. Each row is read one step
  early, after the previous write: if a step read its own row, XLA might order
  the read after the write, and copy all T rows at every step.

  Args:
    f: (carry, row, x) -> (carry, new row of the same shape, y).
    carry: the carry before the first step.
    rows: [T, ...].
    xs: a tree of arrays [T, ...], or None.
    reverse: from the last step to the first.

  Returns:
    (carry after the last step, new rows [T, ...], ys).
  """
  steps = rows.shape[0]  # a symbolic T has no len
  first, ahead = (-1, -1) if reverse else (0, 1)

  def row_at(rows, t):
    return lax.dynamic_index_in_dim(rows, t.clip(0, steps - 1), keepdims=False)

  def body(carry, inputs):
    (carry, row, rows), (t, x) = carry, inputs
    carry, row, y = f(carry, row, x)
    row = row.astype(rows.dtype)
    rows = lax.dynamic_update_index_in_dim(rows, row, t, 0)
    return (carry, row_at(rows, t + ahead), rows), y

  carry = carry, rows[first], rows
  inputs = jnp.arange(steps), xs
  (carry, _, rows), ys = lax.scan(body, carry, inputs, reverse=reverse)
  return carry, rows, ys
