"""A whole sequence, with its gradient by hand.

Forward, for t = 1 … T               Backward, for t = T … 1
  aₜ = xₜ W_x       (all t at once)    dhₜ ← dhₜ + (cotangent of the output hₜ)
  sₜ, kₜ = recur(sₜ₋₁, aₜ)              dsₜ₋₁, daₜ = recur_backward(kₜ, dsₜ)
                                       dW, db, dx from every daₜ at once

The loop forward holds only what has memory, and the loop backward carries only
the state's cotangent: the input product, each weight gradient and the inputs'
cotangents are one product each, over all T·B rows. Autodiff of a scan does all
of these step by step, and adds up the weight gradients in the loop's carry.

Memory kept for the backward, in numbers: every kₜ and hs, which is T·B·H times

  RNN 2   GRU 6   LSTM 6   coupled 5   peepholes 7   layer norm 11

and T·B·(6 H + P) for the LSTM with projection. The largest array is there once:
step by step the gates (or the derivatives by aₜ) take the place of aₜ, and daₜ
then takes theirs. The backward adds hs shifted by one step (1), and where the
cotangent of h W_h is not daₜ, that (3 for the GRU); for the layer-normalised
LSTM, normalised products and their cotangents (up to 17, each for a while).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State, Tape
from lstm_jax.cells.precision import cast_like, lower, wide


class Way(NamedTuple):
  """How a sequence is gone through: what is known when it is compiled."""

  compute_dtype: Any = None  # of the products' operands
  reverse: bool = False  # from the last step to the first


class Residuals(NamedTuple):
  """What an unrolled sequence keeps for its backward."""

  params: Params
  state: State  # before the first step
  xs: jax.Array  # [T, ..., D] or tokens [T, ...]
  extras: tuple  # what else the steps are told, each [T, ...]
  hs: jax.Array  # [T, ..., H]
  kept: jax.Array  # [T, ..., G·H]
  tape: Tape  # of every step, stacked along T


def by_steps(
  step: Callable,
  way: Way,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) of one step (params, state, x, *extras) after another.

  Nothing is kept for a backward, but by JAX if it differentiates.
  """
  operands = operands_of(params, xs, way)

  def body(state, inputs):
    x, extra = inputs
    state = step(operands, state, x, *extra)
    return state, state.h

  return lax.scan(body, state, (xs, extras), reverse=way.reverse)


def states_of(
  cell: Cell,
  way: Way,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, State]:
  """Return the state after the last step, and that after each, [T, ...]."""
  operands = operands_of(params, xs, way)

  def body(state, inputs):
    ax, extra = inputs
    state, _, _ = cell.recur(operands, state, ax, *extra)
    return state, state

  axs = cell.project(operands, xs)
  return lax.scan(body, state, (axs, extras), reverse=way.reverse)


def plain(cell: Cell) -> Callable:
  """Return the cell's step as a function that JAX differentiates."""
  return lambda *args: cell.forward(*args)[0]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def whole(
  cell: Cell,
  way: Way,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[State, jax.Array]:
  """Return (state, hs) as `by_steps` does, with the gradient above."""
  return by_steps(plain(cell), way, params, state, xs, extras)


def forward(
  cell: Cell,
  way: Way,
  params: Params,
  state: State,
  xs: jax.Array,
  extras: tuple,
) -> tuple[tuple[State, jax.Array], Residuals]:
  """Return (state, hs) and what the backward needs."""
  operands = operands_of(params, xs, way)

  def body(state, ax, extra):
    state, kept, tape = cell.recur(operands, state, ax, *extra)
    return state, kept, (state.h, tape)

  axs = cell.project(operands, xs)
  last, kept, (hs, tape) = _scan_in_place(body, state, axs, extras, way.reverse)
  return (last, hs), Residuals(params, state, xs, extras, hs, kept, tape)


def backward(
  cell: Cell,
  way: Way,
  residuals: Residuals,
  cotangents: tuple[State, jax.Array],
) -> tuple[Params, State, Any, None]:
  """Return the cotangents of params, the first state, xs and extras."""
  params, state, xs, extras, hs, kept, tape = residuals
  operands = operands_of(params, xs, way)
  d_last, dhs = cotangents

  def body(d_state, kept, inputs):
    tape, dh, extra = inputs
    d_after = d_state._replace(h=d_state.h + dh.astype(d_state.h.dtype))
    d_before, da, *more = cell.recur_backward(
      operands, kept, tape, d_after, *extra
    )
    return cast_like(d_before, d_state), da, more

  # Carried in float32 or wider: T roundings to bfloat16 would add up.
  d_state, das, more = _scan_in_place(
    body, wide(d_last), kept, (tape, dhs, extras), not way.reverse
  )
  hs_before = before_each(state.h, hs, way)
  d_params, dxs = cell.parameter_gradients(
    operands, xs, hs_before, tape, das, *more
  )
  dxs = None if dxs is None else dxs.astype(xs.dtype)
  d_params, d_state = cast_like((d_params, d_state), (params, state))
  return d_params, d_state, dxs, None


whole.defvjp(forward, backward)


def before_each(first: jax.Array, after: jax.Array, way: Way) -> jax.Array:
  """Return what was before each step, from what was after each, [T, ...].

  Args:
    first: before the step that comes first, [...].
    after: after each step, [T, ...].
    way: which step comes first.
  """
  if way.reverse:
    return jnp.concatenate([after[1:], first[None]])
  return jnp.concatenate([first[None], after[:-1]])


def operands_of(params: Params, xs: jax.Array, way: Way) -> Params:
  """Return params with the operands of products in the compute dtype."""
  lowered = lower(params, way.compute_dtype)
  return lowered._replace(w_x=params.w_x) if is_token(xs) else lowered


def _scan_in_place(
  f: Callable, carry: Any, rows: jax.Array, xs: Any, reverse: bool = False
) -> tuple[Any, jax.Array, Any]:
  """Scan f over rows and xs; what it makes of a row takes that row's place.

  Computes `lax.scan` of (carry, (row, x)) -> (carry, (row, y)), but the new
  rows are written over the old, where `lax.scan` fills an array of zeros first
  and then writes its outputs into it. Each row is read from what the step
  before it wrote: were it read within its own step, XLA might order a reader of
  the old rows after the write, and copy all T of them at every step.

  Args:
    f: (carry, row, x) -> (carry, new row of the same shape, y).
    carry: before the first step.
    rows: [T, ...].
    xs: a tree of arrays [T, ...], or None.
    reverse: from the last step to the first.

  Returns:
    (carry after the last step, new rows [T, ...], ys).
  """
  steps = len(rows)
  first, ahead = (steps - 1, -1) if reverse else (0, 1)

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
