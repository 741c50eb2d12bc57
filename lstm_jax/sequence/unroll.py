"""Unroll a cell over time, with the whole sequence's gradient by hand.

Forward, for t = 1 … T               Backward, for t = T … 1
  aₜ = xₜ W_x + b   (all t at once)    dhₜ ← dhₜ + (cotangent of the output hₜ)
  sₜ, tapeₜ = recur(sₜ₋₁, aₜ)           dsₜ₋₁, daₜ = recur_backward(tapeₜ, dsₜ)
                                       dW, db, dx from every daₜ at once

The loop forward holds only what has memory, and the loop backward carries only
the state's cotangent: the input product, each weight gradient and the inputs'
cotangents are one product each, over all T·B rows (a token's row of W_x is read
in the loop: there is nothing to multiply). Autodiff of a scan does all
of these step by step, and adds up the weight gradients in the loop's carry.

Memory kept for the backward, in numbers: the tape and hs, which is T·B·H times
7 for the LSTM, 6 for the GRU and 2 for the RNN. The backward adds, in T·B·H,
daₜ (4, 3 and 1), hs shifted by one step (1) and the GRU's du (3); vectors add
their projections to the forward (4, 3 and 1).

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

from lstm_jax.cells.affine import is_token, once
from lstm_jax.cells.cell import Cell, Params, State, Tape, check_inputs
from lstm_jax.cells.precision import cast_like, lower, wide

Rule = Literal["explicit", "step", "autodiff"]


class Residuals(NamedTuple):
  """What an unrolled sequence keeps for its backward."""

  params: Params
  state: State  # before the first step
  xs: jax.Array  # [T, ..., D] or tokens [T, ...]
  hs: jax.Array  # [T, ..., H]
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
  tokens = is_token(xs)

  def body(state, x):
    # A token's row is read where it is needed; vectors have been projected.
    ax = cell.project(operands, x) if tokens else x
    state, tape = cell.recur(operands, state, ax)
    return state, (state.h, tape)

  inputs = xs if tokens else cell.project(operands, xs)
  last, (hs, tape) = lax.scan(body, state, inputs)
  return (last, hs), Residuals(params, state, xs, hs, tape)


def _backward(
  cell: Cell,
  compute_dtype: jnp.dtype | None,
  residuals: Residuals,
  cotangents: tuple[State, jax.Array],
) -> tuple[Params, State, Any]:
  params, state, xs, hs, tape = residuals
  operands = _operands(params, xs, compute_dtype)
  d_last, dhs = cotangents

  # W_hᵀ is laid out once: XLA's products on the CPU read a right operand that
  # is transposed a quarter more slowly, and in float32 where it is bfloat16.
  w_h_transposed = once(operands.w_h.T)

  def body(d_state, inputs):
    tape, dh = inputs
    d_after = d_state._replace(h=d_state.h + dh.astype(d_state.h.dtype))
    weights = operands._replace(w_h=w_h_transposed.T)
    d_before, da = cell.recur_backward(weights, tape, d_after)
    return cast_like(d_before, d_state), da

  # Carried in float32 or wider: T roundings to bfloat16 would add up.
  d_state, das = lax.scan(body, wide(d_last), (tape, dhs), reverse=True)
  hs_before = jnp.concatenate([state.h[None], hs[:-1]])
  d_params, dxs = cell.parameter_gradients(operands, xs, hs_before, tape, das)
  dxs = None if dxs is None else dxs.astype(xs.dtype)
  return cast_like(d_params, params), cast_like(d_state, state), dxs


_unroll.defvjp(_forward, _backward)


def _check(params: Params, state: State, xs: jax.Array) -> None:
  if xs.ndim == 0 or xs.shape[0] == 0:
    raise ValueError(f"xs must have at least one step (T ≥ 1), got {xs.shape}")
  check_inputs("xs", params, state, xs, leading=xs.shape[:1])
