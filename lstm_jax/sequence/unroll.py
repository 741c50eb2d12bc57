"""Unroll a cell over time, with the whole sequence's gradient by hand.

Forward, for t = 1 … T               Backward, for t = T … 1
  aₜ = xₜ W_x + b   (all t at once)    dhₜ ← dhₜ + (cotangent of the output hₜ)
  sₜ, ∂ₜ = recur(sₜ₋₁, aₜ)              dsₜ₋₁, daₜ = recur_backward(∂ₜ, dsₜ)
                                       dW, db, dx from every daₜ at once

The loop forward holds only what has memory, and the loop backward carries only
the state's cotangent: the input product, each weight gradient and the inputs'
cotangents are one product each, over all T·B rows. Autodiff of a scan does all
of these step by step, and adds up the weight gradients in the loop's carry.

Memory kept for the backward, in numbers: the derivatives ∂ₜ and hs, which is
T·B·H times 7 for the LSTM, 6 for the GRU and 2 for the RNN. The largest array
is there once: step by step the derivatives by aₜ take the place of aₜ, and daₜ
then takes theirs. The backward adds hs shifted by one step (1), and the GRU's
du (3).

  >>> import jax, jax.numpy as jnp
  >>> from lstm_jax.cells import lstm
  >>> params = lstm.init(jax.random.key(0), input_size=3, hidden_size=5)
  >>> state = lstm.initial_state(params, batch_shape=(2,))
  >>> state, hs = unroll(lstm, params, state, jnp.ones((7, 2, 3)))
  >>> hs.shape
  (7, 2, 5)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lstm_jax.cells.affine import is_token
from lstm_jax.cells.cell import Cell, Params, State, Tape, check_inputs
from lstm_jax.cells.precision import cast_like, lower, wide

Rule = Literal["explicit", "step", "autodiff"]


class Residuals(NamedTuple):
  """What an unrolled sequence keeps for its backward."""

  params: Params
  state: State  # before the first step
  xs: jax.Array  # [T, ..., D] or tokens [T, ...]
  hs: jax.Array  # [T, ..., H]
  by_as: jax.Array  # [T, ..., G·H]
  tape: Tape  # of every step, stacked along T


def unroll(
  cell: Cell,
  params: Params,
  state: State,
  xs: jax.Array,
  *,
  vjp: Rule = "explicit",
  compute_dtype: jnp.dtype | None = None,
) -> tuple[State, jax.Array]:
  """Apply `cell` to each of xs in turn.

  Computes what this loop does, as one `lax.scan`:

    hs = []
    for x in xs:
      state = cell.step(params, state, x)
      hs.append(state.h)
    return state, stack(hs)

  Args:
    cell: `lstm`, `gru`, `rnn`, or anything with the same functions.
    params: the cell's weights.
    state: the state before the first step; its leaves are [..., H].
    xs: inputs [T, ..., D], or integer tokens [T, ...] in [0, D), which stand
      for one-hot rows; the axes between are those of the state.
    vjp: whose gradient. "explicit": the derivation above. "step": the cell's
      own, scanned by JAX. "autodiff": JAX's, of the same forward; the only
      one that also has a forward mode (`jvp`, `linearize`).
    compute_dtype: of the products' operands, such as `jnp.bfloat16`; None for
      that of the weights. Sums, states and gradients keep their dtypes. Under
      another rule than "explicit" JAX adds up the weights' gradients in it.

  Returns:
    (state, hs): the state after the last step, and the outputs [T, ..., H].

  Raises:
    ValueError: xs is empty, does not fit the state or the weights, or `vjp` is
      none of the three.
  """
  _check(params, state, xs)
  if vjp == "explicit":
    return _unroll(cell, compute_dtype, params, state, xs)
  if vjp not in ("step", "autodiff"):
    raise ValueError(f"vjp must be explicit, step or autodiff, got {vjp!r}")
  params = _operands(params, xs, compute_dtype)
  return _by_steps(cell.step if vjp == "step" else _plain(cell))(
    params, state, xs
  )


def _operands(
  params: Params, xs: jax.Array, compute_dtype: jnp.dtype | None
) -> Params:
  """Return params with the operands of products in compute_dtype."""
  lowered = lower(params, compute_dtype)
  return lowered._replace(w_x=params.w_x) if is_token(xs) else lowered


def _plain(cell: Cell) -> Callable:
  """Return the cell's step as a function that JAX differentiates."""
  return lambda params, state, x: cell.forward(params, state, x)[0]


def _by_steps(step: Callable) -> Callable:
  """Return (params, state, xs) -> (state, hs), one step after another."""

  def loop(params, state, xs):
    def body(state, x):
      state = step(params, state, x)
      return state, state.h

    return lax.scan(body, state, xs)

  return loop


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unroll(cell, compute_dtype, params, state, xs):
  # No gradient is asked for: no tape, and no projections of all T·B inputs.
  params = _operands(params, xs, compute_dtype)
  return _by_steps(_plain(cell))(params, state, xs)


def _forward(
  cell: Cell,
  compute_dtype: jnp.dtype | None,
  params: Params,
  state: State,
  xs: jax.Array,
) -> tuple[tuple[State, jax.Array], Residuals]:
  operands = _operands(params, xs, compute_dtype)

  def body(state, ax, _):
    state, by_a, tape = cell.recur(operands, state, ax)
    return state, by_a, (state.h, tape)

  axs = cell.project(operands, xs)
  last, by_as, (hs, tape) = _scan_in_place(body, state, axs, None)
  return (last, hs), Residuals(params, state, xs, hs, by_as, tape)


def _backward(
  cell: Cell,
  compute_dtype: jnp.dtype | None,
  residuals: Residuals,
  cotangents: tuple[State, jax.Array],
) -> tuple[Params, State, Any]:
  params, state, xs, hs, by_as, tape = residuals
  operands = _operands(params, xs, compute_dtype)
  d_last, dhs = cotangents

  def body(d_state, by_a, inputs):
    tape, dh = inputs
    d_after = d_state._replace(h=d_state.h + dh.astype(d_state.h.dtype))
    d_before, da = cell.recur_backward(operands, by_a, tape, d_after)
    return cast_like(d_before, d_state), da, None

  # Carried in float32 or wider: T roundings to bfloat16 would add up.
  d_state, das, _ = _scan_in_place(
    body, wide(d_last), by_as, (tape, dhs), reverse=True
  )
  hs_before = jnp.concatenate([state.h[None], hs[:-1]])
  d_params, dxs = cell.parameter_gradients(operands, xs, hs_before, tape, das)
  dxs = None if dxs is None else dxs.astype(xs.dtype)
  return cast_like(d_params, params), cast_like(d_state, state), dxs


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


_unroll.defvjp(_forward, _backward)


def _check(params: Params, state: State, xs: jax.Array) -> None:
  if xs.ndim == 0 or xs.shape[0] == 0:
    raise ValueError(f"xs must have at least one step (T ≥ 1), got {xs.shape}")
  check_inputs("xs", params, state, xs, leading=xs.shape[:1])
